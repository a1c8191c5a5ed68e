/* SPDX-License-Identifier: MIT */
/* Faults in operations on the buffer's own stream: events carry the error. */
#include "config.h"

#include "t/fault/fault.h"
#include "t/tap.h"

/* Both take the result from the event, the status word and the queries, which have to agree. */
static int outcome(struct fault_rank *r, moeep_event_t *event, const int32_t *status)
{
	int rc = moeep_event_wait(event, MOEEP_TIMEOUT_NONE);

	fault_check(r, *status == rc, "status is %d, the event has %d", *status, rc);
	fault_check(r, moeep_event_query(event) == rc, "event_query differs");
	/* The last, so that the detail is that of the event. */
	return moeep_event_wait(event, 0);
}

static int one(struct fault_rank *r)
{
	int32_t status = 1;
	moeep_launch_t launch = {.size = sizeof(launch),
				 .stream = MOEEP_STREAM_BUFFER,
				 .status = &status,
				 .done_event = r->event};
	uint64_t begun = fault_now_ns();

	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	if (r->victim) {
		/* Refused at the latest when it has its turn. */
		fault_dispatch(r, &launch);
		return outcome(r, r->event, &status);
	}
	fault_ok(r, fault_dispatch(r, &launch));
	fault_check(r, fault_now_ns() - begun < 200000000u * (unsigned)fault_slowness(),
		    "the launch waits");
	return outcome(r, r->event, &status);
}

/* What stands behind it in the stream, and what waits for its event, has the error as well. */
static int chain(struct fault_rank *r)
{
	moeep_event_t *events[3] = {r->event, NULL, NULL};
	int32_t status[3] = {1, 1, 1};
	moeep_launch_t launches[3];
	int rc;

	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	for (int i = 0; i < 3; i++) {
		if (i > 0) {
			fault_ok(r, moeep_event_create(r->comm, 0, &events[i]));
		}
		launches[i] = (moeep_launch_t){.size = sizeof(launches[i]),
					       .stream = MOEEP_STREAM_BUFFER,
					       .status = &status[i],
					       .wait_event = i == 2 ? events[0] : NULL,
					       .done_event = events[i]};
	}
	fault_ok(r, fault_dispatch(r, &launches[0]));
	fault_ok(r, fault_combine(r, r->received, &launches[1]));
	fault_ok(r, fault_ll_dispatch(r, 1, MOEEP_PHASE_BOTH, &launches[2]));
	rc = outcome(r, events[0], &status[0]);
	for (int i = 1; i < 3; i++) {
		int later = outcome(r, events[i], &status[i]);

		fault_check(r, later == rc, "operation %d has %d, the first %d", i, later, rc);
		fault_ok(r, moeep_event_destroy(events[i]));
	}
	/* Its detail is what the harness looks at. */
	return moeep_event_wait(events[0], 0);
}

/* On the caller's thread, behind operations that are queued. */
static int behind(struct fault_rank *r)
{
	int32_t status = 1;
	moeep_launch_t launch = {.size = sizeof(launch),
				 .stream = MOEEP_STREAM_BUFFER,
				 .status = &status,
				 .done_event = r->event};

	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	fault_ok(r, fault_ll_dispatch(r, 1, MOEEP_PHASE_BOTH, &launch));
	return fault_combine(r, r->received, NULL);
}

/* Destroyed while the operations wait: that takes as long as their time-out, not longer. */
static int destroyed(struct fault_rank *r)
{
	moeep_launch_t launch = {
		.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER, .done_event = r->event};
	moeep_event_t *second = NULL;

	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	fault_ok(r, fault_dispatch(r, &launch));
	fault_ok(r, moeep_event_create(r->comm, 0, &second));
	launch.done_event = second;
	fault_ok(r, fault_combine(r, r->received, &launch));
	fault_ok(r, moeep_event_destroy(second));
	fault_ok(r, moeep_handle_destroy(r->handle[1]));
	r->handle[1] = NULL;
	fault_ok(r, moeep_handle_create(r->buffer, NULL, &r->handle[1]));
	return moeep_event_wait(r->event, 0);
}

#define WANT(op, number)                                                                           \
	{                                                                                          \
		.operation = (op), .epoch = (number), .expected = FAULT_WORD(number),              \
		.seen = FAULT_WORD((number)-1)                                                     \
	}
#define CASE(text, what, number, called, ...)                                                      \
	{                                                                                          \
		.name = (text), .fate = (what), .victim = (number), .prepare = fault_make_and_use, \
		.act = (called), .want = WANT(__VA_ARGS__)                                         \
	}

static const struct fault_case cases[] = {
	CASE("a queued dispatch: rank 0 dies", FATE_DIES, 0, one, MOEEP_OP_DISPATCH, 3),
	CASE("a queued dispatch: rank 1 is stopped", FATE_STOPS, 1, one, MOEEP_OP_DISPATCH, 3),
	CASE("a queued dispatch: rank 2 is late", FATE_LATE, 2, one, MOEEP_OP_DISPATCH, 3),
	CASE("a queued dispatch: rank 0 leaves", FATE_LEAVES, 0, one, MOEEP_OP_DISPATCH, 3),
	CASE("a chain of operations: rank 1 dies", FATE_DIES, 1, chain, MOEEP_OP_DISPATCH, 3),
	CASE("a chain of operations: rank 2 is stopped", FATE_STOPS, 2, chain, MOEEP_OP_DISPATCH,
	     3),
	CASE("a call behind queued ones: rank 0 dies", FATE_DIES, 0, behind,
	     MOEEP_OP_LL_DISPATCH_RECV, 2),
	CASE("a call behind queued ones: rank 1 is stopped", FATE_STOPS, 1, behind,
	     MOEEP_OP_LL_DISPATCH_RECV, 2),
	CASE("destruction with operations in flight: rank 2 dies", FATE_DIES, 2, destroyed,
	     MOEEP_OP_DISPATCH, 3),
	CASE("destruction with operations in flight: rank 0 is stopped", FATE_STOPS, 0, destroyed,
	     MOEEP_OP_DISPATCH, 3),
};

int main(void)
{
	fault_begin();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		fault_run(&cases[i]);
	}
	return fault_end();
}
