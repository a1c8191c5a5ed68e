/* SPDX-License-Identifier: MIT */
/* host/ht_dispatch.c - HT dispatch: what each rank brings, who has room, and what is told after. */
#include "config.h"

#include <string.h>

#include "core/error.h"
#include "ep/check.h"
#include "ep/publish.h"
#include "host/ht_dispatch.h"
#include "host/ht_route.h"

/* Who writes where; who has no room. The same on all ranks. */
static int plan_outputs(struct moeep_ht_dispatch *d)
{
	struct moeep_buffer *buffer = d->op.buffer;
	struct moeep_handle *handle = d->op.handle;
	int self = buffer->geo.rank;
	bool expert_major = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR;

	d->overflow_rank = -1;
	d->rows_in_ring = false;
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		const struct moeep_ht_entry *entry = moeep_ht_entry_of(&d->op, rank);
		bool fits = handle->needed[rank] <= entry->capacity;
		void *rows = NULL;

		if (!fits && d->overflow_rank < 0) {
			d->overflow_rank = rank;
		}
		if (moeep_is_remote(buffer, rank)) {
			/* It takes them from the ring at its gate. */
			d->rows_in_ring = (d->op.given & MOEEP_GIVEN_X) != 0;
			buffer->scratch.peer_rows[rank] = NULL;
			continue;
		}
		if (entry->place.region != 0 && entry->capacity > 0) {
			rows = moeep_region_address(buffer->comm, rank, &entry->place,
						    (uint64_t)entry->capacity * d->row_bytes);
		}
		if (entry->place.region == 0) {
			d->rows_in_ring = (d->op.given & MOEEP_GIVEN_X) != 0;
		} else if (!rows && entry->capacity > 0) {
			return moeep_fail(
				MOEEP_ERR_STATE,
				"recv_x of rank %d is in symmetric memory that rank %d has freed",
				rank, self);
		}
		buffer->scratch.peer_rows[rank] = !fits && expert_major ? NULL : rows;
	}
	d->skip_recv =
		expert_major && handle->needed[self] > moeep_ht_entry_of(&d->op, self)->capacity;
	return MOEEP_OK;
}

/* Padding rows of an expert-major output, and what is left of the outputs after the rows. */
static void fill_rows(const struct moeep_ht_dispatch *d, int64_t first, int64_t last, bool zero)
{
	const struct moeep_sink *sink = &d->sink;

	for (int64_t row = first; row < last; row++) {
		if (zero && sink->recv_x) {
			memset(sink->recv_x + (uint64_t)row * d->row_bytes, 0, d->row_bytes);
		}
		if (zero && sink->scales.base) {
			memset(d->op.buffer->scratch.one_scales, 0, d->scale_bytes);
			moeep_scales_write(&sink->scales, row, d->op.buffer->scratch.one_scales);
		}
		if (sink->recv_src_token) {
			sink->recv_src_token[row] = -1;
		}
		if (sink->recv_src_rank) {
			sink->recv_src_rank[row] = -1;
		}
		if (sink->expert_major) {
			if (sink->recv_expert) {
				sink->recv_expert[row] = -1;
			}
			if (sink->recv_topk_weights) {
				sink->recv_topk_weights[row] = 0.0f;
			}
			continue;
		}
		if (sink->recv_topk_idx) {
			memset((char *)sink->recv_topk_idx +
				       (uint64_t)row * (uint64_t)d->topk *
					       moeep_dtype_size(sink->topk_dtype),
			       0xff, (uint64_t)d->topk * moeep_dtype_size(sink->topk_dtype));
		}
		if (sink->recv_topk_weights) {
			memset(sink->recv_topk_weights + row * d->topk, 0,
			       sizeof(float) * (size_t)d->topk);
		}
	}
}

