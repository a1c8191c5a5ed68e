/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_combine.cu - low-latency combine.
 *
 * SEND sums the rows of each token that came here to one partial row, straight into the slot that
 * its source keeps for this rank. RECV sums the partial rows of this rank's tokens as they come. A slot's
 * first word says what ranks must agree on, and whether rows were lost.
 */
#include "ll_common.cuh"
#include "ll_elements.cuh"

/* dtype, unweighted and the dispatch's epoch. */
DEV uint32_t agreement(const struct moeep_ll_combine_params &p)
{
	return (uint32_t)(p.dtype & 15) | (uint32_t)(p.unweighted & 1) << 4 |
	       (uint32_t)(p.route.state->ll_epoch & 0xffff) << 5;
}

/* Those rows of a token that are here, without gaps: term i at lane i % 32. False: it has none here. */
DEV bool local_terms(const struct moeep_ll_combine_params &p, int64_t record, struct terms *t)
{
	bool here = false;

#pragma unroll
	for (int half = 0; half < 2; half++) {
		int k = half * 32 + LANE;
		int64_t place = k < p.topk ? p.route.record_rows[record + k] : -1;
		unsigned valid = __ballot_sync(FULL, place >= 0 && p.x);
		int64_t row = (place >> 32) * p.capacity + (place & 0xffffffff);
		const char *mine = p.x + (uint64_t)row * p.row_bytes;
		float weight = k < p.topk ? p.route.record_weights[record + k] : 0.0f;

		if (place >= 0 && !p.x) {
			note_bad(p.c, MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_NO_X, p.c.rank,
				 (place & 0xffffffff) + 1, place >> 32);
		} else if (place >= 0 && (place & 0xffffffff) >= p.capacity) {
			note_bad(p.c, MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_X, place >> 32,
				 (place & 0xffffffff) + 1, p.capacity);
			mine = p.x;
		}
		here = here || __any_sync(FULL, place != -1);
		for (unsigned m = valid; m; m &= m - 1) {
			int lane = __ffs((int)m) - 1;
			const char *row_of = warp_pointer(mine, lane);
			float weight_of = __shfl_sync(FULL, weight, lane);

			add_term(t, row_of, weight_of);
		}
	}
	return here;
}

/* Rows whose elements are on their way at once. */
#define AT_ONCE 4

/* A warp's parcel of the partial row of a token. False: the token has no row here. */
template <int E>
DEV bool sum_local(const struct moeep_ll_combine_params &p, int source, int token, int parcel,
		   int chunks, uint4 *v)
{
	int64_t record = (source * p.c.ll_max_tokens + token) * p.topk;
	bool weighted = p.route.state->weighted && !p.unweighted;
	struct terms t = {{NULL, NULL}, {1.0f, 1.0f}, 0};
	float total[CHUNKS][E] = {};

	if (!local_terms(p, record, &t)) {
		return false;
	}
#pragma unroll 1
	for (int base = 0; base < t.count; base += AT_ONCE) {
		uint4 row[AT_ONCE][CHUNKS];

#pragma unroll
		for (int i = 0; i < AT_ONCE; i++) {
			int k = base + i;

			if (k < t.count) {
				load_chunks<E>(warp_pointer(k < 32 ? t.row[0] : t.row[1], k & 31),
					       p.dtype, parcel, chunks, row[i]);
			}
		}
#pragma unroll
		for (int i = 0; i < AT_ONCE; i++) {
			int k = base + i;
			float weight = 1.0f;

			if (k >= t.count) {
				break;
			}
			if (weighted) {
				weight = __shfl_sync(FULL, k < 32 ? t.weight[0] : t.weight[1],
						     k & 31);
			}
#pragma unroll
			for (int u = 0; u < CHUNKS; u++) {
				if (u < chunks) {
					add_elements<E>(total[u], row[i][u], p.dtype, weight, k == 0);
				}
			}
		}
	}
#pragma unroll
	for (int u = 0; u < CHUNKS; u++) {
		v[u] = elements_of_floats<E>(total[u], p.partial_dtype);
	}
	return true;
}

/* A parcel of the partial row that `rank` has for a token of `source`, in the slot that is for it. */
DEV char *partial_at(const struct moeep_ll_combine_params &p, uint64_t epoch, int source, int rank,
		     int token, int parcel)
{
	return ll_cslot(p.c, source, epoch, rank) + MOEEP_DEV_LL_HEADER +
	       parcel_number(token, parcel, p.partial_bytes) * MOEEP_DEV_PARCEL_ROOM;
}

