/* SPDX-License-Identifier: MIT */
/* What the mutations in t/cuda/mutants.list are made of; included before a mutated kernel. */
#include <stdint.h>

/* The mutant's; or the emulation's own, which has been included before. */
#include "ptx.cuh"

/* A pause is always allowed: mutations that are pauses and nothing else prove it. */
DEV void mutant_pause(unsigned us)
{
	uint64_t start = clock_ns();

	while (clock_ns() - start < us * UINT64_C(1000)) {
		__nanosleep(500);
	}
}

#define MUTANT_PAUSE(us) mutant_pause(us)
/* On some ranks only, where ranks that all pause would keep step. */
#define MUTANT_PAUSE_ODD(rank, us) ((rank) & 1 ? mutant_pause(us) : (void)0)
