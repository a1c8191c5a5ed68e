/* SPDX-License-Identifier: MIT */
/*
 * host/ht_sum.c - summing experts' rows at their tokens' ranks.
 *
 * A rank whose x is in symmetric memory is read in place. Others stage their rows for each source
 * in a ring of its own, in the order in which the source sums its tokens. One thread stages and
 * sums in turn, as in dispatch.
 */
#include "config.h"

#include <string.h>

#include "host/ht_combine.h"
#include "host/ht_route.h"

bool moeep_ht_x_is_direct(const struct moeep_ht_combine *c, int rank)
{
	return moeep_ht_entry_of(&c->op, rank)->place.region != 0;
}

bool moeep_ht_uses_ring(const struct moeep_ht_combine *c, int rank)
{
	return !moeep_ht_x_is_direct(c, rank) || c->send_values;
}

void moeep_ht_plan_combine_ring(struct moeep_ht_combine *c)
{
	const struct moeep_geometry *g = &c->op.buffer->geo;
	uint64_t share =
		g->ring_bytes / (uint64_t)g->num_ranks / MOEEP_CACHE_LINE * MOEEP_CACHE_LINE;
	uint64_t record;

	c->values_bytes = c->send_values ? moeep_align((uint64_t)c->topk * sizeof(float), 16) : 0;
	record = c->values_bytes + c->staged_bytes;
	c->num_chunks = g->config.ht_chunks;
	while (c->num_chunks > 2 && share / (uint64_t)c->num_chunks < record) {
		c->num_chunks--;
	}
	c->chunk_bytes = share / (uint64_t)c->num_chunks / 16 * 16;
	c->chunk_rows = (int64_t)(c->chunk_bytes / record);
	if (c->chunk_rows < 1) {
		c->num_chunks = 1;
		c->chunk_bytes = share;
		c->chunk_rows = 1;
	}
}

/* Record `row` of the ring from rank `from` to rank `to`. */
static char *ring_record(const struct moeep_ht_combine *c, int from, int to, int64_t row)
{
	const struct moeep_geometry *g = &c->op.buffer->geo;
	uint64_t share =
		g->ring_bytes / (uint64_t)g->num_ranks / MOEEP_CACHE_LINE * MOEEP_CACHE_LINE;
	int64_t chunk = row / c->chunk_rows % c->num_chunks;
	int64_t in_chunk = row % c->chunk_rows;

	return moeep_buffer_at(c->op.buffer, from,
			       g->ht_ring + (uint64_t)to * share +
				       (uint64_t)chunk * c->chunk_bytes +
				       (uint64_t)in_chunk * (c->values_bytes + c->staged_bytes));
}

int64_t moeep_ht_chunks_for(const struct moeep_ht_combine *c, int64_t rows)
{
	return (rows + c->chunk_rows - 1) / c->chunk_rows;
}

/* Terms of a record that this rank holds: its flat row, or the rows of its choices here. */
static int local_terms(const struct moeep_ht_combine *c, int64_t index, struct moeep_term *terms)
{
	const struct moeep_handle *handle = c->op.handle;
	const char *x = c->args->x;
	int count = 0;

	if (!c->expert_major) {
		terms[0] = (struct moeep_term){.row = x + (uint64_t)index * c->row_bytes,
					       .dtype = c->args->dtype,
					       .group_end = true};
		return 1;
	}
	for (int k = 0; k < c->topk; k++) {
		int64_t row = handle->record_rows[index * c->topk + k];

		if (row >= 0) {
			terms[count++] = (struct moeep_term){
				.row = x + (uint64_t)row * c->row_bytes,
				.dtype = c->args->dtype,
				.weighted = c->weighted,
				.weight = c->weighted ? handle->record_weights[index * c->topk + k]
						      : 0,
			};
		}
	}
	terms[count - 1].group_end = true;
	return count;
}

