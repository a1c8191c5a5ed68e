/* SPDX-License-Identifier: MIT */
/* moeep_comm_abort(): its reason reaches every rank, whatever that waits for. */
#include "config.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/comm.h"
#include "t/fault/fault.h"
#include "t/tap.h"

#define REASON "the optimiser has seen a NaN"

/* Long enough that all others sleep in their waits. */
#define PAUSE_MS 100

static void abort_comm(struct fault_rank *r, const char *reason)
{
	fault_await_ready(r);
	fault_sleep_ms(PAUSE_MS);
	(void)fault_strike(r);
	fault_ok(r, moeep_comm_abort(r->comm, reason));
}

/* So that nothing but the abort ends their calls. */
static void await_others(struct fault_rank *r)
{
	for (int rank = 0; rank < r->num_ranks; rank++) {
		if (rank != r->rank) {
			fault_wait_given_up(r, rank);
		}
	}
	fault_clock(r);
}

enum waiting_in { IN_BARRIER, IN_BUFFER_CREATE, IN_MEM_ALLOC, IN_DISPATCH, IN_LL_RECV, IN_EVENT };

static int call(struct fault_rank *r, int what)
{
	moeep_launch_t launch = {
		.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER, .done_event = r->event};
	moeep_buffer_config_t config = {.size = sizeof(config), .num_experts = 8, .hidden = 64};
	moeep_buffer_t *buffer = NULL;
	int rc;

	switch (what) {
	case IN_BARRIER:
		return moeep_comm_barrier(r->comm);
	case IN_BUFFER_CREATE:
		return moeep_buffer_create(r->comm, &config, &buffer);
	case IN_MEM_ALLOC:
		return moeep_mem_alloc(r->comm, 4096, 0, &r->symmetric);
	case IN_DISPATCH:
		return fault_dispatch(r, NULL);
	case IN_LL_RECV:
		rc = fault_ll_dispatch(r, 1, MOEEP_PHASE_SEND, NULL);
		return rc == MOEEP_OK ? fault_ll_dispatch(r, 1, MOEEP_PHASE_RECV, NULL) : rc;
	default:
		rc = fault_dispatch(r, &launch);
		return rc == MOEEP_OK ? moeep_event_wait(r->event, MOEEP_TIMEOUT_NONE) : rc;
	}
}

static int by_another_rank(struct fault_rank *r)
{
	if (r->victim) {
		abort_comm(r, REASON);
		await_others(r);
	} else {
		fault_ready(r);
	}
	return call(r, r->fault->arg);
}

static void *abort_thread(void *arg)
{
	abort_comm(arg, REASON);
	return NULL;
}

/* The rank whose thread aborts waits itself, for the last one, which never comes. */
static int by_another_thread(struct fault_rank *r)
{
	pthread_t thread;
	int rc;

	fault_ready(r);
	if (r->victim) {
		pthread_create(&thread, NULL, abort_thread, r);
	}
	if (r->rank == r->num_ranks - 1) {
		while (moeep_comm_async_error(r->comm, NULL) == MOEEP_OK) {
			fault_sleep_ms(1);
		}
		await_others(r);
	}
	rc = call(r, r->fault->arg);
	if (r->victim) {
		pthread_join(thread, NULL);
	}
	return rc;
}

static int without_reason(struct fault_rank *r)
{
	if (r->victim) {
		abort_comm(r, NULL);
		await_others(r);
	} else {
		fault_ready(r);
	}
	return moeep_comm_barrier(r->comm);
}

/* All at once: one of them is first, for everybody. */
static int by_all(struct fault_rank *r)
{
	static const char *const reasons[] = {"reason of rank 0", "reason of rank 1",
					      "reason of rank 2"};

	(void)fault_strike(r);
	fault_ok(r, moeep_comm_abort(r->comm, reasons[r->rank]));
	return moeep_comm_barrier(r->comm);
}

static int with_long_reason(struct fault_rank *r)
{
	char reason[400];
	moeep_error_report_t report = {.size = sizeof(report)};
	int rc;

	memset(reason, 'x', sizeof(reason) - 1);
	reason[sizeof(reason) - 1] = '\0';
	if (r->victim) {
		abort_comm(r, reason);
		await_others(r);
	} else {
		fault_ready(r);
	}
	rc = moeep_comm_barrier(r->comm);
	moeep_comm_async_error(r->comm, &report);
	fault_check(r, strlen(report.message) == 159 && report.message[158] == 'x',
		    "the reason has %zu bytes", strlen(report.message));
	fault_check(r, report.rank == r->fault->victim, "report.rank is %d", report.rank);
	return rc;
}

/* A rank that dies in the middle of writing the group's report: nobody waits for the rest. */
static int dies_while_reporting(struct fault_rank *r)
{
	if (r->victim) {
		fault_await_ready(r);
		fault_sleep_ms(PAUSE_MS);
		atomic_store(&r->comm->peers[0].control->abort_state, MOEEP_ABORT_WRITING);
		fault_strike(r);
	}
	fault_ready(r);
	fault_clock(r);
	return moeep_comm_barrier(r->comm);
}

static void each_wait(const char *name, int (*act)(struct fault_rank *))
{
	static const struct {
		const char *name;
		int (*prepare)(struct fault_rank *);
	} waits[] = {
		[IN_BARRIER] = {"barrier", NULL},
		[IN_BUFFER_CREATE] = {"buffer_create", NULL},
		[IN_MEM_ALLOC] = {"mem_alloc", NULL},
		[IN_DISPATCH] = {"dispatch", fault_make_and_use},
		[IN_LL_RECV] = {"ll_dispatch", fault_make_and_use},
		[IN_EVENT] = {"event_wait", fault_make_and_use},
	};

	for (int i = IN_BARRIER; i <= IN_EVENT; i++) {
		char text[100];
		struct fault_case fault = {
			.name = text,
			.fate = FATE_ABORTS,
			.victim = i % 2,
			.timeout_ms = 15000,
			.prepare = waits[i].prepare,
			.act = act,
			.arg = i,
			.want = {.operation = MOEEP_OP_NONE, .text = REASON},
		};

		snprintf(text, sizeof(text), "%s aborts ranks that wait in %s", name,
			 waits[i].name);
		fault_run(&fault);
	}
}

int main(void)
{
	struct fault_case reason = {
		.name = "abort without a reason",
		.fate = FATE_ABORTS,
		.victim = 2,
		.act = without_reason,
		.want = {.text = "moeep_comm_abort() was called"},
	};
	struct fault_case all = {
		.name = "all ranks abort at once",
		.fate = FATE_ABORTS,
		.act = by_all,
		.want = {.text = "reason of rank"},
	};
	struct fault_case writing = {
		.name = "rank 1 dies while it reports",
		.fate = FATE_DIES,
		.victim = 1,
		.act = dies_while_reporting,
		.unreported = true,
		.want = {.text = "while it reported"},
	};
	struct fault_case longer = {
		.name = "a reason that is too long",
		.fate = FATE_ABORTS,
		.victim = 1,
		.process = {0, 1, 1},
		.act = with_long_reason,
	};

	fault_begin();
	each_wait("another rank", by_another_rank);
	each_wait("a thread", by_another_thread);
	fault_run(&reason);
	fault_run(&longer);
	fault_run(&all);
	fault_run(&writing);
	return fault_end();
}
