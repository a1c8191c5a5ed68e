/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_dispatch.cu - low-latency dispatch.
 *
 * SEND writes each token once to every rank that holds one of its experts, cast on the way, into
 * the slot that the rank keeps for this source; and its choices to all ranks. The last block raises
 * one flag a rank. RECV counts the choices before each block's share of the tokens, which gives
 * positions that depend on nothing but the routing, and copies rows to them.
 */
#include "ll_common.cuh"

struct send_row {
	const char *from; /* the token's row */
	int64_t token;
	const char *slot[2]; /* of each destination, a lane each */
	int count;
};

/* Bytes [first, last) of a row, as they are. */
DEV void send_copy(const struct moeep_ll_dispatch_params &p, const struct send_row &row,
		   int64_t first, int64_t last)
{
	uint64_t offset = p.c.window.ll_slot_rows + (uint64_t)row.token * p.row_bytes;

	for (int64_t base = first + LANE * 16; __any_sync(FULL, base < last); base += 32 * 16 * 4) {
		uint4 v[4];

#pragma unroll
		for (int u = 0; u < 4; u++) {
			if (base + u * 512 < last) {
				v[u] = *(const uint4 *)(row.from + base + u * 512);
			}
		}
		for (int i = 0; i < row.count; i++) {
			char *to = (char *)warp_pointer(i < 32 ? row.slot[0] : row.slot[1],
							i & 31) +
				   offset;

#pragma unroll
			for (int u = 0; u < 4; u++) {
				if (base + u * 512 < last) {
					*(uint4 *)(to + base + u * 512) = v[u];
				}
			}
		}
	}
}

/* OCP E4M3 of a float, to nearest even, saturating, NaN with its sign. */
DEV uint32_t e4m3_of(float value)
{
	uint32_t bits = __float_as_uint(value);
	uint32_t sign = bits >> 24 & 0x80u;
	uint32_t magnitude = bits & 0x7fffffffu;
	uint32_t bounded = magnitude > 0x43e00000u ? 0x43e00000u : magnitude;
	uint32_t normal = ((bounded + 0x7ffffu + (bounded >> 20 & 1u)) >> 20) - (120u << 3);
	uint32_t small = __float_as_uint(__fadd_rn(__uint_as_float(bounded), 16384.0f)) -
			 __float_as_uint(16384.0f);
	uint32_t code = bounded < (121u << 23) ? small : normal;

	return sign | (magnitude > 0x7f800000u ? 0x7fu : code);
}

DEV uint32_t e4m3_of_4(const float *v)
{
#if HAVE_E4M3
	uint32_t low = e4m3x2_of_floats(v[0], v[1]);
	uint32_t high = e4m3x2_of_floats(v[2], v[3]);

	if (!(isnan(v[0]) || isnan(v[1]) || isnan(v[2]) || isnan(v[3]))) {
		return low | high << 16;
	}
#endif
	return e4m3_of(v[0]) | e4m3_of(v[1]) << 8 | e4m3_of(v[2]) << 16 | e4m3_of(v[3]) << 24;
}

/* Element i as a float; unlike the conversion it keeps a NaN's sign. */
template <int DTYPE> DEV float element_bits(const uint4 &v, int i)
{
	uint32_t half = i % 2 ? word_of(v, i / 2) >> 16 : word_of(v, i / 2) & 0xffffu;

	if (DTYPE == MOEEP_FP16 && (half & 0x7fffu) > 0x7c00u) {
		return __uint_as_float((half & 0x8000u) << 16 | 0x7fc00000u);
	}
	return i % 2 ? high_of<DTYPE>(word_of(v, i / 2)) : low_of<DTYPE>(word_of(v, i / 2));
}

