/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_route.cuh - how every HT operation begins: ranks tell each other what they bring.
 *
 * For a new dispatch blocks read the choices, each a stretch of the tokens, and number each token's
 * rows within the stretch. The last block adds up the stretches and writes an entry to every rank.
 * Of a combine and a cached dispatch the numbers are known. That is what the routers do, some warps of
 * each block; what the others do meanwhile is in ht_plan.cuh.
 */
#ifndef MOEEP_KERNELS_HT_ROUTE_CUH
#define MOEEP_KERNELS_HT_ROUTE_CUH

#include "ht_common.cuh"

/* Warps that conclude, which are the movers of a dispatch, and those that route. */
#define CONCLUDERS   (32 * MOVERS)
#define ROUTERS	     (MOEEP_DEV_HT_THREADS - CONCLUDERS)
#define ROUTER_WARPS (ROUTERS / 32)

DEV struct group routers_here()
{
	return group{(int)threadIdx.x - CONCLUDERS, ROUTERS, 1};
}

DEV struct group concluders_here()
{
	return group{(int)threadIdx.x, CONCLUDERS, 2};
}

/* What every block knows of the operation. */
struct route {
	const struct moeep_dev_context &c;
	const struct moeep_dev_route &route;
	const struct moeep_ht_route_args &p;
	struct moeep_dev_plan *plan;
	const struct ends &ends;
	struct moeep_dev_entry *heads; /* of the first ranks, in shared memory */
	uint64_t epoch;
	bool combine;
	bool cached;
	int first; /* tokens of this block */
	int last;
};

DEV void make_route(struct route *r)
{
	int tokens = (int)r->p.entry.num_tokens;

	r->cached = !r->combine && (r->p.entry.flags & MOEEP_DISPATCH_CACHED) != 0;
	if (!r->combine) {
		r->first = stretch_first(tokens, (int)gridDim.x, (int)blockIdx.x);
		r->last = stretch_first(tokens, (int)gridDim.x, (int)blockIdx.x + 1);
	}
}

/* Counters begin from 0; a barrier of the block comes behind it. */
DEV void clear_counters(const struct moeep_dev_context &c, const struct ends &ends)
{
	int count = c.num_ranks + (c.num_experts <= MOEEP_DEV_HIST ? c.num_experts : 0);

	for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) {
		ends.run[i] = 0;
	}
}

/* Which of ranks [from, from + 32) a token goes to, from what is known of it. */
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

/* Take over a token's choices, and count them. Which of the first 32 ranks it goes to. */
DEV uint32_t read_token(const struct route &r, int64_t token, int *hist)
{
	const struct moeep_ht_route_args &p = r.p;
	int topk = p.entry.topk;
	uint32_t mask = 0;

	for (int first = 0; first < topk; first += 8) {
		int64_t value[8];

		/* All loads before the stores, which the compiler cannot tell apart from them. */
#pragma unroll
		for (int i = 0; i < 8; i++) {
			value[i] = first + i < topk ? raw_choice(p.topk_idx, p.topk_dtype,
								 token * topk + first + i)
						    : -1;
		}
#pragma unroll
		for (int i = 0; i < 8; i++) {
			int id = check_choice(r.c, value[i], token, first + i);
			int rank = id < 0 ? 32 : expert_rank(r.c, id);

			if (first + i < topk) {
				r.route.topk_idx[token * topk + first + i] = id;
			}
			if (id >= 0) {
				atomicAdd(hist ? &hist[id] : &p.scratch.expert_count[id], 1);
			}
			mask |= rank < 32 ? 1u << rank : 0;
		}
	}
	return mask;
}

DEV void read_weights(const struct route &r, const struct group &g)
{
	const struct moeep_ht_route_args &p = r.p;
	int64_t end = (int64_t)r.last * p.entry.topk;

	for (int64_t i = (int64_t)r.first * p.entry.topk + g.thread; p.topk_weights && i < end;
	     i += g.threads) {
		r.route.topk_weights[i] = p.topk_weights[i];
	}
}

/* Number the rows of this block's tokens for each rank, from 0: `run` [R] ends as the totals. */
DEV void number_tokens(const struct route &r, const struct group &g, int *hist)
{
	const struct moeep_dev_context &c = r.c;
	__shared__ int warp_count[ROUTER_WARPS][32];
	int *run = r.ends.run;
	int warp = g.thread / 32;

	for (int base = r.first; base < r.last; base += g.threads) {
		int64_t token = base + g.thread;
		bool in = token < r.last;
		uint32_t near = in && !r.cached ? read_token(r, token, hist) : 0;

		for (int from = 0; from < c.num_ranks; from += 32) {
			int here = c.num_ranks - from < 32 ? c.num_ranks - from : 32;
			uint32_t mask = !in			? 0
					: from == 0 && !r.cached ? near
								 : token_ranks(r, token, from);

			for (int i = 0; i < here; i++) {
				unsigned votes = __ballot_sync(FULL, mask >> i & 1u);

				if (LANE == i) {
					warp_count[warp][i] = __popc(votes);
				}
			}
			group_sync(g);
			for (int i = 0; i < here; i++) {
				unsigned votes = __ballot_sync(FULL, mask >> i & 1u);
				int number = run[from + i];

				for (int w = 0; w < warp; w++) {
					number += warp_count[w][i];
				}
				number += __popc(votes & ((1u << LANE) - 1u));
				if (in && !r.cached) {
					r.route.position[token * c.num_ranks + from + i] =
						mask >> i & 1u ? number : -1;
				}
			}
			group_sync(g);
			if (g.thread < here) {
				for (int w = 0; w < ROUTER_WARPS; w++) {
					run[from + g.thread] += warp_count[w][g.thread];
				}
			}
			group_sync(g);
		}
	}
}

