/* SPDX-License-Identifier: MIT */
/* What the operations' tests share: inputs of a group, and outputs with their expected images. */
#ifndef T_OP_OP_H
#define T_OP_OP_H

#include <moeep/moeep.h>
#include <stdbool.h>
#include <stdint.h>

#include "t/nodes.h"
#include "t/oracle.h"
#include "t/ranks.h"
#include "t/tap.h"
#include "t/util.h"

#define OP_RANKS 16

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* Group sizes that the families of operations are tried with: powers of two, odd ones, one. */
extern const int op_sizes[];
extern const int op_num_sizes;
/* False for those that MOEEP_TEST_QUICK leaves out. */
bool op_use_size(int num_ranks);

enum op_routing {
	ROUTE_DISTINCT,	 /* different experts, as a router's top-k gives */
	ROUTE_ANY,	 /* random, the same expert several times among them */
	ROUTE_MASKED,	 /* different experts or -1, some rows all -1 */
	ROUTE_NONE,	 /* all -1 */
	ROUTE_ONE,	 /* the first choice of every token is one expert, the others are -1 */
	ROUTE_SAME,	 /* all choices of every token are one expert */
	ROUTE_LAST_RANK, /* all to the experts of the last rank that has any */
	ROUTE_KINDS
};

/* Inputs of all ranks, as a function of the seeds. */
struct op_spec {
	int num_ranks;
	int num_experts;
	int topk;
	int64_t hidden;
	int64_t tokens[OP_RANKS];
	int dtype; /* default BF16 */
	int scale_dtype;
	int scale_count;
	bool weights;
	enum op_routing routing;
	enum payload payload;
	uint64_t seed;	 /* routing */
	uint64_t x_seed; /* rows and scales */
	uint64_t w_seed; /* weights */
};

struct op_inputs {
	struct oracle_group group;
	int nodes[OP_RANKS]; /* of the group */
	struct oracle_input input[OP_RANKS];
};

void op_inputs_make(struct op_inputs *inputs, const struct op_spec *spec);
void op_inputs_free(struct op_inputs *inputs);

/* The same number of tokens on each rank. */
void op_tokens(struct op_spec *spec, int64_t tokens);
/* From 0 to most, different on each rank, one of them most. */
void op_tokens_vary(struct op_spec *spec, int64_t most);
int64_t op_tokens_most(const struct op_spec *spec);

/* A rank's top-k as that type, and scales in that layout: arrays of their own, to be freed. */
void *op_topk_as(const struct op_inputs *inputs, int rank, int dtype);
void *op_scales_as(const struct op_inputs *inputs, int rank, int layout, int64_t stride);

enum op_memory {
	OP_ORDINARY,
	OP_SYMMETRIC,  /* moeep_mem_alloc() */
	OP_REGISTERED, /* moeep_mem_register() */
	OP_SLOT	       /* LL combine's x: moeep_ll_combine_slot() */
};

/*
 * Memory of one of those kinds. Ranks that want another kind take part in the collective calls.
 * Where it is a device's, the test reads and writes a copy of it.
 */
struct op_block {
	void *memory;	     /* for operations */
	unsigned char *host; /* for the test; the same memory if that can be */
	size_t bytes;
	enum op_memory kind;
	void *registered; /* what is to be deregistered */
};

/* any: a bit for each kind that some rank uses. OP_SLOT: op_block_place() has to follow. */
int op_block_make(struct op_block *block, moeep_comm_t *comm, enum op_memory kind, unsigned int any,
		  size_t bytes);
/* Memory that was had elsewhere: a combine slot. */
void op_block_place(struct op_block *block, void *memory, size_t bytes);
void op_block_free(struct op_block *block, moeep_comm_t *comm);

/* What the test wrote goes to where operations read it; what they wrote to where it is read. */
int op_block_push(const struct op_block *block);
int op_block_pull(const struct op_block *block);

/*
 * Before the first operation that follows the making of handles: with CUDA the driver may make a
 * rank that allocates wait for a kernel, which would wait for this rank. The host needs no such
 * thing, and its ranks are left to their own pace.
 */
int op_ready(moeep_comm_t *comm);

/* Whether runs that ask for processes or threads can have memory of moeep_mem_register(). */
bool op_can_register(bool processes);

/* An output and what is to be in it afterwards, the bytes that stay as they were included. */
struct op_output {
	const char *name;   /* NULL: not asked for */
	void *at;	    /* for the operation */
	struct guarded got; /* what the test sees of it */
	unsigned char *want;
	struct op_block block;
	int64_t rows;
	int64_t elements;
	int dtype;
	bool any_nan; /* NaNs are computed ones and compare as a class */
};

int op_output_make(struct op_output *output, const char *name, int64_t rows, int64_t elements,
		   int dtype, moeep_comm_t *comm, enum op_memory kind, unsigned int any);
/* Compares and frees. */
void op_output_end(struct op_output *output, moeep_comm_t *comm);

/*
 * The operations. Without a launch they are complete on return and give their result, with every
 * backend; with one they are the call as it is.
 */
int op_layout(moeep_buffer_t *buffer, const moeep_layout_args_t *args,
	      const moeep_launch_t *launch);
int op_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle, const moeep_dispatch_args_t *args,
		const moeep_launch_t *launch);
int op_combine(moeep_buffer_t *buffer, moeep_handle_t *handle, const moeep_combine_args_t *args,
	       const moeep_launch_t *launch);
int op_ll_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle,
		   const moeep_ll_dispatch_args_t *args, const moeep_launch_t *launch);
int op_ll_combine(moeep_buffer_t *buffer, moeep_handle_t *handle,
		  const moeep_ll_combine_args_t *args, const moeep_launch_t *launch);

/* "bf16 h64 e8 k2 ..." for names of checks; the text is the thread's until its next call. */
const char *op_spec_name(const struct op_spec *spec);

/* A group's usual seeds: MOEEP_TEST_SEED, else a constant. */
uint64_t op_seed(void);

#endif /* T_OP_OP_H */
