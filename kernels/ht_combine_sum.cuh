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

#include "ht_combine_send.cuh"

#define WATCHER 0
/* Channels at which a lane of the watcher looks at once, for each rank, about the first that is missing. */
#define LOOKS	4
/* Words of the table for a rank. */
#define TABLE_WORDS (MOEEP_DEV_CHANNELS / 32)

/* What the watcher tells. */
struct table {
	int *here;   /* [R][MOEEP_DEV_CHANNELS / 32] a bit for each channel */
	int *first;  /* [R] the first channel that is missing; the watcher's own */
	int *failed;
};

/* In shared memory, of as many bytes as deal_combine() of lib/cuda asks for. */
DEV struct table table_of(char *shared, int num_ranks)
{
	return table{(int *)shared + 1 + num_ranks, (int *)shared + 1, (int *)shared};
}

/* A barrier of the block comes behind it. */
DEV void clear_table(char *shared, int num_ranks)
{
	for (int i = (int)threadIdx.x; i < 1 + num_ranks * (1 + TABLE_WORDS); i += (int)blockDim.x) {
		((int *)shared)[i] = 0;
	}
}

/* Do rows of a rank come while sums are made? Else they are where they are from the beginning. */
DEV bool is_watched(const struct job &j, int rank)
{
	const struct moeep_ht_combine_params &p = j.p;

	return j.ends.channels[rank] > 0 && (rank != p.c.rank || p.expert_major);
}

/* What a lane waits for, for a report. */
struct missing {
	int rank; /* -1: nothing */
	uint64_t expected;
	uint64_t seen;
};

/* Rows of a channel of a rank, and channels that have any. */
DEV int rows_each(const struct job &j, int rank)
{
	return per_channel(j.p.route.send_count[rank], j.ends.channels[rank]);
}

DEV int channels_used(const struct job &j, int rank)
{
	int each = rows_each(j, rank);

	return each > 0 ? (j.p.route.send_count[rank] + each - 1) / each : 0;
}

/*
 * The watcher looks at channels of a rank, a lane at each, and acquires what has come. True if one was missing
 * and is there.
 */
DEV bool look_at_channels(const struct job &j, const struct table &table, int rank, int first,
			  struct missing *missing)
{
	const struct moeep_dev_context &c = j.p.c;
	const uint64_t *words = progress_at(c, c.rank, rank, 0);
	int *here = table.here + rank * TABLE_WORDS + first / 32;
	uint64_t zero = flag_word(j.plan.epoch, 0);
	int channels = channels_used(j, rank);
	int count = j.p.route.send_count[rank];
	int all = j.ends.channels[rank];
	uint64_t seen[LOOKS];
	bool news = false;

	first = first / 32 * 32 + LANE;
#pragma unroll
	for (int i = 0; i < LOOKS; i++) {
		int channel = first + 32 * i;

		seen[i] = channel < channels ? load_relaxed(words + 2 * channel) : 0;
	}
#pragma unroll
	for (int i = 0; i < LOOKS; i++) {
		int channel = first + 32 * i;
		uint32_t before = first - LANE + 32 * i < channels ? (uint32_t)handed(&here[i]) : ~0u;
		bool now = channel < channels && !(before >> LANE & 1u);
		uint64_t rows = now ? (uint64_t)span_of(count, all, channel).count : 0;
		uint32_t come;

		if (now && !flag_reached(seen[i], zero + rows)) {
			*missing = {rank, zero + rows, seen[i]};
			now = false;
		}
		if (now) {
			/* Pairs with the reports in ht_combine_send.cuh. */
			(void)load_acquire(words + 2 * channel);
		}
		/* Pairs with the fence in wait_row(). */
		__threadfence_block();
		come = __ballot_sync(FULL, now);
		if (come && LANE == 0) {
			hand_over(&here[i], (int)(before | come));
		}
		news = news || come != 0;
	}
	return news;
}

