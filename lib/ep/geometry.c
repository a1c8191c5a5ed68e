/* SPDX-License-Identifier: MIT */
/* ep/geometry.c - defaults and limits of a buffer's configuration; the layout of its window. */
#include "config.h"

#include <string.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/buffer.h"
#include "ep/buffer.h"
#include "ep/check.h"
#include "ep/geometry.h"

#define MAX_EXPERTS   65536
#define MAX_HIDDEN    (INT64_C(1) << 24)
#define MAX_HT_TOKENS ((INT64_C(1) << 24) - 1) /* chunks are counted in 24 bits */
#define MAX_LL_TOKENS 65535
#define MAX_CHUNKS    1024
/* Measured, see docs/performance.md: large enough to hide a switch of threads, small enough to stay
 * in the caches. */
#define DEFAULT_CHUNK_BYTES (256 * 1024)
#define DEFAULT_CHUNKS	    8

int moeep_expert_range(int num_experts, int num_ranks, int rank, int *first, int *count)
{
	int base;
	int more;

	if (num_experts < 1 || num_ranks < 1 || rank < 0 || rank >= num_ranks) {
		return moeep_fail(
			MOEEP_ERR_INVALID,
			"num_experts is %d, num_ranks %d, rank %d: no such rank or expert",
			num_experts, num_ranks, rank);
	}
	if (!first || !count) {
		return moeep_fail(MOEEP_ERR_INVALID, "first is %p, count is %p", (void *)first,
				  (void *)count);
	}
	base = num_experts / num_ranks;
	more = num_experts % num_ranks;
	*first = rank * base + (rank < more ? rank : more);
	*count = base + (rank < more);
	return MOEEP_OK;
}

#define DEFAULT_TO(field, value)                                                                   \
	do {                                                                                       \
		if ((field) == 0) {                                                                \
			(field) = (value);                                                         \
		}                                                                                  \
	} while (0)

static int config_fill(moeep_buffer_config_t *config, const struct moeep_settings *settings,
		       int num_ranks)
{
	int rc = MOEEP_OK;

	DEFAULT_TO(config->modes, MOEEP_MODE_HT | MOEEP_MODE_LL);
	DEFAULT_TO(config->max_topk, 8);
	DEFAULT_TO(config->dtype, MOEEP_BF16);
	DEFAULT_TO(config->ht_max_tokens, 4096);
	DEFAULT_TO(config->ll_max_tokens, 128);
	DEFAULT_TO(config->ll_capacity, config->ll_max_tokens * num_ranks);
	DEFAULT_TO(config->max_scales, moeep_scale_groups(config->hidden));
	DEFAULT_TO(config->ht_chunk_bytes, DEFAULT_CHUNK_BYTES);
	DEFAULT_TO(config->ht_chunks, DEFAULT_CHUNKS);
	if (settings->ht_chunk_bytes != 0) {
		config->ht_chunk_bytes = (int64_t)settings->ht_chunk_bytes;
	}
	if (settings->ht_chunks != 0) {
		config->ht_chunks = settings->ht_chunks;
	}
	moeep_check_flags(&rc, "config.modes", config->modes, MOEEP_MODE_HT | MOEEP_MODE_LL);
	moeep_check_range(&rc, "config.num_experts", config->num_experts, 1, MAX_EXPERTS);
	moeep_check_range(&rc, "config.max_topk", config->max_topk, 1, MOEEP_MAX_TOPK);
	moeep_check_range(&rc, "config.dtype", config->dtype, MOEEP_BF16, MOEEP_INT8);
	moeep_check_range(&rc, "config.hidden", config->hidden, 1, MAX_HIDDEN);
	moeep_check_range(&rc, "config.ht_max_tokens", config->ht_max_tokens, 1, MAX_HT_TOKENS);
	moeep_check_range(&rc, "config.ll_max_tokens", config->ll_max_tokens, 1, MAX_LL_TOKENS);
	moeep_check_range(&rc, "config.ll_capacity", config->ll_capacity, 1, INT32_MAX);
	moeep_check_range(&rc, "config.max_scales", config->max_scales, 1, MAX_HIDDEN);
	moeep_check_range(&rc, "config.ll_combine_slots", config->ll_combine_slots, 0, MOEEP_SLOTS);
	moeep_check_range(&rc, "config.num_sms", config->num_sms, 0, INT32_MAX);
	moeep_check_range(&rc, "config.ht_chunk_bytes", config->ht_chunk_bytes, 16,
			  INT64_C(1) << 30);
	moeep_check_range(&rc, "config.ht_chunks", config->ht_chunks, 2, MAX_CHUNKS);
	if (rc == MOEEP_OK && config->partial_dtype != 0 && config->partial_dtype != MOEEP_FP32) {
		rc = moeep_fail(MOEEP_ERR_INVALID, "config.partial_dtype is %d, not 0 or %d (fp32)",
				config->partial_dtype, MOEEP_FP32);
	}
	if (rc == MOEEP_OK && config->hidden * (int64_t)moeep_dtype_size(config->dtype) % 16 != 0) {
		rc = moeep_fail(
			MOEEP_ERR_INVALID,
			"config.hidden is %lld: a row of %s has %lld bytes, not a multiple of 16",
			(long long)config->hidden, moeep_dtype_name(config->dtype),
			(long long)config->hidden * (long long)moeep_dtype_size(config->dtype));
	}
	if (rc == MOEEP_OK && config->initial_epoch > MOEEP_EPOCH_MASK) {
		rc = moeep_fail(MOEEP_ERR_INVALID,
				"config.initial_epoch is 0x%llx, more than 40 bits",
				(unsigned long long)config->initial_epoch);
	}
	moeep_check_range(&rc, "config.reserved0", config->reserved0, 0, 0);
	return rc;
}

