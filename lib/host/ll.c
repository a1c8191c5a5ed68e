/* SPDX-License-Identifier: MIT */
/* host/ll.c - what the low-latency operations of the host backend share. */
#include "config.h"

#include "ep/publish.h"
#include "host/ll.h"

bool moeep_ll_reached_one(void *arg, struct moeep_pending *pending)
{
	const struct moeep_ll_wait *w = arg;
	const char *words = (const char *)moeep_buffer_words(w->buffer, w->next);
	uint64_t seen = moeep_flag_get((const moeep_flag_t *)(words + w->offset));

	if (moeep_flag_reached(seen, w->expected)) {
		return true;
	}
	pending->peer = w->next;
	pending->expected = w->expected;
	pending->seen = seen;
	pending->what = w->what;
	return false;
}

bool moeep_ll_reached(void *arg, struct moeep_pending *pending)
{
	struct moeep_ll_wait *w = arg;

	for (; w->next < w->buffer->geo.num_ranks; w->next++) {
		if ((!w->only || w->only[w->next] != 0) && !moeep_ll_reached_one(w, pending)) {
			return false;
		}
	}
	return true;
}

void moeep_ll_publish(struct moeep_buffer *buffer, _Atomic uint64_t *flag, uint64_t epoch)
{
	moeep_rowmath_fence();
	/* Pairs with moeep_ll_reached() of the peers. */
	moeep_publish(buffer, flag, moeep_flag_word(epoch, 0), MOEEP_TO_ALL);
	moeep_wait_wake_all(buffer->comm);
}

struct moeep_ll_entry *moeep_ll_slot(const struct moeep_buffer *buffer, int rank, uint64_t epoch)
{
	return moeep_buffer_at(buffer, rank,
			       buffer->geo.ll_slot +
				       moeep_slot_of(epoch) * buffer->geo.ll_slot_bytes);
}

struct moeep_ll_entry *moeep_ll_cslot(const struct moeep_buffer *buffer, int rank, uint64_t epoch)
{
	uint64_t bytes = moeep_is_remote(buffer, rank) ? buffer->geo.ll_cslot_mirror_bytes
						       : buffer->geo.ll_cslot_bytes;

	return moeep_buffer_at(buffer, rank, buffer->geo.ll_cslot + moeep_slot_of(epoch) * bytes);
}

bool moeep_ll_streams(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		      uint64_t row_bytes)
{
	uint64_t rows = (uint64_t)handle->num_tokens * (uint64_t)handle->topk;

	return moeep_buffer_streams(buffer, rows * row_bytes / 2);
}

int32_t moeep_ll_wire_dtype(int32_t dtype, int32_t quant)
{
	return quant == MOEEP_QUANT_NONE ? dtype : MOEEP_FP8_E4M3;
}

int32_t moeep_ll_scale_dtype(int32_t quant)
{
	return quant == MOEEP_QUANT_FP8_UE8M0 ? MOEEP_UE8M0 : MOEEP_FP32;
}

void moeep_ll_open_slot(const struct moeep_buffer *buffer, struct moeep_ll_entry *entry,
			struct moeep_ll_parts *parts)
{
	const moeep_buffer_config_t *c = &buffer->geo.config;
	uint64_t choices = (uint64_t)c->ll_max_tokens * (uint64_t)c->max_topk;
	char *base = (char *)(entry + 1);

	parts->topk_idx = (int32_t *)base;
	parts->topk_weights = (float *)(base + choices * 4);
	parts->scale_bytes = moeep_align((uint64_t)moeep_scale_groups(c->hidden) * 4, 16);
	parts->row_bytes = (uint64_t)c->hidden * moeep_dtype_size(entry->dtype);
	parts->scales = (char *)entry + moeep_align(sizeof(*entry) + choices * 8, MOEEP_CACHE_LINE);
	parts->rows = parts->scales + (uint64_t)c->ll_max_tokens * parts->scale_bytes;
}

int32_t *moeep_ll_ranges(struct moeep_ll_entry *entry)
{
	return (int32_t *)(entry + 1);
}

char *moeep_ll_partial(const struct moeep_buffer *buffer, struct moeep_ll_entry *entry, int lane,
		       int64_t index, uint64_t row_bytes)
{
	const moeep_buffer_config_t *c = &buffer->geo.config;
	uint64_t ranks = (uint64_t)buffer->geo.num_ranks;
	uint64_t local = ((uint64_t)c->num_experts + ranks - 1) / ranks;

	return (char *)entry + moeep_align(sizeof(*entry) + ranks * local * 4, MOEEP_CACHE_LINE) +
	       ((uint64_t)lane * (uint64_t)c->ll_max_tokens + (uint64_t)index) * row_bytes;
}