/* Elements [first, last) of a row of DTYPE cast to E4M3; first is a multiple of 256. */
template <int DTYPE>
DEV void send_quantized(const struct moeep_ll_dispatch_params &p, const struct send_row &row,
			int64_t first, int64_t last)
{
	uint64_t offset = p.c.window.ll_slot_rows + (uint64_t)row.token * p.row_bytes;
	uint64_t scales = p.c.window.ll_slot_scales + (uint64_t)row.token * p.scale_bytes;

	for (int64_t at = first + LANE * 8; __any_sync(FULL, at < last); at += 256) {
		uint4 in = make_uint4(0, 0, 0, 0);
		float v[8];
		uint32_t largest = 0;
		float most, scale, multiplier;
		uint2 q;

		if (at < last) {
			in = *(const uint4 *)(row.from + at * 2);
		}
#pragma unroll
		for (int i = 0; i < 8; i++) {
			uint32_t magnitude;

			v[i] = element_bits<DTYPE>(in, i);
			magnitude = __float_as_uint(v[i]) & 0x7fffffffu;
			/* NaNs, above infinity, count as zero. */
			magnitude = magnitude > 0x7f800000u ? 0 : magnitude;
			largest = magnitude > largest ? magnitude : largest;
		}
		/* 16 lanes have the 128 elements of a scale. */
#pragma unroll
		for (int d = 8; d > 0; d /= 2) {
			uint32_t other = __shfl_xor_sync(FULL, largest, d);

			largest = other > largest ? other : largest;
		}
		most = __uint_as_float(largest);
		most = most > 1e-4f ? most : 1e-4f;
		scale = __fmul_rn(most, 1.0f / 448.0f);
		multiplier = __fdiv_rn(448.0f, most);
		if (p.quant != MOEEP_QUANT_FP8) {
			uint32_t bits = __float_as_uint(scale);
			uint32_t exponent =
				(bits >> 23) + ((bits & 0x7fffffu) != 0 && bits < 0x7f800000u);

			scale = __uint_as_float(exponent << 23);
			multiplier = __fdiv_rn(1.0f, scale);
		}
#pragma unroll
		for (int i = 0; i < 8; i++) {
			/* A product of NaN would lose its sign. */
			v[i] = isnan(v[i]) ? v[i] : __fmul_rn(v[i], multiplier);
		}
		q = make_uint2(e4m3_of_4(v), e4m3_of_4(v + 4));
		for (int i = 0; i < row.count; i++) {
			char *to = (char *)warp_pointer(i < 32 ? row.slot[0] : row.slot[1], i & 31);

			if (at < last) {
				*(uint2 *)(to + offset + at) = q;
			}
			if (at < last && LANE % 16 == 0) {
				if (p.quant == MOEEP_QUANT_FP8_UE8M0) {
					*(uint8_t *)(to + scales + at / 128) =
						(uint8_t)(__float_as_uint(scale) >> 23);
				} else {
					*(float *)(to + scales + at / 128 * 4) = scale;
				}
			}
		}
	}
}

/* Tell every rank the token's choices, and keep them. */
DEV void send_choices(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int64_t token,
		      const int *id)
{
	const struct moeep_dev_context &c = p.c;

	for (int half = 0; half < 2; half++) {
		int k = half * 32 + LANE;
		int64_t at = token * p.topk + k;
		float weight;

		if (k >= p.topk) {
			break;
		}
		weight = p.given ? p.topk_weights[at] : 0.0f;
		p.route.topk_idx[at] = id[half];
		for (int rank = 0; rank < c.num_ranks; rank++) {
			char *slot = ll_slot(c, rank, epoch, c.rank);

			((int32_t *)(slot + 64))[at] = id[half];
			if (p.given) {
				((float *)(slot + c.window.ll_slot_weights))[at] = weight;
			}
		}
	}
}

