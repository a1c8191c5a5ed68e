/* SPDX-License-Identifier: MIT */
/* Low-latency operations under test; as t/op/ht.h, with phases. */
#ifndef T_OP_LL_H
#define T_OP_LL_H

#include "t/op/op.h"

enum ll_output { LL_X, LL_SCALES, LL_COUNT, LL_SRC_TOKEN, LL_RANGE, LL_OUTPUTS };

/* What may differ between the ranks of a call. */
struct ll_rank {
	int topk_dtype;
	int recv_scale_layout;
	int64_t recv_scale_stride;
	int64_t capacity;	  /* of dispatch; 0: the default */
	int64_t combine_capacity; /* of combine's x; 0: that of dispatch */
	unsigned int leave;	  /* outputs that are not asked for, a bit each */
	enum op_memory memory;	  /* of combine's x */
};

struct ll_case {
	struct op_spec spec; /* dtype BF16 or FP16 */
	int quant;
	int64_t max_tokens;  /* M; default the spec's most */
	int64_t ll_capacity; /* of the combine slots */
	int slots;
	int max_topk;
	int partial_dtype;
	uint64_t initial_epoch;
	int combine_dtype; /* default BF16 */
	bool unweighted;   /* MOEEP_LL_COMBINE_UNWEIGHTED */
	bool bias;
	struct ll_rank rank[OP_RANKS];

	/* Made from the above. */
	struct op_inputs in;
	int local_experts[OP_RANKS];
	int64_t most; /* M */
	int64_t capacity[OP_RANKS];
	int64_t combine_capacity[OP_RANKS];
	void *x[OP_RANKS]; /* what the ranks hand to combine */
	void *bias_rows[OP_RANKS];
};

void ll_case_make(struct ll_case *c);
void ll_case_free(struct ll_case *c);

struct ll_dispatch {
	const struct ll_case *c;
	int rank;
	int expect; /* of RECV */
	/* Inputs of SEND, spoilt after it. */
	void *x;
	void *topk;
	float *weights;
	struct op_output output[LL_OUTPUTS];
	moeep_ll_dispatch_args_t args;
};

struct ll_combine {
	moeep_comm_t *comm;
	int expect;
	size_t x_bytes;
	struct op_block x;
	struct op_output out;
	moeep_ll_combine_args_t args;
};

int ll_dispatch_begin(struct ll_dispatch *d, const struct ll_case *c, int rank);
/* One phase of it with nothing but that phase's fields set; spoils the inputs after SEND. */
int ll_dispatch_send(struct ll_dispatch *d, moeep_buffer_t *buffer, moeep_handle_t *handle);
int ll_dispatch_recv(struct ll_dispatch *d, moeep_buffer_t *buffer, moeep_handle_t *handle);
/* result: of RECV or of the whole call. */
void ll_dispatch_end(struct ll_dispatch *d, int result);

/* slot: index of the combine slot, for ranks that use one. */
int ll_combine_begin(struct ll_combine *d, const struct ll_case *c, int rank, moeep_comm_t *comm,
		     moeep_buffer_t *buffer, int slot);
int ll_combine_send(struct ll_combine *d, moeep_buffer_t *buffer, moeep_handle_t *handle);
int ll_combine_recv(struct ll_combine *d, moeep_buffer_t *buffer, moeep_handle_t *handle);
void ll_combine_end(struct ll_combine *d, int result);

/* Whole operations in the calling thread, in one call or, with phases, in two. */
int ll_dispatch(const struct ll_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
		moeep_handle_t *handle, bool phases);
int ll_combine(const struct ll_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
	       moeep_handle_t *handle, bool phases);

void ll_config(const struct ll_case *c, moeep_buffer_config_t *config);
int ll_open(const struct ll_case *c, moeep_comm_t *comm, moeep_buffer_t **buffer,
	    moeep_handle_t **handle);
int ll_close(moeep_buffer_t *buffer, moeep_handle_t *handle);

/* Make the case, run dispatch and combine on all ranks, once whole and once in phases, free it. */
void ll_check(struct ll_case *c, bool processes, const char *what);

#endif /* T_OP_LL_H */
