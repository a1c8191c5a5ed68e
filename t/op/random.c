/* SPDX-License-Identifier: MIT */
/*
 * Random configurations. MOEEP_TEST_SEED sets where they start, MOEEP_TEST_ROUNDS how many there
 * are; the name of each check has the seed that repeats it as the first one.
 */
#include "config.h"

#include <stdio.h>

#include "t/op/ht.h"
#include "t/op/ll.h"

static int pick(struct rng *rng, const int *values, int count)
{
	return values[rng_range(rng, 0, count - 1)];
}

#define PICK(rng, ...)                                                                             \
	pick(rng, (const int[]){__VA_ARGS__},                                                      \
	     (int)(sizeof((const int[]){__VA_ARGS__}) / sizeof(int)))

/* Work is about rows x elements: a limit for one configuration. */
#define MOST_ELEMENTS 60000

static void random_spec(struct rng *rng, struct op_spec *spec, int64_t unit)
{
	int64_t most;

	spec->num_ranks = (int)rng_range(rng, 1, 8);
	spec->num_experts = PICK(rng, 1, 2, 7, 8, 16, 33, 64);
	spec->topk = PICK(rng, 1, 2, 3, 4, 8, 8, 11);
	/* Any multiple of a row's unit, mostly short. */
	spec->hidden =
		unit * (rng_chance(rng, 70) ? rng_range(rng, 1, 16) : rng_range(rng, 1, 150));
	spec->weights = rng_chance(rng, 60);
	spec->routing = (enum op_routing)PICK(rng, ROUTE_DISTINCT, ROUTE_DISTINCT, ROUTE_ANY,
					      ROUTE_MASKED, ROUTE_MASKED, ROUTE_NONE, ROUTE_ONE,
					      ROUTE_SAME, ROUTE_LAST_RANK);
	spec->payload = (enum payload)PICK(rng, PAYLOAD_BITS, PAYLOAD_NUMBERS, PAYLOAD_NUMBERS,
					   PAYLOAD_NAN, PAYLOAD_SPECIAL);
	spec->seed = rng_next(rng);
	spec->x_seed = rng_next(rng);
	most = MOST_ELEMENTS / spec->hidden / spec->num_ranks / (spec->topk > 3 ? 3 : spec->topk);
	op_tokens_vary(spec, rng_range(rng, 0, most > 60 ? 60 : most));
}

static void random_ht_rank(struct rng *rng, struct ht_case *c, int r)
{
	struct ht_rank *rank = &c->rank[r];
	int64_t most = 0;

	for (int i = 0; i < c->spec.num_ranks; i++) {
		most += c->spec.tokens[i];
	}
	rank->topk_dtype = PICK(rng, 0, MOEEP_INT32, MOEEP_INT64);
	rank->scale_layout = (int)rng_range(rng, 0, 1);
	rank->recv_scale_layout = (int)rng_range(rng, 0, 1);
	rank->alignment =
		c->row_layout == MOEEP_ROWS_EXPERT_MAJOR ? PICK(rng, 0, 1, 2, 5, 8, 32) : 0;
	rank->flags = rng_chance(rng, 30) ? MOEEP_DISPATCH_FILL_TAIL : 0;
	if (c->row_layout == MOEEP_ROWS_EXPERT_MAJOR) {
		rank->flags |= rng_chance(rng, 50) ? MOEEP_DISPATCH_ZERO_PADDING : 0;
		most = most * c->spec.topk + 32 * (int64_t)c->spec.num_experts;
	}
	if (rng_chance(rng, 50)) {
		rank->capacity = most + rng_range(rng, 1, 9);
	} else if (rng_chance(rng, 5)) {
		rank->capacity = rng_range(rng, 1, 3); /* too few, perhaps */
	}
	if (rng_chance(rng, 40)) {
		rank->leave = (unsigned int)rng_next(rng) & ((1u << HT_OUTPUTS) - 1);
	}
}

