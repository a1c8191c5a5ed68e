/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_move_send.cuh - rows of an HT dispatch on their way out.
 *
 * Movers, a few warps of a block, claim channels and push their rows to all ranks they go to. Another
 * warp tells those ranks how far the movers are.
 */
#ifndef MOEEP_KERNELS_HT_MOVE_SEND_CUH
#define MOEEP_KERNELS_HT_MOVE_SEND_CUH

#include "ht_common.cuh"

struct channel {
	int number;
	int64_t first; /* tokens */
	int64_t last;
};

DEV struct channel channel_of(const struct moeep_ht_dispatch_params &p, int number)
{
	struct span s = span_of(p.num_tokens, channels_of(p), number);

	return channel{number, s.first, s.first + s.count};
}

/* By a mover: its channel number `count`, in *ch. False: there is none left. */
DEV bool claim_channel(const struct moeep_ht_dispatch_params &p, struct claims *claims, int count,
		       struct channel *ch)
{
	uint32_t number;

	if (p.shares > 1) {
		number = claim(&p.c.state->claimed_channels);
	} else {
		/* It is this mover's own. */
		number = count == 0 ? (uint32_t)(part_of(p.senders).index * MOVERS + WARP)
				    : UINT32_MAX;
	}
	if (number >= (uint32_t)channels_of(p)) {
		return false;
	}
	*ch = channel_of(p, (int)number);
	claims_put(claims, count, number);
	return ch->first < ch->last;
}

DEV struct channel claimed_channel(const struct moeep_ht_dispatch_params &p,
				   const struct claims *claims, int mover, int n)
{
	return channel_of(p, claims_get(claims, mover, n));
}

/* What a lane knows of the rank it sends to. */
struct target {
	int rank; /* -1: none */
	char *rows;
	int64_t limit;
	bool report; /* its owner copies rows while they come */
	int count;   /* rows so far */
};

DEV struct target target_of(const struct moeep_ht_dispatch_params &p, int rank)
{
	struct target t = {-1, NULL, 0, false, 0};

	if (rank < p.c.num_ranks) {
		t.rank = rank;
		t.rows = p.ends.dst[rank];
		t.limit = p.ends.limit[rank];
		t.report = p.ends.staged[rank] != 0;
	}
	return t;
}

DEV int position_of(const struct moeep_ht_dispatch_params &p, int rank, int64_t token)
{
	return rank >= 0 ? p.route.position[token * p.c.num_ranks + rank] : -1;
}

/* Pairs with the wait for rows of the rank that they go to. */
DEV uint64_t *progress_of(const struct moeep_ht_dispatch_params &p, const struct target &t, int channel)
{
	return progress_at(p.c, t.rank, p.c.rank, channel);
}

#if HAVE_BULK
/* A mover's way through its channels. */
struct cursor {
	int channel; /* number among the mover's; -1: before the first */
	struct piece piece;
	int64_t last; /* row behind the channel's */
};

DEV void enter_channel(struct cursor *c, const struct channel &ch)
{
	c->channel++;
	c->piece = {ch.first, 0};
	c->last = ch.last;
}

/*
 * A warp sends rows of its channels to up to 32 ranks, a lane each. `landed` gets how many rows of its
 * channels are done; without it the warp, which has one channel then, tells the ranks itself, at the
 * end.
 */
