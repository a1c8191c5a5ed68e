/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_place.cuh - what every block concludes from the entries of all ranks: how many rows come and
 * go, where they lie at each rank, whether they fit. Some of its threads do it, all to the same result.
 */
#ifndef MOEEP_KERNELS_HT_PLACE_CUH
#define MOEEP_KERNELS_HT_PLACE_CUH

#include "ht_route.cuh"

/* Entries that a block copies to shared memory, as each is read many times. */
#define HEADS 16

/* The first ranks with which something is wrong, or INT32_MAX. */
struct verdict {
	int no_x;   /* has rows to combine but no x */
	int differs; /* its call is another */
	int handle; /* gets more tokens than its handle has room for */
	int rows;   /* gets more rows than fit */
	int lost;   /* its place in symmetric memory is not there any more */
	int beyond; /* or ends before its rows do */
};

DEV const struct moeep_dev_entry *head_of(const struct route &r, int rank)
{
	return rank < HEADS ? &r.heads[rank] : entry_of(r.c, r.epoch, rank);
}

DEV int64_t align_up(int64_t value, int64_t unit)
{
	/* Of an entry that is not there yet the unit may be anything. */
	return unit > 1 ? (value + unit - 1) / unit * unit : value;
}

/* Is the operation a dispatch to one row for each choice? */
DEV bool expands(const struct route &r)
{
	return !r.combine && r.p.entry.row_layout == MOEEP_ROWS_EXPERT_MAJOR;
}

/* Entries to shared memory; of a dispatch the sums of tokens. */
DEV void read_entries(const struct route &r, const struct group &g)
{
	const struct moeep_dev_context &c = r.c;
	const int parts = (int)(sizeof(*r.heads) / 16);
	int heads = c.num_ranks < HEADS ? c.num_ranks : HEADS;

	for (int to = g.thread; !r.combine && to < c.num_ranks; to += g.threads) {
		int base = 0;
		int total = 0;

#pragma unroll 4
		for (int from = 0; from < c.num_ranks; from++) {
			int count = counts_of(c, r.epoch, from)[to];

			base += from < c.rank ? count : 0;
			total += count;
		}
		r.ends.base[to] = base;
		r.ends.total[to] = total;
		r.ends.count[to] = counts_of(c, r.epoch, to)[c.rank];
		r.ends.needed[to] = r.cached ? r.route.needed[to] : expands(r) ? 0 : total;
	}
	for (int i = g.thread; i < heads * parts; i += g.threads) {
		((uint4 *)r.heads)[i] =
			((const uint4 *)entry_of(c, r.epoch, i / parts))[i % parts];
	}
}

/* Rows that each rank needs room for, if there is one for each choice: all ranks must know whether they fit. */
DEV void need_choices(const struct route &r, const struct group &g)
{
	const struct moeep_dev_context &c = r.c;

	for (int e = g.thread; e < c.num_experts; e += g.threads) {
		int to = expert_rank(c, e);
		int64_t count = 0;

		for (int from = 0; from < c.num_ranks; from++) {
			count += counts_of(c, r.epoch, from)[c.num_ranks + e];
		}
		atomicAdd((unsigned long long *)&r.ends.needed[to],
			  (unsigned long long)align_up(count, head_of(r, to)->alignment));
	}
}

/*
 * A region of symmetric memory at the rank that a thread looks after, read before that rank's entry is there:
 * it is most likely the same that this rank gives, and each of these words is a trip to memory.
 */
struct reach {
	uint32_t slot;
	uint32_t id;
	char *base;
};

DEV struct reach reach_of(const struct route &r, int rank, uint32_t slot)
{
	const struct moeep_ht_route_args &p = r.p;
	struct reach reach = {slot, 0, NULL};

	if (rank < r.c.num_ranks && slot > 0 && slot < p.region_slots) {
		reach.id = p.regions[slot].id;
		reach.base = p.region_base[(int64_t)slot * r.c.num_ranks + rank];
	}
	return reach;
}

/* A rank's place in symmetric memory, or NULL. */
DEV char *find_place(const struct route &r, int rank, const struct moeep_dev_place &place,
		     const struct reach &guess)
{
	struct reach reach = guess;

	if (place.slot != guess.slot) {
		reach = reach_of(r, rank, place.slot);
	}
	return reach.base && reach.id == place.id ? reach.base + place.offset : NULL;
}

/*
 * Combine: where this rank's rows for a rank go, in its window, and where those of it are found. Both
 * by position, though a window has room for each rank's rows from a place of their own on.
 */
DEV void find_source(const struct route &r, int rank, const struct reach &reach,
		     struct verdict *verdict)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_entry *entry = head_of(r, rank);
	bool flat = p.entry.row_layout != MOEEP_ROWS_EXPERT_MAJOR;
	bool in_place = entry->place.slot != 0;
	int64_t base = r.route.send_base[rank];
	int64_t there = c.rank * c.ht_max_tokens - r.route.recv_base[rank];
	char *at = near_window_at(c, c.rank, c.window.rows) +
		   (rank * c.ht_max_tokens - base) * (int64_t)p.row_bytes;

	if (flat && rank == c.rank) {
		at = p.own;
	} else if (in_place) {
		at = find_place(r, rank, entry->place, reach);
		if (!at) {
			atomicMin(&verdict->lost, rank);
		} else if (base + r.route.send_count[rank] > entry->capacity) {
			atomicMin(&verdict->beyond, rank);
		}
	}
	r.ends.src[rank] = at;
	r.ends.channels[rank] = in_place ? 0 : entry->channels;
	at = near_window_at(c, rank, c.window.rows) + there * (int64_t)p.row_bytes;
	r.ends.dst[rank] = entry->wants_rows && p.entry.place.slot == 0 ? at : NULL;
}

