/* SPDX-License-Identifier: MIT */
/*
 * host/rowmath.c - arithmetic and copies of rows, for one instruction set.
 *
 * Plain loops over blocks that stay in the first-level cache, for the compiler to vectorise; the
 * build defines MOEEP_ROWMATH as the name of the table that this object defines.
 */
#include "config.h"

#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <moeep/moeep.h>

#include "host/rowmath.h"

#define BLOCK 512
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

/* To nearest even; a NaN stays one. */
static inline uint32_t bf16_of(float value)
{
	uint32_t bits = bits_of(value);
	uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
	uint32_t nan = bits >> 16 | 0x40u;

	return (bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded;
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

static inline uint32_t fp16_of(float value)
{
	uint32_t bits = bits_of(value);
	uint32_t sign = bits >> 16 & 0x8000u;
	uint32_t magnitude = bits & 0x7fffffffu;
	uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
	/* The unit in the last place of 0.5 is the FP16 subnormals' unit: the addition rounds. */
	uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
	uint32_t half = magnitude < (113u << 23) ? small : normal;

	half = magnitude >= 0x477ff000u ? 0x7c00u : half; /* 65520 and more round to infinity */
	half = magnitude > 0x7f800000u ? (0x7e00u | (magnitude >> 13 & 0x3ffu)) : half;
	return sign | half;
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

static inline void round_block(float *values, int32_t dtype, int n)
{
	if (dtype == MOEEP_BF16) {
		for (int i = 0; i < n; i++) {
			values[i] = float_of(bf16_of(values[i]) << 16);
		}
	} else if (dtype == MOEEP_FP16) {
		for (int i = 0; i < n; i++) {
			values[i] = float_of_fp16(fp16_of(values[i]));
		}
	}
}

static void copy_stream(void *to, const void *from, size_t bytes)
{
#if defined(__AVX512F__)
	if (((uintptr_t)to & 63) == 0 && (bytes & 63) == 0) {
		for (size_t i = 0; i < bytes; i += 64) {
			_mm512_stream_si512((void *)((char *)to + i),
					    _mm512_loadu_si512((const char *)from + i));
		}
		return;
	}
#endif
#if defined(__AVX2__)
	if (((uintptr_t)to & 31) == 0 && (bytes & 31) == 0) {
		for (size_t i = 0; i < bytes; i += 32) {
			_mm256_stream_si256(
				(__m256i *)((char *)to + i),
				_mm256_loadu_si256((const __m256i *)((const char *)from + i)));
		}
		return;
	}
#endif
#if defined(__SSE2__)
	if (((uintptr_t)to & 15) == 0 && (bytes & 15) == 0) {
		for (size_t i = 0; i < bytes; i += 16) {
			_mm_stream_si128(
				(__m128i *)((char *)to + i),
				_mm_loadu_si128((const __m128i *)((const char *)from + i)));
		}
		return;
	}
#endif
	memcpy(to, from, bytes);
}

static inline void store_bytes(void *to, const void *from, size_t bytes, bool stream)
{
	if (stream) {
		copy_stream(to, from, bytes);
	} else {
		memcpy(to, from, bytes);
	}
}

static inline void store_block(void *to, const float *values, int32_t dtype, int64_t first, int n,
			       bool stream)
{
	_Alignas(64) uint16_t halves[BLOCK];

	if (dtype == MOEEP_BF16) {
		for (int i = 0; i < n; i++) {
			halves[i] = (uint16_t)bf16_of(values[i]);
		}
	} else if (dtype == MOEEP_FP16) {
		for (int i = 0; i < n; i++) {
			halves[i] = (uint16_t)fp16_of(values[i]);
		}
	} else {
		store_bytes((float *)to + first, values, (size_t)n * sizeof(float), stream);
		return;
	}
	store_bytes((uint16_t *)to + first, halves, (size_t)n * sizeof(uint16_t), stream);
}

/* One term into its group's sum. The first is taken as it is: adding it to zero would lose -0. */
static inline void add_term(float *restrict group, float *restrict scratch,
			    const struct moeep_term *term, bool first, int64_t at, int n)
{
	float *values = first ? group : scratch;

	load_block(values, term->row, term->dtype, at, n);
	if (term->weighted) {
		for (int i = 0; i < n; i++) {
			values[i] = values[i] * term->weight;
		}
	}
	if (!first) {
		for (int i = 0; i < n; i++) {
			group[i] = group[i] + scratch[i];
		}
	}
}

/*
 * Bring a block of a row closer while the block before is summed: with several rows taking turns,
 * and each only a few pages long, the processor's own prefetching gives up.
 */
__attribute__((always_inline)) /* else compilers drop it as a function without effect */
static inline void
prefetch_block(const struct moeep_term *term, int64_t at)
{
	size_t unit = term->dtype == MOEEP_FP32 ? 4 : 2;
	const char *block = (const char *)term->row + (size_t)at * unit;

	for (size_t i = 0; i < BLOCK * unit; i += 64) {
		__builtin_prefetch(block + i, 0, 1);
	}
}

static void sum_block(const struct moeep_sum *sum, int64_t at, int n, bool more)
{
	_Alignas(64) float total[BLOCK];
	_Alignas(64) float group[BLOCK];
	_Alignas(64) float scratch[BLOCK];
	bool first_group = true;
	bool first_term = true;

	if (sum->num_terms == 0) {
		memset(total, 0, sizeof(total));
	}
	for (int t = 0; t < sum->num_terms; t++) {
		const struct moeep_term *term = &sum->terms[t];
		float *into = first_group ? total : group;

		if (more) {
			prefetch_block(term, at + BLOCK);
		}
		add_term(into, scratch, term, first_term, at, n);
		first_term = term->group_end;
		if (!term->group_end) {
			continue;
		}
		round_block(into, sum->group_dtype, n);
		if (!first_group) {
			for (int i = 0; i < n; i++) {
				total[i] = total[i] + group[i];
			}
		}
		first_group = false;
	}
	if (sum->bias) {
		load_block(scratch, sum->bias, sum->out_dtype, at, n);
		if (sum->num_terms == 0) {
			memcpy(total, scratch, sizeof(total));
		} else {
			for (int i = 0; i < n; i++) {
				total[i] = total[i] + scratch[i];
			}
		}
	}
	store_block(sum->out, total, sum->out_dtype, at, n, sum->stream);
}

static void sum_rows(const struct moeep_sum *sum, int64_t hidden)
{
	int64_t at = 0;

	for (int t = 0; t < sum->num_terms; t++) {
		prefetch_block(&sum->terms[t], 0);
	}
	/* A constant length lets the compiler unroll without a remainder. */
	for (; at + BLOCK <= hidden; at += BLOCK) {
		sum_block(sum, at, BLOCK, at + BLOCK < hidden);
	}
	if (at < hidden) {
		sum_block(sum, at, (int)(hidden - at), false);
	}
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

#define NAME_TEXT_(name) #name
#define NAME_TEXT(name)	 NAME_TEXT_(name)
#define TABLE__(name)	 moeep_rowmath_##name
#define TABLE_(name)	 TABLE__(name)

extern const struct moeep_rowmath TABLE_(MOEEP_ROWMATH);
const struct moeep_rowmath TABLE_(MOEEP_ROWMATH) = {
	.name = NAME_TEXT(MOEEP_ROWMATH),
	.sum = sum_rows,
	.quantize = quantize,
	.copy_stream = copy_stream,
};
