/* SPDX-License-Identifier: MIT */
/* ep/check.c - checks that the calls of operations share. */
#include "config.h"

#include <stdio.h>

#include "core/error.h"
#include "cuda/calls.h"
#include "ep/check.h"

static int check_call(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		      const struct moeep_operation *operation)
{
	uint32_t mode = operation->mode;

	if (!buffer) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is NULL");
	}
	if (mode != 0 && !(buffer->geo.config.modes & mode)) {
		return moeep_fail(MOEEP_ERR_STATE, "the buffer's modes are 0x%x, without 0x%x (%s)",
				  buffer->geo.config.modes, mode,
				  mode == MOEEP_MODE_HT ? "high throughput" : "low latency");
	}
	if (!operation->needs_handle) {
		return MOEEP_OK;
	}
	if (!handle) {
		return moeep_fail(MOEEP_ERR_INVALID, "handle is NULL");
	}
	if (handle->buffer != buffer) {
		return moeep_fail(MOEEP_ERR_INVALID, "handle %p belongs to another buffer",
				  (const void *)handle);
	}
	if (!(handle->config.modes & mode)) {
		return moeep_fail(MOEEP_ERR_STATE, "the handle's modes are 0x%x, without 0x%x",
				  handle->config.modes, mode);
	}
	return MOEEP_OK;
}

struct refused {
	int32_t result;
	char text[MOEEP_TASK_ARGS - sizeof(int32_t)];
};

static int fail_again(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args)
{
	const struct refused *refused = args;

	(void)buffer;
	(void)handle;
	return moeep_fail(refused->result, "%s", refused->text);
}

/*
 * The call fails in its turn, behind those that are queued, so that peers learn of it at its epoch.
 * Neither its events nor its status are touched, as its caller knows.
 */
static int refuse(struct moeep_buffer *buffer, const moeep_launch_t *launch,
		  enum moeep_refusable kind, int result)
{
	moeep_launch_t own = {.size = sizeof(own)};
	struct refused refused = {.result = result};

	snprintf(refused.text, sizeof(refused.text), "%s", moeep_error_detail());
	if (launch && launch->size >= sizeof(own) && launch->stream == MOEEP_STREAM_BUFFER) {
		own.stream = MOEEP_STREAM_BUFFER;
	}
	(void)moeep_stream_submit(buffer, NULL, &own, kind, fail_again, &refused, sizeof(refused));
	return moeep_fail(result, "%s", refused.text);
}

/* The one that peers wait for first. */
static enum moeep_refusable first_of(uint32_t kinds)
{
	int kind = 0;

	while (kind < MOEEP_REFUSABLES && !(kinds & (1u << kind))) {
		kind++;
	}
	return (enum moeep_refusable)kind;
}

int moeep_operation_call(const struct moeep_operation *operation, struct moeep_buffer *buffer,
			 struct moeep_handle *handle, const void *args,
			 const moeep_launch_t *launch)
{
	_Alignas(16) unsigned char own[MOEEP_TASK_ARGS];
	uint32_t kinds = operation->kinds ? operation->kinds(NULL) : 0;
	moeep_launch_t own_launch;
	int rc = check_call(buffer, handle, operation);

	if (rc == MOEEP_OK) {
		rc = moeep_struct_in("args", args, own, operation->args_size);
	}
	if (rc == MOEEP_OK) {
		kinds = operation->kinds ? operation->kinds(own) : 0;
		rc = operation->check(buffer, handle, own);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_launch_check(buffer->comm, launch, &own_launch);
	}
	if (rc == MOEEP_OK && buffer->cuda) {
		rc = operation->cuda_run(buffer, handle, own, &own_launch);
	} else if (rc == MOEEP_OK) {
		return moeep_stream_submit(buffer, handle, &own_launch, first_of(kinds),
					   operation->run, own, operation->args_size);
	}
	if (!buffer || kinds == 0) {
		return rc;
	}
	if (!buffer->cuda) {
		return refuse(buffer, launch, first_of(kinds), rc);
	}
	if (rc == MOEEP_OK) {
		moeep_cuda_call_made(buffer, kinds);
	} else {
		moeep_cuda_call_refused(buffer, first_of(kinds), rc);
	}
	return rc;
}

