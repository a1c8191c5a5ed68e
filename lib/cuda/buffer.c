/* SPDX-License-Identifier: MIT */
/* cuda/buffer.c - the device memory of buffers and handles beside the windows. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "cuda/buffer.h"

/* Pieces of one allocation: first their sizes are added up, then they get addresses. */
struct pieces {
	CUdeviceptr base; /* 0: count only */
	uint64_t at;
};

static void *piece(struct pieces *pieces, uint64_t bytes)
{
	void *memory = pieces->base ? moeep_cuda_pointer(pieces->base + pieces->at) : NULL;

	pieces->at = moeep_align(pieces->at + bytes, 64);
	return memory;
}

struct buffer_pieces {
	struct moeep_dev_state *state;
	struct moeep_dev_plan *plan;
	char **windows;
	int32_t *nodes;
	uint64_t *traffic;
	struct moeep_dev_scratch scratch;
};

static void cut_buffer(const struct moeep_geometry *g, struct pieces *p, struct buffer_pieces *b)
{
	uint64_t ranks = (uint64_t)g->num_ranks;
	uint64_t local = (uint64_t)g->local_experts;
	uint64_t experts = (uint64_t)g->config.num_experts;

	b->state = piece(p, sizeof(*b->state));
	b->plan = piece(p, sizeof(*b->plan));
	b->windows = piece(p, ranks * sizeof(*b->windows));
	b->nodes = piece(p, ranks * sizeof(*b->nodes));
	b->traffic = piece(p, ranks * MOEEP_DEV_TRAFFIC * sizeof(*b->traffic));
	b->scratch.block_total = piece(p, MOEEP_DEV_BLOCKS * ranks * 4);
	b->scratch.expert_count = piece(p, experts * 4);
	b->scratch.hist = NULL;
	if (local > MOEEP_DEV_HIST) {
		b->scratch.hist = piece(p, MOEEP_DEV_BLOCKS * local * 4);
	}
	b->scratch.ll_hist = moeep_cuda_ll_counters(g) == 0 ? piece(p, experts * 4) : NULL;
}

uint64_t moeep_cuda_private_bytes(const struct moeep_geometry *g)
{
	struct pieces pieces = {0};
	struct buffer_pieces b;

	cut_buffer(g, &pieces, &b);
	return pieces.at;
}

static int fill_buffer(struct moeep_buffer *buffer, const struct buffer_pieces *b)
{
	struct moeep_cuda *cuda = buffer->comm->cuda;
	const struct moeep_comm *comm = buffer->comm;
	const struct moeep_geometry *g = &buffer->geo;
	uint64_t epoch = g->config.initial_epoch;
	struct moeep_dev_state state = {
		.ht_epoch = epoch,
		.planned = epoch,
		.ll_epoch = epoch,
		.ll_recv = epoch,
		.ll_cepoch = epoch,
		.ll_crecv = epoch,
	};
	size_t ranks = (size_t)g->num_ranks;
	char **windows = calloc(ranks, sizeof(*windows));
	int32_t *nodes = calloc(ranks, sizeof(*nodes));
	int rc = MOEEP_OK;

	if (!windows || !nodes) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d windows", comm->num_ranks);
	}
	for (int rank = 0; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		windows[rank] = buffer->windows[rank]->base;
		nodes[rank] = comm->peers[rank].node;
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_put(cuda, (CUdeviceptr)(uintptr_t)b->windows, windows,
				    ranks * sizeof(*windows));
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_put(cuda, (CUdeviceptr)(uintptr_t)b->nodes, nodes,
				    ranks * sizeof(*nodes));
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_put(cuda, (CUdeviceptr)(uintptr_t)b->state, &state, sizeof(state));
	}
	free(nodes);
	free(windows);
	return rc;
}

