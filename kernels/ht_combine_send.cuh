/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_combine_send.cuh - what a block does that sends rows of an HT combine.
 *
 * A few warps, the movers, push the rows of each source's tokens, or their partial sums if the rows are
 * expert-major, to the source's window. They claim short channels in the order of the source's tokens,
 * which is that of the sums. Another warp reports which channels are there, and the rest send the values
 * of choices. Flat rows in symmetric memory need no movers: sources read them where they are.
 */
#ifndef MOEEP_KERNELS_HT_COMBINE_SEND_CUH
#define MOEEP_KERNELS_HT_COMBINE_SEND_CUH

#include "ht_landed.cuh"

#define VALUE_THREADS (MOEEP_DEV_HT_THREADS - 32 * FIRST_RECORDER)

/* What an operation's functions need: its arguments, and what every block knows since it has begun. */
struct job {
	const struct moeep_ht_combine_params &p;
	const struct moeep_dev_plan &plan;
	const struct ends &ends;
};

/* What a channel of this rank has of a source's records. */
DEV struct span records_of(const struct job &j, int source, int channel)
{
	const struct moeep_ht_combine_params &p = j.p;

	return span_of(p.route.recv_count[source], j.p.channels, channel);
}

/* Sources that this rank sends rows to; of a flat layout its own rows stay where they are. */
DEV int sources_of(const struct job &j)
{
	const struct moeep_ht_combine_params &p = j.p;

	return p.expert_major ? p.c.num_ranks : p.c.num_ranks - 1;
}

/* What a lane knows of the source that it looks after, of those from a number on. */
struct source {
	int count; /* of records, 0: nothing is sent there */
	int each;  /* of a channel */
	int64_t record; /* the first */
	char *to;	/* place of the first */
};

DEV struct source source_of(const struct job &j, int from)
{
	const struct moeep_ht_combine_params &p = j.p;
	struct source s = {0, 0, 0, NULL};
	int source = p.c.rank + 1 + from + LANE;

	source -= source >= p.c.num_ranks ? p.c.num_ranks : 0;
	if (from + LANE < sources_of(j) && j.ends.dst[source] && p.x) {
		s.count = p.route.recv_count[source];
		s.each = per_channel(s.count, p.channels);
		s.record = p.route.recv_base[source];
		s.to = j.ends.dst[source] + (uint64_t)s.record * p.staged_bytes;
	}
	return s;
}

/*
 * The order in which a channel sends for up to 32 sources: in each round a row of each of them, from the
 * rank's next on. What a source gets is known to the lane of its number in a round; that there
 * is nothing for a source, count is 0.
 */
struct order {
	int sources;
	int turns;
	int count;
	int64_t record; /* the first */
	char *to;	/* place of the first */
};

/* first: those of the first 32 sources. */
DEV struct order order_of(const struct job &j, const struct source &first, int channel, int from)
{
	struct source s = from == 0 ? first : source_of(j, from);
	int all = sources_of(j);
	struct order o = {all - from < 32 ? all - from : 32, 0, 0, 0, NULL};
	int before = s.each * channel < s.count ? s.each * channel : s.count;

	o.count = s.count - before < s.each ? s.count - before : s.each;
	o.record = s.record + before;
	o.to = s.to + (uint64_t)before * j.p.staged_bytes;
	o.turns = (int)__reduce_max_sync(FULL, (unsigned)o.count);
	return o;
}

/* A row's place in the order. */
struct turn {
	int number;
	int i; /* of the source in this round */
};

struct row_at {
	int64_t record; /* -1: none */
	char *to;
};

/* By the whole warp, which is at the same turn. */
DEV struct row_at row_of(const struct job &j, const struct order &o,
			 const struct turn &t)
{
	const struct moeep_ht_combine_params &p = j.p;
	int count = __shfl_sync(FULL, o.count, t.i);
	int64_t record = __shfl_sync(FULL, o.record, t.i);
	char *to = (char *)warp_pointer(o.to, t.i);

	return t.number < count
		       ? row_at{record + t.number, to + (uint64_t)t.number * p.staged_bytes}
		       : row_at{-1, NULL};
}

DEV void next_turn(const struct order &o, struct turn *t)
{
	if (++t->i >= o.sources) {
		t->i = 0;
		t->number++;
	}
}

/*
 * Lanes tell the sources that a channel's rows are there. Pairs with the watcher's acquire at the source.
 * fenced: a fence stands before.
 */
DEV void report_channel(const struct job &j, int channel, bool fenced)
{
	const struct moeep_ht_combine_params &p = j.p;

	for (int source = LANE; source < p.c.num_ranks; source += 32) {
		uint64_t count = (uint64_t)records_of(j, source, channel).count;
		uint64_t *progress = progress_at(p.c, source, p.c.rank, channel);
		uint64_t word = flag_word(j.plan.epoch, count);

		if (count == 0 || !j.ends.dst[source]) {
			continue;
		}
		if (fenced) {
			store_relaxed(progress, word);
		} else {
			store_release(progress, word);
		}
	}
}

