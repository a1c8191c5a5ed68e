/* SPDX-License-Identifier: MIT */
/* ep/check.h - checks that the calls of operations share. */
#ifndef MOEEP_EP_CHECK_H
#define MOEEP_EP_CHECK_H

#include "ep/buffer.h"

/* A public call of an operation, with its argument structure of args_size bytes. */
struct moeep_operation {
	uint32_t mode; /* that buffer and handle need; 0: any */
	bool needs_handle;
	size_t args_size;
	/* What peers wait for, bits of enum moeep_refusable; of arguments, or NULL. NULL: nothing.
	 */
	uint32_t (*kinds)(const void *args);
	/* Fills defaults into args and says what is wrong with them, if anything. */
	int (*check)(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		     void *args);
	int (*run)(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args);
	/* The CUDA backend's: puts the operation on the launch's stream. */
	int (*cuda_run)(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args,
			const moeep_launch_t *launch);
};

/* Check everything, and run it where the launch says. */
int moeep_operation_call(const struct moeep_operation *operation, struct moeep_buffer *buffer,
			 struct moeep_handle *handle, const void *args,
			 const moeep_launch_t *launch);

/*
 * Checks of arguments come in rows: *rc keeps the first one's failure, and the detail names the
 * argument and its value. Where *rc is a failure already they do nothing.
 */
void moeep_check_range(int *rc, const char *name, int64_t value, int64_t low, int64_t high);

/* Set a zero dtype to its default; it must be in the mask of 1u << dtype. */
void moeep_check_dtype(int *rc, const char *name, int32_t *dtype, int32_t default_dtype,
		       uint32_t allowed);

/* Rows of this dtype fit the buffer's and are a multiple of 16 bytes. */
void moeep_check_row(int *rc, const struct moeep_buffer *buffer, int32_t dtype);

void moeep_check_flags(int *rc, const char *name, uint32_t flags, uint32_t known);

/* Pointers that are needed: `what` is the count that needs it. */
void moeep_check_pointer(int *rc, const char *name, const void *pointer, const char *what,
			 int64_t count);

/* Rows are aligned to 16 bytes; NULL is. */
void moeep_check_aligned(int *rc, const char *name, const void *rows);

void moeep_check_scales(int *rc, const char *name, int32_t layout, int64_t stride, int32_t count,
			int64_t rows);

/* What a cached dispatch says of its routing must be what the handle has. */
int moeep_ht_check_cached(const struct moeep_handle *handle, const moeep_dispatch_args_t *args);

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
