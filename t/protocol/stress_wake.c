/* SPDX-License-Identifier: MIT */
/*
 * Wake-ups. A rank that sleeps looks at the flags again after 20 ms at the latest, so nothing that
 * the doorbell does wrong gives a wrong result: it takes longer. One rank does what the other
 * waits for, and how long the other takes to notice is measured: half of the times at the least
 * must be well below a slice of sleep.
 */
#include "config.h"

#include "t/protocol/stress.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* A slice is 20 ms, of which the sleeper has slept some when it should be woken. */
#define LIMIT_NS 10000000
#define ROUNDS	 15
/* A machine that is busy with other things gets more than one chance. */
#define TRIES 3
/* So long after its peer the waking rank comes. */
#define LATE_US 2000

/* The waking rank leaves its peer alone for so long: its next call would ring the doorbell, too. */
#define ALONE_NS 60000000

#define HIDDEN	   16384
#define TOKENS	   8
#define MAX_TOKENS 128
/* All rows in one chunk, of a ring of eight. */
#define BIG_CHUNK (1 << 20)
/* A row in a chunk, and fewer chunks than rows. */
#define SMALL_CHUNK 16

enum waits {
	WAIT_BARRIER,
	WAIT_COLLECTIVE,
	WAIT_ENTER, /* for the other's call */
	WAIT_ROWS,
	WAIT_ROOM, /* in the dispatch ring */
	WAIT_PARTIAL,
	WAIT_PARTIAL_ROOM,
	WAIT_READERS,
	WAIT_LL
};

struct wake {
	const struct stress *s;
	enum waits waits;
	int64_t chunk_bytes;
	bool direct; /* x of combine in symmetric memory */
	atomic_int come;
	/* Each by the thread of one rank. */
	uint64_t begin[ROUNDS];
	_Atomic uint64_t end[ROUNDS];
};

/* All tokens are rank 0's, all go to the one expert of rank 1. */
struct run {
	struct wake *w;
	int rank;
	int meetings;
	moeep_comm_t *comm;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	float *x;
	int64_t *topk;
	float *recv_x;
	float *expert_x;
	float *out;
};

static int dispatch(struct run *r, int64_t tokens)
{
	moeep_dispatch_args_t args = {
		.size = sizeof(args),
		.dtype = MOEEP_FP32,
		.num_tokens = r->rank == 0 ? tokens : 0,
		.x = r->x,
		.topk_idx = r->topk,
		.capacity = TOKENS,
		.recv_x = r->recv_x,
	};

	RANK_TRY(moeep_dispatch(r->buffer, r->handle, &args, NULL));
	return 0;
}

static int combine(struct run *r)
{
	moeep_combine_args_t args = {
		.size = sizeof(args),
		.dtype = MOEEP_FP32,
		.x = r->expert_x,
		.out = r->out,
	};

	RANK_TRY(moeep_combine(r->buffer, r->handle, &args, NULL));
	return 0;
}

static int ll_dispatch(struct run *r, int phase)
{
	moeep_ll_dispatch_args_t args = {
		.size = sizeof(args),
		.phase = phase,
		.dtype = MOEEP_BF16,
		.x = r->x,
		.topk_idx = r->topk,
		.recv_x = r->recv_x,
	};

	RANK_TRY(moeep_ll_dispatch(r->buffer, r->handle, &args, NULL));
	return 0;
}

static void begin(struct run *r, int round)
{
	r->w->begin[round] = stress_now_ns();
}

static void end(struct run *r, int round)
{
	atomic_store(&r->w->end[round], stress_now_ns());
}

/* The waking rank: do nothing until the other has noticed. */
static void leave_alone(struct run *r, int round)
{
	uint64_t limit = stress_now_ns() + ALONE_NS;

	while (atomic_load(&r->w->end[round]) == 0 && stress_now_ns() < limit) {
		stress_sleep_us(100);
	}
}

/* A barrier would leave a rank asleep in it where wake-ups are missed. */
static void meet(struct run *r)
{
	stress_meet(&r->w->come, 2 * ++r->meetings);
}

/* Rank 0 comes late; rank 1 sleeps until then. */
static int late_round(struct run *r, int round)
{
	void *memory;

	if (r->rank == 0) {
		stress_sleep_us(LATE_US);
		begin(r, round);
	}
	switch (r->w->waits) {
	case WAIT_BARRIER:
		RANK_TRY(moeep_comm_barrier(r->comm));
		break;
	case WAIT_COLLECTIVE:
		RANK_TRY(moeep_mem_alloc(r->comm, 0, 0, &memory));
		break;
	case WAIT_ENTER:
		RANK_DO(dispatch(r, 0));
		break;
	default:
		RANK_DO(ll_dispatch(r, MOEEP_PHASE_BOTH));
		break;
	}
	if (r->rank == 1) {
		end(r, round);
	} else {
		leave_alone(r, round);
	}
	return 0;
}

/*
 * The rank that will wait comes late: its peer, which sleeps until then, takes so long to wake up
 * that the rank is asleep again when the peer does what it waits for. How much longer than its
 * peer does it take; or, if it waits for room in a ring, over and over, how long in all?
 */
