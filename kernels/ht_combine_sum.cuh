/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_combine_sum.cuh - what a block does that sums rows of an HT combine.
 *
 * Rows are read where they are: in memory of the rank that has them, or in this one's window, where they
 * come to be while sums are made. One warp, the watcher, looks how far the senders are, and tells the
 * others in shared memory. When each of them looked for itself, some hundred lanes read the words
 * over and over while they were written, and the rows that came behind took three times as long
 * (docs/performance-gpu.md).
 */
#ifndef MOEEP_KERNELS_HT_COMBINE_SUM_CUH
#define MOEEP_KERNELS_HT_COMBINE_SUM_CUH

#include "ht_common.cuh"

#define WATCHER 0
/* Channels at which a lane of the watcher looks at once, for each rank, from the first that is missing. */
#define LOOKS	4

/* What the watcher tells. */
struct table {
	uint8_t *here;	/* [R][MOEEP_DEV_CHANNELS] */
	int32_t *first; /* [R] the first channel that is missing; the watcher's own */
	int32_t *failed;
};

/* Bytes of the table in shared memory: as deal_combine() of lib/cuda asks for. */
DEV struct table table_of(char *shared, int num_ranks, int32_t *failed)
{
	return table{(uint8_t *)shared + (size_t)num_ranks * sizeof(int32_t), (int32_t *)shared,
		     failed};
}

/* Do rows of a rank come while sums are made? Else they are where they are from the beginning. */
DEV bool is_watched(const struct moeep_ht_combine_params &p, int rank)
{
	return p.ends.channels[rank] > 0 && (rank != p.c.rank || p.expert_major);
}

/* What a lane waits for, for a report. */
struct missing {
	int rank; /* -1: nothing */
	uint64_t expected;
	uint64_t seen;
};

/*
 * A lane looks at channels of a rank; acquires what has come. True if one was missing and is there, or has
 * no rows.
 */
DEV bool look_at_channels(const struct moeep_ht_combine_params &p, const struct table &table, int rank,
			  int first, struct missing *missing)
{
	const struct moeep_dev_context &c = p.c;
	const uint64_t *words = progress_at(c, c.rank, rank, 0);
	volatile uint8_t *here = table.here + rank * MOEEP_DEV_CHANNELS;
	uint64_t zero = flag_word(p.plan->epoch, 0);
	int channels = p.ends.channels[rank];
	int count = p.route.send_count[rank];
	uint64_t seen[LOOKS];
	bool news = false;

#pragma unroll
	for (int i = 0; i < LOOKS; i++) {
		int channel = first + 32 * i + LANE;

		seen[i] = channel < channels ? load_relaxed(words + channel) : 0;
	}
#pragma unroll
	for (int i = 0; i < LOOKS; i++) {
		int channel = first + 32 * i + LANE;
		uint64_t rows = channel < channels
					? (uint64_t)span_of(count, channels, channel).count
					: 0;

		if (channel >= channels || here[channel]) {
			continue;
		}
		if (rows > 0 && !flag_reached(seen[i], zero + rows)) {
			*missing = {rank, zero + rows, seen[i]};
			continue;
		}
		/* Pairs with the reports in ht_combine_send.cuh. */
		(void)load_acquire(words + channel);
		/* Pairs with the fence in wait_row(). */
		__threadfence_block();
		here[channel] = 1;
		news = true;
	}
	return news;
}

/* Past the channels that are there. False: all are. */
DEV bool pass_channels(const struct moeep_ht_combine_params &p, const struct table &table, int rank,
		       int *first)
{
	const volatile uint8_t *here = table.here + rank * MOEEP_DEV_CHANNELS;
	int channels = p.ends.channels[rank];

	while (*first < channels) {
		int channel = *first + LANE;
		unsigned gap = __ballot_sync(FULL, channel < channels && !here[channel]);

		if (gap) {
			*first += __ffs((int)gap) - 1;
			return true;
		}
		*first += 32;
	}
	return false;
}

