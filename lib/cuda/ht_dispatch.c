/* SPDX-License-Identifier: MIT */
/* cuda/ht_dispatch.c - HT dispatch on a GPU: its kernels and their arguments. */
#include "config.h"

#include "core/error.h"
#include "cuda/ht.h"
#include "ep/check.h"

/* Measured, see docs/performance-gpu.md. */
#define DISPATCH_BLOCKS 24
/* Of so many blocks one does not send rows. */
#define BLOCKS_OF_RECEIVER 4
/* If rows have to be copied: of so many, blocks that copy them, and no more senders than fill a
 * link. */
#define COPY_BLOCKS  24
#define COPIERS	     10
#define MOST_SENDERS 14
/* Then a channel is waited for and copied as one, so it has so many bytes at least. */
#define COPIED_CHANNEL (28u << 10)

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
	bool copies; /* rows come through the window and are copied from there */
	int blocks;
	int senders;
	int64_t each; /* tokens of a channel */
	int channels;
	struct moeep_cuda_pieces pieces;
	size_t shared; /* bytes of a block */
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
		.channels = d->channels,
		.senders = d->senders,
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
		entry.place = moeep_cuda_place(call, place);
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

static struct moeep_ht_route_args route_of(const struct moeep_cuda_call *call,
					   const struct dispatch *d,
					   const struct moeep_place *place)
{
	const moeep_dispatch_args_t *args = d->args;
	struct moeep_ht_route_args p = {
		.entry = entry_of(call, d, place),
		.topk_idx = args->topk_idx,
		.topk_weights = args->topk_weights,
		.topk_dtype = args->topk_dtype,
		.own = args->recv_x,
		.row_bytes = d->row_bytes,
		.num_recv = args->num_recv,
		.recv_per_expert = args->recv_per_expert,
		.recv_per_expert_padded = args->recv_per_expert_padded,
		.recv_expert_offsets = args->recv_expert_offsets,
	};

	moeep_cuda_set_route(call, &p);
	return p;
}

static int launch_dispatch(struct moeep_cuda_call *call, const struct dispatch *d,
			   const struct moeep_place *place)
{
	const moeep_dispatch_args_t *args = d->args;
	struct moeep_ht_dispatch_params p = {
		.c = call->context,
		.route = call->handle->cuda->route,
		.plan = call->buffer->cuda->plan,
		.begin = route_of(call, d, place),
		.x = args->x,
		.row_bytes = d->row_bytes,
		.piece = d->pieces.bytes,
		.num_tokens = d->num_tokens,
		.senders = d->senders,
		.channels = d->channels,
		.each = (int32_t)d->each,
		.stages = d->pieces.stages,
		.bulk = call->buffer->comm->cuda->context->bulk,
		.expert_major = d->expert_major,
		.last = !d->expert_major || d->counts_only,
		.copies = d->copies,
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

	return moeep_cuda_launch(call, MOEEP_CUDA_HT_DISPATCH, d->blocks, d->shared, &p);
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

/* What the blocks do, and which tokens make a channel: few, as the last ones decide when all are
 * through. */
static void deal_blocks(struct dispatch *d, int num_ranks)
{
	int receivers = d->blocks / BLOCKS_OF_RECEIVER;

	d->each = (d->num_tokens + MOEEP_DEV_CHANNELS - 1) / MOEEP_DEV_CHANNELS;
	d->copies = d->args->recv_x && !d->expert_major && !d->direct && num_ranks > 1;
	if (d->copies) {
		int64_t least = (int64_t)(COPIED_CHANNEL / d->row_bytes);

		d->each = d->each < least ? least : d->each;
		receivers = d->blocks * COPIERS / COPY_BLOCKS;
		receivers =
			receivers < d->blocks - MOST_SENDERS ? d->blocks - MOST_SENDERS : receivers;
	}
	d->senders = d->blocks - (receivers > 0 ? receivers : 1);
	d->channels = d->each > 0 ? (int)((d->num_tokens + d->each - 1) / d->each) : 0;
}

int moeep_cuda_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args,
			const moeep_launch_t *launch)
{
	struct dispatch d = {.args = args};
	struct moeep_place place = {0};
	struct moeep_cuda_call call;
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
	d.shared = moeep_cuda_route_shared(&buffer->geo);
	d.pieces = moeep_cuda_cut_rows(buffer->comm->cuda, MOEEP_CUDA_HT_DISPATCH, d.shared,
				       d.row_bytes);
	d.shared += d.pieces.shared;
	rc = moeep_cuda_blocks(&call, MOEEP_CUDA_HT_DISPATCH, d.shared, DISPATCH_BLOCKS, 2,
			       &d.blocks);
	deal_blocks(&d, buffer->geo.num_ranks);
	if (rc == MOEEP_OK) {
		rc = launch_dispatch(&call, &d, &place);
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