#if HAVE_BULK
/* A warp tells the sources which channels this block's movers are done with. */
DEV void report_landed(const struct job &j, struct landed *landed)
{
	int told[MOVERS] = {0};
	bool all;

	do {
		int count[MOVERS];
		bool news = false;

		all = landed_all(landed);
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			count[m] = landed_get(landed, m);
			news = news || count[m] > told[m];
		}
		if (news) {
			/* Behind landed_put(), and a release for all: what has landed. */
			__threadfence_system();
		}
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			for (; told[m] < count[m]; told[m]++) {
				report_channel(j, claims_get(landed, m, told[m]), true);
			}
			landed_tell(landed, m, told[m]);
		}
		if (!all && !news) {
			__nanosleep(200);
		}
	} while (!all);
}

/* A mover's way through its channels. */
struct cursor {
	int n;	  /* of the channel among the mover's; -1: before the first */
	int from; /* sources */
	struct source first; /* the lane's, of the first 32 */
	struct order order;
	struct turn turn;
	struct row_at row;
	uint64_t at; /* bytes into the row */
};

DEV void enter_channel(const struct job &j, struct cursor *c, int channel)
{
	c->order = order_of(j, c->first, channel, c->from);
	c->turn = turn{0, 0};
	c->row = row_of(j, c->order, c->turn);
	c->at = 0;
}

/* Is there a piece? If not, but there are more sources, to those. */
DEV bool has_piece(const struct job &j, struct cursor *c,
		   const struct landed *landed)
{
	while (c->turn.number >= c->order.turns && c->n >= 0 && c->from + 32 < sources_of(j)) {
		c->from += 32;
		enter_channel(j, c, claims_get(landed, WARP, c->n));
	}
	return c->turn.number < c->order.turns;
}

/* To the next piece; the length of the one before. */
DEV uint32_t pass_piece(const struct job &j, struct cursor *c)
{
	const struct moeep_ht_combine_params &p = j.p;
	uint32_t bytes = (uint32_t)(p.row_bytes - c->at < p.piece ? p.row_bytes - c->at : p.piece);

	c->at += bytes;
	if (c->at == p.row_bytes) {
		c->at = 0;
		next_turn(c->order, &c->turn);
		c->row = row_of(j, c->order, c->turn);
	}
	return bytes;
}

/* To the next channel that has not been claimed. False: there is none. */
DEV bool next_channel(const struct job &j, struct cursor *c, struct landed *landed, uint32_t *ahead)
{
	uint32_t channel = claimed(*ahead);

	*ahead = claim_ahead(&j.p.c.state->claimed_channels);
	if (channel >= (uint32_t)j.p.channels) {
		return false;
	}
	c->n++;
	c->from = 0;
	claims_put(landed, c->n, channel, true);
	enter_channel(j, c, (int)channel);
	return true;
}

/*
 * A warp sends flat rows of the channels that it claims; lane 0 gives the engine its orders. `landed`
 * gets how many of the channels are done.
 */
DEV void send_bulk(const struct job &j, const struct ring &r, struct landed *landed)
{
	const struct moeep_ht_combine_params &p = j.p;
	struct cursor load = {-1, 0, source_of(j, 0), {0, 0, 0, 0, NULL}, {0, 0}, {-1, NULL}, 0};
	struct cursor store = load;
	struct place loading = {0, 0};
	struct place storing = {0, 0};
	bool wrapped = false;
	bool more = true; /* channels may be left */
	uint32_t claim = claim_ahead(&p.c.state->claimed_channels);
	int ahead = 0;
	int sent = 0; /* pieces */
	struct endings endings = {0, 0, 0};

	for (;;) {
		uint32_t bytes;

		for (; ahead < r.stages - 1; ahead++) {
			if (!has_piece(j, &load, landed) && more) {
				more = next_channel(j, &load, landed, &claim);
			}
			if (!has_piece(j, &load, landed)) {
				more = false; /* those behind one without rows have none */
				break;
			}
			if (wrapped && LANE == 0) {
				ring_wait_read<1>();
			}
			const struct row_at row = load.row;
			const uint64_t at = load.at;

			bytes = pass_piece(j, &load);
			if (LANE == 0) {
				/* Stages go by pieces, so one without a row loads something, too. */
				ring_load(r, loading,
					  row.record < 0 ? p.x
							 : p.x + (uint64_t)row.record * p.row_bytes + at,
					  row.record < 0 ? 16u : bytes);
			}
			ring_next(r, &loading);
			wrapped = wrapped || loading.stage == 0;
		}
		if (ahead == 0) {
			break;
		}
		while (!has_piece(j, &store, landed)) {
			store.n++;
			store.from = 0;
			enter_channel(j, &store, claims_get(landed, WARP, store.n));
		}
		if (LANE == 0) {
			ring_wait(r, storing);
		}
		const struct row_at row = store.row;
		const uint64_t at = store.at;

		bytes = pass_piece(j, &store);
		if (LANE == 0) {
			if (row.record >= 0) {
				ring_store(r, storing, row.to + at, bytes);
			}
			ring_commit();
		}
		ring_next(r, &storing);
		ahead--;
		sent++;
		if (!has_piece(j, &store, landed)) {
			note_ending(&endings, store.n, sent);
		}
		if (sent % REPORT == 0 && pass_endings(&endings, sent - LANDED_LAG)) {
			ring_wait_written<LANDED_LAG>();
			landed_put(landed, endings.done);
		}
	}
	ring_wait_written<0>();
	claim_end(claim);
	landed_put(landed, load.n + 1);
}
#endif