/* Dispatch: where this rank's rows go at a rank. */
DEV void find_destination(const struct route &r, int to, const struct reach &reach,
			  struct verdict *verdict)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_entry *entry = head_of(r, to);
	bool flat = p.entry.row_layout != MOEEP_ROWS_EXPERT_MAJOR;
	char *at = near_window_at(c, to, c.window.rows);
	int64_t limit = INT64_MAX;
	bool staged = flat;

	r.ends.channels[to] = entry->channels;
	r.ends.parts[to] = entry->senders;
	if (flat && to == c.rank) {
		at = p.own;
		limit = entry->capacity;
		staged = false;
	} else if (flat && entry->place.slot != 0) {
		at = find_place(r, to, entry->place, reach);
		if (!at) {
			atomicMin(&verdict->lost, to);
		}
		limit = entry->capacity;
		staged = false;
	}
	r.ends.dst[to] = entry->wants_rows ? at : NULL;
	r.ends.limit[to] = limit;
	r.ends.staged[to] = staged && entry->wants_rows;
}

/* The first rank that brings tokens, else rank 0: what it gives with them is what all do. */
DEV const struct moeep_dev_entry *giver_of_all(const struct route &r)
{
	for (int rank = 0; rank < r.c.num_ranks; rank++) {
		if (head_of(r, rank)->num_tokens > 0) {
			return head_of(r, rank);
		}
	}
	return head_of(r, 0);
}

/*
 * Is a rank's call that of rank 0? What is given with tokens, and their scales, only where there are
 * tokens. In the order that lib/cuda/result.c has names for.
 */
#define FIELDS 9

DEV uint32_t differs(const struct route &r, const struct moeep_dev_entry *a,
		     const struct moeep_dev_entry *giver, const struct moeep_dev_entry *b, int field)
{
	const struct moeep_dev_entry *g = b->num_tokens > 0 ? b : giver;
	uint32_t agreed = r.combine ? ~MOEEP_DEV_GIVEN_X : ~0u;
	uint64_t route = a->route ^ b->route;

	switch (field) {
	case 0:
		return a->op ^ b->op;
	case 1:
		return a->flags ^ b->flags;
	case 2:
		return (uint32_t)route | (uint32_t)(route >> 32);
	case 3:
		return (uint32_t)(a->dtype ^ b->dtype);
	case 4:
		return (uint32_t)(a->topk ^ b->topk);
	case 5:
		return (uint32_t)(a->row_layout ^ b->row_layout);
	case 6:
		return (uint32_t)(giver->scale_count ^ g->scale_count);
	case 7:
		return (uint32_t)(giver->scale_dtype ^ g->scale_dtype);
	default:
		return (giver->given ^ g->given) & agreed;
	}
}

DEV bool differs_at_all(const struct route &r, const struct moeep_dev_entry *giver, int rank)
{
	uint32_t any = 0;

#pragma unroll
	for (int field = 0; field < FIELDS; field++) {
		any |= differs(r, head_of(r, 0), giver, head_of(r, rank), field);
	}
	return any != 0;
}

/* A thread's part of what is found out about each rank. */
DEV void judge_ranks(const struct route &r, const struct group &g, const struct moeep_dev_entry *giver,
		     const struct reach &first, struct verdict *verdict)
{
	const struct moeep_dev_context &c = r.c;

	for (int rank = g.thread; rank < c.num_ranks; rank += g.threads) {
		const struct moeep_dev_entry *entry = head_of(r, rank);
		struct reach reach = first;

		if (rank != g.thread) {
			reach = reach_of(r, rank, entry->place.slot);
		}
		if (differs_at_all(r, giver, rank)) {
			atomicMin(&verdict->differs, rank);
		}
		if (r.combine) {
			if (entry->num_tokens > 0 && !(entry->given & MOEEP_DEV_GIVEN_X)) {
				atomicMin(&verdict->no_x, rank);
			}
			find_source(r, rank, reach, verdict);
			continue;
		}
		if (!r.cached && r.ends.total[rank] > entry->max_recv) {
			atomicMin(&verdict->handle, rank);
		}
		if (r.ends.needed[rank] > entry->capacity) {
			atomicMin(&verdict->rows, rank);
		}
		find_destination(r, rank, reach, verdict);
		int first = 0;

		for (int from = 0; from < rank; from++) {
			first += r.ends.count[from];
		}
		r.ends.first[rank] = first;
		if (rank == c.num_ranks - 1) {
			r.ends.first[rank + 1] = first + r.ends.count[rank];
		}
	}
}

#endif
