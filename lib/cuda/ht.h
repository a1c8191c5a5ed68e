/* SPDX-License-Identifier: MIT */
/* cuda/ht.h - what the high-throughput calls on a GPU share. */
#ifndef MOEEP_CUDA_HT_H
#define MOEEP_CUDA_HT_H

#include "cuda/launch.h"
#include "memory/region.h"

/* How a row is cut into the pieces that the copy engine moves. */
struct moeep_cuda_pieces {
	uint64_t bytes;
	int stages;    /* of each mover of a block */
	size_t shared; /* bytes of a block's shared memory */
};

struct moeep_cuda_pieces moeep_cuda_cut_rows(const struct moeep_cuda *cuda,
					     enum moeep_cuda_kernel_id id, size_t route_shared,
					     uint64_t row_bytes);

/* Shared memory that a block needs for the begin; what moves or sums rows has its own behind it. */
size_t moeep_cuda_route_shared(const struct moeep_geometry *g);

/* What is the same in the routing of all operations. */
void moeep_cuda_set_route(const struct moeep_cuda_call *call, struct moeep_ht_route_args *p);

/* A place in symmetric memory as an entry has it. */
struct moeep_dev_place moeep_cuda_place(const struct moeep_cuda_call *call,
					const struct moeep_place *place);

#endif
