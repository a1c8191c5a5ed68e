/* SPDX-License-Identifier: MIT */
/* core/error.h - result codes with a per-thread detail, and sized structures of the API. */
#ifndef MOEEP_CORE_ERROR_H
#define MOEEP_CORE_ERROR_H

#include <moeep/moeep.h>

/* Set this thread's detail and return `result`, so that callers can `return moeep_fail(...)`. */
int moeep_fail(int result, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same for a failed system call: MOEEP_ERR_SYSTEM (ENOMEM: MOEEP_ERR_NOMEM), "<what>: <errno
 * text>". */
int moeep_fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Copy a caller's sized structure into the library's own form of own_size bytes: missing fields
 * become zero, an unknown tail must be zero. name is that of the argument, for the detail. own's
 * size field becomes own_size. MOEEP_ERR_INVALID if user is NULL, its size is less than
 * sizeof(size_t), or the tail is not zero.
 */
int moeep_struct_in(const char *name, const void *user, void *own, size_t own_size);

/* Copy an answer to the caller's sized structure: min(size) bytes, a longer caller's tail zeroed,
 * size kept. */
int moeep_struct_out(const char *name, void *user, const void *own, size_t own_size);

#endif
