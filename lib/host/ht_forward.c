/* SPDX-License-Identifier: MIT */
/*
 * host/ht_forward.c - HT combine across nodes: each node's rows of a token are summed there, by the
 * rank that hears the token's rank, and travel as one.
 *
 * The ranks of the node stage their rows for that token's rank as they do for one of their own
 * node; the one that forwards takes them out of their rings, in the order of the source's tokens,
 * and stages the sums in its own ring for that source, which is sent to the source's node.
 */
#include "config.h"

#include <string.h>

#include "ep/publish.h"
#include "host/ht_combine.h"
#include "host/ht_dispatch.h"
#include "host/ht_route.h"

static int32_t *choices_of(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			   int source, int topk)
{
	return handle->forward_idx + (int64_t)buffer->comm->peers[source].mirror *
					     buffer->geo.config.ht_max_tokens * topk;
}

void moeep_ht_note_choices(const struct moeep_ht_dispatch *d, int from, int64_t first,
			   const int32_t *idx, int64_t tokens)
{
	struct moeep_buffer *buffer = d->op.buffer;

	if (buffer->comm->peers[from].host == buffer->geo.rank) {
		memcpy(choices_of(buffer, d->op.handle, from, d->topk) + first * d->topk, idx,
		       sizeof(*idx) * (size_t)(tokens * d->topk));
	}
}

int moeep_ht_givers(const struct moeep_ht_combine *c, const int32_t *idx, int *givers)
{
	const struct moeep_comm *comm = c->op.buffer->comm;
	int ranks[MOEEP_MAX_TOPK];
	int count = moeep_route_ranks(c->op.buffer, idx, c->topk, ranks);
	int num_givers = 0;

	if (comm->num_nodes == 1) {
		memcpy(givers, ranks, sizeof(*ranks) * (size_t)count);
		return count;
	}
	for (int i = 0; i < count; i++) {
		int node = comm->peers[ranks[i]].node;
		int giver = comm->gates[node].rank >= 0 ? comm->gates[node].rank : ranks[i];
		int at = num_givers;

		while (at > 0 && comm->peers[givers[at - 1]].node > node) {
			at--;
		}
		if (at > 0 && givers[at - 1] == giver) {
			continue;
		}
		memmove(&givers[at + 1], &givers[at], sizeof(*givers) * (size_t)(num_givers - at));
		givers[at] = giver;
		num_givers++;
	}
	return num_givers;
}

/* The ranks of this node that have rows of a source's token, ascending. */
static int holders_of(const struct moeep_ht_combine *c, const int32_t *idx, int *holders)
{
	int ranks[MOEEP_MAX_TOPK];
	int count = moeep_route_ranks(c->op.buffer, idx, c->topk, ranks);
	int local = 0;

	for (int i = 0; i < count; i++) {
		if (!moeep_is_remote(c->op.buffer, ranks[i])) {
			holders[local++] = ranks[i];
		}
	}
	return local;
}

static const int32_t *next_choices(const struct moeep_ht_combine *c,
				   const struct moeep_forward *forward)
{
	return choices_of(c->op.buffer, c->op.handle, forward->source, c->topk) +
	       forward->next * c->topk;
}

/* Go on to the next token that has rows here. */
static void skip_tokens(const struct moeep_ht_combine *c, struct moeep_forward *forward)
{
	int holders[MOEEP_MAX_TOPK];

	while (forward->next < forward->num_tokens &&
	       holders_of(c, next_choices(c, forward), holders) == 0) {
		forward->next++;
	}
}

void moeep_ht_forward_begin(struct moeep_ht_combine *c)
{
	struct moeep_buffer *buffer = c->op.buffer;
	size_t local = (size_t)buffer->geo.span.most_local;
	int holders[MOEEP_MAX_TOPK];

	c->num_forwards = buffer->geo.span.num_mirrors;
	for (int i = 0; i < c->num_forwards; i++) {
		struct moeep_forward *forward = &buffer->scratch.forwards[i];

		forward->num_tokens = c->op.handle->forward_tokens[i];
		forward->total = 0;
		forward->summed = 0;
		memset(forward->cursor, 0, sizeof(*forward->cursor) * local);
		memset(forward->used, 0, sizeof(*forward->used) * local);
		for (forward->next = 0; forward->next < forward->num_tokens; forward->next++) {
			forward->total += holders_of(c, next_choices(c, forward), holders) > 0;
		}
		forward->next = 0;
		skip_tokens(c, forward);
		c->unforwarded += forward->total > 0;
	}
}

static bool has_room(const struct moeep_ht_combine *c, const struct moeep_forward *forward,
		     struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = c->op.buffer;
	int64_t before = forward->summed / c->chunk_rows + 1 - c->num_chunks;
	uint64_t expected = moeep_flag_word(c->op.epoch, (uint64_t)before);
	uint64_t seen;

	if (before <= 0) {
		return true;
	}
	seen = moeep_flag_get(
		moeep_buffer_flag(buffer, forward->source, buffer->geo.ht_ctail, buffer->geo.rank));
	if (moeep_flag_reached(seen, expected)) {
		return true;
	}
	pending->peer = forward->source;
	pending->expected = expected;
	pending->seen = seen;
	pending->what = "room in the ring";
	return false;
}

bool moeep_ht_can_forward(const struct moeep_ht_combine *c, struct moeep_forward *forward,
			  struct moeep_pending *pending)
{
	const struct moeep_buffer *buffer = c->op.buffer;
	int holders[MOEEP_MAX_TOPK];
	int count;

