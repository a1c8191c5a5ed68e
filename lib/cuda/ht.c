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
#define MOST_SHARES	4
#define COMBINE_BLOCKS	32
/* Of these, blocks that send by the copy engine; the others sum. */
#define COMBINE_SENDERS 12
/* Pieces of rows that a mover has under way; they are multiples of UNIT. */
#define LEAST_STAGES 4
#define MOST_STAGES  8
#define UNIT	     32
/* Shared memory for the barriers of all stages. */
#define ROOM_BARRIERS 2048

/* How a row is cut into the pieces that the copy engine moves. */
struct pieces {
	uint64_t bytes;
	int stages;
	size_t shared;
};

static struct pieces cut_rows(const struct moeep_cuda *cuda, enum moeep_cuda_kernel_id id,
			      uint64_t row_bytes)
{
	uint64_t room =
		(uint64_t)(cuda->context->max_shared - cuda->context->kernels[id].static_shared) -
		ROOM_BARRIERS;
	uint64_t most = room / (MOEEP_DEV_MOVERS * LEAST_STAGES) / UNIT * UNIT;
	uint64_t count = (row_bytes + most - 1) / most;
	struct pieces p = {.stages = MOST_STAGES};

	if (!cuda->context->bulk) {
		return (struct pieces){.bytes = row_bytes, .stages = 2};
	}
	p.bytes = moeep_align((row_bytes + count - 1) / count, UNIT);
	if ((uint64_t)(p.stages * MOEEP_DEV_MOVERS) * p.bytes > room) {
		p.stages = (int)(room / (MOEEP_DEV_MOVERS * p.bytes));
	}
	p.shared = (size_t)(MOEEP_DEV_MOVERS * p.stages) * (p.bytes + 8);
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
	int shares; /* channels for each mover of these */
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

static struct moeep_dev_place place_for_peers(const struct moeep_cuda_call *call,
					      const struct moeep_place *place)
{
	return (struct moeep_dev_place){
		.slot = moeep_cuda_region_slot(call->buffer->comm->cuda, place->region),
		.id = place->region,
		.offset = place->offset,
	};
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
		.channels = d->senders * MOEEP_DEV_MOVERS * d->shares,
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
		entry.place = place_for_peers(call, place);
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
		.own = args->recv_x,
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
		.shares = d->shares,
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

/*
 * Movers claim channels one after the other, so there are more of these than movers. Beyond 32
 * ranks, to which a mover sends 32 at a time, each has one of its own.
 */
static int shares_of(int num_ranks, int senders)
{
	int most = MOEEP_DEV_CHANNELS / MOEEP_DEV_MOVERS / (senders > 0 ? senders : 1);
	int shares = most < MOST_SHARES ? most : MOST_SHARES;

	return num_ranks > 32 || shares < 1 ? 1 : shares;
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
	d.pieces = cut_rows(buffer->comm->cuda, MOEEP_CUDA_HT_MOVE, d.row_bytes);
	shared[0] = route_shared(&buffer->geo);
	shared[1] = d.pieces.shared;
	rc = moeep_cuda_blocks(&call, ids, shared, 2, DISPATCH_BLOCKS, 2, &d.blocks);
	/* Rows for ordinary memory come through the window, and some blocks copy them from there.
	 */
	d.senders = d.args->recv_x && !d.expert_major && !d.direct && buffer->geo.num_ranks > 1
			    ? (d.blocks + 1) / 2
			    : d.blocks;
	d.shares = shares_of(buffer->geo.num_ranks, d.senders);
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

/* What a combine call is about. */
struct combine {
	const moeep_combine_args_t *args;
	bool expert_major;
	int32_t staged; /* dtype of rows that other ranks read */
	uint64_t row_bytes;
	uint64_t staged_bytes;
	bool in_place; /* x is read by the peers */
	struct moeep_dev_place place;
	int64_t rows; /* from there to the end of the symmetric memory */
	int blocks;
	int senders; /* the other blocks sum */
	struct pieces pieces;
};

static struct combine combine_of(struct moeep_buffer *buffer, const struct moeep_handle *handle,
				 const moeep_combine_args_t *args)
{
	uint64_t hidden = (uint64_t)buffer->geo.config.hidden;
	struct combine k = {
		.args = args,
		.expert_major = handle->row_layout == MOEEP_ROWS_EXPERT_MAJOR,
		.staged = args->dtype,
	};

	if (k.expert_major && buffer->geo.config.partial_dtype == MOEEP_FP32) {
		k.staged = MOEEP_FP32;
	}
	k.row_bytes = hidden * moeep_dtype_size(args->dtype);
	k.staged_bytes = hidden * moeep_dtype_size(k.staged);
	k.pieces = cut_rows(buffer->comm->cuda, MOEEP_CUDA_HT_COMBINE, k.row_bytes);
	return k;
}

/* Where x is, how many blocks there are, and what they do. */
static int deal_combine(struct moeep_cuda_call *call, struct combine *k, size_t *shared)
{
	static const enum moeep_cuda_kernel_id ids[] = {MOEEP_CUDA_HT_ROUTE, MOEEP_CUDA_HT_COMBINE};
	struct moeep_comm *comm = call->buffer->comm;
	/* Of the ranks' progress, in blocks that sum. */
	size_t table = 4 * (size_t)comm->num_ranks * (MOEEP_DEV_CHANNELS / MOEEP_DEV_MOVERS);
	int rc;

	if (!k->expert_major) {
		struct moeep_place place = moeep_region_find(comm, k->args->x, k->row_bytes);

		k->in_place = place.region != 0;
		if (k->in_place) {
			k->place = place_for_peers(call, &place);
			k->rows = (int64_t)(moeep_region_room(comm, &place) / k->row_bytes);
		}
	}
	shared[0] = route_shared(&call->buffer->geo);
	shared[1] = k->in_place || table > k->pieces.shared ? table : k->pieces.shared;
	rc = moeep_cuda_blocks(call, ids, shared, 2, COMBINE_BLOCKS, 2, &k->blocks);
	if (!k->in_place && comm->cuda->context->bulk && !k->expert_major) {
		k->senders = (k->blocks * COMBINE_SENDERS + COMBINE_BLOCKS - 1) / COMBINE_BLOCKS;
	} else if (!k->in_place) {
		k->senders = (k->blocks + 1) / 2; /* by loads and stores */
	} else if (k->args->topk_weights) {
		k->senders = (k->blocks + 7) / 8; /* of values only */
	}
	return rc;
}

static int launch_combine_route(struct moeep_cuda_call *call, const struct combine *k,
				size_t shared)
{
	const moeep_combine_args_t *args = k->args;
	struct moeep_ht_route_params p = {
		.entry =
			{
				.op = MOEEP_OP_COMBINE,
				.flags = args->flags,
				.dtype = args->dtype,
				.topk = call->handle->topk,
				.row_layout = call->handle->row_layout,
				.given = (args->topk_weights ? MOEEP_GIVEN_WEIGHTS : 0) |
					 (args->x ? MOEEP_GIVEN_X : 0),
				.channels = (k->senders ? k->senders : 1) * MOEEP_DEV_MOVERS,
				.wants_rows = args->out != NULL,
				.capacity = k->rows,
				.place = k->place,
			},
		.weighted = (args->flags & MOEEP_COMBINE_WEIGHTED) != 0,
		.row_bytes = k->staged_bytes,
		.own = (char *)(uintptr_t)args->x,
	};

	set_route(call, &p);
	return moeep_cuda_launch(call, MOEEP_CUDA_HT_ROUTE, 1, shared, &p);
}

static int launch_combine(struct moeep_cuda_call *call, const struct combine *k, size_t shared)
{
	const moeep_combine_args_t *args = k->args;
	struct moeep_ht_combine_params p = {
		.c = call->context,
		.route = call->handle->cuda->route,
		.plan = call->buffer->cuda->plan,
		.x = args->x,
		.topk_weights = args->topk_weights,
		.out = args->out,
		.out_topk_weights = args->out_topk_weights,
		.bias = args->bias,
		.row_bytes = k->row_bytes,
		.staged_bytes = k->staged_bytes,
		.piece = k->pieces.bytes,
		.num_tokens = call->handle->num_tokens,
		.dtype = args->dtype,
		.staged_dtype = k->staged,
		.senders = k->senders,
		.stages = k->pieces.stages,
		.bulk = call->buffer->comm->cuda->context->bulk,
		.expert_major = k->expert_major,
		.weighted = (args->flags & MOEEP_COMBINE_WEIGHTED) != 0,
		.topk = call->handle->topk,
		.in_place = k->in_place,
	};

	return moeep_cuda_launch(call, MOEEP_CUDA_HT_COMBINE, k->blocks, shared, &p);
}

int moeep_cuda_combine(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args,
		       const moeep_launch_t *launch)
{
	struct moeep_cuda_call call;
	struct combine k;
	size_t shared[2];
	int rc = check_combine(handle, args);

	if (rc == MOEEP_OK) {
		rc = moeep_cuda_begin(&call, buffer, handle, launch, MOEEP_OP_COMBINE);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	k = combine_of(buffer, handle, args);
	rc = deal_combine(&call, &k, shared);
	if (rc == MOEEP_OK) {
		rc = launch_combine_route(&call, &k, shared[0]);
	}
	if (rc == MOEEP_OK) {
		rc = launch_combine(&call, &k, shared[1]);
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
