/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_check.h - what every operation must make of its rows.
 *
 * Results are computed here from the API's text alone, and compared bit for bit. What is in the
 * rows is payload.h's, and which rows there are rows.h's.
 */
#ifndef MOEEP_TOOLS_PERF_CHECK_H
#define MOEEP_TOOLS_PERF_CHECK_H

#include <moeep/moeep.h>

#include "perf_options.h"
#include "routing.h"
#include "rows.h"

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

/* The outputs that args name. rows: what this rank has to receive. -1 only for want of memory. */
int check_ht_dispatch(const struct check *check, const struct routing_rows *rows,
		      const moeep_dispatch_args_t *args);
int check_ll_dispatch(const struct check *check, const struct routing_rows *rows,
		      const moeep_ll_dispatch_args_t *args);
int check_combine(const struct check *check, bool ht, const void *out);

/* Byte offset of scale s of a row, as moeep_scale_layout_t says with the default stride. */
int64_t check_scale_offset(int dtype, int layout, int64_t rows, int64_t count, int64_t row,
			   int64_t s);

#endif
