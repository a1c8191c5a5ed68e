/* SPDX-License-Identifier: MIT */
/*
 * host/ll_combine.c - low-latency combine.
 *
 * SEND reduces each received token's rows to one partial row in a slot of this rank's window; RECV
 * sums the partial rows of this rank's tokens from their peers' slots. An x in symmetric memory
 * is not touched by SEND: RECV at the source reads the experts' rows themselves.
 */
#include "config.h"

#include <stddef.h>
#include <string.h>

#include "core/error.h"
#include "ep/check.h"
#include "ep/ll_state.h"
#include "ep/publish.h"
#include "ep/refusal.h"
#include "host/ht.h"
#include "host/ll_combine.h"

static struct moeep_place find_place(const struct moeep_buffer *buffer, const void *x,
				     uint64_t bytes)
{
	const char *window = moeep_buffer_at(buffer, buffer->geo.rank, 0);
	struct moeep_place place = {.region = MOEEP_PLACE_WINDOW};
	const char *at = x;

	if (at >= window && at < window + buffer->geo.window_bytes &&
	    bytes <= (uint64_t)(window + buffer->geo.window_bytes - at)) {
		place.offset = (uint64_t)(at - window);
		return place;
	}
	return moeep_region_find(buffer->comm, x, bytes);
}

int32_t moeep_ll_partial_dtype(const struct moeep_buffer *buffer, int32_t dtype)
{
	return buffer->geo.config.partial_dtype == MOEEP_FP32 ? MOEEP_FP32 : dtype;
}

void moeep_ll_open_rows(const struct moeep_handle *handle, const moeep_ll_combine_args_t *args,
			struct moeep_ll_rows *rows)
{
	const moeep_buffer_config_t *config = &handle->buffer->geo.config;

	*rows = (struct moeep_ll_rows){
		.handle = handle,
		.x = args->x,
		.capacity = args->capacity ? args->capacity : handle->ll_capacity,
		.row_bytes = (uint64_t)config->hidden * moeep_dtype_size(args->dtype),
		.dtype = args->dtype,
		.weighted = handle->weighted && !(args->flags & MOEEP_LL_COMBINE_UNWEIGHTED),
	};
}

int moeep_ll_record_terms(const struct moeep_ll_rows *rows, int64_t index, struct moeep_term *terms)
{
	const struct moeep_handle *handle = rows->handle;
	int count = 0;

	for (int k = 0; k < handle->topk && index < handle->config.max_recv; k++) {
		int64_t row = handle->record_rows[index * handle->topk + k];

		if (row < 0) {
			continue;
		}
		/* Rows of an expert may lie further apart in x than in the dispatch's output. */
		row = row / handle->ll_capacity * rows->capacity + row % handle->ll_capacity;
		terms[count++] = (struct moeep_term){
			.row = rows->x + (uint64_t)row * rows->row_bytes,
			.dtype = rows->dtype,
			.weighted = rows->weighted,
			.weight = rows->weighted ? handle->record_weights[index * handle->topk + k]
						 : 0,
		};
	}
	if (count > 0) {
		terms[count - 1].group_end = true;
	}
	return count;
}

/* One partial row for each token that came from `to`. */
static void stage_partials(const struct moeep_buffer *buffer, const struct moeep_ll_rows *rows,
			   struct moeep_ll_entry *entry, int to)
{
	const struct moeep_handle *handle = rows->handle;
	int32_t partial = moeep_ll_partial_dtype(buffer, rows->dtype);
	uint64_t bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(partial);
	uint64_t records = (uint64_t)handle->recv_base[buffer->geo.num_ranks];
	bool stream = moeep_buffer_streams(buffer, records * bytes);
	int64_t count = handle->recv_per_rank[to];
	struct moeep_row_sum sums[2]; /* a record's, and the next one's to look ahead to */

