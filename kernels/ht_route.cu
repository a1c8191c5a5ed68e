/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_route.cu - the first kernel of every HT operation: ranks tell each other what they
 * bring, and all of them draw the same conclusions.
 *
 * For a new dispatch blocks read the choices, each a stretch of the tokens, and number each token's
 * rows within the stretch. The last block adds up the stretches and writes an entry to every rank.
 * When all entries are there, every block makes its numbers final, and block 0 writes the plan.
 */
#include "ht_common.cuh"

/* Entries that block 0 keeps at hand for the plan, which reads each of them many times. */
#define HEADS 16

struct route {
	const struct moeep_ht_route_params &p;
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
	const struct moeep_dev_context &c = r.p.c;
	const struct moeep_dev_route *route = r.p.route;
	int topk = r.p.entry.topk;
	uint32_t mask = 0;

	if (r.cached) {
		for (int i = 0; i < 32 && from + i < c.num_ranks; i++) {
			if (route->position[token * c.num_ranks + from + i] >= 0) {
				mask |= 1u << i;
			}
		}
		return mask;
	}
	for (int k = 0; k < topk; k++) {
		int id = route->topk_idx[token * topk + k];
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
	const struct moeep_ht_route_params &p = r.p;
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
			id[i] = check_choice(p.c, value[i], token, first + i);
		}
#pragma unroll
		for (int i = 0; i < 8; i++) {
			if (first + i < topk) {
				p.route->topk_idx[token * topk + first + i] = id[i];
			}
			if (id[i] >= 0) {
				atomicAdd(hist ? &hist[id[i]] : &p.scratch.expert_count[id[i]], 1);
			}
		}
	}
}

DEV void read_weights(const struct route &r)
{
	const struct moeep_ht_route_params &p = r.p;
	int64_t end = r.last * p.entry.topk;

	for (int64_t i = r.first * p.entry.topk + threadIdx.x; p.topk_weights && i < end;
	     i += blockDim.x) {
		p.route->topk_weights[i] = p.topk_weights[i];
	}
}

/*
 * Number the rows of this block's tokens for each rank, from 0: `run` [R] ends as the totals. What
 * comes before each channel's first token is noted.
 */
