/* SPDX-License-Identifier: MIT */
/* cuda/device.c - a comm's part of a GPU: the words its kernels share with the host, small memory.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/device.h"

/* Entries of the table of symmetric memory, less with very many ranks. */
#define REGION_SLOTS	   1024
#define REGION_TABLE_BYTES (8u << 20)

int moeep_cuda_enter(const struct moeep_cuda *cuda)
{
	CUresult result = cuda->cu->cuCtxPushCurrent(cuda->context->context);

	return result == CUDA_SUCCESS ? MOEEP_OK
				      : moeep_cu_fail(cuda->cu, result, "cuCtxPushCurrent");
}

void moeep_cuda_leave(const struct moeep_cuda *cuda)
{
	CUcontext context;

	(void)cuda->cu->cuCtxPopCurrent(&context);
}

int moeep_cuda_resident(const struct moeep_cuda *cuda, enum moeep_cuda_kernel_id id,
			size_t shared_bytes)
{
	int blocks = 0;

	if (cuda->cu->cuOccupancyMaxActiveBlocksPerMultiprocessor(
		    &blocks, cuda->context->kernels[id].function,
		    cuda->context->kernels[id].threads, shared_bytes) != CUDA_SUCCESS) {
		return 0;
	}
	return blocks * cuda->context->sms / cuda->ranks_here;
}

int moeep_cuda_alloc(struct moeep_cuda *cuda, size_t bytes, CUdeviceptr *memory)
{
	const struct moeep_cu *cu = cuda->cu;
	const char *call = "cuMemsetD8Async";
	CUresult result;

	*memory = 0;
	bytes = bytes > 0 ? bytes : 1;
	result = cu->cuMemAllocAsync(memory, bytes, cuda->stream);
	if (result != CUDA_SUCCESS) {
		*memory = 0;
		return moeep_cu_fail(cu, result, "cuMemAllocAsync of %zu bytes", bytes);
	}
	result = cu->cuMemsetD8Async(*memory, 0, bytes, cuda->stream);
	if (result == CUDA_SUCCESS) {
		call = "cuStreamSynchronize";
		result = cu->cuStreamSynchronize(cuda->stream);
	}
	if (result != CUDA_SUCCESS) {
		moeep_cuda_free(cuda, *memory);
		*memory = 0;
		return moeep_cu_fail(cu, result, "%s, zeroing %zu bytes of device memory", call,
				     bytes);
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
	const char *call = "cuMemcpyHtoDAsync";
	CUresult result = cu->cuMemcpyHtoDAsync(to, from, bytes, cuda->stream);

	if (result == CUDA_SUCCESS) {
		call = "cuStreamSynchronize";
		result = cu->cuStreamSynchronize(cuda->stream);
	}
	return result == CUDA_SUCCESS ? MOEEP_OK
				      : moeep_cu_fail(cu, result, "%s of %zu bytes", call, bytes);
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
	rc = moeep_pinned_alloc(&cuda->context->pinned, cuda->cu, sizeof(*cuda->shared), &shared);
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

static int open_stream(struct moeep_comm *comm)
{
	struct moeep_cuda *cuda = comm->cuda;
	CUresult result = moeep_cuda_stream_create(cuda->context, &cuda->stream);

	return result == CUDA_SUCCESS ? open_memory(comm)
				      : moeep_cu_fail(cuda->cu, result, "the stream of a comm");
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
	cuda->ranks_here = 1;
	comm->cuda = cuda;
	rc = moeep_cuda_context_get(device_plus_one, &cuda->context);
	if (rc == MOEEP_OK) {
		cuda->cu = cuda->context->cu;
		rc = moeep_cuda_enter(cuda);
	}
	if (rc == MOEEP_OK) {
		rc = open_stream(comm);
		moeep_cuda_leave(cuda);
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
		moeep_pinned_free(&cuda->context->pinned, cuda->shared);
		moeep_cuda_leave(cuda);
	}
	moeep_cuda_context_put(cuda->context);
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

/*
 * Memory of cudaMalloc() on another device of this process, which a thread rank may register, is
 * only reached with this. Windows do not need it, so a failure shows when such memory is used.
 */
static void open_peer(struct moeep_cuda *cuda, CUdevice device)
{
	CUcontext peer = NULL;

	if (cuda->cu->cuDevicePrimaryCtxRetain(&peer, device) == CUDA_SUCCESS) {
		if (moeep_cuda_enter(cuda) == MOEEP_OK) {
			(void)cuda->cu->cuCtxEnablePeerAccess(peer, 0);
			moeep_cuda_leave(cuda);
		}
		(void)cuda->cu->cuDevicePrimaryCtxRelease(device);
	}
}

int moeep_cuda_join(struct moeep_comm *comm)
{
	struct moeep_cuda *cuda = comm->cuda;
	const struct moeep_cu *cu = cuda->cu;
	struct announcement mine = {.uuid = cuda->context->uuid,
				    .capability = cuda->context->capability,
				    .ordinal = cuda->context->device};
	struct announcement *all = calloc((size_t)comm->num_ranks, sizeof(*all));
	int rc = moeep_comm_agree(comm, all ? MOEEP_OK
					    : moeep_fail(MOEEP_ERR_NOMEM, "no memory for devices"));

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
			if (cu->cuDeviceCanAccessPeer(&can, cuda->context->device, device) !=
				    CUDA_SUCCESS ||
			    !can) {
				rc = moeep_fail(MOEEP_ERR_UNSUPPORTED,
						"device %d (%s) cannot reach the memory of device "
						"%d, which rank %d uses",
						cuda->context->device, cuda->context->name, peer,
						rank);
			} else if (comm->peers[rank].transport == MOEEP_TRANSPORT_PROCESS) {
				open_peer(cuda, device);
			}
		}
	}
	free(all);
	if (rc == MOEEP_OK && cuda->ranks_here > cuda->context->sms) {
		rc = moeep_fail(MOEEP_ERR_UNSUPPORTED,
				"%d ranks are on device %d (%s), which has %d SMs: their kernels "
				"cannot all be resident",
				cuda->ranks_here, cuda->context->device, cuda->context->name,
				cuda->context->sms);
	}
	return moeep_comm_agree(comm, rc);
}
