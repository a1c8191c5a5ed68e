/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_move_copy.cuh - rows of an HT dispatch that come in.
 *
 * Into this rank's window, from where warps copy them to the output while later ones still arrive; or
 * to their final place, where they are waited for.
 */
#ifndef MOEEP_KERNELS_HT_MOVE_COPY_CUH
#define MOEEP_KERNELS_HT_MOVE_COPY_CUH

#include "ht_move_send.cuh"

/* A warp's way through the channels of the others: every step-th, of one rank after the other. */
struct tour {
	int step;
	int turn;     /* the source is this many ranks before this one */
	int source;
	int channels; /* of the source */
	int channel;  /* of the source, the next */
};

/* To a channel that there is. False: there is none. */
DEV bool tour_on(const struct job &j, struct tour *t)
{
	int ranks = j.p.c.num_ranks;

	while (t->channel >= t->channels) {
		if (++t->turn >= ranks) {
			return false;
		}
		t->channel -= t->channels;
		t->source = (j.p.c.rank + ranks - t->turn) % ranks;
		t->channels = j.ends.channels[t->source];
	}
	return true;
}

/* Rows of a channel, in this rank's window: their places there are those in the output. */
struct arrival {
	int64_t row;
	int64_t end;
};

/* By one thread. wait: until the channel is there. False: it is not, or the comm has failed, *ok. */
DEV bool take_channel(const struct job &j, const struct tour &t, bool wait, struct arrival *a, bool *ok)
{
	const struct moeep_dev_context &c = j.p.c;
	const uint64_t *word = progress_at(c, c.rank, t.source, t.channel);
	uint64_t expected = flag_word(j.plan.epoch, 0);
	uint4 v = load_whole16((const char *)word);
	uint64_t seen = (uint64_t)v.y << 32 | v.x;

	if (flag_reached(seen, expected)) {
		/* As at the end of a wait. */
		(void)load_acquire(word);
	} else if (!wait) {
		return false;
	} else if (wait_word<true>(c, word, expected, t.source, MOEEP_DEV_ROWS, &seen)) {
		v = load_whole16((const char *)word);
	} else {
		*ok = false;
		return false;
	}
	a->row = v.z;
	a->end = a->row + flag_count(seen);
	return true;
}

#if HAVE_BULK
/* By one thread: from the window to the output, a stream of pieces. False: the comm has failed. */
DEV bool copy_bulk(const struct job &j, struct tour tour, const struct ring &r)
{
	__shared__ int64_t where[MOVERS][MOEEP_DEV_STAGES]; /* in both, or -1: no room */
	const struct moeep_ht_dispatch_params &p = j.p;
	const char *rows = near_window_at(p.c, p.c.rank, p.c.window.rows);
	volatile int64_t *place = where[WARP];
	struct arrival a = {0, 0};
	struct piece load = {0, 0};
	uint64_t stored = 0; /* bytes of the row that is stored */
	struct place loading = {0, 0};
	struct place storing = {0, 0};
	bool wrapped = false;
	bool more = tour_on(j, &tour);
	bool ok = true;
	int ahead = 0;

	for (;;) {
		uint32_t bytes;

		while (ahead < r.stages && ok) {
			if (load.row >= a.end) {
				/* What is loaded can be stored meanwhile. */
				if (!more || !take_channel(j, tour, ahead == 0, &a, &ok)) {
					break;
				}
				/* Whether it had to wait or not: the engine is to see the rows. */
				ring_acquire();
				load = piece{a.row, 0};
				tour.channel += tour.step;
				more = tour_on(j, &tour);
				continue;
			}
			/* What was stored from this stage, `stages` pieces ago, has been read. */
			if (wrapped && ahead == r.stages - 1) {
				ring_wait_read<0>();
			} else if (wrapped) {
				ring_wait_read<1>();
			}
			bytes = piece_bytes(load, p.row_bytes, p.piece);
			ring_load(r, loading, rows + (uint64_t)load.row * p.row_bytes + load.at, bytes);
			place[loading.stage] =
				load.row < p.capacity
					? (int64_t)((uint64_t)load.row * p.row_bytes + load.at)
					: -1;
			next_piece(&load, p.row_bytes, p.piece);
			ring_next(r, &loading);
			wrapped = wrapped || loading.stage == 0;
			ahead++;
		}
		if (ahead == 0) {
			return ok;
		}
		bytes = piece_bytes(piece{0, stored}, p.row_bytes, p.piece);
		stored = stored + bytes < p.row_bytes ? stored + bytes : 0;
		ring_wait(r, storing);
		if (place[storing.stage] >= 0) {
			ring_store(r, storing, p.recv_x + place[storing.stage], bytes);
		}
		ring_commit();
		ring_next(r, &storing);
		ahead--;
	}
}
#endif

DEV bool copy_plain(const struct job &j, struct tour tour)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	const char *rows = near_window_at(p.c, p.c.rank, p.c.window.rows);
	bool ok = true;

	for (; tour_on(j, &tour); tour.channel += tour.step) {
		struct arrival a = {0, 0};

		if (LANE == 0) {
			(void)take_channel(j, tour, true, &a, &ok);
		}
		if (!__shfl_sync(FULL, ok, 0)) {
			return false;
		}
		a.row = __shfl_sync(FULL, a.row, 0);
		a.end = __shfl_sync(FULL, a.end, 0);
		/* Lane 0 has acquired for all. */
		__syncwarp();
		for (; a.row < a.end && a.row < p.capacity; a.row++) {
			warp_copy(p.recv_x + (uint64_t)a.row * p.row_bytes,
				  rows + (uint64_t)a.row * p.row_bytes, (int64_t)p.row_bytes);
		}
	}
	return true;
}

/* A warp copies every `step`-th channel of the others, from `index` on. */
DEV bool copy_channels(const struct job &j, int index, int step, const struct ring &r)
{
	struct tour tour = {step, 0, 0, 0, index};

#if HAVE_BULK
	if (j.p.bulk) {
		bool ok = true;

		if (LANE == 0) {
			ok = copy_bulk(j, tour, r);
			ring_wait_written<0>();
		}
		return __shfl_sync(FULL, ok, 0);
	}
#endif
	return copy_plain(j, tour);
}

/* Rows that are stored in place, or expanded later: they have all come when this is true. */
DEV bool wait_all_rows(const struct job &j, int thread, int threads)
{
	const struct moeep_dev_context &c = j.p.c;
	uint64_t seen;
	bool ok = true;

	for (int at = thread; at < c.num_ranks * MOEEP_DEV_BLOCKS && ok; at += threads) {
		int source = at / MOEEP_DEV_BLOCKS;
		int part = at % MOEEP_DEV_BLOCKS;

		if (source != c.rank && part < j.ends.parts[source]) {
			ok = wait_word<true>(c, sent_at(c, c.rank, source, part),
					     flag_word(j.plan.epoch, 0), source, MOEEP_DEV_ROWS,
					     &seen);
		}
	}
	return ok;
}

#endif
