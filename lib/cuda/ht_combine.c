/* SPDX-License-Identifier: MIT */
/* cuda/ht_combine.c - HT combine on a GPU: its kernels and their arguments. */
#include "config.h"

#include "core/error.h"
#include "cuda/ht.h"

/* Measured, see docs/performance-gpu.md. */
#define COMBINE_BLOCKS 32
/* Of so many, blocks that send by the copy engine, but no more than fill a link; the others sum. */
#define COMBINE_SENDERS	 10
#define MOST_SENDERS	 12
#define COMBINE_CHANNELS (MOEEP_DEV_CHANNELS / 2)
/*
 * Rows of more elements are summed in parts, more of them where all rows are there from the
 * beginning; a part is a multiple of so many.
 */
#define LONG_ROW  4096
#define PART_UNIT 256

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
	int parts;   /* of a row that is summed */
	int part;    /* elements */
	struct moeep_cuda_pieces pieces;
	size_t shared; /* bytes of a block */
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
	k.shared = moeep_cuda_route_shared(&buffer->geo);
	k.pieces = moeep_cuda_cut_rows(buffer->comm->cuda, MOEEP_CUDA_HT_COMBINE, k.shared,
				       k.row_bytes);
	return k;
}

/* Where x is, how many blocks there are, and what they do. */
static int deal_combine(struct moeep_cuda_call *call, struct combine *k)
{
	struct moeep_comm *comm = call->buffer->comm;
	uint64_t hidden = (uint64_t)call->buffer->geo.config.hidden;
	/* Of the ranks' progress, in blocks that sum. */
	size_t table = 4 + (size_t)comm->num_ranks * (4 + MOEEP_DEV_CHANNELS / 8);
	int rc;

	if (!k->expert_major) {
		uint64_t room;
		struct moeep_place place =
			moeep_region_find_room(comm, k->args->x, k->row_bytes, &room);

		k->in_place = place.region != 0;
		k->place = moeep_cuda_place(call, &place);
		k->rows = (int64_t)(room / k->row_bytes);
	}
	k->parts = hidden <= LONG_ROW ? 1 : k->in_place ? 4 : 2;
	k->part =
		(int)moeep_align((hidden + (uint64_t)k->parts - 1) / (uint64_t)k->parts, PART_UNIT);
	k->shared += !k->in_place && k->pieces.shared > table ? k->pieces.shared : table;
	rc = moeep_cuda_blocks(call, MOEEP_CUDA_HT_COMBINE, k->shared, COMBINE_BLOCKS, 2,
			       &k->blocks);
	if (!k->in_place && comm->cuda->context->bulk && !k->expert_major) {
		k->senders = (k->blocks * COMBINE_SENDERS + COMBINE_BLOCKS - 1) / COMBINE_BLOCKS;
		k->senders = k->senders < MOST_SENDERS ? k->senders : MOST_SENDERS;
	} else if (!k->in_place) {
		k->senders = (k->blocks + 1) / 2; /* by loads and stores */
	} else if (k->args->topk_weights) {
		k->senders = (k->blocks + 7) / 8; /* of values only */
	}
	return rc;
}

static struct moeep_ht_route_args route_of(const struct moeep_cuda_call *call,
					   const struct combine *k)
{
	const moeep_combine_args_t *args = k->args;
	struct moeep_ht_route_args p = {
		.entry =
			{
				.op = MOEEP_OP_COMBINE,
				.flags = args->flags,
				.dtype = args->dtype,
				.topk = call->handle->topk,
				.row_layout = call->handle->row_layout,
				.given = (args->topk_weights ? MOEEP_GIVEN_WEIGHTS : 0) |
					 (args->x ? MOEEP_GIVEN_X : 0),
				.channels = COMBINE_CHANNELS,
				.wants_rows = args->out != NULL,
				.capacity = k->rows,
				.place = k->place,
			},
		.weighted = (args->flags & MOEEP_COMBINE_WEIGHTED) != 0,
		.row_bytes = k->staged_bytes,
		.own = (char *)(uintptr_t)args->x,
	};

	moeep_cuda_set_route(call, &p);
	return p;
}

static int launch_combine(struct moeep_cuda_call *call, const struct combine *k)
{
	const moeep_combine_args_t *args = k->args;
	struct moeep_ht_combine_params p = {
		.c = call->context,
		.route = call->handle->cuda->route,
		.plan = call->buffer->cuda->plan,
		.begin = route_of(call, k),
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
		.channels = COMBINE_CHANNELS,
		.parts = k->parts,
		.part = k->part,
		.stages = k->pieces.stages,
		.bulk = call->buffer->comm->cuda->context->bulk,
		.expert_major = k->expert_major,
		.weighted = (args->flags & MOEEP_COMBINE_WEIGHTED) != 0,
		.topk = call->handle->topk,
		.in_place = k->in_place,
		.alone = call->buffer->comm->cuda->ranks_here == 1,
	};

	return moeep_cuda_launch(call, MOEEP_CUDA_HT_COMBINE, k->blocks, k->shared, &p);
}

int moeep_cuda_combine(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args,
		       const moeep_launch_t *launch)
{
	struct moeep_cuda_call call;
	struct combine k;
	int rc = check_combine(handle, args);

	if (rc == MOEEP_OK) {
		rc = moeep_cuda_begin(&call, buffer, handle, launch, MOEEP_OP_COMBINE);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	k = combine_of(buffer, handle, args);
	rc = deal_combine(&call, &k);
	if (rc == MOEEP_OK) {
		rc = launch_combine(&call, &k);
	}
	if (rc == MOEEP_OK) {
		atomic_fetch_add_explicit(&buffer->ht_epoch, 1, memory_order_relaxed);
	}
	return moeep_cuda_end(&call, rc);
}
