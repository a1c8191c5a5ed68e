/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_combine.cu - rows of an HT combine on their way, and their sums.
 *
 * Blocks that send push the rows of each source's tokens, or their partial sums if the rows are
 * expert-major, to the source's window, in the order of the source's tokens. The other blocks sum
 * this rank's tokens as their rows arrive; a flat row of the rank itself is read where it is.
 */
#include "ht_common.cuh"

#define MOVERS	       MOEEP_DEV_MOVERS
/* Behind the movers the warp that reports how far they have come, then those of the records. */
#define REPORTER       MOVERS
#define FIRST_RECORDER (MOVERS + 1)
#define RECORD_THREADS (MOEEP_DEV_MOVE_THREADS - 32 * FIRST_RECORDER)
#define RECORD_WARPS   (RECORD_THREADS / 32)
/* Rounds of rows between two reports, or two looks at how far a mover has come. */
#define REPORT 2

/* What a channel of this rank has for a source. */
struct span {
	int first; /* of the source's records */
	int count;
};

DEV struct span span_of(const struct moeep_ht_combine_params &p, int source, int channel)
{
	int records = p.route->recv_count[source];
	int channels = p.senders * MOVERS;
	int each = (records + channels - 1) / channels;
	int first = each * channel < records ? each * channel : records;
	int end = first + each < records ? first + each : records;

	return span{first, end - first};
}

/*
 * The order in which a channel sends: in each round a row to each source, from the rank's next on. Of
 * a flat layout this rank's own rows stay where they are.
 */
struct order {
	int channel;
	int turns;
	int sources;
	int turn;
	int i;
};

DEV struct order order_of(const struct moeep_ht_combine_params &p, int channel)
{
	struct order o = {channel, 0, p.expert_major ? p.c.num_ranks : p.c.num_ranks - 1, 0, 0};

	for (int i = 0; i < o.sources; i++) {
		int count = span_of(p, (p.c.rank + 1 + i) % p.c.num_ranks, channel).count;

		o.turns = count > o.turns ? count : o.turns;
	}
	if (o.sources == 0) {
		o.turns = 0;
	}
	return o;
}

struct row_at {
	int source;
	int64_t record; /* -1: none */
	int64_t index;	/* among the source's */
};

DEV struct row_at row_of(const struct moeep_ht_combine_params &p, const struct order &o)
{
	int source = p.c.rank + 1 + o.i;
	struct span s;
	struct row_at row;

	source -= source >= p.c.num_ranks ? p.c.num_ranks : 0;
	s = span_of(p, source, o.channel);
	row = row_at{source, -1, s.first + o.turn};
	if (o.turn < s.count && p.plan->dst[source] && p.x) {
		row.record = (int64_t)p.route->recv_base[source] + row.index;
	}
	return row;
}

DEV void next_row(struct order *o)
{
	if (++o->i >= o->sources) {
		o->i = 0;
		o->turn++;
	}
}

/*
 * Lanes report how many rows of each source are done after `rounds` of them. Pairs with the wait for
 * rows in find_row() of the source. fenced: a fence stands before.
 */
DEV void report_rounds(const struct moeep_ht_combine_params &p, int channel, int rounds, int before,
		       bool fenced)
{
	for (int source = LANE; source < p.c.num_ranks; source += 32) {
		int count = span_of(p, source, channel).count;
		int done = rounds < count ? rounds : count;
		uint64_t *progress = progress_at(p.c, source, p.c.rank, channel);
		uint64_t word = flag_word(p.plan->epoch, (uint64_t)done);

		if (done <= before || !p.plan->dst[source]) {
			continue;
		}
		if (fenced) {
			store_relaxed(progress, word);
		} else {
			store_release(progress, word);
		}
	}
}

/* A warp tells the sources how far this block's movers are. */
DEV void report_landed(const struct moeep_ht_combine_params &p, const struct landed *landed)
{
	int told[MOVERS] = {0};
	bool all;

	do {
		int count[MOVERS];
		bool news = false;

		all = landed_all(landed);
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			count[m] = landed_get(landed, m, 0);
			news = news || count[m] > told[m];
		}
		if (news) {
			/* A release for all: what the movers have written has landed. */
			__threadfence_system();
		}
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			if (count[m] > told[m]) {
				report_rounds(p, (int)blockIdx.x * MOVERS + m, count[m], told[m],
					      true);
				told[m] = count[m];
			}
		}
		if (!all) {
			__nanosleep(500);
		}
	} while (!all);
}

