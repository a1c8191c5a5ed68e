/* SPDX-License-Identifier: MIT */
/* ep/ll_calls.c - the public low-latency calls: check the arguments, hand over to the backend. */
#include "config.h"

#include <assert.h>

#include "core/error.h"
#include "ep/check.h"
#include "host/ht.h"

static_assert(sizeof(moeep_ll_dispatch_args_t) <= MOEEP_TASK_ARGS, "a task holds the arguments");
static_assert(sizeof(moeep_ll_combine_args_t) <= MOEEP_TASK_ARGS, "a task holds the arguments");

static int check_send(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		      moeep_ll_dispatch_args_t *args)
{
	int64_t most = handle->config.max_tokens;
	int rc = moeep_check_dtype("dtype", &args->dtype, MOEEP_BF16, MOEEP_DTYPES_LL);

	if (rc == MOEEP_OK) {
		rc = moeep_check_row(buffer, args->dtype);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_range("quant", args->quant, MOEEP_QUANT_NONE,
				       MOEEP_QUANT_FP8_UE8M0);
	}
	if (rc == MOEEP_OK && args->quant != MOEEP_QUANT_NONE) {
		rc = moeep_check_row(buffer, MOEEP_FP8_E4M3);
	}
	if (rc == MOEEP_OK) {
		args->topk = args->topk ? args->topk : buffer->geo.config.max_topk;
		rc = moeep_check_range("topk", args->topk, 1, buffer->geo.config.max_topk);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_dtype("topk_dtype", &args->topk_dtype, MOEEP_INT64,
				       MOEEP_DTYPES_INDEX);
	}
	if (rc == MOEEP_OK) {
		if (most > buffer->geo.config.ll_max_tokens) {
			most = buffer->geo.config.ll_max_tokens;
		}
		rc = moeep_check_range("num_tokens", args->num_tokens, 0, most);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_pointer("x", args->x, "num_tokens", args->num_tokens);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_pointer("topk_idx", args->topk_idx, "num_tokens",
					 args->num_tokens);
	}
	return rc == MOEEP_OK ? moeep_check_aligned("x", args->x) : rc;
}

static int check_recv(const struct moeep_buffer *buffer, moeep_ll_dispatch_args_t *args)
{
	int rc = MOEEP_OK;

	if (args->row_layout != MOEEP_ROWS_DEFAULT && args->row_layout != MOEEP_ROWS_EXPERT_MAJOR) {
		rc = moeep_fail(args->row_layout == MOEEP_ROWS_FLAT ? MOEEP_ERR_UNSUPPORTED
								    : MOEEP_ERR_INVALID,
				"row_layout is %d; LL has %d (expert-major) only", args->row_layout,
				MOEEP_ROWS_EXPERT_MAJOR);
	}
	if (args->capacity == 0) {
		args->capacity = buffer->geo.config.ll_max_tokens * buffer->geo.num_ranks;
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_range("capacity", args->capacity, 1, INT32_MAX);
	}
	if (rc == MOEEP_OK && args->recv_scales) {
		rc = moeep_check_scales(
			"recv_scale", args->recv_scale_layout, args->recv_scale_stride,
			moeep_scale_groups(buffer->geo.config.hidden), args->capacity);
	}
	return rc == MOEEP_OK ? moeep_check_aligned("recv_x", args->recv_x) : rc;
}

int moeep_ll_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle,
		      const moeep_ll_dispatch_args_t *user_args, const moeep_launch_t *user_launch)
{
	moeep_ll_dispatch_args_t args;
	moeep_launch_t launch;
	int rc = moeep_check_call(buffer, handle, true, MOEEP_MODE_LL);

	if (rc == MOEEP_OK) {
		rc = moeep_struct_in("args", user_args, &args, sizeof(args));
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_range("phase", args.phase, MOEEP_PHASE_BOTH, MOEEP_PHASE_RECV);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_flags("flags", args.flags, 0);
	}
	if (rc == MOEEP_OK && args.phase != MOEEP_PHASE_RECV) {
		rc = check_send(buffer, handle, &args);
	}
	if (rc == MOEEP_OK && args.phase != MOEEP_PHASE_SEND) {
		rc = check_recv(buffer, &args);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_launch_check(user_launch, &launch);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	return moeep_stream_submit(buffer, handle, &launch, moeep_host_ll_dispatch, &args,
				   sizeof(args));
}

int moeep_ll_combine(moeep_buffer_t *buffer, moeep_handle_t *handle,
		     const moeep_ll_combine_args_t *user_args, const moeep_launch_t *user_launch)
{
	moeep_ll_combine_args_t args;
	moeep_launch_t launch;
	int rc = moeep_check_call(buffer, handle, true, MOEEP_MODE_LL);

	if (rc == MOEEP_OK) {
		rc = moeep_struct_in("args", user_args, &args, sizeof(args));
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_range("phase", args.phase, MOEEP_PHASE_BOTH, MOEEP_PHASE_RECV);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_flags("flags", args.flags, MOEEP_LL_COMBINE_UNWEIGHTED);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_check_range("reserved0", args.reserved0, 0, 0);
	}
	if (rc == MOEEP_OK && args.phase != MOEEP_PHASE_RECV) {
		rc = moeep_check_dtype("dtype", &args.dtype, MOEEP_BF16, MOEEP_DTYPES_SUM);
		if (rc == MOEEP_OK) {
			rc = moeep_check_row(buffer, args.dtype);
		}
		if (rc == MOEEP_OK) {
			rc = moeep_check_range("capacity", args.capacity, 0, INT32_MAX);
		}
		if (rc == MOEEP_OK) {
			rc = moeep_check_aligned("x", args.x);
		}
	}
	if (rc == MOEEP_OK && args.phase != MOEEP_PHASE_SEND) {
		rc = moeep_check_aligned("out", args.out);
		if (rc == MOEEP_OK) {
			rc = moeep_check_aligned("bias", args.bias);
		}
	}
	if (rc == MOEEP_OK) {
		rc = moeep_launch_check(user_launch, &launch);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	return moeep_stream_submit(buffer, handle, &launch, moeep_host_ll_combine, &args,
				   sizeof(args));
}
