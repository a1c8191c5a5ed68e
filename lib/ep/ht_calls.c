/* SPDX-License-Identifier: MIT */
/* ep/ht_calls.c - the public high-throughput calls: check the arguments, hand over to the backend.
 */
#include "config.h"

#include <assert.h>
#include <string.h>

#include "core/error.h"
#include "cuda/launch.h"
#include "ep/check.h"
#include "host/ht.h"
#include "host/ht_route.h"

static_assert(sizeof(moeep_dispatch_args_t) <= MOEEP_TASK_ARGS, "a task holds the arguments");
static_assert(sizeof(moeep_combine_args_t) <= MOEEP_TASK_ARGS, "a task holds the arguments");

#define DISPATCH_FLAGS                                                                             \
	(MOEEP_DISPATCH_CACHED | MOEEP_DISPATCH_COUNTS_ONLY | MOEEP_DISPATCH_ZERO_PADDING |        \
	 MOEEP_DISPATCH_FILL_TAIL)

/* What can be said without the routing; the rest is checked when the operation has its turn. */
static int check_dispatch(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			  void *args_void)
{
	moeep_dispatch_args_t *args = args_void;
	const moeep_buffer_config_t *config = &buffer->geo.config;
	bool cached = (args->flags & MOEEP_DISPATCH_CACHED) != 0;
	bool counts_only = (args->flags & MOEEP_DISPATCH_COUNTS_ONLY) != 0;
	int64_t most = handle->config.max_tokens;
	int rc = MOEEP_OK;

	most = most < config->ht_max_tokens ? most : config->ht_max_tokens;
	moeep_check_flags(&rc, "flags", args->flags, DISPATCH_FLAGS);
	if (rc == MOEEP_OK && cached && counts_only) {
		rc = moeep_fail(
			MOEEP_ERR_INVALID,
			"flags has both MOEEP_DISPATCH_CACHED and MOEEP_DISPATCH_COUNTS_ONLY");
	}
	moeep_check_dtype(&rc, "dtype", &args->dtype, MOEEP_BF16, MOEEP_DTYPES_ROW);
	moeep_check_row(&rc, buffer, args->dtype);
	moeep_check_dtype(&rc, "topk_dtype", &args->topk_dtype, MOEEP_INT64, MOEEP_DTYPES_INDEX);
	moeep_check_range(&rc, "num_tokens", args->num_tokens, 0, most);
	moeep_check_range(&rc, "topk", args->topk, 0, config->max_topk);
	moeep_check_range(&rc, "row_layout", args->row_layout, 0, MOEEP_ROWS_EXPERT_MAJOR);
	moeep_check_range(&rc, "expert_alignment", args->expert_alignment, 0, 1 << 20);
	moeep_check_range(&rc, "capacity", args->capacity, 0, INT64_C(1) << 40);
	if (!cached) {
		moeep_check_pointer(&rc, "topk_idx", args->topk_idx, "num_tokens",
				    args->num_tokens);
	}
	if (!cached && !counts_only) {
		moeep_check_pointer(&rc, "x", args->x, "num_tokens", args->num_tokens);
	}
	moeep_check_aligned(&rc, "x", args->x);
	moeep_check_aligned(&rc, "recv_x", args->recv_x);
	if (args->scales || args->recv_scales) {
		moeep_check_dtype(&rc, "scale_dtype", &args->scale_dtype, MOEEP_FP32,
				  MOEEP_DTYPES_SCALE);
	}
	if (args->scales) {
		moeep_check_range(&rc, "scale_count", args->scale_count, 1, config->max_scales);
	}
	if (args->recv_scales) {
		moeep_check_scales(&rc, "recv_scale", args->recv_scale_layout,
				   args->recv_scale_stride, args->scale_count, args->capacity);
	}
	return rc;
}

static uint32_t kinds(const void *args)
{
	(void)args;
	return 1u << MOEEP_REFUSABLE_HT;
}

int moeep_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle,
		   const moeep_dispatch_args_t *args, const moeep_launch_t *launch)
{
	static const struct moeep_operation operation = {
		.mode = MOEEP_MODE_HT,
		.needs_handle = true,
		.args_size = sizeof(*args),
		.kinds = kinds,
		.check = check_dispatch,
		.run = moeep_host_dispatch,
		.cuda_run = moeep_cuda_dispatch,
	};

	return moeep_operation_call(&operation, buffer, handle, args, launch);
}

