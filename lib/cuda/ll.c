/* SPDX-License-Identifier: MIT */
/* cuda/ll.c - low-latency calls on a GPU: what the state allows, and the kernel's arguments. */
#include "config.h"

#include "core/error.h"
#include "cuda/launch.h"
#include "ep/check.h"
#include "ep/ll_state.h"
#include "host/ll.h"

/* Measured, see docs/performance-gpu.md. */
#define DEFAULT_BLOCKS 128

/*
 * Of 16 blocks that send and receive, so many send: what has to go over a link holds up whatever
 * the same SM loads.
 */
#define SENDERS		4
#define COMBINE_SENDERS 5

/* 0: all blocks do both. */
static int senders(int phases, int blocks, int of_16)
{
	return phases == (MOEEP_LL_SEND | MOEEP_LL_RECV) && blocks >= 8 ? blocks * of_16 / 16 : 0;
}

static void set_scales(const struct moeep_geometry *g, const moeep_ll_dispatch_args_t *args,
		       struct moeep_ll_dispatch_params *p)
{
	int32_t scale = moeep_ll_scale_dtype(p->quant);
	int32_t count = moeep_scale_groups(g->config.hidden);
	int64_t stride = moeep_scale_stride(args->recv_scale_layout, args->recv_scale_stride,
					    args->capacity, count);

	if (p->quant == MOEEP_QUANT_NONE || !args->recv_scales) {
		return;
	}
	p->recv_scales = (struct moeep_dev_scales){.base = args->recv_scales,
						   .layout = args->recv_scale_layout,
						   .dtype = scale,
						   .count = count,
						   .stride = stride};
	p->expert_scales_bytes =
		moeep_scales_bytes(scale, args->recv_scale_layout, args->capacity, count, stride);
}

int moeep_cuda_ll_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle,
			   const void *args_void, const moeep_launch_t *launch)
{
	const moeep_ll_dispatch_args_t *args = args_void;
	const struct moeep_geometry *g = &buffer->geo;
	int phases = moeep_ll_phases(args->phase);
	struct moeep_ll_dispatch_params p = {0};
	struct moeep_cuda_call call;
	size_t shared = 4 * (2 * (size_t)g->num_ranks + moeep_cuda_ll_counters(g));
	int blocks = 0;
	int32_t dtype;
	int rc = moeep_ll_check_dispatch(buffer, handle, phases);

	if (rc == MOEEP_OK) {
		rc = moeep_cuda_begin(&call, buffer, handle, launch,
				      phases & MOEEP_LL_SEND ? MOEEP_OP_LL_DISPATCH_SEND
							     : MOEEP_OP_LL_DISPATCH_RECV);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = moeep_cuda_blocks(&call, MOEEP_CUDA_LL_DISPATCH, shared, DEFAULT_BLOCKS, 1, &blocks);
	p.c = call.context;
	p.route = handle->cuda->route;
	p.phases = phases;
	if (phases & MOEEP_LL_SEND) {
		p.x = args->x;
		p.topk_idx = args->topk_idx;
		p.topk_weights = args->topk_weights;
		p.num_tokens = args->num_tokens;
		p.dtype = args->dtype;
		p.quant = args->quant;
		p.topk = args->topk;
		p.topk_dtype = args->topk_dtype;
		p.given = args->topk_weights != NULL;
	} else {
		p.num_tokens = handle->num_tokens;
		p.dtype = handle->ll_dtype;
		p.quant = handle->ll_quant;
		p.topk = handle->topk;
		p.given = handle->weighted;
	}
	dtype = moeep_ll_wire_dtype(p.dtype, p.quant);
	p.row_bytes = (uint64_t)g->config.hidden * moeep_dtype_size(dtype);
	set_scales(g, args, &p);
	p.capacity = args->capacity;
	p.max_recv = handle->config.max_recv;
	p.recv_x = args->recv_x;
	p.recv_count = args->recv_count;
	p.recv_src_token = args->recv_src_token;
	p.recv_range = args->recv_range;
	p.hist = buffer->cuda->scratch.ll_hist;
	p.senders = senders(phases, blocks, SENDERS);
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_launch(&call, MOEEP_CUDA_LL_DISPATCH, blocks, shared, &p);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_SEND)) {
		moeep_ll_note_dispatch_send(buffer, handle, args);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_RECV)) {
		moeep_ll_note_dispatch_recv(buffer, handle, args);
	}
	return moeep_cuda_end(&call, rc);
}

int moeep_cuda_ll_combine(struct moeep_buffer *buffer, struct moeep_handle *handle,
			  const void *args_void, const moeep_launch_t *launch)
{
	const moeep_ll_combine_args_t *args = args_void;
	const struct moeep_geometry *g = &buffer->geo;
	int phases = moeep_ll_phases(args->phase);
	struct moeep_ll_combine_params p = {0};
	struct moeep_cuda_call call;
	size_t shared = 4 * (size_t)g->num_ranks;
	int blocks = 0;
	int rc = moeep_ll_check_combine(buffer, handle, phases);

	if (phases & MOEEP_LL_RECV) {
		moeep_check_pointer(&rc, "out", args->out, "num_tokens", handle->num_tokens);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_begin(&call, buffer, handle, launch,
				      phases & MOEEP_LL_SEND ? MOEEP_OP_LL_COMBINE_SEND
							     : MOEEP_OP_LL_COMBINE_RECV);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = moeep_cuda_blocks(&call, MOEEP_CUDA_LL_COMBINE, shared, DEFAULT_BLOCKS, 1, &blocks);
	p.c = call.context;
	p.route = handle->cuda->route;
	p.phases = phases;
	p.x = args->x;
	p.out = args->out;
	p.bias = args->bias;
	p.num_tokens = handle->num_tokens;
	p.capacity = args->capacity ? args->capacity : handle->ll_capacity;
	p.topk = handle->topk;
	p.dtype = phases & MOEEP_LL_SEND ? args->dtype : handle->combine_dtype;
	p.unweighted = phases & MOEEP_LL_SEND ? (args->flags & MOEEP_LL_COMBINE_UNWEIGHTED) != 0
					      : handle->combine_unweighted;
	p.senders = senders(phases, blocks, COMBINE_SENDERS);
	p.partial_dtype = g->config.partial_dtype == MOEEP_FP32 ? MOEEP_FP32 : p.dtype;
	p.row_bytes = (uint64_t)g->config.hidden * moeep_dtype_size(p.dtype);
	p.partial_bytes = (uint64_t)g->config.hidden * moeep_dtype_size(p.partial_dtype);
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_launch(&call, MOEEP_CUDA_LL_COMBINE, blocks, shared, &p);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_SEND)) {
		moeep_ll_note_combine_send(buffer, handle, args);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_RECV)) {
		moeep_ll_note_combine_recv(buffer, handle);
	}
	return moeep_cuda_end(&call, rc);
}
