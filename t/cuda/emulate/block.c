/* SPDX-License-Identifier: MIT */
/* A block of an emulated kernel: its threads take turns, and meet. */
#include "config.h"

#include "t/cuda/emulate/block.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "t/cuda/emulate/fiber.h"

#define STACK_BYTES ((size_t)64 << 10)
/* Whole pages of any size. */
#define SHARED_ROOM  ((size_t)256 << 10)
#define SHARED_GUARD ((size_t)64 << 10)
/* Of its beginning, and so of its end. */
#define SHARED_ALIGNMENT 128
#define CANARY		 UINT64_C(0x5afe57ac5afe57ac)

/* Rounds in which all threads of a block but yield, before its thread sleeps; and for how long. */
#define EAGER_ROUNDS 20
#define SLEEP_NS     50000

__thread struct emulated_thread *emulated_self;
__thread struct block *emulated_block;

static struct fiber *self(void)
{
	return (struct fiber *)(void *)emulated_self;
}

void emulated_fail(const char *text, ...)
{
	va_list args;

	flockfile(stderr);
	fprintf(stderr, "emulated %s, block %u, thread %u: ", emulated_block->kernel->name,
		emulated_self->block.x, emulated_self->thread.x);
	va_start(args, text);
	vfprintf(stderr, text, args);
	va_end(args);
	fputc('\n', stderr);
	funlockfile(stderr);
	abort();
}

unsigned int emulated_random(unsigned int limit)
{
	uint64_t x = emulated_block->random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	emulated_block->random = x;
	return (unsigned int)((x >> 33) % limit);
}

/* Turns. */

static void push(struct block *block, struct fiber *fiber)
{
	fiber->next = NULL;
	*block->last = fiber;
	block->last = &fiber->next;
	block->runnable++;
}

static void to_scheduler(void)
{
	fiber_switch(&self()->stack_pointer, emulated_block->stack_pointer);
}

void emulated_yield(void)
{
	struct block *block = emulated_block;

	block->idle++;
	push(block, self());
	to_scheduler();
}

static void fiber_entry(void)
{
	struct block *block = emulated_block;

	block->kernel->run(block->params);
	emulated_bulk_end();
	self()->done = true;
	block->left--;
	emulated_progress();
	to_scheduler();
}

/* Everybody who could run has looked and found nothing: other blocks' turn. */
static void rest(struct block *block)
{
	block->idle = 0;
	if (++block->rounds < EAGER_ROUNDS) {
		sched_yield();
	} else {
		nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
	}
}

static void stuck(struct block *block)
{
	const char *before = "";

	fprintf(stderr, "emulated %s: block %u is stuck; its threads:\n", block->kernel->name,
		block->fibers[0].self.block.x);
	for (int i = 0; i < block->threads; i++) {
		const struct fiber *fiber = &block->fibers[i];
		const char *state = fiber->done ? "have ended" : fiber->waits;

		if (strcmp(state, before) != 0) {
			fprintf(stderr, "  from %d on: %s\n", i, state);
			before = state;
		}
	}
	abort();
}

static void schedule(struct block *block)
{
	while (block->left > 0) {
		struct fiber *fiber = block->first;

		if (!fiber) {
			stuck(block);
		}
		block->first = fiber->next;
		if (!block->first) {
			block->last = &block->first;
		}
		block->runnable--;
		emulated_self = &fiber->self;
		fiber_switch(&block->stack_pointer, fiber->stack_pointer);
		if (block->idle > block->runnable) {
			rest(block);
		}
	}
}

/* Meetings. */

/* All lanes of a warp can run again, in some order. */
static void wake_warp(struct block *block, int warp)
{
	unsigned int from = emulated_random(32);
	unsigned int step = emulated_random(2) ? 1 : 31;

	for (unsigned int i = 0; i < 32; i++) {
		push(block, &block->fibers[warp * 32 + (int)((from + i * step) % 32)]);
	}
}

const uint64_t *emulated_meet(const char *purpose, uint32_t mask, uint64_t value)
{
	struct block *block = emulated_block;
	unsigned int lane = emulated_self->thread.x % 32;
	struct warp *warp = &block->warps[emulated_self->thread.x / 32];
	unsigned int generation = warp->generation;

	if (mask != 0xffffffffu) {
		emulated_fail("%s of lanes 0x%x", purpose, mask);
	}
	if (warp->arrived == 0) {
		warp->purpose = purpose;
	} else if (strcmp(warp->purpose, purpose) != 0) {
		emulated_fail("%s, while other lanes are at %s", purpose, warp->purpose);
	}
	warp->value[generation % 2][lane] = value;
	warp->arrived |= 1u << lane;
	emulated_progress();
	self()->waits = purpose;
	if (warp->arrived == mask) {
		warp->arrived = 0;
		warp->generation++;
		wake_warp(block, (int)emulated_self->thread.x / 32);
	}
	to_scheduler();
	return warp->value[generation % 2];
}

