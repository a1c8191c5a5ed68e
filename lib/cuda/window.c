/* SPDX-License-Identifier: MIT */
/*
 * cuda/window.c - device memory that others map.
 *
 * Windows are allocations with a POSIX descriptor. They live as long as somebody maps them, so a
 * peer that was stopped and resumes writes into memory that still exists. The caller's own memory
 * is shared by the driver's IPC handles, which only plain allocations (cuMemAlloc) have.
 */
#include "config.h"

#include <stdlib.h>
#include <unistd.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/window.h"

/* Thread ranks share it, so it may outlive the comm that made it, and its context. */
struct mapping {
	const struct moeep_cu *cu;
	CUmemGenericAllocationHandle handle;
	size_t bytes; /* mapped */
};

static CUmemAllocationProp properties(const struct moeep_cuda *cuda)
{
	return (CUmemAllocationProp){
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = cuda->context->device},
	};
}

static int padded(const struct moeep_cuda *cuda, size_t bytes, size_t *whole)
{
	CUmemAllocationProp prop = properties(cuda);
	size_t unit = 0;
	CUresult result = cuda->cu->cuMemGetAllocationGranularity(&unit, &prop,
								  CU_MEM_ALLOC_GRANULARITY_MINIMUM);

	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cuda->cu, result, "cuMemGetAllocationGranularity");
	}
	*whole = (bytes + unit - 1) / unit * unit;
	return MOEEP_OK;
}

/* All devices of this process that can: thread ranks on them use this mapping, too. */
static CUresult give_access(const struct moeep_cuda *cuda, CUdeviceptr base, size_t bytes)
{
	const struct moeep_cu *cu = cuda->cu;
	CUresult result = CUDA_SUCCESS;
	int count = 0;

	(void)cu->cuDeviceGetCount(&count);
	for (int device = 0; device < count && result == CUDA_SUCCESS; device++) {
		CUmemAccessDesc access = {
			.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
			.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
		};
		int can = device == cuda->context->device;

		if (!can) {
			(void)cu->cuDeviceCanAccessPeer(&can, device, cuda->context->device);
		}
		if (can) {
			result = cu->cuMemSetAccess(base, bytes, &access, 1);
		}
	}
	return result;
}

static void mapping_release(struct moeep_window *window)
{
	struct mapping *mapping = window->owner;
	CUdeviceptr base = (CUdeviceptr)(uintptr_t)window->base;

	(void)mapping->cu->cuMemUnmap(base, mapping->bytes);
	(void)mapping->cu->cuMemAddressFree(base, mapping->bytes);
	(void)mapping->cu->cuMemRelease(mapping->handle);
	free(mapping);
}

/* Takes over the handle, also if it fails. */
static int mapping_new(struct moeep_cuda *cuda, CUmemGenericAllocationHandle handle, size_t whole,
		       struct mapping **mapping_out, CUdeviceptr *base)
{
	const struct moeep_cu *cu = cuda->cu;
	struct mapping *mapping = calloc(1, sizeof(*mapping));
	CUresult result;

	if (!mapping) {
		(void)cu->cuMemRelease(handle);
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a window's description");
	}
	*mapping = (struct mapping){.cu = cu, .handle = handle, .bytes = whole};
	result = cu->cuMemAddressReserve(base, whole, 0, 0, 0);
	if (result != CUDA_SUCCESS) {
		goto release;
	}
	result = cu->cuMemMap(*base, whole, 0, handle, 0);
	if (result != CUDA_SUCCESS) {
		goto free_address;
	}
	result = give_access(cuda, *base, whole);
	if (result != CUDA_SUCCESS) {
		goto unmap;
	}
	*mapping_out = mapping;
	return MOEEP_OK;

unmap:
	(void)cu->cuMemUnmap(*base, whole);
free_address:
	(void)cu->cuMemAddressFree(*base, whole);
release:
	(void)cu->cuMemRelease(handle);
	free(mapping);
	return moeep_cu_fail(cu, result, "mapping %zu bytes of device memory", whole);
}

static int create(struct moeep_cuda *cuda, size_t bytes, struct moeep_window **window_out)
{
	const struct moeep_cu *cu = cuda->cu;
	CUmemAllocationProp prop = properties(cuda);
	CUmemGenericAllocationHandle handle;
	struct mapping *mapping = NULL;
	struct moeep_window *window;
	CUdeviceptr base = 0;
	size_t whole = 0;
	CUresult result;
	int rc = padded(cuda, bytes, &whole);

	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cu->cuMemCreate(&handle, whole, &prop, 0);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "a window of %zu bytes of device memory", whole);
	}
	rc = mapping_new(cuda, handle, whole, &mapping, &base);
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = moeep_window_add(moeep_cuda_pointer(base), bytes, mapping_release, mapping, true,
			      &window);
	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cu->cuMemsetD8Async(base, 0, whole, cuda->stream);
	if (result == CUDA_SUCCESS) {
		result = cu->cuStreamSynchronize(cuda->stream);
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuMemExportToShareableHandle(
			&window->fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	}
	if (result != CUDA_SUCCESS) {
		window->fd = -1;
		moeep_window_unref(window);
		return moeep_cu_fail(cu, result, "sharing %zu bytes of device memory", whole);
	}
	*window_out = window;
	return MOEEP_OK;
}

