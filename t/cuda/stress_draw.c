/* SPDX-License-Identifier: MIT */
/* What a round is about, as a function of the seed, and what has to come of it. */
#include "config.h"

#include "t/cuda/stress.h"

#include <string.h>

#include "t/util.h"

/* The weights of a pool are a function of the place: 1 or 2. */
static int weight_of(const struct stress *s, int rank, int64_t at)
{
	return 1 + (int)(util_hash(s->seed, (uint64_t)rank, (uint64_t)at + 1000000) & 1);
}

static uint16_t bf16_of(int number)
{
	float value = (float)number;
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t)(bits >> 16);
}

static int64_t answer_rows(const struct stress *s)
{
	return (int64_t)STRESS_EXPERTS * stress_capacity(s) + STRESS_SHIFTS;
}

static int64_t weight_count(const struct stress *s)
{
	return (int64_t)(s->max_tokens * s->num_ranks + STRESS_SHIFTS) * STRESS_TOPK;
}

static void fill_rows(const struct stress *s, uint16_t *rows, uint8_t *numbers, int64_t count,
		      uint64_t seed)
{
	for (int64_t i = 0; i < count * s->hidden; i++) {
		int number = (int)(util_hash(s->seed, seed, (uint64_t)i) % 16);

		rows[i] = bf16_of(number);
		if (numbers) {
			numbers[i] = (uint8_t)number;
		}
	}
}

/* Stretches of choices that are even, that are mostly none, and that are of one expert. */
static void fill_choices(const struct stress *s, int rank)
{
	int64_t experts = (int64_t)STRESS_EXPERTS * s->num_ranks;
	int64_t count = (int64_t)(s->max_tokens + STRESS_SHIFTS) * STRESS_TOPK;

	for (int64_t i = 0; i < weight_count(s); i++) {
		s->weights[rank][i] = (float)weight_of(s, rank, i);
	}
	for (int64_t i = 0; i < count; i++) {
		int64_t stretch = i / (16 * STRESS_TOPK);
		uint64_t hash = util_hash(s->seed, (uint64_t)rank + 100, (uint64_t)i);
		int64_t hot =
			(int64_t)(util_hash(s->seed, 200, (uint64_t)stretch) % (uint64_t)experts);
		int64_t id = (int64_t)(hash % (uint64_t)(experts + 1)) - 1;

		if (stretch % 4 == 2) {
			id = hash >> 40 & 3 ? -1 : id;
		} else if (stretch % 4 == 3) {
			id = hot;
		}
		s->choices[rank][i] = id;
	}
}

void stress_pools_make(struct stress *s)
{
	size_t row_bytes = (size_t)s->hidden * sizeof(uint16_t);
	size_t tokens = (size_t)(s->max_tokens + STRESS_SHIFTS);

	for (int rank = 0; rank < s->num_ranks; rank++) {
		size_t answers = (size_t)answer_rows(s);

		s->x[rank] = util_alloc(tokens * row_bytes);
		s->answers[rank] = util_alloc(answers * row_bytes);
		s->numbers[rank] = util_alloc(answers * (size_t)s->hidden);
		s->choices[rank] = util_alloc(tokens * STRESS_TOPK * sizeof(int64_t));
		s->weights[rank] = util_alloc((size_t)weight_count(s) * sizeof(float));
		fill_rows(s, s->x[rank], NULL, (int64_t)tokens, 300 + (uint64_t)rank);
		fill_rows(s, s->answers[rank], s->numbers[rank], (int64_t)answers,
			  400 + (uint64_t)rank);
		fill_choices(s, rank);
	}
}

void stress_pools_free(struct stress *s)
{
	for (int rank = 0; rank < s->num_ranks; rank++) {
		util_free(s->x[rank]);
		util_free(s->answers[rank]);
		util_free(s->numbers[rank]);
		util_free(s->choices[rank]);
		util_free(s->weights[rank]);
	}
}

void stress_draw_make(const struct stress *s, enum stress_kind kind, int lane, int round, int which,
		      struct stress_draw *d)
{
	struct rng rng = {
		util_hash(s->seed, (uint64_t)round, (uint64_t)(lane * 16 + which * 4 + (int)kind))};
	int shape = (int)rng_range(&rng, 0, 7);
	int only = (int)rng_range(&rng, 0, s->num_ranks - 1);

	*d = (struct stress_draw){.kind = kind};
	d->topk = (int)rng_range(&rng, 1, STRESS_TOPK);
	d->values = kind != STRESS_LL && rng_chance(&rng, 50);
	for (int rank = 0; rank < s->num_ranks; rank++) {
		d->tokens[rank] = (int)rng_range(&rng, 0, s->max_tokens);
		if (shape == 0) {
			/* The others hear of it by one flag only. */
			d->tokens[rank] = rank == only ? s->max_tokens : 0;
		} else if (shape == 1) {
			d->tokens[rank] = s->max_tokens;
		} else if (shape == 2) {
			d->tokens[rank] = d->tokens[rank] % 2;
		}
		d->x_at[rank] = (int)rng_range(&rng, 0, STRESS_SHIFTS - 1);
		/* Whole tokens of the widest top-k: stretches begin there. */
		d->choice_at[rank] = (int)rng_range(&rng, 0, STRESS_SHIFTS - 1) * STRESS_TOPK;
		d->answer_at[rank] = (int)rng_range(&rng, 0, STRESS_SHIFTS - STRESS_PASSES);
	}
}

const uint16_t *stress_x(const struct stress *s, const struct stress_draw *d, int rank, int token)
{
	return s->x[rank] + (int64_t)(d->x_at[rank] + token) * s->hidden;
}

