/* SPDX-License-Identifier: MIT */
/*
 * cuda/device.h - what a comm has of its GPU: driver, context, kernels, the words that its kernels
 * share with the host, and the thread that watches over them.
 */
#ifndef MOEEP_CUDA_DEVICE_H
#define MOEEP_CUDA_DEVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <moeep/moeep.h>

#include "cuda/driver.h"
#include "cuda/pinned.h"
#include "kernels/args.h"

struct moeep_comm;
struct moeep_region;

enum moeep_cuda_kernel_id {
	MOEEP_CUDA_LAYOUT,
	MOEEP_CUDA_HT_ROUTE,
	MOEEP_CUDA_HT_MOVE,
	MOEEP_CUDA_HT_EXPAND,
	MOEEP_CUDA_HT_COMBINE,
	MOEEP_CUDA_LL_DISPATCH,
	MOEEP_CUDA_LL_COMBINE,
	MOEEP_CUDA_KERNELS
};

struct moeep_cuda_kernel {
	CUmodule module;
	CUfunction function;
	int threads;
	int static_shared; /* bytes */
};

struct moeep_cuda {
	const struct moeep_cu *cu;
	CUdevice device;
	CUcontext context;
	bool primary; /* the context is the device's primary one, retained */
	int ordinal;
	int capability; /* 90 for 9.0 */
	int sms;
	int max_shared; /* bytes of a block */
	int ranks_here; /* of the comm, on this GPU */
	bool bulk;	/* the copy engine of blocks can be used */
	CUuuid uuid;
	char name[64];
	struct moeep_cuda_kernel kernels[MOEEP_CUDA_KERNELS];

	CUstream stream; /* of the library's own small copies */
	struct moeep_pinned pinned;
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
};

/*
 * Open the device that the config asks for, and load the kernels. What is missing, or does not suit,
 * is MOEEP_ERR_UNSUPPORTED with the cause.
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
