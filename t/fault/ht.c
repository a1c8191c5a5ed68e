/* SPDX-License-Identifier: MIT */
/* Faults in the high-throughput operations: before a rank enters, and while it moves rows. */
#include "config.h"

#include <unistd.h>

#include "t/fault/fault.h"
#include "t/tap.h"

#define PAGE 4096u
/* fault_make_and_use() has made two. */
#define EPOCH 3

static int dispatch(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return fault_dispatch(r, NULL);
}

/* While the victim copies its own rows into its ring. */
static int dispatch_staging(struct fault_rank *r)
{
	if (r->victim) {
		fault_trap(r, r->x, 4 * PAGE);
	}
	return fault_dispatch(r, NULL);
}

/* While it takes a peer's rows, some of the last ones. */
static int dispatch_taking(struct fault_rank *r)
{
	if (r->victim) {
		size_t peer = r->rank == 0 ? 1 : 0;

		fault_trap(r, r->received, peer * FAULT_TOKENS * FAULT_ROW_BYTES + 5 * PAGE);
	}
	return fault_dispatch(r, NULL);
}

/* Peers store their rows straight into the victim's memory. */
static int dispatch_direct(struct fault_rank *r)
{
	unsigned char *received = r->received;
	int rc;

	r->received = r->symmetric;
	rc = dispatch_staging(r);
	r->received = received;
	return rc;
}

static int combine(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return fault_combine(r, r->received, NULL);
}

static int combine_staging(struct fault_rank *r)
{
	if (r->victim) {
		/* Rows of the last source. */
		fault_trap(r, r->received,
			   ((size_t)r->num_ranks - 1 - (r->rank == r->num_ranks - 1)) *
					   FAULT_TOKENS * FAULT_ROW_BYTES +
				   4 * PAGE);
	}
	return fault_combine(r, r->received, NULL);
}

static int combine_summing(struct fault_rank *r)
{
	if (r->victim) {
		fault_trap(r, r->out, 4 * PAGE);
	}
	return fault_combine(r, r->received, NULL);
}

/* Ranks from 2 on have no tokens: they stage rows and sum none. */
static int prepare_uneven(struct fault_rank *r)
{
	int rc = fault_make(r);

	r->ht_tokens = r->rank < 2 ? FAULT_TOKENS : 0;
	rc = rc == MOEEP_OK ? fault_dispatch(r, NULL) : rc;
	return rc == MOEEP_OK ? fault_combine(r, r->received, NULL) : rc;
}

/* All x in symmetric memory: the survivors wait for the victim to have read theirs. */
static int combine_direct(struct fault_rank *r)
{
	if (r->victim) {
		fault_trap(r, r->out, 4 * PAGE);
	}
	return fault_combine(r, r->symmetric, NULL);
}

static int prepare_direct(struct fault_rank *r)
{
	int rc = fault_make_and_use(r);

	return rc == MOEEP_OK
		       ? moeep_mem_alloc(r->comm,
					 (size_t)r->num_ranks * FAULT_TOKENS * FAULT_ROW_BYTES, 0,
					 &r->symmetric)
		       : rc;
}

#define WANT_ENTER(op)                                                                             \
	{                                                                                          \
		.operation = (op), .epoch = EPOCH, .expected = FAULT_WORD(EPOCH),                  \
		.seen = FAULT_WORD(EPOCH - 1)                                                      \
	}
#define WANT(op)                                                                                   \
	{                                                                                          \
		.operation = (op), .epoch = EPOCH                                                  \
	}

#define CASE(text, what, prepared, number, called, wanted)                                         \
	{                                                                                          \
		.name = (text), .fate = (what), .victim = (number), .prepare = (prepared),         \
		.act = (called), .want = wanted                                                    \
	}

