/* SPDX-License-Identifier: MIT */
/*
 * core/wait.h - flags, and bounded waits for them.
 *
 * A flag is a 64-bit word with one writer: 40 bits of epoch, 24 bits of count. It only grows,
 * modulo 2^64, so "reached" is a signed difference.
 */
#ifndef MOEEP_CORE_WAIT_H
#define MOEEP_CORE_WAIT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <moeep/moeep.h>

struct moeep_comm;
struct moeep_control;

#define MOEEP_FLAG_COUNT_BITS 24
#define MOEEP_FLAG_COUNT_MAX  ((UINT64_C(1) << MOEEP_FLAG_COUNT_BITS) - 1)
#define MOEEP_EPOCH_MASK      ((UINT64_C(1) << 40) - 1)

typedef _Atomic uint64_t moeep_flag_t;

static inline uint64_t moeep_flag_word(uint64_t epoch, uint64_t count)
{
	return epoch << MOEEP_FLAG_COUNT_BITS | count;
}

static inline bool moeep_flag_reached(uint64_t seen, uint64_t expected)
{
	return (int64_t)(seen - expected) >= 0;
}

/* Pairs with moeep_flag_get() of the readers: what was written before is seen after. */
static inline void moeep_flag_publish(moeep_flag_t *flag, uint64_t word)
{
	atomic_store_explicit(flag, word, memory_order_release);
}

/* Pairs with moeep_flag_publish() of the flag's writer. */
static inline uint64_t moeep_flag_get(const moeep_flag_t *flag)
{
	return atomic_load_explicit((moeep_flag_t *)flag, memory_order_acquire);
}

struct moeep_cause;

/* What a wait is still waiting for. */
struct moeep_pending {
	int peer;
	uint64_t expected;
	uint64_t seen;
	const char *what; /* "the rows", for the report: "waited for the rows of rank 3" */
	bool blame; /* asked when time has run out: name the rank that holds all up, if this one
		       itself waits for another */
};

/* True if the wait is over; else *pending says what for. Called often, with no locks held. */
typedef bool (*moeep_ready_fn)(void *arg, struct moeep_pending *pending);

/* The bounds of one operation's waits. */
struct moeep_wait {
	struct moeep_comm *comm;
	moeep_op_t op;
	uint64_t epoch;
	uint64_t deadline_ns; /* CLOCK_MONOTONIC; UINT64_MAX: none */
	/* Asked in the slow path: was a call of that peer refused? ep/refusal.h sets both. */
	bool (*refused)(const void *buffer, int peer, struct moeep_cause *cause);
	const void *buffer;
};

void moeep_wait_begin(struct moeep_wait *wait, struct moeep_comm *comm, moeep_op_t op,
		      uint64_t epoch);

/*
 * Wait until ready() says so. Spins a little, then sleeps on this rank's doorbell. Ends early with
 * the comm's error when the group is aborted, a peer that is waited for is lost, or the
 * deadline passes; the last two abort the group.
 */
int moeep_wait_until(const struct moeep_wait *wait, moeep_ready_fn ready, void *arg);

/* Sleep on this rank's doorbell until it rings, `ready` says so, or at most that long. */
void moeep_wait_doorbell(struct moeep_comm *comm, moeep_ready_fn ready, void *arg, uint64_t ns);

/* Ring the doorbell of a control window that is mapped here. */
void moeep_wait_ring(struct moeep_control *control);

/* Wake `peer` if it sleeps; call after publishing a flag that it may wait for. */
void moeep_wait_wake(struct moeep_comm *comm, int peer);
void moeep_wait_wake_all(struct moeep_comm *comm);

uint64_t moeep_now_ns(void);

#endif
