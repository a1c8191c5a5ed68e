/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_rank.h - one rank from the inside: what perf_run.c (order of calls, failure),
 * perf_buffers.c (memory, arguments) and perf_calls.c (single calls) share, and nobody else sees.
 */
#ifndef MOEEP_TOOLS_PERF_RANK_H
#define MOEEP_TOOLS_PERF_RANK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "perf_run.h"

/* Memory of this tool: pages of its own, so that rows start at page boundaries. */
struct block {
	void *base;
	size_t bytes;
	bool symmetric;
};

enum {
	BLOCK_ROWS,    /* HT: dispatch's rows, then combine's input. LL: dispatch's rows */
	BLOCK_COMBINE, /* LL: combine's input */
	BLOCK_OUT,     /* combine's output */
	BLOCK_X,       /* dispatch's inputs, all copies */
	BLOCK_SCALES,  /* their scales */
	BLOCK_RECV_SCALES,
	BLOCK_INDEX, /* choices of this rank, all variants */
	BLOCK_SIDE,  /* small outputs of dispatch */
	NUM_BLOCKS
};

struct rank {
	struct perf_run *run;
	const struct perf_options *o;
	int rank;
	moeep_comm_t *comm;
	unsigned mode;
	const struct routing *routing;
	int copies;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle[PERF_MAX_VARIANTS];
	bool routed[PERF_MAX_VARIANTS]; /* the handle has had its dispatch */
	struct block block[NUM_BLOCKS];
	int64_t capacity; /* rows of the outputs; LL: of each local expert */
	int64_t num_recv;
	void *combine_x;
};

/* Calls take the routings in turn. */
static inline int rank_variant(const struct rank *r, int64_t call)
{
	return (int)(call % r->routing->shape.variants);
}

/* perf_run.c */

/*
 * Note that this rank failed and why; the others are told, so that nobody waits for it. 1, for
 * callers to pass on.
 */
int rank_fail(struct rank *r, const char *what, const char *why);
int rank_fail_call(struct rank *r, const char *call, int result);

/* 0, or 1 with the failure noted. */
int rank_barrier(struct rank *r);
uint64_t rank_now_ns(void);

/* perf_buffers.c. 0, or 1 with the failure noted. */

/* Inputs of every call, and room for the outputs but the rows. */
int rank_mode_blocks(struct rank *r);

/* The rows of one kind of memory, and where combine reads. */
int rank_row_blocks(struct rank *r, unsigned memory);
void rank_block_free(struct rank *r, int index);

/* Make outputs look like no result, so that what a call did not write is seen. */
void rank_poison(struct rank *r, const struct perf_case *c);

void rank_ht_args(struct rank *r, int64_t call, bool cached, moeep_dispatch_args_t *args);
void rank_ll_args(struct rank *r, int64_t call, moeep_ll_dispatch_args_t *args);

/* perf_calls.c. 0, or 1 with the failure noted. */

/* One call on all ranks, timed. */
int rank_step(struct rank *r, const struct perf_case *c, int64_t call,
	      uint64_t ns[PERF_MAX_PHASES]);

/* A combine, and a cached dispatch, needs the routing in its handle. */
int rank_route_all(struct rank *r);

/* Combine's input for one call. */
int rank_fill(struct rank *r, const struct perf_case *c, int64_t call);

/* Compare what one call gave with what it must give. */
int rank_check_call(struct rank *r, const struct perf_case *c, int64_t call,
		    struct check_result *result);

#endif