#if HAVE_BULK
/* A warp sends its channel's flat rows; lane 0 gives the engine its orders. */
DEV void send_bulk(const struct moeep_ht_combine_params &p, int channel, const struct ring &r,
		   struct landed *landed)
{
	struct order load = order_of(p, channel);
	struct order store = load;
	struct row_at loaded = row_of(p, load);
	struct row_at stored = loaded;
	struct place loading = {0, 0};
	struct place storing = {0, 0};
	uint64_t load_done = 0;
	uint64_t store_done = 0;
	int pieces = (int)((p.row_bytes + p.piece - 1) / p.piece);
	bool wrapped = false;
	int ahead = 0;
	int sent = 0;	 /* pieces */
	int reported = 0; /* the round of the last look */

	while (store.turn < store.turns) {
		uint32_t bytes = (uint32_t)(p.row_bytes - store_done < p.piece ? p.row_bytes - store_done
									     : p.piece);

		for (; load.turn < load.turns && ahead < r.stages - 1; ahead++) {
			uint32_t length =
				(uint32_t)(p.row_bytes - load_done < p.piece ? p.row_bytes - load_done
									   : p.piece);

			if (LANE == 0) {
				if (wrapped) {
					ring_wait_read<1>();
				}
				/* Stages go by pieces, so one without a row loads something, too. */
				ring_load(r, loading,
					  loaded.record < 0 ? p.x
							    : p.x +
								      (uint64_t)loaded.record *
									      p.row_bytes +
								      load_done,
					  loaded.record < 0 ? 16u : length);
			}
			ring_next(r, &loading);
			wrapped = wrapped || loading.stage == 0;
			load_done += length;
			if (load_done == p.row_bytes) {
				load_done = 0;
				next_row(&load);
				loaded = row_of(p, load);
			}
		}
		if (LANE == 0) {
			ring_wait(r, storing);
			if (stored.record >= 0) {
				ring_store(r, storing,
					   p.plan->dst[stored.source] +
						   (uint64_t)stored.index * p.row_bytes + store_done,
					   bytes);
			}
			ring_commit();
		}
		ring_next(r, &storing);
		ahead--;
		sent++;
		store_done += bytes;
		if (store_done < p.row_bytes) {
			continue;
		}
		store_done = 0;
		next_row(&store);
		stored = row_of(p, store);
		if (store.i == 0 && store.turn >= reported + REPORT && sent > LANDED_LAG) {
			reported = store.turn;
			if (LANE == 0) {
				ring_wait_written<LANDED_LAG>();
				landed_put(landed, (sent - LANDED_LAG) / (store.sources * pieces));
			}
		}
	}
	if (LANE == 0) {
		ring_wait_written<0>();
		landed_put(landed, INT32_MAX);
	}
}
#endif

/* The rows of a record's choices here, without gaps, for their sum. */
DEV void find_terms(const struct moeep_ht_combine_params &p, int64_t record, struct terms *t)
{
	for (int half = 0; half * 32 < p.topk; half++) {
		int k = half * 32 + LANE;
		int64_t row = k < p.topk ? p.route->record_rows[record * p.topk + k] : -1;
		float weight = k < p.topk ? p.route->record_weights[record * p.topk + k] : 0.0f;
		const char *mine = p.x + (row >= 0 ? (uint64_t)row * p.row_bytes : 0);

		for (unsigned m = __ballot_sync(FULL, row >= 0); m; m &= m - 1) {
			int lane = __ffs((int)m) - 1;
			const char *one = warp_pointer(mine, lane);
			float by = __shfl_sync(FULL, weight, lane);

			add_term(t, one, by);
		}
	}
}