static void set_context(struct moeep_buffer *buffer, const struct buffer_pieces *b)
{
	struct moeep_cuda_buffer *own = buffer->cuda;
	const struct moeep_geometry *g = &buffer->geo;
	uint32_t timeout_ms = buffer->comm->settings.timeout_ms;
	int32_t least = g->config.num_experts / g->num_ranks;
	int32_t more = g->config.num_experts % g->num_ranks;

	own->plan = b->plan;
	own->scratch = b->scratch;
	own->nodes = b->nodes;
	own->context = (struct moeep_dev_context){
		.shared = buffer->comm->cuda->shared,
		.comm = moeep_cuda_pointer(buffer->comm->cuda->dev_comm),
		.state = b->state,
		.windows = b->windows,
		.window = g->device,
		.timeout_ns =
			timeout_ms == MOEEP_TIMEOUT_NONE ? 0 : (uint64_t)timeout_ms * 1000000u,
		.hidden = g->config.hidden,
		.ht_max_tokens = g->config.ht_max_tokens,
		.ll_max_tokens = g->config.ll_max_tokens,
		.rank = g->rank,
		.num_ranks = g->num_ranks,
		.num_experts = g->config.num_experts,
		.first_expert = g->first_expert,
		.local_experts = g->local_experts,
		.large_ranks = more,
		.large_experts = more * (least + 1),
		.per_large_rank = 1.0f / (float)(least + 1),
		.per_rank = least > 0 ? 1.0f / (float)least : 0.0f,
		.max_topk = g->config.max_topk,
		.traffic = b->traffic,
	};
	for (int rank = 0; rank < g->num_ranks && rank < MOEEP_DEV_FIRST_WINDOWS; rank++) {
		own->context.first_windows[rank] = buffer->windows[rank]->base;
	}
}

static int create(struct moeep_buffer *buffer)
{
	struct moeep_cuda *cuda = buffer->comm->cuda;
	const struct moeep_cu *cu = cuda->cu;
	struct moeep_cuda_buffer *own = buffer->cuda;
	struct pieces pieces = {0};
	struct buffer_pieces b = {0};
	void *memory = NULL;
	CUresult result = moeep_cuda_stream_create(cuda->context, &own->stream);
	int rc;

	if (result == CUDA_SUCCESS) {
		result = cu->cuEventCreate(&own->last, CU_EVENT_DISABLE_TIMING);
	}
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "a buffer's stream and event");
	}
	rc = moeep_pinned_alloc(&cuda->context->pinned, cu, sizeof(*own->result), &memory);
	own->result = memory;
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_alloc(cuda, moeep_cuda_private_bytes(&buffer->geo), &own->memory);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	pieces.base = own->memory;
	cut_buffer(&buffer->geo, &pieces, &b);
	set_context(buffer, &b);
	return fill_buffer(buffer, &b);
}

int moeep_cuda_buffer_create(struct moeep_buffer *buffer)
{
	int rc;

	buffer->cuda = calloc(1, sizeof(*buffer->cuda));
	if (!buffer->cuda) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a buffer's description");
	}
	rc = moeep_cuda_enter(buffer->comm->cuda);
	if (rc == MOEEP_OK) {
		rc = create(buffer);
		moeep_cuda_leave(buffer->comm->cuda);
	}
	return rc;
}

int moeep_cuda_buffer_begin(struct moeep_buffer *buffer, uint64_t epoch)
{
	struct moeep_cuda *cuda = buffer->comm->cuda;
	uint64_t bytes = buffer->geo.device_flags;
	uint64_t *flags = malloc(bytes);
	int rc;

	if (!flags) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a buffer's flags");
	}
	for (uint64_t i = 0; i < bytes / sizeof(*flags); i++) {
		flags[i] = moeep_flag_word(epoch, 0);
	}
	rc = moeep_cuda_enter(cuda);
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_put(
			cuda,
			(CUdeviceptr)(uintptr_t)moeep_buffer_at(buffer, buffer->comm->rank, 0),
			flags, bytes);
		moeep_cuda_leave(cuda);
	}
	free(flags);
	return rc;
}

