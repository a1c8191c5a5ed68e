/* SPDX-License-Identifier: MIT */
/* ep/ll_calls.c - the public low-latency calls: check the arguments, hand over to the backend. */
#include "config.h"

#include <assert.h>

#include "core/error.h"
#include "cuda/launch.h"
#include "ep/check.h"
#include "ep/ll_state.h"
#include "host/ll.h"

static_assert(sizeof(moeep_ll_dispatch_args_t) <= MOEEP_TASK_ARGS, "a task holds the arguments");
static_assert(sizeof(moeep_ll_combine_args_t) <= MOEEP_TASK_ARGS, "a task holds the arguments");

static int check_send(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		      moeep_ll_dispatch_args_t *args)
{
	const moeep_buffer_config_t *config = &buffer->geo.config;
	int64_t most = handle->config.max_tokens;
	int rc = MOEEP_OK;

	most = most < config->ll_max_tokens ? most : config->ll_max_tokens;
	args->topk = args->topk ? args->topk : config->max_topk;
	moeep_check_dtype(&rc, "dtype", &args->dtype, MOEEP_BF16, MOEEP_DTYPES_LL);
	moeep_check_row(&rc, buffer, args->dtype);
	moeep_check_range(&rc, "quant", args->quant, MOEEP_QUANT_NONE, MOEEP_QUANT_FP8_UE8M0);
	if (args->quant != MOEEP_QUANT_NONE) {
		moeep_check_row(&rc, buffer, MOEEP_FP8_E4M3);
	}
	moeep_check_range(&rc, "topk", args->topk, 1, config->max_topk);
	moeep_check_dtype(&rc, "topk_dtype", &args->topk_dtype, MOEEP_INT64, MOEEP_DTYPES_INDEX);
	moeep_check_range(&rc, "num_tokens", args->num_tokens, 0, most);
	moeep_check_pointer(&rc, "x", args->x, "num_tokens", args->num_tokens);
	moeep_check_pointer(&rc, "topk_idx", args->topk_idx, "num_tokens", args->num_tokens);
	moeep_check_aligned(&rc, "x", args->x);
	return rc;
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
	moeep_check_range(&rc, "capacity", args->capacity, 1, INT32_MAX);
	if (args->recv_scales) {
		moeep_check_scales(&rc, "recv_scale", args->recv_scale_layout,
				   args->recv_scale_stride,
				   moeep_scale_groups(buffer->geo.config.hidden), args->capacity);
	}
	moeep_check_aligned(&rc, "recv_x", args->recv_x);
	return rc;
}

static int check_dispatch(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			  void *args_void)
{
	moeep_ll_dispatch_args_t *args = args_void;
	int rc = MOEEP_OK;

	moeep_check_range(&rc, "phase", args->phase, MOEEP_PHASE_BOTH, MOEEP_PHASE_RECV);
	moeep_check_flags(&rc, "flags", args->flags, 0);
	if (rc == MOEEP_OK && args->phase != MOEEP_PHASE_RECV) {
		rc = check_send(buffer, handle, args);
	}
	if (rc == MOEEP_OK && args->phase != MOEEP_PHASE_SEND) {
		rc = check_recv(buffer, args);
	}
	return rc;
}

static_assert(MOEEP_REFUSABLE_LL_RECV == MOEEP_REFUSABLE_LL_SEND + 1 &&
		      MOEEP_REFUSABLE_LL_CRECV == MOEEP_REFUSABLE_LL_CSEND + 1 &&
		      MOEEP_LL_SEND == 1 && MOEEP_LL_RECV == 2,
	      "phases are bits in the order of the kinds");

/* A phase that is none counts as both, of which peers wait for SEND first. */
static uint32_t kinds_of(int32_t phase, int send)
{
	bool one = phase == MOEEP_PHASE_SEND || phase == MOEEP_PHASE_RECV;

	return (uint32_t)moeep_ll_phases(one ? phase : MOEEP_PHASE_BOTH) << send;
}

static uint32_t dispatch_kinds(const void *args)
{
	return kinds_of(args ? ((const moeep_ll_dispatch_args_t *)args)->phase : MOEEP_PHASE_BOTH,
			MOEEP_REFUSABLE_LL_SEND);
}

int moeep_ll_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle,
		      const moeep_ll_dispatch_args_t *args, const moeep_launch_t *launch)
{
	static const struct moeep_operation operation = {
		.mode = MOEEP_MODE_LL,
		.needs_handle = true,
		.args_size = sizeof(*args),
		.kinds = dispatch_kinds,
		.check = check_dispatch,
		.run = moeep_host_ll_dispatch,
		.cuda_run = moeep_cuda_ll_dispatch,
	};

	return moeep_operation_call(&operation, buffer, handle, args, launch);
}

static int check_combine(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			 void *args_void)
{
	moeep_ll_combine_args_t *args = args_void;
	int rc = MOEEP_OK;

	(void)handle;
	moeep_check_range(&rc, "phase", args->phase, MOEEP_PHASE_BOTH, MOEEP_PHASE_RECV);
	moeep_check_flags(&rc, "flags", args->flags, MOEEP_LL_COMBINE_UNWEIGHTED);
	moeep_check_range(&rc, "reserved0", args->reserved0, 0, 0);
	if (args->phase != MOEEP_PHASE_RECV) {
		moeep_check_dtype(&rc, "dtype", &args->dtype, MOEEP_BF16, MOEEP_DTYPES_SUM);
		moeep_check_row(&rc, buffer, args->dtype);
		moeep_check_range(&rc, "capacity", args->capacity, 0, INT32_MAX);
		moeep_check_aligned(&rc, "x", args->x);
	}
	if (args->phase != MOEEP_PHASE_SEND) {
		moeep_check_aligned(&rc, "out", args->out);
		moeep_check_aligned(&rc, "bias", args->bias);
	}
	return rc;
}

static uint32_t combine_kinds(const void *args)
{
	return kinds_of(args ? ((const moeep_ll_combine_args_t *)args)->phase : MOEEP_PHASE_BOTH,
			MOEEP_REFUSABLE_LL_CSEND);
}

int moeep_ll_combine(moeep_buffer_t *buffer, moeep_handle_t *handle,
		     const moeep_ll_combine_args_t *args, const moeep_launch_t *launch)
{
	static const struct moeep_operation operation = {
		.mode = MOEEP_MODE_LL,
		.needs_handle = true,
		.args_size = sizeof(*args),
		.kinds = combine_kinds,
		.check = check_combine,
		.run = moeep_host_ll_combine,
		.cuda_run = moeep_cuda_ll_combine,
	};

	return moeep_operation_call(&operation, buffer, handle, args, launch);
}
