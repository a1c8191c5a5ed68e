/* SPDX-License-Identifier: MIT */
/* tools/perf_cuda.c - a GPU as one rank has it. */
#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include "perf_cuda.h"

/* More than is copied at once. */
#define WARM_BYTES (8u << 20)

const char *device_error(const struct device *d)
{
	return d->error;
}

int device_look(struct device *d, CUresult result, const char *what)
{
	if (result == CUDA_SUCCESS) {
		return 0;
	}
	(void)moeep_cu_fail(d->cu, result, "%s", what);
	snprintf(d->error, sizeof(d->error), "%s", tool_cu_detail());
	return -1;
}

static CUdeviceptr address(const void *ptr)
{
	return (CUdeviceptr)(uintptr_t)ptr;
}

static int open_events(struct device *d)
{
	for (int i = 0; i < DEVICE_BATCH; i++) {
		for (int phase = 0; phase < DEVICE_PHASES; phase++) {
			for (int end = 0; end < 2; end++) {
				if (device_look(d,
						d->cu->cuEventCreate(&d->event[i][phase][end],
								     CU_EVENT_DEFAULT),
						"cuEventCreate")) {
					return -1;
				}
			}
		}
	}
	return 0;
}

/*
 * The driver loads its own kernels, and pins what it copies through, when they are first wanted,
 * and may wait for the GPU to do so: here, and not while another rank's operation waits for this
 * one.
 */
static int warm_up(struct device *d)
{
	char *bytes = calloc(1, WARM_BYTES);
	void *ptr;
	int rc;

	if (!bytes) {
		snprintf(d->error, sizeof(d->error), "no memory");
		return -1;
	}
	if (device_alloc(d, WARM_BYTES, &ptr)) {
		free(bytes);
		return -1;
	}
	rc = device_fill(d, ptr, 0, WARM_BYTES) || device_upload(d, ptr, bytes, WARM_BYTES) ||
	     device_download(d, bytes, ptr, WARM_BYTES);
	device_free(d, ptr);
	free(bytes);
	return rc ? -1 : 0;
}

int device_open(int ordinal, int num_status, struct device **device, char *why, size_t why_size)
{
	struct device *d = calloc(1, sizeof(*d));
	void *status;

	if (!d) {
		snprintf(why, why_size, "no memory");
		return -1;
	}
	d->ordinal = ordinal;
	d->num_status = num_status;
	if (moeep_cu_load(&d->cu)) {
		snprintf(why, why_size, "%s", tool_cu_detail());
		free(d);
		return -1;
	}
	if (device_look(d, d->cu->cuDeviceGet(&d->device, ordinal), "cuDeviceGet") ||
	    device_look(d, d->cu->cuDevicePrimaryCtxRetain(&d->context, d->device),
			"cuDevicePrimaryCtxRetain") ||
	    device_look(d, d->cu->cuCtxSetCurrent(d->context), "cuCtxSetCurrent") ||
	    device_look(d, d->cu->cuStreamCreate(&d->stream, CU_STREAM_NON_BLOCKING),
			"cuStreamCreate") ||
	    device_look(d,
			d->cu->cuMemHostAlloc(&status, (size_t)num_status * sizeof(*d->status),
					      CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP),
			"cuMemHostAlloc")) {
		goto err;
	}
	d->status = status;
	if (open_events(d) || warm_up(d)) {
		goto err;
	}
	*device = d;
	return 0;

err:
	snprintf(why, why_size, "%s", d->error);
	device_close(d);
	return -1;
}

void device_close(struct device *d)
{
	if (!d) {
		return;
	}
	if (d->stream) {
		(void)d->cu->cuStreamSynchronize(d->stream);
	}
	for (int i = 0; i < DEVICE_BATCH * DEVICE_PHASES * 2; i++) {
		CUevent event = d->event[i / 2 / DEVICE_PHASES][i / 2 % DEVICE_PHASES][i % 2];

		if (event) {
			(void)d->cu->cuEventDestroy(event);
		}
	}
	if (d->status) {
		(void)d->cu->cuMemFreeHost(d->status);
	}
	if (d->stream) {
		(void)d->cu->cuStreamDestroy(d->stream);
	}
	if (d->context) {
		(void)d->cu->cuDevicePrimaryCtxRelease(d->device);
	}
	free(d);
}

int device_alloc(struct device *d, size_t bytes, void **ptr)
{
	CUdeviceptr at = 0;
	char what[64];

	snprintf(what, sizeof(what), "cuMemAlloc of %zu bytes", bytes);
	if (device_look(d, d->cu->cuMemAlloc(&at, bytes), what)) {
		return -1;
	}
	*ptr = (void *)(uintptr_t)at;
	return 0;
}

void device_free(struct device *d, void *ptr)
{
	(void)d->cu->cuMemFree(address(ptr));
}

uint64_t device_memory_left(struct device *d)
{
	size_t left = 0, total = 0;

	return d->cu->cuMemGetInfo(&left, &total) == CUDA_SUCCESS ? left : 0;
}

int device_upload(struct device *d, void *to, const void *from, size_t bytes)
{
	if (device_look(d, d->cu->cuMemcpyHtoDAsync(address(to), from, bytes, d->stream),
			"cuMemcpyHtoDAsync")) {
		return -1;
	}
	return device_wait(d);
}

int device_download(struct device *d, void *to, const void *from, size_t bytes)
{
	if (device_look(d, d->cu->cuMemcpyDtoHAsync(to, address(from), bytes, d->stream),
			"cuMemcpyDtoHAsync")) {
		return -1;
	}
	return device_wait(d);
}

int device_fill(struct device *d, void *ptr, int byte, size_t bytes)
{
	return device_look(
		d, d->cu->cuMemsetD8Async(address(ptr), (unsigned char)byte, bytes, d->stream),
		"cuMemsetD8Async");
}

int device_wait(struct device *d)
{
	return device_look(d, d->cu->cuStreamSynchronize(d->stream), "cuStreamSynchronize");
}
