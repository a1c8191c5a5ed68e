/* SPDX-License-Identifier: MIT */
/*
 * Row arithmetic gives the same bits for every instruction set it is compiled for, and its FP16
 * conversions are right for every value. Values against the naive oracle are t/op's business.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <moeep/moeep.h>

#include "host/rowmath.h"
#include "t/tap.h"

/* No multiple of a block or of a vector, to run the remainders too. */
#define HIDDEN 1384
#define TERMS  5
#define ROUNDS 40

static uint64_t state;

static uint32_t next_random(void)
{
	state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(state >> 32);
}

/* All bit patterns are equally likely: many NaNs, infinities and subnormals among them. */
static void fill_random(void *to, size_t bytes)
{
	for (size_t i = 0; i < bytes / 4; i++) {
		uint32_t word = next_random();

		memcpy((char *)to + i * 4, &word, 4);
	}
}

/* Values whose products and sums mostly stay finite, so that rounding is seen. */
static void fill_finite(void *to, size_t bytes, int32_t dtype)
{
	for (size_t i = 0; i < bytes / moeep_dtype_size(dtype); i++) {
		uint32_t r = next_random();
		uint16_t half =
			(uint16_t)((r & 0x80ffu) | (dtype == MOEEP_BF16 ? 0x3f00u : 0x3800u));
		uint32_t word = (r & 0x80ffffffu) | 0x3f000000u;

		memcpy((char *)to + i * moeep_dtype_size(dtype),
		       dtype == MOEEP_FP32 ? (void *)&word : (void *)&half,
		       moeep_dtype_size(dtype));
	}
}

static void fill_input(void *to, int32_t dtype, int round)
{
	if (round % 2 == 0) {
		fill_random(to, HIDDEN * moeep_dtype_size(dtype));
	} else {
		fill_finite(to, HIDDEN * moeep_dtype_size(dtype), dtype);
	}
}

static int is_nan(const void *value, int32_t dtype)
{
	uint32_t word = 0;

	memcpy(&word, value, moeep_dtype_size(dtype));
	switch (dtype) {
	case MOEEP_BF16:
		return (word & 0x7fffu) > 0x7f80u;
	case MOEEP_FP16:
		return (word & 0x7fffu) > 0x7c00u;
	default:
		return (word & 0x7fffffffu) > 0x7f800000u;
	}
}

/* Computed NaNs are a class. Returns the first element that differs, or -1. */
static int difference(const void *a, const void *b, int32_t dtype)
{
	size_t size = moeep_dtype_size(dtype);

	for (int i = 0; i < HIDDEN; i++) {
		const char *x = (const char *)a + (size_t)i * size;
		const char *y = (const char *)b + (size_t)i * size;

		if (memcmp(x, y, size) != 0 && !(is_nan(x, dtype) && is_nan(y, dtype))) {
			return i;
		}
	}
	return -1;
}

static void test_sums(const struct moeep_rowmath *math, const struct moeep_rowmath *generic)
{
	static const int32_t dtypes[] = {MOEEP_BF16, MOEEP_FP16, MOEEP_FP32};
	static float rows[TERMS][HIDDEN];
	static float bias[HIDDEN];
	/* One element further than aligned, for the paths that cannot stream. */
	_Alignas(64) static float out[2][HIDDEN + 1];
	int wrong = 0;

	for (int round = 0; round < ROUNDS; round++) {
		int32_t in = dtypes[next_random() % 3];
		int32_t to = dtypes[next_random() % 3];
		struct moeep_term terms[TERMS];
		struct moeep_sum sum = {.terms = terms,
					.num_terms = (int)(next_random() % (TERMS + 1)),
					.group_dtype = next_random() % 2 ? in : 0,
					.bias = next_random() % 2 ? bias : NULL,
					.out_dtype = to,
					.stream = next_random() % 2};
		int offset = (int)(next_random() % 2);
		int at;

		fill_input(bias, to, round);
		for (int i = 0; i < TERMS; i++) {
			fill_input(rows[i], in, round);
			terms[i] = (struct moeep_term){
				.row = rows[i],
				.weight = (float)(next_random() % 1000) / 999.0f,
				.dtype = in,
				.weighted = next_random() % 2,
				.group_end = i == sum.num_terms - 1 || next_random() % 2};
		}
		sum.out = out[0] + offset;
		generic->sum(&sum, HIDDEN);
		sum.out = out[1] + offset;
		math->sum(&sum, HIDDEN);
		moeep_rowmath_fence();
		at = difference(out[0] + offset, out[1] + offset, to);
		if (at >= 0) {
			tap_diag("round %d: %s to %s, %d terms, element %d differs", round,
				 moeep_dtype_name(in), moeep_dtype_name(to), sum.num_terms, at);
			wrong++;
		}
	}
	ok(wrong == 0, "%s: %d sums as generic", math->name, ROUNDS);
}