static int rows_round(struct run *r, int round)
{
	enum waits waits = r->w->waits;
	bool waiter = r->rank == (waits == WAIT_ROOM || waits == WAIT_PARTIAL ? 0 : 1);
	bool room = waits == WAIT_ROOM || waits == WAIT_PARTIAL_ROOM;
	bool dispatches = waits == WAIT_ROWS || waits == WAIT_ROOM;

	if (!dispatches) {
		RANK_DO(dispatch(r, TOKENS));
		meet(r);
	}
	if (waiter) {
		stress_sleep_us(LATE_US);
	}
	if (waiter && room) {
		begin(r, round);
	}
	RANK_DO(dispatches ? dispatch(r, TOKENS) : combine(r));
	if (waiter) {
		end(r, round);
	} else {
		if (!room) {
			begin(r, round);
		}
		leave_alone(r, round);
	}
	return 0;
}

static int open_run(struct run *r)
{
	size_t bytes = TOKENS * HIDDEN * sizeof(float);
	void *memory = NULL;
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.modes = r->w->waits == WAIT_LL ? MOEEP_MODE_LL : MOEEP_MODE_HT,
		.num_experts = 2,
		.max_topk = 1,
		.dtype = MOEEP_FP32,
		.hidden = HIDDEN,
		.ht_max_tokens = MAX_TOKENS,
		.ll_max_tokens = TOKENS,
		.ht_chunk_bytes = r->w->chunk_bytes,
		.ht_chunks = r->w->chunk_bytes == SMALL_CHUNK ? 2 : 0,
	};

	RANK_TRY(moeep_buffer_create(r->comm, &config, &r->buffer));
	RANK_TRY(moeep_handle_create(r->buffer, NULL, &r->handle));
	RANK_TRY(moeep_mem_alloc(r->comm, r->w->direct ? bytes : 0, 0, &memory));
	r->expert_x = r->w->direct ? memory : util_alloc(bytes);
	r->x = util_alloc(bytes);
	r->recv_x = util_alloc(bytes);
	r->out = util_alloc(bytes);
	r->topk = util_alloc(TOKENS * sizeof(*r->topk));
	for (int64_t t = 0; t < TOKENS; t++) {
		r->topk[t] = 1;
	}
	return 0;
}

static void close_run(struct run *r)
{
	if (!r->w->direct) {
		util_free(r->expert_x);
	}
	util_free(r->x);
	util_free(r->recv_x);
	util_free(r->out);
	util_free(r->topk);
	rank_ok(moeep_handle_destroy(r->handle));
	rank_ok(moeep_buffer_destroy(r->buffer));
}

static int all_rounds(struct run *r)
{
	for (int round = 0; round < ROUNDS; round++) {
		meet(r);
		switch (r->w->waits) {
		case WAIT_BARRIER:
		case WAIT_COLLECTIVE:
		case WAIT_ENTER:
		case WAIT_LL:
			RANK_DO(late_round(r, round));
			break;
		default:
			RANK_DO(rows_round(r, round));
			break;
		}
	}
	return 0;
}

static int wake_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct run r = {.w = arg, .rank = rank, .comm = comm};
	int rc;

	RANK_DO(open_run(&r));
	rc = stress_end(all_rounds(&r), comm);
	close_run(&r);
	return rc;
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static void measure(const struct stress *s, enum waits waits, int64_t chunk_bytes)
{
	int64_t ns[ROUNDS];
	int64_t median = INT64_MAX;

	for (int i = 0; i < TRIES && median >= LIMIT_NS; i++) {
		struct wake w = {.s = s,
				 .waits = waits,
				 .chunk_bytes = chunk_bytes,
				 .direct = waits == WAIT_READERS};

		if (!stress_run(s, wake_body, &w)) {
			return;
		}
		for (int round = 0; round < ROUNDS; round++) {
			ns[round] = (int64_t)(w.end[round] - w.begin[round]);
		}
		qsort(ns, ROUNDS, sizeof(ns[0]), compare);
		median = ns[ROUNDS / 2] < 0 ? 0 : ns[ROUNDS / 2];
	}
	ok(median < LIMIT_NS, "%s: no wake-up is missed (median %lld us, slowest %lld us)", s->name,
	   (long long)median / 1000, (long long)ns[ROUNDS - 1] / 1000);
}

void stress_wake_barrier(const struct stress *s)
{
	measure(s, WAIT_BARRIER, BIG_CHUNK);
}

void stress_wake_collective(const struct stress *s)
{
	measure(s, WAIT_COLLECTIVE, BIG_CHUNK);
}

void stress_wake_enter(const struct stress *s)
{
	measure(s, WAIT_ENTER, BIG_CHUNK);
}

void stress_wake_rows(const struct stress *s)
{
	measure(s, WAIT_ROWS, BIG_CHUNK);
}

void stress_wake_room(const struct stress *s)
{
	measure(s, WAIT_ROOM, SMALL_CHUNK);
}

void stress_wake_partial(const struct stress *s)
{
	measure(s, WAIT_PARTIAL, BIG_CHUNK);
}

void stress_wake_partial_room(const struct stress *s)
{
	measure(s, WAIT_PARTIAL_ROOM, SMALL_CHUNK);
}

void stress_wake_readers(const struct stress *s)
{
	measure(s, WAIT_READERS, BIG_CHUNK);
}

void stress_wake_ll(const struct stress *s)
{
	measure(s, WAIT_LL, BIG_CHUNK);
}
