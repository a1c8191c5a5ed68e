/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_move_records.cuh - what goes with the rows of an HT dispatch: choices and weights, the
 * token's number, scales. Sent by the warps of a block that do not move rows, which then write out what
 * has come with others'.
 */
#ifndef MOEEP_KERNELS_HT_MOVE_RECORDS_CUH
#define MOEEP_KERNELS_HT_MOVE_RECORDS_CUH

#include "ht_move_send.cuh"

/* Can four scales of a row be moved at once, in both places? */
DEV bool wide_scales(const struct moeep_dev_scales &scales)
{
	return scales.dtype != MOEEP_UE8M0 && scales.layout == MOEEP_SCALES_ROW_MAJOR &&
	       scales.count % 4 == 0 && scales.stride % 4 == 0 && (uintptr_t)scales.base % 16 == 0;
}

/* What a thread has in hand at once, so that loads wait for memory together. */
#define BATCH 8

/*
 * A thread's way through the words of rows, every step-th: to divide for each of them is slow.
 */
struct walk {
	int64_t row;
	int word;
	int wide;  /* words of a row */
	int rows;  /* a step's whole rows, and the words besides */
	int words;
};

DEV struct walk walk_of(int64_t row, int thread, int step, int wide)
{
	return walk{row + thread / wide, thread % wide, wide, step / wide, step % wide};
}

DEV void walk_on(struct walk *w)
{
	w->row += w->rows;
	w->word += w->words;
	if (w->word >= w->wide) {
		w->word -= w->wide;
		w->row++;
	}
}

/* Where tokens go at a rank; those behind the end nowhere. */
DEV void positions_of(const struct job &j, int rank, const int64_t (&token)[BATCH], int64_t end,
		      int (&position)[BATCH])
{
#pragma unroll
	for (int b = 0; b < BATCH; b++) {
		position[b] = token[b] < end ? position_of(j, rank, token[b]) : -1;
	}
}

/* Choices and weights, and the token's number, of tokens [begin, end), by threads of a block. */
DEV void send_choices(const struct job &j, int64_t begin, int64_t end, int thread, int step)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	const struct moeep_dev_context &c = p.c;
	int topk = j.plan.topk;
	bool weights = (j.plan.given & MOEEP_DEV_GIVEN_WEIGHTS) != 0;
	struct walk w = walk_of(begin, thread, step, topk);

	while (w.row < end) {
		int64_t token[BATCH];
		int k[BATCH];
		int id[BATCH];
		float weight[BATCH];

#pragma unroll
		for (int b = 0; b < BATCH; b++) {
			int64_t at = w.row * topk + w.word;

			token[b] = w.row;
			k[b] = w.word;
			id[b] = w.row < end ? p.route.topk_idx[at] : -1;
			weight[b] = weights && w.row < end ? p.route.topk_weights[at] : 0.0f;
			walk_on(&w);
		}
		for (int rank = 0; rank < c.num_ranks; rank++) {
			int position[BATCH];

			positions_of(j, rank, token, end, position);
#pragma unroll
			for (int b = 0; b < BATCH; b++) {
				if (position[b] < 0) {
					continue;
				}
				record_idx(c, rank, position[b], topk)[k[b]] = id[b];
				record_weights(c, rank, position[b], topk)[k[b]] = weight[b];
				if (k[b] == 0) {
					*record_token(c, rank, position[b]) = (int32_t)token[b];
				}
			}
		}
	}
}

