/* SPDX-License-Identifier: MIT */
/*
 * host/ht_dispatch.c - moving rows to their experts.
 *
 * Each token is staged once, in a ring of chunks in the source's window, and every destination takes its
 * rows from there straight to their final place. A destination whose output is in symmetric memory gets
 * its rows stored there by the source instead; the ring then carries only what is small. One
 * thread does both sides, so neither ever waits while the other could go on: that keeps the ring free of deadlock.
 */
#include "config.h"

#include <string.h>

#include "core/error.h"
#include "host/ht.h"
#include "host/ht_route.h"
#include "host/records.h"

/* A sum of outputs beyond this does not stay in the caches anyway: write around them. */
#define STREAM_BYTES (4u << 20)

struct dispatch {
	struct moeep_ht_op op;
	const moeep_dispatch_args_t *args;
	int64_t num_tokens;
	int topk;
	uint64_t row_bytes;
	uint64_t scale_bytes; /* of a record, padded to 16 */
	bool weights;
	const float *topk_weights;
	struct moeep_scales scales; /* of x */
	struct moeep_sink sink;
	bool skip_recv;	   /* this rank's output does not fit and is left alone */
	bool rows_in_ring; /* some rank takes its rows from the rings */
	int overflow_rank; /* -1: everything fits */

	/* Chunks of the ring. */
	int64_t chunk_tokens;
	uint64_t chunk_bytes;
	int num_chunks; /* of the ring */
	int64_t total;	/* chunks of this rank's tokens */
	int64_t staged;
	int64_t staged_woken;
	int64_t done_sources; /* sources whose chunks are all taken */
};

static int64_t chunks_of(const struct dispatch *d, int rank)
{
	return (moeep_ht_entry_of(&d->op, rank)->num_tokens + d->chunk_tokens - 1) / d->chunk_tokens;
}

/* Parts of a chunk: all ids, all weights, all scales, all rows. */
static char *chunk_part(const struct dispatch *d, int rank, int64_t chunk, uint64_t *ids,
			uint64_t *weights, uint64_t *scales, uint64_t *rows)
{
	uint64_t tokens = (uint64_t)d->chunk_tokens;
	uint64_t table = tokens * (uint64_t)d->topk * 4;

	*ids = 0;
	*weights = table;
	*scales = moeep_align(*weights + (d->weights ? table : 0), 16);
	*rows = *scales + tokens * d->scale_bytes;
	return moeep_buffer_at(d->op.buffer, rank, d->op.buffer->geo.ht_ring +
						   (uint64_t)(chunk % d->num_chunks) * d->chunk_bytes);
}

static uint64_t chunk_size(const struct dispatch *d, int64_t tokens)
{
	uint64_t n = (uint64_t)tokens;
	uint64_t table = n * (uint64_t)d->topk * 4;

	return moeep_align(moeep_align(table + (d->weights ? table : 0), 16) + n * d->scale_bytes +
				   (d->rows_in_ring ? n * d->row_bytes : 0),
			   MOEEP_CACHE_LINE);
}

/* From what all ranks know alike: how the ring is cut. */
static void plan_ring(struct dispatch *d)
{
	const struct moeep_geometry *g = &d->op.buffer->geo;
	uint64_t target = (uint64_t)g->config.ht_chunk_bytes;
	uint64_t record = (uint64_t)d->topk * 4 * (d->weights ? 2 : 1) + d->scale_bytes +
			  (d->rows_in_ring ? d->row_bytes : 0);

	if (g->num_ranks == 1) {
		d->chunk_tokens = INT64_MAX / 2;
		d->num_chunks = 1;
		return;
	}
	if (target > g->ring_bytes / 2) {
		target = g->ring_bytes / 2;
	}
	d->chunk_tokens = (int64_t)(target / record);
	while (d->chunk_tokens > 1 && chunk_size(d, d->chunk_tokens) > target) {
		d->chunk_tokens--;
	}
	if (d->chunk_tokens < 1) {
		d->chunk_tokens = 1;
	}
	d->chunk_bytes = chunk_size(d, d->chunk_tokens);
	d->num_chunks = (int)(g->ring_bytes / d->chunk_bytes);
	if (d->num_chunks > g->config.ht_chunks) {
		d->num_chunks = g->config.ht_chunks;
	}
	if (d->num_chunks < 1) {
		d->num_chunks = 1;
	}
}

