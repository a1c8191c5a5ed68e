/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_rank.h - one rank from the inside: what perf_run.c (order of calls, failure),
 * perf_mode.c (the buffer), perf_blocks.c (memory), perf_buffers.c (what lies in it, arguments),
 * perf_calls.c (single calls), perf_stream.c (calls on a GPU) and perf_twin.c (the host's results)
 * share, and nobody else sees.
 */
#ifndef MOEEP_TOOLS_PERF_RANK_H
#define MOEEP_TOOLS_PERF_RANK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "perf_cuda.h"
#include "perf_run.h"

enum block_kind {
	BLOCK_ORDINARY,	 /* this tool's: pages of its own, or device memory */
	BLOCK_SYMMETRIC, /* of moeep_mem_alloc() */
	BLOCK_BORROWED,	 /* a combine slot */
};

/*
 * Memory that calls work on, starting at page boundaries. With the host backend base and host are
 * the same; with CUDA base is device memory and host what is copied there, or was copied from
 * there.
 */
struct block {
	void *base;
	void *host;
	size_t bytes;
	enum block_kind kind;
};

enum {
	BLOCK_ROWS,    /* HT: dispatch's rows, then combine's input. LL: dispatch's rows */
	BLOCK_COMBINE, /* LL: combine's input */
	BLOCK_OUT,     /* combine's output */
	BLOCK_X,       /* dispatch's inputs, all copies */
	BLOCK_SCALES,  /* their scales */
	BLOCK_RECV_SCALES,
	BLOCK_INDEX,   /* choices of this rank, all variants */
	BLOCK_WEIGHTS, /* their weights */
	BLOCK_SIDE,    /* small outputs of dispatch */
	NUM_BLOCKS
};

/* Where arguments point: to the memory that calls work on, or to the host's view of it. */
enum view { VIEW_CALL, VIEW_HOST };

struct rank {
	struct perf_run *run;
	const struct perf_options *o;
	int rank;
	moeep_comm_t *comm;
	struct device *device; /* NULL: the host backend */
	struct rank *twin;     /* --compare-host: the same rank with the other backend */
	unsigned mode;
	const struct routing *routing;
	int copies;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle[PERF_MAX_VARIANTS];
	bool routed[PERF_MAX_VARIANTS]; /* the handle has had its dispatch */
	struct block block[NUM_BLOCKS];
	uint64_t buffer_ns;    /* that making the buffer took */
	uint64_t device_bytes; /* of the GPU, that it and its handles took; 0: unknown */
	int64_t capacity;      /* rows of the outputs; LL: of each local expert */
	int combine_block;     /* what combine reads */
};

/* One call, ready to be made. */
struct prepared {
	const struct perf_case *c;
	moeep_handle_t *handle;
	int variant;
	moeep_dispatch_args_t dispatch;
	moeep_combine_args_t combine;
	moeep_ll_dispatch_args_t ll_dispatch;
	moeep_ll_combine_args_t ll_combine;
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

/* perf_mode.c. 0, or 1 with the failure noted. */

/* The buffer of a mode, its handles, and all memory but the rows; collective. */
int rank_mode_open(struct rank *r, unsigned mode);
void rank_mode_close(struct rank *r);

/* What they took, for the report of a case. */
int rank_note_bytes(struct rank *r, int index);

/* perf_blocks.c. 0, or 1 with the failure noted. */

int rank_block_make(struct rank *r, int index, uint64_t bytes, enum block_kind kind);

/* A combine slot, which is the buffer's. */
int rank_block_borrow(struct rank *r, int index, void *base, uint64_t bytes);
void rank_block_free(struct rank *r, int index);

/* From the host's view to where calls work, and back. Nothing where both are the same. */
int rank_block_upload(struct rank *r, int index);
int rank_block_download(struct rank *r, int index);

/* The host's view is not needed any more. */
void rank_block_drop_host(struct rank *r, int index);

int rank_block_fill(struct rank *r, int index, int byte);

/* perf_buffers.c. 0, or 1 with the failure noted. */

/* Inputs of every call, and room for the outputs but the rows. */
int rank_mode_blocks(struct rank *r);

/* The rows of one kind of memory, and where combine reads. */
int rank_row_blocks(struct rank *r, unsigned memory);

/* Make outputs look like no result, so that what a call did not write is seen. */
int rank_poison(struct rank *r, const struct perf_case *c);

/* The host's view of what a call gave. */
int rank_fetch(struct rank *r, const struct perf_case *c);

void rank_ht_args(struct rank *r, int64_t call, bool cached, enum view view,
		  moeep_dispatch_args_t *args);
void rank_ll_args(struct rank *r, int64_t call, enum view view, moeep_ll_dispatch_args_t *args);

/* perf_calls.c. 0, or 1 with the failure noted. */

void rank_prepare(struct rank *r, const struct perf_case *c, int64_t call, struct prepared *p);

/* "moeep_dispatch", ... */
const char *rank_call_name(const struct perf_case *c);

/* Hand it to the library, whose result is given; phase: moeep_phase_t, for LL. */
int rank_issue(struct rank *r, struct prepared *p, int phase, const moeep_launch_t *launch);

/* What the library gave for it at once. */
int rank_look(struct rank *r, const struct perf_case *c, int result);

/* One call on all ranks, timed. */
int rank_step(struct rank *r, const struct perf_case *c, int64_t call,
	      uint64_t ns[PERF_MAX_PHASES]);

/* A combine, and a cached dispatch, needs the routing in its handle. */
int rank_route_all(struct rank *r);

/* Combine's input for one call. */
int rank_fill(struct rank *r, const struct perf_case *c, int64_t call);

/* What one call has to receive; to be freed. */
int rank_rows(struct rank *r, int64_t call, struct routing_rows *rows);

/* Compare what one call gave with what it must give. */
int rank_check_call(struct rank *r, const struct perf_case *c, int64_t call,
		    struct check_result *result);

/* perf_stream.c: calls on a GPU. 0, or 1 with the failure noted. */

/* What calls need besides the comm; collective. */
int rank_stream_open(struct rank *r);
void rank_stream_close(struct rank *r);

/* `count` calls, DEVICE_BATCH at most, back to back on the stream, each timed. */
int rank_stream_calls(struct rank *r, const struct perf_case *c, int64_t first, int count,
		      uint64_t ns[][PERF_MAX_PHASES]);

/* Record a graph of options->graph calls of the case, which its calls then replay. */
int rank_graph_make(struct rank *r, const struct perf_case *c);
void rank_graph_free(struct rank *r);

/* The call whose results a call of the case leaves behind. */
static inline int64_t rank_last_call(const struct rank *r, const struct perf_case *c, int64_t call)
{
	return c->graph ? r->o->graph - 1 : call;
}

/* perf_twin.c. 0, or 1 with the failure noted. */

/* Make the call with the host backend too and compare the results bit for bit. */
int rank_twin_check(struct rank *r, const struct perf_case *c, int64_t call,
		    struct check_result *result);

#endif
