/* SPDX-License-Identifier: MIT */
/* Inside of the emulation: a block, its fibers, and what the copy engine does for them. */
#ifndef T_CUDA_EMULATE_BLOCK_H
#define T_CUDA_EMULATE_BLOCK_H

#include "t/cuda/emulate/machine.h"

#define EMULATED_THREADS 1024 /* of a block, at most */
#define EMULATED_SHARED	 (227 << 10)

/* A bulk copy that is not done. */
struct emulated_copy {
	struct emulated_copy *next;
	char *global;
	char *data; /* of a store that has been read: what it will write */
	uint32_t shared;
	uint32_t bytes;
	uint32_t barrier;   /* of a load */
	unsigned int group; /* of a store */
};

struct fiber {
	struct emulated_thread self; /* first: emulated_self points here */
	void *stack_pointer;
	struct fiber *next;
	struct emulated_copy *stores; /* oldest first */
	unsigned int group;	      /* that the next commit ends */
	bool done;
	const char *waits; /* for what, in a message */
};

struct warp {
	const char *purpose;
	uint32_t arrived;
	unsigned int generation;
	uint64_t value[2][32];
};

struct meeting {
	const char *purpose;
	int arrived;
	int expected;
	bool all;
	bool result[2];
	unsigned int generation;
	struct fiber *waiting;
};

struct block {
	struct fiber *fibers; /* [EMULATED_THREADS] */
	char *stacks;
	char *shared_room; /* and a guard behind it */
	char *shared;	   /* of the grid that runs */
	size_t shared_bytes;
	void *stack_pointer;	     /* of the scheduler */
	struct fiber *first, **last; /* that can run */
	struct warp warps[EMULATED_THREADS / 32];
	struct meeting meetings[3];
	struct emulated_copy *loads;
	const struct emulated_kernel *kernel;
	const void *params;
	int threads;
	int left; /* that have not ended */
	int runnable;
	int idle;   /* yields since something happened */
	int rounds; /* of yields, since */
	uint64_t random;
};

/* The block that this thread runs. */
extern __thread struct block *emulated_block;

struct block *emulated_block_make(void);
void emulated_block_run(struct block *block, const struct emulated_kernel *kernel,
			const void *params, unsigned int number, unsigned int blocks,
			unsigned int threads, size_t shared_bytes);

/* Something happened: who waits has a reason to look. */
static inline void emulated_progress(void)
{
	emulated_block->idle = 0;
	emulated_block->rounds = 0;
}

/* A number below `limit`. */
unsigned int emulated_random(unsigned int limit);

/* A thread ends: its copies do, too. */
void emulated_bulk_end(void);

/* The block has ended: loads that nobody waited for, as after a failure, are not done. */
void emulated_bulk_drop(void);

#endif /* T_CUDA_EMULATE_BLOCK_H */
