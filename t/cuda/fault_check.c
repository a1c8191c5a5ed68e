/* SPDX-License-Identifier: MIT */
/* How ranks of a scene wait for each other, and what a call that failed must look like. */
#include "config.h"

#include "t/cuda/fault.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Between the last call of the others and a strike: their kernels spin by then. */
#define PAUSE_MS 100

/* Until a word of that rank's slot is set. */
static bool await_word(struct fault_rank *r, int number, const atomic_int *word, const char *what)
{
	uint64_t since = fault_now_ns();

	while (!atomic_load((atomic_int *)(uintptr_t)word)) {
		if (fault_ms_since(since) > FAULT_PATIENCE_MS) {
			fault_fail(r, "rank %d has not %s", number, what);
			return false;
		}
		fault_sleep_ms(1);
	}
	return true;
}

/* The rank that never comes while others wait for it and the victim acts. */
int fault_absent(const struct fault_rank *r)
{
	return (fault_victim(r->group, r->scene) + 1) % r->num_ranks;
}

/* All but these two, one of which may be -1. */
void fault_await_given_up(struct fault_rank *r, int but, int or)
{
	for (int number = 0; number < r->num_ranks; number++) {
		if (number != but && number != or) {
			await_word(r, number, &fault_slot(r, number)->given_up, "given up");
		}
	}
}

void fault_await_in_call(struct fault_rank *r, int but, int or)
{
	for (int number = 0; number < r->num_ranks; number++) {
		if (number != but && number != or) {
			await_word(r, number, &fault_slot(r, number)->in_call, "begun its call");
		}
	}
	fault_sleep_ms(PAUSE_MS);
}

void fault_strike(struct fault_rank *r, int signal)
{
	atomic_store(&fault_slot(r, r->number)->struck_ns, fault_now_ns());
	if (signal) {
		kill(getpid(), signal);
	}
}

static int want_operation(enum fault_call call)
{
	switch (call) {
	case CALL_DISPATCH:
		return MOEEP_OP_DISPATCH;
	case CALL_COMBINE:
		return MOEEP_OP_COMBINE;
	case CALL_LL_SEND:
		return MOEEP_OP_LL_DISPATCH_SEND;
	case CALL_LL_RECV:
		return MOEEP_OP_LL_DISPATCH_RECV;
	case CALL_LL_CSEND:
		return MOEEP_OP_LL_COMBINE_SEND;
	case CALL_LL_CRECV:
		return MOEEP_OP_LL_COMBINE_RECV;
	default:
		return MOEEP_OP_NONE;
	}
}

static void check_report(struct fault_rank *r, int want)
{
	int victim = fault_victim(r->group, r->scene);
	moeep_error_report_t report = {.size = sizeof(report)};

	fault_is(r, moeep_comm_async_error(r->comm, &report), want, "moeep_comm_async_error");
	fault_check(r, report.result == want, "report.result is %d", report.result);
	if (want == MOEEP_ERR_TIMEOUT || want == MOEEP_ERR_PEER_LOST) {
		fault_check(r, report.peer == victim, "report.peer is %d, not %d: %s", report.peer,
			    victim, report.message);
		fault_check(r, report.rank != victim, "report.rank is the victim: %s",
			    report.message);
	}
	if (want == MOEEP_ERR_TIMEOUT) {
		int operation = want_operation(fault_scene(r)->call);

		fault_check(r, report.operation == operation, "report.operation is %s, not %s",
			    moeep_op_name(report.operation), moeep_op_name(operation));
		fault_check(r, (int64_t)(report.expected - report.seen) > 0,
			    "expected is 0x%llx, seen is 0x%llx",
			    (unsigned long long)report.expected, (unsigned long long)report.seen);
	}
}

/* Every later call has the same error at once. */
static void check_sticky(struct fault_rank *r, int want)
{
	uint64_t since = fault_now_ns();

	fault_is(r, moeep_comm_barrier(r->comm), want, "later moeep_comm_barrier");
	fault_is(r, fault_do(r, CALL_DISPATCH, 0), want, "later moeep_dispatch");
	fault_check(r, fault_ms_since(since) < FAULT_AT_ONCE_MS, "later calls took %d ms",
		    fault_ms_since(since));
}

/* After the call that failed: as it should, and in time? */
void fault_check_failure(struct fault_rank *r, int rc, uint64_t begun, int want, const char *text,
			 int limit_ms)
{
	struct fault_slot *slot = fault_slot(r, r->number);
	uint64_t struck = atomic_load(&fault_slot(r, fault_victim(r->group, r->scene))->struck_ns);
	char detail[600];

	snprintf(detail, sizeof(detail), "%s", moeep_error_detail());
	slot->call_ms = fault_ms_since(begun);
	slot->notice_ms = fault_ms_since(struck > begun ? struck : begun);
	atomic_store(&slot->given_up, 1);
	fault_is(r, rc, want, "the call");
	fault_check(r, strstr(detail, text) != NULL, "detail without \"%s\": %s", text, detail);
	fault_check(r, slot->notice_ms <= limit_ms, "noticed after %d ms", slot->notice_ms);
	check_report(r, want);
	check_sticky(r, want);
	fault_check_device(r);
}

/* "rank 2" */
const char *fault_name_victim(const struct fault_rank *r, char *text, size_t size)
{
	snprintf(text, size, "rank %d", fault_victim(r->group, r->scene));
	return text;
}

/* What survivors of a late, stopped or killed rank get. */
void fault_check_survivor(struct fault_rank *r, int rc, uint64_t begun)
{
	bool killed = fault_kills(fault_scene(r));
	char text[20];

	fault_name_victim(r, text, sizeof(text));
	if (killed) {
		fault_check_failure(r, rc, begun, MOEEP_ERR_PEER_LOST, text, FAULT_LOST_MS);
	} else {
		fault_check_failure(r, rc, begun, MOEEP_ERR_TIMEOUT, text,
				    FAULT_TIMEOUT_MS + FAULT_SLACK_MS);
		/* One of them was the first, and did not give up too early. */
		fault_check(r, fault_slot(r, r->number)->call_ms >= FAULT_TIMEOUT_MS / 2,
			    "gave up after %d ms", fault_slot(r, r->number)->call_ms);
	}
}
