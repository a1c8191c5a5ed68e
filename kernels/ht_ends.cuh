/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_ends.cuh - what every block of an HT operation has at hand once it has begun: what lies where
 * at each rank; and how tokens and rows are dealt to blocks and channels.
 */
#ifndef MOEEP_KERNELS_HT_ENDS_CUH
#define MOEEP_KERNELS_HT_ENDS_CUH

#include "rows.cuh"

/* Each [R], in shared memory: MOEEP_DEV_END_BYTES for a rank. */
struct ends {
	/*
	 * Where rows of this rank go at each, by their position: dispatch there, combine here. NULL: they
	 * are not wanted, or read where they are.
	 */
	char **dst;
	char **src;	  /* combine: where rows of each are, by their position there */
	int64_t *limit;	  /* dispatch: rows that may be written at dst */
	int64_t *needed;  /* dispatch: rows that each has to have room for */
	int32_t *base;	  /* dispatch: this rank's first row at each */
	int32_t *total;	  /* dispatch: tokens that come to each */
	int32_t *count;	  /* dispatch: tokens that come here from each */
	int32_t *staged;  /* dispatch, 1: dst is a window, whose owner copies the rows */
	int32_t *parts;	  /* dispatch: of each source, its blocks that send */
	int32_t *channels; /* of each source; combine, 0: its rows are read where they are */
	int32_t *first;	  /* [R + 1] dispatch: first row here from each */
	int32_t *run;	  /* this rank's tokens for each, as they are counted */
	int32_t *hist;	  /* [E] and its choices of each expert, if they fit */
};

DEV struct ends ends_of(char *shared, int ranks)
{
	struct ends e;
	int32_t *next = (int32_t *)(shared + 32 * (int64_t)ranks);

	e.dst = (char **)shared;
	e.src = e.dst + ranks;
	e.limit = (int64_t *)(e.src + ranks);
	e.needed = e.limit + ranks;
	e.base = next;
	e.total = next + ranks;
	e.count = next + 2 * ranks;
	e.staged = next + 3 * ranks;
	e.parts = next + 4 * ranks;
	e.channels = next + 5 * ranks;
	e.first = next + 6 * ranks;
	e.run = next + 7 * ranks + 1;
	e.hist = next + 8 * ranks + 1;
	return e;
}

/* Rows of a channel if `count` are dealt to `channels` in order. */
DEV int per_channel(int count, int channels)
{
	return (count + channels - 1) / channels;
}

/* What the deal gives a channel. */
struct span {
	int first;
	int count;
};

DEV struct span span_of(int count, int channels, int channel)
{
	int each = per_channel(count, channels);
	int first = each * channel < count ? each * channel : count;

	return span{first, count - first < each ? count - first : each};
}

/*
 * Tokens in so many stretches, each from its first to the next one's. Their number is below 2^24, as rows are
 * counted in 24 bits.
 */
DEV int stretch_first(int tokens, int stretches, int stretch)
{
	return (int)((unsigned)tokens * (unsigned)stretch / (unsigned)stretches);
}

#endif
