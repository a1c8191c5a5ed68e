/* SPDX-License-Identifier: MIT */
/* Grids of emulated kernels: threads of the process that run blocks, all of a grid's at a time. */
#include "config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "t/cuda/emulate/block.h"

struct grid {
	const struct emulated_kernel *kernel;
	const void *params;
	unsigned int blocks;
	unsigned int threads;
	size_t shared_bytes;
	unsigned int left;
};

/* A thread that runs a block after another; it stays when it has none. */
struct worker {
	struct worker *next; /* idle one */
	struct grid *grid;
	unsigned int block;
	pthread_cond_t given;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static struct worker *idle;

static void *work(void *data)
{
	struct worker *worker = data;
	struct block *block = emulated_block_make();

	if (!block) {
		fprintf(stderr, "no memory for a block of an emulated kernel\n");
		abort();
	}
	pthread_mutex_lock(&lock);
	for (;;) {
		struct grid *grid = worker->grid;

		pthread_mutex_unlock(&lock);
		emulated_block_run(block, grid->kernel, grid->params, worker->block, grid->blocks,
				   grid->threads, grid->shared_bytes);
		pthread_mutex_lock(&lock);
		if (--grid->left == 0) {
			pthread_cond_broadcast(&ended);
		}
		worker->grid = NULL;
		worker->next = idle;
		idle = worker;
		while (!worker->grid) {
			pthread_cond_wait(&worker->given, &lock);
		}
	}
	return NULL;
}

static struct worker *worker_new(struct grid *grid, unsigned int block)
{
	struct worker *worker = calloc(1, sizeof(*worker));
	pthread_t thread;

	if (!worker) {
		return NULL;
	}
	worker->grid = grid;
	worker->block = block;
	pthread_cond_init(&worker->given, NULL);
	if (pthread_create(&thread, NULL, work, worker) != 0) {
		free(worker);
		return NULL;
	}
	pthread_detach(thread);
	return worker;
}

void emulate_grid(const struct emulated_kernel *kernel, const void *params, unsigned int blocks,
		  unsigned int threads, size_t shared_bytes)
{
	struct grid grid = {kernel, params, blocks, threads, shared_bytes, blocks};

	pthread_mutex_lock(&lock);
	for (unsigned int i = 0; i < blocks; i++) {
		struct worker *worker = idle;

		if (worker) {
			idle = worker->next;
			worker->block = i;
			worker->grid = &grid;
			pthread_cond_signal(&worker->given);
		} else if (!worker_new(&grid, i)) {
			fprintf(stderr, "no thread for a block of an emulated kernel\n");
			abort();
		}
	}
	while (grid.left > 0) {
		pthread_cond_wait(&ended, &lock);
	}
	pthread_mutex_unlock(&lock);
}