DEV void number_tokens(const struct route &r, int *run, int *hist)
{
	const struct moeep_ht_route_params &p = r.p;
	const struct moeep_dev_context &c = p.c;
	__shared__ int warp_count[MOEEP_DEV_ROUTE_THREADS / 32][32];

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
					p.route->position[token * c.num_ranks + from + i] =
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
	const struct moeep_ht_route_params &p = r.p;
	int ranks = p.c.num_ranks;
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
	const struct moeep_ht_route_params &p = r.p;
	const struct moeep_dev_context &c = p.c;
	__shared__ __align__(16) struct moeep_dev_entry entry;
	int channels = p.entry.channels;

	if (threadIdx.x == 0) {
		entry = p.entry;
		if (r.combine || r.cached) {
			entry.route = p.route->valid ? p.route->epoch : 0;
		} else {
			entry.route = r.epoch;
		}
		if (r.combine) {
			entry.num_tokens = p.route->num_records;
		} else if (r.cached && p.route->weighted && !p.topk_weights) {
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
	const struct moeep_dev_context &c = r.p.c;

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
	const struct moeep_ht_route_params &p = r.p;
	int64_t end = r.last * p.c.num_ranks;

	for (int64_t i = r.first * p.c.num_ranks + threadIdx.x; i < end; i += blockDim.x) {
		int rank = (int)(i % p.c.num_ranks);
		int own = p.route->position[i];

		if (own >= 0) {
			p.route->position[i] =
				own + base[rank] +
				p.scratch.block_total[(int)blockIdx.x * p.c.num_ranks + rank];
		}
	}
}

/* What follows is done by block 0. */

DEV const struct moeep_dev_entry *head_of(const struct route &r, int rank)
{
	return rank < HEADS ? &r.heads[rank] : entry_of(r.p.c, r.epoch, rank);
}

DEV void read_heads(struct route *r, struct moeep_dev_entry *heads)
{
	const int parts = (int)(sizeof(*heads) / 16);
	int ranks = r->p.c.num_ranks < HEADS ? r->p.c.num_ranks : HEADS;

	for (int i = (int)threadIdx.x; i < ranks * parts; i += (int)blockDim.x) {
		((uint4 *)heads)[i] =
			((const uint4 *)entry_of(r->p.c, r->epoch, i / parts))[i % parts];
	}
	r->heads = heads;
	__syncthreads();
}

/* The first thing in which a rank's call differs from another's, where it may not. */
DEV void check_agreement(const struct route &r, struct moeep_dev_plan *plan)
{
	const struct moeep_dev_context &c = r.p.c;
	const struct moeep_dev_entry *a = head_of(r, 0);
	const struct moeep_dev_entry *giver = a;
	uint32_t agreed = r.combine ? ~MOEEP_DEV_GIVEN_X : ~0u;

	for (int rank = c.num_ranks - 1; rank >= 0; rank--) {
		if (head_of(r, rank)->num_tokens > 0) {
			giver = head_of(r, rank);
		}
	}
	plan->given = giver->given;
	plan->scale_count = giver->scale_count;
	plan->scale_dtype = giver->scale_dtype;
	plan->code = MOEEP_OK;
	plan->result = moeep_dev_result{MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0};
	for (int rank = 0; r.combine && rank < c.num_ranks; rank++) {
		const struct moeep_dev_entry *b = head_of(r, rank);

		if (b->num_tokens > 0 && !(b->given & MOEEP_DEV_GIVEN_X)) {
			plan->code = MOEEP_ERR_INVALID;
			plan->result = moeep_dev_result{MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_NO_X,
							rank, b->num_tokens, -1};
			return;
		}
	}
	for (int rank = 0; rank < c.num_ranks; rank++) {
		const struct moeep_dev_entry *b = head_of(r, rank);
		const struct moeep_dev_entry *g = b->num_tokens > 0 ? b : giver;
		const int64_t fields[][2] = {
			{a->op, b->op},
			{a->flags, b->flags},
			{(int64_t)a->route, (int64_t)b->route},
			{a->dtype, b->dtype},
			{a->topk, b->topk},
			{a->row_layout, b->row_layout},
			{giver->scale_count, g->scale_count},
			{giver->scale_dtype, g->scale_dtype},
			{giver->given & agreed, g->given & agreed},
		};

		for (int i = 0; i < (int)(sizeof(fields) / sizeof(fields[0])); i++) {
			if (fields[i][0] != fields[i][1]) {
				plan->code = MOEEP_ERR_MISMATCH;
				plan->result = moeep_dev_result{MOEEP_ERR_MISMATCH,
								MOEEP_DEV_DETAIL_FIELD, i, rank,
								fields[i][1]};
				return;
			}
		}
	}
}

DEV int64_t align_up(int64_t value, int64_t unit)
{
	return (value + unit - 1) / unit * unit;
}

/* Exclusive sums over the block's threads; *total gets the sum. */
DEV int64_t block_scan(int64_t value, int64_t *total)
{
	__shared__ int64_t sums[32];
	int64_t inclusive = value;
	int64_t before = 0;
	int64_t all = 0;

	for (int d = 1; d < 32; d *= 2) {
		int64_t other = __shfl_up_sync(FULL, inclusive, d);

		inclusive += LANE >= d ? other : 0;
	}
	__syncthreads();
	if (LANE == 31) {
		sums[WARP] = inclusive;
	}
	__syncthreads();
	for (int w = 0; w < NUM_WARPS; w++) {
		before += w < WARP ? sums[w] : 0;
		all += sums[w];
	}
	*total = all;
	return before + inclusive - value;
}

/* Rows of every rank, flat; what this one receives. */
DEV void place_flat(const struct route &r, const int *run, const int *base)
{
	const struct moeep_dev_context &c = r.p.c;
	struct moeep_dev_route *route = r.p.route;
	int64_t total = 0;

	for (int to = (int)threadIdx.x; to < c.num_ranks; to += (int)blockDim.x) {
		int64_t sum = 0;

		for (int from = 0; from < c.num_ranks; from++) {
			sum += counts_of(c, r.epoch, from)[to];
		}
		route->needed[to] = sum;
		route->send_count[to] = run[to];
		route->send_base[to] = base[to];
		route->host_send[to] = run[to];
	}
	for (int begin = 0; begin < c.num_ranks; begin += (int)blockDim.x) {
		int from = begin + (int)threadIdx.x;
		int64_t own = from < c.num_ranks ? counts_of(c, r.epoch, from)[c.rank] : 0;
		int64_t all;
		int64_t before = block_scan(own, &all);

		if (from < c.num_ranks) {
			route->recv_base[from] = (int32_t)(total + before);
			route->recv_count[from] = (int32_t)own;
			route->host_recv[from] = own;
		}
		total += all;
	}
	if (threadIdx.x == 0) {
		route->recv_base[c.num_ranks] = (int32_t)total;
		route->num_records = total;
		route->num_rows = total;
	}
	__syncthreads();
}

/* Choices of this rank's experts, and where their groups begin. */
DEV void place_experts(const struct route &r)
{
	const struct moeep_dev_context &c = r.p.c;
	struct moeep_dev_route *route = r.p.route;
	int64_t alignment = r.p.entry.alignment;
	bool rows = r.p.entry.row_layout == MOEEP_ROWS_EXPERT_MAJOR;
	int64_t total = 0;

	for (int begin = 0; begin < c.local_experts; begin += (int)blockDim.x) {
		int e = begin + (int)threadIdx.x;
		int64_t count = 0;
		int64_t all;
		int64_t before;

		for (int from = 0; e < c.local_experts && from < c.num_ranks; from++) {
			count += counts_of(c, r.epoch, from)[c.num_ranks + c.first_expert + e];
		}
		before = block_scan(align_up(count, alignment), &all);
		if (e < c.local_experts) {
			route->expert_count[e] = (int32_t)count;
			route->expert_offset[e] = (int32_t)(total + before);
			route->host_experts[e] = count;
			route->host_offsets[e] = total + before;
		}
		total += all;
	}
	if (threadIdx.x == 0) {
		route->expert_offset[c.local_experts] = (int32_t)total;
		route->host_offsets[c.local_experts] = total;
		if (rows) {
			route->num_rows = total;
		}
	}
	__syncthreads();
	if (!rows) {
		return;
	}
	/* What the others need: all ranks must know whether it fits. */
	for (int to = (int)threadIdx.x; to < c.num_ranks; to += (int)blockDim.x) {
		route->needed[to] = 0;
	}
	__syncthreads();
	for (int e = (int)threadIdx.x; e < c.num_experts; e += (int)blockDim.x) {
		int to = expert_rank(c, e);
		int64_t count = 0;

		for (int from = 0; from < c.num_ranks; from++) {
			count += counts_of(c, r.epoch, from)[c.num_ranks + e];
		}
		atomicAdd((unsigned long long *)&route->needed[to],
			  (unsigned long long)align_up(count,
						       head_of(r, to)->alignment));
	}
	__syncthreads();
}

DEV void write_counts(const struct route &r)
{
	const struct moeep_ht_route_params &p = r.p;
	const struct moeep_dev_route *route = p.route;

	for (int e = (int)threadIdx.x; e <= p.c.local_experts; e += (int)blockDim.x) {
		if (p.recv_expert_offsets) {
			p.recv_expert_offsets[e] = route->expert_offset[e];
		}
		if (e == p.c.local_experts) {
			break;
		}
		if (p.recv_per_expert) {
			p.recv_per_expert[e] = route->expert_count[e];
		}
		if (p.recv_per_expert_padded) {
			p.recv_per_expert_padded[e] =
				route->expert_offset[e + 1] - route->expert_offset[e];
		}
	}
	if (threadIdx.x == 0) {
		if (p.num_recv) {
			*p.num_recv = route->num_rows;
		}
		route->host_rows[0] = route->num_rows;
		route->host_rows[1] = (int64_t)(r.cached ? route->epoch : r.epoch);
	}
}

/* By one thread: does everything fit everywhere? All ranks find the same. */
DEV void check_room(const struct route &r, struct moeep_dev_plan *plan)
{
	const struct moeep_ht_route_params &p = r.p;
	const struct moeep_dev_context &c = p.c;

	if (!r.cached) {
		p.route->epoch = r.epoch;
		p.route->valid = 1;
		for (int to = 0; to < c.num_ranks; to++) {
			int64_t tokens = 0;

			for (int from = 0; from < c.num_ranks; from++) {
				tokens += counts_of(c, r.epoch, from)[to];
			}
			if (tokens > head_of(r, to)->max_recv) {
				plan->code = MOEEP_ERR_CAPACITY;
				plan->result = moeep_dev_result{
					MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_HANDLE, to, tokens,
					head_of(r, to)->max_recv};
				p.route->valid = 0;
				return;
			}
		}
	}
	if (p.entry.flags & MOEEP_DISPATCH_COUNTS_ONLY) {
		return;
	}
	plan->move = 1;
	p.route->overflow = 0;
	for (int to = 0; to < c.num_ranks && !p.route->overflow; to++) {
		if (p.route->needed[to] > head_of(r, to)->capacity) {
			plan->result = moeep_dev_result{MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_ROWS,
							to, p.route->needed[to],
							head_of(r, to)->capacity};
			p.route->overflow = 1;
		}
	}
}

/* A place in a rank's symmetric memory, or NULL: that is the end of the comm. */
DEV char *find_place(const struct route &r, int rank, const struct moeep_dev_place &place)
{
	const struct moeep_ht_route_params &p = r.p;

	if (place.slot >= p.region_slots || p.regions[place.slot].id != place.id) {
		raise(p.c, MOEEP_ERR_STATE, rank, 6, r.epoch, 0, 0);
		return NULL;
	}
	return p.region_base[(int64_t)place.slot * p.c.num_ranks + rank] + place.offset;
}

/*
 * Combine: where this rank's rows for each rank go, in its window, and where those of each are found. Both
 * by position, though a window has room for each rank's rows from a place of their own on.
 */
DEV void find_sources(const struct route &r, struct moeep_dev_plan *plan)
{
	const struct moeep_ht_route_params &p = r.p;
	const struct moeep_dev_context &c = p.c;
	bool flat = p.entry.row_layout != MOEEP_ROWS_EXPERT_MAJOR;

	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		const struct moeep_dev_entry *entry = head_of(r, rank);
		int64_t base = p.route->send_base[rank];
		int64_t end = base + p.route->send_count[rank];
		bool in_place = entry->place.slot != 0;
		char *at = window_at(c, c.rank, c.window.rows) +
			   (rank * c.ht_max_tokens - base) * (int64_t)p.row_bytes;

		if (flat && rank == c.rank) {
			at = p.own;
		} else if (in_place) {
			at = find_place(r, rank, entry->place);
			if (end > entry->capacity) {
				raise(c, MOEEP_ERR_INVALID, rank, 7, r.epoch, (uint64_t)end,
				      (uint64_t)entry->capacity);
				at = NULL;
			}
		}
		plan->src[rank] = at;
		plan->channels[rank] = in_place ? 0 : entry->channels;
		at = window_at(c, rank, c.window.rows) +
		     (c.rank * c.ht_max_tokens - p.route->recv_base[rank]) * (int64_t)p.row_bytes;
		plan->dst[rank] = entry->wants_rows && p.entry.place.slot == 0 ? at : NULL;
	}
}

/* Where this rank's rows go at each rank. */
DEV void find_destinations(const struct route &r, struct moeep_dev_plan *plan)
{
	const struct moeep_ht_route_params &p = r.p;
	const struct moeep_dev_context &c = p.c;
	bool flat = p.entry.row_layout != MOEEP_ROWS_EXPERT_MAJOR;

	for (int to = (int)threadIdx.x; to < c.num_ranks; to += (int)blockDim.x) {
		const struct moeep_dev_entry *entry = head_of(r, to);
		char *at = window_at(c, to, c.window.rows);
		int64_t limit = INT64_MAX;
		bool staged = flat;

		plan->channels[to] = entry->channels;
		if (flat && to == c.rank) {
			at = p.own;
			limit = entry->capacity;
			staged = false;
		} else if (flat && entry->place.slot != 0) {
			at = find_place(r, to, entry->place);
			limit = entry->capacity;
			staged = false;
		}
		plan->dst[to] = entry->wants_rows ? at : NULL;
		plan->limit[to] = limit;
		plan->staged[to] = staged;
	}
}

DEV void make_plan(const struct route &r, const int *run, const int *base)
{
	const struct moeep_ht_route_params &p = r.p;
	const struct moeep_dev_context &c = p.c;
	struct moeep_dev_plan *plan = p.plan;

	if (threadIdx.x == 0) {
		plan->epoch = r.epoch;
		plan->topk = p.entry.topk;
		plan->move = 0;
		check_agreement(r, plan);
		if (plan->code == MOEEP_OK && (r.combine || r.cached) && !p.route->valid) {
			plan->code = MOEEP_ERR_STATE;
			plan->result = moeep_dev_result{MOEEP_ERR_STATE, MOEEP_DEV_DETAIL_NO_ROUTE,
							0, 0, 0};
		} else if (plan->code == MOEEP_OK && r.combine && p.route->overflow) {
			plan->code = MOEEP_ERR_CAPACITY;
			plan->result = moeep_dev_result{MOEEP_ERR_CAPACITY,
							MOEEP_DEV_DETAIL_OVERFLOW, 0, 0, 0};
		} else if (plan->code == MOEEP_OK && r.combine && p.weighted &&
			   !p.route->weighted) {
			plan->code = MOEEP_ERR_INVALID;
			plan->result = moeep_dev_result{MOEEP_ERR_INVALID,
							MOEEP_DEV_DETAIL_WEIGHTS, 0, 0, 0};
		} else if (plan->code == MOEEP_OK && r.combine) {
			plan->move = 1;
		} else if (plan->code == MOEEP_OK) {
			p.route->weighted = (plan->given & MOEEP_DEV_GIVEN_WEIGHTS) != 0;
		}
	}
	__syncthreads();
	if (plan->code == MOEEP_OK && !r.combine) {
		if (!r.cached) {
			place_flat(r, run, base);
			place_experts(r);
		}
		write_counts(r);
		if (threadIdx.x == 0) {
			check_room(r, plan);
		}
		__syncthreads();
	}
	if (plan->move) {
		if (r.combine) {
			find_sources(r, plan);
			count_traffic(c, MOEEP_DEV_COMBINE_ROWS, p.route->send_count, p.row_bytes);
		} else {
			uint64_t scales = (uint64_t)plan->scale_count *
					  (plan->scale_dtype == MOEEP_UE8M0 ? 1 : 4);

			find_destinations(r, plan);
			count_traffic(c, MOEEP_DEV_DISPATCH_ROWS, p.route->recv_count,
				      p.row_bytes +
					      (plan->given & MOEEP_DEV_GIVEN_SCALES ? (scales + 15) / 16 * 16 : 0));
		}
	}
	if (threadIdx.x == 0) {
		c.state->ht_epoch = r.epoch;
		if (p.last) {
			finish_result(c, plan->result.code, plan->result.detail, plan->result.a,
				      plan->result.b, plan->result.c);
		}
	}
}

/* shared: [R] running totals, [R] bases, then the counters of experts if they fit. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_ROUTE_THREADS, 1)
	moeep_kernel_ht_route(const __grid_constant__ struct moeep_ht_route_params p)
{
	DYNAMIC_SHARED(int, shared, 4);
	__shared__ __align__(16) struct moeep_dev_entry heads[HEADS];
	const struct moeep_dev_context &c = p.c;
	struct route r = {p, 0, p.entry.op == MOEEP_OP_COMBINE,
			  (p.entry.flags & MOEEP_DISPATCH_CACHED) != 0, 1, 1, 0, 0, NULL};
	int *run = shared;
	int *base = shared + c.num_ranks;
	int *hist = c.num_experts <= MOEEP_DEV_HIST ? base + c.num_ranks : NULL;

	if (!kernel_begin(c)) {
		return;
	}
	r.epoch = (c.state->ht_epoch + 1) & EPOCH_MASK;
	if (r.combine) {
		r.cached = false;
	}
	r.per_channel = per_channel(p.entry.num_tokens, p.entry.channels);
	r.per_channel = r.per_channel > 0 ? r.per_channel : 1;
	r.channels_here = (p.entry.channels + (int)gridDim.x - 1) / (int)gridDim.x;
	if (!r.combine) {
		int64_t span = (int64_t)r.channels_here * r.per_channel;

		r.first = span * blockIdx.x;
		r.last = r.first + span;
		r.first = r.first < p.entry.num_tokens ? r.first : p.entry.num_tokens;
		r.last = r.last < p.entry.num_tokens ? r.last : p.entry.num_tokens;
	}
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
		if (r.combine) {
			for (int i = (int)threadIdx.x; i < c.num_ranks; i += (int)blockDim.x) {
				run[i] = p.route->recv_count[i];
			}
			__syncthreads();
		} else {
			add_blocks(r, run);
		}
		write_entries(r, run);
	}
	if (!block_wait_all(c, c.window.ht_entry_flag, flag_word(r.epoch, 0), MOEEP_DEV_CALL,
			    NULL)) {
		if (threadIdx.x == 0) {
			put_dead(c);
		}
		return;
	}
	if (!r.combine && !r.cached) {
		sum_bases(r, base);
		final_positions(r, base);
	}
	if (blockIdx.x == 0) {
		read_heads(&r, heads);
		for (int i = (int)threadIdx.x; i < c.num_ranks; i += (int)blockDim.x) {
			run[i] = counts_of(c, r.epoch, c.rank)[i];
		}
		__syncthreads();
		make_plan(r, run, base);
	}
}