/* The same by loads and stores; expert-major rows, this rank's own ones too, are summed on the way. */
DEV void send_plain(const struct moeep_ht_combine_params &p, int channel)
{
	struct order o = order_of(p, channel);
	int reported = 0;

	while (o.turn < o.turns) {
		struct row_at row = row_of(p, o);

		if (row.record >= 0) {
			char *to = p.plan->dst[row.source] + (uint64_t)row.index * p.staged_bytes;

			if (p.expert_major) {
				struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};

				find_terms(p, row.record, &t);
				warp_sum<2>(t, {p.dtype, p.staged_dtype, p.weighted != 0, NULL, to,
						0, p.c.hidden});
			} else {
				warp_copy(to, p.x + (uint64_t)row.record * p.row_bytes,
					  (int64_t)p.row_bytes);
			}
		}
		next_row(&o);
		__syncwarp();
		if (o.i == 0 && o.turn >= reported + REPORT) {
			report_rounds(p, channel, o.turn, reported, false);
			reported = o.turn;
		}
	}
	__syncwarp();
	report_rounds(p, channel, INT32_MAX, reported, false);
}

/* Values of choices go back with their records; a warp for each. */
DEV void send_values(const struct moeep_ht_combine_params &p)
{
	const struct moeep_dev_context &c = p.c;
	int64_t records = p.route->num_records;
	int64_t step = (int64_t)p.senders * RECORD_WARPS;

	for (int64_t record = (int64_t)blockIdx.x * RECORD_WARPS + WARP - FIRST_RECORDER; record < records;
	     record += step) {
		int source = record_source(*p.route, record, c.num_ranks);
		int64_t index = record - p.route->recv_base[source];
		float *to = record_weights(c, source, (int64_t)c.rank * c.ht_max_tokens + index,
					   p.topk);

		for (int k = LANE; k < p.topk; k += 32) {
			int64_t at = record * p.topk + k;

			if (p.expert_major) {
				int64_t row = p.route->record_rows[at];

				to[k] = row >= 0 ? p.topk_weights[row] : 0.0f;
			} else {
				to[k] = p.topk_weights[at];
			}
		}
	}
}

DEV void send_records(const struct moeep_ht_combine_params &p)
{
	const struct moeep_dev_context &c = p.c;

	if ((p.plan->given & MOEEP_DEV_GIVEN_WEIGHTS) && p.topk_weights) {
		send_values(p);
	}
	records_sync(RECORD_THREADS);
	if ((int)threadIdx.x == 32 * FIRST_RECORDER) {
		if (arrive(&c.state->ticket[MOEEP_DEV_TICKET_RECORDS], (uint32_t)p.senders)) {
			for (int rank = 0; rank < c.num_ranks; rank++) {
				/* Pairs with the wait for records in take_values() of each rank. */
				store_release(flag_at(c, rank, c.window.ht_record_flag, c.rank),
					      flag_word(p.plan->epoch, 0));
			}
		}
	}
}

/* Values of this rank's choices, from the ranks that hold them; by blocks that sum. */
DEV bool take_values(const struct moeep_ht_combine_params &p)
{
	const struct moeep_dev_context &c = p.c;
	int block = (int)blockIdx.x - p.senders;
	int64_t threads = (int64_t)(gridDim.x - (unsigned)p.senders) * blockDim.x;

	if (!block_wait_all(c, c.window.ht_record_flag, flag_word(p.plan->epoch, 0),
			    MOEEP_DEV_RECORDS, NULL)) {
		return false;
	}
	for (int64_t i = (int64_t)block * blockDim.x + threadIdx.x; i < p.num_tokens * p.topk;
	     i += threads) {
		int id = p.route->topk_idx[i];
		float value = 0.0f;

		if (id >= 0) {
			int rank = expert_rank(c, id);
			int64_t token = i / p.topk;
			int64_t index = p.route->position[token * c.num_ranks + rank] -
					p.route->send_base[rank];

			value = record_weights(c, c.rank,
					       (int64_t)rank * c.ht_max_tokens + index,
					       p.topk)[i % p.topk];
		}
		p.out_topk_weights[i] = value;
	}
	return true;
}

/* What a lane knows of the rank that it looks after. */
struct giver {
	int channels;
	int each; /* rows of a channel */
	int base; /* of this rank's rows there */
	int channel;
	uint64_t seen; /* of that channel */
};

