/* SPDX-License-Identifier: MIT */
/*
 * host/ht_combine.c - summing experts' rows at their tokens' ranks.
 *
 * A rank whose x is in symmetric memory is read in place. Others stage their rows for each source in a ring of its own, in the
 * order in which the source sums its tokens. One thread stages and sums in turn, as in dispatch.
 */
#include "config.h"

#include <string.h>

#include "core/error.h"
#include "host/ht.h"
#include "host/ht_route.h"

struct combine {
	struct moeep_ht_op op;
	const moeep_combine_args_t *args;
	bool expert_major;
	bool weighted;	  /* expert-major rows are multiplied */
	bool send_values; /* topk_weights go back */
	int topk;
	uint64_t row_bytes;   /* of x and out */
	int32_t staged_dtype; /* of rows in the rings */
	uint64_t staged_bytes;

	/* The ring between two ranks: chunk_rows records, each [K values][row], row left out if read in place. */
	uint64_t values_bytes;
	int64_t chunk_rows;
	uint64_t chunk_bytes;
	int num_chunks;

	int64_t next_token; /* summed so far */
	int64_t unstaged;   /* destinations that still lack chunks */
};

static bool rank_is_direct(const struct combine *c, int rank)
{
	return moeep_ht_entry_of(&c->op, rank)->place.region != 0;
}

/* Does `rank` use the ring to its peers at all? */
static bool rank_uses_ring(const struct combine *c, int rank)
{
	return !rank_is_direct(c, rank) || c->send_values;
}

static void plan_ring(struct combine *c)
{
	const struct moeep_geometry *g = &c->op.buffer->geo;
	uint64_t share = g->ring_bytes / (uint64_t)g->num_ranks / MOEEP_CACHE_LINE * MOEEP_CACHE_LINE;
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
static char *ring_record(const struct combine *c, int from, int to, int64_t row)
{
	const struct moeep_geometry *g = &c->op.buffer->geo;
	uint64_t share = g->ring_bytes / (uint64_t)g->num_ranks / MOEEP_CACHE_LINE * MOEEP_CACHE_LINE;
	int64_t chunk = row / c->chunk_rows % c->num_chunks;
	int64_t in_chunk = row % c->chunk_rows;

	return moeep_buffer_at(c->op.buffer, from,
			       g->ht_ring + (uint64_t)to * share + (uint64_t)chunk * c->chunk_bytes +
				       (uint64_t)in_chunk * (c->values_bytes + c->staged_bytes));
}

static int64_t chunks_for(const struct combine *c, int64_t rows)
{
	return (rows + c->chunk_rows - 1) / c->chunk_rows;
}

/* Terms of a record that this rank holds: its flat row, or the rows of its choices here. */
static int local_terms(const struct combine *c, int64_t index, struct moeep_term *terms)
{
	const struct moeep_handle *handle = c->op.handle;
	const char *x = c->args->x;
	int count = 0;

	if (!c->expert_major) {
		terms[0] = (struct moeep_term){ .row = x + (uint64_t)index * c->row_bytes,
						.dtype = c->args->dtype,
						.group_end = true };
		return 1;
	}
	for (int k = 0; k < c->topk; k++) {
		int64_t row = handle->record_rows[index * c->topk + k];

		if (row >= 0) {
			terms[count++] = (struct moeep_term){
				.row = x + (uint64_t)row * c->row_bytes,
				.dtype = c->args->dtype,
				.weighted = c->weighted,
				.weight = c->weighted ? handle->record_weights[index * c->topk + k] : 0,
			};
		}
	}
	terms[count - 1].group_end = true;
	return count;
}

/* The values of a record that this rank sends back with it. */
static void local_values(const struct combine *c, int64_t index, float *values)
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

static void stage_chunk(struct combine *c, int to)
{
	struct moeep_scratch *s = &c->op.buffer->scratch;
	const struct moeep_handle *handle = c->op.handle;
	int self = c->op.buffer->geo.rank;
	int64_t first = s->staged[to] * c->chunk_rows;
	int64_t rows = handle->recv_per_rank[to];
	bool direct = rank_is_direct(c, self);

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
			       (const char *)c->args->x + (uint64_t)index * c->row_bytes, c->row_bytes);
		} else {
			struct moeep_term terms[MOEEP_MAX_TOPK];
			struct moeep_sum sum = { .terms = terms,
						 .num_terms = local_terms(c, index, terms),
						 .out = record + c->values_bytes,
						 .out_dtype = c->staged_dtype };

			c->op.buffer->rowmath->sum(&sum, c->op.buffer->geo.config.hidden);
		}
	}
	s->staged[to]++;
	c->unstaged -= s->staged[to] == chunks_for(c, rows);
	/* Pairs with rows_there() at the source. */
	moeep_flag_publish(moeep_buffer_flag(c->op.buffer, self, c->op.buffer->geo.ht_chead, to),
			   moeep_flag_word(c->op.epoch, (uint64_t)s->staged[to]));
}