/* Who writes where; who has no room. The same on all ranks. */
static int plan_outputs(struct dispatch *d)
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
		if (entry->place.region != 0 && entry->capacity > 0) {
			rows = moeep_region_address(buffer->comm, rank, &entry->place,
						    (uint64_t)entry->capacity * d->row_bytes);
		}
		if (entry->place.region == 0) {
			d->rows_in_ring = (d->op.given & MOEEP_GIVEN_X) != 0;
		} else if (!rows && entry->capacity > 0) {
			return moeep_fail(MOEEP_ERR_STATE,
					  "recv_x of rank %d is in symmetric memory that rank %d has freed",
					  rank, self);
		}
		buffer->scratch.peer_rows[rank] = !fits && expert_major ? NULL : rows;
	}
	d->skip_recv = expert_major &&
		       handle->needed[self] > moeep_ht_entry_of(&d->op, self)->capacity;
	return MOEEP_OK;
}

/* A row of this rank goes straight to where a peer wants it. */
static void push_row(struct dispatch *d, int rank, const int32_t *idx, const char *row)
{
	struct moeep_scratch *s = &d->op.buffer->scratch;
	int64_t capacity = moeep_ht_entry_of(&d->op, rank)->capacity;
	char *base = s->peer_rows[rank];

	if (d->op.handle->row_layout != MOEEP_ROWS_EXPERT_MAJOR) {
		int64_t at = s->send_cursor[rank]++;

		if (base && at < capacity) {
			d->op.buffer->rowmath->copy_stream(base + (uint64_t)at * d->row_bytes, row,
							   d->row_bytes);
		}
		return;
	}
	for (int k = 0; k < d->topk; k++) {
		if (idx[k] >= 0 && s->expert_rank[idx[k]] == rank) {
			int64_t at = s->send_expert[idx[k]]++;

			if (base) {
				d->op.buffer->rowmath->copy_stream(base + (uint64_t)at * d->row_bytes, row,
								   d->row_bytes);
			}
		}
	}
}

static bool rank_is_direct(const struct dispatch *d, int rank)
{
	return moeep_ht_entry_of(&d->op, rank)->place.region != 0;
}

/* Give a token to all its ranks: its own by placing it, others by a push or by the ring's copy. */
static void stage_token(struct dispatch *d, int64_t t, int32_t *ids, float *weights, char *scales,
			char *ring_row)
{
	const int32_t *idx = &d->op.handle->topk_idx[t * d->topk];
	const char *row = d->args->x ? (const char *)d->args->x + (uint64_t)t * d->row_bytes : NULL;
	int self = d->op.buffer->geo.rank;
	int ranks[MOEEP_MAX_TOPK];
	int count = moeep_route_ranks(d->op.buffer, idx, d->topk, ranks);
	bool ring = false;

	memcpy(ids, idx, sizeof(*ids) * (size_t)d->topk);
	if (d->weights) {
		memcpy(weights, &d->topk_weights[t * d->topk], sizeof(*weights) * (size_t)d->topk);
	}
	if (d->scales.base && count > 0) {
		moeep_scales_read(&d->scales, t, scales);
	}
	for (int i = 0; i < count; i++) {
		if (ranks[i] == self) {
			struct moeep_record record = {
				.topk_idx = ids,
				.topk_weights = d->weights ? weights : NULL,
				.scales = d->scales.base ? scales : NULL,
				.row = row,
				.src_rank = self,
				.src_token = t,
			};

			if (!d->skip_recv) {
				moeep_record_place(&d->sink, &record);
			}
		} else if (rank_is_direct(d, ranks[i])) {
			push_row(d, ranks[i], idx, row);
		} else {
			ring = true;
		}
	}
	if (ring && row) {
		memcpy(ring_row, row, d->row_bytes);
	}
}

