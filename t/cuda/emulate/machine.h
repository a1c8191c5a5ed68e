/* SPDX-License-Identifier: MIT */
/*
 * Kernels on CPUs: a block is run by one thread of the process, and each of its CUDA threads is a
 * fiber of that thread. Fibers run in turn, each until it has to meet others, so between
 * these points a block's threads do not interleave; in what order they go on is random. Blocks
 * do run side by side.
 *
 * What a GPU would leave undefined ends the process with a message: threads that meet by different
 * calls, that wait for one that never comes, bulk copies that are not aligned, barriers that nobody
 * has initialised. Bulk copies are done at some random time that the waits for them allow.
 *
 * This header is read by C and C++. ptx.h builds the kernels' language on it.
 */
#ifndef T_CUDA_EMULATE_MACHINE_H
#define T_CUDA_EMULATE_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emulated_index {
	unsigned int x, y, z;
};

/* What the fiber that runs knows of itself. */
struct emulated_thread {
	struct emulated_index thread, block, block_dim, grid_dim;
	char *shared; /* the block's dynamic shared memory */
};

extern __thread struct emulated_thread *emulated_self;

/* Kernels that there are; the last has no name. */
struct emulated_kernel {
	const char *name;
	size_t params_bytes;
	int threads; /* of its launch bounds */
	void (*run)(const void *params);
};

extern const struct emulated_kernel emulated_kernels[];

/* Run a grid to its end. */
void emulate_grid(const struct emulated_kernel *kernel, const void *params, unsigned int blocks,
		  unsigned int threads, size_t shared_bytes);

/* For kernels. */

/* Says what is wrong, with the thread that did it, and ends the process. */
void emulated_fail(const char *text, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Let others run; by threads that wait for what others write. */
void emulated_yield(void);

/*
 * All 32 lanes meet, each with a value, and get those of all: valid until the lane meets again. All
 * must have come for the same purpose.
 */
const uint64_t *emulated_meet(const char *purpose, uint32_t mask, uint64_t value);

/* `threads` threads meet at barrier 0 or 1. True if all of them said true. */
bool emulated_sync(int barrier, const char *purpose, int threads, bool value);

/* The copy engine; addresses in shared memory are as emulated_shared_address() has them. */
uint32_t emulated_shared_address(const void *at);
void *emulated_shared_at(uint32_t address, uint32_t bytes);
void emulated_barrier_init(uint32_t barrier);
void emulated_barrier_end(uint32_t barrier);
void emulated_barrier_expect(uint32_t barrier, uint32_t bytes);
bool emulated_barrier_try_wait(uint32_t barrier, uint32_t parity);
void emulated_bulk_load(uint32_t to, const char *from, uint32_t bytes, uint32_t barrier);
void emulated_bulk_store(char *to, uint32_t from, uint32_t bytes);
void emulated_bulk_commit(void);
void emulated_bulk_wait(unsigned int pending, bool written);

#ifdef __cplusplus
}
#endif

#endif /* T_CUDA_EMULATE_MACHINE_H */