static bool can_stage(const struct combine *c, int to, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = c->op.buffer;
	int self = buffer->geo.rank;
	int64_t before;
	uint64_t expected;
	uint64_t seen;

	if (to == self || !rank_uses_ring(c, self) ||
	    buffer->scratch.staged[to] == chunks_for(c, c->op.handle->recv_per_rank[to])) {
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
static bool row_there(const struct combine *c, int from, struct moeep_pending *pending)
{
	struct moeep_buffer *buffer = c->op.buffer;
	uint64_t expected;
	uint64_t seen;

	if (from == buffer->geo.rank || !rank_uses_ring(c, from)) {
		return true;
	}
	expected = moeep_flag_word(c->op.epoch, (uint64_t)(buffer->scratch.recv_cursor[from] /
							   c->chunk_rows) + 1);
	seen = moeep_flag_get(moeep_buffer_flag(buffer, from, buffer->geo.ht_chead, buffer->geo.rank));
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
static bool can_sum(const struct combine *c, struct moeep_pending *pending)
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
static int peer_terms(const struct combine *c, int rank, int64_t token, struct moeep_term *terms)
{
	struct moeep_scratch *s = &c->op.buffer->scratch;
	const struct moeep_handle *handle = c->op.handle;
	const char *x = s->peer_rows[rank];
	int count = 0;

	if (!c->expert_major) {
		terms[0] = (struct moeep_term){
			.row = x + (uint64_t)(handle->send_base[rank] + s->recv_cursor[rank]) * c->row_bytes,
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
				.weight = c->weighted ? handle->topk_weights[token * c->topk + k] : 0,
			};
		}
	}
	terms[count - 1].group_end = true;
	return count;
}

static void take_values(const struct combine *c, int rank, int64_t token, const float *values)
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
static void advance(struct combine *c, int from)
{
	struct moeep_buffer *buffer = c->op.buffer;
	struct moeep_scratch *s = &buffer->scratch;

	s->recv_cursor[from]++;
	if (from == buffer->geo.rank || !rank_uses_ring(c, from) ||
	    s->recv_cursor[from] % c->chunk_rows != 0) {
		return;
	}
	s->consumed[from]++;
	/* Pairs with can_stage() at the expert rank. */
	moeep_flag_publish(moeep_buffer_flag(buffer, buffer->geo.rank, buffer->geo.ht_ctail, from),
			   moeep_flag_word(c->op.epoch, (uint64_t)s->consumed[from]));
}

static void sum_token(struct combine *c)
{
	struct moeep_buffer *buffer = c->op.buffer;
	const struct moeep_handle *handle = c->op.handle;
	int64_t token = c->next_token++;
	struct moeep_term terms[MOEEP_MAX_TOPK];
	int ranks[MOEEP_MAX_TOPK];
	struct moeep_sum sum = { .terms = terms, .out_dtype = c->args->dtype };
	int self = buffer->geo.rank;
	int count = moeep_route_ranks(buffer, &handle->topk_idx[token * c->topk], c->topk, ranks);

	if (c->args->out_topk_weights) {
		memset(&c->args->out_topk_weights[token * c->topk], 0, sizeof(float) * (size_t)c->topk);
	}
	for (int i = 0; i < count; i++) {
		int rank = ranks[i];
		int64_t row = buffer->scratch.recv_cursor[rank];
		int64_t index = handle->recv_base[self] + row;
		float values[MOEEP_MAX_TOPK];
		const char *record = NULL;

		if (rank != self && rank_uses_ring(c, rank)) {
			record = ring_record(c, rank, self, row);
		}
		if (rank == self) {
			sum.num_terms += local_terms(c, index, &terms[sum.num_terms]);
		} else if (rank_is_direct(c, rank)) {
			sum.num_terms += peer_terms(c, rank, token, &terms[sum.num_terms]);
		} else {
			terms[sum.num_terms++] = (struct moeep_term){ .row = record + c->values_bytes,
								      .dtype = c->staged_dtype,
								      .group_end = true };
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
	struct combine *c = arg;

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
static void wake_peers(struct combine *c, int64_t least)
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

static int move_rows(struct combine *c)
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

struct done_wait {
	const struct combine *c;
	uint64_t expected;
};

static bool all_done(void *arg, struct moeep_pending *pending)
{
	struct done_wait *w = arg;
	struct moeep_buffer *buffer = w->c->op.buffer;

	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		uint64_t seen;

		if (rank == buffer->geo.rank || w->c->op.handle->recv_per_rank[rank] == 0) {
			continue;
		}
		seen = moeep_flag_get(&moeep_buffer_words(buffer, rank)->ht_done.word);
		if (!moeep_flag_reached(seen, w->expected)) {
			pending->peer = rank;
			pending->expected = w->expected;
			pending->seen = seen;
			pending->what = "the end of reading";
			return false;
		}
	}
	return true;
}

/* x in symmetric memory is the caller's again only when its readers have finished. */
static int end_reading(struct combine *c)
{
	struct moeep_buffer *buffer = c->op.buffer;
	int self = buffer->geo.rank;
	struct done_wait wait = { .c = c, .expected = moeep_flag_word(c->op.epoch, 0) };

	/* Pairs with all_done() of the ranks whose memory this one read. */
	moeep_flag_publish(&moeep_buffer_words(buffer, self)->ht_done.word, wait.expected);
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		if (rank != self && rank_is_direct(c, rank) && c->op.handle->send_per_rank[rank] > 0) {
			moeep_wait_wake(buffer->comm, rank);
		}
	}
	return rank_is_direct(c, self) ? moeep_wait_until(&c->op.wait, all_done, &wait) : MOEEP_OK;
}

static int prepare(struct combine *c, struct moeep_ht_entry *entry)
{
	struct moeep_buffer *buffer = c->op.buffer;
	const struct moeep_handle *handle = c->op.handle;
	const moeep_combine_args_t *args = c->args;

	if (handle->kind != MOEEP_ROUTE_HT || handle->counts_only) {
		return moeep_fail(MOEEP_ERR_STATE, "the handle has no HT dispatch that moved rows");
	}
	c->expert_major = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR;
	c->weighted = (args->flags & MOEEP_COMBINE_WEIGHTED) != 0;
	if (c->weighted && !c->expert_major) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "flags has MOEEP_COMBINE_WEIGHTED with a flat row layout");
	}
	if (c->weighted && !handle->weighted) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "flags has MOEEP_COMBINE_WEIGHTED but the dispatch had no weights");
	}
	if (!args->x && handle->num_rows > 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "x is NULL with %lld rows received",
				  (long long)handle->num_rows);
	}
	c->topk = handle->topk;
	c->row_bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(args->dtype);
	c->staged_dtype = args->dtype;
	if (c->expert_major && buffer->geo.config.partial_dtype == MOEEP_FP32) {
		c->staged_dtype = MOEEP_FP32;
	}
	c->staged_bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(c->staged_dtype);
	entry->op = MOEEP_OP_COMBINE;
	entry->flags = args->flags;
	entry->dtype = args->dtype;
	entry->topk = c->topk;
	entry->row_layout = handle->row_layout;
	entry->num_tokens = handle->num_rows; /* of those that are given */
	entry->route = handle->route;
	entry->given = args->topk_weights ? MOEEP_GIVEN_WEIGHTS : 0;
	entry->place = moeep_region_find(buffer->comm, args->x,
					 (uint64_t)handle->num_rows * c->row_bytes);
	return MOEEP_OK;
}

