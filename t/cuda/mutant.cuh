/* SPDX-License-Identifier: MIT */
/* What the mutations in t/cuda/mutants.list are made of; included before a mutated kernel. */
#include <stdint.h>

/* A pause is always allowed: mutations that are pauses and nothing else prove it. */
static __device__ __forceinline__ void mutant_pause(unsigned us)
{
	uint64_t start, now;

	asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
	do {
		asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
	} while (now - start < us * UINT64_C(1000));
}

#define MUTANT_PAUSE(us) mutant_pause(us)
/* On some ranks only, where ranks that all pause would keep step. */
#define MUTANT_PAUSE_ODD(rank, us) ((rank) & 1 ? mutant_pause(us) : (void)0)
