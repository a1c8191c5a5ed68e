/* SPDX-License-Identifier: MIT */
/* tools/perf_run.c - what one rank does: buffers, calls that are timed, calls that are checked. */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "perf_run.h"

/* What outputs hold before the first call: no result looks like it. */
#define POISON 0xa5

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

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Note that this rank failed and why; the others are told, so that nobody waits for it. */
static int fail(struct rank *r, const char *what, const char *why)
{
	struct perf_shared *shared = r->run->shared;
	int none = 0;

	if (shared->error[r->rank][0] == '\0') {
		snprintf(shared->error[r->rank], PERF_ERROR_TEXT, "%s: %s", what, why);
	}
	atomic_compare_exchange_strong(&shared->failed, &none, r->rank + 1);
	if (r->comm) {
		(void)moeep_comm_abort(r->comm, shared->error[r->rank]);
	}
	return 1;
}

static int fail_call(struct rank *r, const char *call, int result)
{
	const char *detail = moeep_error_detail();

	return fail(r, call, detail[0] ? detail : moeep_strerror(result));
}

static int block_make(struct rank *r, int index, uint64_t bytes, bool symmetric)
{
	struct block *b = &r->block[index];
	char why[80];
	int rc;

	*b = (struct block){.bytes = (size_t)(bytes ? bytes : 1), .symmetric = symmetric};
	if (symmetric) {
		rc = moeep_mem_alloc(r->comm, b->bytes, 0, &b->base);
		if (rc) {
			b->base = NULL;
			return fail_call(r, "moeep_mem_alloc", rc);
		}
		return 0;
	}
	b->base = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b->base == MAP_FAILED) {
		b->base = NULL;
		snprintf(why, sizeof(why), "%zu bytes: %s", b->bytes, strerror(errno));
		return fail(r, "memory", why);
	}
	return 0;
}

static void block_free(struct rank *r, int index)
{
	struct block *b = &r->block[index];

	if (b->base && b->symmetric) {
		(void)moeep_mem_free(r->comm, b->base);
	} else if (b->base) {
		munmap(b->base, b->bytes);
	}
	*b = (struct block){.base = NULL};
}

static unsigned char *block_at(const struct rank *r, int index, int64_t offset)
{
	return (unsigned char *)r->block[index].base + offset;
}

static bool has_scales(const struct rank *r)
{
	return r->mode == MOEEP_MODE_HT ? r->o->dtype == MOEEP_FP8_E4M3
					: r->o->quant != MOEEP_QUANT_NONE;
}

static int variant_of(const struct rank *r, int64_t call)
{
	return (int)(call % r->routing->shape.variants);
}

static struct check check_of(const struct rank *r, int64_t call, struct check_result *result)
{
	struct check check = {
		.options = r->o,
		.routing = r->routing,
		.rank = r->rank,
		.variant = variant_of(r, call),
		.copy = (int)(call % r->copies),
		.result = result,
	};

	return check;
}

static int rows_of(struct rank *r, int64_t call, struct routing_rows *rows)
{
	bool ht = r->mode == MOEEP_MODE_HT;

	if (routing_rows_make(r->routing, variant_of(r, call), r->rank,
			      ht ? perf_ht_layout(r->o) : ROWS_CAPACITY,
			      ht ? r->o->alignment : r->capacity, rows)) {
		return fail(r, "memory", "the list of expected rows");
	}
	return 0;
}

