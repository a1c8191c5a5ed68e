/* SPDX-License-Identifier: MIT */
/*
 * cuda/device.h - what a comm has of its GPU: the words that its kernels share with the host, and
 * the thread that watches over them.
 */
#ifndef MOEEP_CUDA_DEVICE_H
#define MOEEP_CUDA_DEVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <moeep/moeep.h>

#include "cuda/context.h"

struct moeep_comm;
struct moeep_region;

struct moeep_cuda {
	struct moeep_cuda_context *context;
	const struct moeep_cu *cu; /* the context's */
	int ranks_here;		   /* of the comm, on this GPU */

	CUstream stream; /* of the library's own small copies */
	struct moeep_dev_shared *shared;
	CUdeviceptr dev_comm;

	/* Where symmetric memory is, for kernels: see moeep_cuda_region_set(). */
	uint32_t region_slots;
	uint32_t *region_ids; /* [slots] */
	CUdeviceptr dev_regions;
	CUdeviceptr dev_region_base;

	pthread_t watcher;
	bool watching;
	_Atomic bool stop;
	_Atomic bool reported;
	uint64_t refused_since; /* the watcher's: when it saw that; 0: not now */
};

/*
 * Open the device that the config asks for. What is missing, or does not suit, is
 * MOEEP_ERR_UNSUPPORTED with the cause.
 */
int moeep_cuda_open(struct moeep_comm *comm, int device_plus_one);

/* Once the comm knows its ranks: who shares the GPU, and can they reach each other. Collective. */
int moeep_cuda_join(struct moeep_comm *comm);

/* NULL is a no-op. */
void moeep_cuda_close(struct moeep_comm *comm);

/* Make the comm's context current for the calling thread, and restore its own. */
int moeep_cuda_enter(const struct moeep_cuda *cuda);
void moeep_cuda_leave(const struct moeep_cuda *cuda);

/* Device memory that no peer maps, zeroed. Neither call waits for kernels that run. */
int moeep_cuda_alloc(struct moeep_cuda *cuda, size_t bytes, CUdeviceptr *memory);
void moeep_cuda_free(struct moeep_cuda *cuda, CUdeviceptr memory);

/* Copy to the device, and wait for that alone. */
int moeep_cuda_put(struct moeep_cuda *cuda, CUdeviceptr to, const void *from, size_t bytes);

/* Blocks of a kernel that this rank may have resident beside the other ranks of its GPU. */
int moeep_cuda_resident(const struct moeep_cuda *cuda, enum moeep_cuda_kernel_id id,
			size_t shared_bytes);

/* A failure that kernels have found becomes the comm's. Then MOEEP_OK, or the comm's error. */
int moeep_cuda_check(struct moeep_comm *comm);

int moeep_cuda_watch(struct moeep_comm *comm);
void moeep_cuda_unwatch(struct moeep_comm *comm);

static inline void *moeep_cuda_pointer(CUdeviceptr memory)
{
	return (void *)(uintptr_t)memory;
}

#endif
