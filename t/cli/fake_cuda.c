/* SPDX-License-Identifier: MIT */
/*
 * t/cli/fake_cuda.c - a GPU backend that is not there, for moeep-perf.
 *
 * Preloaded, and named as the CUDA driver, whose work t/cuda's fake does. A comm with the CUDA
 * backend is one with the host backend, whose operations this file runs where a kernel would.
 * Device memory may be touched by them and by the driver's copies alone.
 *
 * FAKE_SPOIL=1: a bit of what dispatch receives is wrong. FAKE_STATUS=N: results that calls have.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <moeep/moeep.h>

#include "cuda/driver.h"

#define MANY 64

/* Device memory: locked but while the driver or an operation works on it. */
static struct {
	void *base;
	size_t bytes;
} memory[MANY];
static int busy;

static void unlock(void)
{
	for (int i = 0; busy == 0 && i < MANY; i++) {
		if (memory[i].base) {
			mprotect(memory[i].base, memory[i].bytes, PROT_READ | PROT_WRITE);
		}
	}
	busy++;
}

static void lock(void)
{
	busy--;
	for (int i = 0; busy == 0 && i < MANY; i++) {
		if (memory[i].base) {
			mprotect(memory[i].base, memory[i].bytes, PROT_NONE);
		}
	}
}

/* Calls of a graph. */
struct node {
	int kind;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	int32_t *status;
	union {
		moeep_dispatch_args_t dispatch;
		moeep_combine_args_t combine;
		moeep_ll_dispatch_args_t ll_dispatch;
		moeep_ll_combine_args_t ll_combine;
	} args;
};
static struct node graph[MANY];
static int nodes;
static int capturing;

static void *next(const char *name)
{
	void *address = dlsym(RTLD_NEXT, name);

	if (!address) {
		fprintf(stderr, "fake_cuda: no %s\n", name);
		abort();
	}
	return address;
}

static void run_node(struct node *n)
{
	static const char *const names[] = {"moeep_dispatch", "moeep_combine", "moeep_ll_dispatch",
					    "moeep_ll_combine"};
	int (*call)(moeep_buffer_t *, moeep_handle_t *, const void *, const moeep_launch_t *);
	const char *status = getenv("FAKE_STATUS");
	int rc;

	*(void **)&call = next(names[n->kind]);
	unlock();
	rc = call(n->buffer, n->handle, &n->args, NULL);
	if (n->kind == 0 && n->args.dispatch.recv_x && getenv("FAKE_SPOIL")) {
		((unsigned char *)n->args.dispatch.recv_x)[3] ^= 1;
	}
	lock();
	if (n->status) {
		*n->status = status ? atoi(status) : rc;
	} else if (rc) {
		fprintf(stderr, "fake_cuda: %s: %s\n", names[n->kind], moeep_error_detail());
	}
}

/* With a stream it is a call of the CUDA backend. */
static int put(int kind, moeep_buffer_t *b, moeep_handle_t *h, const void *args, size_t bytes,
	       const moeep_launch_t *launch)
{
	struct node n = {.kind = kind, .buffer = b, .handle = h, .status = launch->status};

	memcpy(&n.args, args, bytes);
	if (capturing && nodes < MANY) {
		graph[nodes++] = n;
	} else {
		run_node(&n);
	}
	return 0;
}