/* One warp's share of a token. */
DEV void send_token(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int64_t token,
		    int part, int parts)
{
	const struct moeep_dev_context &c = p.c;
	bool cast = p.quant != MOEEP_QUANT_NONE;
	/* What a part begins and ends with: 16 bytes of a row, or 256 elements. */
	int64_t unit = cast ? 512 : 16;
	int64_t bytes = cast ? (int64_t)c.hidden * 2 : (int64_t)p.row_bytes;
	int64_t units = (bytes + unit - 1) / unit;
	int64_t first = cut(units, parts, part) * unit;
	int64_t last = cut(units, parts, part + 1) * unit;
	struct send_row row = {p.x + (uint64_t)token * (uint64_t)bytes, token, {NULL, NULL}, 0};
	int id[2], rank[2];

	last = last < bytes ? last : bytes;
	/* On its way while the choices are. */
	for (int64_t at = first + LANE * 128; at < last; at += 32 * 128) {
		prefetch(row.from + at);
	}
	for (int half = 0; half < 2; half++) {
		int k = half * 32 + LANE;

		id[half] = -1;
		if (k < p.topk) {
			id[half] = check_choice(
				c, raw_choice(p.topk_idx, p.topk_dtype, token * p.topk + k), token,
				k);
		}
		rank[half] = id[half] < 0 ? -1 : expert_rank(c, id[half]);
	}
	if (part == 0) {
		send_choices(p, epoch, token, id);
	}
	row.count = warp_distinct(&rank[0], &rank[1], p.topk > 32);
	for (int half = 0; half < 2; half++) {
		if (rank[half] >= 0) {
			row.slot[half] = ll_slot(c, rank[half], epoch, c.rank);
		}
	}
	if (row.count == 0) {
		return;
	}
	if (!cast) {
		send_copy(p, row, first, last);
	} else if (p.dtype == MOEEP_BF16) {
		send_quantized<MOEEP_BF16>(p, row, first / 2, last / 2);
	} else {
		send_quantized<MOEEP_FP16>(p, row, first / 2, last / 2);
	}
}

/*
 * Tokens for each rank; by one block, while it would wait for the others' rows. counts: [R] in shared
 * memory. A thread for a token: its choices are all on their way at once.
 */
DEV void count_sent(const struct moeep_ll_dispatch_params &p, int *counts)
{
	const struct moeep_dev_context &c = p.c;

	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		counts[rank] = 0;
	}
	__syncthreads();
	for (int base = 0; base < c.num_ranks; base += 64) {
		for (int64_t token = threadIdx.x; token < p.num_tokens; token += blockDim.x) {
			uint64_t ranks = 0;

#pragma unroll 8
			for (int k = 0; k < p.topk; k++) {
				int64_t id = raw_choice(p.topk_idx, p.topk_dtype,
							token * p.topk + k);
				/* A bad one was noted when it was sent; the result may be out already. */
				bool good = id >= 0 && id < c.num_experts;
				unsigned rank = (unsigned)(expert_rank(c, good ? (int)id : 0) - base);

				ranks |= good && rank < 64u ? UINT64_C(1) << rank : 0;
			}
			for (; ranks; ranks &= ranks - 1) {
				atomicAdd(&counts[base + __ffsll((long long)ranks) - 1], 1);
			}
		}
	}
	__syncthreads();
	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		p.route.send_count[rank] = counts[rank];
	}
	__syncthreads();
}

/* False: the comm has failed. */
DEV bool send_phase(const struct moeep_ll_dispatch_params &p, uint64_t epoch)
{
	const struct moeep_dev_context &c = p.c;
	int warps = (int)gridDim.x * NUM_WARPS;
	int64_t most = p.quant == MOEEP_QUANT_NONE ? ((int64_t)p.row_bytes + 511) / 512
						   : (c.hidden + 255) / 256;
	int parts = 1;

	/* The slot is free once its owner has received what it held, two epochs ago. */
	if (!block_wait_all(c, c.window.ll_received, flag_word(epoch_before(epoch, 2), 0),
			    MOEEP_DEV_CREDIT, NULL)) {
		return false;
	}
	if (p.num_tokens > 0 && warps > p.num_tokens) {
		parts = (int)(warps / p.num_tokens);
		parts = parts < most ? parts : (int)most;
	}
	/* Neighbouring warps of different blocks share a token: all blocks have the same to do. */
	for (int64_t u = (int64_t)WARP * gridDim.x + blockIdx.x; u < p.num_tokens * parts;
	     u += warps) {
		send_token(p, epoch, u / parts, (int)(u % parts), parts);
	}
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_SEND], gridDim.x)) {
		for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
			struct ll_header *header =
				(struct ll_header *)ll_slot(c, rank, epoch, c.rank);

			*header = ll_header{p.dtype, p.quant, p.topk, p.given};
		}
		/* Others publish it. */
		__syncthreads();
		/* Pairs with the wait for the rows in recv_phase() of each rank. */
		block_publish(c, by_epoch(c, c.window.ll_sent, epoch), flag_word(epoch, (uint64_t)p.num_tokens));
		if (threadIdx.x == 0) {
			p.route.state->ll_epoch = epoch;
			c.state->ll_epoch = epoch;
			if (!(p.phases & PHASE_RECV)) {
				finish_result(c, MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0);
			}
		}
	}
	return true;
}

