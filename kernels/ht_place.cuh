/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_place.cuh - what block 0 concludes from the entries of all ranks: how many rows come and go,
 * where they lie at each rank, whether they fit.
 */
#ifndef MOEEP_KERNELS_HT_PLACE_CUH
#define MOEEP_KERNELS_HT_PLACE_CUH

#include "ht_route.cuh"

DEV const struct moeep_dev_entry *head_of(const struct route &r, int rank)
{
	return rank < HEADS ? &r.heads[rank] : entry_of(r.c, r.epoch, rank);
}

/* Also this rank's tokens for each, in run. */
DEV void read_heads(struct route *r, struct moeep_dev_entry *heads, int *run)
{
	const int parts = (int)(sizeof(*heads) / 16);
	int ranks = r->c.num_ranks < HEADS ? r->c.num_ranks : HEADS;

	for (int i = (int)threadIdx.x; i < ranks * parts; i += (int)blockDim.x) {
		((uint4 *)heads)[i] =
			((const uint4 *)entry_of(r->c, r->epoch, i / parts))[i % parts];
	}
	r->heads = heads;
	for (int i = (int)threadIdx.x; i < r->c.num_ranks; i += (int)blockDim.x) {
		run[i] = counts_of(r->c, r->epoch, r->c.rank)[i];
	}
	__syncthreads();
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

/* The first ranks for which something is too small, or INT32_MAX. */
struct shortage {
	int handle;
	int rows;
};

DEV void check_rows(const struct route &r, int to, int64_t rows, struct shortage *shortage)
{
	if (rows > head_of(r, to)->capacity) {
		atomicMin(&shortage->rows, to);
	}
}

/* Tokens that come to a rank. */
DEV int64_t tokens_for(const struct route &r, int to)
{
	int64_t sum = 0;

#pragma unroll 4
	for (int from = 0; from < r.c.num_ranks; from++) {
		sum += counts_of(r.c, r.epoch, from)[to];
	}
	return sum;
}

/* Rows of every rank, flat; what this one receives. run: this rank's tokens for each. */
DEV void place_flat(const struct route &r, const int *run, const int *base,
		    struct shortage *shortage)
{
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_route &route = r.route;
	bool flat = r.p.entry.row_layout != MOEEP_ROWS_EXPERT_MAJOR;
	/* Loaded before the compiler sees stores, which it would not pass. */
	int64_t near = (int)threadIdx.x < c.num_ranks
			       ? counts_of(c, r.epoch, (int)threadIdx.x)[c.rank]
			       : 0;
	int64_t total = 0;

	for (int to = (int)threadIdx.x; to < c.num_ranks; to += (int)blockDim.x) {
		int64_t sum = tokens_for(r, to);

		route.needed[to] = sum;
		route.send_count[to] = run[to];
		route.send_base[to] = base[to];
		if (sum > head_of(r, to)->max_recv) {
			atomicMin(&shortage->handle, to);
		}
		if (flat) {
			check_rows(r, to, sum, shortage);
		}
	}
	for (int begin = 0; begin < c.num_ranks; begin += (int)blockDim.x) {
		int from = begin + (int)threadIdx.x;
		int64_t own = begin == 0	     ? near
			      : from < c.num_ranks ? counts_of(c, r.epoch, from)[c.rank]
						   : 0;
		int64_t all;
		int64_t before = block_scan(own, &all);

		if (from < c.num_ranks) {
			route.recv_base[from] = (int32_t)(total + before);
			route.recv_count[from] = (int32_t)own;
		}
		total += all;
	}
	if (threadIdx.x == 0) {
		route.recv_base[c.num_ranks] = (int32_t)total;
		route.state->num_records = total;
		route.state->num_rows = total;
		route.state->epoch = r.epoch;
	}
	__syncthreads();
}

/* Choices of this rank's experts, and where their groups begin. */
DEV void place_experts(const struct route &r)
{
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_route &route = r.route;
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
			route.expert_count[e] = (int32_t)count;
			route.expert_offset[e] = (int32_t)(total + before);
		}
		total += all;
	}
	if (threadIdx.x == 0) {
		route.expert_offset[c.local_experts] = (int32_t)total;
		if (rows) {
			route.state->num_rows = total;
		}
	}
	__syncthreads();
	if (!rows) {
		return;
	}
	/* What the others need: all ranks must know whether it fits. */
	for (int to = (int)threadIdx.x; to < c.num_ranks; to += (int)blockDim.x) {
		route.needed[to] = 0;
	}
	__syncthreads();
	for (int e = (int)threadIdx.x; e < c.num_experts; e += (int)blockDim.x) {
		int to = expert_rank(c, e);
		int64_t count = 0;

		for (int from = 0; from < c.num_ranks; from++) {
			count += counts_of(c, r.epoch, from)[c.num_ranks + e];
		}
		atomicAdd((unsigned long long *)&route.needed[to],
			  (unsigned long long)align_up(count,
						       head_of(r, to)->alignment));
	}
	__syncthreads();
}

