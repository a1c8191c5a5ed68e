/* SPDX-License-Identifier: MIT */
/* cuda/ht.c - high-throughput calls on a GPU: the kernels of an operation and their arguments. */
#include "config.h"

#include <string.h>

#include "core/error.h"
#include "cuda/launch.h"
#include "cuda/window.h"
#include "ep/check.h"

/* Measured, see docs/performance-gpu.md. */
#define DISPATCH_BLOCKS 24
#define COMBINE_BLOCKS	32
/* Pieces that a warp has under way: of rows on their way, and of rows that are summed, several a
 * token. */
#define LEAST_STAGES 4
#define MOST_STAGES  8
#define SUM_STAGES   16
/* Pieces are multiples of what a lane sums at once; for sums, of what a warp does, if that fits. */
#define UNIT	 32
#define SUM_UNIT 1024
/* Shared memory for the barriers of all stages. */
#define ROOM_BARRIERS 2048

/* How a row is cut into the pieces that the copy engine moves. */
struct pieces {
	uint64_t bytes;
	int stages;
	size_t shared;
};

static struct pieces cut_rows(const struct moeep_cuda *cuda, enum moeep_cuda_kernel_id id,
			      uint64_t row_bytes, int warps, int least_stages, int most_stages,
			      uint64_t unit)
{
	uint64_t room =
		(uint64_t)(cuda->context->max_shared - cuda->context->kernels[id].static_shared) -
		ROOM_BARRIERS;
	uint64_t fits = room / (uint64_t)(warps * least_stages);
	uint64_t most = fits - fits % (fits < unit ? UNIT : unit);
	uint64_t count = (row_bytes + most - 1) / most;
	struct pieces p = {.stages = most_stages};

	if (!cuda->context->bulk) {
		return (struct pieces){.bytes = row_bytes, .stages = 2};
	}
	p.bytes = moeep_align((row_bytes + count - 1) / count, UNIT);
	if ((uint64_t)(p.stages * warps) * p.bytes > room) {
		p.stages = (int)(room / ((uint64_t)warps * p.bytes));
	}
	p.shared = (size_t)(warps * p.stages) * (p.bytes + 8);
	return p;
}

static size_t route_shared(const struct moeep_geometry *g)
{
	int experts = g->config.num_experts;

	return 4 * (2 * (size_t)g->num_ranks + (experts <= MOEEP_DEV_HIST ? (size_t)experts : 0));
}

static void set_route(const struct moeep_cuda_call *call, struct moeep_ht_route_params *p)
{
	const struct moeep_cuda *cuda = call->buffer->comm->cuda;

	p->c = call->context;
	p->route = call->handle->cuda->route;
	p->plan = call->buffer->cuda->plan;
	p->scratch = call->buffer->cuda->scratch;
	p->regions = moeep_cuda_pointer(cuda->dev_regions);
	p->region_base = moeep_cuda_pointer(cuda->dev_region_base);
	p->region_slots = cuda->region_slots;
}

/* What a dispatch call is about once the handle's part is known. */
struct dispatch {
	const moeep_dispatch_args_t *args;
	int64_t num_tokens;
	int topk;
	bool cached;
	bool counts_only;
	bool expert_major;
	uint64_t row_bytes;
	bool direct; /* recv_x is written by the peers */
	int blocks;
	int senders;
	struct pieces pieces;
};

static int check_dispatch(const struct moeep_buffer *buffer, struct moeep_handle *handle,
			  struct dispatch *d)
{
	const moeep_dispatch_args_t *args = d->args;
	int rc = MOEEP_OK;

	d->cached = (args->flags & MOEEP_DISPATCH_CACHED) != 0;
	d->counts_only = (args->flags & MOEEP_DISPATCH_COUNTS_ONLY) != 0;
	d->row_bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(args->dtype);
	if (d->cached) {
		rc = moeep_ht_check_cached(handle, args);
		d->num_tokens = handle->num_tokens;
		d->topk = handle->topk;
		d->expert_major = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR;
		if (rc == MOEEP_OK && d->num_tokens > 0 && !args->x) {
			rc = moeep_fail(MOEEP_ERR_INVALID, "x is NULL with num_tokens %lld",
					(long long)d->num_tokens);
		}
	} else {
		d->num_tokens = args->num_tokens;
		d->topk = args->topk ? args->topk : buffer->geo.config.max_topk;
		d->expert_major = args->row_layout == MOEEP_ROWS_EXPERT_MAJOR;
	}
	if (rc == MOEEP_OK && args->scales) {
		moeep_check_scales(&rc, "scale", args->scale_layout, args->scale_stride,
				   args->scale_count, d->num_tokens);
	}
	return rc;
}