	/* A step ahead of the sums. */
	for (int64_t i = 0; i <= count; i++) {
		struct moeep_row_sum *next = &sums[i % 2];
		struct moeep_sum *sum = &sums[(i + 1) % 2].sum;

		if (i < count) {
			next->sum = (struct moeep_sum){
				.terms = next->terms,
				.num_terms = moeep_ll_record_terms(rows, handle->recv_base[to] + i,
								   next->terms),
				.out = moeep_ll_partial(buffer, entry, to, i, bytes),
				.out_dtype = partial,
				.stream = stream,
			};
		}
		if (i > 0) {
			sum->next = i < count ? &next->sum : NULL;
			buffer->rowmath->sum(sum, buffer->geo.config.hidden);
		}
	}
}

/* Where a slot is in a mirror, which has rows for one node only. */
static uint64_t mirror_slot(const struct moeep_buffer *buffer, uint64_t epoch)
{
	return buffer->geo.ll_cslot + moeep_slot_of(epoch) * buffer->geo.ll_cslot_mirror_bytes;
}

/* Partial rows for a rank of another node. */
static void send_partials(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			  struct moeep_ll_entry *entry, int to, uint64_t epoch)
{
	const struct moeep_peer *peer = &buffer->comm->peers[to];
	int32_t partial = moeep_ll_partial_dtype(buffer, entry->dtype);
	uint64_t bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(partial);
	const char *rows = moeep_ll_partial(buffer, entry, to, 0, bytes);
	const char *there = moeep_ll_partial(buffer, entry, peer->local_rank, 0, bytes);

	/* Rows may have gone past the caches. */
	moeep_rowmath_fence();
	moeep_send_to_place(buffer, peer->node, rows,
			    mirror_slot(buffer, epoch) + (uint64_t)(there - (char *)entry),
			    (uint64_t)handle->recv_per_rank[to] * bytes);
}

/* Where each source's rows of each local expert begin, for sources that read them in place. */
static void write_ranges(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			 struct moeep_ll_entry *entry)
{
	int local = buffer->geo.local_experts;
	int32_t *ranges = moeep_ll_ranges(entry);

	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		for (int e = 0; e < local; e++) {
			ranges[rank * local + e] =
				(int32_t)(handle->recv_expert[(int64_t)rank * local + e] -
					  e * handle->ll_capacity);
		}
	}
}

/* Does x hold what each expert received? */
static int check_rows(const struct moeep_ll_rows *rows, int local_experts)
{
	const struct moeep_handle *handle = rows->handle;

	for (int e = 0; e < local_experts; e++) {
		int64_t count = handle->recv_per_expert[e];

		count = count < handle->ll_capacity ? count : handle->ll_capacity;
		if (count > rows->capacity) {
			return moeep_fail(MOEEP_ERR_INVALID,
					  "capacity is %lld, but local expert %d has %lld rows",
					  (long long)rows->capacity, e, (long long)count);
		}
		if (count > 0 && !rows->x) {
			return moeep_fail(MOEEP_ERR_INVALID,
					  "x is NULL with rows of local expert %d", e);
		}
	}
	return MOEEP_OK;
}

