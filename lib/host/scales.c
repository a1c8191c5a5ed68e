/* SPDX-License-Identifier: MIT */
/* host/scales.c - where the scales of rows lie, and moving them between layouts. */
#include "config.h"

#include <string.h>

#include "ep/geometry.h"
#include "host/scales.h"

static uint64_t scale_unit(const struct moeep_scales *scales)
{
	return moeep_dtype_size(scales->dtype);
}

void moeep_scales_resolve(struct moeep_scales *scales, int64_t rows)
{
	scales->stride = moeep_scale_stride(scales->layout, scales->stride, rows, scales->count);
}

/* Where scale s of a row is, in bytes. UE8M0 columns are of words of four. */
static int64_t scale_at(const struct moeep_scales *scales, int64_t row, int s)
{
	int64_t unit = (int64_t)scale_unit(scales);

	if (scales->layout == MOEEP_SCALES_ROW_MAJOR) {
		return (row * scales->stride + s) * unit;
	}
	if (scales->dtype == MOEEP_UE8M0) {
		return (s / 4 * scales->stride + row) * 4 + s % 4;
	}
	return (s * scales->stride + row) * unit;
}

void moeep_scales_read(const struct moeep_scales *scales, int64_t row, void *dense)
{
	size_t unit = scale_unit(scales);

	if (scales->layout == MOEEP_SCALES_ROW_MAJOR) {
		memcpy(dense, (char *)scales->base + scale_at(scales, row, 0),
		       unit * (size_t)scales->count);
		return;
	}
	for (int s = 0; s < scales->count; s++) {
		memcpy((char *)dense + (size_t)s * unit,
		       (char *)scales->base + scale_at(scales, row, s), unit);
	}
}

void moeep_scales_write(const struct moeep_scales *scales, int64_t row, const void *dense)
{
	size_t unit = scale_unit(scales);

	if (scales->layout == MOEEP_SCALES_ROW_MAJOR) {
		memcpy((char *)scales->base + scale_at(scales, row, 0), dense,
		       unit * (size_t)scales->count);
		return;
	}
	for (int s = 0; s < scales->count; s++) {
		memcpy((char *)scales->base + scale_at(scales, row, s),
		       (const char *)dense + (size_t)s * unit, unit);
	}
	if (scales->dtype == MOEEP_UE8M0) {
		for (int s = scales->count; s % 4 != 0; s++) {
			((char *)scales->base)[scale_at(scales, row, s)] = 0;
		}
	}
}

size_t moeep_scales_bytes(int scale_dtype, int scale_layout, int64_t rows, int32_t scale_count,
			  int64_t stride)
{
	struct moeep_scales scales = {.layout = scale_layout,
				      .dtype = scale_dtype,
				      .count = scale_count,
				      .stride = stride};
	uint64_t lines = (uint64_t)rows;
	uint64_t unit = moeep_dtype_size(scale_dtype);
	uint64_t bytes;

	if ((scale_dtype != MOEEP_FP32 && scale_dtype != MOEEP_UE8M0) || rows < 0 ||
	    scale_count < 1 || stride < 0 || rows > INT64_MAX - 3 ||
	    (scale_layout != MOEEP_SCALES_ROW_MAJOR && scale_layout != MOEEP_SCALES_COLUMN_MAJOR)) {
		return 0;
	}
	moeep_scales_resolve(&scales, rows);
	if (scale_layout == MOEEP_SCALES_COLUMN_MAJOR) {
		lines = (uint64_t)scale_count;
		if (scale_dtype == MOEEP_UE8M0) {
			lines = (lines + 3) / 4;
			unit = 4;
		}
	}
	if (scales.stride < (scale_layout == MOEEP_SCALES_COLUMN_MAJOR ? rows : scale_count) ||
	    __builtin_mul_overflow(lines, (uint64_t)scales.stride, &bytes) ||
	    __builtin_mul_overflow(bytes, unit, &bytes)) {
		return 0;
	}
	return bytes;
}