DEV void send_partial(const struct moeep_ll_combine_params &p, uint64_t epoch, int source, int token,
		      int parcel)
{
	int chunks = chunks_in(parcel, p.partial_bytes);
	uint4 v[CHUNKS];

	if (p.partial_dtype == MOEEP_FP32 ? sum_local<4>(p, source, token, parcel, chunks, v)
					  : sum_local<8>(p, source, token, parcel, chunks, v)) {
		store_parcel(partial_at(p, epoch, source, p.c.rank, token, parcel), v, chunks, epoch);
	}
}

/*
 * Blocks that will receive have this rank's own tokens to sum until the others' sums come. tokens: [R] in shared
 * memory.
 */
DEV void send_phase(const struct moeep_ll_combine_params &p, uint64_t epoch, int *tokens)
{
	const struct moeep_dev_context &c = p.c;
	struct crew senders = send_crew(p.senders);
	struct crew crew = senders.index < 0 ? recv_crew(p.senders) : senders;
	int parcels = parcels_of(p.partial_bytes);
	int u = WARP * crew.count + crew.index;

	for (int source = (int)threadIdx.x; source < c.num_ranks; source += (int)blockDim.x) {
		tokens[source] = p.route.ll_tokens[source];
	}
	__syncthreads();
	for (int rank = (int)threadIdx.x; senders.index == 0 && rank < c.num_ranks;
	     rank += (int)blockDim.x) {
		store_whole16(ll_cslot(c, rank, epoch, c.rank), agreement(p),
			      (uint32_t)p.route.state->overflow, 0, tag_of(epoch));
	}
	for (int i = 1; i <= c.num_ranks; i++) {
		int source = c.rank + i < c.num_ranks ? c.rank + i : c.rank + i - c.num_ranks;
		int count = tokens[source] * parcels;

		if (p.senders != 0 && (source == c.rank) != (senders.index < 0)) {
			continue;
		}
		for (; u < count; u += crew.count * NUM_WARPS) {
			send_partial(p, epoch, source, u / parcels, u % parcels);
		}
		u -= count;
	}
}

/* A warp's parcel of a token's sum. False: the comm has failed. */
template <int E>
DEV bool recv_sum(const struct moeep_ll_combine_params &p, uint64_t epoch, int token, int parcel)
{
	const struct moeep_dev_context &c = p.c;
	int chunks = chunks_in(parcel, p.partial_bytes);
	int64_t first = first_chunk(parcel) * E;
	char *out = p.out + (uint64_t)token * p.row_bytes;
	float total[CHUNKS][E] = {};
	uint4 word[WORDS];
	uint4 v[CHUNKS];
	int rank[2];
	int count;

#pragma unroll
	for (int half = 0; half < 2; half++) {
		int k = half * 32 + LANE;
		int id = k < p.topk ? p.route.topk_idx[(int64_t)token * p.topk + k] : -1;

		rank[half] = id < 0 ? -1 : expert_rank(c, id);
	}
	count = warp_distinct(&rank[0], &rank[1], p.topk > 32);
	if (count > 0) {
		int now = __shfl_sync(FULL, rank[0], 0);

		load_parcel(word, partial_at(p, epoch, c.rank, now, token, parcel), chunks);
	}
#pragma unroll 1
	for (int k = 0; k < count; k++) {
		int now = __shfl_sync(FULL, k < 32 ? rank[0] : rank[1], k & 31);
		int next = __shfl_sync(FULL, k + 1 < 32 ? rank[0] : rank[1], (k + 1) & 31);
		struct writer from = {now, MOEEP_DEV_PARTIALS, epoch};

		if (!take_parcel(c, word, partial_at(p, epoch, c.rank, now, token, parcel), chunks,
				 from, v)) {
			return false;
		}
		if (k + 1 < count) {
			load_parcel(word, partial_at(p, epoch, c.rank, next, token, parcel), chunks);
		}
#pragma unroll
		for (int u = 0; u < CHUNKS; u++) {
			if (u < chunks) {
				add_elements<E>(total[u], v[u], p.partial_dtype, 1.0f, k == 0);
			}
		}
	}
	if (p.bias) {
		const char *bias = p.bias + (uint64_t)token * p.row_bytes;

		load_chunks<E>(bias, p.dtype, parcel, chunks, v);
#pragma unroll
		for (int u = 0; u < CHUNKS; u++) {
			float values[E];

			floats_of_elements<E>(v[u], p.dtype, values);
#pragma unroll
			for (int i = 0; i < E; i++) {
				/* Alone it is copied, a NaN as it is. */
				total[u][i] = count == 0 ? values[i]
							 : __fadd_rn(total[u][i], values[i]);
			}
		}
	}
#pragma unroll
	for (int u = 0; u < CHUNKS; u++) {
		if (u < chunks) {
			store_elements<E>(out, p.dtype, first + u * 32 * E,
					  elements_of_floats<E>(total[u], p.dtype));
		}
	}
	return true;
}

