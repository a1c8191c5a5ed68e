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
#include "host/ht.h"
#include "host/ht_route.h"
#include "host/ll.h"

/* A place in a buffer's window, the combine slots, instead of in a region of the comm. */
#define PLACE_WINDOW UINT32_MAX

static struct moeep_place find_place(const struct moeep_buffer *buffer, const void *x,
				     uint64_t bytes)
{
	const char *window = moeep_buffer_at(buffer, buffer->geo.rank, 0);
	struct moeep_place place = {.region = PLACE_WINDOW};
	const char *at = x;

	if (at >= window && at < window + buffer->geo.window_bytes &&
	    bytes <= (uint64_t)(window + buffer->geo.window_bytes - at)) {
		place.offset = (uint64_t)(at - window);
		return place;
	}
	return moeep_region_find(buffer->comm, x, bytes);
}

static void *place_address(const struct moeep_buffer *buffer, int rank,
			   const struct moeep_place *place, uint64_t bytes)
{
	if (place->region == PLACE_WINDOW) {
		return moeep_buffer_at(buffer, rank, place->offset);
	}
	return moeep_region_address(buffer->comm, rank, place, bytes);
}

static int32_t partial_dtype(const struct moeep_buffer *buffer, int32_t dtype)
{
	return buffer->geo.config.partial_dtype == MOEEP_FP32 ? MOEEP_FP32 : dtype;
}