/* By the last block: what comes before each block's tokens, in place of its totals. */
DEV void add_blocks(const struct route &r, const struct group &g)
{
	const struct moeep_ht_route_args &p = r.p;
	int ranks = r.c.num_ranks;
	int blocks = (int)gridDim.x;

	/* A warp for a rank, a lane for a block: a thread would wait for memory once a block. */
	for (int rank = g.thread / 32; rank < ranks; rank += ROUTER_WARPS) {
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
			r.ends.run[rank] = sum;
		}
	}
	group_sync(g);
}

/* The entry but for the counts behind it, by one thread. */
DEV void make_entry(const struct route &r, struct moeep_dev_entry *entry)
{
	const struct moeep_dev_route_state *state = r.route.state;

	*entry = r.p.entry;
	entry->route = r.epoch;
	if (r.combine || r.cached) {
		/* All on their way at once. */
		uint64_t epoch = state->epoch;
		int64_t records = state->num_records;
		bool weighted = state->weighted != 0;

		entry->route = state->valid ? epoch : 0;
		if (r.combine) {
			entry->num_tokens = records;
		} else if (weighted && !r.p.topk_weights) {
			entry->given |= MOEEP_DEV_GIVEN_WEIGHTS;
		}
	}
}

/* By the last block: an entry to every rank. */
DEV void write_entries(const struct route &r, const struct group &g, const struct moeep_dev_entry *entry)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	bool fresh = !r.combine && !r.cached;

	for (int e = g.thread; fresh && e < c.num_experts; e += g.threads) {
		int count = p.scratch.expert_count[e];

		for (int to = 0; to < c.num_ranks; to++) {
			entry_counts(entry_at(c, to, r.epoch, c.rank))[c.num_ranks + e] = count;
		}
		p.scratch.expert_count[e] = 0;
	}
	for (int to = 0; to < c.num_ranks; to++) {
		char *at = entry_at(c, to, r.epoch, c.rank);

		for (int i = g.thread; i < (int)(sizeof(*entry) / 16); i += g.threads) {
			((uint4 *)at)[i] = ((const uint4 *)entry)[i];
		}
		for (int i = g.thread; i < c.num_ranks; i += g.threads) {
			entry_counts(at)[i] = r.ends.run[i];
		}
	}
	group_sync(g);
	for (int rank = g.thread; rank < c.num_ranks; rank += g.threads) {
		/* Pairs with the wait for the call of every rank. */
		store_release(flag_at(c, rank, c.window.ht_entry_flag, c.rank),
			      flag_word(r.epoch, 0));
	}
}

/* What comes before this rank's entry is written, and that. */
DEV void enter(const struct route &r, const struct group &g)
{
	__shared__ __align__(16) struct moeep_dev_entry entry;
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	int *hist = c.num_experts <= MOEEP_DEV_HIST ? r.ends.hist : NULL;

	/* By a warp that has few tokens to read, if any. */
	if (g.thread == g.threads - 1) {
		make_entry(r, &entry);
	}
	if (r.combine) {
		for (int i = g.thread; i < c.num_ranks; i += g.threads) {
			r.ends.run[i] = r.route.recv_count[i];
		}
		group_sync(g);
		write_entries(r, g, &entry);
		return;
	}
	number_tokens(r, g, hist);
	for (int i = g.thread; i < c.num_ranks; i += g.threads) {
		p.scratch.block_total[(int)blockIdx.x * c.num_ranks + i] = r.ends.run[i];
	}
	for (int e = g.thread; hist && e < c.num_experts; e += g.threads) {
		if (hist[e] > 0) {
			atomicAdd(&p.scratch.expert_count[e], hist[e]);
		}
	}
	if (last_group(g, &c.state->ticket[MOEEP_DEV_TICKET_ROUTE], gridDim.x)) {
		add_blocks(r, g);
		write_entries(r, g, &entry);
	}
	read_weights(r, g);
}

/* Of this block's tokens, when all entries are there. */
DEV void final_positions(const struct route &r, const struct group &g)
{
	const struct moeep_dev_context &c = r.c;
	int64_t begin = (int64_t)r.first * c.num_ranks;
	int64_t end = (int64_t)r.last * c.num_ranks;

	/* What is added to each rank's, in place of the totals. */
	for (int rank = g.thread; rank < c.num_ranks; rank += g.threads) {
		int before = r.p.scratch.block_total[(int)blockIdx.x * c.num_ranks + rank];

		for (int from = 0; from < c.rank; from++) {
			before += counts_of(c, r.epoch, from)[rank];
		}
		r.ends.run[rank] = before;
	}
	group_sync(g);
	for (int64_t i = begin + g.thread; i < end; i += g.threads) {
		int own = r.route.position[i];

		if (own >= 0) {
			r.route.position[i] = own + r.ends.run[(int)(i - begin) % c.num_ranks];
		}
	}
}

#endif