bool emulated_sync(int number, const char *purpose, int threads, bool value)
{
	struct block *block = emulated_block;
	struct meeting *meeting = &block->meetings[number];
	unsigned int generation = meeting->generation;

	if (meeting->arrived == 0) {
		meeting->purpose = purpose;
		meeting->expected = threads;
		meeting->all = true;
	} else if (strcmp(meeting->purpose, purpose) != 0 || meeting->expected != threads) {
		emulated_fail("%s of %d threads, while others are at %s of %d", purpose, threads,
			      meeting->purpose, meeting->expected);
	}
	meeting->all = meeting->all && value;
	meeting->arrived++;
	self()->waits = purpose;
	self()->next = meeting->waiting;
	meeting->waiting = self();
	emulated_progress();
	if (meeting->arrived == meeting->expected) {
		struct fiber *fiber = meeting->waiting;

		meeting->arrived = 0;
		meeting->waiting = NULL;
		meeting->result[generation % 2] = meeting->all;
		meeting->generation++;
		while (fiber) {
			struct fiber *next = fiber->next;

			push(block, fiber);
			fiber = next;
		}
	}
	to_scheduler();
	return meeting->result[generation % 2];
}

/* Blocks. */

struct block *emulated_block_make(void)
{
	struct block *block = calloc(1, sizeof(*block));

	if (!block) {
		return NULL;
	}
	block->fibers = calloc(EMULATED_THREADS, sizeof(*block->fibers));
	block->shared_room = mmap(NULL, SHARED_ROOM + SHARED_GUARD, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* Of each stack a page or two is used. */
	block->stacks = mmap(NULL, EMULATED_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!block->fibers || block->shared_room == MAP_FAILED || block->stacks == MAP_FAILED ||
	    mprotect(block->shared_room + SHARED_ROOM, SHARED_GUARD, PROT_NONE) != 0) {
		return NULL;
	}
	return block;
}

void emulated_block_run(struct block *block, const struct emulated_kernel *kernel,
			const void *params, unsigned int number, unsigned int blocks,
			unsigned int threads, size_t shared_bytes)
{
	const char *seed = getenv("FAKE_CUDA_SEED");
	unsigned int first;

	emulated_block = block;
	block->kernel = kernel;
	block->params = params;
	block->threads = block->left = (int)threads;
	block->first = NULL;
	block->last = &block->first;
	block->runnable = block->idle = block->rounds = 0;
	if (seed && block->random == 0) {
		block->random = strtoull(seed, NULL, 0) * 0x9e3779b97f4a7c15u;
	}
	block->random += number + 0x9e3779b97f4a7c15u;
	memset(block->warps, 0, sizeof(block->warps));
	memset(block->meetings, 0, sizeof(block->meetings));
	/* Its end is the guard's beginning, as far as alignment allows. */
	block->shared_bytes = shared_bytes;
	block->shared = block->shared_room + SHARED_ROOM -
			(shared_bytes + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT;
	/* Nobody may rely on what was there. */
	memset(block->shared, 0xa5, shared_bytes);
	first = emulated_random(threads / 32);
	for (unsigned int i = 0; i < threads; i++) {
		unsigned int at = (i + first * 32) % threads;
		struct fiber *fiber = &block->fibers[at];
		char *stack = block->stacks + at * STACK_BYTES;

		*fiber = (struct fiber){
			.self =
				{
					.thread = {at, 0, 0},
					.block = {number, 0, 0},
					.block_dim = {threads, 1, 1},
					.grid_dim = {blocks, 1, 1},
					.shared = block->shared,
				},
			.waits = "",
			.stack_pointer = fiber_prepare(stack, STACK_BYTES, fiber_entry),
		};
		memcpy(stack, &(uint64_t){CANARY}, sizeof(uint64_t));
		push(block, fiber);
	}
	schedule(block);
	emulated_bulk_drop();
	for (unsigned int i = 0; i < threads; i++) {
		if (memcmp(block->stacks + i * STACK_BYTES, &(uint64_t){CANARY},
			   sizeof(uint64_t)) != 0) {
			emulated_self = &block->fibers[i].self;
			emulated_fail("a stack of %zu bytes was not enough", STACK_BYTES);
		}
	}
}