/* Inputs of every call, and room for the outputs but the rows. */
static int mode_blocks(struct rank *r)
{
	const struct perf_options *o = r->o;
	const struct routing_shape *shape = &r->routing->shape;
	int64_t tokens = shape->tokens, scales = perf_scale_count(o);
	int64_t x_bytes = tokens * perf_row_bytes(o, o->dtype);
	bool ht = r->mode == MOEEP_MODE_HT;
	int64_t choices = tokens * shape->topk;
	int64_t experts = routing_local_experts(r->routing, r->rank);
	int64_t rows = ht ? r->capacity : r->capacity * experts;
	int64_t side =
		rows * (12 * shape->topk + 32) + (experts + 1) * (16 + 8 * shape->ranks) + 64;
	uint64_t scales_bytes = moeep_scales_bytes(
		ht || o->quant != MOEEP_QUANT_FP8_UE8M0 ? MOEEP_FP32 : MOEEP_UE8M0, o->scale_layout,
		r->capacity, (int32_t)scales, 0);

	if (block_make(r, BLOCK_X, (uint64_t)(r->copies * x_bytes), false) ||
	    block_make(r, BLOCK_SCALES, (uint64_t)(r->copies * tokens * scales * 4), false) ||
	    block_make(r, BLOCK_RECV_SCALES, scales_bytes * (ht ? 1 : (uint64_t)experts), false) ||
	    block_make(r, BLOCK_INDEX, (uint64_t)(shape->variants * choices * 8), false) ||
	    block_make(r, BLOCK_SIDE, (uint64_t)side, false) ||
	    block_make(r, BLOCK_OUT, (uint64_t)(tokens * perf_row_bytes(o, o->combine_dtype)),
		       false)) {
		return 1;
	}
	for (int copy = 0; copy < r->copies; copy++) {
		struct check check = check_of(r, copy, NULL);
		bool ht_scales = ht && has_scales(r);

		check_fill_dispatch(&check, ht, block_at(r, BLOCK_X, copy * x_bytes),
				    ht_scales ? (float *)(void *)block_at(
							r, BLOCK_SCALES, copy * tokens * scales * 4)
					      : NULL);
	}
	for (int64_t i = 0; i < shape->variants * choices; i++) {
		int32_t choice =
			r->routing->choice[routing_at(r->routing, (int)(i / choices), r->rank, 0) +
					   i % choices];

		if (o->index_dtype == MOEEP_INT32) {
			((int32_t *)r->block[BLOCK_INDEX].base)[i] = choice;
		} else {
			((int64_t *)r->block[BLOCK_INDEX].base)[i] = choice;
		}
	}
	return 0;
}

/* The rows of one kind of memory, and where combine reads. */
static int row_blocks(struct rank *r, unsigned memory)
{
	const struct perf_options *o = r->o;
	int64_t dispatch = perf_row_bytes(o, o->dtype),
		combine = perf_row_bytes(o, o->combine_dtype);
	int64_t experts = routing_local_experts(r->routing, r->rank);
	size_t slot_bytes;
	int rc;

	if (r->mode == MOEEP_MODE_HT) {
		rc = block_make(r, BLOCK_ROWS,
				(uint64_t)(r->capacity * (dispatch > combine ? dispatch : combine)),
				memory == PERF_SYMMETRIC);
		r->combine_x = r->block[BLOCK_ROWS].base;
		return rc;
	}
	if (memory == 0) {
		return block_make(r, BLOCK_ROWS, (uint64_t)(experts * r->capacity * dispatch),
				  false);
	}
	if (memory == PERF_ORDINARY) {
		rc = block_make(r, BLOCK_COMBINE, (uint64_t)(experts * r->capacity * combine),
				false);
		r->combine_x = r->block[BLOCK_COMBINE].base;
		return rc;
	}
	rc = moeep_ll_combine_slot(r->buffer, 0, &r->combine_x, &slot_bytes);
	return rc ? fail_call(r, "moeep_ll_combine_slot", rc) : 0;
}

static void *take(unsigned char **next, int64_t bytes)
{
	void *here = *next;

	*next += (bytes + 7) / 8 * 8;
	return here;
}

static void ht_args(struct rank *r, int64_t call, bool cached, moeep_dispatch_args_t *args)
{
	const struct perf_options *o = r->o;
	const struct routing_shape *shape = &r->routing->shape;
	int variant = variant_of(r, call);
	int64_t index_bytes = (int64_t)moeep_dtype_size(o->index_dtype), rows = r->capacity;
	int64_t copy = call % r->copies, choices = shape->tokens * shape->topk;
	int64_t experts = routing_local_experts(r->routing, r->rank);
	bool flat = o->row_layout == MOEEP_ROWS_FLAT;
	unsigned char *side = r->block[BLOCK_SIDE].base;

	*args = (moeep_dispatch_args_t){
		.size = sizeof(*args),
		.flags = cached ? MOEEP_DISPATCH_CACHED : 0,
		.dtype = o->dtype,
		.num_tokens = routing_tokens(r->routing, variant, r->rank),
		.x = block_at(r, BLOCK_X, copy * shape->tokens * perf_row_bytes(o, o->dtype)),
		.topk = o->topk,
		.topk_idx = block_at(r, BLOCK_INDEX, variant * choices * index_bytes),
		.topk_weights = r->routing->weight + routing_at(r->routing, variant, r->rank, 0),
		.topk_dtype = o->index_dtype,
		.row_layout = o->row_layout,
		.expert_alignment = o->alignment,
		.capacity = rows,
		.recv_x = r->block[BLOCK_ROWS].base,
		.num_recv = &r->num_recv,
	};
	if (has_scales(r)) {
		args->scale_count = perf_scale_count(o);
		args->scale_dtype = MOEEP_FP32;
		args->scales =
			block_at(r, BLOCK_SCALES, copy * shape->tokens * perf_scale_count(o) * 4);
		args->recv_scale_layout = o->scale_layout;
		args->recv_scales = r->block[BLOCK_RECV_SCALES].base;
	}
	if (flat) {
		args->recv_topk_idx = take(&side, rows * shape->topk * index_bytes);
	} else {
		args->recv_expert = take(&side, rows * 4);
	}
	args->recv_topk_weights = take(&side, rows * (flat ? shape->topk : 1) * 4);
	args->recv_src_token = take(&side, rows * 4);
	args->recv_src_rank = take(&side, rows * 4);
	args->recv_per_expert = take(&side, experts * 4);
	args->recv_per_expert_padded = take(&side, experts * 4);
	args->recv_expert_offsets = take(&side, (experts + 1) * 4);
}

