/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_expand.cu - expert-major HT dispatch: from the records and rows in the window to the
 * outputs, a row for each choice.
 *
 * Each block has a stretch of the records. Choices before it are counted by expert, so the positions of
 * its own follow without asking another block.
 */
#include "ht_common.cuh"

/* Count the choices of this rank's experts in records [0, end). */
DEV void count_before(const struct moeep_ht_expand_params &p, int *hist, int64_t end)
{
	const struct moeep_dev_context &c = p.c;
	const int32_t *idx = record_idx(c, c.rank, 0, p.plan->topk);

	for (int64_t i = threadIdx.x; i < end * p.plan->topk; i += blockDim.x) {
		int e = local_expert(c, idx[i]);

		if (e >= 0) {
			atomicAdd(&hist[e], 1);
		}
	}
}

/* By one warp: rows of the choices of records [first, last), 32 choices at a time, in order. */
DEV void number_choices(const struct moeep_ht_expand_params &p, int *hist, int64_t first,
			int64_t last, bool fits)
{
	const struct moeep_dev_context &c = p.c;
	int topk = p.plan->topk;
	const int32_t *idx = record_idx(c, c.rank, 0, topk);
	const float *weights = record_weights(c, c.rank, 0, topk);

	for (int64_t i = first * topk; i < last * topk; i += 32) {
		int64_t at = i + LANE;
		bool in = at < last * topk;
		int e = in ? local_expert(c, idx[at]) : -1;
		unsigned same = __match_any_sync(FULL, e);
		int64_t row = -1;

		if (e >= 0) {
			row = (int64_t)p.route.expert_offset[e] + hist[e] +
			      __popc(same & ((1u << LANE) - 1u));
		}
		__syncwarp();
		if (e >= 0 && LANE == __ffs((int)same) - 1) {
			hist[e] += __popc(same);
		}
		__syncwarp();
		if (in) {
			p.route.record_rows[at] = e < 0 ? -1 : fits ? row : -2;
			p.route.record_weights[at] = weights[at];
		}
	}
}

/* A warp writes one choice's row, all but the row itself. */
DEV void write_choice(const struct moeep_ht_expand_params &p, int64_t record, int source, int k,
		      int64_t row)
{
	const struct moeep_dev_context &c = p.c;
	int topk = p.plan->topk;

	if (LANE == 0) {
		if (p.recv_src_token) {
			p.recv_src_token[row] = *record_token(c, c.rank, record);
		}
		if (p.recv_src_rank) {
			p.recv_src_rank[row] = source;
		}
		if (p.recv_expert) {
			p.recv_expert[row] =
				local_expert(c, record_idx(c, c.rank, record, topk)[k]);
		}
		if (p.recv_topk_weights && (p.plan->given & MOEEP_DEV_GIVEN_WEIGHTS)) {
			p.recv_topk_weights[row] = record_weights(c, c.rank, record, topk)[k];
		}
	}
}

DEV struct moeep_dev_scales scales_of(const struct moeep_ht_expand_params &p)
{
	struct moeep_dev_scales scales = p.recv_scales;

	scales.dtype = p.plan->scale_dtype;
	scales.count = p.plan->scale_count;
	if (scales.stride == 0) {
		scales.stride = scales.count;
	}
	if (!(p.plan->given & MOEEP_DEV_GIVEN_SCALES)) {
		scales.base = NULL;
	}
	return scales;
}

