/* SPDX-License-Identifier: MIT */
/* tools/payload.c - rows that can be told apart, and the element formats that they are in. */
#include <config.h>

#include <math.h>
#include <string.h>

#include "payload.h"

#define GROUP 128 /* elements that share a scale */

static float half_to_float(uint16_t half)
{
	uint32_t sign = (uint32_t)(half & 0x8000) << 16;
	uint32_t rest = half & 0x7fff;
	/* The product is exact and makes normal numbers of halves that are not. */
	float scaled = bits_float(rest << 13) * 0x1p112f;

	return rest >= 0x7c00 ? bits_float(sign | 0x7f800000 | (rest & 0x3ff) << 13)
			      : bits_float(sign | float_bits(scaled));
}

static uint16_t float_to_half(float value)
{
	uint32_t bits = float_bits(value);
	uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;

	if (rest > 0x7f800000) {
		return (uint16_t)(sign | 0x7e00);
	}
	if (rest >= 0x477ff000) {
		return (uint16_t)(sign | 0x7c00);
	}
	if (rest < 0x38800000) {
		/* Below the smallest normal half: the sum's last bit is worth the last bit of one.
		 */
		return (uint16_t)(sign | (float_bits(bits_float(rest) + 0.5f) & 0x7ff));
	}
	rest += 0xfff + (rest >> 13 & 1);
	return (uint16_t)(sign | (rest - 0x38000000) >> 13);
}