/* Ranks must agree on what rows are; whoever sees a difference ends the group. */
DEV void check_header(const struct moeep_ll_dispatch_params &p, int source, int64_t tokens,
		      const char *slot)
{
	const struct ll_header header = *(const struct ll_header *)slot;
	int field = header.dtype != p.dtype   ? 1
		    : header.quant != p.quant ? 2
		    : header.topk != p.topk   ? 3
					      : 0;

	/* A rank without tokens cannot have weights to give. */
	if (field == 0 && tokens > 0 && p.num_tokens > 0 && header.given != p.given) {
		field = 4;
	}
	if (field != 0) {
		raise(p.c, MOEEP_ERR_MISMATCH, source, field, p.route.state->ll_epoch, 0, 0);
	}
	if (tokens > 0 && header.given) {
		p.route.state->weighted = 1;
	}
}

/* A source's choices of local experts, counted in hist, and its tokens that have one. */
DEV void count_source(const struct moeep_ll_dispatch_params &p, const char *slot, int tokens, int *hist,
		      int *found)
{
	const int32_t *idx = ll_slot_idx(slot);

	for (int base = 32 * WARP; base < tokens; base += (int)blockDim.x) {
		int t = base + LANE;
		bool here = false;
		unsigned votes;

		for (int first = 0; first < p.topk; first += 8) {
			int id[8];

			/* All loads before the counting, which the compiler would not pass them by. */
#pragma unroll
			for (int i = 0; i < 8; i++) {
				id[i] = t < tokens && first + i < p.topk
						? idx[(int64_t)t * p.topk + first + i]
						: -1;
			}
#pragma unroll
			for (int i = 0; i < 8; i++) {
				int e = id[i] < 0 ? -1 : local_expert(p.c, id[i]);

				if (e >= 0) {
					atomicAdd(&hist[e], 1);
					here = true;
				}
			}
		}
		votes = __ballot_sync(FULL, here);
		if (LANE == 0 && votes) {
			atomicAdd(found, __popc(votes));
		}
	}
}

/*
 * Counts of all sources, and what is told of them; by one block, which copies no rows. hist has room
 * for [R][L] if `wide`, else for [L], and is zero.
 */
DEV void recv_counts(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int *hist, bool wide,
		     const int *tokens)
{
	const struct moeep_dev_context &c = p.c;
	const struct moeep_dev_route &route = p.route;
	int local = c.local_experts;
	__shared__ int most;
	__shared__ int rows;
	__shared__ int records;

	if (threadIdx.x == 0) {
		most = 0;
		rows = 0;
		records = 0;
		route.state->weighted = 0;
	}
	for (int source = (int)threadIdx.x; source < c.num_ranks; source += (int)blockDim.x) {
		route.ll_tokens[source] = tokens[source];
		route.recv_count[source] = 0;
	}
	__syncthreads();
	for (int source = (int)threadIdx.x; source < c.num_ranks; source += (int)blockDim.x) {
		check_header(p, source, tokens[source], ll_slot(c, c.rank, epoch, source));
	}
	/* All sources at once, if there is room to keep them apart. */
	for (int source = 0; source < c.num_ranks; source++) {
		int *own = wide ? hist + source * local : hist;

		for (int e = (int)threadIdx.x; !wide && e < local && p.recv_range;
		     e += (int)blockDim.x) {
			p.recv_range[(int64_t)e * c.num_ranks + source] = (int64_t)hist[e] << 32;
		}
		if (!wide) {
			__syncthreads();
		}
		count_source(p, ll_slot(c, c.rank, epoch, source), tokens[source], own,
			     &route.recv_count[source]);
		if (wide) {
			continue;
		}
		__syncthreads();
		for (int e = (int)threadIdx.x; e < local && p.recv_range; e += (int)blockDim.x) {
			int64_t *range = &p.recv_range[(int64_t)e * c.num_ranks + source];

			*range |= hist[e] - (*range >> 32);
		}
		__syncthreads();
	}
	__syncthreads();
	for (int e = (int)threadIdx.x; e < local; e += (int)blockDim.x) {
		int total = wide ? 0 : hist[e];

		for (int source = 0; wide && source < c.num_ranks; source++) {
			int count = hist[source * local + e];

			if (p.recv_range) {
				p.recv_range[(int64_t)e * c.num_ranks + source] =
					(int64_t)total << 32 | count;
			}
			total += count;
		}
		if (p.recv_count) {
			p.recv_count[e] = total;
		}
		route.expert_count[e] = total;
		atomicMax(&most, total);
		atomicAdd(&rows, total);
	}
	for (int source = (int)threadIdx.x; source < c.num_ranks; source += (int)blockDim.x) {
		atomicAdd(&records, ((volatile int32_t *)route.recv_count)[source]);
	}
	__syncthreads();
	if (threadIdx.x == 0) {
		route.state->ll_most = most;
		route.state->num_rows = rows;
		route.state->num_records = records;
		route.state->overflow = most > p.capacity || records > p.max_recv;
	}
	count_traffic(c, MOEEP_DEV_DISPATCH_ROWS, route.recv_count, p.row_bytes);
}