/* The values of a record that this rank sends back with it. */
static void local_values(const struct moeep_ht_combine *c, int64_t index, float *values)
{
	const struct moeep_handle *handle = c->op.handle;

	if (!c->expert_major) {
		memcpy(values, &c->args->topk_weights[index * c->topk],
		       sizeof(*values) * (size_t)c->topk);
		return;
	}
	for (int k = 0; k < c->topk; k++) {
		int64_t row = handle->record_rows[index * c->topk + k];

		values[k] = row >= 0 ? c->args->topk_weights[row] : 0.0f;
	}
}

static void stage_chunk(struct moeep_ht_combine *c, int to)
{
	struct moeep_scratch *s = &c->op.buffer->scratch;
	const struct moeep_handle *handle = c->op.handle;
	int self = c->op.buffer->geo.rank;
	int64_t first = s->staged[to] * c->chunk_rows;
	int64_t rows = handle->recv_per_rank[to];
	bool direct = moeep_ht_x_is_direct(c, self);

	for (int64_t row = first; row < first + c->chunk_rows && row < rows; row++) {
		int64_t index = handle->recv_base[to] + row;
		char *record = ring_record(c, self, to, row);

		if (c->send_values) {
			local_values(c, index, (float *)record);
		}
		if (direct) {
			continue;
		}
		if (!c->expert_major) {
			memcpy(record + c->values_bytes,
			       (const char *)c->args->x + (uint64_t)index * c->row_bytes,
			       c->row_bytes);
		} else {
			struct moeep_term terms[MOEEP_MAX_TOPK];
			struct moeep_sum sum = {.terms = terms,
						.num_terms = local_terms(c, index, terms),
						.out = record + c->values_bytes,
						.out_dtype = c->staged_dtype};

			c->op.buffer->rowmath->sum(&sum, c->op.buffer->geo.config.hidden);
		}
	}
	s->staged[to]++;
	c->unstaged -= s->staged[to] == moeep_ht_chunks_for(c, rows);
	/* Pairs with rows_there() at the source. */
	moeep_flag_publish(moeep_buffer_flag(c->op.buffer, self, c->op.buffer->geo.ht_chead, to),
			   moeep_flag_word(c->op.epoch, (uint64_t)s->staged[to]));
}

static bool can_stage(const struct moeep_ht_combine *c, int to, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = c->op.buffer;
	int self = buffer->geo.rank;
	int64_t before;
	uint64_t expected;
	uint64_t seen;

	if (to == self || !moeep_ht_uses_ring(c, self) ||
	    buffer->scratch.staged[to] == moeep_ht_chunks_for(c, c->op.handle->recv_per_rank[to])) {
		return false;
	}
	before = buffer->scratch.staged[to] + 1 - c->num_chunks;
	if (before <= 0) {
		return true;
	}
	expected = moeep_flag_word(c->op.epoch, (uint64_t)before);
	seen = moeep_flag_get(moeep_buffer_flag(buffer, to, buffer->geo.ht_ctail, self));
	if (moeep_flag_reached(seen, expected)) {
		return true;
	}
	pending->peer = to;
	pending->expected = expected;
	pending->seen = seen;
	pending->what = "room in the ring";
	return false;
}

/* Has the next row of an expert rank for this rank come? */
static bool row_there(const struct moeep_ht_combine *c, int from, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = c->op.buffer;
	uint64_t expected;
	uint64_t seen;

	if (from == buffer->geo.rank || !moeep_ht_uses_ring(c, from)) {
		return true;
	}
	expected = moeep_flag_word(
		c->op.epoch, (uint64_t)(buffer->scratch.recv_cursor[from] / c->chunk_rows) + 1);
	seen = moeep_flag_get(
		moeep_buffer_flag(buffer, from, buffer->geo.ht_chead, buffer->geo.rank));
	if (moeep_flag_reached(seen, expected)) {
		return true;
	}
	pending->peer = from;
	pending->expected = expected;
	pending->seen = seen;
	pending->what = "the rows";
	return false;
}

