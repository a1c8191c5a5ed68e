/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_landed.cuh - which channels the movers of a block have claimed, how far they are with them,
 * and how the warp that reports it knows.
 */
#ifndef MOEEP_KERNELS_HT_LANDED_CUH
#define MOEEP_KERNELS_HT_LANDED_CUH

#include "ht_common.cuh"

/* Pieces of rows between two looks at how far a mover has come. */
#define REPORT 2
/* Channels that a mover can have claimed and the reporter not told. */
#define CLAIMS 64
/* Groups of copies after which a piece is taken to have landed without waiting for it much. */
#define LANDED_LAG 6

/*
 * How far the movers of a block have come, for the warp that reports it: a release waits for all copies that
 * the block has under way, so movers leave it to a warp of its own, and go on.
 *
 * A mover that is free claims the next channel, as a link does not serve all SMs, nor the warps of one, alike:
 * when each had its own, the slowest took twice as long as most.
 */
struct landed {
	int count[MOVERS];    /* channels that are done */
	int finished[MOVERS]; /* so is the mover */
	int told[MOVERS];     /* channels that have been reported */
	int channel[MOVERS][CLAIMS];
};

/* A barrier of the block comes behind it. */
DEV void landed_init(struct landed *l)
{
	for (int i = (int)threadIdx.x; i < (int)(sizeof(*l) / sizeof(int)); i += (int)blockDim.x) {
		((int *)l)[i] = 0;
	}
}

/*
 * By a warp: a number that no other gets, asked for before it is needed, as that is a trip to memory; and what
 * has been asked for.
 */
DEV uint32_t claim_ahead(uint32_t *next)
{
	return LANE == 0 ? atomicAdd(next, 1u) : 0;
}

DEV uint32_t claimed(uint32_t ahead)
{
	return __shfl_sync(FULL, ahead, 0);
}

/*
 * Before a warp ends that has asked for one more: the counter is set to zero when all blocks have ended, and
 * must not be added to after that.
 */
DEV void claim_end(uint32_t ahead)
{
	if (claimed(ahead) == UINT32_MAX) {
		/* Never; but it waits for the answer. */
		__nanosleep(1);
	}
}

/*
 * By a mover: what it sends as its n-th. The reporter reads it behind landed_put(). told: the place is
 * free when what was in it has been reported.
 */
DEV void claims_put(struct landed *l, int n, uint32_t channel, bool told)
{
	while (told && n - handed(&l->told[WARP]) >= CLAIMS) {
		__nanosleep(100);
	}
	if (LANE == 0) {
		hand_over(&l->channel[WARP][n % CLAIMS], (int)channel);
	}
	__syncwarp();
}

DEV int claims_get(const struct landed *l, int mover, int n)
{
	return handed(&l->channel[mover][n % CLAIMS]);
}

/* By the mover's warp, whose copies for that many channels are complete. */
DEV void landed_put(struct landed *l, int count)
{
	/* Pairs with the fence in landed_get(): first the rows, then the count. */
	__threadfence_block();
	__syncwarp();
	if (LANE == 0) {
		hand_over(&l->count[WARP], count);
	}
}

DEV void landed_finish(struct landed *l)
{
	__threadfence_block();
	__syncwarp();
	if (LANE == 0) {
		hand_over(&l->finished[WARP], 1);
	}
}

/* By the reporter: have all movers finished? What they put before is seen after. */
DEV bool landed_all(const struct landed *l)
{
	bool all = true;

	for (int m = 0; m < MOVERS; m++) {
		all = all && handed(&l->finished[m]) != 0;
	}
	all = __all_sync(FULL, all);
	__threadfence_block();
	return all;
}

/* Channels of a mover that are done, to be told now. */
DEV int landed_get(const struct landed *l, int mover)
{
	int count = __shfl_sync(FULL, handed(&l->count[mover]), 0);

	__threadfence_block();
	return count;
}

DEV void landed_tell(struct landed *l, int mover, int count)
{
	__syncwarp();
	if (LANE == 0) {
		hand_over(&l->told[mover], count);
	}
}

/* Where the channels that a mover sends end, in pieces that it has sent. */
struct endings {
	int at; /* of channel n in lane n % 32 */
	int ended;
	int done; /* channels that have landed */
};

DEV void note_ending(struct endings *e, int channel, int sent)
{
	e->ended = channel + 1;
	e->at = LANE == (channel & 31) ? sent : e->at;
}

/* True if more channels have landed, if all but the last pieces have. */
DEV bool pass_endings(struct endings *e, int landed)
{
	int before = e->done;

	while (e->done < e->ended && __shfl_sync(FULL, e->at, e->done & 31) <= landed) {
		e->done++;
	}
	return e->done > before;
}

#endif
