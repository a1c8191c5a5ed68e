/* SPDX-License-Identifier: MIT */
/* ep/buffer.h - the inside of buffers and handles. */
#ifndef MOEEP_EP_BUFFER_H
#define MOEEP_EP_BUFFER_H

#include <stdbool.h>

#include <moeep/moeep.h>

#include "core/comm.h"
#include "ep/geometry.h"
#include "ep/stream.h"
#include "host/rowmath.h"

struct moeep_cuda_buffer;
struct moeep_cuda_handle;

/* The sum of a row with its terms. */
struct moeep_row_sum {
	struct moeep_sum sum;
	struct moeep_term terms[MOEEP_MAX_TOPK];
};

/* Combine's rows of this node's ranks for a rank of another node, which this one forwards. */
struct moeep_forward {
	int source;
	int64_t num_tokens; /* of the source */
	int64_t next;	    /* token */
	int64_t total;	    /* tokens that have rows on this node */
	int64_t summed;	    /* of them */
	int64_t *cursor;    /* [most_local] next row of each rank of this node */
	int64_t *used;	    /* [most_local] chunks of them that are used */
};

/* Bookkeeping of one operation at a time; moeep_geometry_private_bytes() counts it. */
struct moeep_scratch {
	void **peer_rows;		/* [R] where peers' rows are, if mapped here */
	int64_t *staged;		/* [R] chunks handed over */
	int64_t *consumed;		/* [R] chunks taken */
	int64_t *woken;			/* [R] progress at the last wake-up */
	int64_t *recv_cursor;		/* [R] next record or row from each source */
	int64_t *expected;		/* [R] combine: records that each rank gives this one */
	int64_t *send_cursor;		/* [R] next row at each destination */
	int64_t *recv_expert;		/* [R * L] next row for each source and local expert */
	int64_t *send_expert;		/* [E] next row for each expert at its rank */
	int32_t *expert_rank;		/* [E] constant: who holds an expert */
	int32_t *count_rank;		/* [R] */
	int32_t *count_expert;		/* [E] */
	void *one_scales;		/* scales of one row */
	moeep_traffic_t *traffic;	/* [R] */
	struct moeep_forward *forwards; /* [num_mirrors] */
	int64_t *forward_counts;	/* what they point to */
};

struct moeep_buffer {
	struct moeep_comm *comm;
	struct moeep_geometry geo;
	struct moeep_window **windows; /* [R] */
	char **bases;	     /* [R] where each rank is read: its window, or a mirror of it */
	uint32_t net_window; /* several nodes: its number there */
	struct moeep_cuda_buffer *cuda; /* NULL with the host backend */
	int calls; /* CUDA backend: where in the comm's control window its calls are counted */
	const struct moeep_rowmath *rowmath;
	struct moeep_scratch scratch;
	struct moeep_stream stream;

	/* Counters of operations begun; written by the thread that runs operations. */
	_Atomic uint64_t ht_epoch;
	_Atomic uint64_t ll_epoch;
	uint64_t ll_recv_epoch;
	uint64_t ll_cepoch;
	uint64_t ll_crecv_epoch;

	_Atomic int num_handles;
};

enum moeep_route_kind { MOEEP_ROUTE_NONE, MOEEP_ROUTE_HT, MOEEP_ROUTE_LL_SENT, MOEEP_ROUTE_LL };

struct moeep_handle {
	struct moeep_buffer *buffer;
	moeep_handle_config_t config;	/* defaults filled in */
	struct moeep_cuda_handle *cuda; /* holds the arrays of a GPU, in place of those below */
	_Atomic int in_flight;		/* operations queued that use it */

	enum moeep_route_kind kind;
	uint64_t route; /* epoch of the dispatch */
	int32_t row_layout;
	int32_t alignment;
	int32_t topk;
	bool weighted;	  /* weights were given */
	bool counts_only; /* no rows were moved yet */
	bool overflow; /* HT: the last dispatch with it did not fit on some rank. LL: on this rank
			*/
	int64_t num_tokens;
	int64_t num_rows; /* received, padding included */

	/* What this rank sent. */
	int32_t *topk_idx;	/* [num_tokens * topk] */
	float *topk_weights;	/* the same, if weighted */
	int64_t *send_per_rank; /* [R] tokens */
	int64_t *send_base;	/* [R] this rank's first row there, flat */
	int64_t *send_expert;	/* [E] this rank's first row for an expert there, expert-major */

	/* What it received; a record is a token that came from a source. */
	int64_t *recv_per_rank;	  /* [R] records */
	int64_t *recv_base;	  /* [R + 1] first record of each source */
	int64_t *recv_per_expert; /* [L] */
	int64_t *expert_offsets;  /* [L + 1] */
	int64_t *recv_expert;	  /* [R * L] first row of each source and local expert */
	int64_t *needed;	  /* [R] rows that each rank needs */
	int64_t *record_rows;  /* [records * topk] expert-major: row of each choice, -1 elsewhere */
	float *record_weights; /* [records * topk] if weighted */
	int64_t *forward_tokens; /* [num_mirrors] tokens of each of them */
	int32_t *forward_idx;	 /* [num_mirrors * ht_max_tokens * topk] choices of ranks of other
				    nodes that this one forwards for */

	/* LL: phases. */
	uint64_t combine_epoch; /* of a combine between its phases, else 0 */
	bool combine_open;
	bool combine_direct; /* x is read in place by all */
	bool combine_own;    /* by this rank for itself */
	int64_t ll_capacity; /* of the dispatch's outputs */
	int32_t ll_dtype;
	int32_t ll_quant;
	int32_t combine_dtype;
	bool combine_unweighted;
};

static inline void *moeep_buffer_at(const struct moeep_buffer *buffer, int rank, uint64_t offset)
{
	return buffer->bases[rank] + offset;
}

static inline struct moeep_words *moeep_buffer_words(const struct moeep_buffer *buffer, int rank)
{
	return moeep_buffer_at(buffer, rank, 0);
}

/* A flag of an array of `rank`'s window. */
static inline moeep_flag_t *moeep_buffer_flag(const struct moeep_buffer *buffer, int rank,
					      uint64_t array, int index)
{
	struct moeep_flag_line *lines = moeep_buffer_at(buffer, rank, array);

	return &lines[index].word;
}

/* Rows of so many bytes would not stay in the caches until they are read: write around them. */
static inline bool moeep_buffer_streams(const struct moeep_buffer *buffer, uint64_t bytes)
{
	return bytes > buffer->comm->cache_share;
}

static inline uint64_t moeep_slot_of(uint64_t epoch)
{
	return epoch % MOEEP_SLOTS;
}

/* Flags of an epoch before the first: nothing has happened yet. */
static inline uint64_t moeep_epoch_before(uint64_t epoch, uint64_t by)
{
	return (epoch - by) & MOEEP_EPOCH_MASK;
}

#endif