/* Scales of these tokens, four at a time. */
DEV void send_wide_scales(const struct job &j, int64_t begin, int64_t end, int thread, int step)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	const struct moeep_dev_context &c = p.c;
	struct walk w = walk_of(begin, thread, step, p.scales.count / 4);

	while (w.row < end) {
		int64_t token[BATCH];
		int word[BATCH];
		uint4 v[BATCH];

#pragma unroll
		for (int b = 0; b < BATCH; b++) {
			token[b] = w.row;
			word[b] = w.word;
			if (w.row < end) {
				v[b] = ((const uint4 *)((const char *)p.scales.base +
							w.row * p.scales.stride * 4))[w.word];
			}
			walk_on(&w);
		}
		for (int rank = 0; rank < c.num_ranks; rank++) {
			int position[BATCH];

			positions_of(j, rank, token, end, position);
#pragma unroll
			for (int b = 0; b < BATCH; b++) {
				if (position[b] >= 0) {
					((uint4 *)record_scales(c, rank, position[b]))[word[b]] =
						v[b];
				}
			}
		}
	}
}

/* All that goes with the rows of tokens [begin, end), by threads of a block. */
DEV void send_records(const struct job &j, int64_t begin, int64_t end, int thread, int step)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	const struct moeep_dev_context &c = p.c;

	send_choices(j, begin, end, thread, step);
	if (p.scales.base && wide_scales(p.scales)) {
		send_wide_scales(j, begin, end, thread, step);
		return;
	}
	for (int64_t token = begin + thread / 32; p.scales.base && token < end; token += step / 32) {
		for (int rank = 0; rank < c.num_ranks; rank++) {
			int position = position_of(j, rank, token);

			if (position >= 0) {
				warp_read_scales(p.scales, token, record_scales(c, rank, position));
			}
		}
	}
}

/* Choices and weights of records [begin, end), which have come, to the outputs. */
DEV void write_choices(const struct job &j, int64_t begin, int64_t end, int64_t thread, int64_t step)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	const struct moeep_dev_context &c = p.c;
	int topk = j.plan.topk;
	const int32_t *idx = record_idx(c, c.rank, 0, topk);
	const float *weights = record_weights(c, c.rank, 0, topk);
	bool weighted = p.recv_topk_weights && (j.plan.given & MOEEP_DEV_GIVEN_WEIGHTS);

	if (!p.recv_topk_idx && !weighted) {
		return;
	}
	for (int64_t base = begin * topk + thread; base < end * topk; base += BATCH * step) {
		int id[BATCH];
		float weight[BATCH];

#pragma unroll
		for (int b = 0; b < BATCH; b++) {
			int64_t i = base + b * step;

			id[b] = i < end * topk ? idx[i] : -1;
			weight[b] = weighted && i < end * topk ? weights[i] : 0.0f;
		}
#pragma unroll
		for (int b = 0; b < BATCH; b++) {
			int64_t i = base + b * step;
			int e = local_expert(c, id[b]);

			if (i >= end * topk) {
				break;
			}
			if (p.recv_topk_idx && p.begin.topk_dtype == MOEEP_INT32) {
				((int32_t *)p.recv_topk_idx)[i] = e;
			} else if (p.recv_topk_idx) {
				((int64_t *)p.recv_topk_idx)[i] = e;
			}
			if (weighted) {
				p.recv_topk_weights[i] = e >= 0 ? weight[b] : 0.0f;
			}
		}
	}
}

/* Their scales, four at a time. */
DEV void write_wide_scales(const struct job &j, const struct moeep_dev_scales &scales, int64_t begin,
			   int64_t end, int thread, int step)
{
	const struct moeep_dev_context &c = j.p.c;
	struct walk w = walk_of(begin, thread, step, scales.count / 4);

	while (w.row < end) {
		struct walk first = w;
		uint4 v[BATCH];

#pragma unroll
		for (int b = 0; b < BATCH; b++) {
			if (w.row < end) {
				v[b] = ((const uint4 *)record_scales(c, c.rank, w.row))[w.word];
			}
			walk_on(&w);
		}
#pragma unroll
		for (int b = 0; b < BATCH; b++) {
			if (first.row < end) {
				((uint4 *)((char *)scales.base +
					   first.row * scales.stride * 4))[first.word] = v[b];
			}
			walk_on(&first);
		}
	}
}

