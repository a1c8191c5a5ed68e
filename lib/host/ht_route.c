/* SPDX-License-Identifier: MIT */
/* host/ht_route.c - from a rank's choices, and everybody's counts, to positions. */
#include "config.h"

#include <string.h>

#include "core/error.h"
#include "host/ht_route.h"

int moeep_route_ranks(const struct moeep_buffer *buffer, const int32_t *idx, int topk, int *ranks)
{
	int count = 0;

	for (int k = 0; k < topk; k++) {
		int rank;
		int at = count;

		if (idx[k] < 0) {
			continue;
		}
		rank = buffer->scratch.expert_rank[idx[k]];
		while (at > 0 && ranks[at - 1] > rank) {
			at--;
		}
		if (at > 0 && ranks[at - 1] == rank) {
			continue;
		}
		memmove(&ranks[at + 1], &ranks[at], sizeof(*ranks) * (size_t)(count - at));
		ranks[at] = rank;
		count++;
	}
	return count;
}

static bool goes_to_node(const struct moeep_buffer *buffer, const int32_t *idx, int topk, int node)
{
	for (int k = 0; k < topk; k++) {
		if (idx[k] >= 0 &&
		    buffer->comm->peers[buffer->scratch.expert_rank[idx[k]]].node == node) {
			return true;
		}
	}
	return false;
}

int64_t moeep_route_node_run(const struct moeep_buffer *buffer, const int32_t *idx, int topk,
			     int64_t first, int64_t end, int node)
{
	int64_t token = first;

	while (token < end && goes_to_node(buffer, &idx[token * topk], topk, node)) {
		token++;
	}
	return token - first;
}

int moeep_route_read_one(const struct moeep_buffer *buffer, const void *choices, int32_t topk_dtype,
			 int64_t token, int topk, int32_t *idx, int32_t *per_expert)
{
	int num_experts = buffer->geo.config.num_experts;

	for (int k = 0; k < topk; k++) {
		int64_t expert = topk_dtype == MOEEP_INT32 ? ((const int32_t *)choices)[k]
							   : ((const int64_t *)choices)[k];

		if (expert < -1 || expert >= num_experts) {
			return moeep_fail(
				MOEEP_ERR_INVALID,
				"topk_idx of token %lld, choice %d, is %lld, not -1 to %d",
				(long long)token, k, (long long)expert, num_experts - 1);
		}
		idx[k] = (int32_t)expert;
		if (expert >= 0 && per_expert) {
			per_expert[expert]++;
		}
	}
	return MOEEP_OK;
}

int moeep_route_read(const struct moeep_buffer *buffer, const void *topk_idx, int32_t topk_dtype,
		     int64_t tokens, int topk, int32_t *idx, int32_t *per_rank, int32_t *per_expert)
{
	size_t row_bytes = (size_t)topk * moeep_dtype_size(topk_dtype);

	memset(per_rank, 0, sizeof(*per_rank) * (size_t)buffer->geo.num_ranks);
	memset(per_expert, 0, sizeof(*per_expert) * (size_t)buffer->geo.config.num_experts);
	for (int64_t t = 0; t < tokens; t++) {
		int32_t *row = idx + t * topk;
		int ranks[MOEEP_MAX_TOPK];
		int count;
		int rc =
			moeep_route_read_one(buffer, (const char *)topk_idx + (size_t)t * row_bytes,
					     topk_dtype, t, topk, row, per_expert);

		if (rc != MOEEP_OK) {
			return rc;
		}
		count = moeep_route_ranks(buffer, row, topk, ranks);
		for (int i = 0; i < count; i++) {
			per_rank[ranks[i]]++;
		}
	}
	return MOEEP_OK;
}

/* Flat rows: for each destination, sources in ascending order. */
static void place_flat(const struct moeep_ht_op *op)
{
	struct moeep_handle *handle = op->handle;
	int ranks = op->buffer->geo.num_ranks;
	int self = op->buffer->geo.rank;

	for (int to = 0; to < ranks; to++) {
		int64_t base = 0;

		for (int from = 0; from < ranks; from++) {
			int32_t tokens = moeep_ht_tokens_per_rank(op, from)[to];

			if (from == self) {
				handle->send_base[to] = base;
				handle->send_per_rank[to] = tokens;
			}
			if (to == self) {
				handle->recv_base[from] = base;
				handle->recv_per_rank[from] = tokens;
			}
			base += tokens;
		}
		if (to == self) {
			handle->recv_base[ranks] = base;
		}
		handle->needed[to] = base;
	}
	handle->num_rows = handle->needed[self];
}

/* Expert-major rows: for each expert of a rank, aligned groups, in them sources in ascending order.
 */
static void place_expert_major(const struct moeep_ht_op *op)
{
	struct moeep_handle *handle = op->handle;
	const struct moeep_geometry *g = &op->buffer->geo;
	bool rows = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR;

	for (int to = 0; to < g->num_ranks; to++) {
		int64_t alignment = moeep_ht_entry_of(op, to)->alignment;
		int64_t group = 0;
		int first = 0;
		int count = 0;

		(void)moeep_expert_range(g->config.num_experts, g->num_ranks, to, &first, &count);
		for (int expert = first; expert < first + count; expert++) {
			int64_t at = group;

			for (int from = 0; from < g->num_ranks; from++) {
				if (from == g->rank) {
					handle->send_expert[expert] = at;
				}
				if (to == g->rank) {
					handle->recv_expert[(int64_t)from * count + expert -
							    first] = at;
				}
				at += moeep_ht_tokens_per_expert(op, from)[expert];
			}
			if (to == g->rank) {
				handle->expert_offsets[expert - first] = group;
				handle->recv_per_expert[expert - first] = at - group;
			}
			group += (at - group + alignment - 1) / alignment * alignment;
		}
		if (to == g->rank) {
			handle->expert_offsets[count] = group;
		}
		if (rows) {
			handle->needed[to] = group;
		}
	}
	if (rows) {
		handle->num_rows = handle->needed[g->rank];
	}
}

void moeep_route_place(const struct moeep_ht_op *op)
{
	place_flat(op);
	place_expert_major(op);
}