static void random_ht(struct rng *rng, bool processes, const char *what)
{
	struct ht_case c = {.row_layout = PICK(rng, 0, MOEEP_ROWS_FLAT, MOEEP_ROWS_EXPERT_MAJOR)};
	bool memory = rng_chance(rng, 50);
	int64_t unit;

	c.spec.dtype = PICK(rng, MOEEP_BF16, MOEEP_BF16, MOEEP_FP16, MOEEP_FP32, MOEEP_FP8_E4M3,
			    MOEEP_FP8_E5M2, MOEEP_INT8);
	c.combine_dtype = PICK(rng, 0, MOEEP_BF16, MOEEP_FP16, MOEEP_FP32);
	/* Rows of both types are multiples of 16 bytes. */
	unit = 16 / (int64_t)oracle_dtype_size(c.spec.dtype);
	unit = unit < 8 && c.combine_dtype != MOEEP_FP32 ? 8 : unit;
	random_spec(rng, &c.spec, unit);
	if (rng_chance(rng, 50)) {
		c.spec.scale_dtype = PICK(rng, 0, MOEEP_FP32, MOEEP_UE8M0);
		c.spec.scale_count = (int)rng_range(rng, 1, 9);
	}
	c.max_topk = c.spec.topk + (int)rng_range(rng, 0, 2);
	c.max_tokens = op_tokens_most(&c.spec) + rng_range(rng, 0, 20);
	c.partial_dtype = PICK(rng, 0, 0, MOEEP_FP32);
	c.chunk_bytes = PICK(rng, 0, 0, 16, 100, 2000);
	c.chunks = PICK(rng, 0, 2, 3);
	c.weighted =
		c.spec.weights && c.row_layout == MOEEP_ROWS_EXPERT_MAJOR && rng_chance(rng, 60);
	c.send_weights = rng_chance(rng, 50);
	c.bias = rng_chance(rng, 50);
	for (int r = 0; r < c.spec.num_ranks; r++) {
		random_ht_rank(rng, &c, r);
		if (memory) {
			c.rank[r].memory = (enum op_memory)rng_range(
				rng, 0, op_can_register(processes) ? 2 : 1);
		}
	}
	ht_check(&c, processes, what);
}

static void random_ll(struct rng *rng, bool processes, const char *what)
{
	struct ll_case c = {.quant = (int)rng_range(rng, 0, 3)};
	bool memory = rng_chance(rng, 50);

	c.spec.dtype = PICK(rng, 0, MOEEP_BF16, MOEEP_FP16);
	c.combine_dtype = PICK(rng, 0, MOEEP_BF16, MOEEP_FP16, MOEEP_FP32);
	/* E4M3 rows are multiples of 16 bytes, too. */
	random_spec(rng, &c.spec, 16);
	for (int r = 0; r < c.spec.num_ranks; r++) {
		c.spec.tokens[r] = c.spec.tokens[r] > 12 ? 12 : c.spec.tokens[r];
	}
	c.max_topk = c.spec.topk + (int)rng_range(rng, 0, 2);
	c.max_tokens = op_tokens_most(&c.spec) + rng_range(rng, 0, 9);
	c.max_tokens = c.max_tokens > 0 ? c.max_tokens : 1;
	c.partial_dtype = PICK(rng, 0, 0, MOEEP_FP32);
	c.unweighted = rng_chance(rng, 20);
	c.bias = rng_chance(rng, 50);
	c.slots = 2;
	c.ll_capacity = c.spec.num_ranks * c.max_tokens * c.spec.topk;
	for (int r = 0; r < c.spec.num_ranks; r++) {
		struct ll_rank *rank = &c.rank[r];

		rank->topk_dtype = PICK(rng, 0, MOEEP_INT32, MOEEP_INT64);
		rank->recv_scale_layout = (int)rng_range(rng, 0, 1);
		rank->capacity = c.ll_capacity + rng_range(rng, 0, 3);
		rank->combine_capacity = rng_chance(rng, 30) ? c.ll_capacity : 0;
		if (rng_chance(rng, 30)) {
			rank->leave = (unsigned int)rng_next(rng) & ((1u << LL_OUTPUTS) - 1);
		}
		if (memory) {
			rank->memory =
				(enum op_memory)PICK(rng, OP_ORDINARY, OP_SYMMETRIC, OP_SLOT);
		}
	}
	ll_check(&c, processes, what);
}

int main(void)
{
	uint64_t seed = op_seed(), rounds = util_env("MOEEP_TEST_ROUNDS", tap_quick() ? 60 : 500);

	ranks_begin();
	tap_diag("seed %llu, %llu rounds", (unsigned long long)seed, (unsigned long long)rounds);
	for (uint64_t i = 0; i < rounds; i++) {
		struct rng rng = {util_hash(seed + i, 51, 51)};
		bool processes = rng_chance(&rng, 50), low = rng_chance(&rng, 40);
		char what[64];

		snprintf(what, sizeof(what), "%s, MOEEP_TEST_SEED=%llu", low ? "LL" : "HT",
			 (unsigned long long)(seed + i));
		if (low) {
			random_ll(&rng, processes, what);
		} else {
			random_ht(&rng, processes, what);
		}
	}
	return tap_done();
}
