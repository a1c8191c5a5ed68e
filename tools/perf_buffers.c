/* SPDX-License-Identifier: MIT */
/* tools/perf_buffers.c - memory of one rank, and the arguments of calls that point into it. */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "payload.h"
#include "perf_rank.h"

/* What outputs hold before the first call: no result looks like it. */
#define POISON 0xa5

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
			return rank_fail_call(r, "moeep_mem_alloc", rc);
		}
		return 0;
	}
	b->base = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (b->base == MAP_FAILED) {
		b->base = NULL;
		snprintf(why, sizeof(why), "%zu bytes: %s", b->bytes, strerror(errno));
		return rank_fail(r, "memory", why);
	}
	return 0;
}

void rank_block_free(struct rank *r, int index)
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

int rank_mode_blocks(struct rank *r)
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
		float *copy_scales = NULL;

		if (ht && has_scales(r)) {
			copy_scales = (float *)(void *)block_at(r, BLOCK_SCALES,
								copy * tokens * scales * 4);
		}
		payload_fill_dispatch(o, ht, copy, r->rank, tokens,
				      block_at(r, BLOCK_X, copy * x_bytes), copy_scales);
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

int rank_row_blocks(struct rank *r, unsigned memory)
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
	return rc ? rank_fail_call(r, "moeep_ll_combine_slot", rc) : 0;
}

static void *take(unsigned char **next, int64_t bytes)
{
	void *here = *next;

	*next += (bytes + 7) / 8 * 8;
	return here;
}

void rank_ht_args(struct rank *r, int64_t call, bool cached, moeep_dispatch_args_t *args)
{
	const struct perf_options *o = r->o;
	const struct routing_shape *shape = &r->routing->shape;
	int variant = rank_variant(r, call);
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

void rank_ll_args(struct rank *r, int64_t call, moeep_ll_dispatch_args_t *args)
{
	const struct perf_options *o = r->o;
	const struct routing_shape *shape = &r->routing->shape;
	int variant = rank_variant(r, call);
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

void rank_poison(struct rank *r, const struct perf_case *c)
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
