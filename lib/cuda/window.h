/* SPDX-License-Identifier: MIT */
/* cuda/window.h - windows of device memory, and symmetric memory as kernels find it. */
#ifndef MOEEP_CUDA_WINDOW_H
#define MOEEP_CUDA_WINDOW_H

#include "cuda/device.h"
#include "memory/window.h"

/* As moeep_window_create() and moeep_window_map(). */
int moeep_cuda_window_create(struct moeep_cuda *cuda, size_t bytes, struct moeep_window **window);
int moeep_cuda_window_map(struct moeep_cuda *cuda, int fd, size_t bytes,
			  struct moeep_window **window);

/* What ranks tell each other of memory that their callers have. */
struct moeep_cuda_share {
	uint64_t pointer;
	uint64_t bytes;
	uint64_t offset; /* of the pointer in what the handle names */
	int32_t device;
	int32_t has_handle;
	CUipcMemHandle handle;
};

/* Can the caller's memory be shared, and how? `processes`: with other processes. */
int moeep_cuda_share_make(struct moeep_cuda *cuda, void *ptr, size_t bytes, bool processes,
			  struct moeep_cuda_share *share);
/* Map what another process shares; *opened is to be given to moeep_cuda_share_close(). */
int moeep_cuda_share_open(struct moeep_cuda *cuda, const struct moeep_cuda_share *share,
			  void **opened, char **base);
void moeep_cuda_share_close(struct moeep_cuda *cuda, void *opened);

/* Tell kernels where region `id` is on each rank; NULL: nowhere any more. */
int moeep_cuda_region_set(struct moeep_comm *comm, uint32_t id, char *const *bases);
/* The table's slot of a region, which kernels of peers find it by. */
uint32_t moeep_cuda_region_slot(const struct moeep_cuda *cuda, uint32_t id);

#endif
