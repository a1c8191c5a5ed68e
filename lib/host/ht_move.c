/* SPDX-License-Identifier: MIT */
/*
 * host/ht_move.c - moving the rows of an HT dispatch.
 *
 * Each token is staged once, in a ring of chunks in the source's window, and every destination
 * takes its rows from there straight to their final place. A destination whose output is in
 * symmetric memory gets its rows stored there by the source instead; the ring then carries only
 * what is small. One thread does both sides, so neither ever waits while the other could go on:
 * that keeps the ring free of deadlock.
 */
#include "config.h"

#include <string.h>

#include "ep/publish.h"
#include "host/ht_dispatch.h"
#include "host/ht_route.h"

int64_t moeep_ht_chunks_of(const struct moeep_ht_dispatch *d, int rank)
{
	return (moeep_ht_entry_of(&d->op, rank)->num_tokens + d->chunk_tokens - 1) /
	       d->chunk_tokens;
}

/* Parts of a chunk: all ids, all weights, all scales, all rows. */
static char *chunk_part(const struct moeep_ht_dispatch *d, int rank, int64_t chunk, uint64_t *ids,
			uint64_t *weights, uint64_t *scales, uint64_t *rows)
{
	uint64_t tokens = (uint64_t)d->chunk_tokens;
	uint64_t table = tokens * (uint64_t)d->topk * 4;

	*ids = 0;
	*weights = table;
	*scales = moeep_align(*weights + (d->weights ? table : 0), 16);
	*rows = *scales + tokens * d->scale_bytes;
	return moeep_buffer_at(d->op.buffer, rank,
			       d->op.buffer->geo.ht_ring +
				       (uint64_t)(chunk % d->num_chunks) * d->chunk_bytes);
}

static uint64_t chunk_size(const struct moeep_ht_dispatch *d, int64_t tokens)
{
	uint64_t n = (uint64_t)tokens;
	uint64_t table = n * (uint64_t)d->topk * 4;

	return moeep_align(moeep_align(table + (d->weights ? table : 0), 16) + n * d->scale_bytes +
				   (d->rows_in_ring ? n * d->row_bytes : 0),
			   MOEEP_CACHE_LINE);
}

void moeep_ht_plan_ring(struct moeep_ht_dispatch *d)
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

/* A row of this rank goes straight to where a peer wants it. */
static void push_row(struct moeep_ht_dispatch *d, int rank, const int32_t *idx, const char *row)
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
				d->op.buffer->rowmath->copy_stream(
					base + (uint64_t)at * d->row_bytes, row, d->row_bytes);
			}
		}
	}
}

bool moeep_ht_is_direct(const struct moeep_ht_dispatch *d, int rank)
{
	return moeep_ht_entry_of(&d->op, rank)->place.region != 0;
}

/* Does a rank store its rows itself where another wants them? Only within a node. */
static bool pushes_to(const struct moeep_ht_dispatch *d, int from, int to)
{
	const struct moeep_peer *peers = d->op.buffer->comm->peers;

	return moeep_ht_is_direct(d, to) && peers[from].node == peers[to].node;
}

/* Give a token to all its ranks: its own by placing it, others by a push or by the ring's copy. */
static void stage_token(struct moeep_ht_dispatch *d, int64_t t, int32_t *ids, float *weights,
			char *scales, char *ring_row)
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
		} else if (pushes_to(d, self, ranks[i])) {
			push_row(d, ranks[i], idx, row);
		} else {
			ring = true;
		}
	}
	if (ring && row) {
		memcpy(ring_row, row, d->row_bytes);
	}
}

/* Rows of the chunk's tokens that a node wants: those that lie together go together. */
static void send_rows(const struct moeep_ht_dispatch *d, int node, int64_t first, int64_t count,
		      const char *rows)
{
	const int32_t *idx = &d->op.handle->topk_idx[first * d->topk];
	int64_t begin = 0;

	while (begin < count) {
		int64_t run = moeep_route_node_run(d->op.buffer, idx, d->topk, begin, count, node);

		moeep_send_to_node(d->op.buffer, node, rows + (uint64_t)begin * d->row_bytes,
				   (uint64_t)run * d->row_bytes);
		begin += run + 1;
	}
}

