/* SPDX-License-Identifier: MIT */
/*
 * kernels/device.cuh - memory order, bounded waits, and how blocks and kernels begin and end.
 *
 * Flags that ranks hand to each other are written with release at system scope, and read with acquire; where
 * many threads poll them, with acquire once they have come. HACKING.md names each pair.
 */
#ifndef MOEEP_KERNELS_DEVICE_CUH
#define MOEEP_KERNELS_DEVICE_CUH

#include <moeep/moeep.h>

#include "args.h"
#include "ptx.cuh"

#define FULL	   0xffffffffu
#define LANE	   ((int)(threadIdx.x & 31u))
#define WARP	   ((int)(threadIdx.x >> 5))
#define NUM_WARPS  ((int)(blockDim.x >> 5))
#define EPOCH_MASK ((UINT64_C(1) << 40) - 1)

/* Polls between two looks at the clock and at the abort words. */
#define POLLS_PER_CHECK 256

DEV uint64_t flag_word(uint64_t epoch, uint64_t count)
{
	return epoch << 24 | count;
}

DEV int64_t flag_count(uint64_t word)
{
	return (int64_t)(word & ((UINT64_C(1) << 24) - 1));
}

DEV bool flag_reached(uint64_t seen, uint64_t expected)
{
	return (int64_t)(seen - expected) >= 0;
}

DEV uint64_t epoch_before(uint64_t epoch, uint64_t by)
{
	return (epoch - by) & EPOCH_MASK;
}

DEV char *window_at(const struct moeep_dev_context &c, int rank, uint64_t offset)
{
	return c.windows[rank] + offset;
}

/* The same without a trip to memory for the first ranks, but with more registers. */
DEV char *near_window_at(const struct moeep_dev_context &c, int rank, uint64_t offset)
{
	return (rank < MOEEP_DEV_FIRST_WINDOWS ? c.first_windows[rank] : c.windows[rank]) + offset;
}

/* The word that `writer` writes in `owner`'s window. */
DEV uint64_t *flag_at(const struct moeep_dev_context &c, int owner, uint64_t array, int writer)
{
	return (uint64_t *)near_window_at(c, owner, array) + writer;
}

/* 0, or the negated result that ended the comm. */
DEV uint32_t comm_dead(const struct moeep_dev_context &c)
{
	uint32_t dead = load_relaxed32(&c.comm->dead);

	if (dead == 0) {
		dead = load_relaxed32(&c.shared->abort);
		if (dead != 0) {
			/* In device memory the others see it sooner. */
			atomicExch(&c.comm->dead, dead);
		}
	}
	return dead;
}

/* The first failure is reported; the host makes it everybody's. */
__device__ __noinline__ void raise(const struct moeep_dev_context &c, int result, int peer,
				   int what, uint64_t epoch, uint64_t expected, uint64_t seen)
{
	if (atomicCAS(&c.comm->claim, 0u, 1u) == 0u) {
		volatile struct moeep_dev_shared *report = c.shared;

		report->result = result;
		report->operation = c.operation;
		report->peer = peer;
		report->what = what;
		report->epoch = epoch;
		report->expected = expected;
		report->seen = seen;
		__threadfence_system();
		report->state = 1;
	}
	atomicCAS(&c.comm->dead, 0u, (uint32_t)-result);
}

/* The slow part of a wait. False: the comm has failed, or this wait has just failed it. */
__device__ __noinline__ bool wait_check(const struct moeep_dev_context &c, int peer, int what,
					uint64_t expected, uint64_t seen, uint64_t *start)
{
	uint64_t now;

	if (comm_dead(c) != 0) {
		return false;
	}
	now = clock_ns();
	if (*start == 0) {
		*start = now;
	} else if (c.timeout_ns != 0 && now - *start > c.timeout_ns) {
		raise(c, MOEEP_ERR_TIMEOUT, peer, what, expected >> 24, expected, seen);
		return false;
	}
	return true;
}

/*
 * Wait, in this thread, until a word has reached `expected`; *seen is what it was then. What its
 * writer wrote before is seen after, by this thread. False: the comm has failed. CROWD: so many threads
 * wait that it pays to poll without acquire, which empties the SM's cache, and to read once more.
 */
template <bool CROWD = false>
DEV bool wait_word(const struct moeep_dev_context &c, const uint64_t *word, uint64_t expected,
		   int peer, int what, uint64_t *seen)
{
	uint64_t start = 0;
	uint32_t polls = 0;

	for (;;) {
		*seen = CROWD ? load_relaxed(word) : load_acquire(word);
		if (flag_reached(*seen, expected)) {
			/* Pairs with store_release() of the word's writer. */
			*seen = CROWD ? load_acquire(word) : *seen;
			return true;
		}
		if (++polls % POLLS_PER_CHECK == 0 &&
		    !wait_check(c, peer, what, expected, *seen, &start)) {
			return false;
		}
	}
}

