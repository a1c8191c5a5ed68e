/* SPDX-License-Identifier: MIT */
/* cuda/ht.c - what the high-throughput calls on a GPU share, and moeep_layout(). */
#include "config.h"

#include "cuda/ht.h"
#include "cuda/window.h"

/* Pieces of rows that a mover has under way; they are multiples of UNIT. */
#define LEAST_STAGES 4
#define UNIT	     32
/* Shared memory for the barriers of all stages. */
#define ROOM_BARRIERS 2048

struct moeep_cuda_pieces moeep_cuda_cut_rows(const struct moeep_cuda *cuda,
					     enum moeep_cuda_kernel_id id, size_t route_shared,
					     uint64_t row_bytes)
{
	uint64_t room =
		(uint64_t)(cuda->context->max_shared - cuda->context->kernels[id].static_shared) -
		route_shared - ROOM_BARRIERS;
	uint64_t most = room / (MOEEP_DEV_MOVERS * LEAST_STAGES) / UNIT * UNIT;
	uint64_t count = (row_bytes + most - 1) / most;
	struct moeep_cuda_pieces p = {.stages = MOEEP_DEV_STAGES};

	if (!cuda->context->bulk) {
		return (struct moeep_cuda_pieces){.bytes = row_bytes, .stages = 2};
	}
	p.bytes = moeep_align((row_bytes + count - 1) / count, UNIT);
	if ((uint64_t)(p.stages * MOEEP_DEV_MOVERS) * p.bytes > room) {
		p.stages = (int)(room / (MOEEP_DEV_MOVERS * p.bytes));
	}
	p.shared = (size_t)(MOEEP_DEV_MOVERS * p.stages) * (p.bytes + 8);
	return p;
}

size_t moeep_cuda_route_shared(const struct moeep_geometry *g)
{
	size_t experts = (size_t)g->config.num_experts;
	size_t bytes = (size_t)g->num_ranks * MOEEP_DEV_END_BYTES + 4;

	/* The stages of movers are aligned. */
	return moeep_align(bytes + (experts <= MOEEP_DEV_HIST ? 4 * experts : 0), 128);
}

void moeep_cuda_set_route(const struct moeep_cuda_call *call, struct moeep_ht_route_args *p)
{
	const struct moeep_cuda *cuda = call->buffer->comm->cuda;

	p->shared = (int32_t)moeep_cuda_route_shared(&call->buffer->geo);

	p->scratch = call->buffer->cuda->scratch;
	p->regions = moeep_cuda_pointer(cuda->dev_regions);
	p->region_base = moeep_cuda_pointer(cuda->dev_region_base);
	p->region_slots = cuda->region_slots;
}

struct moeep_dev_place moeep_cuda_place(const struct moeep_cuda_call *call,
					const struct moeep_place *place)
{
	return (struct moeep_dev_place){
		.slot = moeep_cuda_region_slot(call->buffer->comm->cuda, place->region),
		.id = place->region,
		.offset = place->offset,
	};
}

int moeep_cuda_layout(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const void *args_void, const moeep_launch_t *launch)
{
	const moeep_layout_args_t *args = args_void;
	struct moeep_layout_params p = {0};
	struct moeep_cuda_call call;
	int rc = moeep_cuda_begin(&call, buffer, handle, launch, MOEEP_OP_NONE);

	if (rc != MOEEP_OK) {
		return rc;
	}
	p = (struct moeep_layout_params){
		.c = call.context,
		.topk_idx = args->topk_idx,
		.topk_dtype = args->topk_dtype,
		.topk = args->topk,
		.num_tokens = args->num_tokens,
		.node = buffer->cuda->nodes,
		.num_nodes = buffer->comm->num_nodes,
		.tokens_per_rank = args->tokens_per_rank,
		.tokens_per_node = args->tokens_per_node,
		.tokens_per_expert = args->tokens_per_expert,
		.token_in_rank = args->token_in_rank,
	};
	return moeep_cuda_end(&call, moeep_cuda_launch(&call, MOEEP_CUDA_LAYOUT, 1, 0, &p));
}
