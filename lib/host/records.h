/* SPDX-License-Identifier: MIT */
/*
 * host/records.h - what dispatch hands over for a token, and where a receiver puts it.
 *
 * A record is the token's K global expert ids, its weights, its scales packed densely, and its
 * row. HT and LL, and tokens that stay on their rank, all end in moeep_record_place().
 */
#ifndef MOEEP_HOST_RECORDS_H
#define MOEEP_HOST_RECORDS_H

#include "ep/buffer.h"
#include "host/scales.h"

struct moeep_record {
	const int32_t *topk_idx;
	const float *topk_weights; /* NULL: none */
	const void *scales;	   /* dense; NULL: none */
	const void *row;	   /* NULL: the source writes it in place, or it is not wanted */
	int src_rank;
	int64_t src_token;
};

/* A receiver's outputs and its place in them. */
struct moeep_sink {
	struct moeep_handle *handle;
	const struct moeep_rowmath *rowmath;
	int first_expert;
	int local_experts;
	int topk;
	bool expert_major;
	bool stream;		  /* rows bypass the caches */
	bool lost;		  /* set: a record did not fit the handle */
	int64_t capacity;	  /* rows in all; LL: of each expert */
	bool per_expert_capacity; /* LL */
	uint64_t row_bytes;
	char *recv_x;
	struct moeep_scales scales;   /* LL: of the first expert */
	uint64_t expert_scales_bytes; /* LL: from one expert's scales to the next */
	void *recv_topk_idx;
	int32_t topk_dtype;
	float *recv_topk_weights;
	int32_t *recv_src_token;
	int32_t *recv_src_rank;
	int32_t *recv_expert;
	int64_t *flat_cursor;	/* [R] next record of each source */
	int64_t *expert_cursor; /* [R * L] next row of each source and local expert */
};

/* True if one of the choices lives here. */
bool moeep_record_is_local(const struct moeep_sink *sink, const int32_t *topk_idx);

/* Put a local record into its row, or rows, and note them in the handle. */
void moeep_record_place(struct moeep_sink *sink, const struct moeep_record *record);

#endif