/* To each other node once, whatever the number of its ranks; they read it at the gate. */
static void send_chunk(const struct moeep_ht_dispatch *d)
{
	uint64_t ids, weights, scales, rows;
	const struct moeep_comm *comm = d->op.buffer->comm;
	char *base =
		chunk_part(d, d->op.buffer->geo.rank, d->staged, &ids, &weights, &scales, &rows);
	int64_t first = d->staged * d->chunk_tokens;
	int64_t count = d->num_tokens - first;

	count = count < d->chunk_tokens ? count : d->chunk_tokens;
	for (int node = 0; node < comm->num_nodes && comm->net; node++) {
		if (comm->gates[node].rank < 0) {
			continue;
		}
		/* What is small goes whole. */
		moeep_send_to_node(d->op.buffer, node, base,
				   scales + (uint64_t)count * d->scale_bytes);
		if (d->args->x) {
			send_rows(d, node, first, count, base + rows);
		}
	}
}

static void stage_chunk(struct moeep_ht_dispatch *d)
{
	uint64_t ids, weights, scales, rows;
	char *base =
		chunk_part(d, d->op.buffer->geo.rank, d->staged, &ids, &weights, &scales, &rows);
	int64_t first = d->staged * d->chunk_tokens;

	for (int64_t i = 0; i < d->chunk_tokens && first + i < d->num_tokens; i++) {
		uint64_t n = (uint64_t)i;
		uint64_t table = n * (uint64_t)d->topk * 4;

		stage_token(d, first + i, (int32_t *)(base + ids + table),
			    (float *)(base + weights + table), base + scales + n * d->scale_bytes,
			    base + rows + n * d->row_bytes);
	}
	/* Rows pushed by streaming stores come before the flag, too. */
	moeep_rowmath_fence();
	send_chunk(d);
	d->staged++;
	/* Pairs with can_take() at every peer. */
	moeep_publish(d->op.buffer,
		      &moeep_buffer_words(d->op.buffer, d->op.buffer->geo.rank)->ht_head.word,
		      moeep_flag_word(d->op.epoch, (uint64_t)d->staged), MOEEP_TO_ALL);
}

