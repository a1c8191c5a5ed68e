/* SPDX-License-Identifier: MIT */
/* host/ht_dispatch.h - one run of HT dispatch: its plan (ht_dispatch.c) and its moving (ht_move.c).
 */
#ifndef MOEEP_HOST_HT_DISPATCH_H
#define MOEEP_HOST_HT_DISPATCH_H

#include "host/ht.h"
#include "host/records.h"

struct moeep_ht_dispatch {
	struct moeep_ht_op op;
	const moeep_dispatch_args_t *args;
	int64_t num_tokens;
	int topk;
	uint64_t row_bytes;
	uint64_t scale_bytes; /* of a record, padded to 16 */
	bool weights;
	const float *topk_weights;
	struct moeep_scales scales; /* of x */
	struct moeep_sink sink;
	bool skip_recv;	   /* this rank's output does not fit and is left alone */
	bool rows_in_ring; /* some rank takes its rows from the rings */
	int overflow_rank; /* -1: everything fits */

	/* Chunks of the ring. */
	int64_t chunk_tokens;
	uint64_t chunk_bytes;
	int num_chunks; /* of the ring */
	int64_t total;	/* chunks of this rank's tokens */
	int64_t staged;
	int64_t staged_woken;
	int64_t done_sources; /* sources whose chunks are all taken */
};

/* Chunks that a rank's tokens make. */
int64_t moeep_ht_chunks_of(const struct moeep_ht_dispatch *d, int rank);

/* From what all ranks know alike: how the ring is cut. */
void moeep_ht_plan_ring(struct moeep_ht_dispatch *d);

/* Does a rank's output lie in symmetric memory, where its peers write? */
bool moeep_ht_is_direct(const struct moeep_ht_dispatch *d, int rank);

/* Choices of a rank of another node that this one will forward combine's rows to, if it does. */
void moeep_ht_note_choices(const struct moeep_ht_dispatch *d, int from, int64_t first,
			   const int32_t *idx, int64_t tokens);

/* Move all rows of this rank's tokens, and all that come to it. */
int moeep_ht_move_rows(struct moeep_ht_dispatch *d);

#endif
