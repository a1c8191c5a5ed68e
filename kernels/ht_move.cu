/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_move.cu - rows of an HT dispatch on their way.
 *
 * In a block that sends, a few warps move rows: each reads the rows of its channel's tokens once and
 * stores them to every rank they go to, at their final place or in the rank's window. The other warps
 * send what goes with the rows, and write out what has come with others'. Blocks that do not send
 * copy rows from this rank's window to its output while later ones still arrive.
 */
#include "ht_common.cuh"

#define RECORD_THREADS (MOEEP_DEV_MOVE_THREADS - 32 * FIRST_RECORDER)

struct channel {
	int number;
	int64_t first; /* tokens */
	int64_t last;
};

DEV int channels_of(const struct moeep_ht_move_params &p)
{
	return p.senders * MOVERS * p.shares;
}

DEV struct channel channel_of(const struct moeep_ht_move_params &p, int number)
{
	int64_t each = per_channel(p.num_tokens, channels_of(p));
	struct channel ch = {number, number * each, (number + 1) * each};

	ch.first = ch.first < p.num_tokens ? ch.first : p.num_tokens;
	ch.last = ch.last < p.num_tokens ? ch.last : p.num_tokens;
	return ch;
}

/*
 * The channels of each mover of a block, in the order in which it sends them. A mover that is free claims the
 * next one, as a link does not serve all SMs, nor the warps of one, alike: when each had its own, the
 * slowest took twice as long as most.
 */
struct claims {
	uint16_t channel[MOVERS][MOEEP_DEV_CHANNELS];
};

/* By a mover: its channel number `count`, in *ch. False: there is none left. */
DEV bool claim_channel(const struct moeep_ht_move_params &p, struct claims *claims, int count,
		       struct channel *ch)
{
	uint32_t number = 0;

	if (p.shares == 1) {
		/* It is this mover's own. */
		number = count == 0 ? blockIdx.x * MOVERS + (unsigned)WARP : UINT32_MAX;
	} else if (LANE == 0) {
		number = atomicAdd(&p.c.state->claimed, 1u);
	}
	number = __shfl_sync(FULL, number, 0);
	if (number >= (uint32_t)channels_of(p)) {
		return false;
	}
	*ch = channel_of(p, (int)number);
	if (LANE == 0) {
		/* The reporter reads it behind landed_put(). */
		((volatile struct claims *)claims)->channel[WARP][count] = (uint16_t)number;
	}
	__syncwarp();
	return ch->first < ch->last;
}

DEV struct channel claimed_channel(const struct moeep_ht_move_params &p,
				   const struct claims *claims, int mover, int n)
{
	return channel_of(p, ((const volatile struct claims *)claims)->channel[mover][n]);
}

/* What a lane knows of the rank it sends to. */
struct target {
	int rank; /* -1: none */
	char *rows;
	int64_t limit;
	bool report; /* its owner copies rows while they come */
	int count;   /* rows so far */
};

DEV struct target target_of(const struct moeep_ht_move_params &p, int rank)
{
	struct target t = {-1, NULL, 0, false, 0};

	if (rank < p.c.num_ranks) {
		t.rank = rank;
		t.rows = p.plan->dst[rank];
		t.limit = p.plan->limit[rank];
		t.report = p.plan->staged[rank] != 0;
	}
	return t;
}

DEV int position_of(const struct moeep_ht_move_params &p, int rank, int64_t token)
{
	return rank >= 0 ? p.route->position[token * p.c.num_ranks + rank] : -1;
}

/* Pairs with the wait for rows of the rank that they go to. */
DEV uint64_t *progress_of(const struct moeep_ht_move_params &p, const struct target &t, int channel)
{
	return progress_at(p.c, t.rank, p.c.rank, channel);
}

#if HAVE_BULK
/*
 * Here the fence, which the order does not need, makes dispatch faster: see the table of what was tried in
 * docs/performance-gpu.md.
 */