	if (forward->summed == forward->total || !has_room(c, forward, pending)) {
		return false;
	}
	count = holders_of(c, next_choices(c, forward), holders);
	for (int i = 0; i < count; i++) {
		int from = holders[i];

		if (from != buffer->geo.rank &&
		    !moeep_ht_row_there(c, from, forward->source,
					forward->cursor[buffer->comm->peers[from].local_rank],
					pending)) {
			return false;
		}
	}
	return true;
}

static void merge_values(const struct moeep_ht_combine *c, const int32_t *idx, int rank,
			 const float *values, float *all)
{
	for (int k = 0; k < c->topk; k++) {
		if (idx[k] >= 0 && c->op.buffer->scratch.expert_rank[idx[k]] == rank) {
			all[k] = values[k];
		}
	}
}

/* A rank's ring for the source is used up to a row: past the end of a chunk it may be filled. */
static void release_row(struct moeep_ht_combine *c, struct moeep_forward *forward, int from)
{
	struct moeep_buffer *buffer = c->op.buffer;
	int local = buffer->comm->peers[from].local_rank;

	if (forward->cursor[local] % c->chunk_rows != 0) {
		return;
	}
	forward->used[local]++;
	/* Pairs with moeep_ht_can_stage() there. */
	moeep_flag_publish(moeep_buffer_flag(buffer, buffer->geo.rank, buffer->geo.ht_ftail,
					     forward->source * buffer->geo.span.most_local + local),
			   moeep_flag_word(c->op.epoch, (uint64_t)forward->used[local]));
	moeep_wait_wake(buffer->comm, from);
}

/* Sum the next token's rows into this rank's own ring for the source. */
static void sum_token(struct moeep_ht_combine *c, struct moeep_forward *forward)
{
	struct moeep_buffer *buffer = c->op.buffer;
	const int32_t *idx = next_choices(c, forward);
	char *out = moeep_ht_ring_record(c, buffer->geo.rank, forward->source, forward->summed);
	int holders[MOEEP_MAX_TOPK];
	int count = holders_of(c, idx, holders);
	struct moeep_row_sum row;
	struct moeep_sum *sum = &row.sum;

	*sum = (struct moeep_sum){.terms = row.terms,
				  .group_dtype = c->expert_major ? c->staged_dtype : 0,
				  .out = out + c->values_bytes,
				  .out_dtype = c->node_dtype};
	memset(out, 0, c->values_bytes);
	for (int i = 0; i < count; i++) {
		int from = holders[i];
		int64_t at = forward->cursor[buffer->comm->peers[from].local_rank]++;
		int64_t index = c->op.handle->recv_base[forward->source] + at;
		float values[MOEEP_MAX_TOPK];
		const char *record = NULL;

		if (from == buffer->geo.rank) {
			sum->num_terms +=
				moeep_ht_local_terms(c, index, &row.terms[sum->num_terms]);
		} else {
			record = moeep_ht_ring_record(c, from, forward->source, at);
			row.terms[sum->num_terms++] =
				(struct moeep_term){.row = record + c->values_bytes,
						    .dtype = c->staged_dtype,
						    .group_end = true};
		}
		if (!c->send_values) {
			continue;
		}
		if (!record) {
			moeep_ht_local_values(c, index, values);
		}
		merge_values(c, idx, from, record ? (const float *)record : values, (float *)out);
	}
	buffer->rowmath->sum(sum, buffer->geo.config.hidden);
	for (int i = 0; i < count; i++) {
		if (holders[i] != buffer->geo.rank) {
			release_row(c, forward, holders[i]);
		}
	}
	forward->summed++;
	forward->next++;
	skip_tokens(c, forward);
}

/* A chunk is complete, or the last one is: send it. */
static void send_sums(struct moeep_ht_combine *c, const struct moeep_forward *forward)
{
	struct moeep_buffer *buffer = c->op.buffer;
	int64_t chunk = (forward->summed - 1) / c->chunk_rows;
	int64_t rows = forward->summed - chunk * c->chunk_rows;
	const char *first =
		moeep_ht_ring_record(c, buffer->geo.rank, forward->source, chunk * c->chunk_rows);

	moeep_send_to_node(buffer, buffer->comm->peers[forward->source].node, first,
			   (uint64_t)rows * (c->values_bytes + c->room_bytes));
	/* Pairs with moeep_ht_row_there() at the source. */
	moeep_publish(
		buffer,
		moeep_buffer_flag(buffer, buffer->geo.rank, buffer->geo.ht_chead, forward->source),
		moeep_flag_word(c->op.epoch, (uint64_t)chunk + 1), forward->source);
}

bool moeep_ht_forward_rows(struct moeep_ht_combine *c, int64_t most)
{
	struct moeep_pending unused;
	bool any = false;

	for (int i = 0; i < c->num_forwards; i++) {
		struct moeep_forward *forward = &c->op.buffer->scratch.forwards[i];

		for (int64_t n = 0; n < most && moeep_ht_can_forward(c, forward, &unused); n++) {
			sum_token(c, forward);
			any = true;
			if (forward->summed % c->chunk_rows == 0 ||
			    forward->summed == forward->total) {
				send_sums(c, forward);
			}
			c->unforwarded -= forward->summed == forward->total;
		}
	}
	return any;
}
