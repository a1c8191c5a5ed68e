/* SPDX-License-Identifier: MIT */
/* Faults in the barrier, in the creation of buffers and in that of symmetric memory. */
#include "config.h"

#include <stdio.h>

#include "t/fault/fault.h"
#include "t/tap.h"

static int barrier(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return moeep_comm_barrier(r->comm);
}

static int buffer_create(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return fault_make(r);
}

static int mem_alloc(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return moeep_mem_alloc(r->comm, 100000, 0, &r->symmetric);
}

/* The threads of one process could register; here the call is refused, but only once all came. */
static int mem_register(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return moeep_mem_register(r->comm, r, sizeof(*r), 0);
}

/* Two that succeed come first, so that the epochs in the report mean something. */
static int make_two(struct fault_rank *r)
{
	int rc = fault_make(r);

	return rc == MOEEP_OK ? moeep_mem_alloc(r->comm, 4096, 0, &r->symmetric) : rc;
}

static const char *const fates[] = {"", "dies", "is stopped", "is late", "leaves"};

static void each_fate(const char *name, int (*prepare)(struct fault_rank *),
		      int (*act)(struct fault_rank *), struct fault_want want)
{
	for (int fate = FATE_DIES; fate <= FATE_LEAVES; fate++) {
		char text[100];
		struct fault_case fault = {.name = text,
					   .fate = fate,
					   .victim = fate % 3,
					   .prepare = prepare,
					   .act = act,
					   .want = want};

		snprintf(text, sizeof(text), "%s: rank %d %s", name, fault.victim, fates[fate]);
		fault_run(&fault);
	}
}

/* One of the threads of a process; the others, and another process, wait for it. */
static void with_threads(const char *name, int (*act)(struct fault_rank *), int operation)
{
	for (int fate = FATE_LATE; fate <= FATE_LEAVES; fate++) {
		char text[100];
		struct fault_case fault = {.name = text,
					   .fate = fate,
					   .num_ranks = 4,
					   .process = {0, 1, 1, 1},
					   .victim = 2,
					   .act = act,
					   .want = {.operation = operation}};

		snprintf(text, sizeof(text), "%s: rank 2, a thread, %s", name, fates[fate]);
		fault_run(&fault);
	}
}

int main(void)
{
	fault_begin();
	each_fate("barrier", NULL, barrier,
		  (struct fault_want){.operation = MOEEP_OP_BARRIER,
				      .epoch = 2,
				      .expected = FAULT_WORD(2),
				      .seen = FAULT_WORD(1)});
	each_fate("buffer_create", NULL, buffer_create,
		  (struct fault_want){.operation = MOEEP_OP_BUFFER_CREATE, .epoch = 1});
	each_fate("mem_alloc", fault_make_and_use, mem_alloc,
		  (struct fault_want){.operation = MOEEP_OP_MEMORY, .epoch = 2});
	each_fate("mem_register", make_two, mem_register,
		  (struct fault_want){.operation = MOEEP_OP_MEMORY, .epoch = 3});
	with_threads("barrier", barrier, MOEEP_OP_BARRIER);
	with_threads("buffer_create", buffer_create, MOEEP_OP_BUFFER_CREATE);
	return fault_end();
}
