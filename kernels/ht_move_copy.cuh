/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_move_copy.cuh - rows of an HT dispatch that come in.
 *
 * Into this rank's window, from where warps copy them to the output while later ones still arrive; or
 * to their final place, where they are waited for.
 */
#ifndef MOEEP_KERNELS_HT_MOVE_COPY_CUH
#define MOEEP_KERNELS_HT_MOVE_COPY_CUH

#include "ht_common.cuh"

/* Rows of one channel of another rank, in this rank's window. */
struct arrival {
	int source;
	int channel;
	int64_t base; /* first record */
	int64_t rows;
};

DEV struct arrival arrival_of(const struct moeep_ht_dispatch_params &p, int source, int channel)
{
	const int32_t *first = entry_channels(entry_at(p.c, p.c.rank, p.plan->epoch, source));

	return arrival{source, channel, (int64_t)p.route.recv_base[source] + first[channel],
		       (int64_t)first[channel + 1] - first[channel]};
}

DEV bool wait_rows(const struct moeep_ht_dispatch_params &p, const struct arrival &a, int64_t rows,
		   uint64_t *seen)
{
	uint64_t expected = flag_word(p.plan->epoch, (uint64_t)rows);

	return flag_reached(*seen, expected) ||
	       wait_word<true>(p.c, progress_at(p.c, p.c.rank, a.source, a.channel), expected,
			       a.source, MOEEP_DEV_ROWS, seen);
}

DEV uint64_t nothing_seen(const struct moeep_ht_dispatch_params &p)
{
	return flag_word(epoch_before(p.plan->epoch, 1), 0);
}

#if HAVE_BULK
/* A thread's ring while it copies, from one channel to the next. */
struct copier {
	struct place loading;
	struct place storing;
	bool wrapped; /* stages are used again */
};

/* By one thread: from the window to the output. False: the comm has failed. */
DEV bool copy_bulk(const struct moeep_ht_dispatch_params &p, const struct arrival &a,
		   const struct ring &r, struct copier *at)
{
	const char *rows = window_at(p.c, p.c.rank, p.c.window.rows);
	const uint64_t *progress = progress_at(p.c, p.c.rank, a.source, a.channel);
	struct piece load = {0, 0};
	struct piece store = {0, 0};
	uint64_t seen = nothing_seen(p);
	int ahead = 0;

	while (store.row < a.rows) {
		while (load.row < a.rows && ahead < r.stages) {
			uint64_t expected = flag_word(p.plan->epoch, (uint64_t)load.row + 1);

			if (!flag_reached(seen, expected)) {
				seen = load_relaxed(progress);
				if (!flag_reached(seen, expected) && ahead > 0) {
					break; /* what is loaded can be stored meanwhile */
				}
				if (!wait_rows(p, a, load.row + 1, &seen)) {
					return false;
				}
				/* Whether it had to wait or not: the engine is to see them. */
				seen = load_acquire(progress);
				ring_acquire();
			}
			/* What was stored from this stage, `stages` pieces ago, has been read. */
			if (at->wrapped && ahead == r.stages - 1) {
				ring_wait_read<0>();
			} else if (at->wrapped) {
				ring_wait_read<1>();
			}
			ring_load(r, at->loading,
				  rows + (uint64_t)(a.base + load.row) * p.row_bytes + load.at,
				  piece_bytes(load, p.row_bytes, p.piece));
			next_piece(&load, p.row_bytes, p.piece);
			ring_next(r, &at->loading);
			at->wrapped = at->wrapped || at->loading.stage == 0;
			ahead++;
		}
		ring_wait(r, at->storing);
		if (p.recv_x && a.base + store.row < p.capacity) {
			ring_store(r, at->storing,
				   p.recv_x + (uint64_t)(a.base + store.row) * p.row_bytes +
					   store.at,
				   piece_bytes(store, p.row_bytes, p.piece));
		}
		ring_commit();
		next_piece(&store, p.row_bytes, p.piece);
		ring_next(r, &at->storing);
		ahead--;
	}
	return true;
}
#endif

DEV bool copy_plain(const struct moeep_ht_dispatch_params &p, const struct arrival &a)
{
	const char *rows = window_at(p.c, p.c.rank, p.c.window.rows);
	uint64_t seen = nothing_seen(p);
	bool ok = true;

	for (int64_t i = 0; i < a.rows && ok; i++) {
		if (LANE == 0) {
			ok = wait_rows(p, a, i + 1, &seen);
		}
		ok = __shfl_sync(FULL, ok, 0);
		/* Lane 0 has acquired for all. */
		__syncwarp();
		if (ok && p.recv_x && a.base + i < p.capacity) {
			warp_copy(p.recv_x + (uint64_t)(a.base + i) * p.row_bytes,
				  rows + (uint64_t)(a.base + i) * p.row_bytes,
				  (int64_t)p.row_bytes);
		}
	}
	return ok;
}

/* A warp copies every `step`-th channel of the others, from `index` on. */
DEV bool copy_channels(const struct moeep_ht_dispatch_params &p, int index, int step,
		       const struct ring &r)
{
	bool ok = true;
#if HAVE_BULK
	struct copier place = {{0, 0}, {0, 0}, false};
#endif

	for (int i = 1; i < p.c.num_ranks && ok; i++) {
		int source = (p.c.rank + p.c.num_ranks - i) % p.c.num_ranks;
		int channels = p.ends.channels[source];
		int at = index;

		for (; at < channels && ok; at += step) {
			struct arrival a = arrival_of(p, source, at);

#if HAVE_BULK
			if (p.bulk) {
				if (LANE == 0) {
					ok = copy_bulk(p, a, r, &place);
				}
				ok = __shfl_sync(FULL, ok, 0);
				continue;
			}
#endif
			ok = copy_plain(p, a);
		}
		index = at - channels;
	}
#if HAVE_BULK
	if (p.bulk && LANE == 0) {
		ring_wait_written<0>();
	}
#endif
	return ok;
}

/* Rows that are stored in place, or expanded later: they have all come when this is true. */
DEV bool wait_all_rows(const struct moeep_ht_dispatch_params &p)
{
	int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
	int64_t threads = (int64_t)gridDim.x * blockDim.x;
	bool ok = true;

	for (int source = 0; source < p.c.num_ranks && ok; source++) {
		int channels = source == p.c.rank ? 0 : p.ends.channels[source];

		for (int64_t at = thread; at < channels && ok; at += threads) {
			struct arrival a = arrival_of(p, source, (int)at);
			uint64_t seen = nothing_seen(p);

			/* Channels without a row for this rank are not reported. */
			ok = a.rows == 0 || wait_rows(p, a, a.rows, &seen);
		}
	}
	return ok;
}

#endif