static uint16_t float_to_bf16(float value)
{
	uint32_t bits = float_bits(value);

	if ((bits & 0x7fffffff) > 0x7f800000) {
		return (uint16_t)(bits >> 16 | 0x40);
	}
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static uint8_t float_to_e4m3(float value)
{
	uint32_t bits = float_bits(value);
	uint32_t sign = bits >> 24 & 0x80, rest = bits & 0x7fffffff;

	if (rest > 0x7f800000) {
		return (uint8_t)(sign | 0x7f);
	}
	if (rest < 0x3c800000) {
		/* Below 2^-6 the step is 2^-9; the sum is in [2^14, 2^14 + 2^-6]. */
		return (uint8_t)(sign | (float_bits(bits_float(rest) + 0x1p14f) & 0xf));
	}
	if (rest >= 0x43e80000) {
		return (uint8_t)(sign | 0x7e);
	}
	rest += 0x7ffff + (rest >> 20 & 1);
	rest = (rest - 0x3c000000) >> 20;
	return (uint8_t)(sign | (rest > 0x7e ? 0x7e : rest));
}

void payload_to_float(const void *row, int dtype, int64_t hidden, float *out)
{
	const uint16_t *half = row;

	if (dtype == MOEEP_FP32) {
		memcpy(out, row, (size_t)hidden * sizeof(*out));
		return;
	}
	for (int64_t h = 0; h < hidden; h++) {
		out[h] = dtype == MOEEP_BF16 ? bits_float((uint32_t)half[h] << 16)
					     : half_to_float(half[h]);
	}
}

void payload_from_float(const float *in, int dtype, int64_t hidden, void *row)
{
	uint16_t *half = row;

	if (dtype == MOEEP_FP32) {
		memcpy(row, in, (size_t)hidden * sizeof(*in));
		return;
	}
	for (int64_t h = 0; h < hidden; h++) {
		half[h] = dtype == MOEEP_BF16 ? float_to_bf16(in[h]) : float_to_half(in[h]);
	}
}

/* Kinds of rows; no two rows of a run have the same seed. */
enum payload { PAYLOAD_DISPATCH, PAYLOAD_SCALES, PAYLOAD_RANK, PAYLOAD_CHOICE, PAYLOAD_UNUSED };

static uint64_t row_seed(const struct perf_options *o, enum payload kind, int which, int source,
			 int64_t token)
{
	uint64_t place = (uint64_t)kind << 56 | (uint64_t)which << 32 | (uint64_t)source;

	return routing_mix(routing_mix(o->seed, place), (uint64_t)token);
}

/*
 * Finite values of both signs, 2^-6 to 2^2 in size. `spread` divides each group of 128 by a power
 * of two of its own, so that scales differ; down to where the floor of the FP8 formula holds.
 */
static void row_fill(void *row, int dtype, int64_t hidden, uint64_t seed, bool spread)
{
	unsigned char *bytes = row;
	int64_t size = (int64_t)moeep_dtype_size(dtype), lanes = 8 / size;

	for (int64_t start = 0; start < hidden; start += GROUP) {
		int64_t end = start + GROUP < hidden ? start + GROUP : hidden;
		uint64_t shift = spread ? routing_mix(~seed, (uint64_t)start) >> 60 : 0;
		uint64_t and_mask = UINT64_MAX, low = 0, add;

		if (dtype == MOEEP_BF16) {
			and_mask = UINT64_C(0x83ff83ff83ff83ff);
			low = UINT64_C(0x0001000100010001) * ((121 - shift) << 7);
		} else if (dtype == MOEEP_FP16) {
			and_mask = UINT64_C(0x9fff9fff9fff9fff);
			low = UINT64_C(0x0001000100010001) * ((9 - shift / 2) << 10);
		} else if (dtype == MOEEP_FP32) {
			and_mask = UINT64_C(0x83ffffff83ffffff);
			low = UINT64_C(0x0000000100000001) * ((121 - shift) << 23);
		}
		/* The three low bits of the exponent are random too: added, not masked in. */
		for (int64_t h = start; h < end; h += lanes) {
			int64_t left = end - h < lanes ? end - h : lanes;

			add = (routing_mix(seed, (uint64_t)h) & and_mask) + low;
			memcpy(bytes + h * size, &add, (size_t)(left * size));
		}
	}
}

/* Values that arithmetic would change and a copy must not: element 0 of a row. */
static void row_special(void *row, int dtype, int64_t token)
{
	static const uint32_t patterns[8] = {0x80000000, 0x7f800000, 0xff800000, 0x7fc10000,
					     0x7f810000, 0x00010000, 0x7f7f0000, 0xffc00000};
	uint32_t bits = patterns[token & 7];
	uint16_t half;

	if (dtype == MOEEP_FP32) {
		memcpy(row, &bits, sizeof(bits));
	} else if (dtype == MOEEP_BF16 || dtype == MOEEP_FP16) {
		half = (uint16_t)(bits >> 16);
		memcpy(row, &half, sizeof(half));
	}
}

void payload_dispatch(const struct perf_options *o, bool ht, int copy, int source, int64_t token,
		      void *row)
{
	row_fill(row, o->dtype, o->hidden, row_seed(o, PAYLOAD_DISPATCH, copy, source, token),
		 true);
	if (ht || o->quant == MOEEP_QUANT_NONE) {
		row_special(row, o->dtype, token);
	}
}

void payload_scales(const struct perf_options *o, int copy, int source, int64_t token,
		    float *scales)
{
	row_fill(scales, MOEEP_FP32, perf_scale_count(o),
		 row_seed(o, PAYLOAD_SCALES, copy, source, token), false);
}

void payload_combine(const struct perf_options *o, bool flat, int which, int source, int64_t token,
		     void *row)
{
	row_fill(row, o->combine_dtype, o->hidden,
		 row_seed(o, flat ? PAYLOAD_RANK : PAYLOAD_CHOICE, which, source, token), false);
}

void payload_fill_dispatch(const struct perf_options *o, bool ht, int copy, int rank,
			   int64_t tokens, void *x, float *scales)
{
	int64_t row_bytes = perf_row_bytes(o, o->dtype);

	for (int64_t t = 0; t < tokens; t++) {
		payload_dispatch(o, ht, copy, rank, t, (unsigned char *)x + t * row_bytes);
		if (scales) {
			payload_scales(o, copy, rank, t, scales + t * perf_scale_count(o));
		}
	}
}

void payload_fill_combine(const struct perf_options *o, int rank, const struct routing_rows *rows,
			  void *x, int64_t capacity)
{
	int64_t row_bytes = perf_row_bytes(o, o->combine_dtype), next = 0;
	unsigned char *bytes = x;

	for (int64_t i = 0; i <= rows->count; i++) {
		int64_t position = i < rows->count ? rows->row[i].position : capacity;

		/* Rows of other routings, and padding, whose sum must not matter. */
		for (; next < position; next++) {
			row_fill(bytes + next * row_bytes, o->combine_dtype, o->hidden,
				 row_seed(o, PAYLOAD_UNUSED, 0, rank, next), false);
		}
		if (i < rows->count) {
			const struct routing_row *row = &rows->row[i];

			payload_combine(o, row->choice < 0, row->choice < 0 ? rank : row->choice,
					row->source, row->token, bytes + position * row_bytes);
			next = position + 1;
		}
	}
}

void payload_quantise(const struct perf_options *o, const float *x, uint8_t *q, float *scales)
{
	for (int64_t start = 0; start < o->hidden; start += GROUP) {
		int64_t end = start + GROUP < o->hidden ? start + GROUP : o->hidden;
		float most = 1e-4f, factor, scale;

		for (int64_t h = start; h < end; h++) {
			most = fabsf(x[h]) > most ? fabsf(x[h]) : most;
		}
		scale = most * (1.0f / 448.0f);
		factor = 448.0f / most;
		if (o->quant != MOEEP_QUANT_FP8) {
			scale = bits_float((float_bits(scale) + 0x7fffff) & 0x7f800000);
			factor = 1.0f / scale;
		}
		for (int64_t h = start; h < end; h++) {
			q[h] = float_to_e4m3(x[h] * factor);
		}
		scales[start / GROUP] = scale;
	}
}