/* Past the channels that are there. False: all are. */
DEV bool pass_channels(const struct job &j, const struct table &table, int rank, int *first)
{
	const int *here = table.here + rank * TABLE_WORDS;
	int channels = channels_used(j, rank);

	while (*first < channels) {
		uint32_t gap = ~(uint32_t)handed(&here[*first / 32]) >> (*first & 31);

		if (gap) {
			*first += __ffs((int)gap) - 1;
			return *first < channels;
		}
		*first = (*first / 32 + 1) * 32;
	}
	return false;
}

/* By the watcher, until all rows are there. False: the comm has failed. */
DEV bool watch_rows(const struct job &j, const struct table &table)
{
	const struct moeep_ht_combine_params &p = j.p;
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

			if (!is_watched(j, rank)) {
				continue;
			}
			news = look_at_channels(j, table, rank, first, &missing) || news;
			__syncwarp();
			all = !pass_channels(j, table, rank, &first) && all;
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
			hand_over(table.failed, 1);
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

DEV struct giver giver_of(const struct job &j, int rank)
{
	const struct moeep_ht_combine_params &p = j.p;
	struct giver g = {NULL, 0, 0};

	if (rank < p.c.num_ranks) {
		g.rows = j.ends.src[rank];
	}
	if (rank < p.c.num_ranks && is_watched(j, rank)) {
		g.base = p.route.send_base[rank];
		g.each = rows_each(j, rank);
	}
	return g;
}

/* Wait until a rank's row is there. False: the comm has failed. */
DEV bool wait_row(const struct table &table, int rank, int position, const struct giver &g)
{
	int index = position - g.base;
	int channel = index / g.each;
	const int *here = table.here + rank * TABLE_WORDS + channel / 32;

	while (!((uint32_t)handed(here) >> (channel & 31) & 1u)) {
		if (handed(table.failed)) {
			return false;
		}
		__nanosleep(100);
	}
	__threadfence_block();
	return true;
}

/* A rank's row of a token, or -1. */
DEV int position_of(const struct job &j, int64_t token, int rank)
{
	const struct moeep_ht_combine_params &p = j.p;

	return rank < p.c.num_ranks && token < p.num_tokens
		       ? p.route.position[token * p.c.num_ranks + rank]
		       : -1;
}

/*
 * The rows of a token, once they are there; a lane looks after each of the first 32 ranks, whose
 * position it knows. False: the comm has failed.
 */
DEV bool find_terms_of(const struct job &j, const struct table &table,
		       int64_t token, const struct giver &first, int position, struct terms *t)
{
	const struct moeep_ht_combine_params &p = j.p;
	const struct moeep_dev_context &c = p.c;
	struct giver g = first;

	for (int from = 0; from < c.num_ranks; from += 32) {
		const char *mine;
		bool ok;

		if (from > 0) {
			g = giver_of(j, from + LANE);
			position = position_of(j, token, from + LANE);
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

DEV struct unit unit_of(const struct job &j, uint32_t n)
{
	const struct moeep_ht_combine_params &p = j.p;
	uint32_t token = n / (uint32_t)p.parts;
	struct unit u = {token < p.num_tokens ? (int64_t)token : p.num_tokens, 0, 0};

	u.first = (int64_t)(n - token * (uint32_t)p.parts) * p.part;
	u.last = u.first + p.part < p.c.hidden ? u.first + p.part : p.c.hidden;
	return u;
}

/* The first two units of each warp that sums, but of the watchers, need no claim. */
DEV uint32_t given_units(const struct job &j)
{
	return (gridDim.x - (uint32_t)j.p.senders) * (uint32_t)(NUM_WARPS - 1);
}

DEV struct unit claimed_unit(const struct job &j, uint32_t ahead)
{
	return unit_of(j, 2 * given_units(j) + claimed(ahead));
}

/* A unit and where this rank's rows for it are, a rank in each lane; and the unit behind it. */
struct work {
	struct unit unit;
	int position;
	struct unit next;
};

/* Before it is known where anything lies: by a warp that sums. */
DEV struct work first_work(const struct job &j)
{
	struct unit none = {j.p.num_tokens, 0, 0};
	struct work w = {none, -1, none};
	uint32_t number = (uint32_t)(part_of(j.p.senders).index * (NUM_WARPS - 1) + WARP - 1);

	if (WARP != WATCHER) {
		w.unit = unit_of(j, number);
		w.position = position_of(j, w.unit.token, LANE);
		w.next = unit_of(j, number + given_units(j));
	}
	return w;
}

DEV void sum_unit(const struct job &j, const struct unit &u,
		  const struct terms &t)
{
	const struct moeep_ht_combine_params &p = j.p;
	char *out = p.out + (uint64_t)u.token * p.row_bytes;
	/* That code is at hand. The rest is fetched from memory where it is not the rule: 10 us for a unit. */
	bool few = t.count > 0 && t.count <= 2 && !p.bias && p.staged_dtype == p.dtype;
	const char *a = warp_pointer(t.row[0], 0);
	const char *b = warp_pointer(t.row[0], 1);

	if (few && p.dtype == MOEEP_BF16) {
		warp_sum_few<MOEEP_BF16>(a, b, out, (int)u.first, (int)u.last);
	} else if (few && p.dtype == MOEEP_FP16) {
		warp_sum_few<MOEEP_FP16>(a, b, out, (int)u.first, (int)u.last);
	} else {
		const char *bias = p.bias ? p.bias + (uint64_t)u.token * p.row_bytes : NULL;

		sum_any(t, {p.staged_dtype, p.dtype, false, bias, out, u.first, u.last});
	}
}

/* By each warp of those that sum. False: the comm has failed. */
DEV bool sum_tokens(const struct job &j, const struct table &table, const struct work &first)
{
	const struct moeep_ht_combine_params &p = j.p;
	struct giver giver = giver_of(j, LANE);
	uint32_t *units = &p.c.state->claimed_units;
	struct work work = first;

	if (WARP == WATCHER) {
		work.unit = claimed_unit(j, claim_ahead(units));
		work.position = position_of(j, work.unit.token, LANE);
		work.next = claimed_unit(j, claim_ahead(units));
	}
	while (work.unit.token < p.num_tokens) {
		struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};
		/* On their way while this one is summed. */
		uint32_t ahead = claim_ahead(units);
		int next_position = position_of(j, work.next.token, LANE);

		if (!find_terms_of(j, table, work.unit.token, giver, work.position, &t)) {
			return false;
		}
		sum_unit(j, work.unit, t);
		work = {work.next, next_position, claimed_unit(j, ahead)};
	}
	return true;
}

/* Values of this rank's choices, from the ranks that hold them; by blocks that sum. */
DEV bool take_values(const struct job &j)
{
	const struct moeep_ht_combine_params &p = j.p;
	const struct moeep_dev_context &c = p.c;
	int block = part_of(p.senders).index;
	int64_t threads = (int64_t)(gridDim.x - (unsigned)p.senders) * blockDim.x;

	if (!block_wait_all(c, c.window.ht_record_flag, flag_word(j.plan.epoch, 0),
			    MOEEP_DEV_RECORDS)) {
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

/* shared: the table, cleared. first: this warp's. False: the comm has failed. */
DEV bool sum_rows(const struct job &j, char *shared, const struct work &first)
{
	const struct moeep_ht_combine_params &p = j.p;
	struct table table = table_of(shared, p.c.num_ranks);
	bool watched = false;
	bool ok = true;

	for (int rank = 0; rank < p.c.num_ranks; rank++) {
		watched = watched || is_watched(j, rank);
	}
	if (p.out && watched && WARP == WATCHER) {
		ok = watch_rows(j, table);
	} else if (p.out) {
		ok = sum_tokens(j, table, first);
	}
	if (p.out_topk_weights && (j.plan.given & MOEEP_DEV_GIVEN_WEIGHTS)) {
		ok = take_values(j) && ok;
	}
	return ok;
}

#endif