static int start(struct combine *c)
{
	struct moeep_buffer *buffer = c->op.buffer;
	struct moeep_scratch *s = &buffer->scratch;
	const struct moeep_handle *handle = c->op.handle;
	size_t ranks = (size_t)buffer->geo.num_ranks;

	c->send_values = (c->op.given & MOEEP_GIVEN_WEIGHTS) != 0;
	if (buffer->geo.num_ranks > 1) {
		plan_ring(c);
	} else {
		c->num_chunks = 1;
		c->chunk_rows = INT32_MAX;
	}
	memset(s->staged, 0, sizeof(int64_t) * ranks);
	memset(s->consumed, 0, sizeof(int64_t) * ranks);
	memset(s->woken, 0, sizeof(int64_t) * ranks);
	memset(s->recv_cursor, 0, sizeof(int64_t) * ranks);
	memcpy(s->send_expert, handle->send_expert,
	       sizeof(int64_t) * (size_t)buffer->geo.config.num_experts);
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		const struct moeep_ht_entry *entry = moeep_ht_entry_of(&c->op, rank);

		s->peer_rows[rank] = NULL;
		if (rank != buffer->geo.rank && rank_uses_ring(c, buffer->geo.rank)) {
			c->unstaged += handle->recv_per_rank[rank] > 0;
		}
		if (entry->place.region != 0) {
			s->peer_rows[rank] =
				moeep_region_address(buffer->comm, rank, &entry->place,
						     (uint64_t)entry->num_tokens * c->row_bytes);
			if (!s->peer_rows[rank]) {
				return moeep_fail(MOEEP_ERR_STATE,
						  "x of rank %d is in symmetric memory that rank %d has freed",
						  rank, buffer->geo.rank);
			}
		}
	}
	return MOEEP_OK;
}