/* What the caller asked for, and what moeep_handle_query() reads. */
DEV void write_counts(const struct route &r)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_route &route = r.route;

	for (int rank = (int)threadIdx.x; !r.cached && rank < c.num_ranks; rank += (int)blockDim.x) {
		route.host_send[rank] = route.send_count[rank];
		route.host_recv[rank] = route.recv_count[rank];
	}
	for (int e = (int)threadIdx.x; e <= c.local_experts; e += (int)blockDim.x) {
		int32_t offset = route.expert_offset[e];

		if (!r.cached) {
			route.host_offsets[e] = offset;
		}
		if (p.recv_expert_offsets) {
			p.recv_expert_offsets[e] = offset;
		}
		if (e == c.local_experts) {
			break;
		}
		if (!r.cached) {
			route.host_experts[e] = route.expert_count[e];
		}
		if (p.recv_per_expert) {
			p.recv_per_expert[e] = route.expert_count[e];
		}
		if (p.recv_per_expert_padded) {
			p.recv_per_expert_padded[e] = route.expert_offset[e + 1] - offset;
		}
	}
	if (threadIdx.x == 0) {
		if (p.num_recv) {
			*p.num_recv = route.state->num_rows;
		}
		route.host_rows[0] = route.state->num_rows;
		route.host_rows[1] = (int64_t)(r.cached ? route.state->epoch : r.epoch);
	}
}

/* Does everything fit everywhere? All ranks find the same. */
DEV void check_room(const struct route &r, struct shortage *shortage)
{
	const struct moeep_dev_context &c = r.c;
	struct moeep_dev_plan *plan = r.plan;
	bool look = r.cached || r.p.entry.row_layout == MOEEP_ROWS_EXPERT_MAJOR;
	int to;

	/* Of a new flat layout place_flat() has looked. */
	for (to = look ? (int)threadIdx.x : c.num_ranks; to < c.num_ranks; to += (int)blockDim.x) {
		check_rows(r, to, r.route.needed[to], shortage);
	}
	__syncthreads();
	if (threadIdx.x > 0) {
		return;
	}
	to = shortage->handle;
	if (!r.cached) {
		r.route.state->valid = to == INT32_MAX;
	}
	if (to < INT32_MAX) {
		plan->code = MOEEP_ERR_CAPACITY;
		plan->result = moeep_dev_result{MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_HANDLE, to,
						tokens_for(r, to), head_of(r, to)->max_recv};
		return;
	}
	if (r.p.entry.flags & MOEEP_DISPATCH_COUNTS_ONLY) {
		return;
	}
	to = shortage->rows;
	plan->move = 1;
	r.route.state->overflow = to < INT32_MAX;
	if (to < INT32_MAX) {
		plan->result = moeep_dev_result{MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_ROWS, to,
						r.route.needed[to], head_of(r, to)->capacity};
	}
}