/* One partial row for each token that came from `to`. */
static void stage_partials(struct moeep_buffer *buffer, const struct moeep_handle *handle,
			   const moeep_ll_combine_args_t *args, struct moeep_ll_entry *entry,
			   int to)
{
	uint64_t size = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(args->dtype);
	int32_t partial = partial_dtype(buffer, args->dtype);
	uint64_t partial_size = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(partial);
	bool weighted = handle->weighted && !(args->flags & MOEEP_LL_COMBINE_UNWEIGHTED);
	int64_t records = handle->recv_base[buffer->geo.num_ranks];
	bool stream = moeep_buffer_streams(buffer, (uint64_t)records * partial_size);

	for (int64_t i = 0; i < handle->recv_per_rank[to]; i++) {
		int64_t index = handle->recv_base[to] + i;
		struct moeep_term terms[MOEEP_MAX_TOPK];
		struct moeep_sum sum = {.terms = terms,
					.out = moeep_ll_partial(buffer, entry, to, i, partial_size),
					.out_dtype = partial,
					.stream = stream};

		for (int k = 0; k < handle->topk && index < handle->config.max_recv; k++) {
			int64_t row = handle->record_rows[index * handle->topk + k];

			if (row < 0) {
				continue;
			}
			/* Rows of an expert may lie further apart in x than in the dispatch's
			 * output. */
			row = row / handle->ll_capacity * args->capacity +
			      row % handle->ll_capacity;
			terms[sum.num_terms++] = (struct moeep_term){
				.row = (const char *)args->x + (uint64_t)row * size,
				.dtype = args->dtype,
				.weighted = weighted,
				.weight = weighted
						  ? handle->record_weights[index * handle->topk + k]
						  : 0,
			};
		}
		if (sum.num_terms > 0) {
			terms[sum.num_terms - 1].group_end = true;
		}
		buffer->rowmath->sum(&sum, buffer->geo.config.hidden);
	}
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

static int send_phase(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_combine_args_t *args)
{
	uint64_t epoch = (buffer->ll_cepoch + 1) & MOEEP_EPOCH_MASK;
	int64_t capacity = args->capacity ? args->capacity : handle->ll_capacity;
	uint64_t size = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(args->dtype);
	struct moeep_ll_wait reached = {
		.buffer = buffer,
		.offset = offsetof(struct moeep_words, ll_creceived),
		.expected = moeep_flag_word(moeep_epoch_before(epoch, MOEEP_SLOTS), 0),
		.what = "the RECV of two epochs ago",
	};
	moeep_ll_combine_args_t resolved = *args;
	struct moeep_ll_entry *entry;
	struct moeep_wait wait;
	int rc;

	if (handle->kind != MOEEP_ROUTE_LL) {
		return moeep_fail(MOEEP_ERR_STATE, "the handle has no complete LL dispatch");
	}
	if (handle->combine_open) {
		return moeep_fail(MOEEP_ERR_STATE,
				  "the handle has a combine between SEND and RECV");
	}
	if (((epoch - buffer->ll_crecv_epoch) & MOEEP_EPOCH_MASK) > MOEEP_SLOTS) {
		return moeep_fail(MOEEP_ERR_STATE,
				  "%d LL combines are between SEND and RECV already", MOEEP_SLOTS);
	}
	for (int e = 0; e < buffer->geo.local_experts; e++) {
		int64_t rows = handle->recv_per_expert[e];

		rows = rows < handle->ll_capacity ? rows : handle->ll_capacity;
		if (rows > capacity) {
			return moeep_fail(MOEEP_ERR_INVALID,
					  "capacity is %lld, but local expert %d has %lld rows",
					  (long long)capacity, e, (long long)rows);
		}
		if (rows > 0 && !args->x) {
			return moeep_fail(MOEEP_ERR_INVALID,
					  "x is NULL with rows of local expert %d", e);
		}
	}
	moeep_wait_begin(&wait, buffer->comm, MOEEP_OP_LL_COMBINE_SEND, epoch);
	rc = moeep_wait_until(&wait, moeep_ll_reached, &reached);
	if (rc != MOEEP_OK) {
		return rc;
	}
	buffer->ll_cepoch = epoch;
	resolved.capacity = capacity;
	handle->combine_epoch = epoch;
	handle->combine_open = true;
	handle->combine_dtype = args->dtype;

	entry = moeep_ll_cslot(buffer, buffer->geo.rank, epoch);
	*entry = (struct moeep_ll_entry){
		.dtype = args->dtype,
		.given = args->flags,
		.route = handle->route,
		.capacity = capacity,
		.overflow = handle->overflow,
	};
	if (args->x && !handle->overflow) {
		entry->place =
			find_place(buffer, args->x,
				   (uint64_t)buffer->geo.local_experts * (uint64_t)capacity * size);
	}
	handle->combine_direct = entry->place.region != 0;
	if (handle->combine_direct) {
		write_ranges(buffer, handle, entry);
	} else {
		for (int i = 0; i < buffer->geo.num_ranks; i++) {
			stage_partials(buffer, handle, &resolved, entry,
				       (buffer->geo.rank + i) % buffer->geo.num_ranks);
		}
	}
	moeep_ll_publish(buffer, &moeep_buffer_words(buffer, buffer->geo.rank)->ll_csent.word,
			 epoch);
	return MOEEP_OK;
}

struct combine {
	struct moeep_buffer *buffer;
	struct moeep_handle *handle;
	const moeep_ll_combine_args_t *args;
	uint64_t epoch;
	int32_t dtype;
	int32_t partial;
	uint64_t row_bytes;
	uint64_t partial_bytes;
	int lost_at; /* a rank that lost rows of this one, or -1 */
};

/* Terms of a token at a rank whose x is read in place: its choices there, k ascending. */
static int direct_terms(const struct combine *c, int rank, struct moeep_ll_entry *entry,
			int64_t token, struct moeep_term *terms)
{
	struct moeep_scratch *s = &c->buffer->scratch;
	const struct moeep_handle *handle = c->handle;
	bool weighted = handle->weighted && !(entry->given & MOEEP_LL_COMBINE_UNWEIGHTED);
	int first = 0;
	int local = 0;
	int count = 0;

	(void)moeep_expert_range(c->buffer->geo.config.num_experts, c->buffer->geo.num_ranks, rank,
				 &first, &local);
	for (int k = 0; k < handle->topk; k++) {
		int32_t expert = handle->topk_idx[token * handle->topk + k];
		int64_t row;

		if (expert < first || expert >= first + local) {
			continue;
		}
		row = (expert - first) * entry->capacity +
		      moeep_ll_ranges(entry)[c->buffer->geo.rank * local + expert - first] +
		      s->send_expert[expert]++;
		terms[count++] = (struct moeep_term){
			.row = (const char *)s->peer_rows[rank] + (uint64_t)row * c->row_bytes,
			.dtype = c->dtype,
			.weighted = weighted,
			.weight = weighted ? handle->topk_weights[token * handle->topk + k] : 0,
		};
	}
	terms[count - 1].group_end = true;
	return count;
}

static void sum_token(struct combine *c, int64_t token)
{
	struct moeep_scratch *s = &c->buffer->scratch;
	const struct moeep_handle *handle = c->handle;
	struct moeep_term terms[MOEEP_MAX_TOPK];
	int ranks[MOEEP_MAX_TOPK];
	struct moeep_sum sum = {.terms = terms, .group_dtype = c->partial, .out_dtype = c->dtype};
	int count = moeep_route_ranks(c->buffer, &handle->topk_idx[token * handle->topk],
				      handle->topk, ranks);

	for (int i = 0; i < count; i++) {
		struct moeep_ll_entry *entry = moeep_ll_cslot(c->buffer, ranks[i], c->epoch);

		if (entry->place.region != 0) {
			sum.num_terms +=
				direct_terms(c, ranks[i], entry, token, &terms[sum.num_terms]);
		} else {
			terms[sum.num_terms++] = (struct moeep_term){
				.row = moeep_ll_partial(c->buffer, entry, c->buffer->geo.rank,
							s->recv_cursor[ranks[i]]++,
							c->partial_bytes),
				.dtype = c->partial,
				.group_end = true,
			};
		}
	}
	if (c->args->bias) {
		sum.bias = (const char *)c->args->bias + (uint64_t)token * c->row_bytes;
	}
	sum.out = (char *)c->args->out + (uint64_t)token * c->row_bytes;
	c->buffer->rowmath->sum(&sum, c->buffer->geo.config.hidden);
}

/* Every expert rank's entry must fit this rank's; then where its rows are. */
static int open_entries(struct combine *c)
{
	struct moeep_buffer *buffer = c->buffer;
	const struct moeep_handle *handle = c->handle;
	const struct moeep_ll_entry *own = moeep_ll_cslot(buffer, buffer->geo.rank, c->epoch);

	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		struct moeep_ll_entry *entry = moeep_ll_cslot(buffer, rank, c->epoch);
		int first = 0;
		int local = 0;

		buffer->scratch.peer_rows[rank] = NULL;
		if (handle->send_per_rank[rank] == 0) {
			continue;
		}
		if (entry->dtype != own->dtype || entry->given != own->given ||
		    entry->route != own->route) {
			return moeep_fail(MOEEP_ERR_MISMATCH,
					  "LL combine of rank %d has %s rows, flags 0x%x, dispatch "
					  "%llu; rank "
					  "%d has %s, 0x%x, %llu",
					  rank, moeep_dtype_name(entry->dtype), entry->given,
					  (unsigned long long)entry->route, buffer->geo.rank,
					  moeep_dtype_name(own->dtype), own->given,
					  (unsigned long long)own->route);
		}
		if (entry->overflow) {
			c->lost_at = rank;
		}
		if (entry->place.region == 0) {
			continue;
		}
		(void)moeep_expert_range(buffer->geo.config.num_experts, buffer->geo.num_ranks,
					 rank, &first, &local);
		buffer->scratch.peer_rows[rank] =
			place_address(buffer, rank, &entry->place,
				      (uint64_t)local * (uint64_t)entry->capacity * c->row_bytes);
		if (!buffer->scratch.peer_rows[rank]) {
			return moeep_fail(
				MOEEP_ERR_STATE,
				"x of rank %d is in symmetric memory that rank %d has freed", rank,
				buffer->geo.rank);
		}
	}
	return MOEEP_OK;
}