static int check_combine(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			 void *args_void)
{
	moeep_combine_args_t *args = args_void;
	int rc = MOEEP_OK;

	(void)handle;
	moeep_check_flags(&rc, "flags", args->flags, MOEEP_COMBINE_WEIGHTED);
	moeep_check_dtype(&rc, "dtype", &args->dtype, MOEEP_BF16, MOEEP_DTYPES_SUM);
	moeep_check_row(&rc, buffer, args->dtype);
	moeep_check_aligned(&rc, "x", args->x);
	moeep_check_aligned(&rc, "out", args->out);
	moeep_check_aligned(&rc, "bias", args->bias);
	return rc;
}

int moeep_combine(moeep_buffer_t *buffer, moeep_handle_t *handle, const moeep_combine_args_t *args,
		  const moeep_launch_t *launch)
{
	static const struct moeep_operation operation = {
		.mode = MOEEP_MODE_HT,
		.needs_handle = true,
		.args_size = sizeof(*args),
		.kinds = kinds,
		.check = check_combine,
		.run = moeep_host_combine,
		.cuda_run = moeep_cuda_combine,
	};

	return moeep_operation_call(&operation, buffer, handle, args, launch);
}

static int run_layout(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const void *args_void)
{
	const moeep_layout_args_t *args = args_void;
	struct moeep_scratch *s = &buffer->scratch;
	int ranks = buffer->geo.num_ranks;
	const struct moeep_comm *comm = buffer->comm;
	int32_t row[MOEEP_MAX_TOPK];

	(void)handle;
	memset(s->count_rank, 0, sizeof(*s->count_rank) * (size_t)ranks);
	if (args->tokens_per_node) {
		memset(args->tokens_per_node, 0, sizeof(int32_t) * (size_t)comm->num_nodes);
	}
	if (args->tokens_per_expert) {
		memset(args->tokens_per_expert, 0,
		       sizeof(int32_t) * (size_t)buffer->geo.config.num_experts);
	}
	for (int64_t t = 0; t < args->num_tokens; t++) {
		int found[MOEEP_MAX_TOPK];
		size_t unit = moeep_dtype_size(args->topk_dtype);
		int last_node = -1;
		int count;
		int rc = moeep_route_read_one(
			buffer,
			(const char *)args->topk_idx + (size_t)t * (size_t)args->topk * unit,
			args->topk_dtype, t, args->topk, row, args->tokens_per_expert);

		if (rc != MOEEP_OK) {
			return rc;
		}
		count = moeep_route_ranks(buffer, row, args->topk, found);
		if (args->token_in_rank) {
			memset(args->token_in_rank + t * ranks, 0, (size_t)ranks);
		}
		for (int i = 0; i < count; i++) {
			int node = comm->peers[found[i]].node;

			s->count_rank[found[i]]++;
			if (args->token_in_rank) {
				args->token_in_rank[t * ranks + found[i]] = 1;
			}
			/* Found ranks ascend, nodes need not: count a node once. */
			if (args->tokens_per_node && node != last_node) {
				bool again = false;

				for (int j = 0; j < i; j++) {
					again |= comm->peers[found[j]].node == node;
				}
				args->tokens_per_node[node] += !again;
				last_node = node;
			}
		}
	}
	if (args->tokens_per_rank) {
		memcpy(args->tokens_per_rank, s->count_rank, sizeof(int32_t) * (size_t)ranks);
	}
	return MOEEP_OK;
}

static int check_layout(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			void *args_void)
{
	moeep_layout_args_t *args = args_void;
	int rc = MOEEP_OK;

	(void)handle;
	args->topk = args->topk ? args->topk : buffer->geo.config.max_topk;
	moeep_check_dtype(&rc, "topk_dtype", &args->topk_dtype, MOEEP_INT64, MOEEP_DTYPES_INDEX);
	moeep_check_range(&rc, "topk", args->topk, 1, buffer->geo.config.max_topk);
	moeep_check_range(&rc, "num_tokens", args->num_tokens, 0, INT32_MAX);
	moeep_check_pointer(&rc, "topk_idx", args->topk_idx, "num_tokens", args->num_tokens);
	return rc;
}

int moeep_layout(moeep_buffer_t *buffer, const moeep_layout_args_t *args,
		 const moeep_launch_t *launch)
{
	static const struct moeep_operation operation = {
		.args_size = sizeof(*args),
		.check = check_layout,
		.run = run_layout,
		.cuda_run = moeep_cuda_layout,
	};

	return moeep_operation_call(&operation, buffer, NULL, args, launch);
}