static void ll_args(struct rank *r, int64_t call, moeep_ll_dispatch_args_t *args)
{
	const struct perf_options *o = r->o;
	const struct routing_shape *shape = &r->routing->shape;
	int variant = variant_of(r, call);
	int64_t experts = routing_local_experts(r->routing, r->rank);
	int64_t index_bytes = (int64_t)moeep_dtype_size(o->index_dtype);
	unsigned char *side = r->block[BLOCK_SIDE].base;

	*args = (moeep_ll_dispatch_args_t){
		.size = sizeof(*args),
		.dtype = o->dtype,
		.quant = o->quant,
		.topk = o->topk,
		.topk_dtype = o->index_dtype,
		.num_tokens = routing_tokens(r->routing, variant, r->rank),
		.x = block_at(r, BLOCK_X,
			      call % r->copies * shape->tokens * perf_row_bytes(o, o->dtype)),
		.topk_idx = block_at(r, BLOCK_INDEX,
				     variant * shape->tokens * shape->topk * index_bytes),
		.topk_weights = r->routing->weight + routing_at(r->routing, variant, r->rank, 0),
		.recv_scale_layout = o->scale_layout,
		.capacity = r->capacity,
		.recv_x = r->block[BLOCK_ROWS].base,
		.recv_scales = has_scales(r) ? r->block[BLOCK_RECV_SCALES].base : NULL,
		.recv_count = take(&side, experts * 4),
		.recv_src_token = take(&side, experts * r->capacity * 4),
		.recv_range = take(&side, experts * shape->ranks * 8),
	};
}

static int barrier(struct rank *r)
{
	int rc = moeep_comm_barrier(r->comm);

	return rc ? fail_call(r, "moeep_comm_barrier", rc) : 0;
}

static int ht_step(struct rank *r, const struct perf_case *c, int64_t call, bool cached,
		   uint64_t ns[PERF_MAX_PHASES])
{
	moeep_handle_t *handle = r->handle[variant_of(r, call)];
	moeep_combine_args_t combine = {
		.size = sizeof(combine),
		.flags = r->o->row_layout == MOEEP_ROWS_FLAT ? 0 : MOEEP_COMBINE_WEIGHTED,
		.dtype = r->o->combine_dtype,
		.x = r->combine_x,
		.out = r->block[BLOCK_OUT].base,
	};
	moeep_dispatch_args_t dispatch;
	uint64_t start;
	int rc;

	ht_args(r, call, cached, &dispatch);
	if (barrier(r)) {
		return 1;
	}
	start = now_ns();
	if (c->op == PERF_DISPATCH) {
		rc = moeep_dispatch(r->buffer, handle, &dispatch, NULL);
	} else {
		rc = moeep_combine(r->buffer, handle, &combine, NULL);
	}
	ns[0] = now_ns() - start;
	if (rc) {
		return fail_call(r, c->op == PERF_DISPATCH ? "moeep_dispatch" : "moeep_combine",
				 rc);
	}
	return 0;
}

