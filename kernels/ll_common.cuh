/* SPDX-License-Identifier: MIT */
/* kernels/ll_common.cuh - what the kernels of low latency share. */
#ifndef MOEEP_KERNELS_LL_COMMON_CUH
#define MOEEP_KERNELS_LL_COMMON_CUH

#include "ll_words.cuh"
#include "rows.cuh"

#define PHASE_SEND 1
#define PHASE_RECV 2

DEV char *ll_slot(const struct moeep_dev_context &c, int owner, uint64_t epoch, int source)
{
	return near_window_at(c, owner, c.window.ll_slot) +
	       ((epoch & 1) * (uint64_t)c.num_ranks + (uint64_t)source) * c.window.ll_slot_bytes;
}

DEV char *ll_cslot(const struct moeep_dev_context &c, int owner, uint64_t epoch, int expert_rank)
{
	return near_window_at(c, owner, c.window.ll_cslot) +
	       ((epoch & 1) * (uint64_t)c.num_ranks + (uint64_t)expert_rank) *
		       c.window.ll_cslot_bytes;
}

/* Cut `length` units into `parts`: the first unit of part i. */
DEV int cut(int length, int parts, int i)
{
	return (int)((int64_t)length * i / parts);
}

/* Blocks of a kernel that do the same, and which of them this one is; negative: none. */
struct crew {
	int index;
	int count;
};

/* The first `senders` blocks send, the others receive; or all do both. */
DEV struct crew send_crew(int senders)
{
	int count = senders ? senders : (int)gridDim.x;

	return {(int)blockIdx.x < count ? (int)blockIdx.x : -1, count};
}

DEV struct crew recv_crew(int senders)
{
	return {(int)blockIdx.x - senders, (int)gridDim.x - senders};
}

/*
 * Begin of a kernel, and if it sends the wait for credit: a slot is free once its owner has received what it held,
 * two epochs ago. False, in all threads of the block: the operation is not run, or the comm has failed.
 */
DEV bool ll_begin(const struct moeep_dev_context &c, bool send, uint64_t credit, uint64_t epoch)
{
	uint64_t expected = flag_word(epoch_before(epoch, 2), 0);
	int rank = (int)threadIdx.x;
	bool run, ready = true;

	if (!c.shared) {
		return false;
	}
	if (send) {
		/* Nearly always it is there, and this is no trip more than the kernel's begin takes. */
		ready = c.num_ranks <= (int)blockDim.x &&
			(rank >= c.num_ranks ||
			 flag_reached(load_acquire(flag_at(c, c.rank, credit, rank)), expected));
	}
	run = threadIdx.x != 0 || may_run(c);
	if (__syncthreads_and(run && ready)) {
		return true;
	}
	if (!__syncthreads_and(run)) {
		return false;
	}
	if (!block_wait_all(c, credit, expected, MOEEP_DEV_CREDIT)) {
		if (threadIdx.x == 0) {
			put_dead(c);
		}
		return false;
	}
	return true;
}

#endif
