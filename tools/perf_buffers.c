/* SPDX-License-Identifier: MIT */
/* tools/perf_buffers.c - what lies in a rank's memory, and the arguments that point into it. */
#include <config.h>

#include <string.h>

#include "payload.h"
#include "perf_rank.h"

/* What outputs hold before the first call: no result looks like it. */
#define POISON 0xa5

static unsigned char *block_at(const struct rank *r, int index, int64_t offset, enum view view)
{
	const struct block *b = &r->block[index];
	unsigned char *start = view == VIEW_CALL ? b->base : b->host;

	/* Inputs have no view on the host once they are on the GPU. */
	return start ? start + offset : NULL;
}

static bool has_scales(const struct rank *r)
{
	return r->mode == MOEEP_MODE_HT ? r->o->dtype == MOEEP_FP8_E4M3
					: r->o->quant != MOEEP_QUANT_NONE;
}

/* Rows of every copy of the inputs, and their scales. */
static void fill_inputs(struct rank *r, int64_t tokens, int64_t x_bytes, bool scales)
{
	int64_t scales_bytes = tokens * perf_scale_count(r->o) * 4;

	for (int copy = 0; copy < r->copies; copy++) {
		float *copy_scales = NULL;

		if (scales) {
			copy_scales = (float *)(void *)block_at(r, BLOCK_SCALES,
								copy * scales_bytes, VIEW_HOST);
		}
		payload_fill_dispatch(r->o, r->mode == MOEEP_MODE_HT, copy, r->rank, tokens,
				      block_at(r, BLOCK_X, copy * x_bytes, VIEW_HOST), copy_scales);
	}
}

/* Choices of this rank in every variant of the routing, and their weights. */
static void fill_choices(struct rank *r, int64_t choices)
{
	float *weights = r->block[BLOCK_WEIGHTS].host;
	int32_t *narrow = r->block[BLOCK_INDEX].host;
	int64_t *wide = r->block[BLOCK_INDEX].host;

	for (int64_t i = 0; i < r->routing->shape.variants * choices; i++) {
		int64_t at = routing_at(r->routing, (int)(i / choices), r->rank, 0) + i % choices;

		if (r->o->index_dtype == MOEEP_INT32) {
			narrow[i] = r->routing->choice[at];
		} else {
			wide[i] = r->routing->choice[at];
		}
		weights[i] = r->routing->weight[at];
	}
}

int rank_mode_blocks(struct rank *r)
{
	static const int inputs[] = {BLOCK_X, BLOCK_SCALES, BLOCK_INDEX, BLOCK_WEIGHTS};
	const struct perf_options *o = r->o;
	const struct routing_shape *shape = &r->routing->shape;
	int64_t tokens = shape->tokens, scales = perf_scale_count(o);
	int64_t x_bytes = tokens * perf_row_bytes(o, o->dtype);
	bool ht = r->mode == MOEEP_MODE_HT;
	int64_t choices = tokens * shape->topk;
	int64_t experts = routing_local_experts(r->routing, r->rank);
	int64_t rows = ht ? r->capacity : r->capacity * experts;
	int64_t side =
		rows * (12 * shape->topk + 32) + (experts + 1) * (16 + 8 * shape->ranks) + 128;
	uint64_t scales_bytes = moeep_scales_bytes(
		ht || o->quant != MOEEP_QUANT_FP8_UE8M0 ? MOEEP_FP32 : MOEEP_UE8M0, o->scale_layout,
		r->capacity, (int32_t)scales, 0);

	if (rank_block_make(r, BLOCK_X, (uint64_t)(r->copies * x_bytes), BLOCK_ORDINARY) ||
	    rank_block_make(r, BLOCK_SCALES, (uint64_t)(r->copies * tokens * scales * 4),
			    BLOCK_ORDINARY) ||
	    rank_block_make(r, BLOCK_RECV_SCALES, scales_bytes * (ht ? 1 : (uint64_t)experts),
			    BLOCK_ORDINARY) ||
	    rank_block_make(r, BLOCK_INDEX, (uint64_t)(shape->variants * choices * 8),
			    BLOCK_ORDINARY) ||
	    rank_block_make(r, BLOCK_WEIGHTS, (uint64_t)(shape->variants * choices * 4),
			    BLOCK_ORDINARY) ||
	    rank_block_make(r, BLOCK_SIDE, (uint64_t)side, BLOCK_ORDINARY) ||
	    rank_block_make(r, BLOCK_OUT, (uint64_t)(tokens * perf_row_bytes(o, o->combine_dtype)),
			    BLOCK_ORDINARY)) {
		return 1;
	}
	fill_inputs(r, tokens, x_bytes, ht && has_scales(r));
	fill_choices(r, choices);
	for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++) {
		if (rank_block_upload(r, inputs[i])) {
			return 1;
		}
		rank_block_drop_host(r, inputs[i]);
	}
	return 0;
}

