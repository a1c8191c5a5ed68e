/* SPDX-License-Identifier: MIT */
/*
 * moeep/base.h - error codes, data types, structure conventions.
 *
 * Conventions that hold for the whole API
 *
 * Sized structures. A structure that crosses the API starts with `size_t size`, which the
 * caller sets to sizeof the structure. A zero field means its documented default, so
 *
 *	moeep_dispatch_args_t args = { .size = sizeof(args) };
 *
 * is a valid start (C++: `moeep_dispatch_args_t args = {}; args.size = sizeof(args);`). A structure
 * larger than the library knows is accepted if the unknown tail is zero; a smaller one, from a
 * program built against an older release, gets defaults for the fields it lacks. Reserved fields
 * and unknown flag bits must be zero. Of a structure that the library fills in, it writes what
 * fits, zeroes a tail that it does not know, and leaves size alone.
 *
 * Results. Functions return MOEEP_OK or one of the negative codes below. Outputs are set only on
 * success unless said otherwise. moeep_error_detail() then says, for the calling thread, which
 * argument was wrong and what its value was.
 *
 * Matrices are dense, row-major and little-endian; [N, H] means N rows of H elements.
 */
#ifndef MOEEP_BASE_H
#define MOEEP_BASE_H

#include <stddef.h>
#include <stdint.h>

#include <moeep/version.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef MOEEP_API
#if defined(__GNUC__)
#define MOEEP_API __attribute__((visibility("default")))
#else
#define MOEEP_API
#endif
#endif

/* Results of the API's functions. */
typedef enum moeep_result {
	MOEEP_OK = 0,
	MOEEP_ERR_INVALID = -1,	    /* an argument is wrong; the detail names it and its value */
	MOEEP_ERR_NOMEM = -2,	    /* memory could not be had */
	MOEEP_ERR_SYSTEM = -3,	    /* a system call or the CUDA driver failed; see the detail */
	MOEEP_ERR_TIMEOUT = -4,	    /* a peer did not act in time; sticky, see the report */
	MOEEP_ERR_PEER_LOST = -5,   /* a peer's process ended; sticky, see the report */
	MOEEP_ERR_ABORTED = -6,	    /* moeep_comm_abort() was called by some rank; sticky */
	MOEEP_ERR_CAPACITY = -7,    /* rows did not fit; the call completed on all ranks */
	MOEEP_ERR_MISMATCH = -8,    /* ranks passed arguments that do not go together */
	MOEEP_ERR_UNSUPPORTED = -9, /* valid, but not with this build, backend or memory */
	MOEEP_ERR_STATE = -10,	    /* the call does not fit the object's state */
	MOEEP_ERR_NOT_READY = -11,  /* a query: not complete yet */
	MOEEP_ERR_RENDEZVOUS = -12, /* the ranks could not find or authenticate each other */
	MOEEP_ERR_NETWORK = -13	    /* the network between hosts failed; sticky, see the report */
} moeep_result_t;

/* Text for a result code; never NULL, also for codes that this release does not know. */
MOEEP_API const char *moeep_strerror(int result);

/*
 * What exactly went wrong in this thread's last failed call; "" if none failed yet. The text
 * belongs to the thread and is valid until its next moeep call.
 */
MOEEP_API const char *moeep_error_detail(void);

/* Element types of rows, scales and indices. */
typedef enum moeep_dtype {
	MOEEP_DTYPE_DEFAULT = 0, /* what the field's description calls its default */
	MOEEP_BF16 = 1,
	MOEEP_FP16 = 2,
	MOEEP_FP32 = 3,
	MOEEP_FP8_E4M3 = 4, /* OCP E4M3 "fn": no infinities, largest 448 */
	MOEEP_FP8_E5M2 = 5,
	MOEEP_INT8 = 6,
	MOEEP_UE8M0 = 7, /* scale: an unsigned exponent of two, value 2^(byte - 127); 255 is NaN */
	MOEEP_INT32 = 8,
	MOEEP_INT64 = 9
} moeep_dtype_t;

/* Bytes of one element, 0 for a value that is not a dtype. */
MOEEP_API size_t moeep_dtype_size(int dtype);

/* "bf16", "fp8_e4m3", ...; "unknown" for a value that is not a dtype. */
MOEEP_API const char *moeep_dtype_name(int dtype);

