/* SPDX-License-Identifier: MIT */
/* host/ll.h - what the low-latency operations of the host backend share. */
#ifndef MOEEP_HOST_LL_H
#define MOEEP_HOST_LL_H

#include "ep/buffer.h"

/* A wait until one flag of every rank, at `offset` in struct moeep_words, has reached `expected`.
 */
struct moeep_ll_wait {
	const struct moeep_buffer *buffer;
	size_t offset;
	uint64_t expected;
	const char *what;
	const int64_t *only; /* [R]: ranks with 0 are not waited for; NULL: all are */
	int next;
};

bool moeep_ll_reached(void *arg, struct moeep_pending *pending);
/* The same for rank `next` alone. */
bool moeep_ll_reached_one(void *arg, struct moeep_pending *pending);

/* Tell all peers that a flag of this rank has reached an epoch. */
void moeep_ll_publish(struct moeep_buffer *buffer, _Atomic uint64_t *flag, uint64_t epoch);

/* Slots of the protocol in a rank's window. */
struct moeep_ll_entry *moeep_ll_slot(const struct moeep_buffer *buffer, int rank, uint64_t epoch);
struct moeep_ll_entry *moeep_ll_cslot(const struct moeep_buffer *buffer, int rank, uint64_t epoch);

/* Parts of a dispatch slot, for the topk and row size that its entry gives. */
struct moeep_ll_parts {
	int32_t *topk_idx;   /* [N, K] */
	float *topk_weights; /* [N, K] */
	char *scales;	     /* [N][scale_bytes] */
	char *rows;	     /* [N][row_bytes] */
	uint64_t scale_bytes;
	uint64_t row_bytes;
};

void moeep_ll_open_slot(const struct moeep_buffer *buffer, struct moeep_ll_entry *entry,
			struct moeep_ll_parts *parts);

/*
 * Combine slot: int32 [R, L] first rows of each source and expert, then partial rows [R, M]; in a
 * mirror [ranks of this node, M]. A lane is the number of the source in them.
 */
int32_t *moeep_ll_ranges(struct moeep_ll_entry *entry);
char *moeep_ll_partial(const struct moeep_buffer *buffer, struct moeep_ll_entry *entry, int lane,
		       int64_t index, uint64_t row_bytes);

/* Host implementations of the public calls, with checked arguments; run by the buffer's stream. */
int moeep_host_ll_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle,
			   const void *args);
int moeep_host_ll_combine(struct moeep_buffer *buffer, struct moeep_handle *handle,
			  const void *args);

/*
 * Do the rows of this rank's choices flush the caches? They are read soon after they were written,
 * so even if only half of them are still there then, that is worth more than streaming stores save.
 */
bool moeep_ll_streams(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		      uint64_t row_bytes);

/* The dtype that a quantisation makes of dtype. */
int32_t moeep_ll_wire_dtype(int32_t dtype, int32_t quant);
/* The dtype of its scales. */
int32_t moeep_ll_scale_dtype(int32_t quant);

#endif
