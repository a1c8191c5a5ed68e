/* SPDX-License-Identifier: MIT */
/* kernels/ll_common.cuh - what the kernels of low latency share. */
#ifndef MOEEP_KERNELS_LL_COMMON_CUH
#define MOEEP_KERNELS_LL_COMMON_CUH

#include "rows.cuh"

#define PHASE_SEND 1
#define PHASE_RECV 2

/* Start of a dispatch slot, 64 bytes. */
struct alignas(16) ll_header {
	int32_t dtype;
	int32_t quant;
	int32_t topk;
	int32_t given;
};

DEV char *ll_slot(const struct moeep_dev_context &c, int owner, uint64_t epoch, int source)
{
	return window_at(c, owner, c.window.ll_slot) +
	       ((epoch & 1) * (uint64_t)c.num_ranks + (uint64_t)source) * c.window.ll_slot_bytes;
}

DEV const int32_t *ll_slot_idx(const char *slot)
{
	return (const int32_t *)(slot + 64);
}

DEV char *ll_cslot(const struct moeep_dev_context &c, int owner, uint64_t epoch, int expert_rank)
{
	return window_at(c, owner, c.window.ll_cslot) +
	       ((epoch & 1) * (uint64_t)c.num_ranks + (uint64_t)expert_rank) *
		       c.window.ll_cslot_bytes;
}

/* The half of an array of flags [2][R] that an epoch uses. */
DEV uint64_t by_epoch(const struct moeep_dev_context &c, uint64_t array, uint64_t epoch)
{
	return array + (epoch & 1) * (uint64_t)c.num_ranks * sizeof(uint64_t);
}

/* Cut `length` units into `parts`: the first unit of part i. */
DEV int64_t cut(int64_t length, int parts, int i)
{
	return length * i / parts;
}

#endif