/* Places that a block keeps at hand: to read back what it has just written takes a trip to memory. */
#define PLACES 256

/*
 * Positions of the choices of tokens [first, last) of all sources, from the counts before them. places:
 * the same, if there are no more than PLACES.
 */
DEV void recv_positions(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int *hist,
			const int *tokens, int64_t first, int64_t last, int64_t *places)
{
	const struct moeep_dev_context &c = p.c;
	int64_t before = 0;
	int filled = 0;

	for (int source = 0; source < c.num_ranks; source++) {
		const char *slot = ll_slot(c, c.rank, epoch, source);
		const int32_t *idx = ll_slot_idx(slot);
		int64_t end = first - before;
		int64_t choices;

		if (end <= 0) {
			break;
		}
		end = end < tokens[source] ? end : tokens[source];
		choices = end * p.topk;
		for (int64_t i = threadIdx.x; i < choices; i += blockDim.x) {
			int e = local_expert(c, idx[i]);

			if (e >= 0) {
				atomicAdd(&hist[e], 1);
			}
		}
		before += tokens[source];
	}
	__syncthreads();
	if (WARP != 0) {
		return;
	}
	before = 0;
	for (int source = 0; source < c.num_ranks; source++) {
		const char *slot = ll_slot(c, c.rank, epoch, source);
		const int32_t *idx = ll_slot_idx(slot);
		const float *weights = (const float *)(slot + c.window.ll_slot_weights);
		int64_t base = (int64_t)source * c.ll_max_tokens * p.topk;
		int64_t from = first - before;
		int64_t end = last - before;

		from = from > 0 ? from : 0;
		end = end < tokens[source] ? end : tokens[source];
		before += tokens[source];
		/* Choices in order, 32 at a time. */
		for (int64_t i = from * p.topk; i < end * p.topk; i += 32) {
			int64_t at = i + LANE;
			bool in = at < end * p.topk;
			int e = in ? local_expert(c, idx[at]) : -1;
			unsigned same = __match_any_sync(FULL, e);
			int row = 0;

			if (e >= 0) {
				row = hist[e] + __popc(same & ((1u << LANE) - 1u));
			}
			__syncwarp();
			if (e >= 0 && LANE == __ffs((int)same) - 1) {
				hist[e] += __popc(same);
			}
			__syncwarp();
			if (in) {
				int64_t place = e < 0		     ? -1
						: row < p.capacity ? (int64_t)e << 32 | row
								   : -2;

				p.route.record_rows[base + at] = place;
				p.route.record_weights[base + at] = weights[at];
				if (places) {
					places[filled + LANE] = place;
				}
			}
			filled += (int)(end * p.topk - i < 32 ? end * p.topk - i : 32);
		}
	}
}

