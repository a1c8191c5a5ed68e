/* SPDX-License-Identifier: MIT */
/* ep/handle.c - the routing of a dispatch. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "cuda/buffer.h"
#include "ep/buffer.h"

static void handle_free(struct moeep_handle *handle)
{
	moeep_cuda_handle_destroy(handle);
	free(handle->topk_idx);
	free(handle->topk_weights);
	free(handle->send_per_rank);
	free(handle->send_base);
	free(handle->send_expert);
	free(handle->recv_per_rank);
	free(handle->recv_base);
	free(handle->recv_per_expert);
	free(handle->expert_offsets);
	free(handle->recv_expert);
	free(handle->needed);
	free(handle->record_rows);
	free(handle->record_weights);
	free(handle->forward_idx);
	free(handle->forward_tokens);
	free(handle);
}

/* moeep_geometry_handle_bytes() counts these. */
static int handle_alloc(struct moeep_handle *handle)
{
	const struct moeep_geometry *g = &handle->buffer->geo;
	size_t ranks = (size_t)g->num_ranks;
	size_t local = (size_t)g->local_experts;
	size_t sent = (size_t)handle->config.max_tokens * (size_t)g->config.max_topk;
	size_t forwards = 0;
	size_t received = (size_t)handle->config.max_recv * (size_t)g->config.max_topk;

	handle->topk_idx = malloc(sent * sizeof(*handle->topk_idx));
	handle->topk_weights = malloc(sent * sizeof(*handle->topk_weights));
	handle->send_per_rank = calloc(ranks, sizeof(*handle->send_per_rank));
	handle->send_base = calloc(ranks, sizeof(*handle->send_base));
	handle->send_expert = calloc((size_t)g->config.num_experts, sizeof(*handle->send_expert));
	handle->recv_per_rank = calloc(ranks, sizeof(*handle->recv_per_rank));
	handle->recv_base = calloc(ranks + 1, sizeof(*handle->recv_base));
	handle->recv_per_expert = calloc(local + 1, sizeof(*handle->recv_per_expert));
	handle->expert_offsets = calloc(local + 1, sizeof(*handle->expert_offsets));
	handle->recv_expert = calloc(ranks * local + 1, sizeof(*handle->recv_expert));
	handle->needed = calloc(ranks, sizeof(*handle->needed));
	handle->record_rows = malloc(received * sizeof(*handle->record_rows) + 1);
	handle->record_weights = malloc(received * sizeof(*handle->record_weights) + 1);
	if (g->config.modes & MOEEP_MODE_HT) {
		forwards = (size_t)g->span.num_mirrors * (size_t)g->config.ht_max_tokens *
			   (size_t)g->config.max_topk;
	}
	handle->forward_idx = malloc(forwards * sizeof(*handle->forward_idx) + 1);
	handle->forward_tokens = calloc((size_t)g->span.num_mirrors + 1, sizeof(int64_t));
	if (!handle->forward_idx || !handle->forward_tokens || !handle->topk_idx ||
	    !handle->topk_weights || !handle->send_per_rank || !handle->send_base ||
	    !handle->send_expert || !handle->recv_per_rank || !handle->recv_base ||
	    !handle->recv_per_expert || !handle->expert_offsets || !handle->recv_expert ||
	    !handle->needed || !handle->record_rows || !handle->record_weights) {
		return moeep_fail(MOEEP_ERR_NOMEM,
				  "no memory for a handle of %lld tokens sent and %lld received",
				  (long long)handle->config.max_tokens,
				  (long long)handle->config.max_recv);
	}
	return MOEEP_OK;
}

