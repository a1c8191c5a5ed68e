/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_check.h - rows that can be told apart, and what every operation must make of them.
 *
 * Each element of a row is a hash of who sent it, which token it is and where in the row it lies,
 * so that a row out of place, a stale one and a shifted one are all seen. Results are computed
 * here from the API's text alone, and compared bit for bit.
 */
#ifndef MOEEP_TOOLS_PERF_CHECK_H
#define MOEEP_TOOLS_PERF_CHECK_H

#include <moeep/moeep.h>

#include "perf_options.h"
#include "routing.h"

struct check_result {
	uint64_t values; /* compared */
	uint64_t wrong;
	char first[200]; /* the first that was wrong, in words */
};

struct check {
	const struct perf_options *options;
	const struct routing *routing;
	int rank;
	int variant; /* of the routing */
	int copy;    /* of the inputs */
	struct check_result *result;
};

/* Inputs of dispatch: this rank's tokens, [N, H], and for HT's FP8 their scales, [N, S]. */
void check_fill_dispatch(const struct check *check, bool ht, void *x, float *scales);

/*
 * Input of combine: a row for each row of the dispatch, and something finite in every other row of
 * [0, capacity).
 */
void check_fill_combine(const struct check *check, const struct routing_rows *rows, void *x,
			int64_t capacity);

/* The outputs that args name. rows: what this rank has to receive. -1 only for want of memory. */
int check_ht_dispatch(const struct check *check, const struct routing_rows *rows,
		      const moeep_dispatch_args_t *args);
int check_ll_dispatch(const struct check *check, const struct routing_rows *rows,
		      const moeep_ll_dispatch_args_t *args);
int check_combine(const struct check *check, bool ht, const void *out);

/* Element formats, for tests. */
float check_half_to_float(uint16_t half);
uint16_t check_float_to_half(float value);
uint16_t check_float_to_bf16(float value);
uint8_t check_float_to_e4m3(float value);

#endif
