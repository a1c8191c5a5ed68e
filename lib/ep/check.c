/* SPDX-License-Identifier: MIT */
/* ep/check.c - checks that the calls of operations share. */
#include "config.h"

#include "core/error.h"
#include "ep/check.h"

int moeep_check_call(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		     bool needs_handle, uint32_t mode)
{
	if (!buffer) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is NULL");
	}
	if (!(buffer->geo.config.modes & mode)) {
		return moeep_fail(MOEEP_ERR_STATE, "the buffer's modes are 0x%x, without 0x%x (%s)",
				  buffer->geo.config.modes, mode,
				  mode == MOEEP_MODE_HT ? "high throughput" : "low latency");
	}
	if (!needs_handle) {
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

int moeep_check_range(const char *name, int64_t value, int64_t low, int64_t high)
{
	if (value < low || value > high) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is %lld, not %lld to %lld", name,
				  (long long)value, (long long)low, (long long)high);
	}
	return MOEEP_OK;
}

int moeep_check_dtype(const char *name, int32_t *dtype, int32_t default_dtype, uint32_t allowed)
{
	if (*dtype == MOEEP_DTYPE_DEFAULT) {
		*dtype = default_dtype;
	}
	if (*dtype < 0 || *dtype > 31 || !(allowed & MOEEP_DTYPE_BIT(*dtype))) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is %d (%s), which this call does not take",
				  name, *dtype, moeep_dtype_name(*dtype));
	}
	return MOEEP_OK;
}

int moeep_check_row(const struct moeep_buffer *buffer, int32_t dtype)
{
	uint64_t bytes = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(dtype);

	if (bytes % 16 != 0 || bytes > buffer->geo.row_bytes) {
		return moeep_fail(
			MOEEP_ERR_INVALID,
			"dtype is %s: %lld elements are %llu bytes, not a multiple of 16 up to "
			"the buffer's %llu",
			moeep_dtype_name(dtype), (long long)buffer->geo.config.hidden,
			(unsigned long long)bytes, (unsigned long long)buffer->geo.row_bytes);
	}
	return MOEEP_OK;
}

int moeep_check_flags(const char *name, uint32_t flags, uint32_t known)
{
	if ((flags & ~known) != 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is 0x%x; known are 0x%x", name, flags,
				  known);
	}
	return MOEEP_OK;
}

int moeep_check_pointer(const char *name, const void *pointer, const char *what, int64_t count)
{
	if (!pointer && count > 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is NULL with %s %lld", name, what,
				  (long long)count);
	}
	return MOEEP_OK;
}

int moeep_check_aligned(const char *name, const void *rows)
{
	if ((uintptr_t)rows % 16 != 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is %p, which is not aligned to 16 bytes",
				  name, rows);
	}
	return MOEEP_OK;
}

int moeep_check_scales(const char *name, int32_t layout, int64_t stride, int32_t count,
		       int64_t rows)
{
	int64_t least = layout == MOEEP_SCALES_COLUMN_MAJOR ? rows : count;

	if (layout != MOEEP_SCALES_ROW_MAJOR && layout != MOEEP_SCALES_COLUMN_MAJOR) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s_layout is %d", name, layout);
	}
	if (stride != 0 && stride < least) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s_stride is %lld, less than %lld", name,
				  (long long)stride, (long long)least);
	}
	return MOEEP_OK;
}