DEV void send_bulk(const struct moeep_ht_dispatch_params &p, struct claims *claims, int from_rank,
		   const struct ring &r, struct landed *landed)
{
	struct target t = target_of(p, from_rank + LANE);
	struct cursor load = {-1, {0, 0}, 0};
	struct cursor store = {-1, {0, 0}, 0};
	struct channel ch = {0, 0, 0};
	struct place loading = {0, 0};
	struct place storing = {0, 0};
	bool wrapped = false;
	bool more = true;   /* channels may be left */
	bool known = false; /* position is that of the next row */
	int position = -1;
	int ahead = 0; /* pieces loaded and not stored */
	int sent = 0;  /* pieces */
	int since = 0; /* pieces since the last look */
	int pieces = (int)((p.row_bytes + p.piece - 1) / p.piece);
	bool reports = __any_sync(FULL, t.report);
	/* If nobody copies rows meanwhile, only the ends of channels matter. */
	int every = reports ? REPORT : 4 * REPORT;

	for (;;) {
		uint32_t bytes;
		bool ends; /* a row */
		int64_t next = -1;
		int next_position = -1;

		/* A stage is free once its piece, two before this one, has been read by the stores. */
		for (; ahead < r.stages - 1; ahead++) {
			if (load.piece.row >= load.last && more) {
				more = claim_channel(p, claims, load.channel + 1, &ch);
				if (more) {
					enter_channel(&load, ch);
				}
			}
			if (load.piece.row >= load.last) {
				break;
			}
			if (wrapped) {
				ring_wait_read<1>();
				__syncwarp();
			}
			if (LANE == 0) {
				ring_load(r, loading,
					  p.x + (uint64_t)load.piece.row * p.row_bytes +
						  load.piece.at,
					  piece_bytes(load.piece, p.row_bytes, p.piece));
			}
			next_piece(&load.piece, p.row_bytes, p.piece);
			ring_next(r, &loading);
			wrapped = wrapped || loading.stage == 0;
		}
		if (ahead == 0) {
			break;
		}
		if (store.piece.row >= store.last) {
			enter_channel(&store, claimed_channel(p, claims, WARP, store.channel + 1));
		}
		if (!known) {
			position = position_of(p, t.rank, store.piece.row);
			known = true;
		}
		bytes = piece_bytes(store.piece, p.row_bytes, p.piece);
		ends = store.piece.at + bytes == p.row_bytes;
		if (ends && store.piece.row + 1 < store.last) {
			next = store.piece.row + 1;
		} else if (ends && store.channel < load.channel) {
			next = claimed_channel(p, claims, WARP, store.channel + 1).first;
		}
		if (next >= 0) {
			/* On its way while this piece is. */
			next_position = position_of(p, t.rank, next);
		}
		ring_wait(r, storing);
		if (position >= 0 && t.rows && position < t.limit) {
			ring_store(r, storing,
				   t.rows + (uint64_t)position * p.row_bytes + store.piece.at, bytes);
		}
		ring_commit();
		ring_next(r, &storing);
		ahead--;
		sent++;
		next_piece(&store.piece, p.row_bytes, p.piece);
		if (ends) {
			t.count += position >= 0;
			position = next_position;
			known = next >= 0;
		}
		if (!landed || sent <= LANDED_LAG || ++since < every) {
			continue;
		}
		since = 0;
		ring_wait_written<LANDED_LAG>();
		landed_put(landed, (sent - LANDED_LAG) / pieces);
	}
	ring_wait_written<0>();
	if (landed) {
		landed_put(landed, sent / pieces);
	} else if (t.rank >= 0 && t.rank != p.c.rank) {
		store_release(progress_of(p, t, part_of(p.senders).index * MOVERS + WARP),
			      flag_word(p.plan->epoch, (uint64_t)t.count));
	}
}

/* How far the reporter is with a mover; count is the lane's rank's. */
struct reported {
	int channel; /* number among the mover's; -1: before the first */
	int rows;    /* of all its channels */
	int64_t row;
	struct channel now;
	int count; /* rows of this channel */
	int told;
};

/* What a mover has done since, to the end of a channel at most. True if a rank has to be told. */
DEV bool follow_mover(const struct moeep_ht_dispatch_params &p, const struct landed *landed,
		      const struct claims *claims, int mover, const struct target &t,
		      struct reported *r)
{
	int rows = landed_get(landed, mover, 0);

	/* Pairs with landed_put(): the channels of these rows are known. */
	__threadfence_block();
	if (r->rows < rows && r->row >= r->now.last) {
		r->now = claimed_channel(p, claims, mover, ++r->channel);
		r->row = r->now.first;
		r->count = 0;
		r->told = 0;
	}
#pragma unroll 4
	while (r->rows < rows && r->row < r->now.last) {
		r->count += position_of(p, t.rank, r->row) >= 0;
		r->row++;
		r->rows++;
	}
	/* The rank itself waits for no channel. */
	return t.rank != p.c.rank && r->count != r->told && (t.report || r->row >= r->now.last);
}

