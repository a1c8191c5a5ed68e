/* SPDX-License-Identifier: MIT */
/*
 * A fake CUDA driver, for tests where there is none: the library opens it with
 * MOEEP_CUDA_DRIVER. Device memory is the host's, streams run at once, and there are no kernels. It
 * is stricter than a driver where a mistake would otherwise show on a GPU only: contexts must be
 * current, sizes of the granularity, pointers known.
 *
 * It does what its environment says, which is read at each call:
 *
 *	FAKE_CUDA_VERSION=11040		the version it tells; default 12040
 *	FAKE_CUDA_DEVICES=2		devices; default 1, none makes cuInit fail
 *	FAKE_CUDA_CAPABILITY=70		compute capability times ten; default 90
 *	FAKE_CUDA_PTX=80		the same of what kernels are built for; default as the device
 *	FAKE_CUDA_SMS=4			multiprocessors; default 16
 *	FAKE_CUDA_RESIDENT=1		blocks of a kernel that one of them can have, at most
 *	FAKE_CUDA_PEERS=0		devices cannot access each other
 *	FAKE_CUDA_ATTRIBUTE=103:0	the value of one device attribute
 *	FAKE_CUDA_FAIL=cuInit:999	what a function answers, by its name in CUDA's header; or
 *					the n-th call of it with cuInit:999:n. Two groups have names
 *					of their own: "alloc" is all functions that allocate memory,
 *					"module" all that load one
 *	FAKE_CUDA_LAUNCH=1		launches succeed, and do nothing; default: not supported
 *
 * t/cuda/emulate makes another driver of it, which runs the library's kernels: there streams are
 * threads of the process, and fake_stream.c has no part.
 */
#ifndef T_CUDA_FAKE_H
#define T_CUDA_FAKE_H

#include <stdbool.h>
#include <stddef.h>

#include "cuda/driver.h"

#define FAKE_GRANULARITY ((size_t)2 << 20)

/* What the fake exports: the driver's functions, by the symbols that the library looks up. */
#pragma GCC visibility push(default)
#define FAKE_PROTOTYPE(name, symbol, parameters) CUresult symbol parameters;
MOEEP_CU_CALLS(FAKE_PROTOTYPE)
#undef FAKE_PROTOTYPE

/* What is alive: allocations, mappings, contexts, modules, streams and so on. For tests. */
int fake_cuda_live(void);
#pragma GCC visibility pop

/* Inside of the fake. */

#define FAKE_TRY(call)                                                                             \
	do {                                                                                       \
		CUresult fake_try_result = (call);                                                 \
		if (fake_try_result != CUDA_SUCCESS) {                                             \
			return fake_try_result;                                                    \
		}                                                                                  \
	} while (0)

/* A number from the environment, or the default. */
int fake_env(const char *name, int otherwise);

/*
 * What the function is to answer instead of doing its work: as the environment says, or that the
 * driver is not started, or (fake_enter_context) that no context is current.
 */
CUresult fake_enter(const char *function, const char *group);
CUresult fake_enter_context(const char *function, const char *group);

/* One object more or less that a test may find left over. */
void fake_count(int change);

/* Memory that the fake knows. Ranges of one kind do not overlap. */
enum fake_kind {
	FAKE_DEVICE = 1,     /* cuMemAlloc */
	FAKE_HOST = 2,	     /* cuMemHostAlloc */
	FAKE_REGISTERED = 4, /* cuMemHostRegister */
	FAKE_RESERVED = 8,   /* cuMemAddressReserve: addresses without memory */
	FAKE_MAPPED = 16,    /* cuMemMap */
	FAKE_OPENED = 32,    /* cuIpcOpenMemHandle */
	FAKE_MEMORY = 55     /* any but FAKE_RESERVED */
};

struct fake_range {
	int kind;
	char *base;
	size_t bytes;
	int fd; /* of FAKE_DEVICE, else -1 */
	CUdevice device;
	void *handle; /* of FAKE_MAPPED */
	struct fake_range *next;
};

/* Note a range, counted as alive. */
CUresult fake_range_add(const struct fake_range *range);
/* A copy of the range of one of these kinds that holds all these bytes. */
bool fake_range_find(int kinds, const void *ptr, size_t bytes, struct fake_range *range);
/* Forget the range of this kind that starts there. */
bool fake_range_remove(int kind, const void *base, struct fake_range *range);

/* Streams: by fake_stream.c, or by emulate/stream.c. */

/* Whether the stream is one that functions take. */
bool fake_stream_valid(CUstream stream);
/* Work on a stream, with a copy of the data. */
CUresult fake_stream_run(CUstream stream, void (*run)(const void *data), const void *data,
			 size_t bytes);
/* Wait for all of its work. */
void fake_stream_drain(CUstream stream);
/* Launch the kernel of that name. */
CUresult fake_launch(const char *name, const unsigned int grid[3], const unsigned int block[3],
		     size_t shared_bytes, CUstream stream, void **params);

#endif /* T_CUDA_FAKE_H */
