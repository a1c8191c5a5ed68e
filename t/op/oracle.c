/* SPDX-License-Identifier: MIT */
/* The oracle itself: its formats by whole tables, its sums and orders by examples done by hand. */
#include "config.h"

#include <math.h>
#include <string.h>

#include "t/op/op.h"

/* Every value of a format: back from its float, and what lies between it and its neighbour. */
static void table(int dtype, uint32_t count, uint32_t largest)
{
	int back = 0, order = 0, middle = 0, above = 0, below = 0, nans = 0;
	uint32_t sign = count / 2;

	for (uint32_t bits = 0; bits < count; bits++) {
		uint32_t again = 0, next = bits + 1, out = 0;
		float value = oracle_load(dtype, &bits, 0), neighbour, half;

		oracle_store(dtype, &again, 0, value);
		if (oracle_is_nan(dtype, &bits)) {
			nans += !isnan(value) || !oracle_is_nan(dtype, &again) ||
				(again & sign) != (bits & sign);
			continue;
		}
		back += again != bits || isnan(value);
		if (bits >= largest) {
			continue;
		}
		neighbour = oracle_load(dtype, &next, 0);
		half = value / 2 + neighbour / 2; /* exact: floats have the bit that is needed */
		order += !(neighbour > value);
		oracle_store(dtype, &out, 0, half);
		middle += out != (bits & 1 ? next : bits);
		oracle_store(dtype, &out, 0, nextafterf(half, INFINITY));
		above += out != next;
		oracle_store(dtype, &out, 0, nextafterf(half, 0));
		below += out != bits;
	}
	is_int(back, 0, "%s: values come back", moeep_dtype_name(dtype));
	is_int(nans, 0, "%s: NaNs stay NaNs of their sign", moeep_dtype_name(dtype));
	is_int(order, 0, "%s: values ascend", moeep_dtype_name(dtype));
	is_int(middle, 0, "%s: ties go to even", moeep_dtype_name(dtype));
	is_int(above, 0, "%s: more than half goes up", moeep_dtype_name(dtype));
	is_int(below, 0, "%s: less than half goes down", moeep_dtype_name(dtype));
}

static uint32_t stored(int dtype, float value)
{
	uint32_t bits = 0;

	oracle_store(dtype, &bits, 0, value);
	return bits;
}

static float loaded(int dtype, uint32_t bits)
{
	return oracle_load(dtype, &bits, 0);
}

static void anchors(void)
{
	static const struct {
		int dtype;
		uint32_t bits;
		float value;
	} known[] = {
		{MOEEP_BF16, 0x3f80, 1.0f},
		{MOEEP_BF16, 0xc0a0, -5.0f},
		{MOEEP_BF16, 0x7f7f, 0x1.fep127f},
		{MOEEP_BF16, 0x0001, 0x1p-133f},
		{MOEEP_BF16, 0x7f80, INFINITY},
		{MOEEP_FP16, 0x3c00, 1.0f},
		{MOEEP_FP16, 0xc500, -5.0f},
		{MOEEP_FP16, 0x7bff, 65504.0f},
		{MOEEP_FP16, 0x0001, 0x1p-24f},
		{MOEEP_FP16, 0xfc00, -INFINITY},
		{MOEEP_FP8_E4M3, 0x38, 1.0f},
		{MOEEP_FP8_E4M3, 0xca, -5.0f},
		{MOEEP_FP8_E4M3, 0x7e, 448.0f},
		{MOEEP_FP8_E4M3, 0x01, 0x1p-9f},
		{MOEEP_FP8_E4M3, 0x08, 0x1p-6f},
		{MOEEP_FP32, 0x00000001, 0x1p-149f},
		{MOEEP_FP32, 0x7f7fffff, 0x1.fffffep127f},
	};

	for (int i = 0; i < COUNT_OF(known); i++) {
		ok(loaded(known[i].dtype, known[i].bits) == known[i].value &&
			   stored(known[i].dtype, known[i].value) == known[i].bits,
		   "%s 0x%x is %g", moeep_dtype_name(known[i].dtype), known[i].bits,
		   (double)known[i].value);
	}
	is_int(stored(MOEEP_FP8_E4M3, 449.0f), 0x7e, "e4m3 saturates just above 448");
	is_int(stored(MOEEP_FP8_E4M3, -1e30f), 0xfe, "e4m3 saturates below");
	is_int(stored(MOEEP_FP8_E4M3, INFINITY), 0x7e, "e4m3 saturates infinity");
	is_int(stored(MOEEP_FP8_E4M3, -0.0f), 0x80, "e4m3 has -0");
	is_int(stored(MOEEP_FP16, 65519.0f), 0x7bff, "fp16: less than half past the end");
	is_int(stored(MOEEP_FP16, 65520.0f), 0x7c00, "fp16: overflow is infinity");
	is_int(stored(MOEEP_BF16, 0x1.fffffep127f), 0x7f80, "bf16: overflow is infinity");
}