static void stage_chunk(struct dispatch *d)
{
	uint64_t ids, weights, scales, rows;
	char *base = chunk_part(d, d->op.buffer->geo.rank, d->staged, &ids, &weights, &scales, &rows);
	int64_t first = d->staged * d->chunk_tokens;

	for (int64_t i = 0; i < d->chunk_tokens && first + i < d->num_tokens; i++) {
		uint64_t n = (uint64_t)i;
		uint64_t table = n * (uint64_t)d->topk * 4;

		stage_token(d, first + i, (int32_t *)(base + ids + table),
			    (float *)(base + weights + table), base + scales + n * d->scale_bytes,
			    base + rows + n * d->row_bytes);
	}
	d->staged++;
	/* Rows pushed by streaming stores come before the flag, too. */
	moeep_rowmath_fence();
	/* Pairs with can_take() at every peer. */
	moeep_flag_publish(&moeep_buffer_words(d->op.buffer, d->op.buffer->geo.rank)->ht_head.word,
			   moeep_flag_word(d->op.epoch, (uint64_t)d->staged));
}

/* A single rank has no ring: its tokens pass through a record of their own. */
static void stage_alone(struct dispatch *d)
{
	for (int64_t t = 0; t < d->num_tokens; t++) {
		const int32_t *idx = &d->op.handle->topk_idx[t * d->topk];
		struct moeep_record record = {
			.topk_idx = idx,
			.topk_weights = d->weights ? &d->topk_weights[t * d->topk] : NULL,
			.row = d->args->x ? (const char *)d->args->x + (uint64_t)t * d->row_bytes : NULL,
			.src_rank = 0,
			.src_token = t,
		};

		if (!moeep_record_is_local(&d->sink, idx) || d->skip_recv) {
			continue;
		}
		if (d->scales.base) {
			moeep_scales_read(&d->scales, t, d->op.buffer->scratch.one_scales);
			record.scales = d->op.buffer->scratch.one_scales;
		}
		moeep_record_place(&d->sink, &record);
	}
}

static void take_chunk(struct dispatch *d, int from)
{
	struct moeep_scratch *s = &d->op.buffer->scratch;
	int64_t chunk = s->consumed[from];
	int64_t first = chunk * d->chunk_tokens;
	int64_t last = first + d->chunk_tokens;
	int64_t tokens = moeep_ht_entry_of(&d->op, from)->num_tokens;
	bool direct = rank_is_direct(d, d->op.buffer->geo.rank);
	uint64_t ids, weights, scales, rows;
	const char *base = chunk_part(d, from, chunk, &ids, &weights, &scales, &rows);

	for (int64_t t = first; t < last && t < tokens && !d->skip_recv; t++) {
		uint64_t n = (uint64_t)(t - first);
		uint64_t table = n * (uint64_t)d->topk * 4;
		struct moeep_record record = {
			.topk_idx = (const int32_t *)(base + ids + table),
			.topk_weights = d->weights ? (const float *)(base + weights + table) : NULL,
			.scales = d->scale_bytes ? base + scales + n * d->scale_bytes : NULL,
			.row = direct || !(d->op.given & MOEEP_GIVEN_X) ? NULL :
									  base + rows + n * d->row_bytes,
			.src_rank = from,
			.src_token = t,
		};

		if (moeep_record_is_local(&d->sink, record.topk_idx)) {
			moeep_record_place(&d->sink, &record);
		}
	}
	s->consumed[from]++;
	d->done_sources += s->consumed[from] == chunks_of(d, from);
	/* Pairs with can_stage() at the source: it may write over what has been read. */
	moeep_flag_publish(moeep_buffer_flag(d->op.buffer, d->op.buffer->geo.rank,
					     d->op.buffer->geo.ht_tail, from),
			   moeep_flag_word(d->op.epoch, (uint64_t)s->consumed[from]));
}

