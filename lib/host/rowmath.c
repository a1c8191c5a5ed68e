/* SPDX-License-Identifier: MIT */
/*
 * host/rowmath.c - casts and copies of rows, for one instruction set; its table of functions.
 *
 * Plain loops over blocks that stay in the first-level cache, for the compiler to vectorise.
 */
#include "config.h"

#include <string.h>
#include "host/rowmath.h"
#include "host/rowmath_vector.h"

#define GROUP 128 /* elements of a scale */

static inline uint32_t bits_of(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static inline float float_of(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* All in 32 bits, so that a loop of it needs one width of vectors. */
static inline float float_of_fp16(uint32_t half)
{
	uint32_t shifted = (half & 0x7fffu) << 13;
	/* 2^112 moves the exponent's bias; exact, for subnormals too. */
	uint32_t finite = bits_of(float_of(shifted) * 0x1p112f);
	uint32_t special = shifted | 0x7f800000u;

	return float_of((shifted >= 0x0f800000u ? special : finite) | (half & 0x8000u) << 16);
}

/* OCP OFP8 E4M3: bias 7, 3 bits of mantissa, largest 448, saturating, to nearest even. */
static inline uint32_t e4m3_of(float value)
{
	uint32_t bits = bits_of(value);
	uint32_t sign = bits >> 24 & 0x80u;
	uint32_t magnitude = bits & 0x7fffffffu;
	uint32_t bounded = magnitude > 0x43e00000u ? 0x43e00000u : magnitude;
	uint32_t normal = ((bounded + 0x7ffffu + (bounded >> 20 & 1u)) >> 20) - (120u << 3);
	/* Subnormals count 2^-9, the unit in the last place of 2^14. */
	uint32_t small = bits_of(float_of(bounded) + 0x1p14f) - bits_of(0x1p14f);
	uint32_t code = bounded < (121u << 23) ? small : normal;

	code = magnitude > 0x7f800000u ? 0x7fu : code;
	return sign | code;
}

static inline void load_block(float *restrict to, const void *from, int32_t dtype, int64_t first,
			      int n)
{
	if (dtype == MOEEP_BF16) {
		const uint16_t *row = (const uint16_t *)from + first;

		for (int i = 0; i < n; i++) {
			to[i] = float_of((uint32_t)row[i] << 16);
		}
	} else if (dtype == MOEEP_FP16) {
		const uint16_t *row = (const uint16_t *)from + first;

		for (int i = 0; i < n; i++) {
			to[i] = float_of_fp16(row[i]);
		}
	} else {
		memcpy(to, (const float *)from + first, (size_t)n * sizeof(float));
	}
}

static void copy_stream(void *to_row, const void *from_row, size_t bytes)
{
	char *to = to_row;
	const char *from = from_row;
	/* Streaming stores want whole vectors. */
	size_t at = -(uintptr_t)to % VECTOR_BYTES;

	at = at < bytes ? at : bytes;
	memcpy(to, from, at);
	for (; at + VECTOR_BYTES <= bytes; at += VECTOR_BYTES) {
		store_words(to + at, load_words(from + at), true);
	}
	memcpy(to + at, from + at, bytes - at);
}

/* The power of two not below `value`, a positive float; infinity stays. */
static inline uint32_t pow2_exponent(float value)
{
	uint32_t bits = bits_of(value);

	return (bits >> 23) + ((bits & 0x7fffffu) != 0 && bits < 0x7f800000u);
}

/* Of n magnitudes: they order as integers. NaNs, above infinity, count as zero. */
static inline int32_t largest_magnitude(const float *values, int n)
{
	_Alignas(64) int32_t magnitudes[GROUP];
	int32_t largest = 0;

	for (int i = 0; i < n; i++) {
		int32_t magnitude = (int32_t)(bits_of(values[i]) & 0x7fffffffu);

		magnitudes[i] = magnitude > 0x7f800000 ? 0 : magnitude;
	}
	for (int i = 0; i < n; i++) {
		largest = magnitudes[i] > largest ? magnitudes[i] : largest;
	}
	return largest;
}

static inline void quantize_group(const float *values, int n, int32_t quant, uint8_t *restrict q,
				  void *scales, int64_t group)
{
	int32_t magnitude = largest_magnitude(values, n);
	float largest = float_of((uint32_t)magnitude);
	float scale;
	float multiplier;

	largest = largest > 1e-4f ? largest : 1e-4f;
	scale = largest * (1.0f / 448.0f);
	multiplier = 448.0f / largest;
	if (quant != MOEEP_QUANT_FP8) {
		uint32_t exponent = pow2_exponent(scale);

		scale = float_of(exponent << 23);
		multiplier = 1.0f / scale;
		if (quant == MOEEP_QUANT_FP8_UE8M0) {
			((uint8_t *)scales)[group] = (uint8_t)exponent;
		}
	}
	if (quant != MOEEP_QUANT_FP8_UE8M0) {
		((float *)scales)[group] = scale;
	}
	for (int i = 0; i < n; i++) {
		q[i] = (uint8_t)e4m3_of(values[i] * multiplier);
	}
}

static void quantize(const void *row, int32_t dtype, int64_t hidden, int32_t quant, uint8_t *q,
		     void *scales)
{
	_Alignas(64) float values[GROUP];

	for (int64_t at = 0; at < hidden; at += GROUP) {
		int n = hidden - at < GROUP ? (int)(hidden - at) : GROUP;

		if (n == GROUP) {
			load_block(values, row, dtype, at, GROUP);
			quantize_group(values, GROUP, quant, q + at, scales, at / GROUP);
		} else {
			load_block(values, row, dtype, at, n);
			quantize_group(values, n, quant, q + at, scales, at / GROUP);
		}
	}
}

extern const struct moeep_rowmath MOEEP_ROWMATH_NAME(moeep_rowmath);
const struct moeep_rowmath MOEEP_ROWMATH_NAME(moeep_rowmath) = {
	.name = MOEEP_ROWMATH_TEXT,
	.sum = MOEEP_ROWMATH_NAME(moeep_rowmath_sum),
	.quantize = quantize,
	.copy_stream = copy_stream,
};
