/* SPDX-License-Identifier: MIT */
/* host/ht.h - high-throughput operations of the host backend. */
#ifndef MOEEP_HOST_HT_H
#define MOEEP_HOST_HT_H

#include "ep/buffer.h"

/* One operation's run. */
struct moeep_ht_op {
	struct moeep_buffer *buffer;
	struct moeep_handle *handle;
	uint64_t epoch;
	struct moeep_wait wait;
	/* As agreed by moeep_ht_enter(). */
	uint32_t given;
	int32_t scale_count;
	int32_t scale_dtype;
};

/*
 * Begin: tell every rank what this one brings, and learn what they bring. All ranks then hold the
 * same data, so that decisions made of it are the same everywhere. per_rank: [R] rows for each
 * rank; per_expert: [E] choices of each expert; NULL leaves them out.
 */
int moeep_ht_enter(struct moeep_ht_op *op, const struct moeep_ht_entry *mine,
		   const int32_t *per_rank, const int32_t *per_expert);

/* Make this rank's failure, whose detail is set, everybody's: peers already wait for its part. */
int moeep_host_raise(const struct moeep_ht_op *op, moeep_op_t name, int result);

const struct moeep_ht_entry *moeep_ht_entry_of(const struct moeep_ht_op *op, int rank);
const int32_t *moeep_ht_tokens_per_rank(const struct moeep_ht_op *op, int rank);
const int32_t *moeep_ht_tokens_per_expert(const struct moeep_ht_op *op, int rank);

/* Host implementations of the public calls, with checked arguments; run by the buffer's stream. */
int moeep_host_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args);
int moeep_host_combine(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args);

#endif