static int ll_step(struct rank *r, const struct perf_case *c, int64_t call,
		   uint64_t ns[PERF_MAX_PHASES])
{
	moeep_handle_t *handle = r->handle[variant_of(r, call)];
	moeep_ll_combine_args_t combine = {
		.size = sizeof(combine),
		.dtype = r->o->combine_dtype,
		.capacity = r->capacity,
		.x = r->combine_x,
		.out = r->block[BLOCK_OUT].base,
	};
	moeep_ll_dispatch_args_t dispatch;
	int phases = r->o->phases ? 2 : 1;

	ll_args(r, call, &dispatch);
	for (int phase = 0; phase < phases; phase++) {
		uint64_t start;
		int rc;

		/* Also between the phases: RECV then finds what the peers sent. */
		if (barrier(r)) {
			return 1;
		}
		dispatch.phase = !r->o->phases ? MOEEP_PHASE_BOTH
				 : phase == 0  ? MOEEP_PHASE_SEND
					       : MOEEP_PHASE_RECV;
		combine.phase = dispatch.phase;
		start = now_ns();
		if (c->op == PERF_DISPATCH) {
			rc = moeep_ll_dispatch(r->buffer, handle, &dispatch, NULL);
		} else {
			rc = moeep_ll_combine(r->buffer, handle, &combine, NULL);
		}
		ns[phase] = now_ns() - start;
		if (rc) {
			return fail_call(r,
					 c->op == PERF_DISPATCH ? "moeep_ll_dispatch"
								: "moeep_ll_combine",
					 rc);
		}
	}
	return 0;
}

/* One call on all ranks, timed. */
static int step(struct rank *r, const struct perf_case *c, int64_t call,
		uint64_t ns[PERF_MAX_PHASES])
{
	bool cached = r->o->cached && r->routed[variant_of(r, call)];
	int rc;

	ns[1] = 0;
	rc = c->mode == MOEEP_MODE_HT ? ht_step(r, c, call, cached, ns) : ll_step(r, c, call, ns);
	if (rc == 0 && c->op == PERF_DISPATCH) {
		r->routed[variant_of(r, call)] = true;
	}
	return rc;
}

/* A combine, and a cached dispatch, needs the routing in its handle. */
static int route_all(struct rank *r)
{
	struct perf_case dispatch = {r->mode, PERF_DISPATCH, 0};
	uint64_t ns[PERF_MAX_PHASES];

	for (int v = 0; v < r->routing->shape.variants; v++) {
		if (!r->routed[v] && step(r, &dispatch, v, ns)) {
			return 1;
		}
	}
	return 0;
}

/* Combine's input for one call. */
static int fill(struct rank *r, const struct perf_case *c, int64_t call)
{
	struct check check = check_of(r, call, NULL);
	int64_t capacity = r->capacity;
	struct routing_rows rows;

	if (c->op == PERF_DISPATCH) {
		return 0;
	}
	if (rows_of(r, call, &rows)) {
		return 1;
	}
	if (c->mode == MOEEP_MODE_LL) {
		capacity *= rows.experts;
	}
	check_fill_combine(&check, &rows, r->combine_x, capacity);
	routing_rows_free(&rows);
	return 0;
}

static int check_call(struct rank *r, const struct perf_case *c, int64_t call,
		      struct check_result *result)
{
	bool ht = c->mode == MOEEP_MODE_HT;
	struct check check = check_of(r, call, result);
	moeep_ll_dispatch_args_t ll;
	moeep_dispatch_args_t dispatch;
	struct routing_rows rows;
	int rc;

	if (c->op == PERF_COMBINE) {
		rc = check_combine(&check, ht, r->block[BLOCK_OUT].base);
		return rc ? fail(r, "memory", "a row to compare with") : 0;
	}
	if (rows_of(r, call, &rows)) {
		return 1;
	}
	if (ht) {
		ht_args(r, call, false, &dispatch);
		rc = check_ht_dispatch(&check, &rows, &dispatch);
	} else {
		ll_args(r, call, &ll);
		rc = check_ll_dispatch(&check, &rows, &ll);
	}
	routing_rows_free(&rows);
	return rc ? fail(r, "memory", "a row to compare with") : 0;
}

static void poison(struct rank *r, const struct perf_case *c)
{
	static const int outputs[] = {BLOCK_ROWS, BLOCK_RECV_SCALES, BLOCK_SIDE};

	if (c->op == PERF_COMBINE) {
		memset(r->block[BLOCK_OUT].base, POISON, r->block[BLOCK_OUT].bytes);
		return;
	}
	for (size_t i = 0; i < sizeof(outputs) / sizeof(outputs[0]); i++) {
		memset(r->block[outputs[i]].base, POISON, r->block[outputs[i]].bytes);
	}
	r->num_recv = -1;
}