static void note_dispatch(struct moeep_handle *handle, const struct dispatch *d)
{
	if (!d->cached) {
		handle->kind = MOEEP_ROUTE_HT;
		handle->num_tokens = d->num_tokens;
		handle->topk = d->topk;
		handle->row_layout = d->expert_major ? MOEEP_ROWS_EXPERT_MAJOR : MOEEP_ROWS_FLAT;
		handle->alignment = d->args->expert_alignment ? d->args->expert_alignment : 1;
		handle->weighted = d->args->topk_weights != NULL;
	} else if (d->args->topk_weights) {
		handle->weighted = true;
	}
	handle->counts_only = d->counts_only;
}

static struct moeep_dev_entry entry_of(const struct moeep_cuda_call *call, const struct dispatch *d,
				       const struct moeep_place *place)
{
	const moeep_dispatch_args_t *args = d->args;
	struct moeep_dev_entry entry = {
		.op = MOEEP_OP_DISPATCH,
		.flags = args->flags & (MOEEP_DISPATCH_CACHED | MOEEP_DISPATCH_COUNTS_ONLY),
		.dtype = args->dtype,
		.topk = d->topk,
		.row_layout = d->expert_major ? MOEEP_ROWS_EXPERT_MAJOR : MOEEP_ROWS_FLAT,
		.alignment = args->expert_alignment ? args->expert_alignment : 1,
		.channels = d->senders * MOEEP_DEV_MOVERS,
		.wants_rows = args->recv_x != NULL,
		.num_tokens = d->num_tokens,
		.capacity = args->capacity,
		.max_recv = call->handle->config.max_recv,
	};

	if (d->cached) {
		entry.alignment = call->handle->alignment;
	}
	if (args->topk_weights) {
		entry.given |= MOEEP_GIVEN_WEIGHTS;
	}
	if (args->scales) {
		entry.given |= MOEEP_GIVEN_SCALES;
		entry.scale_count = args->scale_count;
		entry.scale_dtype = args->scale_dtype;
	}
	if (args->x) {
		entry.given |= MOEEP_GIVEN_X;
	}
	if (d->direct) {
		entry.place.slot = moeep_cuda_region_slot(call->buffer->comm->cuda, place->region);
		entry.place.id = place->region;
		entry.place.offset = place->offset;
	}
	return entry;
}

static struct moeep_dev_scales scales_in(const moeep_dispatch_args_t *args, int64_t tokens)
{
	return (struct moeep_dev_scales){
		.base = (void *)(uintptr_t)args->scales,
		.layout = args->scale_layout,
		.dtype = args->scale_dtype,
		.count = args->scale_count,
		.stride = moeep_scale_stride(args->scale_layout, args->scale_stride, tokens,
					     args->scale_count),
	};
}

/* Their count and dtype are the givers', which the plan has. */
static struct moeep_dev_scales scales_out(const moeep_dispatch_args_t *args)
{
	return (struct moeep_dev_scales){
		.base = args->recv_scales,
		.layout = args->recv_scale_layout,
		.stride = moeep_scale_stride(args->recv_scale_layout, args->recv_scale_stride,
					     args->capacity, 0),
	};
}

static int launch_route(struct moeep_cuda_call *call, const struct dispatch *d,
			const struct moeep_place *place)
{
	const moeep_dispatch_args_t *args = d->args;
	struct moeep_ht_route_params p = {
		.entry = entry_of(call, d, place),
		.topk_idx = args->topk_idx,
		.topk_weights = args->topk_weights,
		.topk_dtype = args->topk_dtype,
		.last = d->counts_only,
		.recv_x = args->recv_x,
		.row_bytes = d->row_bytes,
		.num_recv = args->num_recv,
		.recv_per_expert = args->recv_per_expert,
		.recv_per_expert_padded = args->recv_per_expert_padded,
		.recv_expert_offsets = args->recv_expert_offsets,
	};

	set_route(call, &p);
	return moeep_cuda_launch(call, MOEEP_CUDA_HT_ROUTE, d->blocks,
				 route_shared(&call->buffer->geo), &p);
}

