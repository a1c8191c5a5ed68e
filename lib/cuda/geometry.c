/* SPDX-License-Identifier: MIT */
/* cuda/geometry.c - what lies where in a buffer's window of device memory. */
#include "config.h"

#include "cuda/buffer.h"
#include "ep/geometry.h"

/* Arrays that rows are copied from and to start at this. */
#define UNIT 256

static uint64_t take(uint64_t *offset, uint64_t bytes)
{
	uint64_t at = *offset;

	*offset = moeep_align(at + bytes, UNIT);
	return at;
}

static void lay_out_ht(struct moeep_geometry *g, uint64_t *at)
{
	struct moeep_dev_window *w = &g->device;
	uint64_t records = (uint64_t)g->num_ranks * (uint64_t)g->config.ht_max_tokens;
	uint64_t topk = (uint64_t)g->config.max_topk;

	w->scale_room = moeep_align((uint64_t)g->config.max_scales * 4, 16);
	w->row_room = g->row_bytes > g->partial_bytes ? g->row_bytes : g->partial_bytes;
	w->record_idx = take(at, records * topk * 4);
	w->record_weights = take(at, records * topk * 4);
	w->record_token = take(at, records * 4);
	w->record_scales = take(at, records * w->scale_room);
	w->rows = take(at, records * w->row_room);
}

static uint64_t words_of(uint64_t values)
{
	return (values + MOEEP_DEV_WORD_VALUES - 1) / MOEEP_DEV_WORD_VALUES * MOEEP_DEV_WORD;
}

static uint64_t parcels_of(uint64_t row_bytes)
{
	return (row_bytes + MOEEP_DEV_PARCEL - 1) / MOEEP_DEV_PARCEL;
}

size_t moeep_cuda_ll_counters(const struct moeep_geometry *g)
{
	size_t ranks = (size_t)g->num_ranks;
	size_t counters = ranks * (((size_t)g->config.num_experts + ranks - 1) / ranks);

	return counters <= MOEEP_DEV_HIST ? counters : 0;
}

static void lay_out_ll(struct moeep_geometry *g, uint64_t *at)
{
	struct moeep_dev_window *w = &g->device;
	uint64_t ranks = (uint64_t)g->num_ranks;
	uint64_t tokens = (uint64_t)g->config.ll_max_tokens;
	uint64_t choices = tokens * words_of((uint64_t)g->config.max_topk);
	uint64_t cast = parcels_of((uint64_t)g->config.hidden);
	uint64_t experts = (uint64_t)g->config.num_experts;
	uint64_t slot = MOEEP_DEV_LL_HEADER;

	(void)take(&slot, choices);
	w->ll_slot_numbers = take(&slot, choices);
	w->ll_slot_weights = take(&slot, choices);
	w->ll_slot_counts = take(&slot, MOEEP_DEV_WORD + words_of((experts + ranks - 1) / ranks));
	w->ll_slot_scales = take(&slot, tokens * cast * MOEEP_DEV_PARCEL_SCALES);
	w->ll_slot_rows = take(&slot, tokens * parcels_of(g->row_bytes) * MOEEP_DEV_PARCEL_ROOM);
	w->ll_slot_bytes = slot;
	w->ll_slot = take(at, MOEEP_SLOTS * ranks * slot);
	w->ll_cslot_bytes =
		MOEEP_DEV_LL_HEADER + tokens * parcels_of(g->partial_bytes) * MOEEP_DEV_PARCEL_ROOM;
	w->ll_cslot = take(at, MOEEP_SLOTS * ranks * w->ll_cslot_bytes);
}

void moeep_cuda_lay_out(struct moeep_geometry *g)
{
	struct moeep_dev_window *w = &g->device;
	const moeep_buffer_config_t *c = &g->config;
	moeep_size_hint_t *hint = &g->hint;
	uint64_t ranks = (uint64_t)g->num_ranks;
	uint64_t local = ((uint64_t)c->num_experts + ranks - 1) / ranks;
	uint64_t at = 0;

	w->ht_entry_flag = take(&at, ranks * 8);
	w->ht_record_flag = take(&at, ranks * 8);
	w->ht_read_flag = take(&at, ranks * 8);
	w->ht_progress = take(&at, ranks * MOEEP_DEV_CHANNELS * 16);
	w->ht_sent = take(&at, ranks * MOEEP_DEV_BLOCKS * 8);
	w->ll_received = take(&at, ranks * 8);
	w->ll_creceived = take(&at, ranks * 8);
	g->device_flags = at;
	w->entry_bytes =
		moeep_align(MOEEP_DEV_ENTRY_COUNTS + 4 * (ranks + (uint64_t)c->num_experts), UNIT);
	w->ht_entry = take(&at, MOEEP_SLOTS * ranks * w->entry_bytes);
	hint->control_bytes = at;
	if (c->modes & MOEEP_MODE_HT) {
		lay_out_ht(g, &at);
	}
	hint->ht_bytes = at - hint->control_bytes;
	if (c->modes & MOEEP_MODE_LL) {
		uint64_t start = at;

		lay_out_ll(g, &at);
		g->user_slot_bytes =
			moeep_align(local * (uint64_t)c->ll_capacity * g->row_bytes, 4096);
		at = moeep_align(at, 4096);
		hint->ll_bytes = at - start;
		g->user_slot = take(&at, (uint64_t)c->ll_combine_slots * g->user_slot_bytes);
		hint->slot_bytes = (uint64_t)c->ll_combine_slots * g->user_slot_bytes;
	}
	g->window_bytes = at;
	hint->window_bytes = at;
}
