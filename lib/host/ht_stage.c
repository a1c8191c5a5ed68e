/* SPDX-License-Identifier: MIT */
/* host/ht_stage.c - HT combine: the ring in which a rank stages its rows for each source. */
#include "config.h"

#include <string.h>

#include "ep/publish.h"
#include "host/ht_combine.h"

bool moeep_ht_x_is_direct(const struct moeep_ht_combine *c, int rank)
{
	return moeep_ht_entry_of(&c->op, rank)->place.region != 0;
}

bool moeep_ht_uses_ring(const struct moeep_ht_combine *c, int rank)
{
	return !moeep_ht_x_is_direct(c, rank) || c->send_values ||
	       moeep_is_remote(c->op.buffer, rank);
}

int moeep_ht_taker(const struct moeep_ht_combine *c, int to)
{
	const struct moeep_comm *comm = c->op.buffer->comm;

	return moeep_is_remote(c->op.buffer, to)
		       ? moeep_comm_gate_of(comm, to, comm->peers[comm->rank].node)
		       : to;
}

bool moeep_ht_stages_for(const struct moeep_ht_combine *c, int to)
{
	int self = c->op.buffer->geo.rank;

	/* What it forwards itself needs no staging. */
	return moeep_ht_taker(c, to) != self &&
	       (moeep_ht_uses_ring(c, self) || moeep_is_remote(c->op.buffer, to));
}

void moeep_ht_plan_combine_ring(struct moeep_ht_combine *c)
{
	const struct moeep_geometry *g = &c->op.buffer->geo;
	uint64_t share =
		g->ring_bytes / (uint64_t)g->num_ranks / MOEEP_CACHE_LINE * MOEEP_CACHE_LINE;
	uint64_t record;

	c->values_bytes = c->send_values ? moeep_align((uint64_t)c->topk * sizeof(float), 16) : 0;
	c->room_bytes = c->staged_bytes;
	if (g->span.several && c->node_bytes > c->room_bytes) {
		c->room_bytes = c->node_bytes;
	}
	record = c->values_bytes + c->room_bytes;
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

char *moeep_ht_ring_record(const struct moeep_ht_combine *c, int from, int to, int64_t row)
{
	const struct moeep_geometry *g = &c->op.buffer->geo;
	uint64_t share =
		g->ring_bytes / (uint64_t)g->num_ranks / MOEEP_CACHE_LINE * MOEEP_CACHE_LINE;
	int64_t chunk = row / c->chunk_rows % c->num_chunks;
	int64_t in_chunk = row % c->chunk_rows;

	return moeep_buffer_at(c->op.buffer, from,
			       g->ht_ring + (uint64_t)to * share +
				       (uint64_t)chunk * c->chunk_bytes +
				       (uint64_t)in_chunk * (c->values_bytes + c->room_bytes));
}

int64_t moeep_ht_chunks_for(const struct moeep_ht_combine *c, int64_t rows)
{
	return (rows + c->chunk_rows - 1) / c->chunk_rows;
}

int moeep_ht_local_terms(const struct moeep_ht_combine *c, int64_t index, struct moeep_term *terms)
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

void moeep_ht_local_values(const struct moeep_ht_combine *c, int64_t index, float *values)
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

void moeep_ht_stage_chunk(struct moeep_ht_combine *c, int to)
{
	struct moeep_scratch *s = &c->op.buffer->scratch;
	const struct moeep_handle *handle = c->op.handle;
	int self = c->op.buffer->geo.rank;
	int64_t first = s->staged[to] * c->chunk_rows;
	int64_t rows = handle->recv_per_rank[to];
	bool direct = moeep_ht_x_is_direct(c, self) && !moeep_is_remote(c->op.buffer, to);

	for (int64_t row = first; row < first + c->chunk_rows && row < rows; row++) {
		int64_t index = handle->recv_base[to] + row;
		char *record = moeep_ht_ring_record(c, self, to, row);

		if (c->send_values) {
			moeep_ht_local_values(c, index, (float *)record);
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
						.num_terms = moeep_ht_local_terms(c, index, terms),
						.out = record + c->values_bytes,
						.out_dtype = c->staged_dtype};

			c->op.buffer->rowmath->sum(&sum, c->op.buffer->geo.config.hidden);
		}
	}
	s->staged[to]++;
	c->unstaged -= s->staged[to] == moeep_ht_chunks_for(c, rows);
	/* Pairs with moeep_ht_row_there() at the taker, which is on this node. */
	moeep_flag_publish(moeep_buffer_flag(c->op.buffer, self, c->op.buffer->geo.ht_chead, to),
			   moeep_flag_word(c->op.epoch, (uint64_t)s->staged[to]));
}

bool moeep_ht_can_stage(const struct moeep_ht_combine *c, int to, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = c->op.buffer;
	int self = buffer->geo.rank;
	int64_t before;
	uint64_t expected;
	uint64_t seen;
	int taker;

	if (!moeep_ht_stages_for(c, to) ||
	    buffer->scratch.staged[to] == moeep_ht_chunks_for(c, c->op.handle->recv_per_rank[to])) {
		return false;
	}
	before = buffer->scratch.staged[to] + 1 - c->num_chunks;
	if (before <= 0) {
		return true;
	}
	expected = moeep_flag_word(c->op.epoch, (uint64_t)before);
	taker = moeep_ht_taker(c, to);
	seen = moeep_flag_get(
		taker == to ? moeep_buffer_flag(buffer, to, buffer->geo.ht_ctail, self)
			    : moeep_buffer_flag(buffer, taker, buffer->geo.ht_ftail,
						to * buffer->geo.span.most_local +
							buffer->comm->peers[self].local_rank));
	if (moeep_flag_reached(seen, expected)) {
		return true;
	}
	pending->peer = taker;
	pending->expected = expected;
	pending->seen = seen;
	pending->what = "room in the ring";
	return false;
}
