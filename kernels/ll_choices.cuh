/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_choices.cuh - what a rank tells all others of its choices in a low-latency dispatch: the experts,
 * each choice's number among those of the same expert, weights, and how many each expert has.
 * With these a receiver finds the place of any row without looking at other tokens.
 */
#ifndef MOEEP_KERNELS_LL_CHOICES_CUH
#define MOEEP_KERNELS_LL_CHOICES_CUH

#include "ll_common.cuh"

/*
 * Choices that a block numbers at a time, each by a thread of the last warps; the other threads count those in
 * front of them meanwhile.
 */
#define NUMBERED 64

/* What ranks must agree on; in a slot's first word, behind the number of tokens. */
DEV uint32_t ll_shape(const struct moeep_ll_dispatch_params &p)
{
	return (uint32_t)p.dtype | (uint32_t)p.quant << 8 | (uint32_t)p.topk << 16 |
	       (uint32_t)p.given << 24;
}

DEV bool shape_has_weights(uint32_t shape)
{
	return shape >> 24 != 0;
}

/* First expert of a rank, as moeep_expert_range() deals them. */
DEV int first_expert(const struct moeep_dev_context &c, int rank)
{
	return rank * (c.num_experts / c.num_ranks) + (rank < c.large_ranks ? rank : c.large_ranks);
}

/* A choice of the caller, -1 if there is no such expert. */
DEV int choice_of(const struct moeep_ll_dispatch_params &p, int at)
{
	int64_t id = raw_choice(p.topk_idx, p.topk_dtype, at);

	return id >= 0 && id < p.c.num_experts ? (int)id : -1;
}

/* Count the first choices of all, by the threads that number none. */
#define COUNTED 4
DEV void count_choices(const struct moeep_ll_dispatch_params &p, int *hist, int count)
{
	int threads = (int)blockDim.x - NUMBERED;

	for (int base = (int)threadIdx.x; base < count && (int)threadIdx.x < threads;
	     base += COUNTED * threads) {
		int id[COUNTED];

		/* All are asked for before the first is used. */
#pragma unroll
		for (int i = 0; i < COUNTED; i++) {
			int at = base + i * threads;

			id[i] = at < count ? choice_of(p, at) : -1;
		}
#pragma unroll
		for (int i = 0; i < COUNTED; i++) {
			if (id[i] >= 0) {
				atomicAdd(&hist[id[i]], 1);
			}
		}
	}
}

/* A warp numbers choices, 32 at a time and in order. */
DEV void number_choices(const int *id, int *number, int count, int *hist)
{
	for (int i = LANE; __any_sync(FULL, i < count); i += 32) {
		int e = i < count ? id[i] : -1;
		unsigned same = __match_any_sync(FULL, e);

		if (i < count) {
			number[i] = e >= 0 ? hist[e] + __popc(same & ((1u << LANE) - 1u)) : 0;
		}
		__syncwarp();
		if (e >= 0 && LANE == __ffs((int)same) - 1) {
			hist[e] += __popc(same);
		}
		__syncwarp();
	}
}

/* One word of three values, in the same place of all ranks' slots. */
DEV void tell_all(const struct moeep_dev_context &c, uint64_t epoch, uint64_t offset, uint32_t x,
		  uint32_t y, uint32_t z)
{
	for (int rank = 0; rank < c.num_ranks; rank++) {
		store_whole16(ll_slot(c, rank, epoch, c.rank) + offset, x, y, z, tag_of(epoch));
	}
}

DEV uint32_t value_in(const int *values, int at, int end)
{
	return at < end ? (uint32_t)values[at] : 0;
}

/* Choices that a block numbers, in shared memory. */
struct numbered {
	int *id;
	int *number;
	int *weight; /* bits */
};

