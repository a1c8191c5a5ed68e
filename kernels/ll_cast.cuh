/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_cast.cuh - rows of 16-bit elements cast to E4M3 with a scale for 128 elements, as moeep/ll.h
 * defines it.
 */
#ifndef MOEEP_KERNELS_LL_CAST_CUH
#define MOEEP_KERNELS_LL_CAST_CUH

#include "rows.cuh"

/* Lanes that have the elements of one scale, 16 each. */
#define SCALE_LANES 8

/* OCP E4M3 of a float, to nearest even, saturating, NaN with its sign. */
DEV uint32_t e4m3_of(float value)
{
	uint32_t bits = __float_as_uint(value);
	uint32_t sign = bits >> 24 & 0x80u;
	uint32_t magnitude = bits & 0x7fffffffu;
	uint32_t bounded = magnitude > 0x43e00000u ? 0x43e00000u : magnitude;
	uint32_t normal = ((bounded + 0x7ffffu + (bounded >> 20 & 1u)) >> 20) - (120u << 3);
	uint32_t small = __float_as_uint(__fadd_rn(__uint_as_float(bounded), 16384.0f)) -
			 __float_as_uint(16384.0f);
	uint32_t code = bounded < (121u << 23) ? small : normal;

	return sign | (magnitude > 0x7f800000u ? 0x7fu : code);
}

__device__ __noinline__ uint32_t e4m3_of_any(float a, float b, float c, float d)
{
	return e4m3_of(a) | e4m3_of(b) << 8 | e4m3_of(c) << 16 | e4m3_of(d) << 24;
}

DEV uint32_t e4m3_of_4(const float *v)
{
#if HAVE_E4M3
	uint32_t low = e4m3x2_of_floats(v[0], v[1]);
	uint32_t high = e4m3x2_of_floats(v[2], v[3]);

	if (!(isnan(v[0]) || isnan(v[1]) || isnan(v[2]) || isnan(v[3]))) {
		return low | high << 16;
	}
#endif
	return e4m3_of_any(v[0], v[1], v[2], v[3]);
}

/* Element i as a float; unlike the conversion it keeps a NaN's sign. */
template <int DTYPE> DEV float element_bits(const uint4 &v, int i)
{
	uint32_t half = i % 2 ? word_of(v, i / 2) >> 16 : word_of(v, i / 2) & 0xffffu;

	if (DTYPE == MOEEP_FP16 && (half & 0x7fffu) > 0x7c00u) {
		return __uint_as_float((half & 0x8000u) << 16 | 0x7fc00000u);
	}
	return i % 2 ? high_of<DTYPE>(word_of(v, i / 2)) : low_of<DTYPE>(word_of(v, i / 2));
}

/* 16 elements that are cast, and the scale that 8 lanes share. */
struct cast {
	uint4 v;
	float scale;
};

/* A warp casts 16 elements a lane. Not inlined: this is most of the kernel's code, and has to be fetched. */
template <int DTYPE> __device__ __noinline__ struct cast cast_chunk(uint4 low, uint4 high, int quant)
{
	struct cast cast;
	float v[16];
	uint32_t largest = 0;
	float most, multiplier;

#pragma unroll
	for (int i = 0; i < 16; i++) {
		uint32_t magnitude;

		v[i] = element_bits<DTYPE>(i < 8 ? low : high, i % 8);
		magnitude = __float_as_uint(v[i]) & 0x7fffffffu;
		/* NaNs, above infinity, count as zero. */
		magnitude = magnitude > 0x7f800000u ? 0 : magnitude;
		largest = magnitude > largest ? magnitude : largest;
	}
#pragma unroll
	for (int d = SCALE_LANES / 2; d > 0; d /= 2) {
		uint32_t other = __shfl_xor_sync(FULL, largest, d);

		largest = other > largest ? other : largest;
	}
	most = __uint_as_float(largest);
	most = most > 1e-4f ? most : 1e-4f;
	cast.scale = __fmul_rn(most, 1.0f / 448.0f);
	multiplier = __fdiv_rn(448.0f, most);
	if (quant != MOEEP_QUANT_FP8) {
		uint32_t bits = __float_as_uint(cast.scale);
		uint32_t exponent = (bits >> 23) + ((bits & 0x7fffffu) != 0 && bits < 0x7f800000u);

		cast.scale = __uint_as_float(exponent << 23);
		multiplier = __fdiv_rn(1.0f, cast.scale);
	}
#pragma unroll
	for (int i = 0; i < 16; i++) {
		/* A product of NaN would lose its sign. */
		v[i] = isnan(v[i]) ? v[i] : __fmul_rn(v[i], multiplier);
	}
	cast.v = make_uint4(e4m3_of_4(v), e4m3_of_4(v + 4), e4m3_of_4(v + 8), e4m3_of_4(v + 12));
	return cast;
}

#endif
