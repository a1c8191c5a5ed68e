/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_move_records.cuh - what goes with the rows of an HT dispatch: choices and weights, the
 * token's number, scales. Sent by the warps of a block that do not move rows, which then write out what
 * has come with others'.
 */
#ifndef MOEEP_KERNELS_HT_MOVE_RECORDS_CUH
#define MOEEP_KERNELS_HT_MOVE_RECORDS_CUH

#include "ht_move_send.cuh"

#define RECORD_THREADS (MOEEP_DEV_MOVE_THREADS - 32 * FIRST_RECORDER)

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
DEV void send_records(const struct moeep_ht_dispatch_params &p, int64_t begin, int64_t end, int thread,
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
		int id = p.route.topk_idx[at];
		float weight = weights ? p.route.topk_weights[at] : 0.0f;

		for (int rank = 0; rank < c.num_ranks; rank++) {
			int position = p.route.position[token * c.num_ranks + rank];

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
				int position = p.route.position[token * c.num_ranks + rank];

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
			int position = p.route.position[token * c.num_ranks + rank];

			if (position >= 0) {
				((uint4 *)record_scales(c, rank, position))[i % wide] = v;
			}
		}
	}
}

/* The same threads write the index outputs of records [begin, end), which have come from `source`. */
DEV void write_records(const struct moeep_ht_dispatch_params &p, int source, int64_t begin, int64_t end,
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

			if (p.recv_topk_idx && p.begin.topk_dtype == MOEEP_INT32) {
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
DEV void fill_tail(const struct moeep_ht_dispatch_params &p, int64_t thread, int64_t step)
{
	int topk = p.plan->topk;

	for (int64_t i = p.route.state->num_rows * topk + thread; i < p.capacity * topk; i += step) {
		if (p.recv_topk_idx && p.begin.topk_dtype == MOEEP_INT32) {
			((int32_t *)p.recv_topk_idx)[i] = -1;
		} else if (p.recv_topk_idx) {
			((int64_t *)p.recv_topk_idx)[i] = -1;
		}
		if (p.recv_topk_weights) {
			p.recv_topk_weights[i] = 0.0f;
		}
	}
	for (int64_t row = p.route.state->num_rows + thread; row < p.capacity; row += step) {
		if (p.recv_src_token) {
			p.recv_src_token[row] = -1;
		}
		if (p.recv_src_rank) {
			p.recv_src_rank[row] = -1;
		}
	}
}

/* The part of the warps that do not move rows. */
DEV bool records(const struct moeep_ht_dispatch_params &p)
{
	const struct moeep_dev_context &c = p.c;
	struct part part = part_of(p.senders);
	int own = (int)threadIdx.x - 32 * FIRST_RECORDER;
	int64_t thread = (int64_t)blockIdx.x * RECORD_THREADS + own;
	int64_t threads = (int64_t)gridDim.x * RECORD_THREADS;
	bool ok = true;

	if (part.sends) {
		int channels = MOVERS * p.shares;
		struct channel first = channel_of(p, part.index * channels);
		struct channel last = channel_of(p, part.index * channels + channels - 1);

		send_records(p, first.first, last.last, own, RECORD_THREADS);
		records_sync(RECORD_THREADS);
		if (own == 0 && arrive(&c.state->ticket[MOEEP_DEV_TICKET_RECORDS],
				       (uint32_t)p.senders)) {
			publish_records(c, p.plan->epoch);
		}
	}
	for (int i = 0; i < c.num_ranks && ok; i++) {
		/* This rank's own first: they are there. */
		int source = (c.rank + i) % c.num_ranks;
		int64_t begin = p.route.recv_base[source];
		int64_t end = p.route.recv_base[source + 1];
		uint64_t seen;

		if (LANE == 0) {
			ok = wait_word<true>(
				c, flag_at(c, c.rank, c.window.ht_record_flag, source),
				flag_word(p.plan->epoch, 0), source, MOEEP_DEV_RECORDS, &seen);
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

#endif
