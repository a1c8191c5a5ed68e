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

#include "ep/publish.h"
#include "host/ht_combine.h"
#include "host/ht_route.h"

bool moeep_ht_row_there(const struct moeep_ht_combine *c, int from, int to, int64_t row,
			struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = c->op.buffer;
	uint64_t expected = moeep_flag_word(c->op.epoch, (uint64_t)(row / c->chunk_rows) + 1);
	uint64_t seen = moeep_flag_get(moeep_buffer_flag(buffer, from, buffer->geo.ht_chead, to));

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
	count = moeep_ht_givers(c, &handle->topk_idx[c->next_token * c->topk], ranks);
	for (int i = 0; i < count; i++) {
		int from = ranks[i];

		if (from != c->op.buffer->geo.rank && moeep_ht_uses_ring(c, from) &&
		    !moeep_ht_row_there(c, from, c->op.buffer->geo.rank,
					c->op.buffer->scratch.recv_cursor[from], pending)) {
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
	const struct moeep_peer *peers = c->op.buffer->comm->peers;
	const struct moeep_handle *handle = c->op.handle;

	for (int k = 0; k < c->topk; k++) {
		int32_t expert = handle->topk_idx[token * c->topk + k];

		int holder = expert >= 0 ? c->op.buffer->scratch.expert_rank[expert] : -1;

		/* Who forwards gives what all ranks of its node hold. */
		if (holder >= 0 && (holder == rank || (moeep_is_remote(c->op.buffer, rank) &&
						       peers[holder].node == peers[rank].node))) {
			c->args->out_topk_weights[token * c->topk + k] = values[k];
		}
	}
}

/* A token's rows, taken from the ranks' cursors. */
struct gathered {
	struct moeep_row_sum row;
	int count;
	int ranks[MOEEP_MAX_TOPK];
	int64_t records[MOEEP_MAX_TOPK]; /* which one of each rank's */
};

/* The rows and values of the next token, all of which are there. */
static void gather_token(struct moeep_ht_combine *c, struct gathered *token)
{
	struct moeep_buffer *buffer = c->op.buffer;
	const struct moeep_handle *handle = c->op.handle;
	int64_t t = c->next_token++;
	struct moeep_sum *sum = &token->row.sum;
	struct moeep_term *terms = token->row.terms;
	int self = buffer->geo.rank;

	*sum = (struct moeep_sum){
		.terms = terms, .out_dtype = c->args->dtype, .stream = c->stream_out};
	token->count = moeep_ht_givers(c, &handle->topk_idx[t * c->topk], token->ranks);
	if (c->args->out_topk_weights) {
		memset(&c->args->out_topk_weights[t * c->topk], 0, sizeof(float) * (size_t)c->topk);
	}
	for (int i = 0; i < token->count; i++) {
		int rank = token->ranks[i];
		int64_t row = buffer->scratch.recv_cursor[rank];
		int64_t index = handle->recv_base[self] + row;
		float values[MOEEP_MAX_TOPK];
		const char *record = NULL;

		token->records[i] = row;
		if (rank != self && moeep_ht_uses_ring(c, rank)) {
			record = moeep_ht_ring_record(c, rank, self, row);
		}
		if (rank == self) {
			sum->num_terms += moeep_ht_local_terms(c, index, &terms[sum->num_terms]);
		} else if (moeep_is_remote(buffer, rank)) {
			terms[sum->num_terms++] =
				(struct moeep_term){.row = record + c->values_bytes,
						    .dtype = c->node_dtype,
						    .group_end = true};
		} else if (moeep_ht_x_is_direct(c, rank)) {
			sum->num_terms += peer_terms(c, rank, t, &terms[sum->num_terms]);
		} else {
			terms[sum->num_terms++] =
				(struct moeep_term){.row = record + c->values_bytes,
						    .dtype = c->staged_dtype,
						    .group_end = true};
		}
		if (c->send_values && c->args->out_topk_weights) {
			if (rank == self) {
				moeep_ht_local_values(c, index, values);
			} else {
				memcpy(values, record, sizeof(float) * (size_t)c->topk);
			}
			take_values(c, rank, t, values);
		}
		terms[sum->num_terms - 1].node_end =
			buffer->geo.span.several &&
			(i + 1 == token->count || buffer->comm->peers[token->ranks[i + 1]].node !=
							  buffer->comm->peers[rank].node);
		buffer->scratch.recv_cursor[rank]++;
	}
	if (c->expert_major) {
		sum->group_dtype = c->staged_dtype;
	}
	if (c->args->bias) {
		sum->bias = (const char *)c->args->bias + (uint64_t)t * c->row_bytes;
	}
	sum->out = (char *)c->args->out + (uint64_t)t * c->row_bytes;
}

/* This rank has used its peers' records: past the end of a chunk the peer may fill it again. */
static void release_token(struct moeep_ht_combine *c, const struct gathered *token)
{
	struct moeep_buffer *buffer = c->op.buffer;
	struct moeep_scratch *s = &buffer->scratch;

	for (int i = 0; i < token->count; i++) {
		int from = token->ranks[i];

		int64_t used = token->records[i] + 1;
		bool last = used == s->expected[from];

		if (from == buffer->geo.rank || !moeep_ht_uses_ring(c, from) ||
		    (used % c->chunk_rows != 0 && !last)) {
			continue;
		}
		s->consumed[from]++;
		/* Nobody waits for the place of a last chunk: it only tells blame(). */
		s->woken[from] += last;
		/* Pairs with moeep_ht_can_stage() at the expert rank. */
		moeep_publish(
			buffer,
			moeep_buffer_flag(buffer, buffer->geo.rank, buffer->geo.ht_ctail, from),
			moeep_flag_word(c->op.epoch, (uint64_t)s->consumed[from]), from);
	}
}

/* Sum up to `most` tokens whose rows are there; false if there was none. */
static bool sum_tokens(struct moeep_ht_combine *c, int64_t most)
{
	struct gathered tokens[2]; /* one, and the next to look ahead to */
	struct moeep_pending unused;
	bool more = can_sum(c, &unused);
	bool any = more;

	if (more) {
		gather_token(c, &tokens[0]);
	}
	for (int64_t n = 0; more; n++) {
		struct gathered *token = &tokens[n % 2];

		more = n + 1 < most && can_sum(c, &unused);
		if (more) {
			gather_token(c, &tokens[(n + 1) % 2]);
			token->row.sum.next = &tokens[(n + 1) % 2].row.sum;
		}
		if (c->args->out) {
			c->op.buffer->rowmath->sum(&token->row.sum,
						   c->op.buffer->geo.config.hidden);
		}
		release_token(c, token);
	}
	return any;
}

/* Chunks that a flag counts in this operation. */
static int64_t chunks_in(const struct moeep_ht_combine *c, int rank, uint64_t array, int index)
{
	uint64_t seen = moeep_flag_get(moeep_buffer_flag(c->op.buffer, rank, array, index));

	return moeep_flag_reached(seen, moeep_flag_word(c->op.epoch, 0))
		       ? (int64_t)(seen & MOEEP_FLAG_COUNT_MAX)
		       : 0;
}

/* How many of how many chunks one rank has staged for another, and that one has used. */
static void ring_state(const struct moeep_ht_combine *c, int from, int to, int64_t *total,
		       int64_t *staged, int64_t *used)
{
	const struct moeep_geometry *g = &c->op.buffer->geo;

	*total = from != to && moeep_ht_uses_ring(c, from)
			 ? moeep_ht_chunks_for(c, moeep_ht_tokens_per_rank(&c->op, from)[to])
			 : 0;
	*staged = chunks_in(c, from, g->ht_chead, to);
	*used = chunks_in(c, to, g->ht_ctail, from);
}

/* Is it a rank's own doing, by the flags, that it has not ended the operation? */
static bool could_go_on(const struct moeep_ht_combine *c, int rank)
{
	uint64_t done = moeep_flag_get(&moeep_buffer_words(c->op.buffer, rank)->ht_done.word);
	bool stage_left = false;
	bool sum_left = false;
	bool waits = false;

	if (moeep_flag_reached(done, moeep_flag_word(c->op.epoch, 0))) {
		return false;
	}
	for (int other = 0; other < c->op.buffer->geo.num_ranks; other++) {
		int64_t total;
		int64_t staged;
		int64_t used;

		ring_state(c, rank, other, &total, &staged, &used);
		if (staged < total && staged - used < c->num_chunks) {
			return true;
		}
		stage_left |= staged < total;
		ring_state(c, other, rank, &total, &staged, &used);
		sum_left |= used < total;
		waits |= used < total && used == staged;
	}
	return !waits && (sum_left || !stage_left);
}

/* With one rank stuck its peers soon wait for each other: name the one that waits for nobody. */
static void blame(const struct moeep_ht_combine *c, struct moeep_pending *pending)
{
	for (int rank = 0; rank < c->op.buffer->geo.num_ranks; rank++) {
		if (rank != c->op.buffer->geo.rank && could_go_on(c, rank)) {
			pending->peer = rank;
			return;
		}
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

		if (moeep_ht_can_stage(c, rank, &other)) {
			return true;
		}
		if (c->next_token == c->op.handle->num_tokens && other.peer >= 0) {
			*pending = other;
		}
	}
	for (int i = 0; i < c->num_forwards; i++) {
		struct moeep_forward *forward = &c->op.buffer->scratch.forwards[i];
		struct moeep_pending other = *pending;

		if (moeep_ht_can_forward(c, forward, &other)) {
			return true;
		}
		if (c->next_token == c->op.handle->num_tokens && other.peer >= 0) {
			*pending = other;
		}
	}
	/* Flags between two other ranks are not told to a third node. */
	if (pending->blame && !c->op.buffer->comm->net) {
		blame(c, pending);
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
			moeep_wait_wake(c->op.buffer->comm, moeep_ht_taker(c, rank));
		}
	}
}

int moeep_ht_sum_rows(struct moeep_ht_combine *c)
{
	struct moeep_pending unused;
	int64_t half = c->num_chunks > 1 ? c->num_chunks / 2 : 1;
	int ranks = c->op.buffer->geo.num_ranks;
	int rc = MOEEP_OK;

	while (rc == MOEEP_OK && (c->unstaged > 0 || c->unforwarded > 0 ||
				  c->next_token < c->op.handle->num_tokens)) {
		bool progress = false;

		for (int i = 1; i < ranks; i++) {
			int to = (c->op.buffer->geo.rank + i) % ranks;

			for (int64_t n = 0; n < half && moeep_ht_can_stage(c, to, &unused); n++) {
				moeep_ht_stage_chunk(c, to);
				progress = true;
			}
		}
		wake_peers(c, half);
		progress |= moeep_ht_forward_rows(c, c->chunk_rows * half);
		progress |= sum_tokens(c, c->chunk_rows * half);
		if (!progress) {
			wake_peers(c, 1);
			rc = moeep_wait_until(&c->op.wait, combine_ready, c);
		}
	}
	wake_peers(c, 1);
	return rc;
}
