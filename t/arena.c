/* SPDX-License-Identifier: MIT */
/* t/arena.c - first fit over blocks that lie side by side, each behind a header. */
#include "config.h"

#include "t/arena.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include "t/tap.h"

#define MAGIC UINT64_C(0x6d6f656570617265)

/* In front of each block's memory. */
struct block {
	size_t bytes; /* this header included */
	uint64_t magic;
	pid_t owner; /* 0: free */
} __attribute__((aligned(ARENA_ALIGN)));

struct arena {
	size_t bytes; /* of the region, this structure included */
	size_t used, most;
	pthread_mutex_t lock;
} __attribute__((aligned(ARENA_ALIGN)));

static struct block *first_block(struct arena *arena)
{
	return (struct block *)(arena + 1);
}

/* What lies behind a block; the last one has nothing there. */
static struct block *behind(struct block *block)
{
	return (struct block *)(void *)((char *)block + block->bytes);
}

/* NULL behind the last one. */
static struct block *next_block(struct arena *arena, struct block *block)
{
	struct block *next = behind(block);

	return (char *)next < (char *)arena + arena->bytes ? next : NULL;
}

static void lock(struct arena *arena)
{
	/* Its holder was killed: that run has failed, and the next ones are still worth a try. */
	if (pthread_mutex_lock(&arena->lock) == EOWNERDEAD) {
		pthread_mutex_consistent(&arena->lock);
	}
}

static void unlock(struct arena *arena)
{
	pthread_mutex_unlock(&arena->lock);
}

struct arena *arena_make(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t whole = (bytes + sizeof(struct arena) + page - 1) / page * page;
	struct arena *arena =
		mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t attributes;

	if (arena == MAP_FAILED) {
		return NULL;
	}
	arena->bytes = whole;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&arena->lock, &attributes);
	pthread_mutexattr_destroy(&attributes);
	*first_block(arena) = (struct block){
		.bytes = whole - sizeof(*arena),
		.magic = MAGIC,
	};
	return arena;
}

void arena_destroy(struct arena *arena)
{
	pthread_mutex_destroy(&arena->lock);
	munmap(arena, arena->bytes);
}

/* Free blocks become one with the free ones behind them as a search comes along. */
static void merge(struct arena *arena, struct block *block)
{
	struct block *next;

	while ((next = next_block(arena, block)) != NULL && next->owner == 0) {
		block->bytes += next->bytes;
		next->magic = 0;
	}
}

static struct block *find(struct arena *arena, size_t bytes)
{
	for (struct block *b = first_block(arena); b; b = next_block(arena, b)) {
		if (b->magic != MAGIC) {
			tap_bail("the arena's header at %p was overwritten", (void *)b);
		}
		if (b->owner == 0) {
			merge(arena, b);
			if (b->bytes >= bytes) {
				return b;
			}
		}
	}
	return NULL;
}

void *arena_alloc(struct arena *arena, size_t bytes)
{
	size_t need = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN + sizeof(struct block);
	struct block *block;

	if (need < bytes) {
		return NULL;
	}
	lock(arena);
	block = find(arena, need);
	if (block) {
		size_t rest = block->bytes - need;

		if (rest > 0) {
			block->bytes = need;
			*behind(block) = (struct block){.bytes = rest, .magic = MAGIC};
		}
		block->owner = getpid();
		arena->used += need;
		arena->most = arena->used > arena->most ? arena->used : arena->most;
	}
	unlock(arena);
	return block ? block + 1 : NULL;
}

static void release(struct arena *arena, struct block *block)
{
	block->owner = 0;
	arena->used -= block->bytes;
}

void arena_free(struct arena *arena, const void *memory)
{
	struct block *block;

	if (!memory) {
		return;
	}
	block = (struct block *)(uintptr_t)memory - 1;
	if (!arena_has(arena, memory) || block->magic != MAGIC || block->owner == 0) {
		tap_bail("%p is freed, but is no block in use of the arena", memory);
	}
	lock(arena);
	release(arena, block);
	unlock(arena);
}

bool arena_has(const struct arena *arena, const void *memory)
{
	const char *start = (const char *)arena, *at = memory;

	return at >= start + sizeof(*arena) + sizeof(struct block) && at < start + arena->bytes;
}

void arena_reap(struct arena *arena)
{
	lock(arena);
	for (struct block *b = first_block(arena); b; b = next_block(arena, b)) {
		if (b->owner != 0 && b->owner != getpid()) {
			release(arena, b);
		}
	}
	unlock(arena);
}

void arena_region(struct arena *arena, void **start, size_t *bytes)
{
	*start = arena;
	*bytes = arena->bytes;
}

void arena_usage(struct arena *arena, size_t *now, size_t *most)
{
	lock(arena);
	*now = arena->used;
	*most = arena->most;
	unlock(arena);
}
