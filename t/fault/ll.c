/* SPDX-License-Identifier: MIT */
/* Faults in the low-latency operations, whose phases are apart. */
#include "config.h"

#include <unistd.h>

#include "t/fault/fault.h"
#include "t/tap.h"

#define PAGE 4096u

/* A phase that must succeed. */
#define STEP(call)                                                                                 \
	do {                                                                                       \
		int step_rc = (call);                                                              \
                                                                                                   \
		if (step_rc != MOEEP_OK) {                                                         \
			fault_ok(r, step_rc);                                                      \
			return step_rc;                                                            \
		}                                                                                  \
	} while (0)

static int ll_send(struct fault_rank *r, int handle)
{
	return fault_ll_dispatch(r, handle, MOEEP_PHASE_SEND, NULL);
}

static int ll_recv(struct fault_rank *r, int handle)
{
	return fault_ll_dispatch(r, handle, MOEEP_PHASE_RECV, NULL);
}

static int ll_csend(struct fault_rank *r, int handle, const void *x)
{
	return fault_ll_combine(r, handle, MOEEP_PHASE_SEND, x, NULL);
}

static int ll_crecv(struct fault_rank *r, int handle)
{
	return fault_ll_combine(r, handle, MOEEP_PHASE_RECV, NULL, NULL);
}

static int never_sends(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	if (r->victim) {
		return ll_send(r, 1);
	}
	STEP(ll_send(r, 1));
	fault_clock(r);
	return ll_recv(r, 1);
}

/* What it sent counts; that it is gone is noticed by the first who needs more of it. */
static int sends_only(struct fault_rank *r)
{
	STEP(ll_send(r, 1));
	if (r->victim) {
		fault_await_ready(r);
		if (fault_strike(r)) {
			return MOEEP_OK;
		}
		return ll_recv(r, 1);
	}
	fault_ready(r);
	fault_await_struck(r);
	STEP(ll_recv(r, 1));
	STEP(ll_csend(r, 1, r->received));
	fault_clock(r);
	return ll_crecv(r, 1);
}

/* Two slots, so the third SEND needs the victim's first RECV. */
static int never_receives(struct fault_rank *r)
{
	STEP(ll_send(r, 1));
	if (r->victim) {
		STEP(ll_send(r, 2));
		fault_await_ready(r);
		if (fault_strike(r)) {
			return MOEEP_OK;
		}
		return ll_recv(r, 1);
	}
	STEP(ll_recv(r, 1));
	STEP(ll_send(r, 2));
	STEP(ll_recv(r, 2));
	fault_ready(r);
	fault_clock(r);
	return ll_send(r, 1);
}

static int never_csends(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	if (r->victim) {
		return ll_csend(r, 1, r->received);
	}
	STEP(ll_csend(r, 1, r->received));
	fault_clock(r);
	return ll_crecv(r, 1);
}

static int csends_only(struct fault_rank *r)
{
	STEP(ll_csend(r, 1, r->received));
	if (r->victim) {
		fault_await_ready(r);
		if (fault_strike(r)) {
			return MOEEP_OK;
		}
		return ll_crecv(r, 1);
	}
	fault_ready(r);
	fault_await_struck(r);
	STEP(ll_crecv(r, 1));
	STEP(ll_send(r, 1));
	fault_clock(r);
	return ll_recv(r, 1);
}

static int never_creceives(struct fault_rank *r)
{
	STEP(ll_csend(r, 1, r->received));
	if (r->victim) {
		STEP(ll_csend(r, 2, r->received));
		fault_await_ready(r);
		if (fault_strike(r)) {
			return MOEEP_OK;
		}
		return ll_crecv(r, 1);
	}
	STEP(ll_crecv(r, 1));
	STEP(ll_csend(r, 2, r->received));
	STEP(ll_crecv(r, 2));
	fault_ready(r);
	fault_clock(r);
	return ll_csend(r, 1, r->received);
}

