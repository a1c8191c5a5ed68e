/* SPDX-License-Identifier: MIT */
/* host/ll_combine.h - LL combine: its two phases (ll_combine.c) and its sums (ll_sum.c). */
#ifndef MOEEP_HOST_LL_COMBINE_H
#define MOEEP_HOST_LL_COMBINE_H

#include "host/ll.h"

/* A place in a buffer's window, the combine slots, instead of in a region of the comm. */
#define MOEEP_PLACE_WINDOW UINT32_MAX

/* The experts' rows that this rank gives. */
struct moeep_ll_rows {
	const struct moeep_handle *handle;
	const char *x;
	int64_t capacity; /* rows of an expert in x */
	uint64_t row_bytes;
	int32_t dtype;
	bool weighted;
};

void moeep_ll_open_rows(const struct moeep_handle *handle, const moeep_ll_combine_args_t *args,
			struct moeep_ll_rows *rows);

/* Terms of a record, a token that came here: its rows, k ascending. 0 if all were lost. */
int moeep_ll_record_terms(const struct moeep_ll_rows *rows, int64_t index,
			  struct moeep_term *terms);

/* The dtype of partial rows. */
int32_t moeep_ll_partial_dtype(const struct moeep_buffer *buffer, int32_t dtype);

/*
 * RECV's sums of this rank's tokens, all rows being there. lost_at: a rank that lost some of them
 * in the dispatch, or -1.
 */
int moeep_ll_sum_rows(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_combine_args_t *args, int *lost_at);

#endif