/* A chunk's place is free once every peer has taken what was there before. */
static bool can_stage(const struct dispatch *d, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = d->op.buffer;
	int64_t before = d->staged + 1 - d->num_chunks;

	if (d->staged == d->total) {
		return false;
	}
	if (before <= 0) {
		return true;
	}
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		uint64_t expected = moeep_flag_word(d->op.epoch, (uint64_t)before);
		uint64_t seen;

		if (rank == buffer->geo.rank) {
			continue;
		}
		seen = moeep_flag_get(
			moeep_buffer_flag(buffer, rank, buffer->geo.ht_tail, buffer->geo.rank));
		if (!moeep_flag_reached(seen, expected)) {
			pending->peer = rank;
			pending->expected = expected;
			pending->seen = seen;
			pending->what = "room in the ring";
			return false;
		}
	}
	return true;
}

static bool can_take(const struct dispatch *d, int from, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = d->op.buffer;
	int64_t taken = buffer->scratch.consumed[from];
	uint64_t expected = moeep_flag_word(d->op.epoch, (uint64_t)taken + 1);
	uint64_t seen;

	if (from == buffer->geo.rank || taken == chunks_of(d, from)) {
		return false;
	}
	seen = moeep_flag_get(&moeep_buffer_words(buffer, from)->ht_head.word);
	if (!moeep_flag_reached(seen, expected)) {
		pending->peer = from;
		pending->expected = expected;
		pending->seen = seen;
		pending->what = "the rows";
		return false;
	}
	return true;
}

static bool dispatch_ready(void *arg, struct moeep_pending *pending)
{
	struct dispatch *d = arg;

	if (can_stage(d, pending)) {
		return true;
	}
	for (int rank = 0; rank < d->op.buffer->geo.num_ranks; rank++) {
		if (can_take(d, rank, pending)) {
			return true;
		}
	}
	return false;
}

/*
 * Wake those who may sleep for what this rank did. Waking costs a system call and, where ranks share
 * processors, a switch; so it is put off until there is enough to do, or nothing left to do here.
 */
static void wake_peers(struct dispatch *d, int64_t least)
{
	struct moeep_scratch *s = &d->op.buffer->scratch;
	bool all = d->staged - d->staged_woken >= least && d->staged > d->staged_woken;

	for (int rank = 0; rank < d->op.buffer->geo.num_ranks; rank++) {
		bool taken = s->consumed[rank] - s->woken[rank] >= least &&
			     s->consumed[rank] > s->woken[rank] &&
			     s->consumed[rank] < chunks_of(d, rank);

		if (rank != d->op.buffer->geo.rank && (all || taken)) {
			s->woken[rank] = s->consumed[rank];
			moeep_wait_wake(d->op.buffer->comm, rank);
		}
	}
	if (all) {
		d->staged_woken = d->staged;
	}
}

static int move_rows(struct dispatch *d)
{
	struct moeep_pending unused;
	int ranks = d->op.buffer->geo.num_ranks;
	int64_t half = d->num_chunks > 1 ? d->num_chunks / 2 : 1;
	int rc = MOEEP_OK;

	while (rc == MOEEP_OK && (d->staged < d->total || d->done_sources < ranks - 1)) {
		bool progress = false;

		for (int64_t n = 0; n < half && can_stage(d, &unused); n++) {
			stage_chunk(d);
			progress = true;
		}
		wake_peers(d, half);
		/* Starting after this rank spreads the readers over the sources. */
		for (int i = 1; i < ranks; i++) {
			int from = (d->op.buffer->geo.rank + i) % ranks;

			for (int64_t n = 0; n < half && can_take(d, from, &unused); n++) {
				take_chunk(d, from);
				progress = true;
			}
		}
		if (!progress) {
			wake_peers(d, 1);
			rc = moeep_wait_until(&d->op.wait, dispatch_ready, d);
		}
	}
	wake_peers(d, 1);
	return rc;
}

