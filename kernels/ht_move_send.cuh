/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_move_send.cuh - rows of an HT dispatch on their way out.
 *
 * Movers, a few warps of a block, claim channels and push their rows to all ranks they go to. Another
 * warp tells those ranks how far the movers are.
 */
#ifndef MOEEP_KERNELS_HT_MOVE_SEND_CUH
#define MOEEP_KERNELS_HT_MOVE_SEND_CUH

#include "ht_landed.cuh"

/* What an operation's functions need: its arguments, and what every block knows since it has begun. */
struct job {
	const struct moeep_ht_dispatch_params &p;
	const struct moeep_dev_plan &plan;
	const struct ends &ends;
};

struct channel {
	int64_t first; /* tokens */
	int64_t last;
};

DEV struct channel channel_of(const struct job &j, int number)
{
	int64_t first = (int64_t)j.p.each * number;
	int64_t last = first + j.p.each;

	return channel{first, last < j.p.num_tokens ? last : j.p.num_tokens};
}

/* By a mover: its channel number `count`, in *ch. False: there is none left. */
DEV bool claim_channel(const struct job &j, struct landed *landed, int count, bool told,
		       uint32_t *ahead, struct channel *ch)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	uint32_t number = claimed(*ahead);

	*ahead = claim_ahead(&p.c.state->claimed_channels);
	if (number >= (uint32_t)p.channels) {
		return false;
	}
	*ch = channel_of(j, (int)number);
	claims_put(landed, count, number, told);
	return true;
}

DEV struct channel claimed_channel(const struct job &j, const struct landed *landed, int mover, int n)
{
	return channel_of(j, claims_get(landed, mover, n));
}

/* What a lane knows of the rank it sends to. */
struct target {
	int rank; /* -1: none */
	char *rows;
	int64_t limit;
	bool report; /* its owner copies rows while they come */
};

DEV struct target target_of(const struct job &j, int rank)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	struct target t = {-1, NULL, 0, false};

	if (rank < p.c.num_ranks) {
		t.rank = rank;
		t.rows = j.ends.dst[rank];
		t.limit = j.ends.limit[rank];
		t.report = j.ends.staged[rank] != 0;
	}
	return t;
}

DEV int position_of(const struct job &j, int rank, int64_t token)
{
	const struct moeep_ht_dispatch_params &p = j.p;

	return rank >= 0 ? p.route.position[token * p.c.num_ranks + rank] : -1;
}

/*
 * By lanes, behind a fence: a channel's rows are there. Pairs with the wait for rows of the rank that they go
 * to.
 */
DEV void report_channel(const struct job &j, const struct target &t, int number)
{
	const struct moeep_dev_context &c = j.p.c;
	struct channel ch = channel_of(j, number);
	uint32_t first = 0;
	uint32_t count = 0;

	if (!t.report) {
		return;
	}
#pragma unroll 4
	for (int64_t token = ch.first; token < ch.last; token++) {
		int position = position_of(j, t.rank, token);

		first = count == 0 && position >= 0 ? (uint32_t)position : first;
		count += position >= 0;
	}
	uint64_t word = flag_word(j.plan.epoch, count);

	store_whole16((char *)progress_at(c, t.rank, c.rank, number), (uint32_t)word,
		      (uint32_t)(word >> 32), first, 0);
}

/* By a warp: does any rank copy rows while they come? */
DEV bool reports(const struct job &j)
{
	bool any = false;

	for (int rank = LANE; rank < j.p.c.num_ranks; rank += 32) {
		any = any || j.ends.staged[rank] != 0;
	}
	return __any_sync(FULL, any) != 0;
}

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

/* A mover that loads rows, which it may do before it knows where they go, and sends them. */
struct mover {
	struct cursor load;
	struct cursor store;
	struct place loading;
	struct place storing;
	bool wrapped;
	bool more; /* channels may be left */
	bool told; /* a reporter follows it */
	int ahead; /* pieces loaded and not stored */
	uint32_t claim; /* ahead */
};

DEV struct mover mover_of(uint32_t claim)
{
	return mover{{-1, {0, 0}, 0}, {-1, {0, 0}, 0}, {0, 0}, {0, 0}, false, true, false, 0, claim};
}

#if HAVE_BULK
/* By the whole warp: into all stages but one, whose piece may still be read by stores. */
DEV void load_rows(const struct job &j, struct landed *landed, const struct ring &r, struct mover *m)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	struct channel ch = {0, 0};

	for (; m->ahead < r.stages - 1; m->ahead++) {
		if (m->load.piece.row >= m->load.last && m->more) {
			m->more = claim_channel(j, landed, m->load.channel + 1, m->told,
						&m->claim, &ch);
			if (m->more) {
				enter_channel(&m->load, ch);
			}
		}
		if (m->load.piece.row >= m->load.last) {
			break;
		}
		if (m->wrapped) {
			/* A stage is free once its piece, two before this one, has been read. */
			ring_wait_read<1>();
			__syncwarp();
		}
		if (LANE == 0) {
			ring_load(r, m->loading,
				  p.x + (uint64_t)m->load.piece.row * p.row_bytes +
					  m->load.piece.at,
				  piece_bytes(m->load.piece, p.row_bytes, p.piece));
		}
		next_piece(&m->load.piece, p.row_bytes, p.piece);
		ring_next(r, &m->loading);
		m->wrapped = m->wrapped || m->loading.stage == 0;
	}
}

