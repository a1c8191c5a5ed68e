/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_route.cuh - how every HT operation begins: ranks tell each other what they bring, and all of
 * them draw the same conclusions.
 *
 * For a new dispatch blocks read the choices, each a stretch of the tokens, and number each token's
 * rows within the stretch. The last block adds up the stretches and writes an entry to every rank.
 * When all entries are there, every block makes its numbers final, and block 0 writes the plan
 * (ht_plan.cuh). Of a combine and a cached dispatch the numbers are known.
 */
#ifndef MOEEP_KERNELS_HT_ROUTE_CUH
#define MOEEP_KERNELS_HT_ROUTE_CUH

#include "ht_common.cuh"

/* Entries that block 0 keeps at hand for the plan, which reads each of them many times. */
#define HEADS 16
/* Of a dispatch's blocks; a combine has no tokens to number. */
#define ROUTE_WARPS (MOEEP_DEV_MOVE_THREADS / 32)

/* What every block knows of the operation. */
struct route {
	const struct moeep_dev_context &c;
	const struct moeep_dev_route &route;
	struct moeep_dev_plan *plan;
	const struct moeep_dev_ends &ends;
	const struct moeep_ht_route_args &p;
	uint64_t epoch;
	bool combine;
	bool cached;
	int64_t per_channel; /* tokens */
	int channels_here;   /* of a block */
	int64_t first;	     /* tokens of this block */
	int64_t last;
	const struct moeep_dev_entry *heads; /* of the first HEADS ranks, in shared memory */
};

/* Which of ranks [from, from + 32) a token goes to. */
DEV uint32_t token_ranks(const struct route &r, int64_t token, int from)
{
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_route &route = r.route;
	int topk = r.p.entry.topk;
	uint32_t mask = 0;

	if (r.cached) {
		for (int i = 0; i < 32 && from + i < c.num_ranks; i++) {
			if (route.position[token * c.num_ranks + from + i] >= 0) {
				mask |= 1u << i;
			}
		}
		return mask;
	}
	for (int k = 0; k < topk; k++) {
		int id = route.topk_idx[token * topk + k];
		int rank = id < 0 ? -1 : expert_rank(c, id) - from;

		if ((unsigned)rank < 32u) {
			mask |= 1u << rank;
		}
	}
	return mask;
}

/* Take over a token's choices and weights, and count the choices. */
DEV void read_token(const struct route &r, int64_t token, int *hist)
{
	const struct moeep_ht_route_args &p = r.p;
	int topk = p.entry.topk;

	for (int first = 0; first < topk; first += 8) {
		int64_t value[8];
		int id[8];

		/* All loads before the stores, which the compiler cannot tell apart from them. */
#pragma unroll
		for (int i = 0; i < 8; i++) {
			value[i] = first + i < topk ? raw_choice(p.topk_idx, p.topk_dtype,
								 token * topk + first + i)
						    : -1;
		}
#pragma unroll
		for (int i = 0; i < 8; i++) {
			id[i] = check_choice(r.c, value[i], token, first + i);
		}
#pragma unroll
		for (int i = 0; i < 8; i++) {
			if (first + i < topk) {
				r.route.topk_idx[token * topk + first + i] = id[i];
			}
			if (id[i] >= 0) {
				atomicAdd(hist ? &hist[id[i]] : &p.scratch.expert_count[id[i]], 1);
			}
		}
	}
}

DEV void read_weights(const struct route &r)
{
	const struct moeep_ht_route_args &p = r.p;
	int64_t end = r.last * p.entry.topk;

	for (int64_t i = r.first * p.entry.topk + threadIdx.x; p.topk_weights && i < end;
	     i += blockDim.x) {
		r.route.topk_weights[i] = p.topk_weights[i];
	}
}

/*
 * Number the rows of this block's tokens for each rank, from 0: `run` [R] ends as the totals. What
 * comes before each channel's first token is noted.
 */