/* Can the next token be summed? */
static bool can_sum(const struct moeep_ht_combine *c, struct moeep_pending *pending)
{
	const struct moeep_handle *handle = c->op.handle;
	int ranks[MOEEP_MAX_TOPK];
	int count;

	if (c->next_token == handle->num_tokens) {
		return false;
	}
	count = moeep_route_ranks(c->op.buffer, &handle->topk_idx[c->next_token * c->topk], c->topk,
				  ranks);
	for (int i = 0; i < count; i++) {
		if (!row_there(c, ranks[i], pending)) {
			return false;
		}
	}
	return true;
}

/* Terms of a token's rows at a peer whose x is read in place. */
static int peer_terms(const struct moeep_ht_combine *c, int rank, int64_t token,
		      struct moeep_term *terms)
{
	struct moeep_scratch *s = &c->op.buffer->scratch;
	const struct moeep_handle *handle = c->op.handle;
	const char *x = s->peer_rows[rank];
	int count = 0;

	if (!c->expert_major) {
		terms[0] = (struct moeep_term){
			.row = x + (uint64_t)(handle->send_base[rank] + s->recv_cursor[rank]) *
					   c->row_bytes,
			.dtype = c->args->dtype,
			.group_end = true,
		};
		return 1;
	}
	for (int k = 0; k < c->topk; k++) {
		int32_t expert = handle->topk_idx[token * c->topk + k];

		if (expert >= 0 && s->expert_rank[expert] == rank) {
			terms[count++] = (struct moeep_term){
				.row = x + (uint64_t)s->send_expert[expert]++ * c->row_bytes,
				.dtype = c->args->dtype,
				.weighted = c->weighted,
				.weight =
					c->weighted ? handle->topk_weights[token * c->topk + k] : 0,
			};
		}
	}
	terms[count - 1].group_end = true;
	return count;
}

static void take_values(const struct moeep_ht_combine *c, int rank, int64_t token,
			const float *values)
{
	const struct moeep_handle *handle = c->op.handle;

	for (int k = 0; k < c->topk; k++) {
		int32_t expert = handle->topk_idx[token * c->topk + k];

		if (expert >= 0 && c->op.buffer->scratch.expert_rank[expert] == rank) {
			c->args->out_topk_weights[token * c->topk + k] = values[k];
		}
	}
}

/* This rank has used a record of a peer: past the end of a chunk the peer may fill it again. */
static void advance(struct moeep_ht_combine *c, int from)
{
	struct moeep_buffer *buffer = c->op.buffer;
	struct moeep_scratch *s = &buffer->scratch;

	s->recv_cursor[from]++;
	if (from == buffer->geo.rank || !moeep_ht_uses_ring(c, from) ||
	    s->recv_cursor[from] % c->chunk_rows != 0) {
		return;
	}
	s->consumed[from]++;
	/* Pairs with can_stage() at the expert rank. */
	moeep_flag_publish(moeep_buffer_flag(buffer, buffer->geo.rank, buffer->geo.ht_ctail, from),
			   moeep_flag_word(c->op.epoch, (uint64_t)s->consumed[from]));
}

