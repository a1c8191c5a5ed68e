/* SPDX-License-Identifier: MIT */
/*
 * cuda/pinned.h - small pieces of pinned memory for words that kernels write and the host reads.
 *
 * They come from a few large allocations: to allocate or free pinned memory of the driver may wait
 * for kernels that run, which may wait for this rank.
 */
#ifndef MOEEP_CUDA_PINNED_H
#define MOEEP_CUDA_PINNED_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/driver.h"

struct moeep_pinned_piece {
	struct moeep_pinned_piece *next; /* by address within a block */
	size_t offset;
	size_t bytes;
	char *block;
};

struct moeep_pinned_block {
	struct moeep_pinned_block *next;
	char *memory;
	size_t bytes;
	struct moeep_pinned_piece *used;
};

struct moeep_pinned {
	pthread_mutex_t lock;
	struct moeep_pinned_block *blocks;
};

void moeep_pinned_init(struct moeep_pinned *pinned);
/* With the comm's context current, as for the calls below. */
void moeep_pinned_fini(struct moeep_pinned *pinned, const struct moeep_cu *cu);

/* Zeroed, aligned to 64 bytes; its address is the same for the device. */
int moeep_pinned_alloc(struct moeep_pinned *pinned, const struct moeep_cu *cu, size_t bytes,
		       void **memory);
/* NULL is a no-op. */
void moeep_pinned_free(struct moeep_pinned *pinned, void *memory);

#endif
