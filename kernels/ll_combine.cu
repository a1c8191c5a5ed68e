/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_combine.cu - low-latency combine.
 *
 * SEND sums the rows of each token that came here to one partial row, straight into the slot that
 * its source keeps for this rank; the last block raises one flag a rank. RECV sums the partial rows
 * of this rank's tokens. The flag carries, below the epoch, what ranks must agree on.
 */
#include "ll_common.cuh"

#define LOST_BIT 1u

/* dtype, unweighted and the dispatch's epoch; whoever differs is found by its flag. */
DEV uint64_t agreement(const struct moeep_ll_combine_params &p)
{
	return (uint64_t)(p.dtype & 15) << 1 | (uint64_t)(p.unweighted & 1) << 5 |
	       (p.route.state->ll_epoch & 0xffff) << 6;
}

/* A warp's part of the partial row of a token. */
DEV void send_partial(const struct moeep_ll_combine_params &p, uint64_t epoch, int source,
		      int64_t token, int part, int parts, bool weighted)
{
	const struct moeep_dev_context &c = p.c;
	int64_t at = ((int64_t)source * c.ll_max_tokens + token) * p.topk;
	int64_t units = (c.hidden + 255) / 256;
	int64_t first = cut(units, parts, part) * 256;
	int64_t last = cut(units, parts, part + 1) * 256;
	struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};
	bool here = false;
	char *to = ll_cslot(c, source, epoch, c.rank) + (uint64_t)token * p.partial_bytes;

	last = last < c.hidden ? last : c.hidden;
	/* The rows that are here, without gaps: term i at lane i % 32. */
	for (int half = 0; half * 32 < p.topk; half++) {
		int k = half * 32 + LANE;
		int64_t place = k < p.topk ? p.route.record_rows[at + k] : -1;
		unsigned valid = __ballot_sync(FULL, place >= 0 && p.x);
		int64_t row = (place >> 32) * p.capacity + (place & 0xffffffff);
		const char *mine = p.x + (uint64_t)row * p.row_bytes;
		float weight = k < p.topk ? p.route.record_weights[at + k] : 0.0f;

		if (place >= 0 && !p.x) {
			note_bad(c, MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_NO_X, c.rank,
				 (place & 0xffffffff) + 1, place >> 32);
		} else if (place >= 0 && (place & 0xffffffff) >= p.capacity) {
			note_bad(c, MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_X, place >> 32,
				 (place & 0xffffffff) + 1, p.capacity);
			mine = p.x;
		}
		here = here || __any_sync(FULL, place != -1);
		for (unsigned m = valid; m; m &= m - 1) {
			int lane = __ffs((int)m) - 1;
			const char *row_of = warp_pointer(mine, lane);
			float weight_of = __shfl_sync(FULL, weight, lane);

			add_term(&t, row_of, weight_of);
		}
	}
	if (!here) {
		return;
	}
	warp_sum<2>(t, {p.dtype, p.partial_dtype, weighted, NULL, to, first, last});
}

/* Warps share rows so that all of them have something to do. */
DEV int share(int64_t rows, int64_t hidden)
{
	int warps = (int)gridDim.x * NUM_WARPS;
	int64_t most = (hidden + 255) / 256;
	int64_t parts = rows > 0 && warps > rows ? warps / rows : 1;

	return (int)(parts < most ? parts : most);
}

DEV bool send_phase(const struct moeep_ll_combine_params &p, uint64_t epoch)
{
	const struct moeep_dev_context &c = p.c;
	bool weighted = p.route.state->weighted && !p.unweighted;
	int warps = (int)gridDim.x * NUM_WARPS;
	int64_t total = 0;
	int parts;

	for (int source = 0; source < c.num_ranks; source++) {
		total += p.route.ll_tokens[source];
	}
	parts = share(total, c.hidden);
	/* The slot is free once its owner has summed what it held, two epochs ago. */
	if (!block_wait_all(c, c.window.ll_creceived, flag_word(epoch_before(epoch, 2), 0),
			    MOEEP_DEV_CREDIT, NULL)) {
		return false;
	}
	for (int64_t u = (int64_t)WARP * gridDim.x + blockIdx.x; u < total * parts; u += warps) {
		int64_t token = u / parts;
		int source = 0;

		while (token >= p.route.ll_tokens[source]) {
			token -= p.route.ll_tokens[source++];
		}
		send_partial(p, epoch, source, token, (int)(u % parts), parts, weighted);
	}
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_CSEND], gridDim.x)) {
		uint64_t lost = p.route.state->overflow ? LOST_BIT : 0;

		/* Pairs with the wait for the rows in recv_phase() of each rank. */
		block_publish(c, by_epoch(c, c.window.ll_csent, epoch), flag_word(epoch, lost | agreement(p)));
		if (threadIdx.x == 0) {
			c.state->ll_cepoch = epoch;
			if (!(p.phases & PHASE_RECV)) {
				finish_result(c, MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0);
			}
		}
	}
	return true;
}