int moeep_cuda_buffer_traffic(const struct moeep_buffer *buffer, int peer,
			      uint64_t counters[MOEEP_DEV_TRAFFIC])
{
	const struct moeep_cuda *cuda = buffer->comm->cuda;
	const uint64_t *from = buffer->cuda->context.traffic + (int64_t)peer * MOEEP_DEV_TRAFFIC;
	CUresult result;
	int rc = moeep_cuda_enter(cuda);

	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cuda->cu->cuMemcpyDtoHAsync(counters, (CUdeviceptr)(uintptr_t)from,
					     MOEEP_DEV_TRAFFIC * sizeof(*counters), cuda->stream);
	if (result == CUDA_SUCCESS) {
		result = cuda->cu->cuStreamSynchronize(cuda->stream);
	}
	moeep_cuda_leave(cuda);
	return result == CUDA_SUCCESS
		       ? MOEEP_OK
		       : moeep_cu_fail(cuda->cu, result, "reading counters of traffic");
}

/* The last launch, which still uses what is about to be freed, is waited for. */
static void end_last(const struct moeep_cuda *cuda, CUevent last)
{
	if (last) {
		(void)cuda->cu->cuEventSynchronize(last);
		(void)cuda->cu->cuEventDestroy(last);
	}
}

void moeep_cuda_buffer_destroy(struct moeep_buffer *buffer)
{
	struct moeep_cuda_buffer *own = buffer->cuda;
	struct moeep_cuda *cuda = buffer->comm->cuda;

	if (!own) {
		return;
	}
	if (moeep_cuda_enter(cuda) == MOEEP_OK) {
		end_last(cuda, own->last);
		if (own->stream) {
			(void)cuda->cu->cuStreamSynchronize(own->stream);
			(void)cuda->cu->cuStreamDestroy(own->stream);
		}
		moeep_cuda_free(cuda, own->memory);
		moeep_cuda_leave(cuda);
	}
	moeep_pinned_free(&cuda->context->pinned, own->result);
	free(own);
	buffer->cuda = NULL;
}

static void cut_handle(const struct moeep_geometry *g, uint32_t modes, int64_t max_tokens,
		       int64_t max_recv, struct pieces *p, struct moeep_dev_route *r)
{
	uint64_t ranks = (uint64_t)g->num_ranks;
	uint64_t local = (uint64_t)g->local_experts;
	uint64_t topk = (uint64_t)g->config.max_topk;
	uint64_t tokens = (uint64_t)max_tokens;
	uint64_t records = modes & MOEEP_MODE_HT ? (uint64_t)max_recv : 0;

	/* LL keeps its records by source and token. */
	if ((modes & MOEEP_MODE_LL) && ranks * (uint64_t)g->config.ll_max_tokens > records) {
		records = ranks * (uint64_t)g->config.ll_max_tokens;
	}
	r->state = piece(p, sizeof(*r->state));
	r->topk_idx = piece(p, tokens * topk * 4);
	r->topk_weights = piece(p, tokens * topk * 4);
	r->position = modes & MOEEP_MODE_HT ? piece(p, tokens * ranks * 4) : NULL;
	r->send_count = piece(p, ranks * 4);
	r->send_base = piece(p, ranks * 4);
	r->recv_count = piece(p, ranks * 4);
	r->recv_base = piece(p, (ranks + 1) * 4);
	r->expert_offset = piece(p, (local + 1) * 4);
	r->expert_count = piece(p, (local + 1) * 4);
	r->needed = piece(p, ranks * 8);
	r->record_rows = piece(p, records * topk * 8);
	r->record_weights = piece(p, records * topk * 4);
	r->ll_tokens = piece(p, ranks * 4);
}

uint64_t moeep_cuda_handle_bytes(const struct moeep_geometry *g, uint32_t modes, int64_t max_tokens,
				 int64_t max_recv)
{
	struct moeep_dev_route route;
	struct pieces pieces = {0};

	cut_handle(g, modes, max_tokens, max_recv, &pieces, &route);
	return pieces.at;
}

