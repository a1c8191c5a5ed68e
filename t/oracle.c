/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/oracle.h"

#include <string.h>

#include "t/util.h"

/* Routing. */

void oracle_experts(const struct oracle_group *group, int rank, int *first, int *count)
{
	int next = 0;

	*first = *count = 0;
	for (int r = 0; r <= rank; r++) {
		*first = next;
		*count = group->num_experts / group->num_ranks;
		if (r < group->num_experts % group->num_ranks) {
			*count += 1;
		}
		next += *count;
	}
}

int64_t oracle_choice(const struct oracle_group *group, int rank, int64_t token, int k)
{
	return group->input[rank].topk[token * group->topk + k];
}

int oracle_local_expert(const struct oracle_group *group, int rank, int64_t expert)
{
	int first, count;

	oracle_experts(group, rank, &first, &count);
	return expert >= first && expert < first + count ? (int)expert - first : -1;
}

static bool token_goes_to(const struct oracle_group *group, int src, int64_t token, int rank)
{
	for (int k = 0; k < group->topk; k++) {
		if (oracle_local_expert(group, rank, oracle_choice(group, src, token, k)) >= 0) {
			return true;
		}
	}
	return false;
}

static void add_row(struct oracle_rows *rows, int src_rank, int64_t src_token, int expert, int k)
{
	rows->row[rows->count++] = (struct oracle_row){src_rank, src_token, expert, k};
}

static void route_flat(const struct oracle_group *group, int rank, struct oracle_rows *rows)
{
	for (int src = 0; src < group->num_ranks; src++) {
		for (int64_t t = 0; t < group->input[src].num_tokens; t++) {
			if (token_goes_to(group, src, t, rank)) {
				add_row(rows, src, t, -1, -1);
			}
		}
	}
}

static void route_expert(const struct oracle_group *group, int rank, int expert,
			 struct oracle_rows *rows)
{
	for (int src = 0; src < group->num_ranks; src++) {
		for (int64_t t = 0; t < group->input[src].num_tokens; t++) {
			for (int k = 0; k < group->topk; k++) {
				if (oracle_local_expert(group, rank,
							oracle_choice(group, src, t, k)) ==
				    expert) {
					add_row(rows, src, t, expert, k);
				}
			}
		}
	}
}

static int64_t round_up(int64_t value, int64_t multiple)
{
	return (value + multiple - 1) / multiple * multiple;
}

void oracle_route(const struct oracle_group *group, int rank, int row_layout, int alignment,
		  struct oracle_rows *rows)
{
	int first, count;
	int64_t most;

	oracle_experts(group, rank, &first, &count);
	most = (int64_t)count * alignment;
	for (int src = 0; src < group->num_ranks; src++) {
		most += group->input[src].num_tokens * group->topk;
	}
	*rows = (struct oracle_rows){
		.row = util_alloc((size_t)most * sizeof(struct oracle_row)),
		.local_experts = count,
		.per_expert = util_alloc((size_t)count * sizeof(int64_t)),
		.padded = util_alloc((size_t)count * sizeof(int64_t)),
		.offsets = util_alloc((size_t)(count + 1) * sizeof(int64_t)),
	};
	for (int src = 0; src < group->num_ranks; src++) {
		for (int64_t i = 0; i < group->input[src].num_tokens * group->topk; i++) {
			int expert = oracle_local_expert(group, rank, group->input[src].topk[i]);

			if (expert >= 0) {
				rows->per_expert[expert]++;
			}
		}
	}
	for (int e = 0; e < count; e++) {
		rows->padded[e] = round_up(rows->per_expert[e], alignment);
		rows->offsets[e + 1] = rows->offsets[e] + rows->padded[e];
	}
	if (row_layout != MOEEP_ROWS_EXPERT_MAJOR) {
		route_flat(group, rank, rows);
		return;
	}
	for (int e = 0; e < count; e++) {
		route_expert(group, rank, e, rows);
		while (rows->count < rows->offsets[e + 1]) {
			add_row(rows, -1, -1, e, -1);
		}
	}
}