int moeep_host_combine(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args)
{
	struct combine c = { .op = { .buffer = buffer, .handle = handle }, .args = args };
	struct moeep_ht_entry entry = { 0 };
	int rc = moeep_comm_check(buffer->comm);

	if (rc == MOEEP_OK) {
		rc = prepare(&c, &entry);
	}
	if (rc == MOEEP_OK && handle->overflow) {
		/* All ranks know it, so none waits for another here. */
		rc = moeep_fail(MOEEP_ERR_CAPACITY, "the handle's last dispatch did not fit on every rank");
	}
	if (rc == MOEEP_OK) {
		rc = moeep_ht_enter(&c.op, &entry, NULL, NULL);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = start(&c);
	if (rc != MOEEP_OK) {
		return moeep_host_raise(&c.op, MOEEP_OP_COMBINE, rc);
	}
	rc = move_rows(&c);
	if (rc == MOEEP_OK) {
		rc = end_reading(&c);
	}
	for (int rank = 0; rank < buffer->geo.num_ranks && rc == MOEEP_OK; rank++) {
		moeep_traffic_t *traffic = &buffer->scratch.traffic[rank];

		traffic->combine_rows += (uint64_t)handle->send_per_rank[rank];
		traffic->combine_bytes += (uint64_t)handle->send_per_rank[rank] * c.staged_bytes;
	}
	return rc;
}
