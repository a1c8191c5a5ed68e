/* SPDX-License-Identifier: MIT */
/*
 * tools/npy.h - NumPy array files: format versions 1 to 3; little-endian int32, int64 and float32;
 * C order; one or two dimensions.
 *
 * Files come from anywhere, so whatever is not exactly such an array is refused with a text that
 * says what is wrong.
 */
#ifndef MOEEP_TOOLS_NPY_H
#define MOEEP_TOOLS_NPY_H

#include <stddef.h>
#include <stdint.h>

enum npy_type { NPY_INT32, NPY_INT64, NPY_FLOAT32 };

struct npy {
	enum npy_type type;
	int dimensions; /* 1 or 2 */
	int64_t rows;
	int64_t columns; /* 1 if there is one dimension */
	void *data;	 /* [rows, columns]; NULL if it has no elements */
};

/* The largest file that is read. */
#define NPY_MAX_BYTES (INT64_C(1) << 30)

/* 0, or -1 with a text in error. npy_free() what it gave. */
int npy_parse(const void *bytes, size_t size, struct npy *npy, char *error, size_t error_size);
int npy_read(const char *path, struct npy *npy, char *error, size_t error_size);
void npy_free(struct npy *npy);

/* Element `index` of an array of integers; a float counts as 0. */
int64_t npy_integer(const struct npy *npy, int64_t index);

#endif
