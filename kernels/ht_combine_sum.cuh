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

#define WATCHER	  0
/* Movers of a block report together, so a word of the table is for all of them. */
#define TABLE_ROW (MOEEP_DEV_CHANNELS / MOVERS)
#define COMPLETE  INT32_MAX

/* What the watcher tells: rounds of rows that are there, for each block of each rank. */
struct table {
	int32_t *rounds; /* [R][TABLE_ROW] */
	int32_t *failed;
};

/* Do rows of a rank come while sums are made? Else they are where they are from the beginning. */
DEV bool is_watched(const struct moeep_ht_combine_params &p, int rank)
{
	return p.plan->channels[rank] > 0 && (rank != p.c.rank || p.expert_major);
}

/* What a lane waits for, for a report. */
struct missing {
	int rank; /* -1: nothing */
	uint64_t expected;
	uint64_t seen;
};

/* How many rounds of a block's rows are there; acquired if that is more than before. */
DEV int look_at_block(const struct moeep_ht_combine_params &p, int rank, int block, int before,
		      struct missing *missing)
{
	const struct moeep_dev_context &c = p.c;
	int channels = p.plan->channels[rank];
	int count = p.route->send_count[rank];
	const uint64_t *words = progress_at(c, c.rank, rank, block * MOVERS);
	uint64_t zero = flag_word(p.plan->epoch, 0);
	uint64_t seen[MOVERS];
	int rounds = COMPLETE;

#pragma unroll
	for (int m = 0; m < MOVERS; m++) {
		seen[m] = load_relaxed(words + m);
	}
#pragma unroll
	for (int m = 0; m < MOVERS; m++) {
		int rows = (int)span_of(count, channels, block * MOVERS + m).count;

		if (rows > 0 && !flag_reached(seen[m], zero + (uint64_t)rows)) {
			int here = flag_reached(seen[m], zero) ? (int)(seen[m] - zero) : 0;

			rounds = here < rounds ? here : rounds;
			*missing = {rank, zero + (uint64_t)rows, seen[m]};
		}
	}
	if (rounds > before) {
		/* Pairs with the reports in ht_combine_send.cuh. */
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			(void)load_acquire(words + m);
		}
	}
	return rounds;
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

		for (int rank = 0; rank < c.num_ranks; rank++) {
			int blocks = is_watched(p, rank) ? p.plan->channels[rank] / MOVERS : 0;

			for (int block = LANE; block < blocks; block += 32) {
				volatile int32_t *word = table.rounds + rank * TABLE_ROW + block;
				int before = *word;
				int rounds = before;

				if (before != COMPLETE) {
					rounds = look_at_block(p, rank, block, before, &missing);
				}
				if (rounds > before) {
					/* Pairs with the fence in wait_row(). */
					__threadfence_block();
					*word = rounds;
					news = true;
				}
			}
		}
		if (__all_sync(FULL, missing.rank < 0)) {
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
		g.rows = p.plan->src[rank];
		g.base = p.route->send_base[rank];
	}
	if (rank < p.c.num_ranks && is_watched(p, rank)) {
		g.each = (int)per_channel(p.route->send_count[rank], p.plan->channels[rank]);
	}
	return g;
}

/* Wait until a rank's row is there. False: the comm has failed. */
DEV bool wait_row(const struct table &table, int rank, int position, const struct giver &g)
{
	int index = position - g.base;
	int channel = index / g.each;
	const volatile int32_t *rounds = table.rounds + rank * TABLE_ROW + channel / MOVERS;

	while (*rounds <= index - channel * g.each) {
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
		       ? p.route->position[token * p.c.num_ranks + rank]
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

DEV void sum_token(const struct moeep_ht_combine_params &p, int64_t token, const struct terms &t)
{
	char *out = p.out + (uint64_t)token * p.row_bytes;
	bool two = t.count == 2 && !p.bias && p.staged_dtype == p.dtype;
	const char *a = warp_pointer(t.row[0], 0);
	const char *b = warp_pointer(t.row[0], 1);

	if (two && p.dtype == MOEEP_BF16) {
		warp_sum_two<MOEEP_BF16>(a, b, out, (int)p.c.hidden);
	} else if (two && p.dtype == MOEEP_FP16) {
		warp_sum_two<MOEEP_FP16>(a, b, out, (int)p.c.hidden);
	} else {
		const char *bias = p.bias ? p.bias + (uint64_t)token * p.row_bytes : NULL;

		sum_any(t, {p.staged_dtype, p.dtype, false, bias, out, 0, p.c.hidden});
	}
}

/*
 * The order in which tokens are summed: channels of the senders take turns, as their rows come in
 * at the same pace; of rows that are there one after another. Number n of it, or a number past the last
 * token.
 */
struct turns {
	int channels;
	int64_t each; /* tokens of a channel */
	int64_t count;
};

DEV struct turns turns_of(const struct moeep_ht_combine_params &p)
{
	int next = p.c.rank + 1 < p.c.num_ranks ? p.c.rank + 1 : 0;
	struct turns t = {is_watched(p, next) ? p.plan->channels[next] : 1, 1, 0};

	t.each = per_channel(p.num_tokens, t.channels);
	t.count = t.each * t.channels;
	return t;
}

DEV int64_t token_in_turn(const struct moeep_ht_combine_params &p, const struct turns &t, int64_t n)
{
	uint32_t turn = (uint32_t)n / (uint32_t)t.channels;

	return n < t.count ? (int64_t)((uint32_t)n - turn * (uint32_t)t.channels) * t.each + turn
			   : p.num_tokens;
}

/*
 * A warp's next token: whoever is free takes it, since a link does not serve all SMs alike. When tokens were
 * dealt out, the slowest block took 1.7 times as long as most. Past the last: num_tokens.
 */
DEV int64_t claim_token(const struct moeep_ht_combine_params &p, const struct turns &turns)
{
	int64_t token = p.num_tokens;
	uint32_t n = 0;

	do {
		if (LANE == 0) {
			n = atomicAdd(&p.c.state->claimed, 1u);
		}
		n = __shfl_sync(FULL, n, 0);
		token = token_in_turn(p, turns, n);
	} while (token >= p.num_tokens && n < turns.count);
	return token;
}

/* By each warp of those that sum. False: the comm has failed. */
DEV bool sum_tokens(const struct moeep_ht_combine_params &p, const struct table &table)
{
	struct turns turns = turns_of(p);
	struct giver giver = giver_of(p, LANE);
	int64_t token = claim_token(p, turns);
	int position = position_of(p, token, LANE);

	while (token < p.num_tokens) {
		struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};
		/* On its way while this token is summed. */
		int64_t next = claim_token(p, turns);
		int next_position = position_of(p, next, LANE);

		if (!find_terms_of(p, table, token, giver, position, &t)) {
			return false;
		}
		sum_token(p, token, t);
		token = next;
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
		int id = p.route->topk_idx[i];
		float value = 0.0f;

		if (id >= 0) {
			int rank = expert_rank(c, id);
			int64_t token = i / p.topk;
			int64_t index = p.route->position[token * c.num_ranks + rank] -
					p.route->send_base[rank];

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
	struct table table = {(int32_t *)shared, &failed};
	bool watched = false;
	bool ok = true;

	for (int rank = 0; rank < p.c.num_ranks; rank++) {
		watched = watched || is_watched(p, rank);
	}
	for (int i = (int)threadIdx.x; watched && i < p.c.num_ranks * TABLE_ROW;
	     i += (int)blockDim.x) {
		table.rounds[i] = 0;
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