/* The usual integer arithmetic for BF16, and the compiler's own FP16, on many floats. */
static void other_ways(void)
{
	struct rng rng = {5};
	int differ_bf16 = 0, differ_fp16 = 0;

	for (int i = 0; i < 1000000; i++) {
		uint32_t bits = (uint32_t)rng_next(&rng);
		float value;

		memcpy(&value, &bits, sizeof(value));
		if (isnan(value)) {
			continue;
		}
		differ_bf16 +=
			stored(MOEEP_BF16, value) != (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#ifdef __FLT16_MANT_DIG__
		value = ldexpf(value, i % 2 ? 0 : -(ilogbf(value) + 20 - i % 40));
		_Float16 narrow = (_Float16)value;
		uint16_t want;

		memcpy(&want, &narrow, sizeof(want));
		differ_fp16 += stored(MOEEP_FP16, value) != want;
#endif
	}
	is_int(differ_bf16, 0, "bf16 as by integer arithmetic");
	is_int(differ_fp16, 0, "fp16 as by the compiler");
}

/* Two ranks, three experts: rank 0 has 0 and 1, rank 1 has 2. */
static const int64_t topk0[] = {2, 0, -1, 1, 1, 1};
static const int64_t topk1[] = {0, 2, -1, -1};
static const float weights0[] = {1, 2, 3, 4, 5, 6};
static const float weights1[] = {7, 8, 9, 10};
static const uint16_t x0[] = {1, 2, 3};
static const uint16_t x1[] = {4, 5};
static const struct oracle_input inputs[] = {
	{.num_tokens = 3, .topk = topk0, .weights = weights0, .x = x0},
	{.num_tokens = 2, .topk = topk1, .weights = weights1, .x = x1},
};
static const struct oracle_group group = {
	.num_ranks = 2,
	.num_experts = 3,
	.topk = 2,
	.hidden = 1,
	.dtype = MOEEP_BF16,
	.scale_dtype = MOEEP_FP32,
	.input = inputs,
};

static void routing(void)
{
	static const uint16_t flat_x[] = {1, 2, 3, 4}, expert_x[] = {1, 4, 0, 0, 2, 3, 3, 0};
	static const int32_t flat_token[] = {0, 1, 2, 0}, flat_rank[] = {0, 0, 0, 1};
	static const int64_t flat_topk[] = {-1, 0, -1, 1, 1, 1, 0, -1};
	static const int32_t expert_token[] = {0, 0, -1, -1, 1, 2, 2, -1};
	static const float expert_weights[] = {2, 7, 0, 0, 4, 5, 6, 0};
	static const int32_t offsets[] = {0, 4, 8};
	uint16_t x[8] = {0};
	int32_t token[8], rank[8], got_offsets[3];
	int64_t topk[8], num_recv;
	float weights[8];
	moeep_dispatch_args_t want = {
		.row_layout = MOEEP_ROWS_FLAT,
		.expert_alignment = 1,
		.topk_dtype = MOEEP_INT64,
		.capacity = 8,
		.recv_x = x,
		.recv_topk_idx = topk,
		.recv_src_token = token,
		.recv_src_rank = rank,
		.num_recv = &num_recv,
	};

	oracle_dispatch(&group, 0, &want);
	is_int(num_recv, 4, "flat rows");
	is_mem(x, flat_x, sizeof(flat_x), "flat: rows by source rank and token");
	is_mem(token, flat_token, sizeof(flat_token), "flat: their tokens");
	is_mem(rank, flat_rank, sizeof(flat_rank), "flat: their ranks");
	is_mem(topk, flat_topk, sizeof(flat_topk), "flat: local choices");

	want = (moeep_dispatch_args_t){
		.flags = MOEEP_DISPATCH_ZERO_PADDING,
		.row_layout = MOEEP_ROWS_EXPERT_MAJOR,
		.expert_alignment = 4,
		.capacity = 8,
		.recv_x = x,
		.recv_topk_weights = weights,
		.recv_src_token = token,
		.num_recv = &num_recv,
		.recv_expert_offsets = got_offsets,
	};
	oracle_dispatch(&group, 0, &want);
	is_int(num_recv, 8, "expert-major rows with padding");
	is_mem(x, expert_x, sizeof(expert_x), "expert-major: a row a choice, twice the same, too");
	is_mem(token, expert_token, sizeof(expert_token), "expert-major: tokens, -1 in padding");
	is_mem(weights, expert_weights, sizeof(expert_weights), "expert-major: weights");
	is_mem(got_offsets, offsets, sizeof(offsets), "expert-major: offsets");
}

/* The order of a sum shows where a large number swallows a small one. */
static void sums(void)
{
	static const float big = 0x1p24f;
	struct oracle_expert_side side[2];
	float out[3] = {0}, bias[] = {1, -0.0f, 3};
	moeep_combine_args_t want = {.dtype = MOEEP_FP32, .out = out, .bias = bias};
	float flat0[] = {1, 0x1p-30f, 7, 0}, flat1[] = {big, 0};

	for (int r = 0; r < 2; r++) {
		oracle_route(&group, r, MOEEP_ROWS_FLAT, 1, &side[r].rows);
		side[r].weights = NULL;
	}
	side[0].x = flat0;
	side[1].x = flat1;
	oracle_combine(&group, side, 0, MOEEP_ROWS_FLAT, 0, &want);
	ok(out[0] == big, "(1 + 2^24) + 1 is 2^24 in floats: each sum is rounded");
	ok(out[1] == 0x1p-30f && out[2] == 10, "a rank's only row, plus the bias");
	for (int r = 0; r < 2; r++) {
		oracle_rows_free(&side[r].rows);
	}

	/* Expert-major: token 2 has expert 1 twice, its rows are 2 and 3 of rank 0. */
	for (int r = 0; r < 2; r++) {
		oracle_route(&group, r, MOEEP_ROWS_EXPERT_MAJOR, 1, &side[r].rows);
	}
	side[0].x = (float[]){1, 1, 0.5f, 1.0f / 3, -2};
	side[1].x = flat1;
	want.flags = MOEEP_COMBINE_WEIGHTED;
	want.bias = NULL;
	oracle_combine(&group, side, 0, MOEEP_ROWS_EXPERT_MAJOR, MOEEP_BF16, &want);
	ok(out[0] == 2 + big, "each row times its weight");
	ok(out[1] == 2, "expert 1's row of token 1");
	ok(out[2] == loaded(MOEEP_BF16, stored(MOEEP_BF16, 1.0f / 3 * 5 + -2 * 6.0f)),
	   "the partial sum is rounded to its type");
	for (int r = 0; r < 2; r++) {
		oracle_rows_free(&side[r].rows);
	}
}

static void quantization(void)
{
	uint16_t x[4] = {0x3f80, 0xc000, 0x7fc0, 0x0000}; /* 1, -2, NaN, 0 */
	uint8_t q[4], scale[4];
	float value;

	oracle_quantize(MOEEP_QUANT_FP8, MOEEP_BF16, x, 4, q, scale);
	memcpy(&value, scale, sizeof(value));
	ok(value == 2 * (1.0f / 448), "the scale is the maximum over 448");
	ok(q[0] == 0x76 && q[1] == 0xfe && q[2] == 0x7f && q[3] == 0,
	   "1, -2, NaN, 0 become 224, -448, NaN, 0: %02x %02x %02x %02x", q[0], q[1], q[2], q[3]);
	oracle_quantize(MOEEP_QUANT_FP8_UE8M0, MOEEP_BF16, x, 4, q, scale);
	is_int(scale[0], 127 - 7, "2 / 448 rounds up to 2^-7");
	ok(loaded(MOEEP_FP8_E4M3, q[0]) == 128 && loaded(MOEEP_FP8_E4M3, q[1]) == -256,
	   "1 and -2 by 2^-7");
	x[0] = 0;
	x[1] = 0x8000;
	x[2] = 0;
	oracle_quantize(MOEEP_QUANT_FP8, MOEEP_BF16, x, 4, q, scale);
	memcpy(&value, scale, sizeof(value));
	ok(value == 1e-4f * (1.0f / 448) && q[0] == 0 && q[1] == 0x80, "zeros: the smallest scale");
	x[0] = 0x7f80;
	x[1] = 0x3f80;
	oracle_quantize(MOEEP_QUANT_FP8_UE8M0, MOEEP_BF16, x, 4, q, scale);
	ok(scale[0] == 255 && (q[0] & 0x7f) == 0x7f && q[1] == 0, "an infinity takes the scale");
}

int main(void)
{
	table(MOEEP_FP16, 65536, 0x7bff);
	table(MOEEP_BF16, 65536, 0x7f7f);
	table(MOEEP_FP8_E4M3, 256, 0x7e);
	anchors();
	other_ways();
	routing();
	sums();
	quantization();
	return tap_done();
}