/* A warp's part of a token's sum. */
DEV void recv_sum(const struct moeep_ll_combine_params &p, uint64_t epoch, int64_t token, int part,
		  int parts)
{
	const struct moeep_dev_context &c = p.c;
	int64_t units = (c.hidden + 255) / 256;
	int64_t first = cut(units, parts, part) * 256;
	int64_t last = cut(units, parts, part + 1) * 256;
	const char *bias = p.bias ? p.bias + (uint64_t)token * p.row_bytes : NULL;
	char *out = p.out + (uint64_t)token * p.row_bytes;
	struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};
	int rank[2];

	last = last < c.hidden ? last : c.hidden;
	for (int half = 0; half < 2; half++) {
		int k = half * 32 + LANE;
		int id = k < p.topk ? p.route.topk_idx[token * p.topk + k] : -1;

		rank[half] = id < 0 ? -1 : expert_rank(c, id);
	}
	t.count = warp_distinct(&rank[0], &rank[1], p.topk > 32);
	for (int half = 0; half < 2; half++) {
		if (rank[half] >= 0) {
			t.row[half] = ll_cslot(c, c.rank, epoch, rank[half]) +
				      (uint64_t)token * p.partial_bytes;
		}
	}
	warp_sum<2>(t, {p.partial_dtype, p.dtype, false, bias, out, first, last});
}

/* What the flags of the expert ranks say. False: the comm has failed. */
DEV bool read_flags(const struct moeep_ll_combine_params &p, uint64_t epoch, int *lost_at)
{
	const struct moeep_dev_context &c = p.c;
	bool ok = true;

	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		uint64_t seen = 0;

		if (p.route.send_count[rank] == 0) {
			continue;
		}
		ok = ok && wait_word(c, flag_at(c, c.rank, by_epoch(c, c.window.ll_csent, epoch), rank),
				     flag_word(epoch, 0), rank, MOEEP_DEV_PARTIALS, &seen);
		if (ok) {
			if ((seen & 0xfffffe) != agreement(p)) {
				raise(c, MOEEP_ERR_MISMATCH, rank, 5, epoch,
				      flag_word(epoch, agreement(p)), seen);
				ok = false;
			}
			if (seen & LOST_BIT) {
				atomicMax(lost_at, rank);
			}
		}
	}
	return __syncthreads_and(ok) != 0;
}

DEV bool recv_phase(const struct moeep_ll_combine_params &p, uint64_t epoch)
{
	const struct moeep_dev_context &c = p.c;
	__shared__ int lost_at;
	int warps = (int)gridDim.x * NUM_WARPS;
	int parts = share(p.num_tokens, c.hidden);

	if (threadIdx.x == 0) {
		lost_at = -1;
	}
	__syncthreads();
	if (!read_flags(p, epoch, &lost_at)) {
		return false;
	}
	for (int64_t u = (int64_t)WARP * gridDim.x + blockIdx.x; u < p.num_tokens * parts;
	     u += warps) {
		recv_sum(p, epoch, u / parts, (int)(u % parts), parts);
	}
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_CRECV], gridDim.x)) {
		/* Pairs with the wait for credit in send_phase() of each rank. */
		block_publish(c, c.window.ll_creceived, flag_word(epoch, 0));
		count_traffic(c, MOEEP_DEV_COMBINE_ROWS, p.route.send_count, p.partial_bytes);
		if (threadIdx.x == 0) {
			c.state->ll_crecv = epoch;
			if (lost_at >= 0) {
				finish_result(c, MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_LOST, lost_at,
					      0, 0);
			} else {
				finish_result(c, MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0);
			}
		}
	}
	return true;
}

extern "C" __global__ void __launch_bounds__(MOEEP_DEV_LL_THREADS, 1)
	moeep_kernel_ll_combine(const __grid_constant__ struct moeep_ll_combine_params p)
{
	const struct moeep_dev_context &c = p.c;
	/* On their way while the kernel begins; without `shared` there is no state. */
	uint64_t sent = c.shared ? c.state->ll_cepoch : 0;
	uint64_t received = c.shared ? c.state->ll_crecv : 0;
	uint64_t send_epoch = (sent + 1) & EPOCH_MASK;
	uint64_t recv_epoch = (received + 1) & EPOCH_MASK;
	bool ok = kernel_begin(c);

	if (!ok) {
		return;
	}
	if (p.phases & PHASE_SEND) {
		ok = send_phase(p, send_epoch);
	}
	if (ok && (p.phases & PHASE_RECV)) {
		ok = recv_phase(p, recv_epoch);
	}
	if (!ok && threadIdx.x == 0) {
		put_dead(c);
	}
}