/* A single rank has no ring: its tokens pass through a record of their own. */
static void stage_alone(struct moeep_ht_dispatch *d)
{
	for (int64_t t = 0; t < d->num_tokens; t++) {
		const int32_t *idx = &d->op.handle->topk_idx[t * d->topk];
		struct moeep_record record = {
			.topk_idx = idx,
			.topk_weights = d->weights ? &d->topk_weights[t * d->topk] : NULL,
			.row = d->args->x ? (const char *)d->args->x + (uint64_t)t * d->row_bytes
					  : NULL,
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

static void take_chunk(struct moeep_ht_dispatch *d, int from)
{
	struct moeep_scratch *s = &d->op.buffer->scratch;
	int64_t chunk = s->consumed[from];
	int64_t first = chunk * d->chunk_tokens;
	int64_t last = first + d->chunk_tokens;
	int64_t tokens = moeep_ht_entry_of(&d->op, from)->num_tokens;
	bool direct = pushes_to(d, from, d->op.buffer->geo.rank);
	uint64_t ids, weights, scales, rows;
	const char *base = chunk_part(d, from, chunk, &ids, &weights, &scales, &rows);

	if (d->op.buffer->comm->peers[from].mirror >= 0) {
		moeep_ht_note_choices(d, from, first, (const int32_t *)(base + ids),
				      (tokens < last ? tokens : last) - first);
	}

	for (int64_t t = first; t < last && t < tokens && !d->skip_recv; t++) {
		uint64_t n = (uint64_t)(t - first);
		uint64_t table = n * (uint64_t)d->topk * 4;
		struct moeep_record record = {
			.topk_idx = (const int32_t *)(base + ids + table),
			.topk_weights = d->weights ? (const float *)(base + weights + table) : NULL,
			.scales = d->scale_bytes ? base + scales + n * d->scale_bytes : NULL,
			.row = direct || !(d->op.given & MOEEP_GIVEN_X)
				       ? NULL
				       : base + rows + n * d->row_bytes,
			.src_rank = from,
			.src_token = t,
		};

		if (moeep_record_is_local(&d->sink, record.topk_idx)) {
			moeep_record_place(&d->sink, &record);
		}
	}
	s->consumed[from]++;
	d->done_sources += s->consumed[from] == moeep_ht_chunks_of(d, from);
	/* Pairs with can_stage() at the source: it may write over what has been read. */
	moeep_publish(d->op.buffer,
		      moeep_buffer_flag(d->op.buffer, d->op.buffer->geo.rank,
					d->op.buffer->geo.ht_tail, from),
		      moeep_flag_word(d->op.epoch, (uint64_t)s->consumed[from]), from);
}

/* A chunk's place is free once every peer has taken what was there before. */
static bool can_stage(const struct moeep_ht_dispatch *d, struct moeep_pending *pending)
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

static bool can_take(const struct moeep_ht_dispatch *d, int from, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = d->op.buffer;
	int64_t taken = buffer->scratch.consumed[from];
	uint64_t expected = moeep_flag_word(d->op.epoch, (uint64_t)taken + 1);
	uint64_t seen;

	if (from == buffer->geo.rank || taken == moeep_ht_chunks_of(d, from)) {
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

/*
 * The ranks wait for each other if one of them does not take its rows: with full rings nobody can
 * go on. It is that one; or, if all that was staged is taken, a source that does not stage.
 */
static void blame(const struct moeep_ht_dispatch *d, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = d->op.buffer;
	int ranks = buffer->geo.num_ranks;

	for (int source = 0; source < ranks; source++) {
		uint64_t head = moeep_flag_get(&moeep_buffer_words(buffer, source)->ht_head.word);

		for (int to = 0; to < ranks; to++) {
			uint64_t tail;

			if (to == source || to == buffer->geo.rank) {
				continue;
			}
			tail = moeep_flag_get(
				moeep_buffer_flag(buffer, to, buffer->geo.ht_tail, source));
			if (!moeep_flag_reached(tail, head)) {
				*pending = (struct moeep_pending){.peer = to,
								  .expected = head,
								  .seen = tail,
								  .what = "room in the rings"};
				return;
			}
		}
	}
}

static bool dispatch_ready(void *arg, struct moeep_pending *pending)
{
	struct moeep_ht_dispatch *d = arg;

	if (can_stage(d, pending)) {
		return true;
	}
	for (int rank = 0; rank < d->op.buffer->geo.num_ranks; rank++) {
		if (can_take(d, rank, pending)) {
			return true;
		}
	}
	/* Flags between two other ranks are not told to a third node. */
	if (pending->blame && !d->op.buffer->comm->net) {
		blame(d, pending);
	}
	return false;
}

/*
 * Wake those who may sleep for what this rank did. Waking costs a system call and, where ranks
 * share processors, a switch; so it is put off until there is enough to do, or nothing left to do
 * here.
 */
static void wake_peers(struct moeep_ht_dispatch *d, int64_t least)
{
	struct moeep_scratch *s = &d->op.buffer->scratch;
	bool all = d->staged - d->staged_woken >= least && d->staged > d->staged_woken;

	for (int rank = 0; rank < d->op.buffer->geo.num_ranks; rank++) {
		bool taken = s->consumed[rank] - s->woken[rank] >= least &&
			     s->consumed[rank] > s->woken[rank] &&
			     s->consumed[rank] < moeep_ht_chunks_of(d, rank);

		if (rank != d->op.buffer->geo.rank && (all || taken)) {
			s->woken[rank] = s->consumed[rank];
			moeep_wait_wake(d->op.buffer->comm, rank);
		}
	}
	if (all) {
		d->staged_woken = d->staged;
	}
}

static int move_chunks(struct moeep_ht_dispatch *d)
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

int moeep_ht_move_rows(struct moeep_ht_dispatch *d)
{
	const struct moeep_geometry *g = &d->op.buffer->geo;

	if (g->num_ranks == 1) {
		stage_alone(d);
		return MOEEP_OK;
	}
	d->total = moeep_ht_chunks_of(d, g->rank);
	for (int rank = 0; rank < g->num_ranks; rank++) {
		d->done_sources += rank != g->rank && moeep_ht_chunks_of(d, rank) == 0;
	}
	return move_chunks(d);
}