const uint16_t *stress_answers(const struct stress *s, const struct stress_draw *d, int rank,
			       int pass)
{
	return s->answers[rank] + (int64_t)(d->answer_at[rank] + pass) * s->hidden;
}

const float *stress_values(const struct stress *s, const struct stress_draw *d, int rank)
{
	return s->weights[rank] + d->answer_at[rank] * STRESS_TOPK;
}

static int64_t choice_index(const struct stress_draw *d, int src, int token, int k)
{
	return d->choice_at[src] + (int64_t)token * d->topk + k;
}

static int choice(const struct stress *s, const struct stress_draw *d, int src, int token, int k)
{
	return (int)s->choices[src][choice_index(d, src, token, k)];
}

/* First rows of the experts' groups at their ranks, HT; LL has fixed ones. */
static void find_offsets(const struct stress *s, const struct stress_draw *d, int *offset)
{
	int count[STRESS_RANKS * STRESS_EXPERTS] = {0};

	for (int src = 0; d->kind == STRESS_EXPERT && src < s->num_ranks; src++) {
		for (int i = 0; i < d->tokens[src] * d->topk; i++) {
			int id = (int)s->choices[src][d->choice_at[src] + i];

			if (id >= 0) {
				count[id]++;
			}
		}
	}
	for (int e = 0; e < STRESS_EXPERTS * s->num_ranks; e++) {
		if (d->kind == STRESS_LL) {
			offset[e] = e % STRESS_EXPERTS * stress_capacity(s);
		} else {
			offset[e] = e % STRESS_EXPERTS == 0 ? 0 : offset[e - 1] + count[e - 1];
		}
	}
}

/* One choice, or flat one rank of a token, is row `row` at its rank. */
static void note(const struct stress *s, const struct stress_draw *d, struct stress_plan *plan,
		 int me, int src, int token, int k, int row)
{
	int owner = choice(s, d, src, token, k) / STRESS_EXPERTS;
	int weight =
		d->kind == STRESS_FLAT ? 1 : (int)s->weights[src][choice_index(d, src, token, k)];

	if (owner == me) {
		plan->rows[plan->num_rows++] = (struct stress_row){
			.row = row, .src = src, .token = token, .weight = (float)weight};
	}
	if (src == me) {
		plan->terms[plan->num_terms++] = (struct stress_term){
			.token = token, .rank = owner, .row = row, .k = k, .weight = weight};
	}
}

static void plan_token(const struct stress *s, const struct stress_draw *d,
		       struct stress_plan *plan, int me, int src, int token, int *next)
{
	uint32_t ranks = 0;

	for (int k = 0; k < d->topk; k++) {
		int id = choice(s, d, src, token, k);
		int owner = id / STRESS_EXPERTS;

		if (src == me) {
			plan->owner[token][k] = id < 0 ? -1 : owner;
		}
		if (id < 0 || (d->kind == STRESS_FLAT && ranks >> owner & 1u)) {
			continue;
		}
		ranks |= 1u << owner;
		if (d->kind == STRESS_FLAT) {
			note(s, d, plan, me, src, token, k, next[owner]++);
		} else {
			note(s, d, plan, me, src, token, k, next[id]++);
		}
	}
}

void stress_plan_make(const struct stress *s, const struct stress_draw *d, int rank,
		      struct stress_plan *plan)
{
	int offset[STRESS_RANKS * STRESS_EXPERTS] = {0};
	int next[STRESS_RANKS * STRESS_EXPERTS] = {0};

	plan->num_rows = 0;
	plan->num_terms = 0;
	if (d->kind != STRESS_FLAT) {
		find_offsets(s, d, offset);
		memcpy(next, offset, sizeof(offset[0]) * (size_t)(STRESS_EXPERTS * s->num_ranks));
	}
	for (int src = 0; src < s->num_ranks; src++) {
		for (int token = 0; token < d->tokens[src]; token++) {
			plan_token(s, d, plan, rank, src, token, next);
		}
	}
	for (int e = 0; d->kind != STRESS_FLAT && e < STRESS_EXPERTS; e++) {
		plan->expert_rows[e] =
			next[rank * STRESS_EXPERTS + e] - offset[rank * STRESS_EXPERTS + e];
	}
}

/* The value that a rank gave for a choice: flat, with the token's row; else with the choice's. */
static float value_of(const struct stress *s, const struct stress_draw *d,
		      const struct stress_term *term, int k)
{
	const float *values = stress_values(s, d, term->rank);

	return d->kind == STRESS_FLAT ? values[term->row * d->topk + k] : values[term->row];
}

void stress_sum(const struct stress *s, const struct stress_draw *d, const struct stress_plan *plan,
		int token, int pass, int *at, uint16_t *row, float *values)
{
	int sum[STRESS_HIDDEN] = {0};

	memset(values, 0, sizeof(*values) * (size_t)d->topk);
	for (; *at < plan->num_terms && plan->terms[*at].token == token; ++*at) {
		const struct stress_term *term = &plan->terms[*at];
		const uint8_t *numbers =
			s->numbers[term->rank] +
			(int64_t)(d->answer_at[term->rank] + pass + term->row) * s->hidden;

		for (int h = 0; h < s->hidden; h++) {
			sum[h] += term->weight * numbers[h];
		}
		/* Flat, the term stands for all choices of its rank. */
		for (int k = 0; d->values && k < d->topk; k++) {
			if (k == term->k ||
			    (d->kind == STRESS_FLAT && plan->owner[token][k] == term->rank)) {
				values[k] = value_of(s, d, term, k);
			}
		}
	}
	for (int h = 0; h < s->hidden; h++) {
		row[h] = bf16_of(sum[h]);
	}
}