static void finish_rows(const struct moeep_ht_dispatch *d)
{
	const struct moeep_handle *handle = d->op.handle;
	bool zero = (d->args->flags & MOEEP_DISPATCH_ZERO_PADDING) != 0;

	for (int e = 0; d->sink.expert_major && e < d->sink.local_experts && !d->skip_recv; e++) {
		fill_rows(d, handle->expert_offsets[e] + handle->recv_per_expert[e],
			  handle->expert_offsets[e + 1], zero);
	}
	if ((d->args->flags & MOEEP_DISPATCH_FILL_TAIL) && !d->skip_recv) {
		fill_rows(d, handle->num_rows, d->args->capacity, false);
	}
}

static void write_counts(const struct moeep_ht_dispatch *d)
{
	const struct moeep_handle *handle = d->op.handle;
	const moeep_dispatch_args_t *args = d->args;
	int local = d->op.buffer->geo.local_experts;

	if (args->num_recv) {
		*args->num_recv = handle->num_rows;
	}
	for (int e = 0; e < local; e++) {
		if (args->recv_per_expert) {
			args->recv_per_expert[e] = (int32_t)handle->recv_per_expert[e];
		}
		if (args->recv_per_expert_padded) {
			args->recv_per_expert_padded[e] = (int32_t)(handle->expert_offsets[e + 1] -
								    handle->expert_offsets[e]);
		}
	}
	for (int e = 0; args->recv_expert_offsets && e <= local; e++) {
		args->recv_expert_offsets[e] = (int32_t)handle->expert_offsets[e];
	}
}

static void count_traffic(const struct moeep_ht_dispatch *d)
{
	const struct moeep_handle *handle = d->op.handle;

	for (int rank = 0; rank < d->op.buffer->geo.num_ranks; rank++) {
		moeep_traffic_t *traffic = &d->op.buffer->scratch.traffic[rank];

		traffic->dispatch_rows += (uint64_t)handle->recv_per_rank[rank];
		traffic->dispatch_bytes +=
			(uint64_t)handle->recv_per_rank[rank] * (d->row_bytes + d->scale_bytes);
	}
}

/* What this rank brings; for a new routing the choices are read and counted first. */
static int prepare(struct moeep_ht_dispatch *d, struct moeep_ht_entry *entry)
{
	struct moeep_buffer *buffer = d->op.buffer;
	struct moeep_handle *handle = d->op.handle;
	const moeep_dispatch_args_t *args = d->args;
	bool cached = (args->flags & MOEEP_DISPATCH_CACHED) != 0;
	int rc = MOEEP_OK;

	if (cached) {
		rc = moeep_ht_check_cached(handle, args);
		if (rc != MOEEP_OK) {
			return rc;
		}
	} else {
		handle->kind = MOEEP_ROUTE_NONE;
		handle->num_tokens = args->num_tokens;
		handle->topk = args->topk ? args->topk : buffer->geo.config.max_topk;
		handle->row_layout = args->row_layout ? args->row_layout : MOEEP_ROWS_FLAT;
		handle->alignment = args->expert_alignment ? args->expert_alignment : 1;
		rc = moeep_route_read(buffer, args->topk_idx, args->topk_dtype, args->num_tokens,
				      handle->topk, handle->topk_idx, buffer->scratch.count_rank,
				      buffer->scratch.count_expert);
		if (rc != MOEEP_OK) {
			return rc;
		}
	}
	if (args->topk_weights) {
		handle->weighted = true;
		memcpy(handle->topk_weights, args->topk_weights,
		       sizeof(float) * (size_t)(handle->num_tokens * handle->topk));
	} else if (!cached) {
		handle->weighted = false;
	}
	d->num_tokens = handle->num_tokens;
	d->topk = handle->topk;
	d->topk_weights = handle->topk_weights;
	d->row_bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(args->dtype);
	if (d->num_tokens > 0 && !args->x && !(args->flags & MOEEP_DISPATCH_COUNTS_ONLY)) {
		return moeep_fail(MOEEP_ERR_INVALID, "x is NULL with num_tokens %lld",
				  (long long)d->num_tokens);
	}

	if (args->scales) {
		/* Of a cached routing the call did not know the tokens. */
		moeep_check_scales(&rc, "scale", args->scale_layout, args->scale_stride,
				   args->scale_count, d->num_tokens);
		if (rc != MOEEP_OK) {
			return rc;
		}
	}
	entry->op = MOEEP_OP_DISPATCH;
	entry->flags = args->flags & (MOEEP_DISPATCH_CACHED | MOEEP_DISPATCH_COUNTS_ONLY);
	entry->dtype = args->dtype;
	entry->topk = d->topk;
	entry->row_layout = handle->row_layout;
	entry->alignment = handle->alignment;
	entry->num_tokens = d->num_tokens;
	entry->capacity = args->capacity;
	entry->max_recv = handle->config.max_recv;
	entry->route = cached ? handle->route : 0;
	entry->place = moeep_region_find(buffer->comm, args->recv_x,
					 (uint64_t)args->capacity * d->row_bytes);
	if (args->topk_weights || (cached && handle->weighted)) {
		entry->given |= MOEEP_GIVEN_WEIGHTS;
	}
	if (args->scales) {
		entry->given |= MOEEP_GIVEN_SCALES;
		entry->scale_count = args->scale_count;
		entry->scale_dtype = args->scale_dtype;
	}
	if (args->x) {
		entry->given |= MOEEP_GIVEN_X;
	}
	return MOEEP_OK;
}

