/* SPDX-License-Identifier: MIT */
/* core/error.c - result codes with a per-thread detail, and sized structures of the API. */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"

/*
 * No structure of the API comes near this. A size field beyond it was not set by the caller, and
 * the bytes that it claims must not be touched.
 */
#define STRUCT_MAX_BYTES 65536

#define DETAIL_BYTES 512

static _Thread_local char thread_detail[DETAIL_BYTES];

const char *moeep_error_detail(void)
{
	return thread_detail;
}

static void detail_set(const char *format, va_list args) __attribute__((format(printf, 1, 0)));

static void detail_set(const char *format, va_list args)
{
	/* Not straight into thread_detail: an argument may be the old detail. */
	char text[DETAIL_BYTES];

	vsnprintf(text, sizeof(text), format, args);
	memcpy(thread_detail, text, strlen(text) + 1);
}

int moeep_fail(int result, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	detail_set(format, args);
	va_end(args);
	return result;
}

/* strerror_r() returns a pointer in the GNU form and an int in the POSIX one. */
static inline const char *errno_text_gnu(char *text, const char *buffer)
{
	(void)buffer;
	return text;
}

static inline const char *errno_text_posix(int rc, const char *buffer)
{
	return rc == 0 ? buffer : "unknown error";
}

#define ERRNO_TEXT_FN                                                                              \
	_Generic(strerror_r(0, buffer, 0), int : errno_text_posix, char * : errno_text_gnu)

int moeep_fail_errno(const char *format, ...)
{
	int error = errno;
	char what[DETAIL_BYTES];
	char buffer[128];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	moeep_fail(MOEEP_ERR_SYSTEM, "%s: %s", what,
		   ERRNO_TEXT_FN(strerror_r(error, buffer, sizeof(buffer)), buffer));
	errno = error;
	return error == ENOMEM ? MOEEP_ERR_NOMEM : MOEEP_ERR_SYSTEM;
}

/* The size field of a caller's structure, checked. */
static int struct_size(const char *name, const void *user, size_t *size)
{
	if (!user) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is NULL", name);
	}
	memcpy(size, user, sizeof(*size));
	if (*size < sizeof(*size) || *size > STRUCT_MAX_BYTES) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "%s->size is %zu; it must be sizeof the structure", name, *size);
	}
	return MOEEP_OK;
}

int moeep_struct_in(const char *name, const void *user, void *own, size_t own_size)
{
	const unsigned char *bytes = user;
	size_t size = 0;
	int rc;

	rc = struct_size(name, user, &size);
	if (rc) {
		return rc;
	}
	for (size_t i = own_size; i < size; i++) {
		if (bytes[i] != 0) {
			return moeep_fail(MOEEP_ERR_INVALID,
					  "%s->size is %zu and byte %zu is not zero; this release "
					  "knows %zu bytes of it",
					  name, size, i, own_size);
		}
	}
	if (size < own_size) {
		memmove(own, user, size);
		memset((unsigned char *)own + size, 0, own_size - size);
	} else {
		memmove(own, user, own_size);
	}
	memcpy(own, &own_size, sizeof(own_size));
	return MOEEP_OK;
}

int moeep_struct_out(const char *name, void *user, const void *own, size_t own_size)
{
	size_t size = 0;
	size_t known;
	int rc;

	rc = struct_size(name, user, &size);
	if (rc) {
		return rc;
	}
	known = size < own_size ? size : own_size;
	if (known > sizeof(size)) {
		memcpy((unsigned char *)user + sizeof(size),
		       (const unsigned char *)own + sizeof(size), known - sizeof(size));
	}
	memset((unsigned char *)user + known, 0, size - known);
	return MOEEP_OK;
}