static int handle_limits(const struct moeep_geometry *g, moeep_handle_config_t *config)
{
	int64_t most = 0;

	if (config->modes == 0) {
		config->modes = g->config.modes;
	}
	if ((config->modes & ~g->config.modes) != 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "config.modes is 0x%x; the buffer has 0x%x",
				  config->modes, g->config.modes);
	}
	if (config->flags != 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "config.flags is 0x%x; none are known",
				  config->flags);
	}
	if (config->modes & MOEEP_MODE_HT) {
		most = g->config.ht_max_tokens;
	}
	if ((config->modes & MOEEP_MODE_LL) && g->config.ll_max_tokens > most) {
		most = g->config.ll_max_tokens;
	}
	if (config->max_tokens == 0) {
		config->max_tokens = most;
	}
	if (config->max_tokens < 1 || config->max_tokens > most) {
		return moeep_fail(MOEEP_ERR_INVALID, "config.max_tokens is %lld, not 1 to %lld",
				  (long long)config->max_tokens, (long long)most);
	}
	if (config->max_recv == 0) {
		config->max_recv = config->max_tokens * g->num_ranks;
	}
	if (config->max_recv < 1 || config->max_recv > most * g->num_ranks) {
		return moeep_fail(MOEEP_ERR_INVALID, "config.max_recv is %lld, not 1 to %lld",
				  (long long)config->max_recv, (long long)most * g->num_ranks);
	}
	return MOEEP_OK;
}

int moeep_handle_create(moeep_buffer_t *buffer, const moeep_handle_config_t *config,
			moeep_handle_t **handle_out)
{
	struct moeep_handle *handle;
	int rc = MOEEP_OK;

	if (!buffer || !handle_out) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is %p, handle is %p", (void *)buffer,
				  (void *)handle_out);
	}
	handle = calloc(1, sizeof(*handle));
	if (!handle) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a handle");
	}
	handle->buffer = buffer;
	if (config) {
		rc = moeep_struct_in("config", config, &handle->config, sizeof(handle->config));
	}
	if (rc == MOEEP_OK) {
		rc = handle_limits(&buffer->geo, &handle->config);
	}
	if (rc == MOEEP_OK) {
		rc = buffer->cuda ? moeep_cuda_handle_create(handle) : handle_alloc(handle);
	}
	if (rc != MOEEP_OK) {
		handle_free(handle);
		return rc;
	}
	atomic_fetch_add(&buffer->num_handles, 1);
	*handle_out = handle;
	return MOEEP_OK;
}

int moeep_handle_destroy(moeep_handle_t *handle)
{
	if (!handle) {
		return MOEEP_OK;
	}
	if (atomic_load_explicit(&handle->in_flight, memory_order_acquire) != 0) {
		moeep_stream_drain(&handle->buffer->stream);
	}
	atomic_fetch_sub(&handle->buffer->num_handles, 1);
	handle_free(handle);
	return MOEEP_OK;
}

int moeep_handle_query(const moeep_handle_t *handle_const, moeep_handle_info_t *info)
{
	struct moeep_handle *handle = (struct moeep_handle *)handle_const;
	moeep_handle_info_t own = {.size = sizeof(own), .num_recv = -1};

	if (!handle) {
		return moeep_fail(MOEEP_ERR_INVALID, "handle is NULL");
	}
	if (atomic_load_explicit(&handle->in_flight, memory_order_acquire) != 0) {
		return moeep_fail(MOEEP_ERR_NOT_READY, "an operation with the handle is in flight");
	}
	if (handle->cuda) {
		int rc = moeep_cuda_handle_ready(handle);

		if (rc != MOEEP_OK) {
			return rc;
		}
	}
	own.operation = handle->kind == MOEEP_ROUTE_HT	   ? MOEEP_OP_DISPATCH
			: handle->kind == MOEEP_ROUTE_LL   ? MOEEP_OP_LL_DISPATCH_RECV
			: handle->kind == MOEEP_ROUTE_NONE ? MOEEP_OP_NONE
							   : MOEEP_OP_LL_DISPATCH_SEND;
	if (handle->kind != MOEEP_ROUTE_NONE) {
		own.row_layout = handle->row_layout;
		own.epoch = handle->route;
		own.num_tokens = handle->num_tokens;
		own.send_per_rank = handle->send_per_rank;
	}
	if (handle->kind == MOEEP_ROUTE_HT || handle->kind == MOEEP_ROUTE_LL) {
		own.num_recv = handle->num_rows;
		own.recv_per_rank = handle->recv_per_rank;
		own.recv_per_expert = handle->recv_per_expert;
		own.expert_offsets = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR
					     ? handle->expert_offsets
					     : NULL;
	}
	if (handle->cuda) {
		moeep_cuda_handle_info(handle, &own);
	}
	return moeep_struct_out("info", info, &own, sizeof(own));
}