/* After the exchange: this rank's side of the outputs. */
static void open_sink(struct moeep_ht_dispatch *d)
{
	const struct moeep_geometry *g = &d->op.buffer->geo;
	struct moeep_scratch *s = &d->op.buffer->scratch;
	struct moeep_handle *handle = d->op.handle;
	const moeep_dispatch_args_t *args = d->args;
	size_t ranks = (size_t)g->num_ranks;

	d->weights = (d->op.given & MOEEP_GIVEN_WEIGHTS) != 0;
	d->scale_bytes = 0;
	if (d->op.given & MOEEP_GIVEN_SCALES) {
		d->scale_bytes = moeep_align(
			(uint64_t)d->op.scale_count * moeep_dtype_size(d->op.scale_dtype), 16);
	}
	d->scales = (struct moeep_scales){.base = (void *)args->scales,
					  .layout = args->scale_layout,
					  .dtype = args->scale_dtype,
					  .count = args->scale_count,
					  .stride = args->scale_stride};
	moeep_scales_resolve(&d->scales, d->num_tokens);
	d->sink = (struct moeep_sink){
		.handle = handle,
		.rowmath = d->op.buffer->rowmath,
		.first_expert = g->first_expert,
		.local_experts = g->local_experts,
		.topk = d->topk,
		.expert_major = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR,
		.stream = moeep_buffer_streams(d->op.buffer,
					       (uint64_t)handle->num_rows * d->row_bytes),
		.capacity = args->capacity,
		.row_bytes = d->row_bytes,
		.recv_x = args->recv_x,
		.scales = {.base = args->recv_scales,
			   .layout = args->recv_scale_layout,
			   .dtype = d->op.scale_dtype,
			   .count = d->op.scale_count,
			   .stride = args->recv_scale_stride},
		.recv_topk_idx = args->recv_topk_idx,
		.topk_dtype = args->topk_dtype,
		.recv_topk_weights = args->recv_topk_weights,
		.recv_src_token = args->recv_src_token,
		.recv_src_rank = args->recv_src_rank,
		.recv_expert = args->recv_expert,
		.flat_cursor = s->recv_cursor,
		.expert_cursor = s->recv_expert,
	};
	moeep_scales_resolve(&d->sink.scales, args->capacity);
	memcpy(s->recv_cursor, handle->recv_base, sizeof(int64_t) * ranks);
	memcpy(s->send_cursor, handle->send_base, sizeof(int64_t) * ranks);
	memcpy(s->recv_expert, handle->recv_expert,
	       sizeof(int64_t) * ranks * (size_t)g->local_experts);
	memcpy(s->send_expert, handle->send_expert,
	       sizeof(int64_t) * (size_t)g->config.num_experts);
	memset(s->consumed, 0, sizeof(int64_t) * ranks);
	memset(s->woken, 0, sizeof(int64_t) * ranks);
}

