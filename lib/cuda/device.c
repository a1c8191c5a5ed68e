/* SPDX-License-Identifier: MIT */
/* cuda/device.c - opening a GPU for a comm: context, kernels, small memory. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/device.h"
#if MOEEP_HAVE_CUDA
#include "cuda/images.h"
#endif

/* Entries of the table of symmetric memory, less with very many ranks. */
#define REGION_SLOTS	   1024
#define REGION_TABLE_BYTES (8u << 20)

#if MOEEP_HAVE_CUDA
static const struct {
	const char *image;
	const char *function;
	int threads;
} kernel_table[MOEEP_CUDA_KERNELS] = {
	[MOEEP_CUDA_LAYOUT] = {"layout", "moeep_kernel_layout", MOEEP_DEV_LL_THREADS},
	[MOEEP_CUDA_HT_ROUTE] = {"ht_route", "moeep_kernel_ht_route", MOEEP_DEV_ROUTE_THREADS},
	[MOEEP_CUDA_HT_MOVE] = {"ht_move", "moeep_kernel_ht_move", MOEEP_DEV_MOVE_THREADS},
	[MOEEP_CUDA_HT_EXPAND] = {"ht_expand", "moeep_kernel_ht_expand", MOEEP_DEV_SUM_THREADS},
	[MOEEP_CUDA_HT_COMBINE] = {"ht_combine", "moeep_kernel_ht_combine", MOEEP_DEV_MOVE_THREADS},
	[MOEEP_CUDA_LL_DISPATCH] = {"ll_dispatch", "moeep_kernel_ll_dispatch",
				    MOEEP_DEV_LL_THREADS},
	[MOEEP_CUDA_LL_COMBINE] = {"ll_combine", "moeep_kernel_ll_combine", MOEEP_DEV_LL_THREADS},
};
#endif

int moeep_cuda_enter(const struct moeep_cuda *cuda)
{
	CUresult result = cuda->cu->cuCtxPushCurrent(cuda->context);

	return result == CUDA_SUCCESS ? MOEEP_OK
				      : moeep_cu_fail(cuda->cu, result, "cuCtxPushCurrent");
}

void moeep_cuda_leave(const struct moeep_cuda *cuda)
{
	CUcontext context;

	(void)cuda->cu->cuCtxPopCurrent(&context);
}

static int attribute(const struct moeep_cuda *cuda, CUdevice_attribute which)
{
	int value = 0;

	return cuda->cu->cuDeviceGetAttribute(&value, which, cuda->device) == CUDA_SUCCESS ? value
											   : 0;
}

/* The device that is asked for, else the current context's, else the first. */
static int choose_device(struct moeep_cuda *cuda, int device_plus_one)
{
	const struct moeep_cu *cu = cuda->cu;
	CUcontext current = NULL;
	int count = 0;
	CUresult result = cu->cuDeviceGetCount(&count);

	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "cuDeviceGetCount");
	}
	if (device_plus_one < 0 || device_plus_one > count) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "config.device_plus_one is %d; this process sees %d devices",
				  device_plus_one, count);
	}
	(void)cu->cuCtxGetCurrent(&current);
	if (current) {
		CUdevice device;

		result = cu->cuCtxGetDevice(&device);
		if (result != CUDA_SUCCESS) {
			return moeep_cu_fail(cu, result, "cuCtxGetDevice");
		}
		if (device_plus_one == 0 || device == device_plus_one - 1) {
			cuda->device = device;
			cuda->context = current;
		}
	}
	if (!cuda->context) {
		int ordinal = device_plus_one > 0 ? device_plus_one - 1 : 0;

		result = cu->cuDeviceGet(&cuda->device, ordinal);
		if (result == CUDA_SUCCESS) {
			result = cu->cuDevicePrimaryCtxRetain(&cuda->context, cuda->device);
		}
		if (result != CUDA_SUCCESS) {
			cuda->context = NULL;
			return moeep_cu_fail(cu, result, "using device %d", ordinal);
		}
		cuda->primary = true;
	}
	cuda->ordinal = cuda->device;
	return MOEEP_OK;
}

static int check_device(struct moeep_cuda *cuda)
{
	(void)cuda->cu->cuDeviceGetName(cuda->name, sizeof(cuda->name), cuda->device);
	(void)cuda->cu->cuDeviceGetUuid(&cuda->uuid, cuda->device);
	cuda->capability = attribute(cuda, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) * 10 +
			   attribute(cuda, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
	cuda->sms = attribute(cuda, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
	cuda->max_shared = attribute(cuda, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
	if (cuda->capability < 80) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "device %d (%s) has compute capability %d.%d; 8.0 is needed",
				  cuda->ordinal, cuda->name, cuda->capability / 10,
				  cuda->capability % 10);
	}
	if (attribute(cuda, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING) == 0 ||
	    attribute(cuda, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 0 ||
	    attribute(cuda, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED) == 0) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "device %d (%s) cannot pass memory between processes by "
				  "descriptor, or has no unified addressing",
				  cuda->ordinal, cuda->name);
	}
	cuda->bulk = cuda->capability >= 90;
	return MOEEP_OK;
}

