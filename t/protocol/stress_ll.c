/* SPDX-License-Identifier: MIT */
/*
 * LL operations with SEND and RECV apart. With two in flight, SEND of one round comes before RECV
 * of the round before, and only a slot's credit keeps its rows: one at a time, a rank's RECV of a
 * round already shows that its peers have sent it, and so received the round before. One at a time
 * it is the wait for SEND that RECV depends on: with two, the next credit implies it mostly.
 */
#include "config.h"

#include "t/protocol/stress.h"

#include <string.h>

#define TOPK	2
#define EXPERTS 2 /* of each rank */
#define HIDDEN	32
#define TOKENS	8
#define SETS	2 /* of handle and memory: in flight */

struct flow {
	const struct stress *s;
	bool combine; /* rounds of combines, after a dispatch for each set; else of dispatches */
	bool slots;   /* combine's x in the buffer's slots */
};

struct run {
	const struct flow *flow;
	int rank;
	int64_t capacity; /* of each expert */
	struct rng rng;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle[SETS];
	uint16_t *x; /* [TOKENS, HIDDEN] */
	int64_t *topk;
	uint16_t *recv_x; /* [EXPERTS, capacity, HIDDEN] */
	int32_t *src_token;
	int32_t recv_count[EXPERTS];
	float *expert_x[SETS]; /* [EXPERTS, capacity, HIDDEN] */
	float *out;	       /* [TOKENS, HIDDEN] */
};

/* A dispatch has a routing of its own; combines share that of their set. */
static int routing_of(const struct flow *flow, int round)
{
	return flow->combine ? round % SETS : round;
}

static int tokens_of(const struct flow *flow, int round, int rank)
{
	uint64_t routing = (uint64_t)routing_of(flow, round);

	return (int)(stress_mix(flow->s, routing, 5, (uint64_t)rank) % TOKENS) + 1;
}

/* Different experts: the capacity then suffices. */
static int choice(const struct flow *flow, int round, int src, int token, int k)
{
	int experts = EXPERTS * flow->s->num_ranks;
	uint64_t routing = (uint64_t)routing_of(flow, round);
	uint64_t hash = stress_mix(flow->s, routing, stress_token(src, token), 1000);
	int first = (int)(hash % (uint64_t)experts);

	return k == 0 ? first : (first + 1 + (int)(hash / 64 % (uint64_t)(experts - 1))) % experts;
}

static uint16_t bits(const struct stress *s, int round, int src, int token, int i)
{
	return (uint16_t)stress_mix(s, (uint64_t)round, stress_token(src, token), (uint64_t)i);
}

/* A small whole number: sums of it are exact. */
static float answer(const struct stress *s, int round, int src, int token, int expert, int i)
{
	return (float)((bits(s, round, src, token, i) & 0x3ff) + 5 * expert);
}

static int dispatch_send(struct run *r, int round)
{
	moeep_ll_dispatch_args_t args = {
		.size = sizeof(args),
		.phase = MOEEP_PHASE_SEND,
		.dtype = MOEEP_BF16,
		.num_tokens = tokens_of(r->flow, round, r->rank),
		.x = r->x,
		.topk_idx = r->topk,
	};

	for (int t = 0; t < args.num_tokens; t++) {
		for (int i = 0; i < HIDDEN; i++) {
			r->x[t * HIDDEN + i] = bits(r->flow->s, round, r->rank, t, i);
		}
		for (int k = 0; k < TOPK; k++) {
			r->topk[t * TOPK + k] = choice(r->flow, round, r->rank, t, k);
		}
	}
	RANK_TRY(moeep_ll_dispatch(r->buffer, r->handle[round % SETS], &args, NULL));
	memset(r->x, 0xff, TOKENS * HIDDEN * sizeof(*r->x));
	return 0;
}

/* Calls fn for each row that this rank's expert e gets of the round, in order. */
typedef int (*row_fn)(struct run *r, int round, int src, int token, int expert, int64_t at);