/* By the watcher, until all rows are there. False: the comm has failed. */
DEV bool watch_rows(const struct moeep_ht_combine_params &p, const struct table &table)
{
	const struct moeep_dev_context &c = p.c;
	uint64_t start = 0;
	uint32_t polls = 0;
	bool ok = true;

	for (;;) {
		struct missing missing = {-1, 0, 0};
		bool news = false;
		bool all = true;

		for (int rank = 0; rank < c.num_ranks; rank++) {
			int first = table.first[rank];

			if (!is_watched(p, rank)) {
				continue;
			}
			news = look_at_channels(p, table, rank, first, &missing) || news;
			__syncwarp();
			all = !pass_channels(p, table, rank, &first) && all;
			if (LANE == 0) {
				table.first[rank] = first;
			}
			__syncwarp();
		}
		if (all) {
			return true;
		}
		if (__any_sync(FULL, news)) {
			start = 0;
			polls = 0;
		} else if (++polls % POLLS_PER_CHECK == 0 && missing.rank >= 0) {
			ok = wait_check(c, missing.rank, MOEEP_DEV_ROWS, missing.expected,
					missing.seen, &start);
		}
		if (!__all_sync(FULL, ok)) {
			*(volatile int32_t *)table.failed = 1;
			return false;
		}
		__nanosleep(200);
	}
}

/* What a lane knows of the rank that it looks after. */
struct giver {
	const char *rows; /* by position */
	int each;	  /* rows of a channel; 0: all are there */
	int base;	  /* of this rank's rows there */
};

DEV struct giver giver_of(const struct moeep_ht_combine_params &p, int rank)
{
	struct giver g = {NULL, 0, 0};

	if (rank < p.c.num_ranks) {
		g.rows = p.ends.src[rank];
		g.base = p.route.send_base[rank];
	}
	if (rank < p.c.num_ranks && is_watched(p, rank)) {
		g.each = (int)per_channel(p.route.send_count[rank], p.ends.channels[rank]);
	}
	return g;
}

/* Wait until a rank's row is there. False: the comm has failed. */
DEV bool wait_row(const struct table &table, int rank, int position, const struct giver &g)
{
	int index = position - g.base;
	int channel = index / g.each;
	const volatile uint8_t *here = table.here + rank * MOEEP_DEV_CHANNELS + channel;

	while (*here == 0) {
		if (*(const volatile int32_t *)table.failed) {
			return false;
		}
		__nanosleep(100);
	}
	__threadfence_block();
	return true;
}

/* A rank's row of a token, or -1. */
DEV int position_of(const struct moeep_ht_combine_params &p, int64_t token, int rank)
{
	return rank < p.c.num_ranks && token < p.num_tokens
		       ? p.route.position[token * p.c.num_ranks + rank]
		       : -1;
}

/*
 * The rows of a token, once they are there; a lane looks after each of the first 32 ranks, whose
 * position it knows. False: the comm has failed.
 */
DEV bool find_terms_of(const struct moeep_ht_combine_params &p, const struct table &table,
		       int64_t token, const struct giver &first, int position, struct terms *t)
{
	const struct moeep_dev_context &c = p.c;
	struct giver g = first;

	for (int from = 0; from < c.num_ranks; from += 32) {
		const char *mine;
		bool ok;

		if (from > 0) {
			g = giver_of(p, from + LANE);
			position = position_of(p, token, from + LANE);
		}
		ok = position < 0 || g.each == 0 || wait_row(table, from + LANE, position, g);
		mine = g.rows + (uint64_t)position * p.staged_bytes;
		if (!__all_sync(FULL, ok)) {
			return false;
		}
		/* Ranks ascend, and so do the terms: term i at lane i % 32. */
		for (unsigned m = __ballot_sync(FULL, position >= 0); m; m &= m - 1) {
			add_term(t, warp_pointer(mine, __ffs((int)m) - 1), 1.0f);
		}
	}
	/* What each lane has acquired, all read. */
	__syncwarp();
	return true;
}

/*
 * What a warp sums at a time: part of a token's row, so that the last of them are done soon. Whoever is free
 * claims the next, since a link does not serve all SMs alike. When tokens were dealt out, the slowest
 * block took 1.7 times as long as most.
 */
struct unit {
	int64_t token; /* num_tokens: there is none */
	int64_t first; /* elements */
	int64_t last;
};

DEV struct unit claim_unit(const struct moeep_ht_combine_params &p)
{
	uint32_t n = claim(&p.c.state->claimed_units);
	uint32_t token = n / (uint32_t)p.parts;
	struct unit u = {token < p.num_tokens ? (int64_t)token : p.num_tokens, 0, 0};

	u.first = (int64_t)(n - token * (uint32_t)p.parts) * p.part;
	u.last = u.first + p.part < p.c.hidden ? u.first + p.part : p.c.hidden;
	return u;
}

