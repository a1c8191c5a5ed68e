/* SPDX-License-Identifier: MIT */
/* Low-latency dispatch: expert-major rows, counts, sources, ranges, bit for bit; overflow. */
#include "config.h"

#include "t/op/ll.h"

static void small(int num_ranks, bool processes)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 2 * num_ranks + 1,
				.topk = 4,
				.hidden = 72,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.routing = ROUTE_MASKED,
				.seed = op_seed() + (uint64_t)num_ranks,
			},
	};

	op_tokens_vary(&c.spec, 9);
	for (int r = 0; r < num_ranks; r++) {
		c.rank[r].topk_dtype = r % 2 ? MOEEP_INT32 : 0;
	}
	ll_check(&c, processes, "low latency");
}

/* The same expert several times in a token: more rows than tokens. */
static void duplicates(int num_ranks, bool processes, enum op_routing routing)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 5,
				.topk = 6,
				.hidden = 24,
				.dtype = MOEEP_FP16,
				.weights = true,
				.routing = routing,
				.payload = PAYLOAD_BITS,
				.seed = op_seed() + (uint64_t)routing,
			},
		.combine_dtype = MOEEP_FP16,
	};

	op_tokens_vary(&c.spec, 7);
	for (int r = 0; r < num_ranks; r++) {
		c.rank[r].capacity = 7 * num_ranks * 6;
	}
	ll_check(&c, processes, "repeated experts");
}

/* Capacities of each rank's own, exactly enough and more. */
static void capacities(int num_ranks, bool processes)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 3 * num_ranks,
				.topk = 3,
				.hidden = 40,
				.payload = PAYLOAD_BITS,
				.seed = op_seed() + (uint64_t)num_ranks,
			},
		.max_tokens = 20,
	};
	struct op_inputs in;

	op_tokens_vary(&c.spec, 12);
	op_inputs_make(&in, &c.spec);
	for (int r = 0; r < num_ranks; r++) {
		struct oracle_rows rows;
		int64_t most = 1;

		oracle_route(&in.group, r, MOEEP_ROWS_EXPERT_MAJOR, 1, &rows);
		for (int e = 0; e < rows.local_experts; e++) {
			most = rows.per_expert[e] > most ? rows.per_expert[e] : most;
		}
		oracle_rows_free(&rows);
		c.rank[r].capacity = most + (r % 3 == 1 ? 5 : 0);
		c.rank[r].combine_capacity = r % 3 == 2 ? most + 2 : 0;
	}
	op_inputs_free(&in);
	ll_check(&c, processes, "capacities");
}

/* More rows than an expert's capacity: its rank is told, nothing is written past it. */
static void overflow(int num_ranks, bool processes, int quant, int64_t capacity)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts =
					num_ranks, /* one each: whoever sends there loses rows */
				.topk = 1,
				.hidden = 144,
				.weights = true,
				.routing = ROUTE_SAME,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed() + (uint64_t)num_ranks,
			},
		.quant = quant,
	};

	op_tokens(&c.spec, 6);
	for (int r = 0; r < num_ranks; r++) {
		c.rank[r].capacity = capacity;
	}
	if (num_ranks > 2) {
		c.spec.tokens[num_ranks - 1] = 0; /* sent nothing, so it loses nothing */
	}
	ll_check(&c, processes, "overflow");
}

/* Each output alone, and none. */
static void outputs(bool alone)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = LL_OUTPUTS,
				.num_experts = 7,
				.topk = 2,
				.hidden = 256,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed(),
			},
		.quant = MOEEP_QUANT_FP8,
	};

	op_tokens_vary(&c.spec, 5);
	for (int r = 0; r < c.spec.num_ranks; r++) {
		c.rank[r].leave = ((1u << LL_OUTPUTS) - 1) ^ (alone ? 1u << r : 0);
	}
	ll_check(&c, alone, alone ? "one output on each rank" : "no outputs");
}

static void wide(int num_ranks, bool processes, int64_t hidden)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 4 * num_ranks,
				.topk = 8,
				.hidden = hidden,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.seed = op_seed(),
			},
		.max_topk = 9,
	};

	op_tokens_vary(&c.spec, 4);
	ll_check(&c, processes, "wide rows");
}

/* Many of something: more than fits where a GPU's blocks and warps keep the usual number. */
static void many(int num_ranks, bool processes, const char *what, int experts, int topk, int tokens)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = experts,
				.topk = topk,
				.hidden = 24,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.seed = op_seed(),
			},
		.max_topk = topk,
	};

	op_tokens_vary(&c.spec, tokens);
	ll_check(&c, processes, what);
}

int main(void)
{
	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		if (op_use_size(op_sizes[i])) {
			small(op_sizes[i], false);
			small(op_sizes[i], true);
		}
	}
	duplicates(3, false, ROUTE_ANY);
	duplicates(4, true, ROUTE_SAME);
	many(3, false, "many experts", 8200, 8, 21);
	many(3, false, "many choices", 67, 61, 7);
	many(2, true, "many choices", 67, 61, 7);
	capacities(3, true);
	capacities(4, false);
	capacities(7, true);
	for (int num_ranks = 1; num_ranks <= 4; num_ranks++) {
		overflow(num_ranks, num_ranks % 2, MOEEP_QUANT_NONE, 3);
		overflow(num_ranks, num_ranks % 2 == 0, MOEEP_QUANT_FP8, 5);
	}
	outputs(true);
	outputs(false);
	wide(2, false, 7168);
	wide(3, true, 7168);
	wide(4, false, 8);
	return tap_done();
}
