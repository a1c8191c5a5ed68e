/* SPDX-License-Identifier: MIT */
/* cuda/context.h - what the ranks of a process share of a GPU. */
#ifndef MOEEP_CUDA_CONTEXT_H
#define MOEEP_CUDA_CONTEXT_H

#include <pthread.h>
#include <stdbool.h>

#include "cuda/driver.h"
#include "cuda/pinned.h"
#include "kernels/args.h"

enum moeep_cuda_kernel_id {
	MOEEP_CUDA_LAYOUT,
	MOEEP_CUDA_HT_DISPATCH,
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

struct moeep_cuda_context {
	struct moeep_cuda_context *next;
	int refs;
	const struct moeep_cu *cu;
	CUdevice device; /* its ordinal in this process */
	CUcontext context;
	bool primary;	/* the context is the device's primary one, retained */
	int capability; /* 90 for 9.0 */
	int sms;
	int max_shared; /* bytes of a block */
	bool bulk;	/* blocks can use the copy engine */
	bool dependent; /* kernels wait by themselves for the one before them, see launch.c */
	CUuuid uuid;
	char name[64];
	struct moeep_cuda_kernel kernels[MOEEP_CUDA_KERNELS];
	struct moeep_pinned pinned;
};

/*
 * A reference to the device that is asked for, or the current context's, its kernels loaded. What
 * is missing, or does not suit, is MOEEP_ERR_UNSUPPORTED with the cause.
 */
int moeep_cuda_context_get(int device_plus_one, struct moeep_cuda_context **context);
/*
 * A stream that has been used once. The driver chooses a stream's hardware queue at its first
 * kernel; if several threads begin at once, it may choose one queue for their streams though others
 * are free, and then a kernel that waits holds up the one that it waits for.
 */
CUresult moeep_cuda_stream_create(const struct moeep_cuda_context *context, CUstream *stream);
/* NULL is a no-op. */
void moeep_cuda_context_put(struct moeep_cuda_context *context);

#endif
