/* SPDX-License-Identifier: MIT */
/*
 * host/rowmath_vector.h - vectors of the instruction set that a file is compiled for, and the
 * conversions of BF16 and FP16 in them.
 *
 * Elements are taken by pairs of vectors. A word of 16-bit elements is split into the even ones and
 * the odd ones with a shift and a mask, which needs no shuffle; a sum does not ask for their order.
 */
#ifndef MOEEP_HOST_ROWMATH_VECTOR_H
#define MOEEP_HOST_ROWMATH_VECTOR_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <moeep/moeep.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define LANES (VECTOR_BYTES / 4)
#define PAIR  (2 * LANES) /* elements */

typedef float moeep_vf __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t moeep_vu __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t moeep_vi __attribute__((vector_size(VECTOR_BYTES)));

struct moeep_pair {
	moeep_vf even;
	moeep_vf odd;
};

#define MOEEP_INLINE static inline __attribute__((always_inline))

/* The lanes of yes where mask is all ones, of no where it is zero. */
MOEEP_INLINE moeep_vu select_lanes(moeep_vi mask, moeep_vu yes, moeep_vu no)
{
	return ((moeep_vu)mask & yes) | (~(moeep_vu)mask & no);
}

MOEEP_INLINE moeep_vu magnitude_of(moeep_vu bits)
{
	return bits & 0x7fffffffu;
}

/* Magnitudes order as integers do; signed comparisons are what processors have. */
MOEEP_INLINE moeep_vi above(moeep_vu magnitude, int32_t limit)
{
	return (moeep_vi)magnitude > limit;
}

/*
 * To nearest even, in the upper half of each lane; the lower half is not cleared. A NaN stays one:
 * where NaNs may have bits in the lower half, which the carry could turn into something else, give
 * `any_nan`.
 */
MOEEP_INLINE moeep_vu bf16_round(moeep_vf values, bool any_nan)
{
	moeep_vu bits = (moeep_vu)values;
	moeep_vu rounded = bits + 0x7fffu + (bits >> 16 & 1u);

	return any_nan ? select_lanes(values != values, bits | 0x400000u, rounded) : rounded;
}

MOEEP_INLINE moeep_vf fp16_widen(moeep_vu halves)
{
	moeep_vu shifted = (halves & 0x7fffu) << 13;
	/* 2^112 moves the exponent's bias; exact, for subnormals too. */
	moeep_vu finite = (moeep_vu)((moeep_vf)shifted * 0x1p112f);
	moeep_vu special = shifted | 0x7f800000u;

	return (moeep_vf)(select_lanes(above(shifted, 0x0f7fffff), special, finite) |
			  (halves & 0x8000u) << 16);
}

/* To nearest even, in the lower half of each lane; the upper half is zero. */
MOEEP_INLINE moeep_vu fp16_round(moeep_vf values)
{
	moeep_vu bits = (moeep_vu)values;
	moeep_vu magnitude = magnitude_of(bits);
	moeep_vu normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
	/* The unit in the last place of 0.5 is the FP16 subnormals' unit: the addition rounds. */
	moeep_vu small = (moeep_vu)((moeep_vf)magnitude + 0.5f) - 0x3f000000u;
	moeep_vu zero = {0};
	moeep_vu half = select_lanes(above(magnitude, (113 << 23) - 1), normal, small);

	/* 65520 and more round to infinity */
	half = select_lanes(above(magnitude, 0x477fefff), zero + 0x7c00u, half);
	half = select_lanes(above(magnitude, 0x7f800000), 0x7e00u | (magnitude >> 13 & 0x3ffu),
			    half);
	return half | (bits >> 16 & 0x8000u);
}

MOEEP_INLINE moeep_vu load_words(const void *from)
{
	moeep_vu words;

	memcpy(&words, from, sizeof(words));
	return words;
}

/* PAIR elements. FP32 beside 16-bit rows (`split`) is put into the same order as they are. */
MOEEP_INLINE struct moeep_pair load_pair(const void *from, int32_t dtype, bool split)
{
	struct moeep_pair p;
	moeep_vu words = load_words(from);

	if (dtype == MOEEP_BF16) {
		p.even = (moeep_vf)(words << 16);
		p.odd = (moeep_vf)(words & 0xffff0000u);
	} else if (dtype == MOEEP_FP16) {
		p.even = fp16_widen(words & 0xffffu);
		p.odd = fp16_widen(words >> 16);
	} else if (!split) {
		p.even = (moeep_vf)words;
		p.odd = (moeep_vf)load_words((const char *)from + VECTOR_BYTES);
	} else {
		const float *values = from;

		for (int i = 0; i < LANES; i++) {
			p.even[i] = values[2 * i];
			p.odd[i] = values[2 * i + 1];
		}
	}
	return p;
}

/* Values as they would be after a round trip through a row of dtype. `any_nan`: see bf16_round().
 */
MOEEP_INLINE struct moeep_pair round_pair(struct moeep_pair p, int32_t dtype, bool any_nan)
{
	if (dtype == MOEEP_BF16) {
		p.even = (moeep_vf)(bf16_round(p.even, any_nan) & 0xffff0000u);
		p.odd = (moeep_vf)(bf16_round(p.odd, any_nan) & 0xffff0000u);
	} else if (dtype == MOEEP_FP16) {
		p.even = fp16_widen(fp16_round(p.even));
		p.odd = fp16_widen(fp16_round(p.odd));
	}
	return p;
}

/* `stream`, past the caches, needs an address that is a multiple of VECTOR_BYTES. */
MOEEP_INLINE void store_words(void *to, moeep_vu words, bool stream)
{
	if (!stream) {
		memcpy(to, &words, sizeof(words));
		return;
	}
#if defined(__AVX512F__)
	_mm512_stream_si512(to, (__m512i)words);
#elif defined(__AVX2__)
	_mm256_stream_si256(to, (__m256i)words);
#elif defined(__SSE2__)
	_mm_stream_si128(to, (__m128i)words);
#else
	memcpy(to, &words, sizeof(words));
#endif
}

/* `split` as in load_pair(), `any_nan` as in bf16_round(), `stream` as in store_words(). */
MOEEP_INLINE void store_pair(void *to, struct moeep_pair p, int32_t dtype, bool split, bool any_nan,
			     bool stream)
{
	if (dtype == MOEEP_BF16) {
		store_words(to,
			    bf16_round(p.even, any_nan) >> 16 |
				    (bf16_round(p.odd, any_nan) & 0xffff0000u),
			    stream);
	} else if (dtype == MOEEP_FP16) {
		store_words(to, fp16_round(p.even) | fp16_round(p.odd) << 16, stream);
	} else if (!split) {
		store_words(to, (moeep_vu)p.even, stream);
		store_words((char *)to + VECTOR_BYTES, (moeep_vu)p.odd, stream);
	} else {
		float *values = to;

		for (int i = 0; i < LANES; i++) {
			values[2 * i] = p.even[i];
			values[2 * i + 1] = p.odd[i];
		}
	}
}

#endif