static int send_phase(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_combine_args_t *args)
{
	uint64_t epoch = (buffer->ll_cepoch + 1) & MOEEP_EPOCH_MASK;
	struct moeep_ll_wait reached = {
		.buffer = buffer,
		.offset = offsetof(struct moeep_words, ll_creceived),
		.expected = moeep_flag_word(moeep_epoch_before(epoch, MOEEP_SLOTS), 0),
		.what = "the RECV of two epochs ago",
	};
	struct moeep_ll_rows rows;
	struct moeep_ll_entry *entry;
	struct moeep_wait wait;
	int rc;

	moeep_ll_open_rows(handle, args, &rows);
	rc = check_rows(&rows, buffer->geo.local_experts);
	if (rc != MOEEP_OK) {
		return rc;
	}
	moeep_wait_begin(&wait, buffer->comm, MOEEP_OP_LL_COMBINE_SEND, epoch);
	moeep_refusal_watch(&wait, buffer);
	rc = moeep_wait_until(&wait, moeep_ll_reached, &reached);
	if (rc != MOEEP_OK) {
		return rc;
	}
	moeep_ll_note_combine_send(buffer, handle, args);

	entry = moeep_ll_cslot(buffer, buffer->geo.rank, epoch);
	*entry = (struct moeep_ll_entry){
		.dtype = args->dtype,
		.given = args->flags,
		.route = handle->route,
		.capacity = rows.capacity,
		.overflow = handle->overflow,
	};
	if (args->x && !handle->overflow) {
		entry->place = find_place(buffer, args->x,
					  (uint64_t)buffer->geo.local_experts *
						  (uint64_t)rows.capacity * rows.row_bytes);
	}
	handle->combine_direct = entry->place.region != 0;
	/* If RECV follows at once, this rank's own rows are still where they are. */
	handle->combine_own = !handle->combine_direct && args->phase == MOEEP_PHASE_BOTH;
	if (handle->combine_direct) {
		write_ranges(buffer, handle, entry);
	}
	for (int node = 0; node < buffer->comm->num_nodes; node++) {
		moeep_send_to_place(buffer, node, entry, mirror_slot(buffer, epoch),
				    sizeof(*entry));
	}
	for (int i = 0; i < buffer->geo.num_ranks; i++) {
		int to = (buffer->geo.rank + i) % buffer->geo.num_ranks;
		bool remote = moeep_is_remote(buffer, to);

		if (remote ||
		    (!handle->combine_direct && (to != buffer->geo.rank || !handle->combine_own))) {
			stage_partials(buffer, &rows, entry, to);
		}
		if (remote) {
			send_partials(buffer, handle, entry, to, epoch);
		}
	}
	moeep_ll_publish(buffer, &moeep_buffer_words(buffer, buffer->geo.rank)->ll_csent.word,
			 epoch);
	return MOEEP_OK;
}

static int recv_phase(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_combine_args_t *args)
{
	struct moeep_ht_op op = {
		.buffer = buffer, .handle = handle, .epoch = handle->combine_epoch};
	struct moeep_ll_wait reached = {.buffer = buffer,
					.offset = offsetof(struct moeep_words, ll_csent),
					.only = handle->send_per_rank,
					.what = "the rows"};
	int lost_at = -1;
	int rc;

	moeep_wait_begin(&op.wait, buffer->comm, MOEEP_OP_LL_COMBINE_RECV, op.epoch);
	moeep_refusal_watch(&op.wait, buffer);
	reached.expected = moeep_flag_word(op.epoch, 0);
	rc = moeep_wait_until(&op.wait, moeep_ll_reached, &reached);
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = moeep_ll_sum_rows(buffer, handle, args, &lost_at);
	if (rc != MOEEP_OK) {
		return moeep_host_raise(&op, MOEEP_OP_LL_COMBINE_RECV, rc);
	}
	moeep_ll_note_combine_recv(buffer, handle);
	moeep_ll_publish(buffer, &moeep_buffer_words(buffer, buffer->geo.rank)->ll_creceived.word,
			 op.epoch);
	if (handle->combine_direct) {
		/* x is the caller's again when its readers have finished. */
		struct moeep_ll_wait read = {.buffer = buffer,
					     .offset = offsetof(struct moeep_words, ll_creceived),
					     .expected = reached.expected,
					     .only = handle->recv_per_rank,
					     .what = "the end of reading"};

		rc = moeep_wait_until(&op.wait, moeep_ll_reached, &read);
	}
	if (rc == MOEEP_OK && lost_at >= 0) {
		rc = moeep_fail(MOEEP_ERR_CAPACITY,
				"rows of this rank's tokens did not fit at rank %d in the dispatch",
				lost_at);
	}
	return rc;
}

int moeep_host_ll_combine(struct moeep_buffer *buffer, struct moeep_handle *handle,
			  const void *args_void)
{
	const moeep_ll_combine_args_t *args = args_void;
	int phases = moeep_ll_phases(args->phase);
	int rc = moeep_comm_check(buffer->comm);

	if (rc == MOEEP_OK) {
		rc = moeep_ll_check_combine(buffer, handle, phases);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_RECV)) {
		moeep_check_pointer(&rc, "out", args->out, "num_tokens", handle->num_tokens);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_SEND)) {
		rc = send_phase(buffer, handle, args);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_RECV)) {
		rc = recv_phase(buffer, handle, args);
	}
	return rc;
}