/* How many calls to time: the same number on all ranks, from the slowest one's warm-up. */
static int agree_iterations(struct rank *r, int index, uint64_t warm_ns, int64_t *count)
{
	struct perf_shared *shared = r->run->shared;
	const struct perf_options *o = r->o;
	int64_t most = r->mode == MOEEP_MODE_HT ? PERF_MOST_HT_ITERS : PERF_MOST_LL_ITERS,
		n = o->iters;
	uint64_t slowest = 1;

	shared->warm_ns[r->rank] = warm_ns;
	if (barrier(r)) {
		return 1;
	}
	for (int rank = 0; rank < o->ranks; rank++) {
		slowest = shared->warm_ns[rank] > slowest ? shared->warm_ns[rank] : slowest;
	}
	if (n == 0) {
		double fit = o->seconds * 1e9 / (double)slowest;

		n = fit < PERF_LEAST_ITERS ? PERF_LEAST_ITERS
		    : fit > (double)most   ? most
					   : (int64_t)fit;
	}
	/* Nobody writes the next figure before all have read this one. */
	if (barrier(r)) {
		return 1;
	}
	if (r->rank == 0) {
		shared->iterations[index] = n;
		atomic_store_explicit(&shared->calls_to_do, n, memory_order_relaxed);
	}
	*count = n;
	return 0;
}

static int timed_calls(struct rank *r, int index, int64_t first, int64_t count,
		       struct check_result *result)
{
	const struct perf_case *c = &r->run->cases[index];
	uint64_t ns[PERF_MAX_PHASES];

	for (int64_t i = 0; i < count; i++) {
		bool check = r->o->check_all || i + 1 == count;

		if (r->o->check_all && fill(r, c, first + i)) {
			return 1;
		}
		if (r->o->check_all) {
			poison(r, c);
		}
		if (step(r, c, first + i, ns)) {
			return 1;
		}
		for (int phase = 0; phase < PERF_MAX_PHASES; phase++) {
			*perf_run_ns(r->run, index, phase, i, r->rank) = ns[phase];
		}
		if (check && check_call(r, c, first + i, result)) {
			return 1;
		}
		if (r->rank == 0) {
			atomic_store_explicit(&r->run->shared->calls_done, i + 1,
					      memory_order_relaxed);
		}
	}
	return 0;
}

/* Check, warm up, time, check. */
static int run_case(struct rank *r, int index)
{
	const struct perf_case *c = &r->run->cases[index];
	struct perf_shared *shared = r->run->shared;
	struct perf_outcome *outcome = &shared->outcome[index][r->rank];
	moeep_comm_info_t info = {.size = sizeof(info)};
	int64_t warmup = perf_warmup(r->o, c->mode), count;
	uint64_t ns[PERF_MAX_PHASES], start;
	int rc;

	if (r->rank == 0) {
		atomic_store_explicit(&shared->case_now, index, memory_order_relaxed);
		atomic_store_explicit(&shared->calls_done, 0, memory_order_relaxed);
		atomic_store_explicit(&shared->calls_to_do, 0, memory_order_relaxed);
	}
	if ((c->op == PERF_COMBINE || r->o->cached) && route_all(r)) {
		return 1;
	}
	poison(r, c);
	if (fill(r, c, 0) || step(r, c, 0, ns) || check_call(r, c, 0, &outcome->check)) {
		return 1;
	}
	start = now_ns();
	for (int64_t i = 1; i <= warmup; i++) {
		if (step(r, c, i, ns)) {
			return 1;
		}
	}
	ns[0] = warmup > 0 ? (now_ns() - start) / (uint64_t)warmup : ns[0] + ns[1];
	if (agree_iterations(r, index, ns[0], &count)) {
		return 1;
	}
	if (!r->o->check_all && fill(r, c, warmup + count)) {
		return 1;
	}
	if (timed_calls(r, index, warmup + 1, count, &outcome->check)) {
		return 1;
	}
	rc = moeep_comm_query(r->comm, &info);
	if (rc) {
		return fail_call(r, "moeep_comm_query", rc);
	}
	outcome->symmetric_bytes = info.symmetric_bytes;
	return 0;
}