static void test_casts(const struct moeep_rowmath *math, const struct moeep_rowmath *generic)
{
	static uint16_t row[HIDDEN];
	static uint8_t q[2][HIDDEN];
	static float scales[2][(HIDDEN + 127) / 128];
	int wrong = 0;

	for (int round = 0; round < ROUNDS; round++) {
		int32_t dtype = round & 2 ? MOEEP_BF16 : MOEEP_FP16;
		int32_t quant = MOEEP_QUANT_FP8 + round % 3;

		memset(scales, 0, sizeof(scales));
		fill_input(row, dtype, round);
		generic->quantize(row, dtype, HIDDEN, quant, q[0], scales[0]);
		math->quantize(row, dtype, HIDDEN, quant, q[1], scales[1]);
		if (memcmp(q[0], q[1], sizeof(q[0])) != 0 ||
		    memcmp(scales[0], scales[1], sizeof(scales[0])) != 0) {
			tap_diag("round %d: cast %d of %s differs", round, quant,
				 moeep_dtype_name(dtype));
			wrong++;
		}
	}
	ok(wrong == 0, "%s: %d casts as generic", math->name, ROUNDS);
}

/* FP16 to FP32 and back is the identity but for NaNs, for all 65536 values. */
static void test_fp16(const struct moeep_rowmath *math)
{
	uint16_t *all = malloc(65536 * sizeof(*all));
	uint16_t *back = malloc(65536 * sizeof(*back));
	float *wide = malloc(65536 * sizeof(*wide));
	struct moeep_term term = {.row = all, .dtype = MOEEP_FP16, .group_end = true};
	struct moeep_sum sum = {
		.terms = &term, .num_terms = 1, .out = wide, .out_dtype = MOEEP_FP32};
	int wrong = 0;

	for (int i = 0; i < 65536; i++) {
		all[i] = (uint16_t)i;
	}
	math->sum(&sum, 65536);
	term = (struct moeep_term){.row = wide, .dtype = MOEEP_FP32, .group_end = true};
	sum.out = back;
	sum.out_dtype = MOEEP_FP16;
	math->sum(&sum, 65536);
	for (int i = 0; i < 65536; i++) {
		wrong += back[i] != all[i] &&
			 !(is_nan(&all[i], MOEEP_FP16) && is_nan(&back[i], MOEEP_FP16));
	}
	ok(wrong == 0, "%s: FP16 to FP32 and back", math->name);
	ok(wide[1] == 0x1p-24f && wide[0x3c00] == 1.0f && wide[0x7bff] == 65504.0f,
	   "%s: values of FP16", math->name);
	free(all);
	free(back);
	free(wide);
}

int main(void)
{
	static const char *const names[] = {"generic", "avx2", "avx512"};
	const struct moeep_rowmath *generic = moeep_rowmath_find("generic");
	const char *seed = getenv("MOEEP_TEST_SEED");

	state = seed ? strtoull(seed, NULL, 0) : 20;
	tap_diag("seed %llu", (unsigned long long)state);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const struct moeep_rowmath *math = moeep_rowmath_find(names[i]);

		if (!math) {
			tap_skip(1, "%s is not built, or not of this processor", names[i]);
			continue;
		}
		test_fp16(math);
		test_sums(math, generic);
		test_casts(math, generic);
	}
	ok(moeep_rowmath_find("mmx") == NULL, "an unknown name");
	return tap_done();
}