DEV struct giver giver_of(const struct moeep_ht_combine_params &p, int rank)
{
	struct giver g = {1, 1, 0, -1, 0};

	if (rank < p.c.num_ranks) {
		g.channels = p.plan->channels[rank];
		g.each = (int)per_channel(p.route->send_count[rank], g.channels);
		g.base = p.route->send_base[rank];
	}
	return g;
}

/* Where a rank's row of a token is, once it is there. False: the comm has failed. */
DEV bool find_row(const struct moeep_ht_combine_params &p, int rank, int position, struct giver *g,
		  const char **row)
{
	const struct moeep_dev_context &c = p.c;
	int index = position - g->base;
	int channel = index / g->each;
	uint64_t expected = flag_word(p.plan->epoch, (uint64_t)(index - channel * g->each) + 1);

	if (rank == c.rank && !p.expert_major) {
		*row = p.x + (uint64_t)position * p.row_bytes;
		return true;
	}
	*row = window_at(c, c.rank, c.window.rows) +
	       (uint64_t)((int64_t)rank * c.ht_max_tokens + index) * p.staged_bytes;
	if (channel == g->channel && flag_reached(g->seen, expected)) {
		return true;
	}
	g->channel = channel;
	return wait_word(c, progress_at(c, c.rank, rank, channel), expected, rank, MOEEP_DEV_ROWS,
			 &g->seen);
}

/*
 * The rows of a token, once they are there; a lane looks after each of the first 32 ranks. False: the
 * comm has failed.
 */
DEV bool find_terms_of(const struct moeep_ht_combine_params &p, int64_t token, struct giver *first,
		       struct terms *t)
{
	const struct moeep_dev_context &c = p.c;

	for (int from = 0; from < c.num_ranks; from += 32) {
		int rank = from + LANE;
		int position = rank < c.num_ranks
				       ? p.route->position[token * c.num_ranks + rank]
				       : -1;
		const char *mine = NULL;
		bool ok = true;

		if (position >= 0 && from == 0) {
			ok = find_row(p, rank, position, first, &mine);
		} else if (position >= 0) {
			struct giver g = giver_of(p, rank);

			ok = find_row(p, rank, position, &g, &mine);
		}
		if (!__all_sync(FULL, ok)) {
			return false;
		}
		/* Ranks ascend, and so do the terms: term i at lane i % 32. */
		for (unsigned m = __ballot_sync(FULL, position >= 0); m; m &= m - 1) {
			add_term(t, warp_pointer(mine, __ffs((int)m) - 1), 1.0f);
		}
	}
	/* What each lane has acquired, all read. */
	__syncwarp();
	return true;
}

DEV void sum_token(const struct moeep_ht_combine_params &p, int64_t token, const struct terms &t)
{
	const char *bias = p.bias ? p.bias + (uint64_t)token * p.row_bytes : NULL;

	warp_sum<2>(t, {p.staged_dtype, p.dtype, false, bias,
			p.out + (uint64_t)token * p.row_bytes, 0, p.c.hidden});
}

/*
 * The order in which tokens are summed: channels of the senders take turns, as their rows come in
 * at the same pace. Number n of it, or a number past the last token.
 */
struct turns {
	int channels;
	int64_t each; /* tokens of a channel */
	int64_t count;
};

DEV struct turns turns_of(const struct moeep_ht_combine_params &p)
{
	int next = p.c.rank + 1 < p.c.num_ranks ? p.c.rank + 1 : 0;
	struct turns t = {p.plan->channels[next], 1, 0};

	t.each = per_channel(p.num_tokens, t.channels);
	t.count = t.each * t.channels;
	return t;
}

DEV int64_t token_in_turn(const struct turns &t, int64_t n)
{
	uint32_t turn = (uint32_t)n / (uint32_t)t.channels;

	return (int64_t)((uint32_t)n - turn * (uint32_t)t.channels) * t.each + turn;
}