/*
 * How a thread reaches the memory of a rank that it looks after; read before it is known whether it will be
 * needed, as each of these words is a trip to memory.
 */
struct reach {
	char *rows;   /* of its window */
	char *region; /* in which its place is, or NULL */
	uint32_t id;  /* of that */
};

DEV struct reach reach_of(const struct route &r, int rank)
{
	const struct moeep_ht_route_args &p = r.p;
	struct reach reach = {NULL, NULL, 0};

	if (rank < r.c.num_ranks) {
		uint32_t slot = head_of(r, rank)->place.slot;

		reach.rows = window_at(r.c, rank, r.c.window.rows);
		if (slot > 0 && slot < p.region_slots) {
			reach.region = p.region_base[(int64_t)slot * r.c.num_ranks + rank];
			reach.id = p.regions[slot].id;
		}
	}
	return reach;
}

/* A place in a rank's symmetric memory, or NULL: that is the end of the comm. */
DEV char *find_place(const struct route &r, int rank, const struct reach &reach)
{
	const struct moeep_dev_place &place = head_of(r, rank)->place;

	if (!reach.region || reach.id != place.id) {
		raise(r.c, MOEEP_ERR_STATE, rank, 6, r.epoch, 0, 0);
		return NULL;
	}
	return reach.region + place.offset;
}

/*
 * Combine: where this rank's rows for each rank go, in its window, and where those of each are found. Both
 * by position, though a window has room for each rank's rows from a place of their own on.
 */
DEV void find_sources(const struct route &r, const struct reach &first)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	bool flat = p.entry.row_layout != MOEEP_ROWS_EXPERT_MAJOR;

	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		struct reach reach = rank == (int)threadIdx.x ? first : reach_of(r, rank);
		const struct moeep_dev_entry *entry = head_of(r, rank);
		int64_t base = r.route.send_base[rank];
		int64_t end = base + r.route.send_count[rank];
		int64_t there = c.rank * c.ht_max_tokens - r.route.recv_base[rank];
		bool in_place = entry->place.slot != 0;
		char *at = window_at(c, c.rank, c.window.rows) +
			   (rank * c.ht_max_tokens - base) * (int64_t)p.row_bytes;

		if (flat && rank == c.rank) {
			at = p.own;
		} else if (in_place) {
			at = find_place(r, rank, reach);
			if (end > entry->capacity) {
				raise(c, MOEEP_ERR_INVALID, rank, 7, r.epoch, (uint64_t)end,
				      (uint64_t)entry->capacity);
				at = NULL;
			}
		}
		r.ends.src[rank] = at;
		r.ends.channels[rank] = in_place ? 0 : entry->channels;
		at = reach.rows + there * (int64_t)p.row_bytes;
		r.ends.dst[rank] = entry->wants_rows && p.entry.place.slot == 0 ? at : NULL;
	}
}

/* Where this rank's rows go at each rank. */
DEV void find_destinations(const struct route &r, const struct reach &first)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	bool flat = p.entry.row_layout != MOEEP_ROWS_EXPERT_MAJOR;

	for (int to = (int)threadIdx.x; to < c.num_ranks; to += (int)blockDim.x) {
		struct reach reach = to == (int)threadIdx.x ? first : reach_of(r, to);
		const struct moeep_dev_entry *entry = head_of(r, to);
		char *at = reach.rows;
		int64_t limit = INT64_MAX;
		bool staged = flat;

		r.ends.channels[to] = entry->channels;
		if (flat && to == c.rank) {
			at = p.own;
			limit = entry->capacity;
			staged = false;
		} else if (flat && entry->place.slot != 0) {
			at = find_place(r, to, reach);
			limit = entry->capacity;
			staged = false;
		}
		r.ends.dst[to] = entry->wants_rows ? at : NULL;
		r.ends.limit[to] = limit;
		r.ends.staged[to] = staged;
	}
}

#endif
