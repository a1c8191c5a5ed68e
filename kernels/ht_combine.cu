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

struct span {
	int64_t first; /* of a source's records */
	int64_t count;
};

/* What a channel of this rank has for a source. */
DEV struct span span_of(int64_t records, int channels, int channel)
{
	int64_t each = per_channel(records, channels);
	int64_t first = each * channel < records ? each * channel : records;
	int64_t end = first + each < records ? first + each : records;

	return span{first, end - first};
}

DEV void report(const struct moeep_ht_combine_params &p, int source, int channel, int64_t count)
{
	/* Pairs with the wait for rows in sum_token() of the source. */
	store_release(progress_at(p.c, source, p.c.rank, channel),
		      flag_word(p.plan->epoch, (uint64_t)count));
}

/* Lanes report how many rows of each source are done after `rounds` of them. */
DEV void report_rounds(const struct moeep_ht_combine_params &p, int channel, int64_t rounds,
		       int64_t before)
{
	for (int source = LANE; source < p.c.num_ranks; source += 32) {
		int64_t count = span_of(p.route->recv_count[source], p.senders * MOVERS, channel).count;
		int64_t done = rounds < count ? rounds : count;

		if (done > before && p.plan->dst[source]) {
			report(p, source, channel, done);
		}
	}
}

/* Most rows that the channel has for one source. */
DEV int64_t most_rounds(const struct moeep_ht_combine_params &p, int channel)
{
	int64_t most = 0;

	for (int source = 0; source < p.c.num_ranks; source++) {
		int64_t count = span_of(p.route->recv_count[source], p.senders * MOVERS, channel).count;

		if (source != p.c.rank || p.expert_major) {
			most = count > most ? count : most;
		}
	}
	return most;
}

/* The row that a channel sends in a round to the i-th source, counted from the rank's next. */
struct row_at {
	int source;
	int64_t record; /* -1: none */
	int64_t index;	/* among the source's */
};

DEV struct row_at row_of(const struct moeep_ht_combine_params &p, int channel, int64_t round, int i)
{
	int source = (p.c.rank + 1 + i) % p.c.num_ranks;
	struct span s = span_of(p.route->recv_count[source], p.senders * MOVERS, channel);
	struct row_at row = {source, -1, s.first + round};

	if (round < s.count && p.plan->dst[source] && p.x) {
		row.record = (int64_t)p.route->recv_base[source] + row.index;
	}
	return row;
}

#if __CUDA_ARCH__ >= 900
/* A warp sends its channel's flat rows; lane 0 gives the engine its orders. */
DEV void send_bulk(const struct moeep_ht_combine_params &p, int channel, const struct ring &r)
{
	int others = p.c.num_ranks - 1;
	int64_t pieces = (int64_t)((p.row_bytes + p.piece - 1) / p.piece);
	int64_t per_round = others * pieces;
	int64_t units = most_rounds(p, channel) * per_round;
	int64_t loaded = 0;
	int64_t reported = 0;

	for (int64_t u = 0; u < units; u++) {
		struct row_at row = row_of(p, channel, u / per_round, (int)(u % per_round / pieces));
		uint64_t at = (uint64_t)(u % pieces) * p.piece;
		uint32_t bytes = (uint32_t)(p.row_bytes - at < p.piece ? p.row_bytes - at : p.piece);

		for (; loaded < units && loaded < u + r.stages - 1; loaded++) {
			struct row_at next = row_of(p, channel, loaded / per_round,
						    (int)(loaded % per_round / pieces));
			uint64_t offset = (uint64_t)(loaded % pieces) * p.piece;
			uint32_t length = (uint32_t)(p.row_bytes - offset < p.piece
							     ? p.row_bytes - offset
							     : p.piece);

			if (LANE == 0) {
				if (loaded >= r.stages) {
					ring_wait_read<1>();
				}
				/* Stages go by units, so one without a row loads something, too. */
				ring_load(r, loaded,
					  p.x + (next.record < 0 ? 0
								 : (uint64_t)next.record *
										   p.row_bytes +
									   offset),
					  next.record < 0 ? 16u : length);
			}
		}
		if (LANE == 0) {
			ring_wait(r, u);
			if (row.record >= 0) {
				ring_store(r, u,
					   p.plan->dst[row.source] +
						   (uint64_t)row.index * p.row_bytes + at,
					   bytes);
			}
			ring_commit();
		}
		/* Two pieces may be under way: what was sent before them is there. */
		if ((u + 1) % per_round == 0 && (u - 1) / per_round >= reported + REPORT) {
			int64_t rounds = (u - 1) / per_round;

			if (LANE == 0) {
				ring_wait_written<2>();
			}
			__syncwarp();
			report_rounds(p, channel, rounds, reported);
			reported = rounds;
		}
	}
	if (LANE == 0) {
		ring_wait_written<0>();
	}
	__syncwarp();
	report_rounds(p, channel, INT64_MAX, reported);
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

			if (LANE == (t->count & 31)) {
				t->row[t->count >> 5] = one;
				t->weight[t->count >> 5] = by;
			}
			t->count++;
		}
	}
}

