/* SPDX-License-Identifier: MIT */
/* cuda/pinned.c - first fit over a few large blocks of pinned memory. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "cuda/pinned.h"

#define BLOCK_BYTES ((size_t)1 << 20)
#define UNIT	    64

void moeep_pinned_init(struct moeep_pinned *pinned)
{
	memset(pinned, 0, sizeof(*pinned));
	pthread_mutex_init(&pinned->lock, NULL);
}

void moeep_pinned_fini(struct moeep_pinned *pinned, const struct moeep_cu *cu)
{
	while (pinned->blocks) {
		struct moeep_pinned_block *block = pinned->blocks;

		pinned->blocks = block->next;
		while (block->used) {
			struct moeep_pinned_piece *piece = block->used;

			block->used = piece->next;
			free(piece);
		}
		(void)cu->cuMemFreeHost(block->memory);
		free(block);
	}
	pthread_mutex_destroy(&pinned->lock);
}

static int block_add(struct moeep_pinned *pinned, const struct moeep_cu *cu, size_t least)
{
	struct moeep_pinned_block *block = calloc(1, sizeof(*block));
	size_t bytes = least > BLOCK_BYTES ? least : BLOCK_BYTES;
	void *memory = NULL;
	CUresult result;

	if (!block) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a block of pinned memory");
	}
	result = cu->cuMemHostAlloc(&memory, bytes,
				    CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
	if (result != CUDA_SUCCESS) {
		free(block);
		return moeep_cu_fail(cu, result, "cuMemHostAlloc of %zu bytes", bytes);
	}
	block->memory = memory;
	block->bytes = bytes;
	block->next = pinned->blocks;
	pinned->blocks = block;
	return MOEEP_OK;
}

/* The first gap that is large enough, or NULL. */
static char *block_take(struct moeep_pinned_block *block, size_t bytes,
			struct moeep_pinned_piece *piece)
{
	struct moeep_pinned_piece **link = &block->used;
	size_t at = 0;

	while (*link && (*link)->offset - at < bytes) {
		at = (*link)->offset + (*link)->bytes;
		link = &(*link)->next;
	}
	if (!*link && block->bytes - at < bytes) {
		return NULL;
	}
	piece->offset = at;
	piece->bytes = bytes;
	piece->block = block->memory;
	piece->next = *link;
	*link = piece;
	return block->memory + at;
}

int moeep_pinned_alloc(struct moeep_pinned *pinned, const struct moeep_cu *cu, size_t bytes,
		       void **memory)
{
	struct moeep_pinned_piece *piece = calloc(1, sizeof(*piece));
	char *found = NULL;
	int rc = MOEEP_OK;

	if (!piece) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a piece of pinned memory");
	}
	bytes = (bytes + UNIT - 1) / UNIT * UNIT;
	pthread_mutex_lock(&pinned->lock);
	for (int tries = 0; !found && tries < 2 && rc == MOEEP_OK; tries++) {
		for (struct moeep_pinned_block *block = pinned->blocks; block && !found;
		     block = block->next) {
			found = block_take(block, bytes, piece);
		}
		if (!found && tries == 0) {
			rc = block_add(pinned, cu, bytes);
		}
	}
	pthread_mutex_unlock(&pinned->lock);
	if (!found) {
		free(piece);
		return rc;
	}
	memset(found, 0, bytes);
	*memory = found;
	return MOEEP_OK;
}

void moeep_pinned_free(struct moeep_pinned *pinned, void *memory)
{
	struct moeep_pinned_piece *piece = NULL;
	char *at = memory;

	if (!memory) {
		return;
	}
	pthread_mutex_lock(&pinned->lock);
	for (struct moeep_pinned_block *block = pinned->blocks; block && !piece;
	     block = block->next) {
		for (struct moeep_pinned_piece **link = &block->used; *link;
		     link = &(*link)->next) {
			if ((*link)->block + (*link)->offset == at) {
				piece = *link;
				*link = piece->next;
				break;
			}
		}
	}
	pthread_mutex_unlock(&pinned->lock);
	free(piece);
}
