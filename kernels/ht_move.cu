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

DEV struct channel channel_of(const struct moeep_ht_move_params &p, int number)
{
	int64_t each = per_channel(p.num_tokens, p.senders * MOVERS);
	struct channel ch = {number, number * each, (number + 1) * each};

	ch.first = ch.first < p.num_tokens ? ch.first : p.num_tokens;
	ch.last = ch.last < p.num_tokens ? ch.last : p.num_tokens;
	return ch;
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

/*
 * A warp sends its channel's rows to up to 32 ranks, a lane each. `landed` gets how far it is; without
 * it the warp tells the ranks itself, at the end.
 */
DEV void send_bulk(const struct moeep_ht_move_params &p, const struct channel &ch, int from_rank,
		   const struct ring &r, struct landed *landed)
{
	struct target t = target_of(p, from_rank + LANE);
	struct piece load = {ch.first, 0};
	struct piece store = {ch.first, 0};
	struct place loading = {0, 0};
	struct place storing = {0, 0};
	int ahead = 0; /* pieces loaded and not stored */
	int since = 0; /* pieces since the last look */
	bool wrapped = false;
	bool reports = landed && __any_sync(FULL, t.report);
	int position = ch.first < ch.last ? position_of(p, t.rank, ch.first) : -1;
	uint32_t ended = 0; /* for each of the last pieces: it ended a row */

	while (store.row < ch.last) {
		uint32_t bytes = piece_bytes(store, p.row_bytes, p.piece);
		bool ends = store.at + bytes == p.row_bytes;
		int next = position;

		/* A stage is free once its piece, two before this one, has been read by the stores. */
		for (; load.row < ch.last && ahead < r.stages - 1; ahead++) {
			if (wrapped) {
				ring_wait_read<1>();
				__syncwarp();
			}
			if (LANE == 0) {
				ring_load(r, loading, p.x + (uint64_t)load.row * p.row_bytes + load.at,
					  piece_bytes(load, p.row_bytes, p.piece));
			}
			next_piece(&load, p.row_bytes, p.piece);
			ring_next(r, &loading);
			wrapped = wrapped || loading.stage == 0;
		}
		if (ends && store.row + 1 < ch.last) {
			next = position_of(p, t.rank, store.row + 1);
		}
		ring_wait(r, storing);
		if (position >= 0 && t.rows && position < t.limit) {
			ring_store(r, storing,
				   t.rows + (uint64_t)position * p.row_bytes + store.at, bytes);
		}
		ring_commit();
		ring_next(r, &storing);
		next_piece(&store, p.row_bytes, p.piece);
		ahead--;
		t.count += ends && position >= 0;
		ended = ended << 1 | (uint32_t)(ends && position >= 0);
		position = next;
		if (reports && ++since == REPORT) {
			since = 0;
			wait_written<LANDED_LAG>();
			landed_put(landed,
				   t.count - __popc(ended & ((1u << LANDED_LAG) - 1u)));
		}
	}
	wait_written<0>();
	if (landed) {
		landed_put(landed, t.count);
	} else if (t.rank >= 0 && t.rank != p.c.rank) {
		store_release(progress_of(p, t, ch.number),
			      flag_word(p.plan->epoch, (uint64_t)t.count));
	}
}

/* A warp tells the ranks how far this block's movers are. */
DEV void report_landed(const struct moeep_ht_move_params &p, const struct landed *landed)
{
	struct target t = target_of(p, LANE);
	int told[MOVERS] = {0};
	bool all;

	do {
		int count[MOVERS];
		bool news = false;

		all = landed_all(landed);
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			count[m] = landed_get(landed, m, LANE);
			news = news || (t.report && count[m] != told[m]) || all;
		}
		if (__any_sync(FULL, news)) {
			/* A release for all: what the movers have written has landed. */
			__threadfence_system();
		}
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			if (t.rank >= 0 && t.rank != p.c.rank &&
			    (all || (t.report && count[m] != told[m]))) {
				store_relaxed(progress_of(p, t, (int)blockIdx.x * MOVERS + m),
					      flag_word(p.plan->epoch, (uint64_t)count[m]));
				told[m] = count[m];
			}
		}
		if (!all) {
			__nanosleep(500);
		}
	} while (!all);
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
DEV void send_rows(const struct moeep_ht_move_params &p, const struct channel &ch,
		   const struct ring &r, struct landed *landed)
{
	for (int rank = 0; rank < p.c.num_ranks; rank += 32) {
#if HAVE_BULK
		if (p.bulk) {
			if (rank > 0) {
				ring_reset(r);
			}
			send_bulk(p, ch, rank, r, p.c.num_ranks <= 32 ? landed : NULL);
			continue;
		}
#endif
		send_plain(p, ch, rank);
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

			ok = wait_rows(p, a, a.rows, &seen);
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
		struct channel first = channel_of(p, (int)blockIdx.x * MOVERS);
		struct channel last = channel_of(p, (int)blockIdx.x * MOVERS + MOVERS - 1);

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
			report_landed(p, &landed);
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
			send_rows(p, channel_of(p, (int)blockIdx.x * MOVERS + WARP), r, &landed);
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
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_MOVED], gridDim.x) && p.last &&
	    threadIdx.x == 0) {
		finish_result(c, p.plan->result.code, p.plan->result.detail, p.plan->result.a,
			      p.plan->result.b, p.plan->result.c);
	}
}