static int launch_move(struct moeep_cuda_call *call, const struct dispatch *d)
{
	const moeep_dispatch_args_t *args = d->args;
	struct moeep_ht_move_params p = {
		.c = call->context,
		.route = call->handle->cuda->route,
		.plan = call->buffer->cuda->plan,
		.x = args->x,
		.row_bytes = d->row_bytes,
		.piece = d->pieces.bytes,
		.num_tokens = d->num_tokens,
		.senders = d->senders,
		.stages = d->pieces.stages,
		.bulk = call->buffer->comm->cuda->context->bulk,
		.expert_major = d->expert_major,
		.last = !d->expert_major,
		.topk_dtype = args->topk_dtype,
		.call_flags = args->flags,
		.capacity = args->capacity,
		.recv_x = args->recv_x,
		.scales = scales_in(args, d->num_tokens),
		.recv_scales = scales_out(args),
		.recv_topk_idx = args->recv_topk_idx,
		.recv_topk_weights = args->recv_topk_weights,
		.recv_src_token = args->recv_src_token,
		.recv_src_rank = args->recv_src_rank,
	};

	return moeep_cuda_launch(call, MOEEP_CUDA_HT_MOVE, d->blocks, d->pieces.shared, &p);
}

static int launch_expand(struct moeep_cuda_call *call, const struct dispatch *d)
{
	const moeep_dispatch_args_t *args = d->args;
	int local = call->buffer->geo.local_experts;
	struct moeep_ht_expand_params p = {
		.c = call->context,
		.route = call->handle->cuda->route,
		.plan = call->buffer->cuda->plan,
		.scratch = call->buffer->cuda->scratch,
		.row_bytes = d->row_bytes,
		.call_flags = args->flags,
		.capacity = args->capacity,
		.recv_x = args->recv_x,
		.recv_scales = scales_out(args),
		.recv_topk_weights = args->recv_topk_weights,
		.recv_src_token = args->recv_src_token,
		.recv_src_rank = args->recv_src_rank,
		.recv_expert = args->recv_expert,
	};

	return moeep_cuda_launch(call, MOEEP_CUDA_HT_EXPAND, d->blocks,
				 local <= MOEEP_DEV_HIST ? 4 * (size_t)local : 0, &p);
}

int moeep_cuda_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args,
			const moeep_launch_t *launch)
{
	static const enum moeep_cuda_kernel_id ids[] = {MOEEP_CUDA_HT_ROUTE, MOEEP_CUDA_HT_MOVE};
	struct dispatch d = {.args = args};
	struct moeep_place place = {0};
	struct moeep_cuda_call call;
	size_t shared[2];
	int rc = check_dispatch(buffer, handle, &d);

	if (rc == MOEEP_OK) {
		rc = moeep_cuda_begin(&call, buffer, handle, launch, MOEEP_OP_DISPATCH);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	if (!d.expert_major) {
		place = moeep_region_find(buffer->comm, d.args->recv_x,
					  (uint64_t)d.args->capacity * d.row_bytes);
		d.direct = place.region != 0;
	}
	d.pieces = cut_rows(buffer->comm->cuda, MOEEP_CUDA_HT_MOVE, d.row_bytes, MOEEP_DEV_MOVERS,
			    LEAST_STAGES, MOST_STAGES, UNIT);
	shared[0] = route_shared(&buffer->geo);
	shared[1] = d.pieces.shared;
	rc = moeep_cuda_blocks(&call, ids, shared, 2, DISPATCH_BLOCKS, 2, &d.blocks);
	/* Rows for ordinary memory come through the window, and some blocks copy them from there.
	 */
	d.senders = d.args->recv_x && !d.expert_major && !d.direct && buffer->geo.num_ranks > 1
			    ? (d.blocks + 1) / 2
			    : d.blocks;
	if (rc == MOEEP_OK) {
		rc = launch_route(&call, &d, &place);
	}
	if (rc == MOEEP_OK && !d.counts_only) {
		rc = launch_move(&call, &d);
	}
	if (rc == MOEEP_OK && !d.counts_only && d.expert_major) {
		rc = launch_expand(&call, &d);
	}
	if (rc == MOEEP_OK) {
		atomic_fetch_add_explicit(&buffer->ht_epoch, 1, memory_order_relaxed);
		note_dispatch(handle, &d);
	}
	return moeep_cuda_end(&call, rc);
}

static int check_combine(const struct moeep_handle *handle, const moeep_combine_args_t *args)
{
	bool weighted = (args->flags & MOEEP_COMBINE_WEIGHTED) != 0;

	if (handle->kind != MOEEP_ROUTE_HT || handle->counts_only) {
		return moeep_fail(MOEEP_ERR_STATE, "the handle has no HT dispatch that moved rows");
	}
	if (weighted && handle->row_layout != MOEEP_ROWS_EXPERT_MAJOR) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "flags has MOEEP_COMBINE_WEIGHTED with a flat row layout");
	}
	/* A rank without tokens had no weights to give. */
	if (weighted && !handle->weighted && handle->num_tokens > 0) {
		return moeep_fail(
			MOEEP_ERR_INVALID,
			"flags has MOEEP_COMBINE_WEIGHTED but the dispatch had no weights");
	}
	return MOEEP_OK;
}

