/* SPDX-License-Identifier: MIT */
/*
 * memory/control.h - the window that every rank of a comm has: how it is woken, how a failure
 * reaches it, and the barrier's flag. The layout is shared by processes of the same build, which
 * the version checks at creation. HACKING.md, "Protocol", names each word's writer and readers.
 */
#ifndef MOEEP_MEMORY_CONTROL_H
#define MOEEP_MEMORY_CONTROL_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

#define MOEEP_CACHE_LINE 64

enum { MOEEP_ABORT_NONE = 0, MOEEP_ABORT_WRITING = 1, MOEEP_ABORT_SET = 2 };

/* A failure as it stands in shared memory; the public report without its size field. */
struct moeep_cause {
	int32_t result;
	int32_t operation;
	int32_t rank;
	int32_t peer;
	uint64_t epoch;
	uint64_t expected;
	uint64_t seen;
	char message[160];
};
static_assert(sizeof(struct moeep_cause) == 200, "layout of shared memory");

/* Calls that the library of one rank can refuse while its peers wait for it. */
enum moeep_refusable {
	MOEEP_REFUSABLE_HT,
	MOEEP_REFUSABLE_LL_SEND,
	MOEEP_REFUSABLE_LL_RECV,
	MOEEP_REFUSABLE_LL_CSEND,
	MOEEP_REFUSABLE_LL_CRECV,
	MOEEP_REFUSABLES
};

struct moeep_refusal {
	_Alignas(MOEEP_CACHE_LINE) _Atomic uint64_t word; /* (number of the call, times) */
	int32_t result;
	char text[116]; /* cut, if need be */
};
static_assert(sizeof(struct moeep_refusal) == 128, "layout of shared memory");

/* CUDA backend: of a buffer, or of several if there are more than that. */
#define MOEEP_CALL_BUFFERS 8

struct moeep_calls {
	_Alignas(MOEEP_CACHE_LINE) _Atomic uint64_t made[MOEEP_REFUSABLES]; /* (number, 0) */
	struct moeep_refusal refusals[MOEEP_REFUSABLES];		    /* the last of each */
};
static_assert(sizeof(struct moeep_calls) == 704, "layout of shared memory");

struct moeep_control {
	/* Doorbell: any rank adds to seq after it changed a word that this rank may wait for. */
	_Alignas(MOEEP_CACHE_LINE) _Atomic uint32_t seq;
	_Atomic uint32_t sleepers; /* threads of this rank that sleep, or are about to */

	/* First failure. Any rank may write it, once: NONE -> WRITING by compare-and-swap -> SET.
	 */
	_Alignas(MOEEP_CACHE_LINE) _Atomic uint32_t abort_state;
	uint32_t reserved; /* the network writes whole words */
	struct moeep_cause cause;

	/* Written by this rank only. */
	_Alignas(MOEEP_CACHE_LINE) _Atomic uint64_t barrier; /* flag word: barriers entered */
	_Atomic uint64_t left;				     /* 1: this rank destroyed its comm */
	_Atomic uint64_t collective; /* flag word: collective calls entered, exchanges in the last
				      */
	struct moeep_calls calls[MOEEP_CALL_BUFFERS];
};
static_assert(sizeof(struct moeep_control) == 6 * MOEEP_CACHE_LINE + MOEEP_CALL_BUFFERS * 704,
	      "layout of shared memory");

#endif