void oracle_rows_free(struct oracle_rows *rows)
{
	util_free(rows->row);
	util_free(rows->per_expert);
	util_free(rows->padded);
	util_free(rows->offsets);
	*rows = (struct oracle_rows){.count = 0};
}

void oracle_layout(const struct oracle_group *group, int rank, const moeep_layout_args_t *want)
{
	int64_t num_tokens = group->input[rank].num_tokens;

	for (int e = 0; want->tokens_per_expert && e < group->num_experts; e++) {
		want->tokens_per_expert[e] = 0;
		for (int64_t i = 0; i < num_tokens * group->topk; i++) {
			want->tokens_per_expert[e] += group->input[rank].topk[i] == e;
		}
	}
	for (int r = 0; r < group->num_ranks; r++) {
		int32_t count = 0;

		for (int64_t t = 0; t < num_tokens; t++) {
			bool goes = token_goes_to(group, rank, t, r);

			count += goes;
			if (want->token_in_rank) {
				want->token_in_rank[t * group->num_ranks + r] = goes;
			}
		}
		if (want->tokens_per_rank) {
			want->tokens_per_rank[r] = count;
		}
	}
	/* Nodes are numbered without gaps, so the number of ranks is enough. */
	for (int n = 0; want->tokens_per_node && n < group->num_ranks; n++) {
		bool exists = false;
		int32_t count = 0;

		for (int64_t t = 0; t < num_tokens; t++) {
			bool goes = false;

			for (int r = 0; r < group->num_ranks; r++) {
				goes |= (group->node ? group->node[r] : 0) == n &&
					token_goes_to(group, rank, t, r);
			}
			count += goes;
		}
		for (int r = 0; r < group->num_ranks; r++) {
			exists |= (group->node ? group->node[r] : 0) == n;
		}
		if (exists) {
			want->tokens_per_node[n] = count;
		}
	}
}

/* Dispatch. */

int64_t oracle_scale_stride(int layout, int64_t rows, int scale_count)
{
	return layout == MOEEP_SCALES_COLUMN_MAJOR ? round_up(rows, 4) : scale_count;
}

size_t oracle_scales_bytes(int scale_dtype, int layout, int64_t rows, int scale_count,
			   int64_t stride)
{
	if (stride == 0) {
		stride = oracle_scale_stride(layout, rows, scale_count);
	}
	if (layout == MOEEP_SCALES_ROW_MAJOR) {
		return (size_t)(rows * stride) * oracle_dtype_size(scale_dtype);
	}
	if (scale_dtype == MOEEP_UE8M0) {
		scale_count = (scale_count + 3) / 4;
	}
	return (size_t)(scale_count * stride) * 4;
}

void oracle_put_scale(void *scales, int scale_dtype, int layout, int64_t stride, int64_t row,
		      int index, const uint8_t *value)
{
	uint8_t *out = scales;

	if (layout == MOEEP_SCALES_ROW_MAJOR) {
		size_t size = oracle_dtype_size(scale_dtype);

		memcpy(out + (size_t)(row * stride + index) * size, value, size);
	} else if (scale_dtype == MOEEP_FP32) {
		memcpy(out + (index * stride + row) * 4, value, 4);
	} else {
		uint8_t *word = out + (index / 4 * stride + row) * 4;

		/* By ascending index: what follows in the word is zero or still to come. */
		word[index % 4] = *value;
		for (int i = index % 4 + 1; i < 4; i++) {
			word[i] = 0;
		}
	}
}

static void put_index(void *out, int dtype, int64_t at, int64_t value)
{
	if (dtype == MOEEP_INT32) {
		((int32_t *)out)[at] = (int32_t)value;
	} else {
		((int64_t *)out)[at] = value;
	}
}

static void put_counts(const struct oracle_rows *rows, const moeep_dispatch_args_t *want)
{
	if (want->num_recv) {
		*want->num_recv = rows->count;
	}
	for (int e = 0; e < rows->local_experts; e++) {
		if (want->recv_per_expert) {
			want->recv_per_expert[e] = (int32_t)rows->per_expert[e];
		}
		if (want->recv_per_expert_padded) {
			want->recv_per_expert_padded[e] = (int32_t)rows->padded[e];
		}
	}
	for (int e = 0; e <= rows->local_experts; e++) {
		if (want->recv_expert_offsets) {
			want->recv_expert_offsets[e] = (int32_t)rows->offsets[e];
		}
	}
}