/* By a lane, to a rank beyond the first 32. */
DEV void send_piece(const struct job &j, const struct ring &r, const struct mover &m, int rank,
		    uint32_t bytes)
{
	struct target t = target_of(j, rank);
	int position = position_of(j, rank, m.store.piece.row);

	if (position >= 0 && t.rows && position < t.limit) {
		ring_store(r, m.storing,
			   t.rows + (uint64_t)position * j.p.row_bytes + m.store.piece.at, bytes);
	}
}

/*
 * A warp sends rows of its channels, a lane to each rank. `landed` gets how many of them are done, if
 * somebody copies rows meanwhile.
 */
DEV void send_bulk(const struct job &j, const struct ring &r, struct mover *m, struct landed *landed)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	struct target t = target_of(j, LANE);
	struct cursor &load = m->load;
	struct cursor &store = m->store;
	struct endings endings = {0, 0, 0};
	bool known = false; /* position is that of the next row */
	int position = -1;
	int sent = 0; /* pieces */

	m->told = reports(j);
	for (;;) {
		uint32_t bytes;
		bool ends; /* a row */
		int64_t next = -1;
		int next_position = -1;

		load_rows(j, landed, r, m);
		if (m->ahead == 0) {
			break;
		}
		if (store.piece.row >= store.last) {
			enter_channel(&store, claimed_channel(j, landed, WARP, store.channel + 1));
		}
		if (!known) {
			position = position_of(j, t.rank, store.piece.row);
			known = true;
		}
		bytes = piece_bytes(store.piece, p.row_bytes, p.piece);
		ends = store.piece.at + bytes == p.row_bytes;
		if (ends && store.piece.row + 1 < store.last) {
			next = store.piece.row + 1;
		} else if (ends && store.channel < load.channel) {
			next = claimed_channel(j, landed, WARP, store.channel + 1).first;
		}
		if (next >= 0) {
			/* On its way while this piece is. */
			next_position = position_of(j, t.rank, next);
		}
		ring_wait(r, m->storing);
		if (position >= 0 && t.rows && position < t.limit) {
			ring_store(r, m->storing,
				   t.rows + (uint64_t)position * p.row_bytes + store.piece.at, bytes);
		}
		for (int rank = 32 + LANE; rank < p.c.num_ranks; rank += 32) {
			send_piece(j, r, *m, rank, bytes);
		}
		ring_commit();
		ring_next(r, &m->storing);
		m->ahead--;
		sent++;
		next_piece(&store.piece, p.row_bytes, p.piece);
		if (ends) {
			position = next_position;
			known = next >= 0;
		}
		if (store.piece.row >= store.last) {
			note_ending(&endings, store.channel, sent);
		}
		if (m->told && sent % REPORT == 0 && pass_endings(&endings, sent - LANDED_LAG)) {
			ring_wait_written<LANDED_LAG>();
			landed_put(landed, endings.done);
		}
	}
	ring_wait_written<0>();
	landed_put(landed, load.channel + 1);
}
#endif

/* The same by loads and stores, of one channel. */
DEV void send_plain(const struct job &j, const struct channel &ch, int from_rank)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	struct target t = target_of(j, from_rank + LANE);

	for (int64_t token = ch.first; token < ch.last; token++) {
		int position = position_of(j, t.rank, token);
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
		__syncwarp();
	}
}

/* A mover's part in a block that sends. m: it has begun to load. */
DEV void send_rows(const struct job &j, const struct ring &r, struct mover *m, struct landed *landed)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	struct channel ch;

#if HAVE_BULK
	if (p.bulk) {
		send_bulk(j, r, m, landed);
	}
#endif
	for (int n = 0; !p.bulk && claim_channel(j, landed, n, reports(j), &m->claim, &ch); n++) {
		for (int rank = 0; rank < p.c.num_ranks; rank += 32) {
			send_plain(j, ch, rank);
		}
		landed_put(landed, n + 1);
	}
	landed_finish(landed);
}

/* By the reporter: channels that a mover has done since. */
DEV void report_mover(const struct job &j, struct landed *landed, int mover, int *told, int count)
{
	for (; *told < count; ++*told) {
		int channel = claims_get(landed, mover, *told);

		for (int from = 0; from < j.p.c.num_ranks; from += 32) {
			report_channel(j, target_of(j, from + LANE), channel);
		}
	}
	landed_tell(landed, mover, count);
}

/*
 * By the reporter, for all movers of its block: ranks that copy rows meanwhile learn which channels are done,
 * the others, whose rows go to their place at once, when all are. Pairs with the waits in ht_move_copy.cuh.
 */
DEV void report_landed(const struct job &j, struct landed *landed)
{
	const struct moeep_dev_context &c = j.p.c;
	int part = part_of(j.p.senders).index;
	bool copied = reports(j);
	int told[MOVERS] = {0};
	bool all;

	do {
		int count[MOVERS];
		bool news = false;

		all = landed_all(landed);
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			count[m] = copied ? landed_get(landed, m) : 0;
			news = news || count[m] > told[m];
		}
		if (news || all) {
			/* A release for what all movers have written. */
			__threadfence_system();
		}
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			report_mover(j, landed, m, &told[m], count[m]);
		}
		if (!all && !news) {
			__nanosleep(200);
		}
	} while (!all);
	for (int rank = LANE; rank < c.num_ranks; rank += 32) {
		if (!j.ends.staged[rank] && rank != c.rank) {
			store_relaxed(sent_at(c, rank, c.rank, part), flag_word(j.plan.epoch, 0));
		}
	}
}

#endif