/*
 * Words of shared memory that a block's warps hand to each other without a barrier. They are written by an atomic:
 * compute-sanitizer takes any other store, volatile or with release, for a race.
 */
DEV void hand_over(int *word, int value)
{
	atomicExch(word, value);
}

DEV int handed(const int *word)
{
	return *(const volatile int *)word;
}

/* Some of a block's warps, which have a barrier of their own. */
struct group {
	int thread; /* which of them this is */
	int threads;
	int number; /* of the barrier */
};

DEV struct group whole_block()
{
	return group{(int)threadIdx.x, (int)blockDim.x, 0};
}

DEV void group_sync(const struct group &g)
{
	sync_some(g.number, g.threads);
}

/* True in all threads of the group if it is in all of them. */
DEV bool group_all(const struct group &g, bool value)
{
	return sync_some_and(g.number, g.threads, value);
}

/* Threads wait for the words of ranks thread, thread + step, ... in an array of this rank's window. */
DEV bool wait_ranks(const struct moeep_dev_context &c, int thread, int step, uint64_t array,
		    uint64_t expected, int what)
{
	bool ok = true;
	uint64_t seen;

	for (int rank = thread; rank < c.num_ranks; rank += step) {
		ok = ok &&
		     wait_word(c, flag_at(c, c.rank, array, rank), expected, rank, what, &seen);
	}
	return ok;
}

/* The whole block waits for those of all ranks. False, in all threads: the comm has failed. */
DEV bool block_wait_all(const struct moeep_dev_context &c, uint64_t array, uint64_t expected,
			int what)
{
	return __syncthreads_and(wait_ranks(c, (int)threadIdx.x, (int)blockDim.x, array, expected,
					    what)) != 0;
}

DEV bool group_wait_all(const struct moeep_dev_context &c, const struct group &g, uint64_t array,
			uint64_t expected, int what)
{
	return group_all(g, wait_ranks(c, g.thread, g.threads, array, expected, what));
}

/*
 * Wait, in this thread, for a word that another block of this GPU writes. That block's own waits are bounded,
 * so this one is. False: the comm has failed.
 */
DEV bool wait_device(const struct moeep_dev_context &c, const uint64_t *word, uint64_t expected)
{
	uint32_t polls = 0;

	/* Pairs with store_release_device() of the word's writer. */
	while (load_acquire(word) != expected) {
		if (++polls % POLLS_PER_CHECK == 0 && comm_dead(c) != 0) {
			return false;
		}
	}
	return true;
}

/* Was a ticket the last of `total`? Then the next kernel finds its counter at zero. */
DEV bool took_last(uint32_t *ticket, uint32_t before, uint32_t total)
{
	if (before == total - 1) {
		*(volatile uint32_t *)ticket = 0;
	}
	return before == total - 1;
}

/*
 * One thread takes a ticket; true for the last of `total`. Release and acquire between the blocks of this
 * GPU: what they wrote elsewhere is covered by the store_release() that follows, as order passes on.
 */
DEV bool arrive(uint32_t *ticket, uint32_t total)
{
	return took_last(ticket, add_ticket(ticket), total);
}

/*
 * The same where nothing is handed on but the count: what orders the blocks' memory also waits until all that
 * they have stored is written.
 */
DEV bool count_in(uint32_t *ticket, uint32_t total)
{
	return took_last(ticket, atomicAdd(ticket, 1u), total);
}

/*
 * By all blocks when they have done their part: true in all threads of the last one, for which the others have
 * read all that they had to read. What they have written it may not see: the kernel's end waits for that, and
 * whoever wrote something for the last block has a fence behind it. next: the next kernel's blocks may come;
 * not if the last block waits for ranks on this device, whose blocks may want their room.
 */
DEV bool last_block(uint32_t *ticket, uint32_t total, bool next = true)
{
	bool last = false;

	__syncthreads();
	if (threadIdx.x == 0) {
		if (next) {
			launch_next();
		}
		last = count_in(ticket, total);
	}
	return !__syncthreads_and(!last);
}

/*
 * True in all threads of the group that arrives last of those of `total` blocks. What the others wrote before
 * they arrived is seen after.
 */
DEV bool last_group(const struct group &g, uint32_t *ticket, uint32_t total)
{
	bool last = false;

	group_sync(g);
	if (g.thread == 0) {
		last = arrive(ticket, total);
	}
	return !group_all(g, !last);
}

/*
 * All that the last block has to say to its peers: one flag in each window, that this rank has read what they
 * wrote. Nothing is released, as what has been read is in registers or on its way to memory: a release would
 * wait until it is there. Not by the first warp, whose first thread has the result to write meanwhile.
 */
DEV void block_publish(const struct moeep_dev_context &c, uint64_t array, uint64_t word)
{
	int first = WARP > 0 ? (int)threadIdx.x - 32 : c.num_ranks;

	for (int rank = first; rank < c.num_ranks; rank += (int)blockDim.x - 32) {
		store_relaxed(flag_at(c, rank, array, c.rank), word);
	}
}