/* From a combine slot, which is the caller's again only when the victim has read it. */
static int never_reads(struct fault_rank *r)
{
	void *slot = NULL;

	STEP(moeep_ll_combine_slot(r->buffer, 0, &slot, NULL));
	STEP(ll_csend(r, 1, slot));
	if (r->victim) {
		fault_await_ready(r);
		if (fault_strike(r)) {
			return MOEEP_OK;
		}
	}
	fault_ready(r);
	fault_clock(r);
	return ll_crecv(r, 1);
}

/* In the middle of writing its slot. */
static int stuck_in_send(struct fault_rank *r)
{
	if (r->victim) {
		fault_trap(r, r->x, PAGE);
		return fault_ll_dispatch(r, 1, MOEEP_PHASE_BOTH, NULL);
	}
	STEP(ll_send(r, 1));
	fault_clock(r);
	return ll_recv(r, 1);
}

/* In the middle of taking rows from the others' slots. */
static int stuck_in_recv(struct fault_rank *r)
{
	if (r->victim) {
		STEP(ll_send(r, 1));
		fault_await_ready(r);
		fault_trap(r, r->received, 2 * PAGE);
		/* It has all it waited for, so it may well end; what comes after cannot. */
		(void)ll_recv(r, 1);
		return ll_csend(r, 1, r->received);
	}
	STEP(ll_send(r, 1));
	STEP(ll_recv(r, 1));
	STEP(ll_csend(r, 1, r->received));
	fault_ready(r);
	fault_clock(r);
	return ll_crecv(r, 1);
}

static int stuck_in_csend(struct fault_rank *r)
{
	if (r->victim) {
		fault_trap(r, r->received, 2 * PAGE);
		/* In a call for both phases it would read its own rows in RECV. */
		return ll_csend(r, 1, r->received);
	}
	STEP(ll_csend(r, 1, r->received));
	fault_clock(r);
	return ll_crecv(r, 1);
}

/* Handles 1 and 2 have something to combine. */
static int dispatch_two(struct fault_rank *r)
{
	int rc = fault_make_and_use(r);

	rc = rc == MOEEP_OK ? fault_ll_dispatch(r, 1, MOEEP_PHASE_BOTH, NULL) : rc;
	return rc == MOEEP_OK ? fault_ll_dispatch(r, 2, MOEEP_PHASE_BOTH, NULL) : rc;
}

#define WANT(op, number, needs)                                                                    \
	{                                                                                          \
		.operation = (op), .epoch = (number), .expected = FAULT_WORD(needs),               \
		.seen = FAULT_WORD((needs)-1)                                                      \
	}
#define CASE(text, what, prepared, number, called, ...)                                            \
	{                                                                                          \
		.name = (text), .fate = (what), .victim = (number), .prepare = (prepared),         \
		.act = (called), .want = WANT(__VA_ARGS__)                                         \
	}

