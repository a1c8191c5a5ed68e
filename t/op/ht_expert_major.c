/* SPDX-License-Identifier: MIT */
/* High-throughput operations with expert-major rows: order, alignment, padding, partial sums. */
#include "config.h"

#include "t/op/ht.h"

static void check(int num_ranks, bool processes, int variant)
{
	static const int alignments[] = {1, 4, 128, 3, 16};
	static const int dtypes[] = {MOEEP_BF16, MOEEP_FP32, MOEEP_FP16};
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 2 * num_ranks + variant,
				.topk = 5,
				.hidden = 48,
				.weights = variant != 3,
				.routing = variant % 2 ? ROUTE_ANY : ROUTE_MASKED,
				.payload = variant == 2 ? PAYLOAD_SPECIAL : PAYLOAD_NUMBERS,
				.seed = op_seed() + (uint64_t)(num_ranks + 31 * variant),
			},
		.row_layout = MOEEP_ROWS_EXPERT_MAJOR,
		.combine_dtype = dtypes[variant % 3],
		.partial_dtype = variant % 2 ? MOEEP_FP32 : 0,
		.weighted = variant < 3,
		.send_weights = variant != 1,
		.bias = variant != 2,
	};

	op_tokens_vary(&c.spec, 16);
	for (int r = 0; r < num_ranks; r++) {
		struct ht_rank *rank = &c.rank[r];

		rank->alignment = alignments[(r + variant) % COUNT_OF(alignments)];
		rank->flags = (r % 2 ? MOEEP_DISPATCH_ZERO_PADDING : 0) |
			      (r % 3 == 2 ? MOEEP_DISPATCH_FILL_TAIL : 0);
		rank->capacity = r % 3 ? 200 + 16 * 5 * num_ranks + 128 * (2 + variant) : 0;
	}
	ht_check(&c, processes, "expert-major");
}

/* FP8 rows with scales: padding rows' scales are zeroed, too, where that is asked for. */
static void scaled(int num_ranks, bool processes, int scale_dtype)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 3 * num_ranks - 1,
				.topk = 3,
				.hidden = 128,
				.dtype = MOEEP_FP8_E4M3,
				.scale_dtype = scale_dtype,
				.scale_count = 6,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.seed = op_seed(),
			},
		.row_layout = MOEEP_ROWS_EXPERT_MAJOR,
		.weighted = true,
	};

	op_tokens_vary(&c.spec, 12);
	for (int r = 0; r < num_ranks; r++) {
		struct ht_rank *rank = &c.rank[r];

		rank->alignment = 8;
		rank->scale_layout = r % 2;
		rank->recv_scale_layout = (r + 1) / 2 % 2;
		rank->flags = r != 2 ? MOEEP_DISPATCH_ZERO_PADDING | MOEEP_DISPATCH_FILL_TAIL : 0;
		rank->capacity = r == 1 ? 0 : 12 * 3 * num_ranks + 64;
	}
	ht_check(&c, processes, "expert-major with scales");
}

/* Each output alone. */
static void outputs(void)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = HT_OUTPUTS,
				.num_experts = 24,
				.topk = 3,
				.hidden = 32,
				.scale_count = 3,
				.weights = true,
				.payload = PAYLOAD_BITS,
				.seed = op_seed(),
			},
		.row_layout = MOEEP_ROWS_EXPERT_MAJOR,
		.weighted = true,
	};

	op_tokens_vary(&c.spec, 9);
	for (int r = 0; r < c.spec.num_ranks; r++) {
		c.rank[r].leave = ((1u << HT_OUTPUTS) - 1) ^ 1u << r;
		c.rank[r].alignment = 2;
		c.rank[r].flags = MOEEP_DISPATCH_ZERO_PADDING;
	}
	ht_check(&c, false, "expert-major, one output on each rank");
}

int main(void)
{
	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		int num_ranks = op_sizes[i];

		for (int variant = 0; variant < 4 && op_use_size(num_ranks); variant++) {
			/* Large groups: half of the combinations, they cost most. */
			if (num_ranks < 8 || variant % 2 == 0) {
				check(num_ranks, false, variant);
			}
			if (num_ranks < 8 || variant % 2 == 1) {
				check(num_ranks, true, variant);
			}
		}
	}
	scaled(3, false, MOEEP_FP32);
	scaled(4, true, MOEEP_UE8M0);
	scaled(5, false, MOEEP_UE8M0);
	scaled(2, true, MOEEP_FP32);
	outputs();
	return tap_done();
}