/* Sums by loads from memory: every warp of the block, its tokens a stride apart. */
DEV bool sum_plain(const struct moeep_ht_combine_params &p)
{
	struct turns turns = turns_of(p);
	int64_t warps = (int64_t)(gridDim.x - (unsigned)p.senders) * NUM_WARPS;
	struct giver giver = giver_of(p, LANE);
	bool ok = true;

	for (int64_t n = (int64_t)((int)blockIdx.x - p.senders) * NUM_WARPS + WARP;
	     n < turns.count && ok; n += warps) {
		int64_t token = token_in_turn(turns, n);
		struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};

		if (token >= p.num_tokens) {
			continue;
		}
		ok = find_terms_of(p, token, &giver, &t);
		if (ok) {
			sum_token(p, token, t);
		}
	}
	return ok;
}

#if HAVE_BULK
/* Pieces of a token's rows that are loaded, or being loaded, for one step of a warp. */
struct step {
	int64_t token;
	struct terms terms;
	int first; /* pieces [first, last) of each row */
	int last;
	struct place at; /* of the first */
};

/* How a warp goes through its tokens. */
struct walk {
	int64_t n; /* of the next token */
	int64_t stride;
	struct turns turns;
	struct giver giver;
	bool ok;
};

DEV int pieces_of(const struct moeep_ht_combine_params &p)
{
	return (int)((p.staged_bytes + p.sum_piece - 1) / p.sum_piece);
}

/* Pieces of each row that half of the ring holds; 0: not even one. */
DEV int pieces_at_once(const struct ring &r, int terms)
{
	return r.stages / 2 / (terms > 0 ? terms : 1);
}

/* The next step, its loads begun; false if there is none. Tokens that do not fit the ring are summed. */
DEV bool next_step(const struct moeep_ht_combine_params &p, const struct ring &r, struct walk *w,
		   struct step *s, struct place *loading)
{
	int pieces = pieces_of(p);
	int at_once = pieces_at_once(r, s->terms.count);

	s->first = s->last;
	while (s->first >= pieces) {
		if (w->n >= w->turns.count || !w->ok) {
			return false;
		}
		s->token = token_in_turn(w->turns, w->n);
		w->n += w->stride;
		if (s->token >= p.num_tokens) {
			continue;
		}
		s->terms = {{NULL, NULL}, {1.0f, 1.0f}, 0};
		w->ok = find_terms_of(p, s->token, &w->giver, &s->terms);
		if (!w->ok) {
			return false;
		}
		at_once = pieces_at_once(r, s->terms.count);
		if (at_once == 0 || s->terms.count == 0) {
			sum_token(p, s->token, s->terms);
			continue;
		}
		s->first = 0;
	}
	s->last = s->first + at_once < pieces ? s->first + at_once : pieces;
	s->at = *loading;
	/* What lanes have acquired, and what they have read of the ring before, comes first. */
	__syncwarp();
	if (LANE == 0) {
		ring_acquire();
	}
	for (int k = 0; k < s->terms.count; k++) {
		const char *row = warp_pointer(k < 32 ? s->terms.row[0] : s->terms.row[1], k & 31);

		for (int i = s->first; i < s->last; i++) {
			uint64_t at = (uint64_t)i * p.sum_piece;

			if (LANE == 0) {
				ring_load(r, *loading, row + at,
					  (uint32_t)(p.staged_bytes - at < p.sum_piece
							     ? p.staged_bytes - at
							     : p.sum_piece));
			}
			ring_next(r, loading);
		}
	}
	return true;
}

/* Sum what has been loaded for a step. */
DEV void sum_step(const struct moeep_ht_combine_params &p, const struct ring &r,
		  const struct step &s)
{
	int from = p.staged_dtype == MOEEP_FP32 ? 4 : 2;
	int to = p.dtype == MOEEP_FP32 ? 4 : 2;
	int elements = (int)p.sum_piece / from;
	struct place at = s.at;
	int count = s.terms.count * (s.last - s.first);

	for (int i = 0; i < count; i++) {
		ring_wait(r, at);
		ring_next(r, &at);
	}
	for (int i = s.first; i < s.last; i++) {
		int64_t begin = (int64_t)i * elements;
		int64_t offset = (s.token * p.c.hidden + begin) * to;
		struct sum_shared sum = {p.staged_dtype,
					 p.dtype,
					 p.bias ? p.bias + offset : NULL,
					 p.out + offset,
					 elements,
					 s.terms.count,
					 s.at.stage + (uint32_t)(i - s.first),
					 (uint32_t)(s.last - s.first)};

		if (p.c.hidden - begin < elements) {
			sum.elements = (int)(p.c.hidden - begin);
		}
		sum_from_ring(sum, r);
	}
}

