/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_twin.c - moeep-perf --compare-host: the same calls with the host backend, and whether
 * they gave the same bytes.
 */
#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "perf_rank.h"

struct comparison {
	const struct rank *r;
	struct check_result *result;
};

static void compare(struct comparison *x, const char *what, int64_t index, const void *gpu,
		    const void *host, int64_t bytes)
{
	const unsigned char *a = gpu, *b = host;

	x->result->values++;
	if (bytes <= 0 || !memcmp(a, b, (size_t)bytes)) {
		return;
	}
	if (x->result->wrong++ > 0) {
		return;
	}
	for (int64_t i = 0; i < bytes; i++) {
		if (a[i] != b[i]) {
			snprintf(x->result->first, sizeof(x->result->first),
				 "rank %d: %s[%" PRId64 "] differs from the host backend's: byte "
				 "%" PRId64 " is 0x%02x and not 0x%02x",
				 x->r->rank, what, index, i, a[i], b[i]);
			break;
		}
	}
}

static void compare_scales(struct comparison *x, const unsigned char *gpu,
			   const unsigned char *host, int dtype, int64_t capacity, int64_t at,
			   int64_t position)
{
	const struct perf_options *o = x->r->o;
	int32_t count = perf_scale_count(o);

	for (int32_t s = 0; s < count; s++) {
		int64_t offset = check_scale_offset(dtype, o->scale_layout, capacity, count, at, s);

		compare(x, "recv_scales", position, gpu + offset, host + offset,
			(int64_t)moeep_dtype_size(dtype));
	}
}

static void compare_ht(struct comparison *x, struct rank *twin, struct rank *r, int64_t call,
		       const struct routing_rows *rows)
{
	const struct perf_options *o = r->o;
	int64_t row_bytes = perf_row_bytes(o, o->dtype), experts = rows->experts;
	int64_t choices = o->row_layout == MOEEP_ROWS_FLAT ? o->topk : 1;
	int64_t index_bytes = choices * (int64_t)moeep_dtype_size(o->index_dtype);
	moeep_dispatch_args_t a, b;

	rank_ht_args(r, call, false, VIEW_HOST, &a);
	rank_ht_args(twin, call, false, VIEW_HOST, &b);
	compare(x, "num_recv", 0, a.num_recv, b.num_recv, 8);
	compare(x, "recv_per_expert", 0, a.recv_per_expert, b.recv_per_expert, experts * 4);
	compare(x, "recv_per_expert_padded", 0, a.recv_per_expert_padded, b.recv_per_expert_padded,
		experts * 4);
	compare(x, "recv_expert_offsets", 0, a.recv_expert_offsets, b.recv_expert_offsets,
		(experts + 1) * 4);
	compare(x, "recv_topk_weights", 0, a.recv_topk_weights, b.recv_topk_weights,
		rows->total * choices * 4);
	compare(x, "recv_src_token", 0, a.recv_src_token, b.recv_src_token, rows->total * 4);
	compare(x, "recv_src_rank", 0, a.recv_src_rank, b.recv_src_rank, rows->total * 4);
	if (a.recv_topk_idx) {
		compare(x, "recv_topk_idx", 0, a.recv_topk_idx, b.recv_topk_idx,
			rows->total * index_bytes);
	} else {
		compare(x, "recv_expert", 0, a.recv_expert, b.recv_expert, rows->total * 4);
	}
	for (int64_t i = 0; i < rows->count; i++) {
		int64_t at = rows->row[i].position;

		compare(x, "row", at, (unsigned char *)a.recv_x + at * row_bytes,
			(unsigned char *)b.recv_x + at * row_bytes, row_bytes);
		if (a.recv_scales) {
			compare_scales(x, a.recv_scales, b.recv_scales, MOEEP_FP32, a.capacity, at,
				       at);
		}
	}
}

static void compare_ll(struct comparison *x, struct rank *twin, struct rank *r, int64_t call,
		       const struct routing_rows *rows)
{
	const struct perf_options *o = r->o;
	int dtype = o->quant == MOEEP_QUANT_NONE ? o->dtype : MOEEP_FP8_E4M3;
	int scale_dtype = o->quant == MOEEP_QUANT_FP8_UE8M0 ? MOEEP_UE8M0 : MOEEP_FP32;
	int64_t row_bytes = perf_row_bytes(o, dtype);
	moeep_ll_dispatch_args_t a, b;
	int64_t scales_bytes;

	rank_ll_args(r, call, VIEW_HOST, &a);
	rank_ll_args(twin, call, VIEW_HOST, &b);
	scales_bytes = (int64_t)moeep_scales_bytes(scale_dtype, o->scale_layout, a.capacity,
						   perf_scale_count(o), 0);
	compare(x, "recv_count", 0, a.recv_count, b.recv_count, rows->experts * 4);
	for (int i = 0; i < rows->experts * o->ranks; i++) {
		/* Where nothing came from the first row says nothing. */
		if ((a.recv_range[i] & 0xffffffff) || (b.recv_range[i] & 0xffffffff)) {
			compare(x, "recv_range", i, &a.recv_range[i], &b.recv_range[i], 8);
		}
	}
	for (int64_t i = 0; i < rows->count; i++) {
		const struct routing_row *row = &rows->row[i];
		int64_t at = row->position, skip = row->expert * scales_bytes;

		compare(x, "recv_src_token", at, &a.recv_src_token[at], &b.recv_src_token[at], 4);
		compare(x, "row", at, (unsigned char *)a.recv_x + at * row_bytes,
			(unsigned char *)b.recv_x + at * row_bytes, row_bytes);
		if (a.recv_scales) {
			compare_scales(x, (unsigned char *)a.recv_scales + skip,
				       (unsigned char *)b.recv_scales + skip, scale_dtype,
				       a.capacity, at - row->expert * a.capacity, at);
		}
	}
}

static void compare_combine(struct comparison *x, struct rank *twin, struct rank *r, int64_t call)
{
	int64_t row_bytes = perf_row_bytes(r->o, r->o->combine_dtype);
	const unsigned char *a = r->block[BLOCK_OUT].host, *b = twin->block[BLOCK_OUT].host;
	int64_t tokens = routing_tokens(r->routing, rank_variant(r, call), r->rank);

	for (int64_t t = 0; t < tokens; t++) {
		compare(x, "out", t, a + t * row_bytes, b + t * row_bytes, row_bytes);
	}
}

int rank_twin_check(struct rank *r, const struct perf_case *c, int64_t call,
		    struct check_result *result)
{
	struct comparison x = {.r = r, .result = result};
	struct rank *twin = r->twin;
	struct perf_case own = *c;
	uint64_t ns[PERF_MAX_PHASES];
	struct routing_rows rows;

	own.graph = false;
	if ((c->op == PERF_COMBINE || r->o->cached) && rank_route_all(twin)) {
		return 1;
	}
	if (rank_poison(twin, &own) || rank_fill(twin, &own, call) ||
	    rank_step(twin, &own, call, ns) || rank_rows(r, call, &rows)) {
		return 1;
	}
	if (c->op == PERF_COMBINE) {
		compare_combine(&x, twin, r, call);
	} else if (c->mode == MOEEP_MODE_HT) {
		compare_ht(&x, twin, r, call, &rows);
	} else {
		compare_ll(&x, twin, r, call, &rows);
	}
	routing_rows_free(&rows);
	return 0;
}