void moeep_check_range(int *rc, const char *name, int64_t value, int64_t low, int64_t high)
{
	if (*rc == MOEEP_OK && (value < low || value > high)) {
		*rc = moeep_fail(MOEEP_ERR_INVALID, "%s is %lld, not %lld to %lld", name,
				 (long long)value, (long long)low, (long long)high);
	}
}

void moeep_check_dtype(int *rc, const char *name, int32_t *dtype, int32_t default_dtype,
		       uint32_t allowed)
{
	if (*dtype == MOEEP_DTYPE_DEFAULT) {
		*dtype = default_dtype;
	}
	if (*rc == MOEEP_OK &&
	    (*dtype < 0 || *dtype > 31 || !(allowed & MOEEP_DTYPE_BIT(*dtype)))) {
		*rc = moeep_fail(MOEEP_ERR_INVALID, "%s is %d (%s), which this call does not take",
				 name, *dtype, moeep_dtype_name(*dtype));
	}
}

void moeep_check_row(int *rc, const struct moeep_buffer *buffer, int32_t dtype)
{
	uint64_t bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(dtype);

	if (*rc == MOEEP_OK && (bytes % 16 != 0 || bytes > buffer->geo.row_bytes)) {
		*rc = moeep_fail(
			MOEEP_ERR_INVALID,
			"dtype is %s: %lld elements are %llu bytes, not a multiple of 16 up to "
			"the buffer's %llu",
			moeep_dtype_name(dtype), (long long)buffer->geo.config.hidden,
			(unsigned long long)bytes, (unsigned long long)buffer->geo.row_bytes);
	}
}

void moeep_check_flags(int *rc, const char *name, uint32_t flags, uint32_t known)
{
	if (*rc == MOEEP_OK && (flags & ~known) != 0) {
		*rc = moeep_fail(MOEEP_ERR_INVALID, "%s is 0x%x; known are 0x%x", name, flags,
				 known);
	}
}

void moeep_check_pointer(int *rc, const char *name, const void *pointer, const char *what,
			 int64_t count)
{
	if (*rc == MOEEP_OK && !pointer && count > 0) {
		*rc = moeep_fail(MOEEP_ERR_INVALID, "%s is NULL with %s %lld", name, what,
				 (long long)count);
	}
}

void moeep_check_aligned(int *rc, const char *name, const void *rows)
{
	if (*rc == MOEEP_OK && (uintptr_t)rows % 16 != 0) {
		*rc = moeep_fail(MOEEP_ERR_INVALID, "%s is %p, which is not aligned to 16 bytes",
				 name, rows);
	}
}

void moeep_check_scales(int *rc, const char *name, int32_t layout, int64_t stride, int32_t count,
			int64_t rows)
{
	int64_t least = layout == MOEEP_SCALES_COLUMN_MAJOR ? rows : count;

	if (*rc != MOEEP_OK) {
		return;
	}
	if (layout != MOEEP_SCALES_ROW_MAJOR && layout != MOEEP_SCALES_COLUMN_MAJOR) {
		*rc = moeep_fail(MOEEP_ERR_INVALID, "%s_layout is %d", name, layout);
	} else if (stride != 0 && stride < least) {
		*rc = moeep_fail(MOEEP_ERR_INVALID, "%s_stride is %lld, less than %lld", name,
				 (long long)stride, (long long)least);
	}
}

int moeep_ht_check_cached(const struct moeep_handle *handle, const moeep_dispatch_args_t *args)
{
	if (handle->kind != MOEEP_ROUTE_HT) {
		return moeep_fail(
			MOEEP_ERR_STATE,
			"MOEEP_DISPATCH_CACHED: the handle has no routing of an HT dispatch");
	}
	if ((args->num_tokens && args->num_tokens != handle->num_tokens) ||
	    (args->topk && args->topk != handle->topk) ||
	    (args->row_layout && args->row_layout != handle->row_layout) ||
	    (args->expert_alignment && args->expert_alignment != handle->alignment)) {
		return moeep_fail(
			MOEEP_ERR_INVALID,
			"num_tokens %lld, topk %d, row_layout %d or expert_alignment %d is not the "
			"cached routing's %lld, %d, %d, %d",
			(long long)args->num_tokens, args->topk, args->row_layout,
			args->expert_alignment, (long long)handle->num_tokens, handle->topk,
			handle->row_layout, handle->alignment);
	}
	return MOEEP_OK;
}
