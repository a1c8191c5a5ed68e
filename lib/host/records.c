/* SPDX-License-Identifier: MIT */
/* host/records.c - placing what a dispatch receives. */
#include "config.h"

#include <string.h>

#include "host/records.h"

bool moeep_record_is_local(const struct moeep_sink *sink, const int32_t *topk_idx)
{
	for (int k = 0; k < sink->topk; k++) {
		/* -1 wraps to a large number. */
		if ((uint32_t)(topk_idx[k] - sink->first_expert) < (uint32_t)sink->local_experts) {
			return true;
		}
	}
	return false;
}

static void put_row(const struct moeep_sink *sink, int64_t row, const void *data)
{
	char *to = sink->recv_x + (uint64_t)row * sink->row_bytes;

	if (sink->stream) {
		sink->rowmath->copy_stream(to, data, sink->row_bytes);
	} else {
		memcpy(to, data, sink->row_bytes);
	}
}

static void put_source(const struct moeep_sink *sink, int64_t row,
		       const struct moeep_record *record)
{
	if (sink->recv_src_token) {
		sink->recv_src_token[row] = (int32_t)record->src_token;
	}
	if (sink->recv_src_rank) {
		sink->recv_src_rank[row] = record->src_rank;
	}
}

static void place_flat(const struct moeep_sink *sink, const struct moeep_record *record,
		       int64_t row)
{
	int topk = sink->topk;

	if (record->row && sink->recv_x) {
		put_row(sink, row, record->row);
	}
	if (record->scales && sink->scales.base) {
		moeep_scales_write(&sink->scales, row, record->scales);
	}
	put_source(sink, row, record);
	for (int k = 0; k < topk; k++) {
		int32_t local = record->topk_idx[k] - sink->first_expert;
		bool here = (uint32_t)local < (uint32_t)sink->local_experts;
		int64_t at = row * topk + k;

		if (sink->recv_topk_idx && sink->topk_dtype == MOEEP_INT32) {
			((int32_t *)sink->recv_topk_idx)[at] = here ? local : -1;
		} else if (sink->recv_topk_idx) {
			((int64_t *)sink->recv_topk_idx)[at] = here ? local : -1;
		}
		if (sink->recv_topk_weights && record->topk_weights) {
			sink->recv_topk_weights[at] = here ? record->topk_weights[k] : 0.0f;
		}
	}
}

/* One choice's row; `row` is a position in the outputs. */
static void place_choice(const struct moeep_sink *sink, const struct moeep_record *record, int k,
			 int32_t local, int64_t row)
{
	if (record->row && sink->recv_x) {
		put_row(sink, row, record->row);
	}
	if (record->scales && sink->scales.base) {
		struct moeep_scales scales = sink->scales;

		if (sink->per_expert_capacity) {
			scales.base =
				(char *)scales.base + (uint64_t)local * sink->expert_scales_bytes;
			moeep_scales_write(&scales, row - local * sink->capacity, record->scales);
		} else {
			moeep_scales_write(&scales, row, record->scales);
		}
	}
	put_source(sink, row, record);
	if (sink->recv_expert) {
		sink->recv_expert[row] = local;
	}
	if (sink->recv_topk_weights && record->topk_weights) {
		sink->recv_topk_weights[row] = record->topk_weights[k];
	}
}

void moeep_record_place(struct moeep_sink *sink, const struct moeep_record *record)
{
	struct moeep_handle *handle = sink->handle;
	int64_t index = sink->flat_cursor[record->src_rank]++;
	int64_t *rows;
	bool room;

	if (!sink->expert_major) {
		if (index < sink->capacity) {
			place_flat(sink, record, index);
		}
		return;
	}
	/* Without room for the record its choices are still counted. */
	room = index < handle->config.max_recv;
	sink->lost |= !room;
	rows = &handle->record_rows[room ? index * sink->topk : 0];
	for (int k = 0; k < sink->topk; k++) {
		int32_t local = record->topk_idx[k] - sink->first_expert;
		int64_t *cursor;
		int64_t row;

		if (room) {
			rows[k] = -1;
		}
		if ((uint32_t)local >= (uint32_t)sink->local_experts) {
			continue;
		}
		cursor = &sink->expert_cursor[(int64_t)record->src_rank * sink->local_experts +
					      local];
		row = (*cursor)++;
		if (room && row < (sink->per_expert_capacity ? (local + 1) * sink->capacity
							     : sink->capacity)) {
			rows[k] = row;
			place_choice(sink, record, k, local, row);
		}
	}
	if (room && record->topk_weights) {
		memcpy(&handle->record_weights[index * sink->topk], record->topk_weights,
		       sizeof(float) * (size_t)sink->topk);
	}
}