DEV void put_result(const struct moeep_dev_context &c, int code, int detail, int64_t a, int64_t b,
		    int64_t v)
{
	volatile struct moeep_dev_result *result = c.result;

	result->detail = detail;
	result->a = a;
	result->b = b;
	result->c = v;
	result->code = code;
	if (c.status) {
		*(volatile int32_t *)c.status = code;
	}
}

/* Something is wrong with the caller's data: the operation completes, and this is its result. */
__device__ __noinline__ void note_bad(const struct moeep_dev_context &c, int code, int detail,
				      int64_t a, int64_t b, int64_t v)
{
	if (atomicCAS(&c.state->bad_claim, 0u, 1u) == 0u) {
		volatile struct moeep_dev_result *bad = &c.state->bad;

		bad->code = code;
		bad->detail = detail;
		bad->a = a;
		bad->b = b;
		bad->c = v;
		/* The last block reads it, behind a ticket that does not order it. */
		__threadfence();
	}
}

DEV void put_dead(const struct moeep_dev_context &c)
{
	put_result(c, -(int)load_relaxed32(&c.comm->dead), MOEEP_DEV_DETAIL_DEAD, 0, 0, 0);
}

/*
 * By one thread of the operation's last block: what was noted, or else this result. A failure of the
 * comm, which another block may have found, goes before both.
 */
DEV void finish_result(const struct moeep_dev_context &c, int code, int detail, int64_t a,
		       int64_t b, int64_t v)
{
	volatile struct moeep_dev_state *state = c.state;
	uint32_t bad = state->bad_claim;

	if (load_relaxed32(&c.comm->dead) != 0) {
		put_dead(c);
	} else if (bad != 0) {
		put_result(c, state->bad.code, state->bad.detail, state->bad.a, state->bad.b,
			   state->bad.c);
		state->bad_claim = 0;
	} else {
		put_result(c, code, detail, a, b, v);
	}
}

/*
 * May the operation run? By one thread. False: it is not run, since the comm has failed, or the event that it had to
 * wait for has completed with an error.
 */
DEV bool may_run(const struct moeep_dev_context &c)
{
	/* The host's word is a trip away: waits look at it. */
	if (load_relaxed32(&c.comm->dead) != 0) {
		put_dead(c);
		return false;
	}
	if (c.after && *(volatile const int32_t *)&c.after->code != MOEEP_OK) {
		volatile const struct moeep_dev_result *after = c.after;

		put_result(c, after->code, after->detail, after->a, after->b, after->c);
		return false;
	}
	return true;
}

/* Begin of a kernel. False, in all threads of the block: the operation is not run. */
DEV bool kernel_begin(const struct moeep_dev_context &c)
{
	launch_wait();
	/* Without `shared` it was launched for the driver to load it, see lib/cuda/context.c. */
	return c.shared && __syncthreads_and(threadIdx.x != 0 || may_run(c)) != 0;
}

/* Threads of one block add up what has come from each rank. */
DEV void count_traffic(const struct moeep_dev_context &c, const struct group &g, int kind,
		       const int32_t *rows, uint64_t row_bytes)
{
	for (int rank = g.thread; rank < c.num_ranks; rank += g.threads) {
		volatile uint64_t *traffic = c.traffic + (int64_t)rank * MOEEP_DEV_TRAFFIC + kind;

		traffic[0] += (uint64_t)rows[rank];
		traffic[1] += (uint64_t)rows[rank] * row_bytes;
	}
}

/*
 * Which rank holds an expert, as moeep_expert_range() deals them. The quotients are of numbers below 2^17, half a
 * step away from the next integer: floats have the digits for these.
 */
DEV int expert_rank(const struct moeep_dev_context &c, int expert)
{
	int rest = expert - c.large_experts;

	return rest < 0 ? (int)(((float)expert + 0.5f) * c.per_large_rank)
			: c.large_ranks + (int)(((float)rest + 0.5f) * c.per_rank);
}

/* A choice as the caller gave it. */
DEV int64_t raw_choice(const void *topk_idx, int dtype, int64_t at)
{
	return dtype == MOEEP_INT32 ? ((const int32_t *)topk_idx)[at]
				    : ((const int64_t *)topk_idx)[at];
}

/* The expert or -1; one that does not exist is left out and noted. */
DEV int check_choice(const struct moeep_dev_context &c, int64_t id, int64_t token, int k)
{
	if (id < -1 || id >= c.num_experts) {
		note_bad(c, MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_CHOICE, token, k, id);
		return -1;
	}
	return (int)id;
}

DEV int local_expert(const struct moeep_dev_context &c, int id)
{
	unsigned local = (unsigned)(id - c.first_expert);

	return local < (unsigned)c.local_experts ? (int)local : -1;
}

#endif
