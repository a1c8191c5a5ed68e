/* SPDX-License-Identifier: MIT */
/* The fake CUDA driver: memory of devices and pinned memory of the host, copies and attributes. */
#include "config.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "t/cuda/fake.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_range *ranges;

static void *pointer(CUdeviceptr ptr)
{
	return (void *)(uintptr_t)ptr;
}

CUresult fake_range_add(const struct fake_range *range)
{
	struct fake_range *own = malloc(sizeof(*own));

	if (!own) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*own = *range;
	pthread_mutex_lock(&lock);
	own->next = ranges;
	ranges = own;
	pthread_mutex_unlock(&lock);
	fake_count(1);
	return CUDA_SUCCESS;
}

bool fake_range_find(int kinds, const void *ptr, size_t bytes, struct fake_range *range)
{
	uintptr_t at = (uintptr_t)ptr;
	bool found = false;

	pthread_mutex_lock(&lock);
	for (struct fake_range *own = ranges; own && !found; own = own->next) {
		uintptr_t base = (uintptr_t)own->base;

		found = (own->kind & kinds) && at >= base && at - base < own->bytes &&
			bytes <= own->bytes - (at - base);
		if (found) {
			*range = *own;
		}
	}
	pthread_mutex_unlock(&lock);
	return found;
}

bool fake_range_remove(int kind, const void *base, struct fake_range *range)
{
	struct fake_range **link = &ranges;
	struct fake_range *own;

	pthread_mutex_lock(&lock);
	while (*link && ((*link)->kind != kind || (*link)->base != base)) {
		link = &(*link)->next;
	}
	own = *link;
	if (own) {
		*link = own->next;
		*range = *own;
	}
	pthread_mutex_unlock(&lock);
	if (!own) {
		return false;
	}
	free(own);
	fake_count(-1);
	return true;
}

/* In a file, so that another process can map it; see cuIpcGetMemHandle(). */
CUresult cuMemAlloc_v2(CUdeviceptr *ptr, size_t bytes)
{
	struct fake_range range = {.kind = FAKE_DEVICE, .bytes = bytes, .fd = -1};
	CUresult result = CUDA_ERROR_OUT_OF_MEMORY;

	FAKE_TRY(fake_enter_context("cuMemAlloc", "alloc"));
	if (bytes == 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	cuCtxGetDevice(&range.device);
	range.fd = memfd_create("fake-cuda", MFD_CLOEXEC);
	if (range.fd < 0 || ftruncate(range.fd, (off_t)bytes) != 0) {
		goto close_file;
	}
	range.base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, range.fd, 0);
	if (range.base == MAP_FAILED) {
		goto close_file;
	}
	result = fake_range_add(&range);
	if (result != CUDA_SUCCESS) {
		goto unmap;
	}
	*ptr = (uintptr_t)range.base;
	return CUDA_SUCCESS;

unmap:
	munmap(range.base, bytes);
close_file:
	if (range.fd >= 0) {
		close(range.fd);
	}
	return result;
}