static int handle_create(struct moeep_handle *handle)
{
	struct moeep_cuda *cuda = handle->buffer->comm->cuda;
	struct moeep_cuda_handle *own = handle->cuda;
	const struct moeep_geometry *g = &handle->buffer->geo;
	struct moeep_dev_route *r = &own->route;
	const struct moeep_dev_route_state nothing = {0};
	size_t ranks = (size_t)g->num_ranks;
	size_t local = (size_t)g->local_experts;
	struct pieces pieces = {0};
	int64_t *words;
	CUresult result = cuda->cu->cuEventCreate(&own->last, CU_EVENT_DISABLE_TIMING);
	int rc;

	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cuda->cu, result, "a handle's event");
	}
	rc = moeep_pinned_alloc(&cuda->context->pinned, cuda->cu,
				(2 * ranks + 2 * local + 3) * sizeof(*words), &own->pinned);
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_alloc(cuda,
				      moeep_cuda_handle_bytes(g, handle->config.modes,
							      handle->config.max_tokens,
							      handle->config.max_recv),
				      &own->memory);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	words = own->pinned;
	pieces.base = own->memory;
	cut_handle(g, handle->config.modes, handle->config.max_tokens, handle->config.max_recv,
		   &pieces, r);
	r->host_send = words;
	r->host_recv = r->host_send + ranks;
	r->host_experts = r->host_recv + ranks;
	r->host_offsets = r->host_experts + local;
	r->host_rows = r->host_offsets + local + 1;
	return moeep_cuda_put(cuda, (CUdeviceptr)(uintptr_t)r->state, &nothing, sizeof(nothing));
}

int moeep_cuda_handle_create(struct moeep_handle *handle)
{
	int rc;

	handle->cuda = calloc(1, sizeof(*handle->cuda));
	if (!handle->cuda) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a handle's description");
	}
	rc = moeep_cuda_enter(handle->buffer->comm->cuda);
	if (rc == MOEEP_OK) {
		rc = handle_create(handle);
		moeep_cuda_leave(handle->buffer->comm->cuda);
	}
	return rc;
}

void moeep_cuda_handle_destroy(struct moeep_handle *handle)
{
	struct moeep_cuda_handle *own = handle->cuda;
	struct moeep_cuda *cuda = handle->buffer->comm->cuda;

	if (!own) {
		return;
	}
	if (moeep_cuda_enter(cuda) == MOEEP_OK) {
		end_last(cuda, own->last);
		moeep_cuda_free(cuda, own->memory);
		moeep_cuda_leave(cuda);
	}
	moeep_pinned_free(&cuda->context->pinned, own->pinned);
	free(own);
	handle->cuda = NULL;
}

int moeep_cuda_handle_ready(const struct moeep_handle *handle)
{
	const struct moeep_cuda *cuda = handle->buffer->comm->cuda;
	CUresult result;
	int rc = moeep_cuda_enter(cuda);

	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cuda->cu->cuEventQuery(handle->cuda->last);
	moeep_cuda_leave(cuda);
	if (result == CUDA_ERROR_NOT_READY) {
		return moeep_fail(MOEEP_ERR_NOT_READY, "an operation with the handle is in flight");
	}
	return result == CUDA_SUCCESS ? MOEEP_OK : moeep_cu_fail(cuda->cu, result, "cuEventQuery");
}

void moeep_cuda_handle_info(const struct moeep_handle *handle, moeep_handle_info_t *info)
{
	const struct moeep_dev_route *host = &handle->cuda->route;

	if (handle->kind != MOEEP_ROUTE_NONE) {
		info->send_per_rank = host->host_send;
	}
	if (handle->kind == MOEEP_ROUTE_HT || handle->kind == MOEEP_ROUTE_LL) {
		const volatile int64_t *rows = host->host_rows;

		info->num_recv = rows[0];
		info->epoch = (uint64_t)rows[1];
		info->recv_per_rank = host->host_recv;
		info->recv_per_expert = host->host_experts;
	}
	if (info->num_recv >= 0 && handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR) {
		int64_t *offsets = host->host_offsets;

		/* Of LL they are the capacity's multiples. */
		for (int e = 0;
		     handle->kind == MOEEP_ROUTE_LL && e <= handle->buffer->geo.local_experts;
		     e++) {
			offsets[e] = e * handle->ll_capacity;
		}
		info->expert_offsets = offsets;
	}
}