/* A warp copies its part of a token's row to the rows of the choices that live here. */
DEV void recv_token(const struct moeep_ll_dispatch_params &p, const char *slot, const int64_t *rows,
		    int64_t token, int part, int parts)
{
	const struct moeep_dev_context &c = p.c;
	const char *from = slot + c.window.ll_slot_rows + (uint64_t)token * p.row_bytes;
	int64_t units = (int64_t)p.row_bytes / 16;
	int64_t first = cut(units, parts, part) * 16;
	int64_t last = cut(units, parts, part + 1) * 16;

	for (int half = 0; half * 32 < p.topk; half++) {
		int k = half * 32 + LANE;
		int64_t place = k < p.topk ? rows[k] : -1;
		int64_t expert = place >> 32;
		int64_t at = place & 0xffffffff;
		unsigned valid = __ballot_sync(FULL, place >= 0);
		const char *to = p.recv_x + (uint64_t)(expert * p.capacity + at) * p.row_bytes;

		for (int64_t base = first + LANE * 16;
		     p.recv_x && valid && __any_sync(FULL, base < last); base += 32 * 16 * 4) {
			uint4 v[4];

#pragma unroll
			for (int u = 0; u < 4; u++) {
				if (base + u * 512 < last) {
					v[u] = *(const uint4 *)(from + base + u * 512);
				}
			}
			for (unsigned m = valid; m; m &= m - 1) {
				char *row = (char *)warp_pointer(to, __ffs((int)m) - 1);

#pragma unroll
				for (int u = 0; u < 4; u++) {
					if (base + u * 512 < last) {
						*(uint4 *)(row + base + u * 512) = v[u];
					}
				}
			}
		}
		if (part != 0) {
			continue;
		}
		if (place >= 0 && p.recv_src_token) {
			p.recv_src_token[expert * p.capacity + at] = (int32_t)token;
		}
		for (unsigned m = valid; m && p.recv_scales.base; m &= m - 1) {
			int lane = __ffs((int)m) - 1;
			int64_t e = __shfl_sync(FULL, expert, lane);
			struct moeep_dev_scales scales = p.recv_scales;

			scales.base = (char *)scales.base + (uint64_t)e * p.expert_scales_bytes;
			warp_write_scales(scales, __shfl_sync(FULL, at, lane),
					  slot + c.window.ll_slot_scales +
						  (uint64_t)token * p.scale_bytes);
		}
	}
}

/* places as recv_positions() has left them, or NULL. */
DEV void recv_rows(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const int *tokens,
		   int64_t first, int64_t last, const int64_t *places)
{
	int64_t count = last - first;
	int64_t most = ((int64_t)p.row_bytes + 511) / 512;
	int parts = count > 0 && NUM_WARPS > count ? (int)(NUM_WARPS / count) : 1;

	parts = parts < most ? parts : (int)most;
	for (int64_t u = WARP; u < count * parts; u += NUM_WARPS) {
		int64_t item = first + u / parts;
		const int64_t *rows;
		int source = 0;

		while (item >= tokens[source]) {
			item -= tokens[source++];
		}
		rows = places ? places + u / parts * p.topk
			      : p.route.record_rows +
					((int64_t)source * p.c.ll_max_tokens + item) * p.topk;
		recv_token(p, ll_slot(p.c, p.c.rank, epoch, source), rows, item, (int)(u % parts), parts);
	}
}