/* Read the choices of tokens [first, last), at most NUMBERED, a thread of the last ones each. */
DEV void read_tokens(const struct moeep_ll_dispatch_params &p, const struct numbered &n, int first,
		     int last)
{
	int i = (int)threadIdx.x - ((int)blockDim.x - NUMBERED);
	int at = first * p.topk + i;

	if (i >= 0 && i < (last - first) * p.topk) {
		/* On its way with the choice. */
		float weight = p.given ? p.topk_weights[at] : 0.0f;
		int64_t raw = raw_choice(p.topk_idx, p.topk_dtype, at);

		n.id[i] = check_choice(p.c, raw, at / p.topk, at % p.topk);
		n.weight[i] = (int)__float_as_uint(weight);
		p.route.topk_idx[at] = n.id[i];
	}
}

/* The same block tells all ranks. */
DEV void tell_choices(const struct moeep_ll_dispatch_params &p, uint64_t epoch,
		      const struct numbered &n, int first, int last)
{
	const struct moeep_dev_context &c = p.c;
	int words = words_of(p.topk);

	for (int i = (int)threadIdx.x; i < (last - first) * words; i += (int)blockDim.x) {
		uint64_t at = (uint64_t)(first * words + i) * MOEEP_DEV_WORD;
		int from = i / words * p.topk + i % words * VALUES;
		int end = (i / words + 1) * p.topk;

		tell_all(c, epoch, MOEEP_DEV_LL_HEADER + at, value_in(n.id, from, end),
			 value_in(n.id, from + 1, end), value_in(n.id, from + 2, end));
		tell_all(c, epoch, c.window.ll_slot_numbers + at, value_in(n.number, from, end),
			 value_in(n.number, from + 1, end), value_in(n.number, from + 2, end));
		if (p.given) {
			tell_all(c, epoch, c.window.ll_slot_weights + at,
				 value_in(n.weight, from, end),
				 value_in(n.weight, from + 1, end),
				 value_in(n.weight, from + 2, end));
		}
	}
}

/* A block tells each rank how many choices its experts have. hist: those of all tokens. */
DEV void tell_counts(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const int *hist)
{
	const struct moeep_dev_context &c = p.c;
	int words = words_of(c.num_experts / c.num_ranks + 1);

	for (int i = (int)threadIdx.x; i < c.num_ranks * words; i += (int)blockDim.x) {
		int rank = i / words;
		int from = first_expert(c, rank) + i % words * VALUES;
		int end = first_expert(c, rank + 1);

		if (from < end) {
			store_whole16(ll_slot(c, rank, epoch, c.rank) + c.window.ll_slot_counts +
					      (i % words + 1) * MOEEP_DEV_WORD,
				      value_in(hist, from, end), value_in(hist, from + 1, end),
				      value_in(hist, from + 2, end), tag_of(epoch));
		}
	}
}

/* A block counts tokens for each rank, in counts [R], and tells it. A thread for a token. */
DEV void tell_tokens(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int *counts)
{
	const struct moeep_dev_context &c = p.c;

	__syncthreads();
	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		counts[rank] = 0;
	}
	__syncthreads();
	for (int base = 0; base < c.num_ranks; base += 64) {
		for (int token = (int)threadIdx.x; token < p.num_tokens; token += (int)blockDim.x) {
			uint64_t ranks = 0;

#pragma unroll 8
			for (int k = 0; k < p.topk; k++) {
				int id = choice_of(p, token * p.topk + k);
				unsigned rank = (unsigned)(expert_rank(c, id < 0 ? 0 : id) - base);

				ranks |= id >= 0 && rank < 64u ? UINT64_C(1) << rank : 0;
			}
			for (; ranks; ranks &= ranks - 1) {
				atomicAdd(&counts[base + __ffsll((long long)ranks) - 1], 1);
			}
		}
	}
	__syncthreads();
	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		p.route.send_count[rank] = counts[rank];
		store_whole16(ll_slot(c, rank, epoch, c.rank) + c.window.ll_slot_counts,
			      (uint32_t)counts[rank], 0, 0, tag_of(epoch));
	}
	__syncthreads();
}