/* Any dtypes and number of terms; apart, since it takes more registers than the rest. */
__device__ __noinline__ void sum_any(const struct terms &t, const struct sum &s)
{
	warp_sum<2>(t, s);
}

/* The rows of a record's choices here, without gaps, for their sum. */
DEV void find_terms(const struct job &j, int64_t record, struct terms *t)
{
	const struct moeep_ht_combine_params &p = j.p;

	for (int half = 0; half * 32 < p.topk; half++) {
		int k = half * 32 + LANE;
		int64_t row = k < p.topk ? p.route.record_rows[record * p.topk + k] : -1;
		float weight = k < p.topk ? p.route.record_weights[record * p.topk + k] : 0.0f;
		const char *mine = p.x + (row >= 0 ? (uint64_t)row * p.row_bytes : 0);

		for (unsigned m = __ballot_sync(FULL, row >= 0); m; m &= m - 1) {
			int lane = __ffs((int)m) - 1;
			const char *one = warp_pointer(mine, lane);
			float by = __shfl_sync(FULL, weight, lane);

			add_term(t, one, by);
		}
	}
}

/*
 * The same by loads and stores; expert-major rows, this rank's own ones too, are summed on the way. True if
 * there was one.
 */
DEV bool send_plain(const struct job &j, const struct order &o)
{
	const struct moeep_ht_combine_params &p = j.p;
	struct turn t = {0, 0};

	for (; t.number < o.turns; next_turn(o, &t)) {
		struct row_at row = row_of(j, o, t);

		if (row.record >= 0 && p.expert_major) {
			struct terms terms = {{NULL, NULL}, {1.0f, 1.0f}, 0};

			find_terms(j, row.record, &terms);
			sum_any(terms, {p.dtype, p.staged_dtype, p.weighted != 0, NULL, row.to,
					0, p.c.hidden});
		} else if (row.record >= 0) {
			warp_copy(row.to, p.x + (uint64_t)row.record * p.row_bytes,
				  (int64_t)p.row_bytes);
		}
	}
	__syncwarp();
	return o.turns > 0;
}

/* What movers, and the warp that reports for them, do. */
DEV void send_rows(const struct job &j, char *stages, struct landed *landed)
{
	const struct moeep_ht_combine_params &p = j.p;
#if HAVE_BULK
	if (p.bulk && !p.expert_major) {
		if (WARP == REPORTER) {
			report_landed(j, landed);
		} else if (WARP < MOVERS) {
			struct ring r = ring_of(stages, MOVERS, (uint32_t)p.piece, p.stages);

			send_bulk(j, r, landed);
			landed_finish(landed);
		}
		return;
	}
#endif
	struct source first = source_of(j, 0);

	for (bool more = WARP < MOVERS; more;) {
		uint32_t channel = claimed(claim_ahead(&p.c.state->claimed_channels));

		more = false; /* channels behind one without rows have none */
		if (channel >= (uint32_t)p.channels) {
			break;
		}
		for (int from = 0; from < sources_of(j); from += 32) {
			more = send_plain(j, order_of(j, first, (int)channel, from)) || more;
		}
		report_channel(j, (int)channel, false);
	}
}

/* Values of choices go back with their records; a thread for each. */
DEV void send_values(const struct job &j)
{
	const struct moeep_ht_combine_params &p = j.p;
	const struct moeep_dev_context &c = p.c;
	int64_t values = p.route.state->num_records * p.topk;
	int64_t thread = (int64_t)part_of(p.senders).index * VALUE_THREADS + threadIdx.x -
			 32 * FIRST_RECORDER;
	int64_t step = (int64_t)p.senders * VALUE_THREADS;

#pragma unroll 2
	for (int64_t at = thread; at < values; at += step) {
		int64_t record = at / p.topk;
		int source = record_source(p.route, record, c.num_ranks);
		int64_t index = record - p.route.recv_base[source];
		int64_t row = p.expert_major ? p.route.record_rows[at] : at;

		record_weights(c, source, (int64_t)c.rank * c.ht_max_tokens + index,
			       p.topk)[at - record * p.topk] =
			row >= 0 ? p.topk_weights[row] : 0.0f;
	}
}

DEV void send_records(const struct job &j)
{
	const struct moeep_ht_combine_params &p = j.p;
	const struct moeep_dev_context &c = p.c;

	if ((j.plan.given & MOEEP_DEV_GIVEN_WEIGHTS) && p.topk_weights) {
		send_values(j);
	}
	records_sync(VALUE_THREADS);
	if ((int)threadIdx.x == 32 * FIRST_RECORDER &&
	    arrive(&c.state->ticket[MOEEP_DEV_TICKET_RECORDS], (uint32_t)p.senders)) {
		publish_records(c, j.plan.epoch);
	}
}

#endif
