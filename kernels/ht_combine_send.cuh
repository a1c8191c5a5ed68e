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

#include "ht_common.cuh"

#define VALUE_THREADS (MOEEP_DEV_COMBINE_THREADS - 32 * FIRST_RECORDER)

/* What a channel of this rank has of a source's records. */
DEV struct span records_of(const struct moeep_ht_combine_params &p, int source, int channel)
{
	return span_of(p.route.recv_count[source], channels_of(p), channel);
}

/* Sources that this rank sends rows to; of a flat layout its own rows stay where they are. */
DEV int sources_of(const struct moeep_ht_combine_params &p)
{
	return p.expert_major ? p.c.num_ranks : p.c.num_ranks - 1;
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

DEV struct order order_of(const struct moeep_ht_combine_params &p, int channel, int from)
{
	int all = sources_of(p);
	struct order o = {all - from < 32 ? all - from : 32, 0, 0, 0, NULL};
	int source = p.c.rank + 1 + from + LANE;

	source -= source >= p.c.num_ranks ? p.c.num_ranks : 0;
	if (LANE < o.sources && p.ends.dst[source] && p.x) {
		struct span s = records_of(p, source, channel);

		o.count = (int)s.count;
		o.record = (int64_t)p.route.recv_base[source] + s.first;
		o.to = p.ends.dst[source] + (uint64_t)o.record * p.staged_bytes;
	}
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
DEV struct row_at row_of(const struct moeep_ht_combine_params &p, const struct order &o,
			 const struct turn &t)
{
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
DEV void report_channel(const struct moeep_ht_combine_params &p, int channel, bool fenced)
{
	for (int source = LANE; source < p.c.num_ranks; source += 32) {
		uint64_t count = (uint64_t)records_of(p, source, channel).count;
		uint64_t *progress = progress_at(p.c, source, p.c.rank, channel);
		uint64_t word = flag_word(p.plan->epoch, count);

		if (count == 0 || !p.ends.dst[source]) {
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
DEV void report_landed(const struct moeep_ht_combine_params &p, const struct landed *landed,
		       const struct claims *claims)
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
			/* Behind landed_put(), and a release for all: what has landed. */
			__threadfence_system();
		}
#pragma unroll
		for (int m = 0; m < MOVERS; m++) {
			for (; told[m] < count[m]; told[m]++) {
				report_channel(p, claims_get(claims, m, told[m]), true);
			}
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
	struct order order;
	struct turn turn;
	struct row_at row;
	uint64_t at; /* bytes into the row */
};

DEV void enter_channel(const struct moeep_ht_combine_params &p, struct cursor *c, int channel)
{
	c->order = order_of(p, channel, c->from);
	c->turn = turn{0, 0};
	c->row = row_of(p, c->order, c->turn);
	c->at = 0;
}

/* Is there a piece? If not, but there are more sources, to those. */
DEV bool has_piece(const struct moeep_ht_combine_params &p, struct cursor *c,
		   const struct claims *claims)
{
	while (c->turn.number >= c->order.turns && c->n >= 0 && c->from + 32 < sources_of(p)) {
		c->from += 32;
		enter_channel(p, c, claims_get(claims, WARP, c->n));
	}
	return c->turn.number < c->order.turns;
}

/* To the next piece; the length of the one before. */
DEV uint32_t pass_piece(const struct moeep_ht_combine_params &p, struct cursor *c)
{
	uint32_t bytes = (uint32_t)(p.row_bytes - c->at < p.piece ? p.row_bytes - c->at : p.piece);

	c->at += bytes;
	if (c->at == p.row_bytes) {
		c->at = 0;
		next_turn(c->order, &c->turn);
		c->row = row_of(p, c->order, c->turn);
	}
	return bytes;
}

/* To the next channel that has not been claimed. False: there is none. */
DEV bool next_channel(const struct moeep_ht_combine_params &p, struct cursor *c,
		      struct claims *claims)
{
	uint32_t channel = claim(&p.c.state->claimed_channels);

	if (channel >= (uint32_t)channels_of(p)) {
		return false;
	}
	c->n++;
	c->from = 0;
	claims_put(claims, c->n, channel);
	enter_channel(p, c, (int)channel);
	return true;
}

/*
 * A warp sends flat rows of the channels that it claims; lane 0 gives the engine its orders. `landed`
 * gets how many of the channels are done.
 */
DEV void send_bulk(const struct moeep_ht_combine_params &p, struct claims *claims,
		   const struct ring &r, struct landed *landed)
{
	struct cursor load = {-1, 0, {0, 0, 0, 0, NULL}, {0, 0}, {-1, NULL}, 0};
	struct cursor store = load;
	struct place loading = {0, 0};
	struct place storing = {0, 0};
	bool wrapped = false;
	bool more = true; /* channels may be left */
	int ahead = 0;
	int sent = 0; /* pieces */
	int end = 0;  /* of channel n, by the lane n % 32: `sent` behind it, or more */
	int ended = 0;
	int done = 0; /* channels that have landed */

	for (;;) {
		uint32_t bytes;

		for (; ahead < r.stages - 1; ahead++) {
			if (!has_piece(p, &load, claims) && more) {
				more = next_channel(p, &load, claims);
			}
			if (!has_piece(p, &load, claims)) {
				more = false; /* those behind one without rows have none */
				break;
			}
			if (wrapped && LANE == 0) {
				ring_wait_read<1>();
			}
			const struct row_at row = load.row;
			const uint64_t at = load.at;

			bytes = pass_piece(p, &load);
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
		while (!has_piece(p, &store, claims)) {
			store.n++;
			store.from = 0;
			enter_channel(p, &store, claims_get(claims, WARP, store.n));
		}
		if (LANE == 0) {
			ring_wait(r, storing);
		}
		const struct row_at row = store.row;
		const uint64_t at = store.at;

		bytes = pass_piece(p, &store);
		if (LANE == 0) {
			if (row.record >= 0) {
				ring_store(r, storing, row.to + at, bytes);
			}
			ring_commit();
		}
		ring_next(r, &storing);
		ahead--;
		sent++;
		if (!has_piece(p, &store, claims)) {
			ended = store.n + 1;
			end = LANE == (store.n & 31) ? sent : end;
		}
		if (sent % REPORT == 0) {
			int before = done;

			while (done < ended &&
			       __shfl_sync(FULL, end, done & 31) <= sent - LANDED_LAG) {
				done++;
			}
			if (done > before && LANE == 0) {
				ring_wait_written<LANDED_LAG>();
				landed_put(landed, done);
			}
		}
	}
	if (LANE == 0) {
		ring_wait_written<0>();
		landed_put(landed, load.n + 1);
	}
}
#endif

/* Any dtypes and number of terms; apart, since it takes more registers than the rest. */
__device__ __noinline__ void sum_any(const struct terms &t, const struct sum &s)
{
	warp_sum<2>(t, s);
}

/* The rows of a record's choices here, without gaps, for their sum. */
DEV void find_terms(const struct moeep_ht_combine_params &p, int64_t record, struct terms *t)
{
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
DEV bool send_plain(const struct moeep_ht_combine_params &p, const struct order &o)
{
	struct turn t = {0, 0};

	for (; t.number < o.turns; next_turn(o, &t)) {
		struct row_at row = row_of(p, o, t);

		if (row.record >= 0 && p.expert_major) {
			struct terms terms = {{NULL, NULL}, {1.0f, 1.0f}, 0};

			find_terms(p, row.record, &terms);
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
DEV void send_rows(const struct moeep_ht_combine_params &p, char *stages, struct landed *landed,
		   struct claims *claims)
{
#if HAVE_BULK
	if (p.bulk && !p.expert_major) {
		if (WARP == REPORTER) {
			report_landed(p, landed, claims);
		} else if (WARP < MOVERS) {
			struct ring r = ring_of(stages, MOVERS, (uint32_t)p.piece, p.stages);

			send_bulk(p, claims, r, landed);
			landed_finish(landed);
		}
		return;
	}
#endif
	for (bool more = WARP < MOVERS; more;) {
		uint32_t channel = claim(&p.c.state->claimed_channels);

		more = false; /* channels behind one without rows have none */
		if (channel >= (uint32_t)channels_of(p)) {
			break;
		}
		for (int from = 0; from < sources_of(p); from += 32) {
			more = send_plain(p, order_of(p, (int)channel, from)) || more;
		}
		report_channel(p, (int)channel, false);
	}
}

/* Values of choices go back with their records; a thread for each. */
DEV void send_values(const struct moeep_ht_combine_params &p)
{
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

DEV void send_records(const struct moeep_ht_combine_params &p)
{
	const struct moeep_dev_context &c = p.c;

	if ((p.plan->given & MOEEP_DEV_GIVEN_WEIGHTS) && p.topk_weights) {
		send_values(p);
	}
	records_sync(VALUE_THREADS);
	if ((int)threadIdx.x == 32 * FIRST_RECORDER &&
	    arrive(&c.state->ticket[MOEEP_DEV_TICKET_RECORDS], (uint32_t)p.senders)) {
		publish_records(c, p.plan->epoch);
	}
}

#endif