/* Tokens that a rank's handle has no room for make its dispatch overflow; all ranks know it. */
static int check_handles(const struct moeep_ht_dispatch *d)
{
	for (int to = 0; to < d->op.buffer->geo.num_ranks; to++) {
		int64_t most = moeep_ht_entry_of(&d->op, to)->max_recv;
		int64_t tokens = 0;

		for (int from = 0; from < d->op.buffer->geo.num_ranks; from++) {
			tokens += moeep_ht_tokens_per_rank(&d->op, from)[to];
		}
		if (tokens > most) {
			return moeep_fail(MOEEP_ERR_CAPACITY,
					  "rank %d receives %lld tokens; its handle holds %lld", to,
					  (long long)tokens, (long long)most);
		}
	}
	return MOEEP_OK;
}

static int capacity_result(const struct moeep_ht_dispatch *d)
{
	int rank = d->overflow_rank;

	if (rank < 0) {
		return MOEEP_OK;
	}
	return moeep_fail(MOEEP_ERR_CAPACITY, "rank %d receives %lld rows; its capacity is %lld",
			  rank, (long long)d->op.handle->needed[rank],
			  (long long)moeep_ht_entry_of(&d->op, rank)->capacity);
}

int moeep_host_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args)
{
	struct moeep_ht_dispatch d = {.op = {.buffer = buffer, .handle = handle}, .args = args};
	struct moeep_ht_entry entry = {0};
	bool cached = (d.args->flags & MOEEP_DISPATCH_CACHED) != 0;
	int rc = moeep_comm_check(buffer->comm);

	if (rc == MOEEP_OK) {
		rc = prepare(&d, &entry);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_ht_enter(&d.op, &entry, cached ? NULL : buffer->scratch.count_rank,
				    buffer->scratch.count_expert);
	}
	if (rc == MOEEP_OK && !cached) {
		moeep_route_place(&d.op);
		for (int i = 0; i < buffer->geo.span.num_mirrors; i++) {
			handle->forward_tokens[i] =
				moeep_ht_entry_of(&d.op, buffer->scratch.forwards[i].source)
					->num_tokens;
		}
		handle->route = d.op.epoch;
		handle->weighted = (d.op.given & MOEEP_GIVEN_WEIGHTS) != 0;
		handle->overflow = false;
		write_counts(&d);
		rc = check_handles(&d);
		handle->kind = rc == MOEEP_OK ? MOEEP_ROUTE_HT : MOEEP_ROUTE_NONE;
	} else if (rc == MOEEP_OK) {
		handle->weighted = (d.op.given & MOEEP_GIVEN_WEIGHTS) != 0;
		write_counts(&d);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	if (d.args->flags & MOEEP_DISPATCH_COUNTS_ONLY) {
		handle->counts_only = true;
		return MOEEP_OK;
	}
	open_sink(&d);
	rc = plan_outputs(&d);
	if (rc != MOEEP_OK) {
		return moeep_host_raise(&d.op, MOEEP_OP_DISPATCH, rc);
	}
	moeep_ht_plan_ring(&d);
	rc = moeep_ht_move_rows(&d);
	if (rc == MOEEP_OK) {
		finish_rows(&d);
		count_traffic(&d);
		handle->overflow = d.overflow_rank >= 0;
		handle->counts_only = false;
		rc = capacity_result(&d);
	}
	return rc;
}