#define OPERATION(kind, name, type)                                                                \
	int name(moeep_buffer_t *b, moeep_handle_t *h, const type *args, const moeep_launch_t *l)  \
	{                                                                                          \
		int (*call)(moeep_buffer_t *, moeep_handle_t *, const type *,                      \
			    const moeep_launch_t *);                                               \
                                                                                                   \
		if (l && l->stream) {                                                              \
			return put(kind, b, h, args, sizeof(*args), l);                            \
		}                                                                                  \
		*(void **)&call = next(#name);                                                     \
		return call(b, h, args, l);                                                        \
	}

OPERATION(0, moeep_dispatch, moeep_dispatch_args_t)
OPERATION(1, moeep_combine, moeep_combine_args_t)
OPERATION(2, moeep_ll_dispatch, moeep_ll_dispatch_args_t)
OPERATION(3, moeep_ll_combine, moeep_ll_combine_args_t)

static const moeep_comm_t *cuda_comm;

int moeep_comm_create(int rank, int ranks, const moeep_comm_config_t *config, moeep_comm_t **comm)
{
	int (*call)(int, int, const moeep_comm_config_t *, moeep_comm_t **);
	moeep_comm_config_t own = *config;
	int rc;

	own.backend = MOEEP_BACKEND_HOST;
	own.device_plus_one = 0;
	*(void **)&call = next("moeep_comm_create");
	rc = call(rank, ranks, &own, comm);
	if (rc == 0 && config->backend == MOEEP_BACKEND_CUDA) {
		cuda_comm = *comm;
	}
	return rc;
}

int moeep_comm_query(const moeep_comm_t *comm, moeep_comm_info_t *info)
{
	int (*call)(const moeep_comm_t *, moeep_comm_info_t *);
	int rc;

	*(void **)&call = next("moeep_comm_query");
	rc = call(comm, info);
	if (rc == 0 && comm == cuda_comm) {
		info->backend = MOEEP_BACKEND_CUDA;
	}
	return rc;
}

int moeep_feature_query(unsigned index, moeep_feature_info_t *info)
{
	int (*call)(unsigned, moeep_feature_info_t *);
	int rc;

	*(void **)&call = next("moeep_feature_query");
	rc = call(index, info);
	if (rc == 0 && !strcmp(info->name, "cuda")) {
		info->enabled = 1;
	}
	return rc;
}

/*
 * Of the driver, what this file has to see; all else, and the work itself, is fake_driver.so's,
 * with which this file is linked.
 */

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode)
{
	CUresult (*call)(CUstream, CUstreamCaptureMode);
	CUresult result;

	*(void **)&call = next("cuStreamBeginCapture_v2");
	result = call(stream, mode);
	capturing = result == CUDA_SUCCESS;
	nodes = 0;
	return result;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *out)
{
	CUresult (*call)(CUstream, CUgraph *);

	*(void **)&call = next("cuStreamEndCapture");
	capturing = 0;
	return call(stream, out);
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
	CUresult (*call)(CUgraphExec, CUstream);

	*(void **)&call = next("cuGraphLaunch");
	for (int i = 0; i < nodes; i++) {
		run_node(&graph[i]);
	}
	return call(exec, stream);
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *data)
{
	/* It would wait for what comes after it, and this stream never does. */
	(void)stream;
	(void)fn;
	(void)data;
	return CUDA_SUCCESS;
}

CUresult cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes)
{
	CUresult (*call)(CUdeviceptr *, size_t);
	CUresult result;

	*(void **)&call = next("cuMemAlloc_v2");
	result = call(ptr, bytes);
	for (int i = 0; result == CUDA_SUCCESS && i < MANY; i++) {
		if (!memory[i].base) {
			memory[i].base = (void *)(uintptr_t)*ptr;
			memory[i].bytes = bytes;
			unlock();
			lock();
			break;
		}
	}
	return result;
}

CUresult cuMemFree_v2(CUdeviceptr ptr)
{
	CUresult (*call)(CUdeviceptr);

	*(void **)&call = next("cuMemFree_v2");
	for (int i = 0; i < MANY; i++) {
		if ((CUdeviceptr)(uintptr_t)memory[i].base == ptr) {
			memory[i].base = NULL;
		}
	}
	return call(ptr);
}

/* Symmetric memory is the host backend's, which the driver does not know. */
static int ours(CUdeviceptr ptr)
{
	for (int i = 0; i < MANY; i++) {
		uintptr_t base = (uintptr_t)memory[i].base;

		if (base && ptr >= base && ptr - base < memory[i].bytes) {
			return 1;
		}
	}
	return 0;
}

static void *at(CUdeviceptr ptr)
{
	return (void *)(uintptr_t)ptr;
}

static CUresult move(void *dst, const void *src, size_t bytes)
{
	memcpy(dst, src, bytes);
	return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream)
{
	CUresult (*call)(CUdeviceptr, const void *, size_t, CUstream);
	CUresult result;

	*(void **)&call = next("cuMemcpyHtoDAsync_v2");
	unlock();
	result = ours(dst) ? call(dst, src, bytes, stream) : move(at(dst), src, bytes);
	lock();
	return result;
}

CUresult cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t bytes, CUstream stream)
{
	CUresult (*call)(void *, CUdeviceptr, size_t, CUstream);
	CUresult result;

	*(void **)&call = next("cuMemcpyDtoHAsync_v2");
	unlock();
	result = ours(src) ? call(dst, src, bytes, stream) : move(dst, at(src), bytes);
	lock();
	return result;
}

CUresult cuMemsetD8Async(CUdeviceptr dst, unsigned char value, size_t count, CUstream stream)
{
	CUresult (*call)(CUdeviceptr, unsigned char, size_t, CUstream);
	CUresult result = CUDA_SUCCESS;

	*(void **)&call = next("cuMemsetD8Async");
	unlock();
	if (ours(dst)) {
		result = call(dst, value, count, stream);
	} else {
		memset(at(dst), value, count);
	}
	lock();
	return result;
}