DEV void send_sum(const struct moeep_ht_combine_params &p, const struct terms &t, char *to)
{
#define SEND_SUM(from, to_dtype)                                                                   \
	do {                                                                                       \
		if (p.weighted) {                                                                  \
			warp_sum<from, to_dtype, true, 2>(t, NULL, to, 0, p.c.hidden);             \
		} else {                                                                           \
			warp_sum<from, to_dtype, false, 2>(t, NULL, to, 0, p.c.hidden);            \
		}                                                                                  \
	} while (0)
	if (p.dtype == MOEEP_FP32) {
		SEND_SUM(MOEEP_FP32, MOEEP_FP32);
	} else if (p.dtype == MOEEP_BF16) {
		if (p.staged_dtype == MOEEP_FP32) {
			SEND_SUM(MOEEP_BF16, MOEEP_FP32);
		} else {
			SEND_SUM(MOEEP_BF16, MOEEP_BF16);
		}
	} else if (p.staged_dtype == MOEEP_FP32) {
		SEND_SUM(MOEEP_FP16, MOEEP_FP32);
	} else {
		SEND_SUM(MOEEP_FP16, MOEEP_FP16);
	}
#undef SEND_SUM
}

/* The same by loads and stores; expert-major rows, this rank's own ones too, are summed on the way. */
DEV void send_plain(const struct moeep_ht_combine_params &p, int channel)
{
	int sources = p.expert_major ? p.c.num_ranks : p.c.num_ranks - 1;
	int64_t rounds = most_rounds(p, channel);
	int64_t reported = 0;

	for (int64_t round = 0; round < rounds; round++) {
		for (int i = 0; i < sources; i++) {
			struct row_at row = row_of(p, channel, round, i);
			char *to;

			if (row.record < 0) {
				continue;
			}
			to = p.plan->dst[row.source] + (uint64_t)row.index * p.staged_bytes;
			if (p.expert_major) {
				struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};

				find_terms(p, row.record, &t);
				send_sum(p, t, to);
			} else {
				warp_copy(to, p.x + (uint64_t)row.record * p.row_bytes,
					  (int64_t)p.row_bytes);
			}
		}
		__syncwarp();
		if (round + 1 >= reported + REPORT) {
			report_rounds(p, channel, round + 1, reported);
			reported = round + 1;
		}
	}
	__syncwarp();
	report_rounds(p, channel, INT64_MAX, reported);
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

	if ((p.plan->given & 1u) && p.topk_weights) {
		send_values(p);
	}
	records_sync(RECORD_THREADS);
	if ((int)threadIdx.x == 32 * MOVERS) {
		uint32_t *ticket = &c.state->ticket[MOEEP_DEV_TICKET_RECORDS];

		__threadfence_system();
		if (atomicAdd(ticket, 1u) == (uint32_t)p.senders - 1) {
			atomicExch(ticket, 0u);
			__threadfence_system();
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

DEV bool sum_token(const struct moeep_ht_combine_params &p, int64_t token)
{
	const struct moeep_dev_context &c = p.c;
	const char *bias = p.bias ? p.bias + (uint64_t)token * p.row_bytes : NULL;
	char *out = p.out + (uint64_t)token * p.row_bytes;
	struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};
	bool ok = true;
	int rank[2];

	for (int half = 0; half < 2; half++) {
		int k = half * 32 + LANE;
		int id = k < p.topk ? p.route->topk_idx[token * p.topk + k] : -1;

		rank[half] = id < 0 ? -1 : expert_rank(c, id);
	}
	t.count = warp_distinct(&rank[0], &rank[1], p.topk > 32);
	for (int half = 0; half < 2; half++) {
		int from = rank[half];
		int64_t position;
		int64_t index;
		int64_t each;
		uint64_t seen;

		if (from < 0) {
			continue;
		}
		position = p.route->position[token * c.num_ranks + from];
		if (from == c.rank && !p.expert_major) {
			t.row[half] = p.x + (uint64_t)position * p.row_bytes;
			continue;
		}
		index = position - p.route->send_base[from];
		each = per_channel(p.route->send_count[from], p.plan->channels[from]);
		ok = ok &&
		     wait_word(c, progress_at(c, c.rank, from, (int)(index / each)),
			       flag_word(p.plan->epoch, (uint64_t)(index % each) + 1), from,
			       MOEEP_DEV_ROWS, &seen);
		t.row[half] = window_at(c, c.rank, c.window.rows) +
			      (uint64_t)((int64_t)from * c.ht_max_tokens + index) * p.staged_bytes;
	}
	if (!__all_sync(FULL, ok)) {
		return false;
	}
	if (p.dtype == MOEEP_FP32) {
		warp_sum<MOEEP_FP32, MOEEP_FP32, false, 4>(t, bias, out, 0, c.hidden);
	} else if (p.dtype == MOEEP_BF16) {
		if (p.staged_dtype == MOEEP_FP32) {
			warp_sum<MOEEP_FP32, MOEEP_BF16, false, 2>(t, bias, out, 0, c.hidden);
		} else {
			warp_sum<MOEEP_BF16, MOEEP_BF16, false, 4>(t, bias, out, 0, c.hidden);
		}
	} else if (p.staged_dtype == MOEEP_FP32) {
		warp_sum<MOEEP_FP32, MOEEP_FP16, false, 2>(t, bias, out, 0, c.hidden);
	} else {
		warp_sum<MOEEP_FP16, MOEEP_FP16, false, 4>(t, bias, out, 0, c.hidden);
	}
	return true;
}

/* The part of the blocks that sum: each warp has a stretch of the tokens. */
DEV bool sum_tokens(const struct moeep_ht_combine_params &p)
{
	int64_t warp = (int64_t)((int)blockIdx.x - p.senders) * NUM_WARPS + WARP;
	int64_t warps = (int64_t)(gridDim.x - (unsigned)p.senders) * NUM_WARPS;
	int64_t first = p.num_tokens * warp / warps;
	int64_t last = p.num_tokens * (warp + 1) / warps;
	bool ok = true;

	for (int64_t token = first; p.out && token < last && ok; token++) {
		ok = sum_token(p, token);
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
	if (!p.x && p.route->num_records > 0 && p.needs_x) {
		/* Peers wait for rows that this rank does not have. */
		raise(c, MOEEP_ERR_INVALID, -1, 0, p.plan->epoch, 0, 0);
		ok = false;
	} else if ((int)blockIdx.x >= p.senders) {
		ok = sum_tokens(p);
		if (p.out_topk_weights && (p.plan->given & 1u)) {
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
