/* SPDX-License-Identifier: MIT */
/* Ranks that leave in order, that are not needed any more, that wake up late; ranks in threads. */
#include "config.h"

#include <pthread.h>

#include "t/fault/fault.h"
#include "t/tap.h"

/* It has given and taken all that the others need of it: they may end their call without it. */
static int after_ll_recv(struct fault_rank *r)
{
	int rc = fault_ll_dispatch(r, 1, MOEEP_PHASE_SEND, NULL);

	if (r->victim) {
		rc = rc == MOEEP_OK ? fault_ll_dispatch(r, 1, MOEEP_PHASE_RECV, NULL) : rc;
		fault_await_ready(r);
		fault_strike(r);
		return rc;
	}
	fault_ready(r);
	fault_await_struck(r);
	return rc == MOEEP_OK ? fault_ll_dispatch(r, 1, MOEEP_PHASE_RECV, NULL) : rc;
}

static int after_ll_combine(struct fault_rank *r)
{
	int rc = fault_ll_combine(r, 1, MOEEP_PHASE_SEND, r->received, NULL);

	if (r->victim) {
		rc = rc == MOEEP_OK ? fault_ll_combine(r, 1, MOEEP_PHASE_RECV, NULL, NULL) : rc;
		fault_await_ready(r);
		fault_strike(r);
		return rc;
	}
	fault_ready(r);
	fault_await_struck(r);
	return rc == MOEEP_OK ? fault_ll_combine(r, 1, MOEEP_PHASE_RECV, NULL, NULL) : rc;
}

/*
 * The victim has sent no tokens, so it waits for nobody in its combine, and is gone while one of
 * the others still waits for another one that is slow.
 */
static int while_others_wait(struct fault_rank *r)
{
	int slow = r->num_ranks - 1;
	int rc = MOEEP_OK;

	if (r->rank == slow) {
		fault_ready(r);
		fault_await_struck(r);
		fault_sleep_ms(150);
	}
	rc = fault_ll_combine(r, 1, MOEEP_PHASE_SEND, r->received, NULL);
	if (r->rank != slow) {
		fault_ready(r);
	}
	rc = rc == MOEEP_OK ? fault_ll_combine(r, 1, MOEEP_PHASE_RECV, NULL, NULL) : rc;
	if (r->victim) {
		fault_await_ready(r);
		fault_strike(r);
	}
	return rc;
}

static int make_and_dispatch_some(struct fault_rank *r)
{
	int rc = fault_make_and_use(r);

	if (r->victim) {
		r->ll_tokens = 0;
	}
	return rc == MOEEP_OK ? fault_ll_dispatch(r, 1, MOEEP_PHASE_BOTH, NULL) : rc;
}

/* At once, so that the others are still about to take its last rows. */
static int after_dispatch(struct fault_rank *r)
{
	int rc = fault_dispatch(r, NULL);

	if (r->victim) {
		fault_strike(r);
	}
	return rc;
}

static int after_combine(struct fault_rank *r)
{
	int rc = fault_combine(r, r->received, NULL);

	if (r->victim) {
		fault_strike(r);
	}
	return rc;
}

static int after_barrier(struct fault_rank *r)
{
	int rc = moeep_comm_barrier(r->comm);

	if (r->victim) {
		fault_strike(r);
		return rc;
	}
	if (rc == MOEEP_OK) {
		/* What needs nobody goes on. */
		fault_await_struck(r);
		fault_ok(r, moeep_buffer_clean(r->buffer));
		fault_ok(r, moeep_handle_destroy(r->handle[2]));
		r->handle[2] = NULL;
		rc = moeep_handle_create(r->buffer, NULL, &r->handle[2]);
	}
	return rc;
}

static int make_and_dispatch(struct fault_rank *r)
{
	int rc = fault_make_and_use(r);

	return rc == MOEEP_OK ? fault_ll_dispatch(r, 1, MOEEP_PHASE_BOTH, NULL) : rc;
}

/* All ranks leave when they are done, one after another. */
static int in_turn(struct fault_rank *r)
{
	int rc = fault_dispatch(r, NULL);

	fault_sleep_ms(30 * r->rank);
	if (r->victim) {
		fault_strike(r);
	}
	return rc;
}

static void *stop_thread(void *arg)
{
	fault_sleep_ms(50);
	(void)fault_strike(arg);
	return NULL;
}

/* Stopped in a barrier that the others then pass, and awake when they have all gone. */
static int stopped_in_barrier(struct fault_rank *r)
{
	pthread_t thread;
	int rc;

	if (r->victim) {
		pthread_create(&thread, NULL, stop_thread, r);
	} else {
		fault_await_struck(r);
	}
	rc = moeep_comm_barrier(r->comm);
	if (r->victim) {
		pthread_join(thread, NULL);
	}
	if (!fault_ok(r, rc)) {
		return rc;
	}
	fault_clock(r);
	return moeep_comm_barrier(r->comm);
}

