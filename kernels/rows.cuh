/* SPDX-License-Identifier: MIT */
/*
 * kernels/rows.cuh - elements of rows, sums in the order and with the roundings of moeep/ht.h and
 * moeep/ll.h, and the layouts of scales.
 */
#ifndef MOEEP_KERNELS_ROWS_CUH
#define MOEEP_KERNELS_ROWS_CUH

#include "device.cuh"

DEV float float_of_fp16(uint32_t half)
{
	float value;

	asm("{.reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(value) : "r"(half));
	return value;
}

DEV uint32_t fp16_of_float(float value)
{
	uint32_t half;

	asm("{.reg .b16 h; cvt.rn.f16.f32 h, %1; cvt.u32.u16 %0, h;}" : "=r"(half) : "f"(value));
	return half;
}

/* Two floats as two elements of a word, the first in the low half. */
template <int DTYPE> DEV uint32_t pack_pair(float low, float high)
{
	uint32_t word;

	if (DTYPE == MOEEP_BF16) {
		asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
		return word;
	}
	return fp16_of_float(low) | fp16_of_float(high) << 16;
}

template <int DTYPE> DEV float low_of(uint32_t word)
{
	return DTYPE == MOEEP_BF16 ? __uint_as_float(word << 16) : float_of_fp16(word & 0xffffu);
}

template <int DTYPE> DEV float high_of(uint32_t word)
{
	return DTYPE == MOEEP_BF16 ? __uint_as_float(word & 0xffff0000u) : float_of_fp16(word >> 16);
}

/*
 * What a lane reads of a row at once: N elements, 16 bytes, or 32 of FP32 rows that are summed into
 * rows of 16-bit elements.
 */
template <int DTYPE, int N> struct chunk {
	uint4 word[DTYPE == MOEEP_FP32 && N == 8 ? 2 : 1];

	__device__ __forceinline__ void load(const char *row, int64_t at)
	{
		const uint4 *from = (const uint4 *)(row + at * (DTYPE == MOEEP_FP32 ? 4 : 2));

		word[0] = from[0];
		if (DTYPE == MOEEP_FP32 && N == 8) {
			word[sizeof(word) / 16 - 1] = from[1];
		}
	}

	__device__ __forceinline__ float element(int i) const
	{
		const uint4 &v = word[DTYPE == MOEEP_FP32 && i >= 4 ? sizeof(word) / 16 - 1 : 0];
		int at = DTYPE == MOEEP_FP32 ? i % 4 : i / 2;
		uint32_t bits = at == 0 ? v.x : at == 1 ? v.y : at == 2 ? v.z : v.w;

		if (DTYPE == MOEEP_FP32) {
			return __uint_as_float(bits);
		}
		return i % 2 ? high_of<DTYPE>(bits) : low_of<DTYPE>(bits);
	}
};

template <int DTYPE, int N> DEV void store_chunk(char *row, int64_t at, const float *from)
{
	if (DTYPE == MOEEP_FP32) {
		float4 *to = (float4 *)(row + at * 4);

#pragma unroll
		for (int i = 0; i < N / 4; i++) {
			to[i] = make_float4(from[4 * i], from[4 * i + 1], from[4 * i + 2],
					    from[4 * i + 3]);
		}
	} else {
		*(uint4 *)(row + at * 2) = make_uint4(
			pack_pair<DTYPE>(from[0], from[1]), pack_pair<DTYPE>(from[2], from[3]),
			pack_pair<DTYPE>(from[4 % N], from[5 % N]),
			pack_pair<DTYPE>(from[6 % N], from[7 % N]));
	}
}

/* Elements that a lane sums at once. */
template <int FROM, int TO> struct sum_unit {
	static const int elements = FROM == MOEEP_FP32 && TO == MOEEP_FP32 ? 4 : 8;
};

/*
 * Up to two values a lane: of the 64 that a warp holds, the distinct ones that are not negative, in
 * ascending order: the first 32 in *a of lanes 0 to 31, the next in *b. Returns their number.
 */
DEV int warp_distinct(int *a, int *b, bool two)
{
	const unsigned none = 0x7fffffffu;
	unsigned x = *a < 0 ? none : (unsigned)*a;
	unsigned y = !two || *b < 0 ? none : (unsigned)*b;
	int count = 0;

	*a = -1;
	*b = -1;
	for (;;) {
		unsigned least = __reduce_min_sync(FULL, x < y ? x : y);

		if (least == none) {
			return count;
		}
		if (LANE == (count & 31)) {
			if (count < 32) {
				*a = (int)least;
			} else {
				*b = (int)least;
			}
		}
		x = x == least ? none : x;
		y = y == least ? none : y;
		count++;
	}
}

/* Entry `i` of such a pair of registers. */
DEV int warp_entry(int a, int b, int i)
{
	return __shfl_sync(FULL, i < 32 ? a : b, i & 31);
}

DEV const char *warp_pointer(const char *p, int lane)
{
	return (const char *)(uintptr_t)__shfl_sync(FULL, (unsigned long long)(uintptr_t)p, lane);
}

/* Where scale s of a row is, in bytes; as scale_at() of lib/host/scales.c. */
DEV int64_t scale_at(const struct moeep_dev_scales &scales, int64_t row, int s)
{
	int64_t unit_bytes = scales.dtype == MOEEP_UE8M0 ? 1 : 4;

	if (scales.layout == MOEEP_SCALES_ROW_MAJOR) {
		return (row * scales.stride + s) * unit_bytes;
	}
	if (scales.dtype == MOEEP_UE8M0) {
		return (s / 4 * scales.stride + row) * 4 + s % 4;
	}
	return (s * scales.stride + row) * unit_bytes;
}

/* A warp moves the scales of a row; dense is aligned to 16 bytes, NULL writes zeros. */
DEV void warp_write_scales(const struct moeep_dev_scales &scales, int64_t row, const char *dense)
{
	int count = scales.count;

	if (scales.dtype == MOEEP_UE8M0) {
		/* Unused bytes of a column's last word are zero. */
		if (scales.layout == MOEEP_SCALES_COLUMN_MAJOR) {
			count = (count + 3) / 4 * 4;
		}
		for (int s = LANE; s < count; s += 32) {
			((char *)scales.base)[scale_at(scales, row, s)] =
				dense && s < scales.count ? dense[s] : (char)0;
		}
		return;
	}
	for (int s = LANE; s < count; s += 32) {
		*(uint32_t *)((char *)scales.base + scale_at(scales, row, s)) =
			dense ? ((const uint32_t *)dense)[s] : 0u;
	}
}

DEV void warp_read_scales(const struct moeep_dev_scales &scales, int64_t row, char *dense)
{
	for (int s = LANE; s < scales.count; s += 32) {
		const char *from = (const char *)scales.base + scale_at(scales, row, s);

		if (scales.dtype == MOEEP_UE8M0) {
			dense[s] = *from;
		} else {
			((uint32_t *)dense)[s] = *(const uint32_t *)from;
		}
	}
}

/*
 * Rows that are summed, in the order of their numbers: row i is known to lane i % 32, those from 32 on
 * in the second register.
 */
struct terms {
	const char *row[2];
	float weight[2];
	int count;
};

/*
 * A warp sums elements [first, last) of rows of dtype FROM, each multiplied by its weight if
 * WEIGHTED, and at last a row of dtype TO, bias, unless NULL; rounded to TO once. No row: bias, or
 * zeros. UNROLL loads of each row, and those of the next row, are under way at a time.
 */
template <int FROM, int TO, bool WEIGHTED, int UNROLL>
DEV void warp_sum(const struct terms &t, const char *bias, char *out, int64_t first, int64_t last)
{
	const int N = sum_unit<FROM, TO>::elements;

	for (int64_t base = first + LANE * N; __any_sync(FULL, base < last);
	     base += 32 * N * UNROLL) {
		float sum[UNROLL][N];
		struct chunk<FROM, N> now[UNROLL];

#pragma unroll
		for (int u = 0; u < UNROLL; u++) {
#pragma unroll
			for (int i = 0; i < N; i++) {
				sum[u][i] = 0.0f;
			}
		}
		if (t.count > 0) {
			const char *row = warp_pointer(t.row[0], 0);

#pragma unroll
			for (int u = 0; u < UNROLL; u++) {
				if (base + u * 32 * N < last) {
					now[u].load(row, base + u * 32 * N);
				}
			}
		}
		for (int k = 0; k < t.count; k++) {
			struct chunk<FROM, N> next[UNROLL];
			float weight = 1.0f;

			if (WEIGHTED) {
				weight = __shfl_sync(FULL, k < 32 ? t.weight[0] : t.weight[1],
						     k & 31);
			}
			if (k + 1 < t.count) {
				const char *row = warp_pointer(k + 1 < 32 ? t.row[0] : t.row[1],
							       (k + 1) & 31);

#pragma unroll
				for (int u = 0; u < UNROLL; u++) {
					if (base + u * 32 * N < last) {
						next[u].load(row, base + u * 32 * N);
					}
				}
			}
#pragma unroll
			for (int u = 0; u < UNROLL; u++) {
#pragma unroll
				for (int i = 0; i < N; i++) {
					float value = now[u].element(i);

					if (WEIGHTED) {
						value = __fmul_rn(value, weight);
					}
					/* The first as it is: to add it to zero would lose -0. */
					sum[u][i] = k == 0 ? value : __fadd_rn(sum[u][i], value);
				}
				now[u] = next[u];
			}
		}
#pragma unroll
		for (int u = 0; u < UNROLL; u++) {
			int64_t at = base + u * 32 * N;

			if (at >= last) {
				continue;
			}
			if (bias) {
				struct chunk<TO, N> b;

				b.load(bias, at);
#pragma unroll
				for (int i = 0; i < N; i++) {
					float value = b.element(i);

					sum[u][i] = t.count == 0 ? value
								 : __fadd_rn(sum[u][i], value);
				}
			}
			store_chunk<TO, N>(out, at, sum[u]);
		}
	}
}

/* Call f with the dtype as a constant. */
#define WITH_SUM_DTYPE(dtype, f, ...)                                                              \
	do {                                                                                       \
		switch (dtype) {                                                                   \
		case MOEEP_BF16:                                                                   \
			f<MOEEP_BF16>(__VA_ARGS__);                                                \
			break;                                                                     \
		case MOEEP_FP16:                                                                   \
			f<MOEEP_FP16>(__VA_ARGS__);                                                \
			break;                                                                     \
		default:                                                                           \
			f<MOEEP_FP32>(__VA_ARGS__);                                                \
		}                                                                                  \
	} while (0)

#endif