DEV void number_tokens(const struct route &r, int *run, int *hist)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	__shared__ int warp_count[ROUTE_WARPS][32];

	for (int64_t base = r.first; base < r.last; base += blockDim.x) {
		int64_t token = base + threadIdx.x;
		bool in = token < r.last;
		bool begins = in && token % r.per_channel == 0;

		if (in && !r.cached) {
			read_token(r, token, hist);
		}
		for (int from = 0; from < c.num_ranks; from += 32) {
			int here = c.num_ranks - from < 32 ? c.num_ranks - from : 32;
			uint32_t mask = in ? token_ranks(r, token, from) : 0;

			for (int i = 0; i < here; i++) {
				unsigned votes = __ballot_sync(FULL, mask >> i & 1u);

				if (LANE == i) {
					warp_count[WARP][i] = __popc(votes);
				}
			}
			__syncthreads();
			for (int i = 0; i < here; i++) {
				unsigned votes = __ballot_sync(FULL, mask >> i & 1u);
				int number = run[from + i];

				for (int w = 0; w < WARP; w++) {
					number += warp_count[w][i];
				}
				number += __popc(votes & ((1u << LANE) - 1u));
				if (in && !r.cached) {
					r.route.position[token * c.num_ranks + from + i] =
						mask >> i & 1u ? number : -1;
				}
				if (begins) {
					p.scratch.channel_prefix[token / r.per_channel *
									 c.num_ranks +
								 from + i] = number;
				}
			}
			__syncthreads();
			if ((int)threadIdx.x < here) {
				for (int w = 0; w < NUM_WARPS; w++) {
					run[from + threadIdx.x] += warp_count[w][threadIdx.x];
				}
			}
			__syncthreads();
		}
	}
}

/* By the last block: what comes before each block's tokens, in place of its totals. */
DEV void add_blocks(const struct route &r, int *run)
{
	const struct moeep_ht_route_args &p = r.p;
	int ranks = r.c.num_ranks;
	int blocks = (int)gridDim.x;

	/* A warp for a rank, a lane for a block: a thread would wait for memory once a block. */
	for (int rank = WARP; rank < ranks; rank += NUM_WARPS) {
		int sum = 0;

		for (int first = 0; first < blocks; first += 32) {
			int block = first + LANE;
			int32_t *total = &p.scratch.block_total[block * ranks + rank];
			int own = block < blocks ? *total : 0;
			int inclusive = own;

			for (int d = 1; d < 32; d *= 2) {
				int other = __shfl_up_sync(FULL, inclusive, d);

				inclusive += LANE >= d ? other : 0;
			}
			if (block < blocks) {
				*total = sum + inclusive - own;
			}
			sum += __shfl_sync(FULL, inclusive, 31);
		}
		if (LANE == 0) {
			run[rank] = sum;
		}
	}
	__syncthreads();
}

/* By the last block: an entry to every rank. run: tokens for each rank. */
DEV void write_entries(const struct route &r, const int *run)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	__shared__ __align__(16) struct moeep_dev_entry entry;
	int channels = p.entry.channels;

	if (threadIdx.x == 0) {
		entry = p.entry;
		if (r.combine || r.cached) {
			entry.route = r.route.state->valid ? r.route.state->epoch : 0;
		} else {
			entry.route = r.epoch;
		}
		if (r.combine) {
			entry.num_tokens = r.route.state->num_records;
		} else if (r.cached && r.route.state->weighted && !p.topk_weights) {
			entry.given |= MOEEP_DEV_GIVEN_WEIGHTS;
		}
	}
	__syncthreads();
	for (int to = 0; to < c.num_ranks; to++) {
		char *at = entry_at(c, to, r.epoch, c.rank);
		int32_t *first = entry_channels(at);
		int32_t *counts = entry_counts(at);

		for (int i = (int)threadIdx.x; i < (int)(sizeof(entry) / 16); i += (int)blockDim.x) {
			((uint4 *)at)[i] = ((const uint4 *)&entry)[i];
		}
		for (int i = (int)threadIdx.x; !r.combine && i <= channels; i += (int)blockDim.x) {
			int number = run[to];

			if (i < channels && i * r.per_channel < p.entry.num_tokens) {
				number = p.scratch.block_total[i / r.channels_here * c.num_ranks +
							       to] +
					 p.scratch.channel_prefix[i * c.num_ranks + to];
			}
			first[i] = number;
		}
		for (int i = (int)threadIdx.x; i < c.num_ranks; i += (int)blockDim.x) {
			counts[i] = run[i];
		}
		for (int e = (int)threadIdx.x; !r.combine && !r.cached && e < c.num_experts;
		     e += (int)blockDim.x) {
			counts[c.num_ranks + e] = p.scratch.expert_count[e];
		}
	}
	__syncthreads();
	for (int e = (int)threadIdx.x; !r.combine && !r.cached && e < c.num_experts;
	     e += (int)blockDim.x) {
		p.scratch.expert_count[e] = 0;
	}
	/* Pairs with the wait for the call of every rank. */
	block_publish(c, c.window.ht_entry_flag, flag_word(r.epoch, 0));
}