static int each_row(struct run *r, int round, row_fn fn, int64_t *count)
{
	const struct stress *s = r->flow->s;

	for (int e = 0; e < EXPERTS; e++) {
		int expert = r->rank * EXPERTS + e;
		int64_t at = 0;

		for (int src = 0; src < s->num_ranks; src++) {
			for (int t = 0; t < tokens_of(r->flow, round, src); t++) {
				for (int k = 0; k < TOPK; k++) {
					if (choice(r->flow, round, src, t, k) == expert) {
						RANK_DO(fn(r, round, src, t, expert,
							   e * r->capacity + at++));
					}
				}
			}
		}
		if (count) {
			count[e] = at;
		}
	}
	return 0;
}

static int check_row(struct run *r, int round, int src, int token, int expert, int64_t at)
{
	const struct stress *s = r->flow->s;

	(void)expert;
	if (!rank_check(r->src_token[at] == token, "round %d row %lld is token %d, expected %d",
			round, (long long)at, r->src_token[at], token)) {
		return -1;
	}
	for (int i = 0; i < HIDDEN; i++) {
		uint16_t want = bits(s, round, src, token, i), got = r->recv_x[at * HIDDEN + i];

		if (!rank_check(got == want,
				"round %d row %lld (token %d of rank %d) element %d: 0x%04x, not "
				"0x%04x",
				round, (long long)at, token, src, i, got, want)) {
			return -1;
		}
	}
	return 0;
}

static int dispatch_recv(struct run *r, int round)
{
	size_t rows = EXPERTS * (size_t)r->capacity;
	int64_t count[EXPERTS];
	moeep_ll_dispatch_args_t args = {
		.size = sizeof(args),
		.phase = MOEEP_PHASE_RECV,
		.capacity = r->capacity,
		.recv_x = r->recv_x,
		.recv_count = r->recv_count,
		.recv_src_token = r->src_token,
	};

	memset(r->recv_x, 0xff, rows * HIDDEN * sizeof(*r->recv_x));
	memset(r->src_token, 0xff, rows * sizeof(*r->src_token));
	RANK_TRY(moeep_ll_dispatch(r->buffer, r->handle[round % SETS], &args, NULL));
	RANK_DO(each_row(r, round, check_row, count));
	for (int e = 0; e < EXPERTS; e++) {
		if (!rank_check(r->recv_count[e] == count[e],
				"round %d expert %d: %d rows, not %lld", round, e, r->recv_count[e],
				(long long)count[e])) {
			return -1;
		}
	}
	return 0;
}

static int fill_row(struct run *r, int round, int src, int token, int expert, int64_t at)
{
	for (int i = 0; i < HIDDEN; i++) {
		r->expert_x[round % SETS][at * HIDDEN + i] =
			answer(r->flow->s, round, src, token, expert, i);
	}
	return 0;
}

static int combine_send(struct run *r, int round)
{
	size_t bytes = EXPERTS * (size_t)r->capacity * HIDDEN * sizeof(float);
	moeep_ll_combine_args_t args = {
		.size = sizeof(args),
		.phase = MOEEP_PHASE_SEND,
		.dtype = MOEEP_FP32,
		.x = r->expert_x[round % SETS],
	};

	RANK_DO(each_row(r, round, fill_row, NULL));
	RANK_TRY(moeep_ll_combine(r->buffer, r->handle[round % SETS], &args, NULL));
	if (!r->flow->slots) {
		memset(r->expert_x[round % SETS], 0xff, bytes);
	}
	return 0;
}

static int combine_recv(struct run *r, int round)
{
	const struct stress *s = r->flow->s;
	size_t bytes = EXPERTS * (size_t)r->capacity * HIDDEN * sizeof(float);
	moeep_ll_combine_args_t args = {
		.size = sizeof(args),
		.phase = MOEEP_PHASE_RECV,
		.dtype = MOEEP_FP32,
		.out = r->out,
	};

	memset(r->out, 0xff, TOKENS * HIDDEN * sizeof(float));
	RANK_TRY(moeep_ll_combine(r->buffer, r->handle[round % SETS], &args, NULL));
	if (r->flow->slots) {
		/* At once: nobody may still be reading. */
		memset(r->expert_x[round % SETS], 0xff, bytes);
	}
	for (int t = 0; t < tokens_of(r->flow, round, r->rank); t++) {
		for (int i = 0; i < HIDDEN; i++) {
			float want = 0, got = r->out[t * HIDDEN + i];

			for (int k = 0; k < TOPK; k++) {
				want += answer(s, round, r->rank, t,
					       choice(r->flow, round, r->rank, t, k), i);
			}
			if (!rank_check(got == want, "round %d sum %d element %d: %g, not %g",
					round, t, i, (double)got, (double)want)) {
				return -1;
			}
		}
	}
	return 0;
}