/* The outputs of records [begin, end), which have come from `source`, but for the rows. */
DEV void write_records(const struct job &j, int source, int64_t begin, int64_t end, int64_t thread,
		       int64_t step)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	const struct moeep_dev_context &c = p.c;
	struct moeep_dev_scales scales = p.recv_scales;

	write_choices(j, begin, end, thread, step);
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
	if (!scales.base || !(j.plan.given & MOEEP_DEV_GIVEN_SCALES)) {
		return;
	}
	scales.dtype = j.plan.scale_dtype;
	scales.count = j.plan.scale_count;
	if (scales.stride == 0) {
		scales.stride = scales.count;
	}
	if (wide_scales(scales)) {
		write_wide_scales(j, scales, begin, end, (int)thread, (int)step);
		return;
	}
	for (int64_t i = begin + thread / 32; i < end; i += step / 32) {
		warp_write_scales(scales, i, record_scales(c, c.rank, i));
	}
}

/* Index outputs behind the last row. */
DEV void fill_tail(const struct job &j, int64_t thread, int64_t step)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	int topk = j.plan.topk;
	int64_t rows = j.ends.first[p.c.num_ranks];

	for (int64_t i = rows * topk + thread; i < p.capacity * topk; i += step) {
		if (p.recv_topk_idx && p.begin.topk_dtype == MOEEP_INT32) {
			((int32_t *)p.recv_topk_idx)[i] = -1;
		} else if (p.recv_topk_idx) {
			((int64_t *)p.recv_topk_idx)[i] = -1;
		}
		if (p.recv_topk_weights) {
			p.recv_topk_weights[i] = 0.0f;
		}
	}
	for (int64_t row = rows + thread; row < p.capacity; row += step) {
		if (p.recv_src_token) {
			p.recv_src_token[row] = -1;
		}
		if (p.recv_src_rank) {
			p.recv_src_rank[row] = -1;
		}
	}
}

/*
 * By the warps of `receivers` blocks that do not copy rows, in block `index` of these: records out, those that
 * have come, and if nobody copies rows the wait for these. False: the comm has failed.
 */
DEV bool records(const struct job &j, int index, int receivers)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	const struct moeep_dev_context &c = p.c;
	int first = p.copies ? 32 * MOVERS : 0;
	int here = (int)blockDim.x - first;
	int own = (int)threadIdx.x - first;
	int64_t thread = (int64_t)index * here + own;
	int64_t threads = (int64_t)receivers * here;
	int tokens = (int)p.num_tokens;
	bool ok = true;

	send_records(j, stretch_first(tokens, receivers, index),
		     stretch_first(tokens, receivers, index + 1), own, here);
	records_sync(here);
	if (own == 0 &&
	    arrive(&c.state->ticket[MOEEP_DEV_TICKET_RECORDS], (uint32_t)receivers)) {
		publish_records(c, j.plan.epoch);
	}
	for (int i = 0; i < c.num_ranks && ok; i++) {
		/* This rank's own first: they are there. */
		int source = (c.rank + i) % c.num_ranks;
		int64_t begin = j.ends.first[source];
		int64_t end = j.ends.first[source + 1];
		uint64_t seen;

		if (LANE == 0) {
			ok = wait_word<true>(
				c, flag_at(c, c.rank, c.window.ht_record_flag, source),
				flag_word(j.plan.epoch, 0), source, MOEEP_DEV_RECORDS, &seen);
		}
		ok = __shfl_sync(FULL, ok, 0);
		/* Lane 0 has acquired for all. */
		__syncwarp();
		end = end < p.capacity ? end : p.capacity;
		if (ok && !p.expert_major && begin < end) {
			write_records(j, source, begin, end, thread, threads);
		}
	}
	if (ok && !p.expert_major && (p.call_flags & MOEEP_DISPATCH_FILL_TAIL)) {
		fill_tail(j, thread, threads);
	}
	return ok && (p.copies || wait_all_rows(j, (int)thread, (int)threads));
}

#endif
