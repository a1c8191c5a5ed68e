/* SPDX-License-Identifier: MIT */
/*
 * Streaming stores. x86 keeps them in write-combining buffers, from where they may reach memory
 * after later stores: after the flag that says that they are there. What stays in a buffer for long
 * is the last part of a line, so rows here are half a line; and the reader looks at once,
 * so it spins.
 */
#include "config.h"

#include "t/protocol/stress.h"

#include <stdlib.h>
#include <string.h>

#include "core/comm.h"

#define HIDDEN 8 /* FP32: 32 bytes */
#define TOKENS 3
/* So long, or until the reader has found something. */
#define LENGTH_NS 250000000u
#define SPIN_US	  "2000"

struct run {
	int rank;
	uint64_t end_ns;
	moeep_comm_t *comm;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	float *direct; /* [TOKENS, HIDDEN] in symmetric memory */
	_Alignas(16) float rows[TOKENS * HIDDEN];
	_Alignas(16) float out[TOKENS * HIDDEN];
	int64_t topk[TOKENS];
};

/* Not zero; differs from what was at the place before. */
static float element(int round, int i)
{
	return (float)(round % 4096 * TOKENS * HIDDEN + i + 1);
}

static void fill(struct run *r, int round)
{
	for (int i = 0; i < TOKENS * HIDDEN; i++) {
		r->rows[i] = element(round, i);
	}
}

/* From the end, which comes last. */
static int check(const float *rows, int round, int64_t tokens)
{
	for (int i = (int)tokens * HIDDEN - 1; i >= 0; i--) {
		float got = rows[i], want = element(round, i);

		if (!rank_check(got == want, "round %d element %d: %g, not %g", round, i,
				(double)got, (double)want)) {
			return -1;
		}
	}
	return 0;
}

static int dispatch(struct run *r, int64_t tokens, int64_t *num_recv)
{
	moeep_dispatch_args_t args = {
		.size = sizeof(args),
		.dtype = MOEEP_FP32,
		.num_tokens = tokens,
		.x = r->rows,
		.topk_idx = r->topk,
		.capacity = TOKENS,
		.recv_x = r->direct,
		.num_recv = num_recv,
	};

	RANK_TRY(moeep_dispatch(r->buffer, r->handle, &args, NULL));
	return 0;
}

/* Rank 0 pushes rows into rank 1's symmetric memory; a round without a token is the last. */
static int push_rounds(struct run *r)
{
	for (int round = 0;; round++) {
		int64_t tokens = 1 + round % TOKENS, num_recv = 0;

		if (r->rank == 0) {
			fill(r, round);
			tokens = stress_now_ns() < r->end_ns ? tokens : 0;
			RANK_DO(dispatch(r, tokens, &num_recv));
		} else {
			RANK_DO(dispatch(r, 0, &num_recv));
			RANK_DO(check(r->direct, round, num_recv));
			tokens = num_recv;
		}
		if (tokens == 0) {
			return 0;
		}
	}
}

static int combine(struct run *r)
{
	moeep_ll_combine_args_t args = {
		.size = sizeof(args), .dtype = MOEEP_FP32, .x = r->rows, .out = r->out};

	RANK_TRY(moeep_ll_combine(r->buffer, r->handle, &args, NULL));
	return 0;
}

/* Rank 1 stages partial rows for the tokens of rank 0; a negative one is the last. */
static int partial_rounds(struct run *r)
{
	moeep_ll_dispatch_args_t args = {
		.size = sizeof(args),
		.dtype = MOEEP_BF16,
		.num_tokens = r->rank == 0 ? TOKENS : 0,
		.x = r->direct,
		.topk_idx = r->topk,
		.recv_x = r->out,
	};

	RANK_TRY(moeep_ll_dispatch(r->buffer, r->handle, &args, NULL));
	/* However few the rows are: the decision is the comm's. */
	r->comm->cache_share = 0;
	for (int round = 0;; round++) {
		fill(r, round);
		if (r->rank == 1 && stress_now_ns() >= r->end_ns) {
			r->rows[0] = -1;
		}
		RANK_DO(combine(r));
		if (r->rank == 0 && r->out[0] != -1) {
			RANK_DO(check(r->out, round, TOKENS));
		}
		if (r->rank == 0 ? r->out[0] == -1 : r->rows[0] == -1) {
			return 0;
		}
	}
}

static int stream_body(int rank, moeep_comm_t *comm, void *arg)
{
	int (*rounds)(struct run *) = *(int (**)(struct run *))arg;
	struct run *r = util_alloc(sizeof(*r));
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.num_experts = 2,
		.max_topk = 1,
		.dtype = MOEEP_FP32,
		.hidden = HIDDEN,
		.ht_max_tokens = TOKENS,
		.ll_max_tokens = TOKENS,
	};
	int rc;

	r->rank = rank;
	r->comm = comm;
	r->topk[0] = r->topk[1] = r->topk[2] = 1;
	RANK_TRY(moeep_buffer_create(comm, &config, &r->buffer));
	RANK_TRY(moeep_handle_create(r->buffer, NULL, &r->handle));
	RANK_TRY(moeep_mem_alloc(comm, sizeof(r->rows), 0, (void **)&r->direct));
	r->end_ns = stress_now_ns() + LENGTH_NS;
	rc = stress_end(rounds(r), comm);
	rank_ok(moeep_handle_destroy(r->handle));
	rank_ok(moeep_buffer_destroy(r->buffer));
	util_free(r);
	return rc;
}

static void run(const struct stress *s, int (*rounds)(struct run *))
{
	char *spin = strdup(getenv("MOEEP_SPIN"));

	setenv("MOEEP_SPIN", SPIN_US, 1);
	stress_run(s, stream_body, &rounds);
	setenv("MOEEP_SPIN", spin, 1);
	free(spin);
}

void stress_stream_push(const struct stress *s)
{
	run(s, push_rounds);
}

void stress_stream_partial(const struct stress *s)
{
	run(s, partial_rounds);
}