static int open_run(struct run *r, moeep_comm_t *comm)
{
	const struct flow *flow = r->flow;
	size_t rows;
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.modes = MOEEP_MODE_LL,
		.num_experts = EXPERTS * flow->s->num_ranks,
		.max_topk = TOPK,
		.dtype = MOEEP_FP32,
		.hidden = HIDDEN,
		.ll_max_tokens = TOKENS,
		.ll_combine_slots = flow->slots ? SETS : 0,
		/* Epochs wrap on the way. */
		.initial_epoch = (UINT64_C(1) << 40) - 5,
	};

	r->capacity = (int64_t)flow->s->num_ranks * TOKENS;
	rows = EXPERTS * (size_t)r->capacity;
	RANK_TRY(moeep_buffer_create(comm, &config, &r->buffer));
	for (int i = 0; i < SETS; i++) {
		size_t bytes = rows * HIDDEN * sizeof(float);

		RANK_TRY(moeep_handle_create(r->buffer, NULL, &r->handle[i]));
		if (flow->slots) {
			RANK_TRY(moeep_ll_combine_slot(r->buffer, i, (void **)&r->expert_x[i],
						       &bytes));
		} else {
			r->expert_x[i] = util_alloc(bytes);
		}
	}
	r->x = util_alloc(TOKENS * HIDDEN * sizeof(*r->x));
	r->topk = util_alloc(TOKENS * TOPK * sizeof(*r->topk));
	r->recv_x = util_alloc(rows * HIDDEN * sizeof(*r->recv_x));
	r->src_token = util_alloc(rows * sizeof(*r->src_token));
	r->out = util_alloc(TOKENS * HIDDEN * sizeof(*r->out));
	return 0;
}

static void close_run(struct run *r)
{
	for (int i = 0; i < SETS; i++) {
		if (!r->flow->slots) {
			util_free(r->expert_x[i]);
		}
		rank_ok(moeep_handle_destroy(r->handle[i]));
	}
	util_free(r->x);
	util_free(r->topk);
	util_free(r->recv_x);
	util_free(r->src_token);
	util_free(r->out);
	rank_ok(moeep_buffer_destroy(r->buffer));
}

static int all_rounds(struct run *r)
{
	const struct flow *flow = r->flow;
	int (*send)(struct run *, int) = flow->combine ? combine_send : dispatch_send;
	int (*recv)(struct run *, int) = flow->combine ? combine_recv : dispatch_recv;
	int rounds = 2 * flow->s->rounds, sent = 0, received = 0;

	for (int set = 0; flow->combine && set < SETS; set++) {
		RANK_DO(dispatch_send(r, set));
		RANK_DO(dispatch_recv(r, set));
	}
	while (received < rounds) {
		int in_flight = sent / 4 % 4 == 0 ? 1 : SETS;

		stress_pause(flow->s, &r->rng, r->rank, sent + received);
		if (sent < rounds && sent - received < in_flight) {
			RANK_DO(send(r, sent++));
		} else {
			RANK_DO(recv(r, received++));
		}
	}
	return 0;
}

static int ll_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct flow *flow = arg;
	struct run r = {.flow = flow, .rank = rank};
	int rc;

	r.rng = stress_rng(flow->s, rank);
	RANK_DO(open_run(&r, comm));
	rc = stress_end(all_rounds(&r), comm);
	close_run(&r);
	return rc;
}

void stress_ll_rows(const struct stress *s)
{
	struct flow flow = {.s = s};

	stress_run(s, ll_body, &flow);
}

void stress_ll_combine(const struct stress *s)
{
	struct flow flow = {.s = s, .combine = true};

	stress_run(s, ll_body, &flow);
}

void stress_ll_direct(const struct stress *s)
{
	struct flow flow = {.s = s, .combine = true, .slots = true};

	stress_run(s, ll_body, &flow);
}