template <int PENDING> DEV void wait_written()
{
	ring_wait_written<PENDING>();
	fence_engine();
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

/*
 * A warp sends rows of its channels to up to 32 ranks, a lane each. `landed` gets how many rows of its
 * channels are done; without it the warp, which has one channel then, tells the ranks itself, at the
 * end.
 */
DEV void send_bulk(const struct moeep_ht_move_params &p, struct claims *claims, int from_rank,
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
		if (reports) {
			wait_written<LANDED_LAG>();
		} else {
			ring_wait_written<LANDED_LAG>();
		}
		landed_put(landed, (sent - LANDED_LAG) / pieces);
	}
	wait_written<0>();
	if (landed) {
		landed_put(landed, sent / pieces);
	} else if (t.rank >= 0 && t.rank != p.c.rank) {
		store_release(progress_of(p, t, (int)blockIdx.x * MOVERS + WARP),
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
DEV bool follow_mover(const struct moeep_ht_move_params &p, const struct landed *landed,
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
	return r->count != r->told && (t.report || r->row >= r->now.last);
}

/* A warp tells the ranks how far this block's movers are. */
DEV void report_landed(const struct moeep_ht_move_params &p, const struct landed *landed,
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
			if (tell[m] && t.rank >= 0 && t.rank != p.c.rank) {
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
DEV void send_plain(const struct moeep_ht_move_params &p, const struct channel &ch, int from_rank)
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
DEV void send_rows(const struct moeep_ht_move_params &p, const struct ring &r,
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

/* Rows of one channel of another rank, in this rank's window. */
struct arrival {
	int source;
	int channel;
	int64_t base; /* first record */
	int64_t rows;
};

DEV struct arrival arrival_of(const struct moeep_ht_move_params &p, int source, int channel)
{
	const int32_t *first = entry_channels(entry_at(p.c, p.c.rank, p.plan->epoch, source));

	return arrival{source, channel, (int64_t)p.route->recv_base[source] + first[channel],
		       (int64_t)first[channel + 1] - first[channel]};
}

DEV bool wait_rows(const struct moeep_ht_move_params &p, const struct arrival &a, int64_t rows,
		   uint64_t *seen)
{
	uint64_t expected = flag_word(p.plan->epoch, (uint64_t)rows);

	return flag_reached(*seen, expected) ||
	       wait_word(p.c, progress_at(p.c, p.c.rank, a.source, a.channel), expected, a.source,
			 MOEEP_DEV_ROWS, seen);
}

DEV uint64_t nothing_seen(const struct moeep_ht_move_params &p)
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
DEV bool copy_bulk(const struct moeep_ht_move_params &p, const struct arrival &a,
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

DEV bool copy_plain(const struct moeep_ht_move_params &p, const struct arrival &a)
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
DEV bool copy_channels(const struct moeep_ht_move_params &p, int index, int step,
		       const struct ring &r)
{
	bool ok = true;
#if HAVE_BULK
	struct copier place = {{0, 0}, {0, 0}, false};
#endif

	for (int i = 1; i < p.c.num_ranks && ok; i++) {
		int source = (p.c.rank + p.c.num_ranks - i) % p.c.num_ranks;
		int channels = p.plan->channels[source];
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
		wait_written<0>();
	}
#endif
	return ok;
}

/* Rows that are stored in place, or expanded later: they have all come when this is true. */
DEV bool wait_all_rows(const struct moeep_ht_move_params &p)
{
	int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
	int64_t threads = (int64_t)gridDim.x * blockDim.x;
	bool ok = true;

	for (int source = 0; source < p.c.num_ranks && ok; source++) {
		int channels = source == p.c.rank ? 0 : p.plan->channels[source];

		for (int64_t at = thread; at < channels && ok; at += threads) {
			struct arrival a = arrival_of(p, source, (int)at);
			uint64_t seen = nothing_seen(p);

			/* Channels without a row for this rank are not reported. */
			ok = a.rows == 0 || wait_rows(p, a, a.rows, &seen);
		}
	}
	return ok;
}

/* Can four scales of a row be moved at once, in both places? */
DEV bool wide_scales(const struct moeep_dev_scales &scales)
{
	return scales.dtype != MOEEP_UE8M0 && scales.layout == MOEEP_SCALES_ROW_MAJOR &&
	       scales.count % 4 == 0 && scales.stride % 4 == 0 && (uintptr_t)scales.base % 16 == 0;
}

/*
 * Threads first, first + step, ... of many send what goes with the rows of tokens [begin, end): choices
 * and weights, the token's number, scales.
 */
DEV void send_records(const struct moeep_ht_move_params &p, int64_t begin, int64_t end, int thread,
		      int step)
{
	const struct moeep_dev_context &c = p.c;
	int topk = p.plan->topk;
	bool weights = (p.plan->given & MOEEP_DEV_GIVEN_WEIGHTS) != 0;
	int choices = (int)(end - begin) * topk;

#pragma unroll 2
	for (int i = thread; i < choices; i += step) {
		int64_t at = begin * topk + i;
		int64_t token = begin + i / topk;
		int k = i % topk;
		int id = p.route->topk_idx[at];
		float weight = weights ? p.route->topk_weights[at] : 0.0f;

		for (int rank = 0; rank < c.num_ranks; rank++) {
			int position = p.route->position[token * c.num_ranks + rank];

			if (position >= 0) {
				record_idx(c, rank, position, topk)[k] = id;
				record_weights(c, rank, position, topk)[k] = weight;
			}
			if (position >= 0 && k == 0) {
				*record_token(c, rank, position) = (int32_t)token;
			}
		}
	}
	if (!p.scales.base) {
		return;
	}
	if (!wide_scales(p.scales)) {
		for (int64_t token = begin + thread / 32; token < end; token += step / 32) {
			for (int rank = 0; rank < c.num_ranks; rank++) {
				int position = p.route->position[token * c.num_ranks + rank];

				if (position >= 0) {
					warp_read_scales(p.scales, token,
							 record_scales(c, rank, position));
				}
			}
		}
		return;
	}
	int wide = p.scales.count / 4;
	int words = (int)(end - begin) * wide;
#pragma unroll 2
	for (int i = thread; i < words; i += step) {
		int64_t token = begin + i / wide;
		const char *row = (const char *)p.scales.base + token * p.scales.stride * 4;
		uint4 v = ((const uint4 *)row)[i % wide];

		for (int rank = 0; rank < c.num_ranks; rank++) {
			int position = p.route->position[token * c.num_ranks + rank];

			if (position >= 0) {
				((uint4 *)record_scales(c, rank, position))[i % wide] = v;
			}
		}
	}
}

/* The same threads write the index outputs of records [begin, end), which have come from `source`. */
DEV void write_records(const struct moeep_ht_move_params &p, int source, int64_t begin, int64_t end,
		       int64_t thread, int64_t step)
{
	const struct moeep_dev_context &c = p.c;
	int topk = p.plan->topk;
	const int32_t *idx = record_idx(c, c.rank, 0, topk);
	const float *weights = record_weights(c, c.rank, 0, topk);
	bool weighted = p.recv_topk_weights && (p.plan->given & MOEEP_DEV_GIVEN_WEIGHTS);
	struct moeep_dev_scales scales = p.recv_scales;

	if (p.recv_topk_idx || weighted) {
#pragma unroll 2
		for (int64_t i = begin * topk + thread; i < end * topk; i += step) {
			int e = local_expert(c, idx[i]);

			if (p.recv_topk_idx && p.topk_dtype == MOEEP_INT32) {
				((int32_t *)p.recv_topk_idx)[i] = e;
			} else if (p.recv_topk_idx) {
				((int64_t *)p.recv_topk_idx)[i] = e;
			}
			if (weighted) {
				p.recv_topk_weights[i] = e >= 0 ? weights[i] : 0.0f;
			}
		}
	}
	if (p.recv_src_token || p.recv_src_rank) {
		for (int64_t i = begin + thread; i < end; i += step) {
			if (p.recv_src_token) {
				p.recv_src_token[i] = *record_token(c, c.rank, i);
			}
			if (p.recv_src_rank) {
				p.recv_src_rank[i] = source;
			}
		}
	}
	if (!scales.base || !(p.plan->given & MOEEP_DEV_GIVEN_SCALES)) {
		return;
	}
	scales.dtype = p.plan->scale_dtype;
	scales.count = p.plan->scale_count;
	if (scales.stride == 0) {
		scales.stride = scales.count;
	}
	if (!wide_scales(scales)) {
		for (int64_t i = begin + thread / 32; i < end; i += step / 32) {
			warp_write_scales(scales, i, record_scales(c, c.rank, i));
		}
		return;
	}
	int wide = scales.count / 4;
#pragma unroll 2
	for (int64_t i = begin * wide + thread; i < end * wide; i += step) {
		int64_t record = i / wide;
		int word = (int)(i - record * wide);

		((uint4 *)((char *)scales.base + record * scales.stride * 4))[word] =
			((const uint4 *)record_scales(c, c.rank, record))[word];
	}
}

/* Index outputs behind the last row. */
DEV void fill_tail(const struct moeep_ht_move_params &p, int64_t thread, int64_t step)
{
	int topk = p.plan->topk;

	for (int64_t i = p.route->num_rows * topk + thread; i < p.capacity * topk; i += step) {
		if (p.recv_topk_idx && p.topk_dtype == MOEEP_INT32) {
			((int32_t *)p.recv_topk_idx)[i] = -1;
		} else if (p.recv_topk_idx) {
			((int64_t *)p.recv_topk_idx)[i] = -1;
		}
		if (p.recv_topk_weights) {
			p.recv_topk_weights[i] = 0.0f;
		}
	}
	for (int64_t row = p.route->num_rows + thread; row < p.capacity; row += step) {
		if (p.recv_src_token) {
			p.recv_src_token[row] = -1;
		}
		if (p.recv_src_rank) {
			p.recv_src_rank[row] = -1;
		}
	}
}

/* The part of the warps that do not move rows. */
DEV bool records(const struct moeep_ht_move_params &p)
{
	const struct moeep_dev_context &c = p.c;
	bool sends = (int)blockIdx.x < p.senders;
	int own = (int)threadIdx.x - 32 * FIRST_RECORDER;
	int64_t thread = (int64_t)blockIdx.x * RECORD_THREADS + own;
	int64_t threads = (int64_t)gridDim.x * RECORD_THREADS;
	bool ok = true;

	if (sends) {
		int channels = MOVERS * p.shares;
		struct channel first = channel_of(p, (int)blockIdx.x * channels);
		struct channel last = channel_of(p, (int)blockIdx.x * channels + channels - 1);

		send_records(p, first.first, last.last, own, RECORD_THREADS);
		records_sync(RECORD_THREADS);
		if (own == 0 && arrive(&c.state->ticket[MOEEP_DEV_TICKET_RECORDS],
				       (uint32_t)p.senders)) {
			for (int rank = 0; rank < c.num_ranks; rank++) {
				/* Pairs with the wait for records of each rank. */
				store_release(flag_at(c, rank, c.window.ht_record_flag, c.rank),
					      flag_word(p.plan->epoch, 0));
			}
		}
	}
	for (int i = 0; i < c.num_ranks && ok; i++) {
		/* This rank's own first: they are there. */
		int source = (c.rank + i) % c.num_ranks;
		int64_t begin = p.route->recv_base[source];
		int64_t end = p.route->recv_base[source + 1];
		uint64_t seen;

		if (LANE == 0) {
			ok = wait_word(c, flag_at(c, c.rank, c.window.ht_record_flag, source),
				       flag_word(p.plan->epoch, 0), source, MOEEP_DEV_RECORDS,
				       &seen);
		}
		ok = __shfl_sync(FULL, ok, 0);
		/* Lane 0 has acquired for all. */
		__syncwarp();
		end = end < p.capacity ? end : p.capacity;
		if (ok && !p.expert_major && begin < end) {
			write_records(p, source, begin, end, thread, threads);
		}
	}
	if (ok && !p.expert_major && (p.call_flags & MOEEP_DISPATCH_FILL_TAIL)) {
		fill_tail(p, thread, threads);
	}
	return ok;
}

/* shared: for each mover its stages, then their barriers. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_MOVE_THREADS, 1)
	moeep_kernel_ht_move(const __grid_constant__ struct moeep_ht_move_params p)
{
	DYNAMIC_SHARED(char, stages, 128);
	__shared__ struct landed landed;
	__shared__ struct claims claims;
	const struct moeep_dev_context &c = p.c;
	bool ok = true;

	if (!kernel_begin(c)) {
		return;
	}
	if (!p.plan->move) {
		if (p.last && blockIdx.x == 0 && threadIdx.x == 0) {
			finish_result(c, p.plan->result.code, p.plan->result.detail,
				      p.plan->result.a, p.plan->result.b, p.plan->result.c);
		}
		return;
	}
	landed_init(&landed);
	if (WARP >= FIRST_RECORDER) {
		ok = records(p);
	} else if (WARP == REPORTER) {
#if HAVE_BULK
		if (p.bulk && (int)blockIdx.x < p.senders && c.num_ranks <= 32) {
			report_landed(p, &landed, &claims);
		}
#endif
	} else {
		struct ring r = {0, 0, 0, 0};

#if HAVE_BULK
		if (p.bulk) {
			r = ring_of(stages, MOVERS, (uint32_t)p.piece, p.stages);
		}
#endif
		if ((int)blockIdx.x < p.senders) {
			send_rows(p, r, &landed, &claims);
		} else {
			ok = copy_channels(p, ((int)blockIdx.x - p.senders) * MOVERS + WARP,
					   ((int)gridDim.x - p.senders) * MOVERS, r);
		}
	}
	if (ok && p.senders == (int)gridDim.x) {
		ok = wait_all_rows(p);
	}
	if (!__syncthreads_and(ok)) {
		if (threadIdx.x == 0) {
			put_dead(c);
		}
		return;
	}
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_MOVED], gridDim.x) && threadIdx.x == 0) {
		c.state->claimed = 0; /* for the next operation */
		if (p.last) {
			finish_result(c, p.plan->result.code, p.plan->result.detail,
				      p.plan->result.a, p.plan->result.b, p.plan->result.c);
		}
	}
}
