/* SPDX-License-Identifier: MIT */
/* ep/check.h - checks that the calls of operations share. */
#ifndef MOEEP_EP_CHECK_H
#define MOEEP_EP_CHECK_H

#include "ep/buffer.h"

/* Arguments of a call that are not in its structure. handle may be NULL if it needs none. */
int moeep_check_call(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		     bool needs_handle, uint32_t mode);

/* `value` is low to high, or the detail names the field. */
int moeep_check_range(const char *name, int64_t value, int64_t low, int64_t high);

/* Set a zero dtype to its default; it must be in the mask of 1u << dtype. */
int moeep_check_dtype(const char *name, int32_t *dtype, int32_t default_dtype, uint32_t allowed);

/* Rows of this dtype fit the buffer's and are a multiple of 16 bytes. */
int moeep_check_row(const struct moeep_buffer *buffer, int32_t dtype);

int moeep_check_flags(const char *name, uint32_t flags, uint32_t known);

/* Pointers that are needed: `what` is the count that needs it. */
int moeep_check_pointer(const char *name, const void *pointer, const char *what, int64_t count);

/* Rows are aligned to 16 bytes; NULL is. */
int moeep_check_aligned(const char *name, const void *rows);

int moeep_check_scales(const char *name, int32_t layout, int64_t stride, int32_t count,
		       int64_t rows);

#define MOEEP_DTYPE_BIT(dtype) (1u << (dtype))
#define MOEEP_DTYPES_INDEX     (MOEEP_DTYPE_BIT(MOEEP_INT32) | MOEEP_DTYPE_BIT(MOEEP_INT64))
#define MOEEP_DTYPES_SUM                                                                           \
	(MOEEP_DTYPE_BIT(MOEEP_BF16) | MOEEP_DTYPE_BIT(MOEEP_FP16) | MOEEP_DTYPE_BIT(MOEEP_FP32))
#define MOEEP_DTYPES_ROW                                                                           \
	(MOEEP_DTYPES_SUM | MOEEP_DTYPE_BIT(MOEEP_FP8_E4M3) | MOEEP_DTYPE_BIT(MOEEP_FP8_E5M2) |    \
	 MOEEP_DTYPE_BIT(MOEEP_INT8))
#define MOEEP_DTYPES_LL	   (MOEEP_DTYPE_BIT(MOEEP_BF16) | MOEEP_DTYPE_BIT(MOEEP_FP16))
#define MOEEP_DTYPES_SCALE (MOEEP_DTYPE_BIT(MOEEP_FP32) | MOEEP_DTYPE_BIT(MOEEP_UE8M0))

#endif