static CUresult mem_free(CUdeviceptr ptr)
{
	struct fake_range range;

	if (!fake_range_remove(FAKE_DEVICE, pointer(ptr), &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	munmap(range.base, range.bytes);
	close(range.fd);
	return CUDA_SUCCESS;
}

CUresult cuMemFree_v2(CUdeviceptr ptr)
{
	FAKE_TRY(fake_enter_context("cuMemFree", NULL));
	fake_stream_drain(NULL);
	return mem_free(ptr);
}

CUresult cuMemAllocAsync(CUdeviceptr *ptr, size_t bytes, CUstream stream)
{
	(void)stream;
	return cuMemAlloc_v2(ptr, bytes);
}

static void run_free(const void *data)
{
	(void)mem_free(*(const CUdeviceptr *)data);
}

CUresult cuMemFreeAsync(CUdeviceptr ptr, CUstream stream)
{
	struct fake_range range;

	FAKE_TRY(fake_enter_context("cuMemFreeAsync", NULL));
	if (!fake_stream_valid(stream)) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	if (!fake_range_find(FAKE_DEVICE, pointer(ptr), 1, &range) ||
	    range.base != pointer(ptr)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return fake_stream_run(stream, run_free, &ptr, sizeof(ptr));
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes)
{
	FAKE_TRY(fake_enter_context("cuMemGetInfo", NULL));
	*free_bytes = (size_t)79 << 30;
	*total_bytes = (size_t)80 << 30;
	return CUDA_SUCCESS;
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr ptr)
{
	struct fake_range range;

	FAKE_TRY(fake_enter_context("cuMemGetAddressRange", NULL));
	if (!fake_range_find(FAKE_MEMORY, pointer(ptr), 1, &range)) {
		return CUDA_ERROR_NOT_FOUND;
	}
	if (base) {
		*base = (uintptr_t)range.base;
	}
	if (bytes) {
		*bytes = range.bytes;
	}
	return CUDA_SUCCESS;
}

CUresult cuMemHostAlloc(void **ptr, size_t bytes, unsigned int flags)
{
	struct fake_range range = {.kind = FAKE_HOST, .bytes = bytes, .fd = -1};
	CUresult result;

	FAKE_TRY(fake_enter_context("cuMemHostAlloc", "alloc"));
	if (bytes == 0 || flags > 7) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	range.base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (range.base == MAP_FAILED) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	result = fake_range_add(&range);
	if (result != CUDA_SUCCESS) {
		munmap(range.base, bytes);
		return result;
	}
	*ptr = range.base;
	return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *ptr)
{
	struct fake_range range;

	FAKE_TRY(fake_enter_context("cuMemFreeHost", NULL));
	if (!fake_range_remove(FAKE_HOST, ptr, &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	munmap(range.base, range.bytes);
	return CUDA_SUCCESS;
}

CUresult cuMemHostRegister_v2(void *ptr, size_t bytes, unsigned int flags)
{
	struct fake_range range = {.kind = FAKE_REGISTERED, .base = ptr, .bytes = bytes, .fd = -1};
	struct fake_range other;

	FAKE_TRY(fake_enter_context("cuMemHostRegister", NULL));
	if (!ptr || bytes == 0 || flags > 15) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (fake_range_find(FAKE_HOST | FAKE_REGISTERED, ptr, 1, &other)) {
		return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
	}
	return fake_range_add(&range);
}

CUresult cuMemHostUnregister(void *ptr)
{
	struct fake_range range;

	FAKE_TRY(fake_enter_context("cuMemHostUnregister", NULL));
	return fake_range_remove(FAKE_REGISTERED, ptr, &range)
		       ? CUDA_SUCCESS
		       : CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
}

CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *device_ptr, void *ptr, unsigned int flags)
{
	struct fake_range range;

	FAKE_TRY(fake_enter_context("cuMemHostGetDevicePointer", NULL));
	if (flags != 0 || !fake_range_find(FAKE_HOST | FAKE_REGISTERED, ptr, 1, &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	*device_ptr = (uintptr_t)ptr;
	return CUDA_SUCCESS;
}

/* Copies and fills. What is said to be the device's must be memory that the fake knows. */

static CUresult enter_device_memory(const char *function, CUdeviceptr ptr, size_t bytes,
				    CUstream stream)
{
	struct fake_range range;

	FAKE_TRY(fake_enter_context(function, NULL));
	if (!fake_stream_valid(stream)) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	if (bytes > 0 && !(fake_range_find(FAKE_MEMORY, pointer(ptr), 1, &range) &&
			   fake_range_find(FAKE_MEMORY, pointer(ptr + bytes - 1), 1, &range))) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

struct copy {
	void *to;
	const void *from;
	size_t bytes;
};

static void run_copy(const void *data)
{
	const struct copy *copy = data;

	memmove(copy->to, copy->from, copy->bytes);
}

static CUresult copy_on(CUstream stream, void *to, const void *from, size_t bytes)
{
	struct copy copy = {to, from, bytes};

	return fake_stream_run(stream, run_copy, &copy, sizeof(copy));
}

/* On the default stream, and waited for. */
static CUresult copy_now(void *to, const void *from, size_t bytes)
{
	FAKE_TRY(copy_on(NULL, to, from, bytes));
	fake_stream_drain(NULL);
	return CUDA_SUCCESS;
}

struct fill {
	void *to;
	unsigned int value;
	size_t unit;
	size_t count;
};

static void run_fill(const void *data)
{
	const struct fill *fill = data;

	if (fill->unit == 1) {
		memset(fill->to, (int)fill->value, fill->count);
		return;
	}
	for (size_t i = 0; i < fill->count; i++) {
		((unsigned int *)fill->to)[i] = fill->value;
	}
}

static CUresult fill_on(CUstream stream, void *to, unsigned int value, size_t unit, size_t count)
{
	struct fill fill = {to, value, unit, count};

	return fake_stream_run(stream, run_fill, &fill, sizeof(fill));
}

CUresult cuMemcpy(CUdeviceptr dst, CUdeviceptr src, size_t bytes)
{
	FAKE_TRY(fake_enter_context("cuMemcpy", NULL));
	return copy_now(pointer(dst), pointer(src), bytes);
}

CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream)
{
	FAKE_TRY(enter_device_memory("cuMemcpyAsync", 0, 0, stream));
	return copy_on(stream, pointer(dst), pointer(src), bytes);
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr dst, const void *src, size_t bytes)
{
	FAKE_TRY(enter_device_memory("cuMemcpyHtoD", dst, bytes, NULL));
	return copy_now(pointer(dst), src, bytes);
}

CUresult cuMemcpyDtoH_v2(void *dst, CUdeviceptr src, size_t bytes)
{
	FAKE_TRY(enter_device_memory("cuMemcpyDtoH", src, bytes, NULL));
	return copy_now(dst, pointer(src), bytes);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr dst, const void *src, size_t bytes, CUstream stream)
{
	FAKE_TRY(enter_device_memory("cuMemcpyHtoDAsync", dst, bytes, stream));
	return copy_on(stream, pointer(dst), src, bytes);
}

CUresult cuMemcpyDtoHAsync_v2(void *dst, CUdeviceptr src, size_t bytes, CUstream stream)
{
	FAKE_TRY(enter_device_memory("cuMemcpyDtoHAsync", src, bytes, stream));
	return copy_on(stream, dst, pointer(src), bytes);
}

CUresult cuMemsetD8_v2(CUdeviceptr dst, unsigned char value, size_t count)
{
	FAKE_TRY(enter_device_memory("cuMemsetD8", dst, count, NULL));
	FAKE_TRY(fill_on(NULL, pointer(dst), value, 1, count));
	fake_stream_drain(NULL);
	return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr dst, unsigned char value, size_t count, CUstream stream)
{
	FAKE_TRY(enter_device_memory("cuMemsetD8Async", dst, count, stream));
	return fill_on(stream, pointer(dst), value, 1, count);
}

CUresult cuMemsetD32Async(CUdeviceptr dst, unsigned int value, size_t count, CUstream stream)
{
	FAKE_TRY(enter_device_memory("cuMemsetD32Async", dst, count * sizeof(value), stream));
	if (dst % sizeof(value) != 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return fill_on(stream, pointer(dst), value, sizeof(value), count);
}

/* 0 for memory that the fake does not know, as cuPointerGetAttributes() answers. */
static CUresult pointer_value(void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
	struct fake_range range = {.device = -2};
	bool known = fake_range_find(FAKE_MEMORY, pointer(ptr), 1, &range);
	bool host = (range.kind & (FAKE_HOST | FAKE_REGISTERED)) != 0;
	CUcontext context = NULL;

	switch (attribute) {
	case CU_POINTER_ATTRIBUTE_CONTEXT:
		if (known) {
			cuCtxGetCurrent(&context);
		}
		*(CUcontext *)value = context;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
		*(unsigned int *)value = !known ? 0
					 : host ? CU_MEMORYTYPE_HOST
						: CU_MEMORYTYPE_DEVICE;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
		*(CUdeviceptr *)value = known ? ptr : 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_HOST_POINTER:
		*(void **)value = host ? pointer(ptr) : NULL;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_MANAGED:
		*(int *)value = 0;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
		*(int *)value = range.device;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
		*(CUdeviceptr *)value = (uintptr_t)range.base;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
		*(size_t *)value = range.bytes;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_MAPPED:
		*(unsigned char *)value = known;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
		*(unsigned char *)value = range.kind == FAKE_DEVICE;
		return CUDA_SUCCESS;
	case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
		*(unsigned long long *)value = range.kind == FAKE_MAPPED;
		return CUDA_SUCCESS;
	default:
		return CUDA_ERROR_NOT_SUPPORTED;
	}
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr ptr)
{
	struct fake_range range;

	FAKE_TRY(fake_enter("cuPointerGetAttribute", NULL));
	if (!fake_range_find(FAKE_MEMORY, pointer(ptr), 1, &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return pointer_value(value, attribute, ptr);
}

CUresult cuPointerGetAttributes(unsigned int count, CUpointer_attribute *attributes, void **values,
				CUdeviceptr ptr)
{
	FAKE_TRY(fake_enter("cuPointerGetAttributes", NULL));
	for (unsigned int i = 0; i < count; i++) {
		FAKE_TRY(pointer_value(values[i], attributes[i], ptr));
	}
	return CUDA_SUCCESS;
}