/* Padding rows of an expert-major output, and what is left of the outputs after the rows. */
static void fill_rows(const struct dispatch *d, int64_t first, int64_t last, bool zero)
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
				       (uint64_t)row * (uint64_t)d->topk * moeep_dtype_size(sink->topk_dtype),
			       0xff, (uint64_t)d->topk * moeep_dtype_size(sink->topk_dtype));
		}
		if (sink->recv_topk_weights) {
			memset(sink->recv_topk_weights + row * d->topk, 0,
			       sizeof(float) * (size_t)d->topk);
		}
	}
}

static void finish_rows(const struct dispatch *d)
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

static void write_counts(const struct dispatch *d)
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
			args->recv_per_expert_padded[e] =
				(int32_t)(handle->expert_offsets[e + 1] - handle->expert_offsets[e]);
		}
	}
	for (int e = 0; args->recv_expert_offsets && e <= local; e++) {
		args->recv_expert_offsets[e] = (int32_t)handle->expert_offsets[e];
	}
}

static void count_traffic(const struct dispatch *d)
{
	const struct moeep_handle *handle = d->op.handle;

	for (int rank = 0; rank < d->op.buffer->geo.num_ranks; rank++) {
		moeep_traffic_t *traffic = &d->op.buffer->scratch.traffic[rank];

		traffic->dispatch_rows += (uint64_t)handle->recv_per_rank[rank];
		traffic->dispatch_bytes += (uint64_t)handle->recv_per_rank[rank] *
					   (d->row_bytes + d->scale_bytes);
	}
}