/* fault_make_and_use() has made one dispatch and one combine. */
static const struct fault_case cases[] = {
	CASE("LL dispatch: rank 0 dies before SEND", FATE_DIES, fault_make_and_use, 0, never_sends,
	     MOEEP_OP_LL_DISPATCH_RECV, 2, 2),
	CASE("LL dispatch: rank 1 is stopped before SEND", FATE_STOPS, fault_make_and_use, 1,
	     never_sends, MOEEP_OP_LL_DISPATCH_RECV, 2, 2),
	CASE("LL dispatch: rank 2 comes late to SEND", FATE_LATE, fault_make_and_use, 2,
	     never_sends, MOEEP_OP_LL_DISPATCH_RECV, 2, 2),
	CASE("LL dispatch: rank 0 leaves before SEND", FATE_LEAVES, fault_make_and_use, 0,
	     never_sends, MOEEP_OP_LL_DISPATCH_RECV, 2, 2),
	CASE("LL dispatch: rank 1 dies between SEND and RECV", FATE_DIES, fault_make_and_use, 1,
	     sends_only, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL dispatch: rank 2 is stopped between SEND and RECV", FATE_STOPS, fault_make_and_use,
	     2, sends_only, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL dispatch: rank 0 is late between SEND and RECV", FATE_LATE, fault_make_and_use, 0,
	     sends_only, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL dispatch: rank 2 dies without RECV", FATE_DIES, fault_make_and_use, 2,
	     never_receives, MOEEP_OP_LL_DISPATCH_SEND, 4, 2),
	CASE("LL dispatch: rank 0 is stopped without RECV", FATE_STOPS, fault_make_and_use, 0,
	     never_receives, MOEEP_OP_LL_DISPATCH_SEND, 4, 2),
	CASE("LL dispatch: rank 1 is late to RECV", FATE_LATE, fault_make_and_use, 1,
	     never_receives, MOEEP_OP_LL_DISPATCH_SEND, 4, 2),
	CASE("LL dispatch: rank 2 leaves without RECV", FATE_LEAVES, fault_make_and_use, 2,
	     never_receives, MOEEP_OP_LL_DISPATCH_SEND, 4, 2),
	CASE("LL dispatch: rank 0 dies in the middle of SEND", FATE_DIES, fault_make_and_use, 0,
	     stuck_in_send, MOEEP_OP_LL_DISPATCH_RECV, 2, 2),
	CASE("LL dispatch: rank 1 is stopped in the middle of SEND", FATE_STOPS, fault_make_and_use,
	     1, stuck_in_send, MOEEP_OP_LL_DISPATCH_RECV, 2, 2),
	CASE("LL dispatch: rank 2 dies in the middle of RECV", FATE_DIES, fault_make_and_use, 2,
	     stuck_in_recv, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL dispatch: rank 0 is stopped in the middle of RECV", FATE_STOPS, fault_make_and_use,
	     0, stuck_in_recv, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL combine: rank 1 dies before SEND", FATE_DIES, dispatch_two, 1, never_csends,
	     MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL combine: rank 2 is stopped before SEND", FATE_STOPS, dispatch_two, 2, never_csends,
	     MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL combine: rank 0 comes late to SEND", FATE_LATE, dispatch_two, 0, never_csends,
	     MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL combine: rank 1 leaves before SEND", FATE_LEAVES, dispatch_two, 1, never_csends,
	     MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL combine: rank 0 dies between SEND and RECV", FATE_DIES, dispatch_two, 0,
	     csends_only, MOEEP_OP_LL_DISPATCH_RECV, 4, 4),
	CASE("LL combine: rank 1 is stopped between SEND and RECV", FATE_STOPS, dispatch_two, 1,
	     csends_only, MOEEP_OP_LL_DISPATCH_RECV, 4, 4),
	CASE("LL combine: rank 2 dies without RECV", FATE_DIES, dispatch_two, 2, never_creceives,
	     MOEEP_OP_LL_COMBINE_SEND, 4, 2),
	CASE("LL combine: rank 0 is stopped without RECV", FATE_STOPS, dispatch_two, 0,
	     never_creceives, MOEEP_OP_LL_COMBINE_SEND, 4, 2),
	CASE("LL combine: rank 1 leaves without RECV", FATE_LEAVES, dispatch_two, 1,
	     never_creceives, MOEEP_OP_LL_COMBINE_SEND, 4, 2),
	CASE("LL combine: rank 1 dies in the middle of SEND", FATE_DIES, dispatch_two, 1,
	     stuck_in_csend, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL combine: rank 2 is stopped in the middle of SEND", FATE_STOPS, dispatch_two, 2,
	     stuck_in_csend, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL combine: rank 0 dies before it reads in place", FATE_DIES, dispatch_two, 0,
	     never_reads, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
	CASE("LL combine: rank 1 is stopped before it reads in place", FATE_STOPS, dispatch_two, 1,
	     never_reads, MOEEP_OP_LL_COMBINE_RECV, 2, 2),
};

int main(void)
{
	if (sysconf(_SC_PAGESIZE) != (long)PAGE) {
		tap_skip_all("the traps are made for pages of 4096 bytes");
	}
	fault_begin();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		fault_run(&cases[i]);
	}
	return fault_end();
}