static const struct fault_case before_entering[] = {
	CASE("dispatch: rank 0 dies before it enters", FATE_DIES, fault_make_and_use, 0, dispatch,
	     WANT_ENTER(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 1 is stopped before it enters", FATE_STOPS, fault_make_and_use, 1,
	     dispatch, WANT_ENTER(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 2 is late", FATE_LATE, fault_make_and_use, 2, dispatch,
	     WANT_ENTER(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 0 leaves", FATE_LEAVES, fault_make_and_use, 0, dispatch,
	     WANT_ENTER(MOEEP_OP_DISPATCH)),
	CASE("combine: rank 1 dies before it enters", FATE_DIES, fault_make_and_use, 1, combine,
	     WANT_ENTER(MOEEP_OP_COMBINE)),
	CASE("combine: rank 2 is stopped before it enters", FATE_STOPS, fault_make_and_use, 2,
	     combine, WANT_ENTER(MOEEP_OP_COMBINE)),
	CASE("combine: rank 0 is late", FATE_LATE, fault_make_and_use, 0, combine,
	     WANT_ENTER(MOEEP_OP_COMBINE)),
	CASE("combine: rank 1 leaves", FATE_LEAVES, fault_make_and_use, 1, combine,
	     WANT_ENTER(MOEEP_OP_COMBINE)),
};

static const struct fault_case dispatching[] = {
	CASE("dispatch: rank 2 dies as it stages rows", FATE_DIES, fault_make_and_use, 2,
	     dispatch_staging, WANT(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 1 is stopped as it stages rows", FATE_STOPS, fault_make_and_use, 1,
	     dispatch_staging, WANT(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 0 is late as it stages rows", FATE_LATE, fault_make_and_use, 0,
	     dispatch_staging, WANT(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 1 dies as it takes rows", FATE_DIES, fault_make_and_use, 1,
	     dispatch_taking, WANT(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 0 is stopped as it takes rows", FATE_STOPS, fault_make_and_use, 0,
	     dispatch_taking, WANT(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 1 is stopped as it takes rows", FATE_STOPS, fault_make_and_use, 1,
	     dispatch_taking, WANT(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 0 dies, its rows come in place", FATE_DIES, prepare_direct, 0,
	     dispatch_direct, WANT(MOEEP_OP_DISPATCH)),
	CASE("dispatch: rank 2 is stopped, its rows come in place", FATE_STOPS, prepare_direct, 2,
	     dispatch_direct, WANT(MOEEP_OP_DISPATCH)),
};

static const struct fault_case combining[] = {
	CASE("combine: rank 0 dies as it stages rows", FATE_DIES, fault_make_and_use, 0,
	     combine_staging, WANT(MOEEP_OP_COMBINE)),
	CASE("combine: rank 1 is stopped as it stages rows", FATE_STOPS, fault_make_and_use, 1,
	     combine_staging, WANT(MOEEP_OP_COMBINE)),
	CASE("combine: rank 2 dies as it sums", FATE_DIES, fault_make_and_use, 2, combine_summing,
	     WANT(MOEEP_OP_COMBINE)),
	CASE("combine: rank 0 is stopped as it sums", FATE_STOPS, fault_make_and_use, 0,
	     combine_summing, WANT(MOEEP_OP_COMBINE)),
	CASE("combine: rank 1 dies as it reads in place", FATE_DIES, prepare_direct, 1,
	     combine_direct, WANT(MOEEP_OP_COMBINE)),
	CASE("combine: rank 2 is stopped as it reads in place", FATE_STOPS, prepare_direct, 2,
	     combine_direct, WANT(MOEEP_OP_COMBINE)),
};

/* Most survivors find the rings full to a rank that itself waits for the stopped one. */
static const struct fault_case uneven[] = {
	{
		.name = "combine: rank 0 is stopped as it sums, ranks 2 and 3 have no tokens",
		.fate = FATE_STOPS,
		.num_ranks = 4,
		.victim = 0,
		.prepare = prepare_uneven,
		.act = combine_summing,
		.want = WANT(MOEEP_OP_COMBINE),
	},
	{
		.name = "combine: rank 1 dies as it sums, ranks 2 and 3 have no tokens",
		.fate = FATE_DIES,
		.num_ranks = 4,
		.victim = 1,
		.prepare = prepare_uneven,
		.act = combine_summing,
		.want = WANT(MOEEP_OP_COMBINE),
	},
};

/* One is stopped, so the rings are full and all wait for it; then another dies among them. */
static const struct fault_case both[] = {
	{
		.name = "dispatch: rank 3 is stopped, then rank 1 dies",
		.fate = FATE_STOPS,
		.num_ranks = 4,
		.victim = 3,
		.second_plus_one = 2,
		.timeout_ms = 2000,
		.prepare = fault_make_and_use,
		.act = dispatch_taking,
		.want = {.result = MOEEP_ERR_PEER_LOST,
			 .operation = MOEEP_OP_DISPATCH,
			 .peer_plus_one = 2,
			 .epoch = EPOCH},
	},
	{
		.name = "combine: rank 0 is stopped, then rank 2 dies",
		.fate = FATE_STOPS,
		.num_ranks = 4,
		.victim = 0,
		.second_plus_one = 3,
		.timeout_ms = 2000,
		.prepare = fault_make_and_use,
		.act = combine_summing,
		.want = {.result = MOEEP_ERR_PEER_LOST,
			 .operation = MOEEP_OP_COMBINE,
			 .peer_plus_one = 3,
			 .epoch = EPOCH},
	},
	{
		.name = "dispatch: both ranks of a process, threads, die",
		.fate = FATE_DIES,
		.num_ranks = 4,
		.process = {0, 1, 2, 2},
		.victim = 2,
		.prepare = fault_make_and_use,
		.act = dispatch_staging,
		.want = {.operation = MOEEP_OP_DISPATCH, .peer_plus_one = -1, .epoch = EPOCH},
	},
};

#define RUN(cases)                                                                                 \
	for (size_t i = 0; i < sizeof(cases) / sizeof((cases)[0]); i++) {                          \
		fault_run(&(cases)[i]);                                                            \
	}

int main(void)
{
	if (sysconf(_SC_PAGESIZE) != (long)PAGE) {
		tap_skip_all("the traps are made for pages of 4096 bytes");
	}
	fault_begin();
	RUN(before_entering);
	RUN(dispatching);
	RUN(combining);
	RUN(uneven);
	RUN(both);
	return fault_end();
}