int moeep_cuda_combine(struct moeep_buffer *buffer, struct moeep_handle *handle,
		       const void *args_void, const moeep_launch_t *launch)
{
	static const enum moeep_cuda_kernel_id ids[] = {MOEEP_CUDA_HT_ROUTE, MOEEP_CUDA_HT_COMBINE};
	const moeep_combine_args_t *args = args_void;
	bool expert_major = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR;
	int32_t staged = expert_major && buffer->geo.config.partial_dtype == MOEEP_FP32
				 ? MOEEP_FP32
				 : args->dtype;
	uint64_t hidden = (uint64_t)buffer->geo.config.hidden;
	uint64_t row_bytes = hidden * moeep_dtype_size(args->dtype);
	uint64_t staged_bytes = hidden * moeep_dtype_size(staged);
	struct moeep_ht_route_params route = {0};
	struct moeep_ht_combine_params p = {0};
	struct moeep_cuda_call call;
	struct pieces pieces;
	struct pieces sums;
	size_t shared[2];
	int blocks = 0;
	int senders;
	int rc = check_combine(handle, args);

	if (rc == MOEEP_OK) {
		rc = moeep_cuda_begin(&call, buffer, handle, launch, MOEEP_OP_COMBINE);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	pieces = cut_rows(buffer->comm->cuda, MOEEP_CUDA_HT_COMBINE, row_bytes, MOEEP_DEV_MOVERS,
			  LEAST_STAGES, MOST_STAGES, UNIT);
	sums = cut_rows(buffer->comm->cuda, MOEEP_CUDA_HT_COMBINE, staged_bytes,
			MOEEP_DEV_MOVE_THREADS / 32, SUM_STAGES, SUM_STAGES, SUM_UNIT);
	shared[0] = route_shared(&buffer->geo);
	shared[1] = pieces.shared > sums.shared ? pieces.shared : sums.shared;
	rc = moeep_cuda_blocks(&call, ids, shared, 2, COMBINE_BLOCKS, 2, &blocks);
	senders = (blocks + 1) / 2;
	set_route(&call, &route);
	route.entry = (struct moeep_dev_entry){
		.op = MOEEP_OP_COMBINE,
		.flags = args->flags,
		.dtype = args->dtype,
		.topk = handle->topk,
		.row_layout = handle->row_layout,
		.given = (args->topk_weights ? MOEEP_GIVEN_WEIGHTS : 0) |
			 (args->x ? MOEEP_GIVEN_X : 0),
		.channels = senders * MOEEP_DEV_MOVERS,
		.wants_rows = args->out != NULL,
	};
	route.weighted = (args->flags & MOEEP_COMBINE_WEIGHTED) != 0;
	route.row_bytes = staged_bytes;
	p = (struct moeep_ht_combine_params){
		.c = call.context,
		.route = handle->cuda->route,
		.plan = buffer->cuda->plan,
		.x = args->x,
		.topk_weights = args->topk_weights,
		.out = args->out,
		.out_topk_weights = args->out_topk_weights,
		.bias = args->bias,
		.row_bytes = row_bytes,
		.staged_bytes = staged_bytes,
		.piece = pieces.bytes,
		.sum_piece = sums.bytes,
		.num_tokens = handle->num_tokens,
		.dtype = args->dtype,
		.staged_dtype = staged,
		.senders = senders,
		.stages = pieces.stages,
		.sum_stages = sums.stages,
		.bulk = buffer->comm->cuda->context->bulk,
		.expert_major = expert_major,
		.weighted = route.weighted,
		.topk = handle->topk,
	};
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_launch(&call, MOEEP_CUDA_HT_ROUTE, 1, shared[0], &route);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_launch(&call, MOEEP_CUDA_HT_COMBINE, blocks, shared[1], &p);
	}
	if (rc == MOEEP_OK) {
		atomic_fetch_add_explicit(&buffer->ht_epoch, 1, memory_order_relaxed);
	}
	return moeep_cuda_end(&call, rc);
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