DEV void sum_unit(const struct moeep_ht_combine_params &p, const struct unit &u,
		  const struct terms &t)
{
	char *out = p.out + (uint64_t)u.token * p.row_bytes;
	bool two = t.count == 2 && !p.bias && p.staged_dtype == p.dtype;
	const char *a = warp_pointer(t.row[0], 0);
	const char *b = warp_pointer(t.row[0], 1);

	if (two && p.dtype == MOEEP_BF16) {
		warp_sum_two<MOEEP_BF16>(a, b, out, (int)u.first, (int)u.last);
	} else if (two && p.dtype == MOEEP_FP16) {
		warp_sum_two<MOEEP_FP16>(a, b, out, (int)u.first, (int)u.last);
	} else {
		const char *bias = p.bias ? p.bias + (uint64_t)u.token * p.row_bytes : NULL;

		sum_any(t, {p.staged_dtype, p.dtype, false, bias, out, u.first, u.last});
	}
}

/* By each warp of those that sum. False: the comm has failed. */
DEV bool sum_tokens(const struct moeep_ht_combine_params &p, const struct table &table)
{
	struct giver giver = giver_of(p, LANE);
	struct unit unit = claim_unit(p);
	int position = position_of(p, unit.token, LANE);

	while (unit.token < p.num_tokens) {
		struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};
		/* On its way while this one is summed. */
		struct unit next = claim_unit(p);
		int next_position = position_of(p, next.token, LANE);

		if (!find_terms_of(p, table, unit.token, giver, position, &t)) {
			return false;
		}
		sum_unit(p, unit, t);
		unit = next;
		position = next_position;
	}
	return true;
}

/* Values of this rank's choices, from the ranks that hold them; by blocks that sum. */
DEV bool take_values(const struct moeep_ht_combine_params &p)
{
	const struct moeep_dev_context &c = p.c;
	int block = part_of(p.senders).index;
	int64_t threads = (int64_t)(gridDim.x - (unsigned)p.senders) * blockDim.x;

	if (!block_wait_all(c, c.window.ht_record_flag, flag_word(p.plan->epoch, 0),
			    MOEEP_DEV_RECORDS, NULL)) {
		return false;
	}
	for (int64_t i = (int64_t)block * blockDim.x + threadIdx.x; i < p.num_tokens * p.topk;
	     i += threads) {
		int id = p.route.topk_idx[i];
		float value = 0.0f;

		if (id >= 0) {
			int rank = expert_rank(c, id);
			int64_t token = i / p.topk;
			int64_t index = p.route.position[token * c.num_ranks + rank] -
					p.route.send_base[rank];

			value = record_weights(c, c.rank,
					       (int64_t)rank * c.ht_max_tokens + index,
					       p.topk)[i % p.topk];
		}
		p.out_topk_weights[i] = value;
	}
	return true;
}

/* shared: the table. False: the comm has failed. */
DEV bool sum_rows(const struct moeep_ht_combine_params &p, char *shared)
{
	__shared__ int32_t failed;
	struct table table = table_of(shared, p.c.num_ranks, &failed);
	bool watched = false;
	bool ok = true;

	for (int rank = 0; rank < p.c.num_ranks; rank++) {
		watched = watched || is_watched(p, rank);
	}
	for (int i = (int)threadIdx.x; watched && i < p.c.num_ranks * MOEEP_DEV_CHANNELS;
	     i += (int)blockDim.x) {
		table.here[i] = 0;
	}
	for (int i = (int)threadIdx.x; watched && i < p.c.num_ranks; i += (int)blockDim.x) {
		table.first[i] = 0;
	}
	if (threadIdx.x == 0) {
		failed = 0;
	}
	__syncthreads();
	if (p.out && watched && WARP == WATCHER) {
		ok = watch_rows(p, table);
	} else if (p.out) {
		ok = sum_tokens(p, table);
	}
	if (p.out_topk_weights && (p.plan->given & MOEEP_DEV_GIVEN_WEIGHTS)) {
		ok = take_values(p) && ok;
	}
	return ok;
}

#endif
