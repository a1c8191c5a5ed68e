/* SPDX-License-Identifier: MIT */
/*
 * host/ht_combine.h - one run of HT combine: its plan (ht_combine.c), its rows on their way
 * (ht_stage.c) and its sums (ht_sum.c).
 */
#ifndef MOEEP_HOST_HT_COMBINE_H
#define MOEEP_HOST_HT_COMBINE_H

#include "host/ht.h"

struct moeep_ht_combine {
	struct moeep_ht_op op;
	const moeep_combine_args_t *args;
	bool expert_major;
	bool weighted;	  /* expert-major rows are multiplied */
	bool send_values; /* topk_weights go back */
	int topk;
	uint64_t row_bytes;   /* of x and out */
	int32_t staged_dtype; /* of rows in the rings */
	uint64_t staged_bytes;
	int32_t node_dtype; /* of a node's sums that travel to another */
	uint64_t node_bytes;
	bool stream_out; /* out does not fit the caches */

	/* The ring between two ranks: chunk_rows records, each [K values][row], row left out if
	 * read in place. */
	uint64_t values_bytes;
	uint64_t room_bytes; /* of the row */
	int64_t chunk_rows;
	uint64_t chunk_bytes;
	int num_chunks;

	int64_t next_token;  /* summed so far */
	int64_t unstaged;    /* destinations that still lack chunks */
	int num_forwards;    /* sources of other nodes that this rank forwards to */
	int64_t unforwarded; /* of them, those that still lack chunks */
};

/* Is a rank's x in symmetric memory, where its peers read? */
bool moeep_ht_x_is_direct(const struct moeep_ht_combine *c, int rank);

/* Does `rank` use the ring to its peers at all? */
bool moeep_ht_uses_ring(const struct moeep_ht_combine *c, int rank);

/* Does this rank stage rows for a rank at all? */
bool moeep_ht_stages_for(const struct moeep_ht_combine *c, int to);

/* Have `row` rows and one more of those that a rank stages for `to` come? */
bool moeep_ht_row_there(const struct moeep_ht_combine *c, int from, int to, int64_t row,
			struct moeep_pending *pending);

/* From what all ranks know alike: how the ring is cut. */
void moeep_ht_plan_combine_ring(struct moeep_ht_combine *c);

/* Chunks that `rows` rows make. */
int64_t moeep_ht_chunks_for(const struct moeep_ht_combine *c, int64_t rows);

/* Record `row` of the ring from rank `from` to rank `to`. */
char *moeep_ht_ring_record(const struct moeep_ht_combine *c, int from, int to, int64_t row);

/* Terms of a record that this rank holds: its flat row, or the rows of its choices here. */
int moeep_ht_local_terms(const struct moeep_ht_combine *c, int64_t index, struct moeep_term *terms);

/* The values of a record that this rank sends back with it. */
void moeep_ht_local_values(const struct moeep_ht_combine *c, int64_t index, float *values);

/* Is there a chunk left to stage for a rank, and room for it? Then stage it. */
bool moeep_ht_can_stage(const struct moeep_ht_combine *c, int to, struct moeep_pending *pending);
void moeep_ht_stage_chunk(struct moeep_ht_combine *c, int to);

/*
 * Who gives a token's rows to its rank: each rank of its own node that has one, and of each other
 * node the one that forwards. By ascending nodes, in them ascending; has room for topk.
 */
int moeep_ht_givers(const struct moeep_ht_combine *c, const int32_t *idx, int *givers);

/* Who takes this rank's rows for a rank out of the ring: that one, or who forwards to its node. */
int moeep_ht_taker(const struct moeep_ht_combine *c, int to);

/* Several nodes: sums of this node's rows for the ranks of others that this one forwards to. */
void moeep_ht_forward_begin(struct moeep_ht_combine *c);
/* Is there a token whose rows are all there, and room for its sum? */
bool moeep_ht_can_forward(const struct moeep_ht_combine *c, struct moeep_forward *forward,
			  struct moeep_pending *pending);
/* Forward what can be, up to so many tokens; false if there was none. */
bool moeep_ht_forward_rows(struct moeep_ht_combine *c, int64_t most);

/* Stage what peers need of this rank's rows, and sum this rank's tokens. */
int moeep_ht_sum_rows(struct moeep_ht_combine *c);

#endif
