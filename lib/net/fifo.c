/* SPDX-License-Identifier: MIT */
/* net/fifo.c - requests to the network, from any number of threads to the one that posts them. */
#include "config.h"

#include <stdlib.h>

#include "core/error.h"
#include "net/fifo.h"

int moeep_fifo_init(struct moeep_fifo *fifo, uint64_t size)
{
	fifo->cells = aligned_alloc(64, size * sizeof(*fifo->cells));
	if (!fifo->cells) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a queue of %llu requests",
				  (unsigned long long)size);
	}
	fifo->size = size;
	fifo->tail = 0;
	atomic_init(&fifo->head, 0);
	for (uint64_t i = 0; i < size; i++) {
		atomic_init(&fifo->cells[i].turn, i);
	}
	return MOEEP_OK;
}

void moeep_fifo_fini(struct moeep_fifo *fifo)
{
	free(fifo->cells);
	fifo->cells = NULL;
}

bool moeep_fifo_push(struct moeep_fifo *fifo, const struct moeep_request *request)
{
	uint64_t ticket = atomic_load_explicit(&fifo->head, memory_order_relaxed);
	struct moeep_request *cell;

	for (;;) {
		int64_t ahead;

		cell = &fifo->cells[ticket & (fifo->size - 1)];
		/* Pairs with moeep_fifo_pop(): the reader has done with it. */
		ahead = (int64_t)(atomic_load_explicit(&cell->turn, memory_order_acquire) - ticket);
		if (ahead < 0) {
			return false;
		}
		if (ahead > 0) {
			ticket = atomic_load_explicit(&fifo->head, memory_order_relaxed);
		} else if (atomic_compare_exchange_weak_explicit(&fifo->head, &ticket, ticket + 1,
								 memory_order_relaxed,
								 memory_order_relaxed)) {
			break;
		}
	}
	cell->kind = request->kind;
	cell->window = request->window;
	cell->local = request->local;
	cell->remote = request->remote;
	cell->bytes = request->bytes;
	cell->value = request->value;
	cell->delta = request->delta;
	/* Pairs with moeep_fifo_peek(): the cell, and the memory that it speaks of, are written. */
	atomic_store_explicit(&cell->turn, ticket + 1, memory_order_release);
	return true;
}

const struct moeep_request *moeep_fifo_peek(struct moeep_fifo *fifo)
{
	struct moeep_request *cell = &fifo->cells[fifo->tail & (fifo->size - 1)];

	return atomic_load_explicit(&cell->turn, memory_order_acquire) == fifo->tail + 1 ? cell
											 : NULL;
}

void moeep_fifo_pop(struct moeep_fifo *fifo)
{
	struct moeep_request *cell = &fifo->cells[fifo->tail & (fifo->size - 1)];

	atomic_store_explicit(&cell->turn, fifo->tail + fifo->size, memory_order_release);
	fifo->tail++;
}