static void put_row_data(const struct oracle_group *group, const struct oracle_row *row, int64_t at,
			 const moeep_dispatch_args_t *want)
{
	static const uint8_t zeros[4] = {0};
	size_t row_bytes = (size_t)group->hidden * oracle_dtype_size(group->dtype);
	size_t scale_size = oracle_dtype_size(group->scale_dtype);
	const struct oracle_input *input = row->src_rank < 0 ? NULL : &group->input[row->src_rank];
	int64_t stride = want->recv_scale_stride;

	if (stride == 0) {
		stride = oracle_scale_stride(want->recv_scale_layout, want->capacity,
					     group->scale_count);
	}
	if (!input && !(want->flags & MOEEP_DISPATCH_ZERO_PADDING)) {
		return;
	}
	if (want->recv_x) {
		unsigned char *out = (unsigned char *)want->recv_x + (size_t)at * row_bytes;

		memset(out, 0, row_bytes);
		if (input) {
			memcpy(out,
			       (const unsigned char *)input->x + (size_t)row->src_token * row_bytes,
			       row_bytes);
		}
	}
	for (int s = 0; want->recv_scales && s < group->scale_count; s++) {
		const uint8_t *value = zeros;

		if (input) {
			value = input->scales +
				(size_t)(row->src_token * group->scale_count + s) * scale_size;
		}
		oracle_put_scale(want->recv_scales, group->scale_dtype, want->recv_scale_layout,
				 stride, at, s, value);
	}
}

static void put_row_topk(const struct oracle_group *group, int rank, const struct oracle_row *row,
			 int64_t at, const moeep_dispatch_args_t *want)
{
	const float *weights = row->src_rank < 0 ? NULL : group->input[row->src_rank].weights;

	if (want->row_layout == MOEEP_ROWS_EXPERT_MAJOR) {
		if (want->recv_topk_weights) {
			want->recv_topk_weights[at] =
				weights ? weights[row->src_token * group->topk + row->k] : 0;
		}
		return;
	}
	for (int k = 0; k < group->topk; k++) {
		int expert = oracle_local_expert(
			group, rank, oracle_choice(group, row->src_rank, row->src_token, k));

		if (want->recv_topk_idx) {
			put_index(want->recv_topk_idx, want->topk_dtype, at * group->topk + k,
				  expert);
		}
		if (want->recv_topk_weights) {
			want->recv_topk_weights[at * group->topk + k] =
				expert >= 0 ? weights[row->src_token * group->topk + k] : 0;
		}
	}
}

static void fill_tail(const struct oracle_group *group, int64_t from,
		      const moeep_dispatch_args_t *want)
{
	int wide = want->row_layout == MOEEP_ROWS_EXPERT_MAJOR ? 1 : group->topk;

	for (int64_t at = from; at < want->capacity; at++) {
		for (int k = 0; k < wide; k++) {
			if (want->recv_topk_idx) {
				put_index(want->recv_topk_idx, want->topk_dtype, at * wide + k, -1);
			}
			if (want->recv_topk_weights) {
				want->recv_topk_weights[at * wide + k] = 0;
			}
		}
		if (want->recv_src_token) {
			want->recv_src_token[at] = -1;
		}
		if (want->recv_src_rank) {
			want->recv_src_rank[at] = -1;
		}
		if (want->recv_expert) {
			want->recv_expert[at] = -1;
		}
	}
}