/* This rank's first row at each rank. */
DEV void sum_bases(const struct route &r, int *base)
{
	const struct moeep_dev_context &c = r.c;

	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		int sum = 0;

		for (int from = 0; from < c.rank; from++) {
			sum += counts_of(c, r.epoch, from)[rank];
		}
		base[rank] = sum;
	}
	__syncthreads();
}

DEV void final_positions(const struct route &r, const int *base)
{
	const struct moeep_ht_route_args &p = r.p;
	int64_t end = r.last * r.c.num_ranks;

	for (int64_t i = r.first * r.c.num_ranks + threadIdx.x; i < end; i += blockDim.x) {
		int rank = (int)(i % r.c.num_ranks);
		int own = r.route.position[i];

		if (own >= 0) {
			r.route.position[i] =
				own + base[rank] +
				p.scratch.block_total[(int)blockIdx.x * r.c.num_ranks + rank];
		}
	}
}

/*
 * What comes before this rank's entry is written, and that. run [R] ends as the tokens for each rank, in
 * the last block.
 */
DEV void enter(struct route *route, int *run, int *shared_hist)
{
	struct route &r = *route;
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	int *hist = c.num_experts <= MOEEP_DEV_HIST ? shared_hist : NULL;

	if (r.combine) {
		for (int i = (int)threadIdx.x; i < c.num_ranks; i += (int)blockDim.x) {
			run[i] = r.route.recv_count[i];
		}
		__syncthreads();
		write_entries(r, run);
		return;
	}
	r.per_channel = per_channel(p.entry.num_tokens, p.entry.channels);
	r.per_channel = r.per_channel > 0 ? r.per_channel : 1;
	r.channels_here = (p.entry.channels + (int)gridDim.x - 1) / (int)gridDim.x;
	r.first = (int64_t)r.channels_here * r.per_channel * blockIdx.x;
	r.last = r.first + (int64_t)r.channels_here * r.per_channel;
	r.first = r.first < p.entry.num_tokens ? r.first : p.entry.num_tokens;
	r.last = r.last < p.entry.num_tokens ? r.last : p.entry.num_tokens;
	for (int i = (int)threadIdx.x; i < c.num_ranks; i += (int)blockDim.x) {
		run[i] = 0;
	}
	for (int e = (int)threadIdx.x; hist && e < c.num_experts; e += (int)blockDim.x) {
		hist[e] = 0;
	}
	__syncthreads();
	read_weights(r);
	number_tokens(r, run, hist);
	__syncthreads();
	for (int i = (int)threadIdx.x; i < c.num_ranks; i += (int)blockDim.x) {
		p.scratch.block_total[(int)blockIdx.x * c.num_ranks + i] = run[i];
	}
	for (int e = (int)threadIdx.x; hist && e < c.num_experts; e += (int)blockDim.x) {
		if (hist[e] > 0) {
			atomicAdd(&p.scratch.expert_count[e], hist[e]);
		}
	}
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_ROUTE], gridDim.x)) {
		add_blocks(r, run);
		write_entries(r, run);
	}
}

#endif
