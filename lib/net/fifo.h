/* SPDX-License-Identifier: MIT */
/*
 * net/fifo.h - requests to the network, from any number of threads to the one that posts them.
 *
 * A bounded queue in which each cell carries its own sequence number (after Dmitry Vyukov's bounded
 * MPMC queue): a writer claims the cell of a ticket, fills it, and publishes it by the number; the
 * reader takes cells in the order of tickets. Nothing else is shared, so that the same cells can be
 * written by a GPU into pinned memory.
 */
#ifndef MOEEP_NET_FIFO_H
#define MOEEP_NET_FIFO_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum moeep_request_kind {
	MOEEP_REQUEST_PUT = 1,	 /* bytes at local go to remote */
	MOEEP_REQUEST_SIGNAL = 2 /* the 64-bit word at remote becomes value, was value - delta */
};

/* Offsets are 64 bits into windows that both sides know by number. */
struct moeep_request {
	_Atomic uint64_t turn; /* ticket: free for it; ticket + 1: filled */
	uint32_t kind;
	uint32_t window;
	uint64_t local;
	uint64_t remote;
	uint64_t bytes;
	uint64_t value;
	uint64_t delta;
	uint64_t reserved;
};
static_assert(sizeof(struct moeep_request) == 64, "a cache line each");

struct moeep_fifo {
	_Alignas(64) _Atomic uint64_t head; /* next ticket to be claimed */
	_Alignas(64) uint64_t tail;	    /* of the reader: next ticket to be taken */
	struct moeep_request *cells;	    /* [size] */
	uint64_t size;			    /* a power of two */
};

int moeep_fifo_init(struct moeep_fifo *fifo, uint64_t size);
void moeep_fifo_fini(struct moeep_fifo *fifo);

/* Any thread. False if there is no room. All but `turn` is taken from the request. */
bool moeep_fifo_push(struct moeep_fifo *fifo, const struct moeep_request *request);

/* The reader: the next request, or NULL; it stays where it is until moeep_fifo_pop(). */
const struct moeep_request *moeep_fifo_peek(struct moeep_fifo *fifo);
void moeep_fifo_pop(struct moeep_fifo *fifo);

#endif
