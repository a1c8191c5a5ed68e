/* SPDX-License-Identifier: MIT */
/* The fake CUDA driver: memory by handles, which processes pass to each other. */
#include "config.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "t/cuda/fake.h"

/* Memory of cuMemCreate(), or imported. It lives until it is released and no longer mapped. */
struct handle {
	int fd;
	size_t bytes;
	int refs;
};

/* What a handle of cuIpcGetMemHandle() holds. */
struct ipc {
	int pid;
	int fd;
	size_t bytes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *pointer(CUdeviceptr ptr)
{
	return (void *)(uintptr_t)ptr;
}

static struct handle *handle_of(CUmemGenericAllocationHandle handle)
{
	return pointer(handle);
}

static CUresult handle_new(int fd, size_t bytes, CUmemGenericAllocationHandle *handle)
{
	struct handle *own = calloc(1, sizeof(*own));

	if (!own) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	own->fd = fd;
	own->bytes = bytes;
	own->refs = 1;
	fake_count(1);
	*handle = (uintptr_t)own;
	return CUDA_SUCCESS;
}

static void handle_ref(struct handle *handle)
{
	pthread_mutex_lock(&lock);
	handle->refs++;
	pthread_mutex_unlock(&lock);
}

static void handle_unref(struct handle *handle)
{
	bool last;

	pthread_mutex_lock(&lock);
	last = --handle->refs == 0;
	pthread_mutex_unlock(&lock);
	if (last) {
		close(handle->fd);
		free(handle);
		fake_count(-1);
	}
}

static CUresult check_prop(const CUmemAllocationProp *prop)
{
	int devices;

	FAKE_TRY(cuDeviceGetCount(&devices));
	if (prop->type != CU_MEM_ALLOCATION_TYPE_PINNED ||
	    prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE || prop->win32HandleMetaData) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return prop->location.id >= 0 && prop->location.id < devices ? CUDA_SUCCESS
								     : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *prop,
				       CUmemAllocationGranularity_flags option)
{
	(void)option;
	FAKE_TRY(fake_enter("cuMemGetAllocationGranularity", NULL));
	FAKE_TRY(check_prop(prop));
	*bytes = FAKE_GRANULARITY;
	return CUDA_SUCCESS;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
		     const CUmemAllocationProp *prop, unsigned long long flags)
{
	CUresult result;
	int fd;

	FAKE_TRY(fake_enter("cuMemCreate", "alloc"));
	FAKE_TRY(check_prop(prop));
	if (bytes == 0 || bytes % FAKE_GRANULARITY != 0 || flags != 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	fd = memfd_create("fake-cuda", MFD_CLOEXEC);
	if (fd < 0) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	result = ftruncate(fd, (off_t)bytes) == 0 ? handle_new(fd, bytes, handle)
						  : CUDA_ERROR_OUT_OF_MEMORY;
	if (result != CUDA_SUCCESS) {
		close(fd);
	}
	return result;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
	FAKE_TRY(fake_enter("cuMemRelease", NULL));
	if (!handle) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	handle_unref(handle_of(handle));
	return CUDA_SUCCESS;
}

CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *ptr)
{
	struct fake_range range;

	FAKE_TRY(fake_enter("cuMemRetainAllocationHandle", NULL));
	if (!fake_range_find(FAKE_MAPPED, ptr, 1, &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	handle_ref(range.handle);
	*handle = (uintptr_t)range.handle;
	return CUDA_SUCCESS;
}

CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle,
				      CUmemAllocationHandleType type, unsigned long long flags)
{
	int fd;

	FAKE_TRY(fake_enter("cuMemExportToShareableHandle", NULL));
	if (!handle || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || flags != 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	fd = fcntl(handle_of(handle)->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0) {
		return CUDA_ERROR_OPERATING_SYSTEM;
	}
	memcpy(shareable, &fd, sizeof(fd));
	return CUDA_SUCCESS;
}

/* The caller keeps the descriptor. */
CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
					CUmemAllocationHandleType type)
{
	struct stat status;
	CUresult result;
	int fd;

	FAKE_TRY(fake_enter("cuMemImportFromShareableHandle", NULL));
	if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	fd = fcntl((int)(intptr_t)shareable, F_DUPFD_CLOEXEC, 0);
	if (fd < 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	result = fstat(fd, &status) == 0 ? handle_new(fd, (size_t)status.st_size, handle)
					 : CUDA_ERROR_OPERATING_SYSTEM;
	if (result != CUDA_SUCCESS) {
		close(fd);
	}
	return result;
}

static bool aligned(CUdeviceptr ptr, size_t bytes)
{
	return bytes > 0 && ptr % FAKE_GRANULARITY == 0 && bytes % FAKE_GRANULARITY == 0;
}

CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t bytes, size_t alignment, CUdeviceptr wanted,
			     unsigned long long flags)
{
	struct fake_range range = {.kind = FAKE_RESERVED, .bytes = bytes, .fd = -1};
	size_t spare = alignment > FAKE_GRANULARITY ? alignment : FAKE_GRANULARITY;
	size_t before;
	CUresult result;
	char *base;

	(void)wanted;
	FAKE_TRY(fake_enter("cuMemAddressReserve", NULL));
	if (!aligned(0, bytes) || (alignment & (alignment - 1)) != 0 || flags != 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	base = mmap(NULL, bytes + spare, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		    0);
	if (base == MAP_FAILED) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	before = (spare - (uintptr_t)base % spare) % spare;
	range.base = base + before;
	if (before > 0) {
		munmap(base, before);
	}
	munmap(range.base + bytes, spare - before);
	result = fake_range_add(&range);
	if (result != CUDA_SUCCESS) {
		munmap(range.base, bytes);
		return result;
	}
	*ptr = (uintptr_t)range.base;
	return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr ptr, size_t bytes)
{
	struct fake_range range;

	FAKE_TRY(fake_enter("cuMemAddressFree", NULL));
	for (size_t at = 0; at < bytes; at += FAKE_GRANULARITY) {
		if (fake_range_find(FAKE_MAPPED, pointer(ptr + at), 1, &range)) {
			return CUDA_ERROR_INVALID_VALUE;
		}
	}
	if (!fake_range_find(FAKE_RESERVED, pointer(ptr), bytes, &range) || range.bytes != bytes ||
	    !fake_range_remove(FAKE_RESERVED, pointer(ptr), &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	munmap(range.base, bytes);
	return CUDA_SUCCESS;
}

/* Not accessible before cuMemSetAccess(). */
CUresult cuMemMap(CUdeviceptr ptr, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
		  unsigned long long flags)
{
	struct fake_range range = {
		.kind = FAKE_MAPPED, .base = pointer(ptr), .bytes = bytes, .fd = -1};
	struct fake_range other;
	CUresult result;

	FAKE_TRY(fake_enter("cuMemMap", NULL));
	if (!handle || offset != 0 || flags != 0 || !aligned(ptr, bytes) ||
	    bytes > handle_of(handle)->bytes ||
	    !fake_range_find(FAKE_RESERVED, pointer(ptr), bytes, &other) ||
	    fake_range_find(FAKE_MAPPED, pointer(ptr), 1, &other)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (mmap(range.base, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, handle_of(handle)->fd, 0) ==
	    MAP_FAILED) {
		return CUDA_ERROR_MAP_FAILED;
	}
	range.handle = handle_of(handle);
	result = fake_range_add(&range);
	if (result == CUDA_SUCCESS) {
		handle_ref(range.handle);
	}
	return result;
}

CUresult cuMemUnmap(CUdeviceptr ptr, size_t bytes)
{
	struct fake_range range;

	FAKE_TRY(fake_enter("cuMemUnmap", NULL));
	if (!fake_range_find(FAKE_MAPPED, pointer(ptr), bytes, &range) || range.bytes != bytes ||
	    !fake_range_remove(FAKE_MAPPED, pointer(ptr), &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	mmap(range.base, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
	     -1, 0);
	handle_unref(range.handle);
	return CUDA_SUCCESS;
}

CUresult cuMemSetAccess(CUdeviceptr ptr, size_t bytes, const CUmemAccessDesc *desc, size_t count)
{
	struct fake_range range;
	int access = PROT_NONE;

	FAKE_TRY(fake_enter("cuMemSetAccess", NULL));
	if (count == 0 || !aligned(ptr, bytes) ||
	    !fake_range_find(FAKE_MAPPED, pointer(ptr), bytes, &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	for (size_t i = 0; i < count; i++) {
		if (desc[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
			return CUDA_ERROR_INVALID_VALUE;
		}
		if (desc[i].flags != CU_MEM_ACCESS_FLAGS_PROT_NONE) {
			access |= PROT_READ;
		}
		if (desc[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE) {
			access |= PROT_WRITE;
		}
	}
	return mprotect(pointer(ptr), bytes, access) == 0 ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr ptr)
{
	struct fake_range range;
	struct ipc ipc = {.pid = getpid()};

	FAKE_TRY(fake_enter_context("cuIpcGetMemHandle", NULL));
	if (!fake_range_find(FAKE_DEVICE, pointer(ptr), 1, &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	ipc.fd = range.fd;
	ipc.bytes = range.bytes;
	memset(handle, 0, sizeof(*handle));
	memcpy(handle->reserved, &ipc, sizeof(ipc));
	return CUDA_SUCCESS;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags)
{
	struct fake_range range = {.kind = FAKE_OPENED, .fd = -1};
	struct ipc ipc;
	CUresult result;
	char path[64];
	int fd;

	FAKE_TRY(fake_enter_context("cuIpcOpenMemHandle", NULL));
	memcpy(&ipc, handle.reserved, sizeof(ipc));
	/* A process cannot open its own. */
	if (flags > 1 || ipc.bytes == 0 || ipc.pid == getpid()) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", ipc.pid, ipc.fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	range.bytes = ipc.bytes;
	range.base = mmap(NULL, ipc.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (range.base == MAP_FAILED) {
		return CUDA_ERROR_MAP_FAILED;
	}
	result = fake_range_add(&range);
	if (result != CUDA_SUCCESS) {
		munmap(range.base, ipc.bytes);
		return result;
	}
	*ptr = (uintptr_t)range.base;
	return CUDA_SUCCESS;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr ptr)
{
	struct fake_range range;

	FAKE_TRY(fake_enter_context("cuIpcCloseMemHandle", NULL));
	if (!fake_range_remove(FAKE_OPENED, pointer(ptr), &range)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	munmap(range.base, range.bytes);
	return CUDA_SUCCESS;
}
