/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_cuda.h - a GPU as one rank has it: context, stream, memory, and what calls are timed
 * with. What is put on the stream is perf_stream.c's.
 *
 * Functions that can fail give 0, or -1 with device_error(). Memory is given and taken while no
 * rank of the process has an operation on the GPU: the driver may wait for it.
 */
#ifndef MOEEP_TOOLS_PERF_CUDA_H
#define MOEEP_TOOLS_PERF_CUDA_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <moeep/moeep.h>

#include "cuda_driver.h"

/* Most calls that are put on the stream at once, and phases of a call. */
#define DEVICE_BATCH  32
#define DEVICE_PHASES 2

struct device {
	const struct moeep_cu *cu;
	int ordinal;
	CUdevice device;
	CUcontext context;
	CUstream stream;
	CUevent event[DEVICE_BATCH][DEVICE_PHASES][2]; /* before, after */
	int32_t *status; /* pinned; results of calls, as many as a graph may have */
	int num_status;
	atomic_int gate;      /* closed while calls are put on the stream */
	moeep_buffer_t *meet; /* tiny: its dispatches are the barriers between calls */
	moeep_handle_t *meet_handle;
	CUgraph graph;
	CUgraphExec exec;
	char error[300];
};

/* Make the calling thread's context that of GPU `ordinal`. num_status: results at most. */
int device_open(int ordinal, int num_status, struct device **device, char *why, size_t why_size);

/* After the comm's end. NULL is a no-op. */
void device_close(struct device *d);

const char *device_error(const struct device *d);

/* Note what a call of the driver gave: 0, or -1 with device_error(). */
int device_look(struct device *d, CUresult result, const char *what);

int device_alloc(struct device *d, size_t bytes, void **ptr);
void device_free(struct device *d, void *ptr);
uint64_t device_memory_left(struct device *d); /* 0: unknown */

/* Complete when they return; ordered on the rank's stream. */
int device_upload(struct device *d, void *to, const void *from, size_t bytes);
int device_download(struct device *d, void *to, const void *from, size_t bytes);

/* On the stream. */
int device_fill(struct device *d, void *ptr, int byte, size_t bytes);
int device_wait(struct device *d);

#endif