static int mode_open(struct rank *r, unsigned mode)
{
	moeep_buffer_config_t config;
	bool ht = mode == MOEEP_MODE_HT;
	const struct perf_plan *plan = r->run->plan;
	int rc;

	r->mode = mode;
	r->routing = ht ? &plan->ht : &plan->ll;
	r->copies = ht ? plan->copies : r->routing->shape.variants;
	r->capacity = ht ? (plan->ht_rows ? plan->ht_rows : 1) : plan->ll_capacity;
	memset(r->routed, 0, sizeof(r->routed));
	perf_buffer_config(r->o, plan, mode, &config);
	rc = moeep_buffer_create(r->comm, &config, &r->buffer);
	if (rc) {
		r->buffer = NULL;
		return fail_call(r, "moeep_buffer_create", rc);
	}
	for (int v = 0; v < r->routing->shape.variants; v++) {
		rc = moeep_handle_create(r->buffer, NULL, &r->handle[v]);
		if (rc) {
			r->handle[v] = NULL;
			return fail_call(r, "moeep_handle_create", rc);
		}
	}
	return mode_blocks(r);
}

static void mode_close(struct rank *r)
{
	for (int i = 0; i < NUM_BLOCKS; i++) {
		block_free(r, i);
	}
	for (int v = 0; v < PERF_MAX_VARIANTS; v++) {
		if (r->handle[v]) {
			(void)moeep_handle_destroy(r->handle[v]);
		}
		r->handle[v] = NULL;
	}
	(void)moeep_buffer_destroy(r->buffer);
	r->buffer = NULL;
	r->mode = 0;
}

static int note_bytes(struct rank *r, int index)
{
	struct perf_outcome *outcome = &r->run->shared->outcome[index][r->rank];
	moeep_buffer_info_t info = {.size = sizeof(info)};
	moeep_size_hint_t hint = {.size = sizeof(hint)};
	moeep_buffer_config_t config;
	int rc;

	rc = moeep_buffer_query(r->buffer, &info);
	if (rc) {
		return fail_call(r, "moeep_buffer_query", rc);
	}
	perf_buffer_config(r->o, r->run->plan, r->mode, &config);
	rc = moeep_buffer_size_hint(r->comm, 0, 0, &config, &hint);
	if (rc) {
		return fail_call(r, "moeep_buffer_size_hint", rc);
	}
	outcome->window_bytes = info.window_bytes;
	outcome->private_bytes =
		hint.private_bytes + hint.handle_bytes * (uint64_t)r->routing->shape.variants;
	return 0;
}

static int run_cases(struct rank *r)
{
	const struct perf_case *previous = NULL;

	for (int i = 0; i < r->run->num_cases; i++) {
		const struct perf_case *c = &r->run->cases[i];

		if (!previous || previous->mode != c->mode) {
			if (previous) {
				if (barrier(r)) {
					return 1;
				}
				mode_close(r);
			}
			if (mode_open(r, c->mode)) {
				return 1;
			}
			previous = NULL;
		}
		if (!previous || previous->memory != c->memory) {
			/* Peers may still read the rows that go. */
			if (barrier(r)) {
				return 1;
			}
			if (c->mode == MOEEP_MODE_HT) {
				block_free(r, BLOCK_ROWS);
			}
			/* Symmetric rows are gone when all have let go of them. */
			if (barrier(r) || row_blocks(r, c->memory)) {
				return 1;
			}
		}
		if (note_bytes(r, i) || run_case(r, i)) {
			return 1;
		}
		previous = c;
	}
	return barrier(r);
}

/* A failure is reported once, by the parent, unless somebody wants every rank's lines. */
static void log_line(void *context, int level, const char *line)
{
	(void)context;
	if (level > 1 || getenv("MOEEP_LOG")) {
		fprintf(stderr, "%s\n", line);
	}
}

int perf_run_rank(struct perf_run *run, int rank)
{
	struct rank r = {.run = run, .o = run->options, .rank = rank};
	moeep_comm_config_t config = {
		.size = sizeof(config),
		.id = &run->shared->id,
		.backend = MOEEP_BACKEND_HOST,
		.timeout_ms = run->options->timeout_ms,
		.log = log_line,
	};
	moeep_peer_info_t peer = {.size = sizeof(peer)};
	int rc;

	rc = moeep_comm_create(rank, run->options->ranks, &config, &r.comm);
	if (rc) {
		r.comm = NULL;
		return fail_call(&r, "moeep_comm_create", rc);
	}
	if (rank == 0 && moeep_comm_query_peer(r.comm, run->options->ranks - 1, &peer) == 0) {
		snprintf(run->shared->transport, sizeof(run->shared->transport), "%s",
			 moeep_transport_name(peer.transport));
	}
	rc = run_cases(&r);
	mode_close(&r);
	(void)moeep_comm_destroy(r.comm);
	return rc;
}
