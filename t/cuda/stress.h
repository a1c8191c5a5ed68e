/* SPDX-License-Identifier: MIT */
/*
 * Long random runs on devices: one comm and buffer for each of two streams, new shapes and routing
 * in each round, all operations queued behind each other, and every byte of what they write looked
 * at.
 *
 * What is expected has to be cheap: rows are taken from pools that are filled once and are the same
 * memory for all ranks, at offsets that each round draws anew. Elements are whole numbers below 16
 * and weights 1 or 2, so sums are exact and need no order.
 */
#ifndef T_CUDA_STRESS_H
#define T_CUDA_STRESS_H

#include <stdbool.h>
#include <stdint.h>

#include <moeep/moeep.h>

#include "cuda/driver.h"
#include "t/op/op.h"

#define STRESS_RANKS   16
#define STRESS_EXPERTS 2 /* of each rank */
#define STRESS_TOPK    4
#define STRESS_TOKENS  96
#define STRESS_HIDDEN  2048
/* Offsets of a round are below it, by at least a pass. */
#define STRESS_SHIFTS 64
#define STRESS_PASSES 2
#define STRESS_LANES  2

/* One run of all ranks. */
struct stress {
	int num_ranks;
	int max_tokens;
	int hidden;
	int rounds;
	bool load; /* another kernel takes SMs from time to time */
	uint64_t seed;
	/* Pools, [num_ranks] each. */
	uint16_t *x[STRESS_RANKS];	 /* [max_tokens + shifts, hidden] */
	uint16_t *answers[STRESS_RANKS]; /* what experts answer: [rows of LL + shifts, hidden] */
	uint8_t *numbers[STRESS_RANKS];	 /* the same as numbers */
	int64_t *choices[STRESS_RANKS];	 /* [(max_tokens + shifts) * topk] */
	float *weights[STRESS_RANKS];	 /* [(max_tokens * num_ranks + shifts) * topk] */
};

void stress_pools_make(struct stress *s);
void stress_pools_free(struct stress *s);

/* Rows of an expert in LL outputs: enough for any routing. */
static inline int stress_capacity(const struct stress *s)
{
	return s->num_ranks * s->max_tokens * STRESS_TOPK;
}

enum stress_kind {
	STRESS_FLAT,   /* HT */
	STRESS_EXPERT, /* HT, expert-major, weighted */
	STRESS_LL
};

/* One dispatch and its combine, as all ranks draw it. */
struct stress_draw {
	enum stress_kind kind;
	int topk;
	bool values; /* HT: combine brings back a value of each choice */
	int tokens[STRESS_RANKS];
	int x_at[STRESS_RANKS]; /* offsets into the pools */
	int choice_at[STRESS_RANKS];
	int answer_at[STRESS_RANKS];
};

void stress_draw_make(const struct stress *s, enum stress_kind kind, int lane, int round, int which,
		      struct stress_draw *d);

/* What a rank is to receive, and what it is to get back. */
struct stress_row {
	int row; /* of the output */
	int src;
	int token;
	float weight;
};

struct stress_term {
	int token; /* of this rank */
	int rank;  /* who answers */
	int row;   /* of that rank's answers */
	int k;
	int weight;
};

struct stress_plan {
	int num_rows;
	int num_terms;
	int expert_rows[STRESS_EXPERTS];
	int owner[STRESS_TOKENS][STRESS_TOPK]; /* of this rank's choices; -1: none */
	struct stress_row rows[STRESS_RANKS * STRESS_TOKENS * STRESS_TOPK];
	struct stress_term terms[STRESS_TOKENS * STRESS_TOPK];
};

void stress_plan_make(const struct stress *s, const struct stress_draw *d, int rank,
		      struct stress_plan *plan);

/* Where a rank's inputs of a draw are. A handle is combined up to twice: pass 0 and 1. */
const uint16_t *stress_x(const struct stress *s, const struct stress_draw *d, int rank, int token);
const uint16_t *stress_answers(const struct stress *s, const struct stress_draw *d, int rank,
			       int pass);
const float *stress_values(const struct stress *s, const struct stress_draw *d, int rank);
/*
 * What a rank is to get back for a token, given its terms from *at on, which it steps over: the
 * row, and a value of each choice.
 */
void stress_sum(const struct stress *s, const struct stress_draw *d, const struct stress_plan *plan,
		int token, int pass, int *at, uint16_t *row, float *values);

/* stress_rank.c: the body of a rank. */
int stress_body(int rank, moeep_comm_t *comm, void *stress);

/* stress_load.c: a kernel beside the operations. */
struct stress_load {
	const struct moeep_cu *cu;
	CUmodule module;
	CUfunction function;
	CUstream stream;
	int blocks;
	unsigned int shared; /* so much that no other block fits on the SM */
};

/* Whether this build has the kernel. */
bool stress_load_exists(void);
int stress_load_open(struct stress_load *load, const struct moeep_cu *cu);
/* Take a part of the SMs for so long, unless the last time is not over. */
int stress_load_push(struct stress_load *load, uint64_t ns);
int stress_load_close(struct stress_load *load);

#endif /* T_CUDA_STRESS_H */