/* A warp writes a record's rows. */
DEV void expand_record(const struct moeep_ht_expand_params &p, int64_t record,
		       const struct moeep_dev_scales &scales)
{
	const struct moeep_dev_context &c = p.c;
	int topk = p.plan->topk;
	int source = record_source(p.route, record, c.num_ranks);
	const char *from = window_at(c, c.rank, c.window.rows) + (uint64_t)record * p.row_bytes;

	for (int half = 0; half * 32 < topk; half++) {
		int k = half * 32 + LANE;
		int64_t row = k < topk ? p.route.record_rows[record * topk + k] : -1;
		unsigned valid = __ballot_sync(FULL, row >= 0);
		const char *mine = p.recv_x + (row >= 0 ? (uint64_t)row * p.row_bytes : 0);

		for (int64_t base = LANE * 16;
		     valid && p.recv_x && __any_sync(FULL, base < (int64_t)p.row_bytes);
		     base += 32 * 16 * 4) {
			uint4 v[4];

#pragma unroll
			for (int u = 0; u < 4; u++) {
				if (base + u * 512 < (int64_t)p.row_bytes) {
					v[u] = *(const uint4 *)(from + base + u * 512);
				}
			}
			for (unsigned m = valid; m; m &= m - 1) {
				char *to = (char *)warp_pointer(mine, __ffs((int)m) - 1);

#pragma unroll
				for (int u = 0; u < 4; u++) {
					if (base + u * 512 < (int64_t)p.row_bytes) {
						*(uint4 *)(to + base + u * 512) = v[u];
					}
				}
			}
		}
		for (unsigned m = valid; m; m &= m - 1) {
			int lane = __ffs((int)m) - 1;
			int64_t one = __shfl_sync(FULL, row, lane);

			write_choice(p, record, source, half * 32 + lane, one);
			if (scales.base) {
				warp_write_scales(scales, one, record_scales(c, c.rank, record));
			}
		}
	}
}

/* A warp fills rows [first, last) that no choice has. */
DEV void fill_rows(const struct moeep_ht_expand_params &p, int64_t first, int64_t last, bool zero,
		   const struct moeep_dev_scales &scales)
{
	for (int64_t row = first; row < last; row++) {
		for (int64_t at = LANE * 16; zero && p.recv_x && at < (int64_t)p.row_bytes;
		     at += 32 * 16) {
			*(uint4 *)(p.recv_x + (uint64_t)row * p.row_bytes + at) =
				make_uint4(0, 0, 0, 0);
		}
		if (zero && scales.base) {
			warp_write_scales(scales, row, NULL);
		}
		if (LANE == 0) {
			if (p.recv_src_token) {
				p.recv_src_token[row] = -1;
			}
			if (p.recv_src_rank) {
				p.recv_src_rank[row] = -1;
			}
			if (p.recv_expert) {
				p.recv_expert[row] = -1;
			}
			if (p.recv_topk_weights) {
				p.recv_topk_weights[row] = 0.0f;
			}
		}
	}
}

/* shared: the counters of experts if they fit. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_SUM_THREADS, 1)
	moeep_kernel_ht_expand(const __grid_constant__ struct moeep_ht_expand_params p)
{
	DYNAMIC_SHARED(int, shared, 4);
	const struct moeep_dev_context &c = p.c;
	int *hist = p.scratch.hist ? p.scratch.hist + (int64_t)blockIdx.x * c.local_experts
				   : shared;
	int64_t warp = (int64_t)blockIdx.x * NUM_WARPS + WARP;
	int64_t warps = (int64_t)gridDim.x * NUM_WARPS;

	if (!kernel_begin(c)) {
		return;
	}
	if (p.plan->move) {
		int64_t records = p.route.state->num_records;
		int64_t first = records * blockIdx.x / gridDim.x;
		int64_t last = records * (blockIdx.x + 1) / gridDim.x;
		bool fits = p.route.state->num_rows <= p.capacity;
		struct moeep_dev_scales scales = scales_of(p);

		for (int e = (int)threadIdx.x; e < c.local_experts; e += (int)blockDim.x) {
			hist[e] = 0;
		}
		__syncthreads();
		count_before(p, hist, first);
		__syncthreads();
		if (WARP == 0) {
			number_choices(p, hist, first, last, fits);
		}
		__syncthreads();
		for (int64_t record = first + WARP; fits && record < last; record += NUM_WARPS) {
			expand_record(p, record, scales);
		}
		for (int64_t e = warp; fits && e < c.local_experts; e += warps) {
			fill_rows(p,
				  (int64_t)p.route.expert_offset[e] + p.route.expert_count[e],
				  p.route.expert_offset[e + 1],
				  (p.call_flags & MOEEP_DISPATCH_ZERO_PADDING) != 0, scales);
		}
		if (fits && (p.call_flags & MOEEP_DISPATCH_FILL_TAIL)) {
			for (int64_t row = p.route.state->num_rows + warp; row < p.capacity;
			     row += warps) {
				fill_rows(p, row, row + 1, false, scales);
			}
		}
	}
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_MOVED], gridDim.x) && threadIdx.x == 0) {
		finish_plan_result(c, *p.plan);
	}
}