static int recv_phase(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_combine_args_t *args)
{
	struct combine c = {.buffer = buffer, .handle = handle, .args = args, .lost_at = -1};
	struct moeep_ht_op op = {.buffer = buffer, .handle = handle};
	struct moeep_ll_wait reached = {.buffer = buffer,
					.offset = offsetof(struct moeep_words, ll_csent),
					.only = handle->send_per_rank,
					.what = "the rows"};
	int self = buffer->geo.rank;
	int rc;

	if (!handle->combine_open) {
		return moeep_fail(MOEEP_ERR_STATE, "RECV without a SEND of this handle");
	}
	c.epoch = op.epoch = handle->combine_epoch;
	if (c.epoch != ((buffer->ll_crecv_epoch + 1) & MOEEP_EPOCH_MASK)) {
		return moeep_fail(
			MOEEP_ERR_STATE,
			"RECV out of order: another handle's SEND came before this one's");
	}
	c.dtype = handle->combine_dtype;
	c.partial = partial_dtype(buffer, c.dtype);
	c.row_bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(c.dtype);
	c.partial_bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(c.partial);
	moeep_wait_begin(&op.wait, buffer->comm, MOEEP_OP_LL_COMBINE_RECV, c.epoch);
	reached.expected = moeep_flag_word(c.epoch, 0);
	rc = moeep_wait_until(&op.wait, moeep_ll_reached, &reached);
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = open_entries(&c);
	if (rc != MOEEP_OK) {
		return moeep_host_raise(&op, MOEEP_OP_LL_COMBINE_RECV, rc);
	}
	memset(buffer->scratch.recv_cursor, 0, sizeof(int64_t) * (size_t)buffer->geo.num_ranks);
	memset(buffer->scratch.send_expert, 0,
	       sizeof(int64_t) * (size_t)buffer->geo.config.num_experts);
	for (int64_t token = 0; token < handle->num_tokens; token++) {
		sum_token(&c, token);
	}
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		moeep_traffic_t *traffic = &buffer->scratch.traffic[rank];

		traffic->combine_rows += (uint64_t)handle->send_per_rank[rank];
		traffic->combine_bytes += (uint64_t)handle->send_per_rank[rank] * c.partial_bytes;
	}
	buffer->ll_crecv_epoch = c.epoch;
	handle->combine_open = false;
	moeep_ll_publish(buffer, &moeep_buffer_words(buffer, self)->ll_creceived.word, c.epoch);
	if (handle->combine_direct) {
		/* x is the caller's again when its readers have finished. */
		struct moeep_ll_wait read = {.buffer = buffer,
					     .offset = offsetof(struct moeep_words, ll_creceived),
					     .expected = reached.expected,
					     .only = handle->recv_per_rank,
					     .what = "the end of reading"};

		rc = moeep_wait_until(&op.wait, moeep_ll_reached, &read);
	}
	if (rc == MOEEP_OK && c.lost_at >= 0) {
		rc = moeep_fail(MOEEP_ERR_CAPACITY,
				"rows of this rank's tokens did not fit at rank %d in the dispatch",
				c.lost_at);
	}
	return rc;
}

int moeep_host_ll_combine(struct moeep_buffer *buffer, struct moeep_handle *handle,
			  const void *args_void)
{
	const moeep_ll_combine_args_t *args = args_void;
	int rc = moeep_comm_check(buffer->comm);

	/* Of both phases before either: a SEND cannot be taken back. */
	if (rc == MOEEP_OK && args->phase != MOEEP_PHASE_SEND) {
		rc = moeep_check_pointer("out", args->out, "num_tokens", handle->num_tokens);
	}
	if (rc == MOEEP_OK && args->phase != MOEEP_PHASE_RECV) {
		rc = send_phase(buffer, handle, args);
	}
	if (rc == MOEEP_OK && args->phase != MOEEP_PHASE_SEND) {
		rc = recv_phase(buffer, handle, args);
	}
	return rc;
}
