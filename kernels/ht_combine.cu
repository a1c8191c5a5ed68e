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
#define RECORD_THREADS (MOEEP_DEV_MOVE_THREADS - 32 * MOVERS)
#define RECORD_WARPS   (RECORD_THREADS / 32)
/* Rows of a source between two reports of progress. */
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
 * rows in find_row() of the source. landed: the copy engine wrote them, and has finished.
 */
DEV void report_rounds(const struct moeep_ht_combine_params &p, int channel, int rounds, int before,
		       bool landed)
{
	for (int source = LANE; source < p.c.num_ranks; source += 32) {
		int count = span_of(p, source, channel).count;
		int done = rounds < count ? rounds : count;
		uint64_t *progress = progress_at(p.c, source, p.c.rank, channel);
		uint64_t word = flag_word(p.plan->epoch, (uint64_t)done);

		if (done <= before || !p.plan->dst[source]) {
			continue;
		}
		if (landed) {
			store_landed(progress, word);
		} else {
			store_release(progress, word);
		}
	}
}

#if __CUDA_ARCH__ >= 900
/* A warp sends its channel's flat rows; lane 0 gives the engine its orders. */
DEV void send_bulk(const struct moeep_ht_combine_params &p, int channel, const struct ring &r)
{
	struct order load = order_of(p, channel);
	struct order store = load;
	struct row_at loaded = row_of(p, load);
	struct row_at stored = loaded;
	struct place loading = {0, 0};
	struct place storing = {0, 0};
	uint64_t load_done = 0;
	uint64_t store_done = 0;
	bool wrapped = false;
	int ahead = 0;
	int reported = 0;

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
		store_done += bytes;
		if (store_done < p.row_bytes) {
			continue;
		}
		store_done = 0;
		next_row(&store);
		stored = row_of(p, store);
		/* Two pieces may be under way; the rounds before the last two are there in any case. */
		if (store.i == 0 && store.turn - 2 >= reported + REPORT) {
			if (LANE == 0) {
				ring_wait_written<2>();
			}
			__syncwarp();
			report_rounds(p, channel, store.turn - 2, reported, true);
			reported = store.turn - 2;
		}
	}
	if (LANE == 0) {
		ring_wait_written<0>();
	}
	__syncwarp();
	report_rounds(p, channel, INT32_MAX, reported, true);
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

	for (int64_t record = (int64_t)blockIdx.x * RECORD_WARPS + WARP - MOVERS; record < records;
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
	if ((int)threadIdx.x == 32 * MOVERS) {
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

/* A warp's tokens in turn; a lane looks after each of the first 32 ranks. */
DEV bool sum_token(const struct moeep_ht_combine_params &p, int64_t token, struct giver *first)
{
	const struct moeep_dev_context &c = p.c;
	const char *bias = p.bias ? p.bias + (uint64_t)token * p.row_bytes : NULL;
	struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};

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
		/* What each lane has acquired, all read. */
		__syncwarp();
		/* Ranks ascend, and so do the terms: term i at lane i % 32. */
		for (unsigned m = __ballot_sync(FULL, position >= 0); m; m &= m - 1) {
			add_term(&t, warp_pointer(mine, __ffs((int)m) - 1), 1.0f);
		}
	}
	warp_sum<4>(t, {p.staged_dtype, p.dtype, false, bias,
			p.out + (uint64_t)token * p.row_bytes, 0, c.hidden});
	return true;
}

/* The part of the blocks that sum: each warp has a stretch of the tokens. */
DEV bool sum_tokens(const struct moeep_ht_combine_params &p)
{
	int64_t warp = (int64_t)((int)blockIdx.x - p.senders) * NUM_WARPS + WARP;
	int64_t warps = (int64_t)(gridDim.x - (unsigned)p.senders) * NUM_WARPS;
	int64_t first = p.num_tokens * warp / warps;
	int64_t last = p.num_tokens * (warp + 1) / warps;
	struct giver giver = giver_of(p, LANE);
	bool ok = true;

	for (int64_t token = first; p.out && token < last && ok; token++) {
		ok = sum_token(p, token, &giver);
	}
	return ok;
}

/* shared: for each mover its stages, then their barriers. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_MOVE_THREADS, 1)
	moeep_kernel_ht_combine(const __grid_constant__ struct moeep_ht_combine_params p)
{
	extern __shared__ __align__(128) char stages[];
	const struct moeep_dev_context &c = p.c;
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
	if ((int)blockIdx.x >= p.senders) {
		ok = sum_tokens(p);
		if (p.out_topk_weights && (p.plan->given & MOEEP_DEV_GIVEN_WEIGHTS)) {
			ok = take_values(p) && ok;
		}
	} else if (WARP >= MOVERS) {
		send_records(p);
	} else {
		int channel = (int)blockIdx.x * MOVERS + WARP;

#if __CUDA_ARCH__ >= 900
		if (p.bulk && !p.expert_major) {
			uint32_t shared = (uint32_t)__cvta_generic_to_shared(stages);
			struct ring r = {0, 0, (uint32_t)p.piece, p.stages};

			r.stage = shared + (uint32_t)WARP * r.bytes * (uint32_t)r.stages;
			r.barrier = shared + MOVERS * r.bytes * (uint32_t)r.stages +
				    8u * (uint32_t)(WARP * r.stages);
			ring_init(r);
			send_bulk(p, channel, r);
		} else {
			send_plain(p, channel);
		}
#else
		send_plain(p, channel);
#endif
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