/*
 * By one block: what the expert ranks of this rank's tokens say of their call. What they have lost is noted for
 * the last block.
 */
DEV bool read_headers(const struct moeep_ll_combine_params &p, uint64_t epoch)
{
	const struct moeep_dev_context &c = p.c;
	bool ok = true;

	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		struct writer from = {rank, MOEEP_DEV_PARTIALS, epoch};
		uint4 header = make_uint4(0, 0, 0, 0);

		if (p.route.send_count[rank] == 0) {
			continue;
		}
		ok = ok && take_word(c, ll_cslot(c, c.rank, epoch, rank), from, &header);
		if (ok && header.x != agreement(p)) {
			raise(c, MOEEP_ERR_MISMATCH, rank, 5, epoch, flag_word(epoch, agreement(p)),
			      flag_word(epoch, header.x));
			ok = false;
		}
		if (ok && header.y != 0) {
			atomicMax(&c.state->lost, rank + 1);
			/* The last block reads it, behind a ticket that does not order it. */
			__threadfence();
		}
	}
	return ok;
}

DEV bool recv_phase(const struct moeep_ll_combine_params &p, uint64_t epoch)
{
	struct crew crew = recv_crew(p.senders);
	int parcels = parcels_of(p.partial_bytes);
	int total = (int)p.num_tokens * parcels;
	bool ok = true;

	if (crew.index < 0) {
		return true;
	}
	if (crew.index == crew.count - 1) {
		ok = read_headers(p, epoch);
	}
	ok = __syncthreads_and(ok);
	for (int u = WARP * crew.count + crew.index; u < total && ok; u += crew.count * NUM_WARPS) {
		ok = p.partial_dtype == MOEEP_FP32 ? recv_sum<4>(p, epoch, u / parcels, u % parcels)
						   : recv_sum<8>(p, epoch, u / parcels, u % parcels);
	}
	return __syncthreads_and(ok) != 0;
}

/* By the last block: all is sent, or has been summed. */
DEV void finish(const struct moeep_ll_combine_params &p, uint64_t sent, uint64_t received)
{
	const struct moeep_dev_context &c = p.c;

	if (p.phases & PHASE_RECV) {
		/* Pairs with the wait for credit in ll_begin() of each rank. */
		block_publish(c, c.window.ll_creceived, flag_word(received, 0));
		count_traffic(c, whole_block(), MOEEP_DEV_COMBINE_ROWS, p.route.send_count, p.partial_bytes);
	}
	if (threadIdx.x != 0) {
		return;
	}
	if (p.phases & PHASE_SEND) {
		c.state->ll_cepoch = sent;
	}
	if (p.phases & PHASE_RECV) {
		int32_t lost = *(volatile int32_t *)&c.state->lost;

		c.state->ll_crecv = received;
		if (lost != 0) {
			c.state->lost = 0;
			finish_result(c, MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_LOST, lost - 1, 0, 0);
			return;
		}
	}
	finish_result(c, MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0);
}

extern "C" __global__ void __launch_bounds__(MOEEP_DEV_LL_THREADS, 1)
	moeep_kernel_ll_combine(const __grid_constant__ struct moeep_ll_combine_params p)
{
	DYNAMIC_SHARED(int, shared, 4);
	launch_wait();
	const struct moeep_dev_context &c = p.c;
	/* On their way while the kernel begins; without `shared` there is no state. */
	uint64_t sent = c.shared ? c.state->ll_cepoch : 0;
	uint64_t received = c.shared ? c.state->ll_crecv : 0;
	uint64_t send_epoch = (sent + 1) & EPOCH_MASK;
	uint64_t recv_epoch = (received + 1) & EPOCH_MASK;
	bool ok = true;

	if (!ll_begin(c, p.phases & PHASE_SEND, c.window.ll_creceived, send_epoch)) {
		return;
	}
	if (p.phases & PHASE_SEND) {
		send_phase(p, send_epoch, shared);
	}
	if (p.phases & PHASE_RECV) {
		ok = recv_phase(p, recv_epoch);
	}
	if (ok && last_block(&c.state->ticket[MOEEP_DEV_TICKET_LL_COMBINE], gridDim.x)) {
		finish(p, send_epoch, recv_epoch);
	}
	if (!ok && threadIdx.x == 0) {
		put_dead(c);
	}
}