/* shared: [R] tokens of each source, then the counters of experts: p.wide, or [L] if they fit. */
DEV bool recv_phase(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int *shared)
{
	__shared__ int64_t near[PLACES];
	const struct moeep_dev_context &c = p.c;
	int *tokens = shared;
	int *hist = p.hist ? p.hist + (int64_t)blockIdx.x * c.local_experts : shared + c.num_ranks;
	int counters = p.wide ? c.num_ranks * c.local_experts : c.local_experts;
	int workers = gridDim.x > 1 ? (int)gridDim.x - 1 : 1;
	int64_t total = 0;
	bool ok = true;

	for (int e = (int)threadIdx.x; e < counters; e += (int)blockDim.x) {
		hist[e] = 0;
	}
	for (int source = (int)threadIdx.x; source < c.num_ranks; source += (int)blockDim.x) {
		uint64_t seen = 0;

		ok = ok && wait_word(c, flag_at(c, c.rank, by_epoch(c, c.window.ll_sent, epoch), source),
				     flag_word(epoch, 0), source, MOEEP_DEV_ROWS, &seen);
		tokens[source] = (int)(seen & 0xffffff);
	}
	if (!__syncthreads_and(ok)) {
		return false;
	}
	for (int source = 0; source < c.num_ranks; source++) {
		total += tokens[source];
	}
	if ((int)blockIdx.x < workers) {
		int64_t first = cut(total, workers, (int)blockIdx.x);
		int64_t last = cut(total, workers, (int)blockIdx.x + 1);
		int64_t *places = (last - first) * p.topk <= PLACES ? near : NULL;

		recv_positions(p, epoch, hist, tokens, first, last, places);
		__syncthreads();
		recv_rows(p, epoch, tokens, first, last, places);
	}
	if (blockIdx.x == gridDim.x - 1) {
		if (workers == (int)gridDim.x) {
			__syncthreads();
			for (int e = (int)threadIdx.x; e < counters; e += (int)blockDim.x) {
				hist[e] = 0;
			}
			__syncthreads();
		}
		recv_counts(p, epoch, hist, p.wide != 0, tokens);
	}
	if (last_block(&c.state->ticket[MOEEP_DEV_TICKET_RECV], gridDim.x)) {
		/* Pairs with the wait for credit in send_phase() of each rank. */
		block_publish(c, c.window.ll_received, flag_word(epoch, 0));
		if (threadIdx.x == 0) {
			c.state->ll_recv = epoch;
			if (p.route.state->num_records > p.max_recv) {
				finish_result(c, MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_RECORDS,
					      p.route.state->num_records, p.max_recv, 0);
			} else if (p.route.state->overflow) {
				finish_result(c, MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_EXPERT,
					      p.route.state->ll_most, p.capacity, 0);
			} else {
				finish_result(c, MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0);
			}
		}
	}
	return true;
}

/*
 * What moeep_handle_query() tells; by the block that has counted, when all is published: a release would
 * wait for these writes to reach the host.
 */
DEV void tell_host(const struct moeep_ll_dispatch_params &p, uint64_t epoch)
{
	const struct moeep_dev_context &c = p.c;
	const struct moeep_dev_route &route = p.route;

	__syncthreads();
	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		if (p.phases & PHASE_SEND) {
			route.host_send[rank] = route.send_count[rank];
		}
		if (p.phases & PHASE_RECV) {
			route.host_recv[rank] = route.recv_count[rank];
		}
	}
	for (int e = (int)threadIdx.x; (p.phases & PHASE_RECV) && e < c.local_experts;
	     e += (int)blockDim.x) {
		route.host_experts[e] = route.expert_count[e];
	}
	if (threadIdx.x == 0 && (p.phases & PHASE_RECV)) {
		route.host_rows[0] = route.state->num_rows;
		route.host_rows[1] = (int64_t)epoch;
	}
}

extern "C" __global__ void __launch_bounds__(MOEEP_DEV_LL_THREADS, 1)
	moeep_kernel_ll_dispatch(const __grid_constant__ struct moeep_ll_dispatch_params p)
{
	DYNAMIC_SHARED(int, shared, 4);
	const struct moeep_dev_context &c = p.c;
	/* On their way while the kernel begins; without `shared` there is no state. */
	uint64_t sent = c.shared ? c.state->ll_epoch : 0;
	uint64_t received = c.shared ? c.state->ll_recv : 0;
	uint64_t send_epoch = (sent + 1) & EPOCH_MASK;
	uint64_t recv_epoch = (received + 1) & EPOCH_MASK;
	bool ok = kernel_begin(c);

	if (!ok) {
		return;
	}
	if (p.phases & PHASE_SEND) {
		ok = send_phase(p, send_epoch);
		if (ok && blockIdx.x == gridDim.x - 1) {
			count_sent(p, shared);
		}
	}
	if (ok && (p.phases & PHASE_RECV)) {
		ok = recv_phase(p, recv_epoch, shared);
	}
	if (ok && blockIdx.x == gridDim.x - 1) {
		tell_host(p, recv_epoch);
	}
	if (!ok && threadIdx.x == 0) {
		put_dead(c);
	}
}