#if MOEEP_HAVE_CUDA
static int load_kernel(struct moeep_cuda *cuda, int id)
{
	struct moeep_cuda_kernel *kernel = &cuda->kernels[id];
	const struct moeep_image *image = moeep_image_find(kernel_table[id].image);
	const struct moeep_cu *cu = cuda->cu;
	CUresult result = cu->cuModuleLoadData(&kernel->module, image->start);
	int blocks = 0;

	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result,
				     "loading the kernels of %s for device %d (%s, sm_%d)",
				     image->name, cuda->ordinal, cuda->name, cuda->capability);
	}
	result = cu->cuModuleGetFunction(&kernel->function, kernel->module,
					 kernel_table[id].function);
	if (result == CUDA_SUCCESS) {
		result = cu->cuFuncGetAttribute(&kernel->static_shared,
						CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
						kernel->function);
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuFuncSetAttribute(kernel->function,
						CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
						cuda->max_shared - kernel->static_shared);
	}
	/* To ask makes the driver load it now: at the first launch others may be spinning already. */
	kernel->threads = kernel_table[id].threads;
	if (result == CUDA_SUCCESS) {
		result = cu->cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel->function,
									 kernel->threads, 0);
	}
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "preparing kernel %s", kernel_table[id].function);
	}
	return MOEEP_OK;
}
#endif

int moeep_cuda_resident(const struct moeep_cuda *cuda, enum moeep_cuda_kernel_id id,
			size_t shared_bytes)
{
	int blocks = 0;

	if (cuda->cu->cuOccupancyMaxActiveBlocksPerMultiprocessor(
		    &blocks, cuda->kernels[id].function, cuda->kernels[id].threads, shared_bytes) !=
	    CUDA_SUCCESS) {
		return 0;
	}
	return blocks * cuda->sms / cuda->ranks_here;
}

int moeep_cuda_alloc(struct moeep_cuda *cuda, size_t bytes, CUdeviceptr *memory)
{
	const struct moeep_cu *cu = cuda->cu;
	CUresult result;

	*memory = 0;
	bytes = bytes > 0 ? bytes : 1;
	result = cu->cuMemAllocAsync(memory, bytes, cuda->stream);
	if (result != CUDA_SUCCESS) {
		*memory = 0;
		return moeep_cu_fail(cu, result, "allocating %zu bytes of device memory", bytes);
	}
	result = cu->cuMemsetD8Async(*memory, 0, bytes, cuda->stream);
	if (result == CUDA_SUCCESS) {
		result = cu->cuStreamSynchronize(cuda->stream);
	}
	if (result != CUDA_SUCCESS) {
		moeep_cuda_free(cuda, *memory);
		*memory = 0;
		return moeep_cu_fail(cu, result, "zeroing %zu bytes of device memory", bytes);
	}
	return MOEEP_OK;
}

void moeep_cuda_free(struct moeep_cuda *cuda, CUdeviceptr memory)
{
	if (memory) {
		(void)cuda->cu->cuMemFreeAsync(memory, cuda->stream);
	}
}

int moeep_cuda_put(struct moeep_cuda *cuda, CUdeviceptr to, const void *from, size_t bytes)
{
	const struct moeep_cu *cu = cuda->cu;
	CUresult result = cu->cuMemcpyHtoDAsync(to, from, bytes, cuda->stream);

	if (result == CUDA_SUCCESS) {
		result = cu->cuStreamSynchronize(cuda->stream);
	}
	return result == CUDA_SUCCESS
		       ? MOEEP_OK
		       : moeep_cu_fail(cu, result, "copying %zu bytes to the device", bytes);
}

static int open_memory(struct moeep_comm *comm)
{
	struct moeep_cuda *cuda = comm->cuda;
	size_t ranks = (size_t)comm->num_ranks;
	void *shared = NULL;
	int rc;

	cuda->region_slots = REGION_SLOTS;
	while (cuda->region_slots > 16 &&
	       cuda->region_slots * ranks * sizeof(void *) > REGION_TABLE_BYTES) {
		cuda->region_slots /= 2;
	}
	cuda->region_ids = calloc(cuda->region_slots, sizeof(*cuda->region_ids));
	if (!cuda->region_ids) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a table of regions");
	}
	rc = moeep_pinned_alloc(&cuda->pinned, cuda->cu, sizeof(*cuda->shared), &shared);
	cuda->shared = shared;
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_alloc(cuda, sizeof(struct moeep_dev_comm), &cuda->dev_comm);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_alloc(cuda, cuda->region_slots * sizeof(struct moeep_dev_region),
				      &cuda->dev_regions);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_alloc(cuda, cuda->region_slots * ranks * sizeof(void *),
				      &cuda->dev_region_base);
	}
	return rc;
}

static int open_context(struct moeep_comm *comm)
{
	struct moeep_cuda *cuda = comm->cuda;
	CUresult result;
	int rc = check_device(cuda);

	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cuda->cu->cuStreamCreate(&cuda->stream, CU_STREAM_NON_BLOCKING);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cuda->cu, result, "cuStreamCreate");
	}