/* Sums of rows that the copy engine brings: a step is summed while the next one is loaded. */
DEV bool sum_bulk(const struct moeep_ht_combine_params &p, const struct ring &r)
{
	struct walk w;
	struct step steps[2];
	struct place loading = {0, 0};
	bool more;

	w.n = (int64_t)((int)blockIdx.x - p.senders) * NUM_WARPS + WARP;
	w.stride = (int64_t)(gridDim.x - (unsigned)p.senders) * NUM_WARPS;
	w.turns = turns_of(p);
	w.giver = giver_of(p, LANE);
	w.ok = true;
	steps[0].terms.count = 0;
	steps[0].first = steps[0].last = pieces_of(p);
	more = next_step(p, r, &w, &steps[0], &loading);
	while (more) {
		steps[1] = steps[0];
		more = next_step(p, r, &w, &steps[1], &loading);
		sum_step(p, r, steps[0]);
		steps[0] = steps[1];
	}
	return w.ok;
}
#endif

/* What the blocks that sum do. */
DEV bool sum_rows(const struct moeep_ht_combine_params &p, const struct ring &r)
{
	bool ok = true;

#if HAVE_BULK
	if (p.bulk) {
		ok = !p.out || sum_bulk(p, r);
	} else {
		ok = !p.out || sum_plain(p);
	}
#else
	ok = !p.out || sum_plain(p);
#endif
	if (p.out_topk_weights && (p.plan->given & MOEEP_DEV_GIVEN_WEIGHTS)) {
		ok = take_values(p) && ok;
	}
	return ok;
}

/* What movers, and the warp that reports for them, do in blocks that send. */
DEV void send_rows(const struct moeep_ht_combine_params &p, const struct ring &r,
		   struct landed *landed)
{
#if HAVE_BULK
	bool bulk = p.bulk && !p.expert_major;

	if (bulk && WARP == REPORTER) {
		report_landed(p, landed);
		return;
	}
	if (bulk) {
		send_bulk(p, (int)blockIdx.x * MOVERS + WARP, r, landed);
		landed_finish(landed);
		return;
	}
#endif
	if (WARP < MOVERS) {
		send_plain(p, (int)blockIdx.x * MOVERS + WARP);
	}
}

/* shared: for each mover, or each warp that sums, its stages, then their barriers. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_MOVE_THREADS, 1)
	moeep_kernel_ht_combine(const __grid_constant__ struct moeep_ht_combine_params p)
{
	DYNAMIC_SHARED(char, stages, 128);
	__shared__ struct landed landed;
	const struct moeep_dev_context &c = p.c;
	bool sums = (int)blockIdx.x >= p.senders;
	struct ring r = {0, 0, 0, 0};
	bool ok = true;

	if (!kernel_begin(c)) {
		return;
	}
	if (!p.plan->move) {
		if (blockIdx.x == 0 && threadIdx.x == 0) {
			finish_result(c, p.plan->result.code, p.plan->result.detail,
				      p.plan->result.a, p.plan->result.b, p.plan->result.c);
		}
		return;
	}
	landed_init(&landed);
#if HAVE_BULK
	if (p.bulk && (sums || WARP < MOVERS)) {
		r = ring_of(stages, sums ? NUM_WARPS : MOVERS,
			    (uint32_t)(sums ? p.sum_piece : p.piece),
			    sums ? p.sum_stages : p.stages);
	}
#endif
	if (sums) {
		ok = sum_rows(p, r);
	} else if (WARP >= FIRST_RECORDER) {
		send_records(p);
	} else {
		send_rows(p, r, &landed);
	}
	if (!__syncthreads_and(ok)) {
		if (threadIdx.x == 0) {
			put_dead(c);
		}
		return;
	}
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_MOVED], gridDim.x) && threadIdx.x == 0) {
		finish_result(c, p.plan->result.code, p.plan->result.detail, p.plan->result.a,
			      p.plan->result.b, p.plan->result.c);
	}
}
