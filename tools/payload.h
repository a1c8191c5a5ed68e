/* SPDX-License-Identifier: MIT */
/*
 * tools/payload.h - what is in the rows that are sent, and conversions of elements.
 *
 * Each element of a row is a hash of who sent it, which token it is and where in the row it lies,
 * so that a row out of place, a stale one and a shifted one are all seen. The conversions share no
 * code with the library, whose results they are compared with.
 */
#ifndef MOEEP_TOOLS_PAYLOAD_H
#define MOEEP_TOOLS_PAYLOAD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "perf_options.h"
#include "rows.h"

/* A row of dispatch's input, and, for HT's FP8, its scales. copy: of the inputs. */
void payload_dispatch(const struct perf_options *o, bool ht, int copy, int source, int64_t token,
		      void *row);
void payload_scales(const struct perf_options *o, int copy, int source, int64_t token,
		    float *scales);

/*
 * A row of combine's input for a token of `source`. which: the rank that holds the row if flat,
 * else the position in the top-k.
 */
void payload_combine(const struct perf_options *o, bool flat, int which, int source, int64_t token,
		     void *row);

/* Inputs of dispatch: the tokens of a rank, [N, H], and, unless NULL, their scales, [N, S]. */
void payload_fill_dispatch(const struct perf_options *o, bool ht, int copy, int rank,
			   int64_t tokens, void *x, float *scales);

/*
 * Input of combine: a row for each row of the dispatch, and something finite in every other row of
 * [0, capacity).
 */
void payload_fill_combine(const struct perf_options *o, int rank, const struct routing_rows *rows,
			  void *x, int64_t capacity);

/* Rows of BF16, FP16 and FP32. */
void payload_to_float(const void *row, int dtype, int64_t hidden, float *out);
void payload_from_float(const float *in, int dtype, int64_t hidden, void *row);

/* A row as the FP8 cast makes it; scales as numbers. */
void payload_quantise(const struct perf_options *o, const float *x, uint8_t *q, float *scales);

static inline uint32_t float_bits(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static inline float bits_float(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

#endif