#if MOEEP_HAVE_CUDA
	for (int id = 0; id < MOEEP_CUDA_KERNELS && rc == MOEEP_OK; id++) {
		rc = load_kernel(cuda, id);
	}
#endif
	return rc == MOEEP_OK ? open_memory(comm) : rc;
}

int moeep_cuda_open(struct moeep_comm *comm, int device_plus_one)
{
	struct moeep_cuda *cuda;
	int rc;

#if !MOEEP_HAVE_CUDA
	return moeep_fail(MOEEP_ERR_UNSUPPORTED, "this build has no CUDA kernels: %s",
			  MOEEP_REASON_CUDA);
#endif
	cuda = calloc(1, sizeof(*cuda));
	if (!cuda) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a device's description");
	}
	moeep_pinned_init(&cuda->pinned);
	cuda->ranks_here = 1;
	comm->cuda = cuda;
	rc = moeep_cu_load(&cuda->cu);
	if (rc == MOEEP_OK) {
		rc = choose_device(cuda, device_plus_one);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_cuda_enter(cuda);
		if (rc == MOEEP_OK) {
			rc = open_context(comm);
			moeep_cuda_leave(cuda);
		}
	}
	if (rc != MOEEP_OK) {
		moeep_cuda_close(comm);
	}
	return rc;
}

void moeep_cuda_close(struct moeep_comm *comm)
{
	struct moeep_cuda *cuda = comm->cuda;

	if (!cuda) {
		return;
	}
	moeep_cuda_unwatch(comm);
	if (cuda->context && moeep_cuda_enter(cuda) == MOEEP_OK) {
		moeep_cuda_free(cuda, cuda->dev_region_base);
		moeep_cuda_free(cuda, cuda->dev_regions);
		moeep_cuda_free(cuda, cuda->dev_comm);
		if (cuda->stream) {
			(void)cuda->cu->cuStreamSynchronize(cuda->stream);
			(void)cuda->cu->cuStreamDestroy(cuda->stream);
		}
		for (int id = 0; id < MOEEP_CUDA_KERNELS; id++) {
			if (cuda->kernels[id].module) {
				(void)cuda->cu->cuModuleUnload(cuda->kernels[id].module);
			}
		}
		moeep_pinned_fini(&cuda->pinned, cuda->cu);
		moeep_cuda_leave(cuda);
	}
	if (cuda->primary) {
		(void)cuda->cu->cuDevicePrimaryCtxRelease(cuda->device);
	}
	free(cuda->region_ids);
	free(cuda);
	comm->cuda = NULL;
}

/* What ranks tell each other of their GPUs. */
struct announcement {
	CUuuid uuid;
	int32_t capability;
	int32_t ordinal;
};

int moeep_cuda_join(struct moeep_comm *comm)
{
	struct moeep_cuda *cuda = comm->cuda;
	const struct moeep_cu *cu = cuda->cu;
	struct announcement mine = {.uuid = cuda->uuid,
				    .capability = cuda->capability,
				    .ordinal = cuda->ordinal};
	struct announcement *all = calloc((size_t)comm->num_ranks, sizeof(*all));
	int rc = moeep_comm_agree(
		comm, all ? MOEEP_OK : moeep_fail(MOEEP_ERR_NOMEM, "no memory for devices"));

	if (rc == MOEEP_OK) {
		rc = moeep_comm_gather(comm, &mine, all, sizeof(mine));
	}
	if (rc != MOEEP_OK) {
		free(all);
		return rc;
	}
	cuda->ranks_here = 0;
	for (int rank = 0; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		bool same = memcmp(&all[rank].uuid, &mine.uuid, sizeof(mine.uuid)) == 0;
		int count = 0;

		cuda->ranks_here += same;
		(void)cu->cuDeviceGetCount(&count);
		for (int peer = 0; !same && peer < count; peer++) {
			CUdevice device;
			CUuuid uuid;
			int can = 0;

			if (cu->cuDeviceGet(&device, peer) != CUDA_SUCCESS ||
			    cu->cuDeviceGetUuid(&uuid, device) != CUDA_SUCCESS ||
			    memcmp(&uuid, &all[rank].uuid, sizeof(uuid)) != 0) {
				continue;
			}
			if (cu->cuDeviceCanAccessPeer(&can, cuda->device, device) !=
				    CUDA_SUCCESS ||
			    !can) {
				rc = moeep_fail(MOEEP_ERR_UNSUPPORTED,
						"device %d (%s) cannot reach the memory of device "
						"%d, which rank %d uses",
						cuda->ordinal, cuda->name, peer, rank);
			}
		}
	}
	free(all);
	if (rc == MOEEP_OK && cuda->ranks_here > cuda->sms) {
		rc = moeep_fail(MOEEP_ERR_UNSUPPORTED,
				"%d ranks are on device %d (%s), which has %d SMs: their kernels "
				"cannot all be resident",
				cuda->ranks_here, cuda->ordinal, cuda->name, cuda->sms);
	}
	return moeep_comm_agree(comm, rc);
}