struct moeep_span moeep_span_of(const struct moeep_comm *comm)
{
	return (struct moeep_span){.num_mirrors = comm->num_mirrors,
				   .most_local = comm->most_local,
				   .several = comm->num_nodes > 1};
}

static uint64_t take(uint64_t *offset, uint64_t bytes)
{
	uint64_t at = *offset;

	*offset = moeep_align(at + bytes, MOEEP_CACHE_LINE);
	return at;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/*
 * The ring of an HT operation: for dispatch one of chunks that all peers read, for combine one
 * for each peer. No larger than what a call can put into it.
 */
static uint64_t ring_size(const struct moeep_geometry *g)
{
	const moeep_buffer_config_t *c = &g->config;
	uint64_t topk = (uint64_t)c->max_topk;
	uint64_t record =
		topk * 8 + moeep_align((uint64_t)c->max_scales * 4, 16) + g->row_bytes + 16;
	uint64_t partial = moeep_align(topk * 4, 16) + g->partial_bytes;
	uint64_t chunk = max_u64((uint64_t)c->ht_chunk_bytes, record);
	uint64_t dispatch;
	uint64_t combine;

	if (g->num_ranks == 1) {
		return 0;
	}
	dispatch = min_u64(chunk * (uint64_t)c->ht_chunks,
			   max_u64((uint64_t)c->ht_max_tokens, 2) * record);
	combine = 2 * partial * (uint64_t)g->num_ranks * (g->span.several ? 4 : 1);
	return moeep_align(max_u64(dispatch, combine), MOEEP_CACHE_LINE);
}

uint64_t moeep_geometry_handle_bytes(const struct moeep_geometry *g, int64_t max_tokens,
				     int64_t max_recv)
{
	uint64_t topk = (uint64_t)g->config.max_topk;
	uint64_t ranks = (uint64_t)g->num_ranks;
	uint64_t local = (uint64_t)g->local_experts;
	uint64_t counts =
		5 * ranks + 1 + (uint64_t)g->config.num_experts + 2 * local + 2 + ranks * local + 1;

	/* What ranks of other nodes chose, for those that this one forwards for. */
	counts += (uint64_t)g->span.num_mirrors;
	if (g->config.modes & MOEEP_MODE_HT) {
		counts += (uint64_t)g->span.num_mirrors *
			  ((uint64_t)g->config.ht_max_tokens * topk + 1) / 2;
	}
	return sizeof(struct moeep_handle) + (uint64_t)max_tokens * topk * 8 +
	       (uint64_t)max_recv * topk * 12 + 2 + counts * 8;
}

uint64_t moeep_geometry_private_bytes(const struct moeep_geometry *g)
{
	uint64_t ranks = (uint64_t)g->num_ranks;
	uint64_t experts = (uint64_t)g->config.num_experts;

	/* The object with its queue, the list of windows, and the arrays of struct moeep_scratch.
	 */
	return sizeof(struct moeep_buffer) + ranks * sizeof(struct moeep_window *) +
	       ranks * (2 * sizeof(void *) + 6 * sizeof(int64_t) + sizeof(int32_t)) +
	       (ranks * (uint64_t)g->local_experts + 1) * sizeof(int64_t) +
	       experts * (sizeof(int64_t) + 2 * sizeof(int32_t)) + ranks * sizeof(moeep_traffic_t) +
	       moeep_align((uint64_t)g->config.max_scales * sizeof(float), 16) +
	       ((uint64_t)g->span.num_mirrors + 1) * sizeof(struct moeep_forward) +
	       (2 * (uint64_t)g->span.num_mirrors * (uint64_t)g->span.most_local + 1) *
		       sizeof(int64_t);
}

static void lay_out(struct moeep_geometry *g)
{
	const moeep_buffer_config_t *c = &g->config;
	uint64_t ranks = (uint64_t)g->num_ranks;
	uint64_t topk = (uint64_t)c->max_topk;
	/* Offsets are the same on all ranks, so the largest share of experts counts. */
	uint64_t local = ((uint64_t)c->num_experts + ranks - 1) / ranks;
	uint64_t at = 0;
	moeep_size_hint_t *hint = &g->hint;

	(void)take(&at, sizeof(struct moeep_words));
	g->ht_tail = take(&at, ranks * sizeof(struct moeep_flag_line));
	g->ht_chead = take(&at, ranks * sizeof(struct moeep_flag_line));
	g->ht_ctail = take(&at, ranks * sizeof(struct moeep_flag_line));
	if (g->span.several) {
		g->ht_ftail = take(&at, ranks * (uint64_t)g->span.most_local *
						sizeof(struct moeep_flag_line));
	}
	g->entry_bytes =
		moeep_align(sizeof(struct moeep_ht_entry) + 4 * (ranks + (uint64_t)c->num_experts),
			    MOEEP_CACHE_LINE);
	g->ht_entry = take(&at, MOEEP_SLOTS * g->entry_bytes);
	at = moeep_align(at, 4096);
	hint->control_bytes = at;

	g->ring_bytes = ring_size(g);
	if (c->modes & MOEEP_MODE_HT) {
		g->ht_ring = take(&at, g->ring_bytes);
		at = moeep_align(at, 4096);
	}
	hint->ht_bytes = at - hint->control_bytes;

	if (c->modes & MOEEP_MODE_LL) {
		uint64_t tokens = (uint64_t)c->ll_max_tokens;
		uint64_t scales = moeep_align((uint64_t)moeep_scale_groups(c->hidden) * 4, 16);
		uint64_t start = at;

		g->ll_slot_bytes = moeep_align(sizeof(struct moeep_ll_entry) + tokens * topk * 8,
					       MOEEP_CACHE_LINE) +
				   moeep_align(tokens * (scales + g->row_bytes), MOEEP_CACHE_LINE);
		g->ll_slot = take(&at, MOEEP_SLOTS * g->ll_slot_bytes);
		g->ll_cslot_bytes =
			moeep_align(sizeof(struct moeep_ll_entry) + ranks * local * 4,
				    MOEEP_CACHE_LINE) +
			moeep_align(ranks * tokens * g->partial_bytes, MOEEP_CACHE_LINE);
		g->ll_cslot_mirror_bytes =
			g->ll_cslot_bytes -
			moeep_align(ranks * tokens * g->partial_bytes, MOEEP_CACHE_LINE) +
			moeep_align((uint64_t)g->span.most_local * tokens * g->partial_bytes,
				    MOEEP_CACHE_LINE);
		g->ll_cslot = take(&at, MOEEP_SLOTS * g->ll_cslot_bytes);
		at = moeep_align(at, 4096);
		hint->ll_bytes = at - start;
		g->user_slot_bytes =
			moeep_align(local * (uint64_t)c->ll_capacity * g->row_bytes, 4096);
		g->user_slot = take(&at, (uint64_t)c->ll_combine_slots * g->user_slot_bytes);
		hint->slot_bytes = (uint64_t)c->ll_combine_slots * g->user_slot_bytes;
	}
	if (g->span.several) {
		uint64_t mirrors = (uint64_t)g->span.num_mirrors;
		uint64_t ll = 0;

		/* As the window itself up to the combine slots, which are shorter. */
		if (c->modes & MOEEP_MODE_LL) {
			ll = moeep_align(g->ll_cslot - (hint->control_bytes + hint->ht_bytes) +
						 MOEEP_SLOTS * g->ll_cslot_mirror_bytes,
					 4096);
		}
		g->mirrors = at;
		g->mirror_bytes = hint->control_bytes + hint->ht_bytes + ll;
		at += mirrors * g->mirror_bytes;
		hint->control_bytes *= 1 + mirrors;
		hint->ht_bytes *= 1 + mirrors;
		hint->ll_bytes += mirrors * ll;
	}
	g->window_bytes = at;
	hint->window_bytes = at;
}

int moeep_geometry_make(const moeep_buffer_config_t *config, const struct moeep_settings *settings,
			int rank, int num_ranks, const struct moeep_span *span,
			struct moeep_geometry *g)
{
	bool cuda = settings->backend == MOEEP_BACKEND_CUDA;
	int64_t tokens;
	int rc;

	memset(g, 0, sizeof(*g));
	rc = moeep_struct_in("config", config, &g->config, sizeof(g->config));
	if (rc == MOEEP_OK) {
		rc = config_fill(&g->config, settings, num_ranks);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_expert_range(g->config.num_experts, num_ranks, rank, &g->first_expert,
					&g->local_experts);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	g->rank = rank;
	g->num_ranks = num_ranks;
	g->span = *span;
	g->row_bytes = (uint64_t)g->config.hidden * moeep_dtype_size(g->config.dtype);
	g->partial_bytes = g->row_bytes;
	if (g->config.partial_dtype == MOEEP_FP32) {
		g->partial_bytes = (uint64_t)g->config.hidden * sizeof(float);
	}
	g->hint.size = sizeof(g->hint);
	if (cuda) {
		moeep_cuda_lay_out(g);
	} else {
		lay_out(g);
	}
	tokens = g->config.modes & MOEEP_MODE_HT ? g->config.ht_max_tokens : 0;
	if ((g->config.modes & MOEEP_MODE_LL) && g->config.ll_max_tokens > tokens) {
		tokens = g->config.ll_max_tokens;
	}
	if (cuda) {
		g->hint.handle_bytes =
			moeep_cuda_handle_bytes(g, g->config.modes, tokens, tokens * num_ranks);
		g->hint.private_bytes = moeep_cuda_private_bytes(g);
	} else {
		g->hint.handle_bytes = moeep_geometry_handle_bytes(g, tokens, tokens * num_ranks);
		g->hint.private_bytes = moeep_geometry_private_bytes(g);
	}
	return MOEEP_OK;
}

int moeep_buffer_size_hint(const moeep_comm_t *comm, int rank, int num_ranks,
			   const moeep_buffer_config_t *config, moeep_size_hint_t *hint)
{
	struct moeep_settings settings;
	struct moeep_geometry geometry;
	struct moeep_span span = {.most_local = num_ranks};
	int rc;

	if (comm) {
		span = moeep_span_of(comm);
		settings = comm->settings;
		rank = comm->rank;
		num_ranks = comm->num_ranks;
	} else {
		rc = moeep_settings_load(NULL, &settings);
		if (rc != MOEEP_OK) {
			return rc;
		}
	}
	rc = moeep_geometry_make(config, &settings, rank, num_ranks, &span, &geometry);
	return rc == MOEEP_OK
		       ? moeep_struct_out("hint", hint, &geometry.hint, sizeof(geometry.hint))
		       : rc;
}