static void sum_token(struct moeep_ht_combine *c)
{
	struct moeep_buffer *buffer = c->op.buffer;
	const struct moeep_handle *handle = c->op.handle;
	int64_t token = c->next_token++;
	struct moeep_term terms[MOEEP_MAX_TOPK];
	int ranks[MOEEP_MAX_TOPK];
	struct moeep_sum sum = {
		.terms = terms, .out_dtype = c->args->dtype, .stream = c->stream_out};
	int self = buffer->geo.rank;
	int count = moeep_route_ranks(buffer, &handle->topk_idx[token * c->topk], c->topk, ranks);

	if (c->args->out_topk_weights) {
		memset(&c->args->out_topk_weights[token * c->topk], 0,
		       sizeof(float) * (size_t)c->topk);
	}
	for (int i = 0; i < count; i++) {
		int rank = ranks[i];
		int64_t row = buffer->scratch.recv_cursor[rank];
		int64_t index = handle->recv_base[self] + row;
		float values[MOEEP_MAX_TOPK];
		const char *record = NULL;

		if (rank != self && moeep_ht_uses_ring(c, rank)) {
			record = ring_record(c, rank, self, row);
		}
		if (rank == self) {
			sum.num_terms += local_terms(c, index, &terms[sum.num_terms]);
		} else if (moeep_ht_x_is_direct(c, rank)) {
			sum.num_terms += peer_terms(c, rank, token, &terms[sum.num_terms]);
		} else {
			terms[sum.num_terms++] =
				(struct moeep_term){.row = record + c->values_bytes,
						    .dtype = c->staged_dtype,
						    .group_end = true};
		}
		if (c->send_values && c->args->out_topk_weights) {
			if (rank == self) {
				local_values(c, index, values);
			} else {
				memcpy(values, record, sizeof(float) * (size_t)c->topk);
			}
			take_values(c, rank, token, values);
		}
	}
	if (c->expert_major) {
		sum.group_dtype = c->staged_dtype;
	}
	if (c->args->bias) {
		sum.bias = (const char *)c->args->bias + (uint64_t)token * c->row_bytes;
	}
	sum.out = (char *)c->args->out + (uint64_t)token * c->row_bytes;
	if (c->args->out) {
		buffer->rowmath->sum(&sum, buffer->geo.config.hidden);
	}
	for (int i = 0; i < count; i++) {
		advance(c, ranks[i]);
	}
}

static bool combine_ready(void *arg, struct moeep_pending *pending)
{
	struct moeep_ht_combine *c = arg;

	if (can_sum(c, pending)) {
		return true;
	}
	for (int rank = 0; rank < c->op.buffer->geo.num_ranks; rank++) {
		struct moeep_pending other = *pending;

		if (can_stage(c, rank, &other)) {
			return true;
		}
		if (c->next_token == c->op.handle->num_tokens && other.peer >= 0) {
			*pending = other;
		}
	}
	return false;
}

/* See ht_dispatch.c: wake-ups are put off. woken counts staged and consumed chunks together. */
static void wake_peers(struct moeep_ht_combine *c, int64_t least)
{
	struct moeep_scratch *s = &c->op.buffer->scratch;

	for (int rank = 0; rank < c->op.buffer->geo.num_ranks; rank++) {
		int64_t done = s->staged[rank] + s->consumed[rank];

		if (rank != c->op.buffer->geo.rank && done > s->woken[rank] &&
		    done - s->woken[rank] >= least) {
			s->woken[rank] = done;
			moeep_wait_wake(c->op.buffer->comm, rank);
		}
	}
}

int moeep_ht_sum_rows(struct moeep_ht_combine *c)
{
	struct moeep_pending unused;
	int64_t half = c->num_chunks > 1 ? c->num_chunks / 2 : 1;
	int ranks = c->op.buffer->geo.num_ranks;
	int rc = MOEEP_OK;

	while (rc == MOEEP_OK && (c->unstaged > 0 || c->next_token < c->op.handle->num_tokens)) {
		bool progress = false;

		for (int i = 1; i < ranks; i++) {
			int to = (c->op.buffer->geo.rank + i) % ranks;

			for (int64_t n = 0; n < half && can_stage(c, to, &unused); n++) {
				stage_chunk(c, to);
				progress = true;
			}
		}
		wake_peers(c, half);
		for (int64_t n = 0; n < c->chunk_rows * half && can_sum(c, &unused); n++) {
			sum_token(c);
			progress = true;
		}
		if (!progress) {
			wake_peers(c, 1);
			rc = moeep_wait_until(&c->op.wait, combine_ready, c);
		}
	}
	wake_peers(c, 1);
	return rc;
}