void oracle_dispatch(const struct oracle_group *group, int rank, const moeep_dispatch_args_t *want)
{
	bool expert_major = want->row_layout == MOEEP_ROWS_EXPERT_MAJOR;
	struct oracle_rows rows;
	int64_t count;

	oracle_route(group, rank, want->row_layout, want->expert_alignment, &rows);
	put_counts(&rows, want);
	if (want->flags & MOEEP_DISPATCH_COUNTS_ONLY) {
		goto out;
	}
	count = rows.count;
	if (count > want->capacity) {
		count = expert_major ? 0 : want->capacity;
	}
	for (int64_t at = 0; at < count; at++) {
		const struct oracle_row *row = &rows.row[at];

		put_row_data(group, row, at, want);
		put_row_topk(group, rank, row, at, want);
		if (want->recv_src_token) {
			want->recv_src_token[at] = (int32_t)row->src_token;
		}
		if (want->recv_src_rank) {
			want->recv_src_rank[at] = row->src_rank;
		}
		if (want->recv_expert) {
			want->recv_expert[at] = row->src_rank < 0 ? -1 : row->expert;
		}
	}
	if (want->flags & MOEEP_DISPATCH_FILL_TAIL) {
		fill_tail(group, rows.count, want);
	}
out:
	oracle_rows_free(&rows);
}

/* Low-latency dispatch. */

static void ll_put_row(const struct oracle_group *group, const struct oracle_row *row, int64_t slot,
		       const moeep_ll_dispatch_args_t *want)
{
	const unsigned char *rows = group->input[row->src_rank].x;
	size_t row_bytes = (size_t)group->hidden * oracle_dtype_size(group->dtype);
	const unsigned char *x = rows + (size_t)row->src_token * row_bytes;
	int scale_dtype = want->quant == MOEEP_QUANT_FP8_UE8M0 ? MOEEP_UE8M0 : MOEEP_FP32;
	int scale_count = (int)((group->hidden + 127) / 128);
	int64_t at = (int64_t)row->expert * want->capacity + slot, stride = want->recv_scale_stride;
	unsigned char *scales = want->recv_scales;

	if (want->recv_src_token) {
		want->recv_src_token[at] = (int32_t)row->src_token;
	}
	if (want->quant == MOEEP_QUANT_NONE) {
		if (want->recv_x) {
			memcpy((unsigned char *)want->recv_x + (size_t)at * row_bytes, x,
			       row_bytes);
		}
		return;
	}
	if (stride == 0) {
		stride = oracle_scale_stride(want->recv_scale_layout, want->capacity, scale_count);
	}
	if (scales) {
		scales += (size_t)row->expert *
			  oracle_scales_bytes(scale_dtype, want->recv_scale_layout, want->capacity,
					      scale_count, stride);
	}
	for (int s = 0; s < scale_count; s++) {
		int64_t start = (int64_t)s * 128, count = group->hidden - start;
		uint8_t q[128], scale[4];

		count = count > 128 ? 128 : count;
		oracle_quantize(want->quant, group->dtype,
				x + (size_t)start * oracle_dtype_size(group->dtype), count, q,
				scale);
		if (want->recv_x) {
			memcpy((unsigned char *)want->recv_x + at * group->hidden + start, q,
			       (size_t)count);
		}
		if (scales) {
			oracle_put_scale(scales, scale_dtype, want->recv_scale_layout, stride, slot,
					 s, scale);
		}
	}
}

bool oracle_ll_dispatch(const struct oracle_group *group, int rank,
			const moeep_ll_dispatch_args_t *want)
{
	struct oracle_rows rows;
	bool fits = true;

	oracle_route(group, rank, MOEEP_ROWS_EXPERT_MAJOR, 1, &rows);
	for (int e = 0; e < rows.local_experts; e++) {
		int64_t first = 0;

		if (want->recv_count) {
			want->recv_count[e] = (int32_t)rows.per_expert[e];
		}
		fits &= rows.per_expert[e] <= want->capacity;
		for (int r = 0; r < group->num_ranks; r++) {
			int64_t count = 0;

			for (int64_t at = rows.offsets[e]; at < rows.offsets[e + 1]; at++) {
				count += rows.row[at].src_rank == r;
			}
			if (want->recv_range) {
				want->recv_range[(int64_t)e * group->num_ranks + r] =
					first << 32 | count;
			}
			first += count;
		}
		for (int64_t at = rows.offsets[e]; at < rows.offsets[e + 1]; at++) {
			if (at - rows.offsets[e] < want->capacity) {
				ll_put_row(group, &rows.row[at], at - rows.offsets[e], want);
			}
		}
	}
	oracle_rows_free(&rows);
	return fits;
}
