/* SPDX-License-Identifier: MIT */
/* High-throughput dispatch, flat rows: bit for bit, with all outputs, types and layouts. */
#include "config.h"

#include "t/op/ht.h"

static void small(int num_ranks, bool processes)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 2 * num_ranks + 1,
				.topk = 4,
				.hidden = 72,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.seed = op_seed() + (uint64_t)num_ranks,
			},
	};

	op_tokens_vary(&c.spec, 40);
	ht_check(&c, processes, "flat");
}

/* Scales of every kind and layout; what may differ between ranks does. */
static void scaled(int num_ranks, bool processes, int dtype, int scale_dtype, int scale_count)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 4 * num_ranks,
				.topk = 2,
				.hidden = 16 * scale_count,
				.dtype = dtype,
				.scale_dtype = scale_dtype,
				.scale_count = scale_count,
				.routing = ROUTE_MASKED,
				.payload = PAYLOAD_BITS,
				.seed = op_seed() + (uint64_t)scale_count,
			},
	};

	op_tokens_vary(&c.spec, 30);
	for (int r = 0; r < num_ranks; r++) {
		struct ht_rank *rank = &c.rank[r];

		rank->topk_dtype = r % 3 == 1 ? MOEEP_INT32 : 0;
		rank->scale_layout = r % 2;
		rank->recv_scale_layout = r / 2 % 2;
		rank->capacity = r % 3 == 2 ? 0 : 30 * num_ranks + 3;
		rank->flags = r % 4 == 0 ? MOEEP_DISPATCH_FILL_TAIL : 0;
		if (r % 5 == 3) {
			/* More than dense: what lies between stays as it was. */
			rank->scale_stride = 40 + scale_count;
			rank->recv_scale_stride = 30 * num_ranks + 8 + scale_count;
		}
	}
	ht_check(&c, processes, "scales");
}

static void wide(int num_ranks, bool processes, int64_t hidden, int64_t chunk_bytes, int chunks)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 16,
				.topk = 3,
				.hidden = hidden,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.seed = op_seed() + (uint64_t)hidden,
			},
		.chunk_bytes = chunk_bytes,
		.chunks = chunks,
	};

	op_tokens_vary(&c.spec, hidden > 1000 ? 12 : 200);
	ht_check(&c, processes, "chunks");
}

/* Each output alone, and all but one. */
static void outputs(bool alone)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = HT_NUM_RECV + 1,
				.num_experts = 24,
				.topk = 3,
				.hidden = 32,
				.scale_count = 3,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.seed = op_seed(),
			},
	};

	op_tokens_vary(&c.spec, 9);
	for (int r = 0; r < c.spec.num_ranks; r++) {
		unsigned int one = 1u << r;

		c.rank[r].leave = alone ? ((1u << HT_OUTPUTS) - 1) ^ one : one;
	}
	ht_check(&c, false, alone ? "one output on each rank" : "one output less on each rank");
	for (int r = 0; r < c.spec.num_ranks; r++) {
		c.rank[r].leave = (1u << HT_OUTPUTS) - 1;
	}
	ht_check(&c, true, "no outputs at all");
}

/* Many tokens: more than one chunk of anything, positions past 16 bits of bytes. */
static void many(int num_ranks, bool processes)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 32,
				.topk = 2,
				.hidden = 8,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.seed = op_seed(),
			},
		.max_tokens = 5000,
	};

	op_tokens_vary(&c.spec, 1500);
	ht_check(&c, processes, "many tokens");
}

int main(void)
{
	static const int dtypes[] = {MOEEP_BF16,     MOEEP_FP16,     MOEEP_FP32,
				     MOEEP_FP8_E4M3, MOEEP_FP8_E5M2, MOEEP_INT8};

	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		if (op_use_size(op_sizes[i])) {
			small(op_sizes[i], false);
			small(op_sizes[i], true);
		}
	}
	for (int i = 0; i < COUNT_OF(dtypes); i++) {
		scaled(3 + i % 2, i % 2, dtypes[i], MOEEP_FP32, 1 + i);
		scaled(5 - i % 2, !(i % 2), dtypes[i], MOEEP_UE8M0, 1 + i);
	}
	scaled(8, false, MOEEP_FP8_E4M3, MOEEP_UE8M0, 56);
	scaled(8, true, MOEEP_FP8_E4M3, MOEEP_FP32, 9);
	wide(2, false, 7168, 0, 0);
	wide(2, true, 7168, 0, 0);
	wide(3, false, 7168, 4096, 2);
	wide(3, true, 1024, 16, 2);
	wide(4, false, 256, 1000, 3);
	wide(4, true, 8, 64, 2);
	outputs(true);
	outputs(false);
	many(2, false);
	many(3, true);
	return tap_done();
}
