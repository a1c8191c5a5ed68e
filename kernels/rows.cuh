/* SPDX-License-Identifier: MIT */
/*
 * kernels/rows.cuh - elements of rows, sums in the order and with the roundings of moeep/ht.h and
 * moeep/ll.h, and the layouts of scales.
 */
#ifndef MOEEP_KERNELS_ROWS_CUH
#define MOEEP_KERNELS_ROWS_CUH

#include "device.cuh"

/* Two floats as two elements of a word, the first in the low half. */
template <int DTYPE> DEV uint32_t pack_pair(float low, float high)
{
	if (DTYPE == MOEEP_BF16) {
		return bf16x2_of_floats(low, high);
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

/* 8 elements of a row as they lie in memory; the second word is for FP32. */
struct chunk {
	uint4 word[2];
};

/* What a lane reads of a row at once. FP32 rows may end after 4 elements. */
DEV void load_chunk(struct chunk *c, const char *row, int dtype, int64_t at, int64_t last)
{
	if (dtype == MOEEP_FP32) {
		c->word[0] = *(const uint4 *)(row + at * 4);
		if (at + 4 < last) {
			c->word[1] = *(const uint4 *)(row + at * 4 + 16);
		}
	} else {
		c->word[0] = *(const uint4 *)(row + at * 2);
	}
}

DEV uint32_t word_of(const uint4 &v, int i)
{
	return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

DEV void floats_of(const struct chunk &c, int dtype, float *values)
{
	if (dtype == MOEEP_BF16) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			values[2 * i] = low_of<MOEEP_BF16>(word_of(c.word[0], i));
			values[2 * i + 1] = high_of<MOEEP_BF16>(word_of(c.word[0], i));
		}
	} else if (dtype == MOEEP_FP16) {
#pragma unroll
		for (int i = 0; i < 4; i++) {
			values[2 * i] = low_of<MOEEP_FP16>(word_of(c.word[0], i));
			values[2 * i + 1] = high_of<MOEEP_FP16>(word_of(c.word[0], i));
		}
	} else {
#pragma unroll
		for (int i = 0; i < 8; i++) {
			values[i] = __uint_as_float(word_of(c.word[i / 4], i % 4));
		}
	}
}

DEV void store_floats(char *row, int dtype, int64_t at, int64_t last, const float *values)
{
	if (dtype == MOEEP_FP32) {
		float4 *to = (float4 *)(row + at * 4);

		to[0] = make_float4(values[0], values[1], values[2], values[3]);
		if (at + 4 < last) {
			to[1] = make_float4(values[4], values[5], values[6], values[7]);
		}
	} else if (dtype == MOEEP_BF16) {
		*(uint4 *)(row + at * 2) = make_uint4(pack_pair<MOEEP_BF16>(values[0], values[1]),
						      pack_pair<MOEEP_BF16>(values[2], values[3]),
						      pack_pair<MOEEP_BF16>(values[4], values[5]),
						      pack_pair<MOEEP_BF16>(values[6], values[7]));
	} else {
		*(uint4 *)(row + at * 2) = make_uint4(pack_pair<MOEEP_FP16>(values[0], values[1]),
						      pack_pair<MOEEP_FP16>(values[2], values[3]),
						      pack_pair<MOEEP_FP16>(values[4], values[5]),
						      pack_pair<MOEEP_FP16>(values[6], values[7]));
	}
}

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

/* All lanes know the row; the one whose turn it is keeps it. */
DEV void add_term(struct terms *t, const char *row, float weight)
{
	if (LANE == (t->count & 31)) {
		if (t->count < 32) {
			t->row[0] = row;
			t->weight[0] = weight;
		} else {
			t->row[1] = row;
			t->weight[1] = weight;
		}
	}
	t->count++;
}

DEV void add_values(float *total, const float *values)
{
#pragma unroll
	for (int i = 0; i < 8; i++) {
		total[i] = __fadd_rn(total[i], values[i]);
	}
}

/* How rows are summed. */
struct sum {
	int from; /* dtype of the rows */
	int to;	  /* of the sum and of the bias */
	bool weighted;
	const char *bias; /* a row, added last; may be NULL */
	char *out;
	int64_t first; /* elements, a multiple of 8 */
	int64_t last;
};

template <int UNROLL>
DEV void load_row(struct chunk *to, const struct sum &s, const char *row, int64_t base)
{
#pragma unroll
	for (int u = 0; u < UNROLL; u++) {
		if (base + u * 256 < s.last) {
			load_chunk(&to[u], row, s.from, base + u * 256, s.last);
		}
	}
}

/*
 * A warp sums elements of rows, each multiplied by its weight if `weighted`, each product and sum
 * rounded, and rounds the result to its dtype once. No row: bias, or zeros. UNROLL loads of each row,
 * and those of the next row, are under way at a time.
 */
template <int UNROLL> DEV void warp_sum(const struct terms &t, const struct sum &s)
{
#pragma unroll 1
	for (int64_t base = s.first + LANE * 8; __any_sync(FULL, base < s.last);
	     base += 256 * UNROLL) {
		float total[UNROLL][8];
		struct chunk now[UNROLL];

#pragma unroll
		for (int i = 0; i < UNROLL * 8; i++) {
			total[i / 8][i % 8] = 0.0f;
		}
		if (t.count > 0) {
			load_row<UNROLL>(now, s, warp_pointer(t.row[0], 0), base);
		}
#pragma unroll 1
		for (int k = 0; k < t.count; k++) {
			struct chunk next[UNROLL];
			float weight = 1.0f;

			if (s.weighted) {
				weight = __shfl_sync(FULL, k < 32 ? t.weight[0] : t.weight[1],
						     k & 31);
			}
			if (k + 1 < t.count) {
				load_row<UNROLL>(next, s,
						 warp_pointer(k + 1 < 32 ? t.row[0] : t.row[1],
							      (k + 1) & 31),
						 base);
			}
#pragma unroll
			for (int u = 0; u < UNROLL; u++) {
				float values[8];

				floats_of(now[u], s.from, values);
#pragma unroll
				for (int i = 0; i < 8; i++) {
					/* A factor of 1 changes no value but a NaN's bits. */
					values[i] = __fmul_rn(values[i], weight);
					/* The first as it is: to add it to zero would lose -0. */
					total[u][i] = k == 0 ? values[i]
							     : __fadd_rn(total[u][i], values[i]);
				}
				now[u] = next[u];
			}
		}
#pragma unroll
		for (int u = 0; u < UNROLL; u++) {
			int64_t at = base + u * 256;

			if (at < s.last && s.bias) {
				struct chunk bias;
				float values[8];

				load_chunk(&bias, s.bias, s.to, at, s.last);
				floats_of(bias, s.to, values);
#pragma unroll
				for (int i = 0; i < 8; i++) {
					total[u][i] = t.count == 0
							      ? values[i]
							      : __fadd_rn(total[u][i], values[i]);
				}
			}
			if (at < s.last) {
				store_floats(s.out, s.to, at, s.last, total[u]);
			}
		}
	}
}

/*
 * The same for one row, b_row is NULL then, or two of one dtype of 16 bits and nothing else, the usual cases
 * between two ranks. All loads of ROUNDS rounds are under way before the first is used.
 */
#define ROUNDS 7
template <int DTYPE>
DEV void warp_sum_few(const char *a_row, const char *b_row, char *out, int first, int last)
{
#pragma unroll 1
	for (int base = first + LANE * 8; base < last; base += 256 * ROUNDS) {
		uint4 a[ROUNDS];
		uint4 b[ROUNDS];

#pragma unroll
		for (int i = 0; i < ROUNDS; i++) {
			if (base + i * 256 < last) {
				a[i] = load_once16(a_row + (base + i * 256) * 2);
			}
			if (b_row && base + i * 256 < last) {
				b[i] = load_once16(b_row + (base + i * 256) * 2);
			}
		}
#pragma unroll
		for (int i = 0; i < ROUNDS; i++) {
			float total[8];
			float values[8];

			if (base + i * 256 < last) {
				floats_of({{a[i]}}, DTYPE, total);
				if (b_row) {
					floats_of({{b[i]}}, DTYPE, values);
					add_values(total, values);
				}
				store_floats(out, DTYPE, base + i * 256, last, total);
			}
		}
	}
}

#endif