/* A warp tells the ranks how far this block's movers are. */
DEV void report_landed(const struct moeep_ht_dispatch_params &p, const struct landed *landed,
		       const struct claims *claims)
{
	struct target t = target_of(p, LANE);
	struct reported done[MOVERS];
	bool all;
	bool behind;

#pragma unroll
	for (int m = 0; m < MOVERS; m++) {
		done[m] = reported{-1, 0, 0, {0, 0, 0}, 0, 0};
	}
	do {
		bool news = false;
		bool tell[MOVERS];

		all = landed_all(landed);
		behind = false;
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			tell[m] = follow_mover(p, landed, claims, m, t, &done[m]);
			news = news || tell[m];
			behind = behind || done[m].rows < landed_get(landed, m, 0);
		}
		if (__any_sync(FULL, news)) {
			/* A release for all: what the movers have written has landed. */
			__threadfence_system();
		}
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			if (tell[m]) {
				store_relaxed(progress_of(p, t, done[m].now.number),
					      flag_word(p.plan->epoch, (uint64_t)done[m].count));
				done[m].told = done[m].count;
			}
		}
		behind = __any_sync(FULL, behind);
		if (!all && !behind) {
			__nanosleep(500);
		}
	} while (!all || behind);
}
#endif

/* The same by loads and stores. */
DEV void send_plain(const struct moeep_ht_dispatch_params &p, const struct channel &ch, int from_rank)
{
	struct target t = target_of(p, from_rank + LANE);

	for (int64_t token = ch.first; token < ch.last; token++) {
		int position = position_of(p, t.rank, token);
		bool store = position >= 0 && t.rows && position < t.limit;
		unsigned valid = __ballot_sync(FULL, store);
		const char *mine = t.rows + (store ? (uint64_t)position * p.row_bytes : 0);
		const char *from = p.x + (uint64_t)token * p.row_bytes;

		for (int64_t base = LANE * 16;
		     valid && __any_sync(FULL, base < (int64_t)p.row_bytes); base += 32 * 16 * 4) {
			uint4 v[4];

#pragma unroll
			for (int i = 0; i < 4; i++) {
				if (base + i * 512 < (int64_t)p.row_bytes) {
					v[i] = *(const uint4 *)(from + base + i * 512);
				}
			}
			for (unsigned m = valid; m; m &= m - 1) {
				char *to = (char *)warp_pointer(mine, __ffs((int)m) - 1);

#pragma unroll
				for (int i = 0; i < 4; i++) {
					if (base + i * 512 < (int64_t)p.row_bytes) {
						*(uint4 *)(to + base + i * 512) = v[i];
					}
				}
			}
		}
		t.count += position >= 0;
		__syncwarp();
		if (t.report && (token - ch.first) % REPORT == REPORT - 1) {
			store_release(progress_of(p, t, ch.number),
				      flag_word(p.plan->epoch, (uint64_t)t.count));
		}
	}
	__syncwarp();
	if (t.rank >= 0 && t.rank != p.c.rank) {
		store_release(progress_of(p, t, ch.number),
			      flag_word(p.plan->epoch, (uint64_t)t.count));
	}
}

/* A mover's part in a block that sends: 32 ranks at a time. */
DEV void send_rows(const struct moeep_ht_dispatch_params &p, const struct ring &r,
		   struct landed *landed, struct claims *claims)
{
	struct channel ch;

#if HAVE_BULK
	for (int rank = 0; p.bulk && rank < p.c.num_ranks; rank += 32) {
		if (rank > 0) {
			ring_reset(r);
		}
		send_bulk(p, claims, rank, r, p.c.num_ranks <= 32 ? landed : NULL);
	}
#endif
	for (int n = 0; !p.bulk && claim_channel(p, claims, n, &ch); n++) {
		for (int rank = 0; rank < p.c.num_ranks; rank += 32) {
			send_plain(p, ch, rank);
		}
	}
	landed_finish(landed);
}

#endif
