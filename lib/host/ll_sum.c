/* SPDX-License-Identifier: MIT */
/* host/ll_sum.c - LL combine: summing experts' rows, or partial rows, at their tokens' rank. */
#include "config.h"

#include <string.h>

#include "core/error.h"
#include "ep/publish.h"
#include "host/ht_route.h"
#include "host/ll_combine.h"

static void *place_address(const struct moeep_buffer *buffer, int rank,
			   const struct moeep_place *place, uint64_t bytes)
{
	if (place->region == MOEEP_PLACE_WINDOW) {
		return moeep_buffer_at(buffer, rank, place->offset);
	}
	return moeep_region_address(buffer->comm, rank, place, bytes);
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
	bool stream;		  /* out would not stay in the caches beside all that is read */
	struct moeep_ll_rows own; /* this rank's, if not staged */
};

/* Terms of a token at a rank whose x is read in place: its choices there, k ascending. */
static int direct_terms(const struct combine *c, int rank, const struct moeep_ll_entry *entry,
			int64_t token, struct moeep_term *terms)
{
	struct moeep_scratch *s = &c->buffer->scratch;
	const struct moeep_handle *handle = c->handle;
	bool weighted = handle->weighted && !(entry->given & MOEEP_LL_COMBINE_UNWEIGHTED);
	int count = 0;

	for (int k = 0; k < handle->topk; k++) {
		int32_t expert = handle->topk_idx[token * handle->topk + k];

		if (expert < 0 || s->expert_rank[expert] != rank) {
			continue;
		}
		terms[count++] = (struct moeep_term){
			.row = (const char *)s->peer_rows[rank] +
			       (uint64_t)s->send_expert[expert]++ * c->row_bytes,
			.dtype = c->dtype,
			.weighted = weighted,
			.weight = weighted ? handle->topk_weights[token * handle->topk + k] : 0,
		};
	}
	terms[count - 1].group_end = true;
	return count;
}

/* This rank's number in the partial rows of another one's slot. */
static int lane_at(const struct combine *c, int rank)
{
	int self = c->buffer->geo.rank;

	return moeep_is_remote(c->buffer, rank) ? c->buffer->comm->peers[self].local_rank : self;
}

/* Tokens come in ascending order: cursors of partial rows and of experts' rows move on. */
static void token_sum(struct combine *c, int64_t token, struct moeep_row_sum *out)
{
	struct moeep_scratch *s = &c->buffer->scratch;
	const struct moeep_handle *handle = c->handle;
	int ranks[MOEEP_MAX_TOPK];
	int count = moeep_route_ranks(c->buffer, &handle->topk_idx[token * handle->topk],
				      handle->topk, ranks);
	struct moeep_sum *sum = &out->sum;

	*sum = (struct moeep_sum){.terms = out->terms,
				  .group_dtype = c->partial,
				  .out_dtype = c->dtype,
				  .stream = c->stream};
	for (int i = 0; i < count; i++) {
		struct moeep_ll_entry *entry = moeep_ll_cslot(c->buffer, ranks[i], c->epoch);

		if (c->handle->combine_own && ranks[i] == c->buffer->geo.rank) {
			sum->num_terms += moeep_ll_record_terms(
				&c->own, handle->recv_base[ranks[i]] + s->recv_cursor[ranks[i]]++,
				&out->terms[sum->num_terms]);
		} else if (entry->place.region != 0 && !moeep_is_remote(c->buffer, ranks[i])) {
			sum->num_terms += direct_terms(c, ranks[i], entry, token,
						       &out->terms[sum->num_terms]);
		} else {
			out->terms[sum->num_terms++] = (struct moeep_term){
				.row = moeep_ll_partial(c->buffer, entry, lane_at(c, ranks[i]),
							s->recv_cursor[ranks[i]]++,
							c->partial_bytes),
				.dtype = c->partial,
				.group_end = true,
			};
		}
	}
	if (c->args->bias) {
		sum->bias = (const char *)c->args->bias + (uint64_t)token * c->row_bytes;
	}
	sum->out = (char *)c->args->out + (uint64_t)token * c->row_bytes;
}

