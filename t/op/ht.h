/* SPDX-License-Identifier: MIT */
/*
 * High-throughput operations under test: a case says what every rank passes; a dispatch or a
 * combine of it is begun (arguments, outputs, images), called by the test, and ended (compared).
 */
#ifndef T_OP_HT_H
#define T_OP_HT_H

#include "t/op/op.h"

enum ht_output {
	HT_X,
	HT_SCALES,
	HT_TOPK,
	HT_WEIGHTS,
	HT_SRC_TOKEN,
	HT_SRC_RANK,
	HT_EXPERT,
	HT_NUM_RECV,
	HT_PER_EXPERT,
	HT_PADDED,
	HT_OFFSETS,
	HT_OUTPUTS
};

/* Instead of a capacity: none at all. */
#define HT_NO_ROWS (-1)

/* What may differ between the ranks of a call. */
struct ht_rank {
	int topk_dtype;
	int scale_layout;
	int64_t scale_stride;
	int recv_scale_layout;
	int64_t recv_scale_stride;
	int alignment;
	uint32_t flags;	    /* ZERO_PADDING, FILL_TAIL */
	int64_t capacity;   /* 0: what is received */
	unsigned int leave; /* outputs that are not asked for, a bit each */
	enum op_memory memory;
};

struct ht_case {
	struct op_spec spec;
	int row_layout;
	int max_topk;	    /* of the buffer; default the spec's */
	int64_t max_tokens; /* of the buffer; default the spec's most */
	int partial_dtype;
	uint64_t initial_epoch;
	int64_t chunk_bytes; /* of the buffer's ring */
	int chunks;
	int combine_dtype; /* default BF16 */
	bool weighted;	   /* MOEEP_COMBINE_WEIGHTED */
	bool send_weights; /* back, by combine */
	bool bias;
	struct ht_rank rank[OP_RANKS];

	/* Made from the above. */
	struct op_inputs in;
	struct oracle_expert_side side[OP_RANKS]; /* rows, and what they hand to combine */
	void *bias_rows[OP_RANKS];
	int64_t capacity[OP_RANKS];
	bool fits;
};

void ht_case_make(struct ht_case *c);
void ht_case_free(struct ht_case *c);

struct ht_dispatch {
	const struct ht_case *c;
	int rank;
	moeep_comm_t *comm;
	int expect;
	void *topk;
	void *scales;
	struct op_output output[HT_OUTPUTS];
	moeep_dispatch_args_t args; /* the test may change them before the call */
};

struct ht_combine {
	moeep_comm_t *comm;
	int expect;
	struct op_block x;
	struct op_output out;
	struct op_output out_weights;
	moeep_combine_args_t args;
};

/* flags: MOEEP_DISPATCH_CACHED or _COUNTS_ONLY or 0. 0 if all went well. */
int ht_dispatch_begin(struct ht_dispatch *d, const struct ht_case *c, int rank, moeep_comm_t *comm,
		      uint32_t flags);
void ht_dispatch_end(struct ht_dispatch *d, int result);
int ht_combine_begin(struct ht_combine *d, const struct ht_case *c, int rank, moeep_comm_t *comm);
void ht_combine_end(struct ht_combine *d, int result);

/* All three steps, in the calling thread. */
int ht_dispatch(const struct ht_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
		moeep_handle_t *handle, uint32_t flags);
int ht_combine(const struct ht_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
	       moeep_handle_t *handle);

/* Combine and cached dispatch of a handle without rows give MOEEP_ERR_STATE and write nothing. */
int ht_refused(const struct ht_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
	       moeep_handle_t *handle);
int ht_combine_refused(const struct ht_case *c, int rank, moeep_comm_t *comm,
		       moeep_buffer_t *buffer, moeep_handle_t *handle);

/* Check what the handle tells of the case's dispatch. */
void ht_query(const struct ht_case *c, int rank, const moeep_handle_t *handle);

/* A buffer for the case, and a handle. */
void ht_config(const struct ht_case *c, moeep_buffer_config_t *config);
int ht_open(const struct ht_case *c, moeep_comm_t *comm, moeep_buffer_t **buffer,
	    moeep_handle_t **handle);
int ht_close(moeep_buffer_t *buffer, moeep_handle_t *handle);

/* Make the case, run dispatches of all kinds and combine on all ranks, free it. */
void ht_check(struct ht_case *c, bool processes, const char *what);

#endif /* T_OP_HT_H */
