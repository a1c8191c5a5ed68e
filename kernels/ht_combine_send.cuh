/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_combine_send.cuh - what a block does that sends rows of an HT combine.
 *
 * A few warps, the movers, push the rows of each source's tokens, or their partial sums if the rows are
 * expert-major, to the source's window, in the order of the source's tokens. Another one reports
 * how far they are, and the rest send the values of choices. Flat rows in symmetric memory need no
 * movers: sources read them where they are.
 */
#ifndef MOEEP_KERNELS_HT_COMBINE_SEND_CUH
#define MOEEP_KERNELS_HT_COMBINE_SEND_CUH

#include "ht_common.cuh"

#define VALUE_THREADS (MOEEP_DEV_COMBINE_THREADS - 32 * FIRST_RECORDER)

/* What a channel of this rank has of a source's records. */
DEV struct span records_of(const struct moeep_ht_combine_params &p, int source, int channel)
{
	return span_of(p.route->recv_count[source], p.senders * MOVERS, channel);
}

/*
 * The order in which a channel sends for up to 32 sources: in each round a row of each of them, from the
 * rank's next on. Of a flat layout this rank's own rows stay where they are. What a source gets
 * is known to the lane of its number in a round; that there is nothing for a source, count is 0.
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
	int all = p.expert_major ? p.c.num_ranks : p.c.num_ranks - 1;
	struct order o = {all - from < 32 ? all - from : 32, 0, 0, 0, NULL};
	int source = p.c.rank + 1 + from + LANE;

	source -= source >= p.c.num_ranks ? p.c.num_ranks : 0;
	if (LANE < o.sources && p.plan->dst[source] && p.x) {
		struct span s = records_of(p, source, channel);

		o.count = (int)s.count;
		o.record = (int64_t)p.route->recv_base[source] + s.first;
		o.to = p.plan->dst[source] + (uint64_t)o.record * p.staged_bytes;
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
 * Lanes report how many rows of each source are done after `rounds` of them. Pairs with the watcher's
 * acquire at the source. fenced: a fence stands before.
 */
DEV void report_rounds(const struct moeep_ht_combine_params &p, int channel, int rounds, int before,
		       bool fenced)
{
	for (int source = LANE; source < p.c.num_ranks; source += 32) {
		int count = (int)records_of(p, source, channel).count;
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

#if HAVE_BULK
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
				report_rounds(p, part_of(p.senders).index * MOVERS + m, count[m], told[m],
					      true);
				told[m] = count[m];
			}
		}
		if (!all) {
			__nanosleep(500);
		}
	} while (!all);
}

/*
 * A warp sends its channel's flat rows to up to 32 sources; lane 0 gives the engine its orders.
 * `landed` gets how far it is; without it the warp leaves the reports to its caller.
 */
DEV void send_bulk(const struct moeep_ht_combine_params &p, const struct order &o,
		   const struct ring &r, struct landed *landed)
{
	struct turn load = {0, 0};
	struct turn store = {0, 0};
	struct row_at loaded = row_of(p, o, load);
	struct row_at stored = loaded;
	struct place loading = {0, 0};
	struct place storing = {0, 0};
	uint64_t load_done = 0;
	uint64_t store_done = 0;
	int pieces = (int)((p.row_bytes + p.piece - 1) / p.piece);
	bool wrapped = false;
	int ahead = 0;
	int sent = 0;	  /* pieces */
	int reported = 0; /* the round of the last look */

	while (store.number < o.turns) {
		uint32_t bytes = (uint32_t)(p.row_bytes - store_done < p.piece ? p.row_bytes - store_done
									     : p.piece);

		for (; load.number < o.turns && ahead < r.stages - 1; ahead++) {
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
				next_turn(o, &load);
				loaded = row_of(p, o, load);
			}
		}
		if (LANE == 0) {
			ring_wait(r, storing);
			if (stored.record >= 0) {
				ring_store(r, storing, stored.to + store_done, bytes);
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
		next_turn(o, &store);
		stored = row_of(p, o, store);
		if (landed && store.i == 0 && store.number >= reported + REPORT &&
		    sent > LANDED_LAG) {
			reported = store.number;
			if (LANE == 0) {
				ring_wait_written<LANDED_LAG>();
				landed_put(landed, (sent - LANDED_LAG) / (o.sources * pieces));
			}
		}
	}
	if (LANE == 0) {
		ring_wait_written<0>();
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
DEV void send_plain(const struct moeep_ht_combine_params &p, int channel, const struct order &o,
		    bool reports)
{
	struct turn t = {0, 0};
	int reported = 0;

	while (t.number < o.turns) {
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
		next_turn(o, &t);
		__syncwarp();
		if (reports && t.i == 0 && t.number >= reported + REPORT) {
			report_rounds(p, channel, t.number, reported, false);
			reported = t.number;
		}
	}
}

/* What movers, and the warp that reports for them, do: 32 sources at a time. */
DEV void send_rows(const struct moeep_ht_combine_params &p, char *stages, struct landed *landed)
{
	int sources = p.expert_major ? p.c.num_ranks : p.c.num_ranks - 1;
	int channel = part_of(p.senders).index * MOVERS + WARP;
	/* In rounds over all sources: without that, reports wait until the end. */
	bool reports = sources <= 32;

#if HAVE_BULK
	if (p.bulk && !p.expert_major) {
		if (WARP == REPORTER) {
			report_landed(p, landed);
		} else if (WARP < MOVERS) {
			struct ring r = ring_of(stages, MOVERS, (uint32_t)p.piece, p.stages);

			for (int from = 0; from < sources; from += 32) {
				if (from > 0) {
					ring_reset(r);
				}
				send_bulk(p, order_of(p, channel, from), r, reports ? landed : NULL);
			}
			if (LANE == 0) {
				landed_put(landed, INT32_MAX);
			}
			landed_finish(landed);
		}
		return;
	}
#endif
	if (WARP < MOVERS) {
		for (int from = 0; from < sources; from += 32) {
			send_plain(p, channel, order_of(p, channel, from), reports);
		}
		__syncwarp();
		report_rounds(p, channel, INT32_MAX, 0, false);
	}
}

/* Values of choices go back with their records; a thread for each. */
DEV void send_values(const struct moeep_ht_combine_params &p)
{
	const struct moeep_dev_context &c = p.c;
	int64_t values = p.route->num_records * p.topk;
	int64_t thread = (int64_t)part_of(p.senders).index * VALUE_THREADS + threadIdx.x -
			 32 * FIRST_RECORDER;
	int64_t step = (int64_t)p.senders * VALUE_THREADS;

#pragma unroll 2
	for (int64_t at = thread; at < values; at += step) {
		int64_t record = at / p.topk;
		int source = record_source(*p.route, record, c.num_ranks);
		int64_t index = record - p.route->recv_base[source];
		int64_t row = p.expert_major ? p.route->record_rows[at] : at;

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