/*
 * Where the scales of a row lie. S scales belong to a row.
 *
 * MOEEP_SCALES_ROW_MAJOR: [rows, stride], scale s of row r at r * stride + s; stride >= S, default
 * S. MOEEP_SCALES_COLUMN_MAJOR: scale s of row r at s * stride + r; stride >= rows, default the
 * rows rounded up to a multiple of 4, so that each column starts at 16 bytes: grouped GEMM kernels
 * on Hopper read this form by bulk copy. UE8M0 scales are then packed four to a 32-bit word, the
 * first in the low byte: word w of row r at w * stride + r, w = s / 4, stride in words, unused
 * bytes of the last word zero.
 */
typedef enum moeep_scale_layout {
	MOEEP_SCALES_ROW_MAJOR = 0,
	MOEEP_SCALES_COLUMN_MAJOR = 1
} moeep_scale_layout_t;

/*
 * Bytes of the scales of `rows` rows, scale_count to a row, in that layout; stride 0: its default.
 * 0 if an argument is out of range or the product does not fit.
 */
MOEEP_API size_t moeep_scales_bytes(int scale_dtype, int scale_layout, int64_t rows,
				    int32_t scale_count, int64_t stride);

/* Operations, as error reports name them. */
typedef enum moeep_op {
	MOEEP_OP_NONE = 0,
	MOEEP_OP_COMM_CREATE = 1,
	MOEEP_OP_BUFFER_CREATE = 2,
	MOEEP_OP_MEMORY = 3,
	MOEEP_OP_BARRIER = 4,
	MOEEP_OP_DISPATCH = 5,
	MOEEP_OP_COMBINE = 6,
	MOEEP_OP_LL_DISPATCH_SEND = 7,
	MOEEP_OP_LL_DISPATCH_RECV = 8,
	MOEEP_OP_LL_COMBINE_SEND = 9,
	MOEEP_OP_LL_COMBINE_RECV = 10
} moeep_op_t;

/* "dispatch", "ll_combine_recv", ...; "unknown" for other values. */
MOEEP_API const char *moeep_op_name(int op);

/*
 * What this build contains; what the machine has, moeep_comm_create() finds out. Features are
 * numbered from 0; the first index past the last one gives MOEEP_ERR_INVALID. The strings are
 * constants of the library.
 */
typedef struct moeep_feature_info {
	size_t size;
	const char *name; /* "host", "cuda", "verbs", "mlx5dv", "ibgda", "rocm" */
	int32_t enabled;  /* this build can use it */
	int32_t reserved0;
	const char *reason; /* where it was found, or why it is off */
} moeep_feature_info_t;

MOEEP_API int moeep_feature_query(unsigned index, moeep_feature_info_t *info);

/*
 * Settings. Each has a default, which the site's file, a field of a configuration structure if
 * there is one, and an environment variable override in this order. Numbered from 0 like the
 * features. The strings live as long as the library, except value, which is part of the structure.
 * comm NULL: without a configuration.
 */
struct moeep_comm;
typedef enum moeep_setting_source {
	MOEEP_SOURCE_DEFAULT = 0,
	MOEEP_SOURCE_CONFIG = 1,
	MOEEP_SOURCE_ENVIRONMENT = 2,
	MOEEP_SOURCE_SITE = 3 /* the file that MOEEP_SITE_FILE names */
} moeep_setting_source_t;

typedef struct moeep_setting_info {
	size_t size;
	const char *name;	   /* the environment variable, "MOEEP_TIMEOUT" */
	const char *unit;	   /* "ms", "bytes", "" */
	const char *default_value; /* as text */
	const char *description;   /* one line */
	int32_t source;		   /* moeep_setting_source_t */
	int32_t reserved0;
	char value[128]; /* in force now, as text */
} moeep_setting_info_t;

MOEEP_API int moeep_setting_query(const struct moeep_comm *comm, unsigned index,
				  moeep_setting_info_t *info);

/* The version of the library that runs, MOEEP_VERSION_NUMBER of its build, and its text. */
MOEEP_API uint32_t moeep_version(void);
MOEEP_API const char *moeep_version_string(void);

#ifdef __cplusplus
}
#endif

#endif