/* The same in an operation: it wakes up in the middle of taking rows of ranks that are no more. */
static int stopped_in_dispatch(struct fault_rank *r)
{
	if (r->victim) {
		fault_trap(r, r->received, 2 * 4096);
	}
	return fault_dispatch(r, NULL);
}

static int late(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return fault_dispatch(r, NULL);
}

static int late_ll(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return fault_ll_dispatch(r, 1, MOEEP_PHASE_BOTH, NULL);
}

#define HARMLESS(text, what, number, prepared, called)                                             \
	{                                                                                          \
		.name = (text), .fate = (what), .victim = (number), .harmless = true,              \
		.prepare = (prepared), .act = (called)                                             \
	}

static const struct fault_case cases[] = {
	HARMLESS("rank 0 leaves after its LL dispatch", FATE_LEAVES, 0, fault_make_and_use,
		 after_ll_recv),
	HARMLESS("rank 1 dies after its LL dispatch", FATE_DIES, 1, fault_make_and_use,
		 after_ll_recv),
	HARMLESS("rank 2 leaves after its LL combine", FATE_LEAVES, 2, make_and_dispatch,
		 after_ll_combine),
	HARMLESS("rank 0 dies after its LL combine", FATE_DIES, 0, make_and_dispatch,
		 after_ll_combine),
	HARMLESS("rank 0 leaves while rank 1 waits for rank 2", FATE_LEAVES, 0,
		 make_and_dispatch_some, while_others_wait),
	{
		.name = "rank 0 dies while rank 1 waits for rank 2",
		.fate = FATE_DIES,
		.victim = 0,
		.prepare = make_and_dispatch_some,
		.act = while_others_wait,
		.want = {.operation = MOEEP_OP_LL_COMBINE_RECV,
			 .epoch = 2,
			 .expected = FAULT_WORD(2),
			 .seen = FAULT_WORD(1),
			 .text = "found rank 0 gone"},
	},
	HARMLESS("rank 1 leaves after its dispatch", FATE_LEAVES, 1, fault_make_and_use,
		 after_dispatch),
	HARMLESS("rank 2 leaves after its combine", FATE_LEAVES, 2, fault_make_and_use,
		 after_combine),
	HARMLESS("rank 0 leaves after a barrier", FATE_LEAVES, 0, fault_make, after_barrier),
	HARMLESS("rank 1 dies after a barrier", FATE_DIES, 1, fault_make, after_barrier),
	HARMLESS("all ranks leave in turn", FATE_LEAVES, 0, fault_make_and_use, in_turn),
	{
		.name = "rank 1 is stopped in a barrier and wakes up alone",
		.fate = FATE_STOPS,
		.victim = 1,
		.act = stopped_in_barrier,
		.want = {.operation = MOEEP_OP_BARRIER,
			 .epoch = 3,
			 .expected = FAULT_WORD(3),
			 .seen = FAULT_WORD(2)},
	},
	{
		.name = "rank 0 is stopped in a dispatch and wakes up alone",
		.fate = FATE_STOPS,
		.victim = 0,
		.prepare = fault_make_and_use,
		.act = stopped_in_dispatch,
		.want = {.operation = MOEEP_OP_DISPATCH, .epoch = 3},
	},
	{
		.name = "two threads, one of which never calls",
		.fate = FATE_LATE,
		.num_ranks = 2,
		.process = {1, 1},
		.victim = 1,
		.prepare = fault_make_and_use,
		.act = late,
		.want = {.operation = MOEEP_OP_DISPATCH, .epoch = 3},
	},
	{
		.name = "two threads, one of which leaves",
		.fate = FATE_LEAVES,
		.num_ranks = 2,
		.process = {1, 1},
		.victim = 0,
		.prepare = fault_make_and_use,
		.act = late_ll,
		.want = {.operation = MOEEP_OP_LL_DISPATCH_RECV, .epoch = 2},
	},
	{
		.name = "a process of its own dies beside two threads",
		.fate = FATE_DIES,
		.process = {1, 1, 2},
		.victim = 2,
		.prepare = fault_make_and_use,
		.act = late,
		.want = {.operation = MOEEP_OP_DISPATCH, .epoch = 3},
	},
	{
		.name = "one of two threads of a process is late",
		.fate = FATE_LATE,
		.num_ranks = 4,
		.process = {2, 2, 1, 1},
		.victim = 3,
		.prepare = fault_make_and_use,
		.act = late_ll,
		.want = {.operation = MOEEP_OP_LL_DISPATCH_RECV, .epoch = 2},
	},
};

int main(void)
{
	fault_begin();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		fault_run(&cases[i]);
	}
	return fault_end();
}
