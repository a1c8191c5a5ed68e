/* SPDX-License-Identifier: MIT */
/* The tests' own allocator: blocks apart, memory that comes back, threads, processes. */
#include "config.h"

#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "t/arena.h"
#include "t/tap.h"

#define BYTES	1000000
#define BLOCKS	40
#define ROUNDS	4000
#define WORKERS 4

struct worker {
	struct arena *arena;
	unsigned char mark; /* what its blocks are filled with */
	int bad;
	pthread_t thread;
};

static int count_other(const unsigned char *memory, size_t bytes, unsigned char mark)
{
	int other = 0;

	for (size_t i = 0; i < bytes; i++) {
		other += memory[i] != mark;
	}
	return other;
}

/* Blocks come and go; each keeps what was written into it. */
static void *work(void *arg)
{
	struct worker *worker = arg;
	unsigned char *block[BLOCKS] = {NULL};
	size_t bytes[BLOCKS] = {0};
	uint32_t state = worker->mark;

	for (int round = 0; round < ROUNDS; round++) {
		int i;

		state = state * 1664525u + 1013904223u;
		i = (int)(state >> 16) % BLOCKS;
		if (block[i]) {
			worker->bad += count_other(block[i], bytes[i], worker->mark);
			arena_free(worker->arena, block[i]);
			block[i] = NULL;
			continue;
		}
		bytes[i] = state >> 8 & 2047;
		block[i] = arena_alloc(worker->arena, bytes[i]);
		if (!block[i] || (uintptr_t)block[i] % ARENA_ALIGN != 0) {
			worker->bad++;
			continue;
		}
		memset(block[i], worker->mark, bytes[i]);
	}
	for (int i = 0; i < BLOCKS; i++) {
		arena_free(worker->arena, block[i]);
	}
	return NULL;
}

static void is_empty(struct arena *arena, const char *when)
{
	size_t now, most;
	void *all;

	arena_usage(arena, &now, &most);
	is_u64(now, 0, "nothing is in use %s", when);
	all = arena_alloc(arena, BYTES - 1000);
	ok(all != NULL, "all is one gap again %s", when);
	arena_free(arena, all);
}

static void threads(struct arena *arena)
{
	struct worker worker[WORKERS];
	int bad = 0;

	for (int i = 0; i < WORKERS; i++) {
		worker[i] = (struct worker){.arena = arena, .mark = (unsigned char)(i + 1)};
		if (pthread_create(&worker[i].thread, NULL, work, &worker[i]) != 0) {
			tap_bail("pthread_create");
		}
	}
	for (int i = 0; i < WORKERS; i++) {
		pthread_join(worker[i].thread, NULL);
		bad += worker[i].bad;
	}
	is_int(bad, 0, "threads keep to their blocks");
	is_empty(arena, "after threads");
}

/* Children use the heap of the parent, and leave a block each. */
static void processes(struct arena *arena)
{
	unsigned char *own = arena_alloc(arena, 5000);
	pid_t pid[WORKERS];
	size_t now, most;
	int bad = 0, status;

	memset(own, 0x77, 5000);
	for (int i = 0; i < WORKERS; i++) {
		pid[i] = fork();
		if (pid[i] == 0) {
			struct worker worker = {.arena = arena, .mark = (unsigned char)(i + 1)};

			work(&worker);
			_exit(worker.bad != 0 || arena_alloc(arena, 3000) == NULL);
		}
	}
	for (int i = 0; i < WORKERS; i++) {
		bad += pid[i] < 0 || waitpid(pid[i], &status, 0) != pid[i] || status != 0;
	}
	is_int(bad, 0, "processes keep to their blocks");
	is_int(count_other(own, 5000, 0x77), 0, "and leave their parent's alone");
	arena_usage(arena, &now, &most);
	ok(now > 5000 + WORKERS * 3000, "what they have left is in use: %zu bytes", now);
	arena_reap(arena);
	arena_usage(arena, &now, &most);
	ok(now > 5000 && now < 6000, "reaped, all but the parent's: %zu bytes", now);
	arena_free(arena, own);
	is_empty(arena, "after processes");
}

int main(void)
{
	struct arena *arena = arena_make(BYTES);
	size_t bytes, now, most;
	void *start, *all;
	char outside;

	if (!arena) {
		tap_bail("no arena");
	}
	arena_region(arena, &start, &bytes);
	ok(bytes >= BYTES && (uintptr_t)start % 4096 == 0, "whole pages: %zu bytes at %p", bytes,
	   start);
	ok(arena_alloc(arena, 2 * (size_t)BYTES) == NULL, "more than all is refused");
	ok(arena_alloc(arena, SIZE_MAX) == NULL, "as is more than there can be");
	all = arena_alloc(arena, BYTES - 1000);
	ok(all != NULL && arena_alloc(arena, 8192) == NULL, "one block, and no room beside it");
	ok(arena_has(arena, all) && !arena_has(arena, &outside), "its memory is known");
	arena_free(arena, all);
	arena_free(arena, NULL);
	is_empty(arena, "at first");
	threads(arena);
	processes(arena);
	arena_usage(arena, &now, &most);
	ok(most >= BYTES - 1000, "the most was %zu bytes", most);
	arena_destroy(arena);
	return tap_done();
}
