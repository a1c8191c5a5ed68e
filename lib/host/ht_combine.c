/* SPDX-License-Identifier: MIT */
/* host/ht_combine.c - HT combine: what each rank brings, and when its memory is its own again. */
#include "config.h"

#include <string.h>

#include "core/error.h"
#include "ep/publish.h"
#include "host/ht_combine.h"

struct done_wait {
	const struct moeep_ht_combine *c;
	uint64_t expected;
};

static bool all_done(void *arg, struct moeep_pending *pending)
{
	struct done_wait *w = arg;
	struct moeep_buffer *buffer = w->c->op.buffer;

	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		uint64_t seen;

		/* Ranks of other nodes read no memory here. */
		if (rank == buffer->geo.rank || w->c->op.handle->recv_per_rank[rank] == 0 ||
		    moeep_is_remote(buffer, rank)) {
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
static int end_reading(struct moeep_ht_combine *c)
{
	struct moeep_buffer *buffer = c->op.buffer;
	int self = buffer->geo.rank;
	struct done_wait wait = {.c = c, .expected = moeep_flag_word(c->op.epoch, 0)};

	/* Pairs with all_done() of the ranks whose memory this one read. */
	moeep_flag_publish(&moeep_buffer_words(buffer, self)->ht_done.word, wait.expected);
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		if (rank != self && moeep_ht_x_is_direct(c, rank) &&
		    c->op.handle->send_per_rank[rank] > 0) {
			moeep_wait_wake(buffer->comm, rank);
		}
	}
	return moeep_ht_x_is_direct(c, self) ? moeep_wait_until(&c->op.wait, all_done, &wait)
					     : MOEEP_OK;
}

static int prepare(struct moeep_ht_combine *c, struct moeep_ht_entry *entry)
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
		return moeep_fail(
			MOEEP_ERR_INVALID,
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
	c->node_dtype = buffer->geo.config.partial_dtype == MOEEP_FP32 ? MOEEP_FP32 : args->dtype;
	c->node_bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(c->node_dtype);
	entry->op = MOEEP_OP_COMBINE;
	entry->flags = args->flags;
	entry->dtype = args->dtype;
	entry->topk = c->topk;
	entry->row_layout = handle->row_layout;
	entry->num_tokens = handle->num_rows; /* of those that are given */
	entry->route = handle->route;
	entry->given = args->topk_weights ? MOEEP_GIVEN_WEIGHTS : 0;
	entry->place =
		moeep_region_find(buffer->comm, args->x, (uint64_t)handle->num_rows * c->row_bytes);
	return MOEEP_OK;
}

/* Records that this rank gets: of its own node one for each row, of others one for each token. */
static void count_expected(struct moeep_ht_combine *c)
{
	const struct moeep_handle *handle = c->op.handle;
	struct moeep_buffer *buffer = c->op.buffer;
	int64_t *expected = buffer->scratch.expected;
	int givers[MOEEP_MAX_TOPK];

	memcpy(expected, handle->send_per_rank, sizeof(int64_t) * (size_t)buffer->geo.num_ranks);
	if (!buffer->geo.span.several) {
		return;
	}
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		expected[rank] = moeep_is_remote(buffer, rank) ? 0 : expected[rank];
	}
	for (int64_t t = 0; t < handle->num_tokens; t++) {
		int count = moeep_ht_givers(c, &handle->topk_idx[t * c->topk], givers);

		for (int i = 0; i < count; i++) {
			expected[givers[i]] += moeep_is_remote(buffer, givers[i]);
		}
	}
}

static int start(struct moeep_ht_combine *c)
{
	struct moeep_buffer *buffer = c->op.buffer;
	struct moeep_scratch *s = &buffer->scratch;
	const struct moeep_handle *handle = c->op.handle;
	size_t ranks = (size_t)buffer->geo.num_ranks;

	c->stream_out = moeep_buffer_streams(buffer, (uint64_t)handle->num_tokens * c->row_bytes);
	c->send_values = (c->op.given & MOEEP_GIVEN_WEIGHTS) != 0;
	if (buffer->geo.num_ranks > 1) {
		moeep_ht_plan_combine_ring(c);
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
	count_expected(c);
	moeep_ht_forward_begin(c);
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		const struct moeep_ht_entry *entry = moeep_ht_entry_of(&c->op, rank);

		s->peer_rows[rank] = NULL;
		if (moeep_ht_stages_for(c, rank)) {
			c->unstaged += handle->recv_per_rank[rank] > 0;
		}
		if (entry->place.region != 0 && !moeep_is_remote(buffer, rank)) {
			s->peer_rows[rank] =
				moeep_region_address(buffer->comm, rank, &entry->place,
						     (uint64_t)entry->num_tokens * c->row_bytes);
			if (!s->peer_rows[rank]) {
				return moeep_fail(MOEEP_ERR_STATE,
						  "x of rank %d is in symmetric memory that rank "
						  "%d has freed",
						  rank, buffer->geo.rank);
			}
		}
	}
	return MOEEP_OK;
}

int moeep_host_combine(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args)
{
	struct moeep_ht_combine c = {.op = {.buffer = buffer, .handle = handle}, .args = args};
	struct moeep_ht_entry entry = {0};
	int rc = moeep_comm_check(buffer->comm);

	if (rc == MOEEP_OK) {
		rc = prepare(&c, &entry);
	}
	if (rc == MOEEP_OK && handle->overflow) {
		/* All ranks know it, so none waits for another here. */
		rc = moeep_fail(MOEEP_ERR_CAPACITY,
				"the handle's last dispatch did not fit on every rank");
	}
	if (rc == MOEEP_OK) {
		for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
			buffer->scratch.count_rank[rank] = (int32_t)handle->recv_per_rank[rank];
		}
		rc = moeep_ht_enter(&c.op, &entry, buffer->scratch.count_rank, NULL);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = start(&c);
	if (rc != MOEEP_OK) {
		return moeep_host_raise(&c.op, MOEEP_OP_COMBINE, rc);
	}
	rc = moeep_ht_sum_rows(&c);
	if (rc == MOEEP_OK) {
		rc = end_reading(&c);
	}
	for (int rank = 0; rank < buffer->geo.num_ranks && rc == MOEEP_OK; rank++) {
		moeep_traffic_t *traffic = &buffer->scratch.traffic[rank];

		uint64_t rows = (uint64_t)buffer->scratch.expected[rank];

		traffic->combine_rows += rows;
		traffic->combine_bytes +=
			rows * (moeep_is_remote(buffer, rank) ? c.node_bytes : c.staged_bytes);
	}
	return rc;
}