/* What this rank brings; for a new routing the choices are read and counted first. */
static int prepare(struct dispatch *d, struct moeep_ht_entry *entry)
{
	struct moeep_buffer *buffer = d->op.buffer;
	struct moeep_handle *handle = d->op.handle;
	const moeep_dispatch_args_t *args = d->args;
	bool cached = (args->flags & MOEEP_DISPATCH_CACHED) != 0;
	int rc;

	if (cached) {
		if (handle->kind != MOEEP_ROUTE_HT) {
			return moeep_fail(MOEEP_ERR_STATE,
					  "MOEEP_DISPATCH_CACHED: the handle has no routing of an HT dispatch");
		}
		if ((args->num_tokens && args->num_tokens != handle->num_tokens) ||
		    (args->topk && args->topk != handle->topk) ||
		    (args->row_layout && args->row_layout != handle->row_layout) ||
		    (args->expert_alignment && args->expert_alignment != handle->alignment)) {
			return moeep_fail(MOEEP_ERR_INVALID,
					  "num_tokens %lld, topk %d, row_layout %d or expert_alignment %d is "
					  "not the cached routing's %lld, %d, %d, %d",
					  (long long)args->num_tokens, args->topk, args->row_layout,
					  args->expert_alignment, (long long)handle->num_tokens,
					  handle->topk, handle->row_layout, handle->alignment);
		}
	} else {
		handle->kind = MOEEP_ROUTE_NONE;
		handle->num_tokens = args->num_tokens;
		handle->topk = args->topk ? args->topk : buffer->geo.config.max_topk;
		handle->row_layout = args->row_layout ? args->row_layout : MOEEP_ROWS_FLAT;
		handle->alignment = args->expert_alignment ? args->expert_alignment : 1;
		handle->weighted = args->topk_weights != NULL;
		rc = moeep_route_read(buffer, args->topk_idx, args->topk_dtype, args->num_tokens,
				      handle->topk, handle->topk_idx, buffer->scratch.count_rank,
				      buffer->scratch.count_expert);
		if (rc != MOEEP_OK) {
			return rc;
		}
		if (handle->weighted) {
			memcpy(handle->topk_weights, args->topk_weights,
			       sizeof(float) * (size_t)(args->num_tokens * handle->topk));
		}
	}
	d->num_tokens = handle->num_tokens;
	d->topk = handle->topk;
	d->topk_weights = cached && args->topk_weights ? args->topk_weights : handle->topk_weights;
	d->row_bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(args->dtype);
	if (d->num_tokens > 0 && !args->x && !(args->flags & MOEEP_DISPATCH_COUNTS_ONLY)) {
		return moeep_fail(MOEEP_ERR_INVALID, "x is NULL with num_tokens %lld",
				  (long long)d->num_tokens);
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
static void open_sink(struct dispatch *d)
{
	const struct moeep_geometry *g = &d->op.buffer->geo;
	struct moeep_scratch *s = &d->op.buffer->scratch;
	struct moeep_handle *handle = d->op.handle;
	const moeep_dispatch_args_t *args = d->args;
	size_t ranks = (size_t)g->num_ranks;

	d->weights = (d->op.given & MOEEP_GIVEN_WEIGHTS) != 0;
	d->scale_bytes = 0;
	if (d->op.given & MOEEP_GIVEN_SCALES) {
		d->scale_bytes = moeep_align((uint64_t)d->op.scale_count *
					     moeep_dtype_size(d->op.scale_dtype), 16);
	}
	d->scales = (struct moeep_scales){ .base = (void *)args->scales,
					   .layout = args->scale_layout,
					   .dtype = args->scale_dtype,
					   .count = args->scale_count,
					   .stride = args->scale_stride };
	moeep_scales_resolve(&d->scales, d->num_tokens);
	d->sink = (struct moeep_sink){
		.handle = handle,
		.rowmath = d->op.buffer->rowmath,
		.first_expert = g->first_expert,
		.local_experts = g->local_experts,
		.topk = d->topk,
		.expert_major = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR,
		.stream = (uint64_t)handle->num_rows * d->row_bytes > STREAM_BYTES,
		.capacity = args->capacity,
		.row_bytes = d->row_bytes,
		.recv_x = args->recv_x,
		.scales = { .base = args->recv_scales,
			    .layout = args->recv_scale_layout,
			    .dtype = d->op.scale_dtype,
			    .count = d->op.scale_count,
			    .stride = args->recv_scale_stride },
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
	memcpy(s->send_expert, handle->send_expert, sizeof(int64_t) * (size_t)g->config.num_experts);
	memset(s->consumed, 0, sizeof(int64_t) * ranks);
	memset(s->woken, 0, sizeof(int64_t) * ranks);
}

/* Tokens that a rank's handle has no room for make its dispatch overflow; all ranks know it. */
static int check_handles(const struct dispatch *d)
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

static int capacity_result(const struct dispatch *d)
{
	int rank = d->overflow_rank;

	if (rank < 0) {
		return MOEEP_OK;
	}
	return moeep_fail(MOEEP_ERR_CAPACITY, "rank %d receives %lld rows; its capacity is %lld", rank,
			  (long long)d->op.handle->needed[rank],
			  (long long)moeep_ht_entry_of(&d->op, rank)->capacity);
}

int moeep_host_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args)
{
	struct dispatch d = { .op = { .buffer = buffer, .handle = handle }, .args = args };
	struct moeep_ht_entry entry = { 0 };
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
		rc = check_handles(&d);
		if (rc == MOEEP_OK) {
			moeep_route_place(&d.op);
			handle->route = d.op.epoch;
			handle->kind = MOEEP_ROUTE_HT;
			handle->weighted = (d.op.given & MOEEP_GIVEN_WEIGHTS) != 0;
			handle->overflow = false;
		}
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	write_counts(&d);
	if (d.args->flags & MOEEP_DISPATCH_COUNTS_ONLY) {
		handle->counts_only = true;
		return MOEEP_OK;
	}
	open_sink(&d);
	rc = plan_outputs(&d);
	if (rc != MOEEP_OK) {
		return moeep_host_raise(&d.op, MOEEP_OP_DISPATCH, rc);
	}
	plan_ring(&d);
	if (buffer->geo.num_ranks == 1) {
		stage_alone(&d);
	} else {
		d.total = chunks_of(&d, buffer->geo.rank);
		for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
			d.done_sources += rank != buffer->geo.rank && chunks_of(&d, rank) == 0;
		}
		rc = move_rows(&d);
	}
	if (rc == MOEEP_OK) {
		finish_rows(&d);
		count_traffic(&d);
		handle->overflow = d.overflow_rank >= 0;
		handle->counts_only = false;
		rc = capacity_result(&d);
	}
	return rc;
}