int moeep_cuda_window_create(struct moeep_cuda *cuda, size_t bytes, struct moeep_window **window)
{
	int rc;

	if (bytes == 0) {
		return moeep_window_add(NULL, 0, NULL, NULL, true, window);
	}
	rc = moeep_cuda_enter(cuda);
	if (rc == MOEEP_OK) {
		rc = create(cuda, bytes, window);
		moeep_cuda_leave(cuda);
	}
	return rc;
}

static int map(struct moeep_cuda *cuda, int fd, size_t bytes, struct moeep_window **window)
{
	CUmemGenericAllocationHandle handle;
	struct mapping *mapping = NULL;
	CUdeviceptr base = 0;
	size_t whole = 0;
	CUresult result;
	int rc = padded(cuda, bytes, &whole);

	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cuda->cu->cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd,
							  CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cuda->cu, result, "importing a peer's device memory");
	}
	rc = mapping_new(cuda, handle, whole, &mapping, &base);
	if (rc != MOEEP_OK) {
		return rc;
	}
	return moeep_window_add(moeep_cuda_pointer(base), bytes, mapping_release, mapping, false,
				window);
}

int moeep_cuda_window_map(struct moeep_cuda *cuda, int fd, size_t bytes,
			  struct moeep_window **window)
{
	int rc;

	if (bytes == 0) {
		return moeep_window_add(NULL, 0, NULL, NULL, false, window);
	}
	rc = moeep_cuda_enter(cuda);
	if (rc == MOEEP_OK) {
		rc = map(cuda, fd, bytes, window);
		moeep_cuda_leave(cuda);
	}
	return rc;
}

int moeep_cuda_share_make(struct moeep_cuda *cuda, void *ptr, size_t bytes, bool processes,
			  struct moeep_cuda_share *share)
{
	const struct moeep_cu *cu = cuda->cu;
	CUdeviceptr at = (CUdeviceptr)(uintptr_t)ptr;
	CUdeviceptr base = 0;
	unsigned int type = 0;
	int capable = 0;
	size_t size = 0;
	CUresult result = cu->cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at);

	if (result != CUDA_SUCCESS) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "memory at %p is not known to CUDA (malloc, perhaps); use "
				  "cudaMalloc() or moeep_mem_alloc()",
				  ptr);
	}
	*share = (struct moeep_cuda_share){
		.pointer = at, .bytes = bytes, .device = cuda->context->device};
	if (!processes) {
		return MOEEP_OK;
	}
	if (type != CU_MEMORYTYPE_DEVICE) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "memory at %p is host memory, which other processes' GPUs cannot "
				  "reach; use cudaMalloc() or moeep_mem_alloc()",
				  ptr);
	}
	(void)cu->cuPointerGetAttribute(&capable, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE,
					at);
	if (!capable) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "memory at %p is from a memory pool or from cuMemCreate(), which "
				  "CUDA IPC cannot share; use cudaMalloc() or moeep_mem_alloc()",
				  ptr);
	}
	result = cu->cuMemGetAddressRange(&base, &size, at);
	if (result == CUDA_SUCCESS) {
		result = cu->cuIpcGetMemHandle(&share->handle, base);
	}
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "sharing memory at %p by CUDA IPC", ptr);
	}
	share->offset = at - base;
	share->has_handle = 1;
	return MOEEP_OK;
}

int moeep_cuda_share_open(struct moeep_cuda *cuda, const struct moeep_cuda_share *share,
			  void **opened, char **base)
{
	CUdeviceptr at = 0;
	CUresult result = cuda->cu->cuIpcOpenMemHandle(&at, share->handle,
						       CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);

	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cuda->cu, result, "opening a peer's memory by CUDA IPC");
	}
	*opened = moeep_cuda_pointer(at);
	*base = (char *)*opened + share->offset;
	return MOEEP_OK;
}

void moeep_cuda_share_close(struct moeep_cuda *cuda, void *opened)
{
	if (opened && moeep_cuda_enter(cuda) == MOEEP_OK) {
		(void)cuda->cu->cuIpcCloseMemHandle((CUdeviceptr)(uintptr_t)opened);
		moeep_cuda_leave(cuda);
	}
}

/* Slot 0 means ordinary memory. */
uint32_t moeep_cuda_region_slot(const struct moeep_cuda *cuda, uint32_t id)
{
	return id == 0 ? 0 : 1 + (id - 1) % (cuda->region_slots - 1);
}

int moeep_cuda_region_set(struct moeep_comm *comm, uint32_t id, char *const *bases)
{
	struct moeep_cuda *cuda = comm->cuda;
	uint32_t slot = moeep_cuda_region_slot(cuda, id);
	struct moeep_dev_region entry = {.id = bases ? id : 0};
	size_t bytes = (size_t)comm->num_ranks * sizeof(*bases);
	int rc;

	if (bases && cuda->region_ids[slot] != 0) {
		return moeep_fail(MOEEP_ERR_NOMEM,
				  "symmetric memory %u would take the place of %u, which is still "
				  "there: at most %u can be alive",
				  id, cuda->region_ids[slot], cuda->region_slots - 1);
	}
	if (!bases && cuda->region_ids[slot] != id) {
		return MOEEP_OK;
	}
	rc = moeep_cuda_enter(cuda);
	if (rc != MOEEP_OK) {
		return rc;
	}
	if (bases) {
		rc = moeep_cuda_put(cuda, cuda->dev_region_base + slot * bytes, bases, bytes);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_put(cuda, cuda->dev_regions + slot * sizeof(entry), &entry,
				    sizeof(entry));
	}
	if (rc == MOEEP_OK) {
		cuda->region_ids[slot] = entry.id;
	}
	moeep_cuda_leave(cuda);
	return rc;
}
