/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_elements.cuh - elements of the rows that a low-latency combine reads, sums and writes. A chunk of a
 * partial row, 16 bytes, has E elements: 8, or 4 if it is of FP32. The row that they are of may have 16-bit elements
 * nevertheless.
 */
#ifndef MOEEP_KERNELS_LL_ELEMENTS_CUH
#define MOEEP_KERNELS_LL_ELEMENTS_CUH

#include "ll_words.cuh"
#include "rows.cuh"

/* E elements at `at` of a row that has them in 16 bytes, or in 8 while the partial row has FP32. */
template <int E> DEV uint4 load_elements(const char *row, int dtype, int64_t at)
{
	uint2 half;

	if (E == 8 || dtype == MOEEP_FP32) {
		return *(const uint4 *)(row + at * (16 / E));
	}
	half = *(const uint2 *)(row + at * 2);
	return make_uint4(half.x, half.y, 0, 0);
}

template <int E> DEV void floats_of_elements(const uint4 &v, int dtype, float *values)
{
	float all[8];

	if (E == 4 && dtype == MOEEP_FP32) {
#pragma unroll
		for (int i = 0; i < E; i++) {
			values[i] = __uint_as_float(word_of(v, i));
		}
		return;
	}
	floats_of({{v}}, dtype, all);
#pragma unroll
	for (int i = 0; i < E; i++) {
		values[i] = all[i];
	}
}

/* One rounding; 8 elements of 16 bits, or 4 of 16 or 32 bits with 8 zero bytes behind the former. */
template <int E> DEV uint4 elements_of_floats(const float *v, int dtype)
{
	if (E == 4 && dtype == MOEEP_FP32) {
		return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]),
				  __float_as_uint(v[2]), __float_as_uint(v[3]));
	}
	if (dtype == MOEEP_BF16) {
		return make_uint4(pack_pair<MOEEP_BF16>(v[0], v[1]), pack_pair<MOEEP_BF16>(v[2], v[3]),
				  E == 8 ? pack_pair<MOEEP_BF16>(v[E - 4], v[E - 3]) : 0,
				  E == 8 ? pack_pair<MOEEP_BF16>(v[E - 2], v[E - 1]) : 0);
	}
	return make_uint4(pack_pair<MOEEP_FP16>(v[0], v[1]), pack_pair<MOEEP_FP16>(v[2], v[3]),
			  E == 8 ? pack_pair<MOEEP_FP16>(v[E - 4], v[E - 3]) : 0,
			  E == 8 ? pack_pair<MOEEP_FP16>(v[E - 2], v[E - 1]) : 0);
}

template <int E> DEV void store_elements(char *row, int dtype, int64_t at, const uint4 &v)
{
	if (E == 8 || dtype == MOEEP_FP32) {
		*(uint4 *)(row + at * (16 / E)) = v;
	} else {
		*(uint2 *)(row + at * 2) = make_uint2(v.x, v.y);
	}
}

/* The next term of a sum, the first as it is: to add it to zero would lose -0. */
template <int E> DEV void add_elements(float *total, const uint4 &v, int dtype, float weight, bool first)
{
	float values[E];

	floats_of_elements<E>(v, dtype, values);
#pragma unroll
	for (int i = 0; i < E; i++) {
		/* A factor of 1 changes no value but a NaN's bits. */
		values[i] = __fmul_rn(values[i], weight);
		total[i] = first ? values[i] : __fadd_rn(total[i], values[i]);
	}
}

/* This lane's chunks of a row of dtype; E elements are a chunk of the partial row. */
template <int E>
DEV void load_chunks(const char *row, int dtype, int parcel, int chunks, uint4 *v)
{
#pragma unroll
	for (int u = 0; u < CHUNKS; u++) {
		if (u < chunks) {
			v[u] = load_elements<E>(row, dtype, (first_chunk(parcel) + u * 32) * E);
		}
	}
}

#endif