int rank_row_blocks(struct rank *r, unsigned memory)
{
	const struct perf_options *o = r->o;
	int64_t dispatch = perf_row_bytes(o, o->dtype),
		combine = perf_row_bytes(o, o->combine_dtype);
	int64_t experts = routing_local_experts(r->routing, r->rank);
	size_t slot_bytes;
	void *slot;
	int rc;

	if (r->mode == MOEEP_MODE_HT) {
		r->combine_block = BLOCK_ROWS;
		return rank_block_make(
			r, BLOCK_ROWS,
			(uint64_t)(r->capacity * (dispatch > combine ? dispatch : combine)),
			memory == PERF_SYMMETRIC ? BLOCK_SYMMETRIC : BLOCK_ORDINARY);
	}
	if (memory == 0) {
		return rank_block_make(r, BLOCK_ROWS, (uint64_t)(experts * r->capacity * dispatch),
				       BLOCK_ORDINARY);
	}
	r->combine_block = BLOCK_COMBINE;
	if (memory == PERF_ORDINARY) {
		return rank_block_make(r, BLOCK_COMBINE,
				       (uint64_t)(experts * r->capacity * combine), BLOCK_ORDINARY);
	}
	rc = moeep_ll_combine_slot(r->buffer, 0, &slot, &slot_bytes);
	return rc ? rank_fail_call(r, "moeep_ll_combine_slot", rc)
		  : rank_block_borrow(r, BLOCK_COMBINE, slot, slot_bytes);
}

static void *take(unsigned char **next, int64_t bytes)
{
	void *here = *next;

	*next += (bytes + 7) / 8 * 8;
	return here;
}

void rank_ht_args(struct rank *r, int64_t call, bool cached, enum view view,
		  moeep_dispatch_args_t *args)
{
	const struct perf_options *o = r->o;
	const struct routing_shape *shape = &r->routing->shape;
	int variant = rank_variant(r, call);
	int64_t index_bytes = (int64_t)moeep_dtype_size(o->index_dtype), rows = r->capacity;
	int64_t copy = call % r->copies, choices = shape->tokens * shape->topk;
	int64_t experts = routing_local_experts(r->routing, r->rank);
	bool flat = o->row_layout == MOEEP_ROWS_FLAT;
	unsigned char *side = block_at(r, BLOCK_SIDE, 0, view);

	*args = (moeep_dispatch_args_t){
		.size = sizeof(*args),
		.flags = cached ? MOEEP_DISPATCH_CACHED : 0,
		.dtype = o->dtype,
		.num_tokens = routing_tokens(r->routing, variant, r->rank),
		.x = block_at(r, BLOCK_X, copy * shape->tokens * perf_row_bytes(o, o->dtype), view),
		.topk = o->topk,
		.topk_idx = block_at(r, BLOCK_INDEX, variant * choices * index_bytes, view),
		.topk_weights = (const float *)(const void *)block_at(r, BLOCK_WEIGHTS,
								      variant * choices * 4, view),
		.topk_dtype = o->index_dtype,
		.row_layout = o->row_layout,
		.expert_alignment = o->alignment,
		.capacity = rows,
		.recv_x = block_at(r, BLOCK_ROWS, 0, view),
		.num_recv = take(&side, 8),
	};
	if (has_scales(r)) {
		args->scale_count = perf_scale_count(o);
		args->scale_dtype = MOEEP_FP32;
		args->scales = block_at(r, BLOCK_SCALES,
					copy * shape->tokens * perf_scale_count(o) * 4, view);
		args->recv_scale_layout = o->scale_layout;
		args->recv_scales = block_at(r, BLOCK_RECV_SCALES, 0, view);
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

void rank_ll_args(struct rank *r, int64_t call, enum view view, moeep_ll_dispatch_args_t *args)
{
	const struct perf_options *o = r->o;
	const struct routing_shape *shape = &r->routing->shape;
	int variant = rank_variant(r, call);
	int64_t experts = routing_local_experts(r->routing, r->rank);
	int64_t index_bytes = (int64_t)moeep_dtype_size(o->index_dtype);
	int64_t choices = shape->tokens * shape->topk;
	unsigned char *side = block_at(r, BLOCK_SIDE, 0, view);

	*args = (moeep_ll_dispatch_args_t){
		.size = sizeof(*args),
		.dtype = o->dtype,
		.quant = o->quant,
		.topk = o->topk,
		.topk_dtype = o->index_dtype,
		.num_tokens = routing_tokens(r->routing, variant, r->rank),
		.x = block_at(r, BLOCK_X,
			      call % r->copies * shape->tokens * perf_row_bytes(o, o->dtype), view),
		.topk_idx = block_at(r, BLOCK_INDEX, variant * choices * index_bytes, view),
		.topk_weights = (const float *)(const void *)block_at(r, BLOCK_WEIGHTS,
								      variant * choices * 4, view),
		.recv_scale_layout = o->scale_layout,
		.capacity = r->capacity,
		.recv_x = block_at(r, BLOCK_ROWS, 0, view),
		.recv_scales = has_scales(r) ? block_at(r, BLOCK_RECV_SCALES, 0, view) : NULL,
		.recv_count = take(&side, experts * 4),
		.recv_src_token = take(&side, experts * r->capacity * 4),
		.recv_range = take(&side, experts * shape->ranks * 8),
	};
}

/* What a call writes; the number of blocks. */
static int outputs(const struct perf_case *c, const int **blocks)
{
	static const int dispatch[] = {BLOCK_ROWS, BLOCK_RECV_SCALES, BLOCK_SIDE};
	static const int combine[] = {BLOCK_OUT};

	*blocks = c->op == PERF_COMBINE ? combine : dispatch;
	return c->op == PERF_COMBINE ? 1 : 3;
}

int rank_poison(struct rank *r, const struct perf_case *c)
{
	const int *blocks;
	int count = outputs(c, &blocks), rc = 0;

	for (int i = 0; rc == 0 && i < count; i++) {
		rc = rank_block_fill(r, blocks[i], POISON);
	}
	return rc;
}

int rank_fetch(struct rank *r, const struct perf_case *c)
{
	const int *blocks;
	int count = outputs(c, &blocks), rc = 0;

	for (int i = 0; rc == 0 && i < count; i++) {
		rc = rank_block_download(r, blocks[i]);
	}
	return rc;
}