/* What a block has to do with choices. */
struct task {
	struct crew numbers; /* that number and tell choices */
	bool counts;	     /* tells how many each expert has */
	bool tokens;	     /* tells how many tokens each rank gets */
};

DEV int units_of(const struct moeep_ll_dispatch_params &p)
{
	int per_unit = NUMBERED / p.topk;

	return ((int)p.num_tokens + per_unit - 1) / per_unit;
}

/*
 * The last blocks of those that may: the first ones have most else to do. The very last has to count what is
 * received. Of the rest two have no choices to number, so that the counts are not the last to come.
 */
DEV struct task choice_task(const struct moeep_ll_dispatch_params &p, const struct crew &crew)
{
	int units = units_of(p);
	int blocks = crew.count - 3;
	int count = units < 1 ? 1 : units < blocks ? units : blocks;
	int index = crew.count - 2 - crew.index;

	if (p.hist || crew.count < 4) {
		bool all = crew.index == 0;

		return {{all ? 0 : -1, 1}, all, all};
	}
	/* The very last block's index is negative here, as that of one without a task. */
	return {{crew.index >= 0 && index >= 2 && index - 2 < count ? index - 2 : -1, count},
		index == 0,
		index == 1};
}

/* Begin to count experts' choices: those of the first tokens. */
DEV void count_from_zero(const struct moeep_ll_dispatch_params &p, int *hist, int tokens)
{
	for (int e = (int)threadIdx.x; e < p.c.num_experts; e += (int)blockDim.x) {
		hist[e] = 0;
	}
	__syncthreads();
	count_choices(p, hist, tokens * p.topk);
}

/* A block numbers and tells its share of the tokens; hist: as it is behind them. */
DEV void tell_share(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const struct crew &mine,
		    int *hist)
{
	__shared__ int id[NUMBERED];
	__shared__ int number[NUMBERED];
	__shared__ int weight[NUMBERED];
	struct numbered n = {id, number, weight};
	int per_unit = NUMBERED / p.topk;
	int units = units_of(p);
	int first = cut(units, mine.count, mine.index) * per_unit;
	int last = cut(units, mine.count, mine.index + 1) * per_unit;

	last = last < p.num_tokens ? last : (int)p.num_tokens;
	count_from_zero(p, hist, first);
#pragma unroll 1
	for (int unit = first; unit < last; unit += per_unit) {
		int end = unit + per_unit < last ? unit + per_unit : last;

		read_tokens(p, n, unit, end);
		__syncthreads();
		if (WARP == 0) {
			number_choices(id, number, (end - unit) * p.topk, hist);
		}
		__syncthreads();
		tell_choices(p, epoch, n, unit, end);
		/* Before the next ones take their place. */
		__syncthreads();
	}
}

/*
 * hist: counters [E]; counts: [R]; both of this block. What is told here should be ahead of the rows on the link,
 * which is busy with those for as long as all else takes.
 */
DEV void send_choices(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const struct task &task,
		      int *hist, int *counts)
{
	const struct moeep_dev_context &c = p.c;

	for (int rank = (int)threadIdx.x; task.numbers.index == 0 && rank < c.num_ranks;
	     rank += (int)blockDim.x) {
		store_whole16(ll_slot(c, rank, epoch, c.rank), (uint32_t)p.num_tokens, ll_shape(p),
			      0, tag_of(epoch));
	}
	if (task.numbers.index >= 0) {
		tell_share(p, epoch, task.numbers, hist);
	} else if (task.counts) {
		count_from_zero(p, hist, (int)p.num_tokens);
		__syncthreads();
	}
	if (task.counts) {
		tell_counts(p, epoch, hist);
	}
	if (task.tokens) {
		tell_tokens(p, epoch, counts);
	}
}

#endif