static void sum_tokens(struct combine *c)
{
	int64_t tokens = c->handle->num_tokens;
	struct moeep_row_sum sums[2]; /* a token's, and the next one's to look ahead to */

	/* A step ahead of the sums. */
	for (int64_t token = 0; token <= tokens; token++) {
		struct moeep_row_sum *next = &sums[token % 2];
		struct moeep_sum *sum = &sums[(token + 1) % 2].sum;

		if (token < tokens) {
			token_sum(c, token, next);
		}
		if (token > 0) {
			sum->next = token < tokens ? &next->sum : NULL;
			c->buffer->rowmath->sum(sum, c->buffer->geo.config.hidden);
		}
	}
}

/* Where a rank's x, which this one reads in place, holds this rank's rows. */
static int open_direct(struct combine *c, int rank, struct moeep_ll_entry *entry)
{
	struct moeep_buffer *buffer = c->buffer;
	const int32_t *ranges = moeep_ll_ranges(entry);
	int first = 0;
	int local = 0;

	(void)moeep_expert_range(buffer->geo.config.num_experts, buffer->geo.num_ranks, rank,
				 &first, &local);
	buffer->scratch.peer_rows[rank] =
		place_address(buffer, rank, &entry->place,
			      (uint64_t)local * (uint64_t)entry->capacity * c->row_bytes);
	if (!buffer->scratch.peer_rows[rank]) {
		return moeep_fail(MOEEP_ERR_STATE,
				  "x of rank %d is in symmetric memory that rank %d has freed",
				  rank, buffer->geo.rank);
	}
	for (int e = 0; e < local; e++) {
		buffer->scratch.send_expert[first + e] =
			e * entry->capacity + ranges[buffer->geo.rank * local + e];
	}
	return MOEEP_OK;
}

/* Every expert rank's entry must fit this rank's; then where its rows are. */
static int open_entries(struct combine *c, int *lost_at)
{
	struct moeep_buffer *buffer = c->buffer;
	const struct moeep_ll_entry *own = moeep_ll_cslot(buffer, buffer->geo.rank, c->epoch);
	int rc = MOEEP_OK;

	memset(buffer->scratch.recv_cursor, 0, sizeof(int64_t) * (size_t)buffer->geo.num_ranks);
	for (int rank = 0; rank < buffer->geo.num_ranks && rc == MOEEP_OK; rank++) {
		struct moeep_ll_entry *entry = moeep_ll_cslot(buffer, rank, c->epoch);

		if (c->handle->send_per_rank[rank] == 0) {
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
			*lost_at = rank;
		}
		if (entry->place.region != 0 && !moeep_is_remote(buffer, rank)) {
			rc = open_direct(c, rank, entry);
		}
	}
	return rc;
}

int moeep_ll_sum_rows(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_combine_args_t *args, int *lost_at)
{
	uint64_t hidden = (uint64_t)buffer->geo.config.hidden;
	struct combine c = {.buffer = buffer,
			    .handle = handle,
			    .args = args,
			    .epoch = handle->combine_epoch,
			    .dtype = handle->combine_dtype};
	int rc;

	c.partial = moeep_ll_partial_dtype(buffer, c.dtype);
	c.row_bytes = hidden * moeep_dtype_size(c.dtype);
	c.stream = moeep_ll_streams(buffer, handle, c.row_bytes);
	c.partial_bytes = hidden * moeep_dtype_size(c.partial);
	moeep_ll_open_rows(handle, args, &c.own);
	rc = open_entries(&c, lost_at);
	if (rc != MOEEP_OK) {
		return rc;
	}
	sum_tokens(&c);
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		moeep_traffic_t *traffic = &buffer->scratch.traffic[rank];

		traffic->combine_rows += (uint64_t)handle->send_per_rank[rank];
		traffic->combine_bytes += (uint64_t)handle->send_per_rank[rank] * c.partial_bytes;
	}
	return MOEEP_OK;
}
