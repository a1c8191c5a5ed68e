/* SPDX-License-Identifier: MIT */
/*
 * An allocator over one region of shared memory, for tests whose memory must be of one kind that is
 * made once: pinned for a device, say. Threads use it at the same time, and so do processes that
 * are forked after it was made: they share one heap, and see each other's blocks at the same place.
 */
#ifndef T_ARENA_H
#define T_ARENA_H

#include <stdbool.h>
#include <stddef.h>

/* Blocks are aligned to it, and take a multiple of it. */
#define ARENA_ALIGN 64

struct arena;

/* Its memory is zeroed, and comes when it is touched. NULL if there is none to be had. */
struct arena *arena_make(size_t bytes);
void arena_destroy(struct arena *arena);

/* NULL if no gap is large enough. The memory is what its last user left there. */
void *arena_alloc(struct arena *arena, size_t bytes);
/* NULL is a no-op; what is no block in use ends the program. */
void arena_free(struct arena *arena, const void *memory);
bool arena_has(const struct arena *arena, const void *memory);
/* Free what processes other than this one have left; they must have ended. */
void arena_reap(struct arena *arena);

/* All of it, in whole pages. */
void arena_region(struct arena *arena, void **start, size_t *bytes);
/* Bytes in use, and the most that ever were, both with what the allocator itself takes. */
void arena_usage(struct arena *arena, size_t *now, size_t *most);

#endif /* T_ARENA_H */
