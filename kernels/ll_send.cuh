/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_send.cuh - rows of a low-latency dispatch, each once to every rank that holds one of its experts,
 * cast on the way.
 */
#ifndef MOEEP_KERNELS_LL_SEND_CUH
#define MOEEP_KERNELS_LL_SEND_CUH

#include "ll_cast.cuh"
#include "ll_choices.cuh"

/* Destinations of a row: number i is known to lane i % 32. */
struct destinations {
	char *slot[2];
	int count;
};

/* Where to send rows. */
enum whereto { ALL, OWN, OTHERS };

/* Where a token's row goes. */
DEV struct destinations row_destinations(const struct moeep_ll_dispatch_params &p, uint64_t epoch,
					 int token, enum whereto only)
{
	const struct moeep_dev_context &c = p.c;
	struct destinations d = {{NULL, NULL}, 0};
	int rank[2];

#pragma unroll
	for (int half = 0; half < 2; half++) {
		int k = half * 32 + LANE;
		int id = k < p.topk ? choice_of(p, token * p.topk + k) : -1;

		rank[half] = id < 0 ? -1 : expert_rank(c, id);
		if ((only == OWN && rank[half] != c.rank) || (only == OTHERS && rank[half] == c.rank)) {
			rank[half] = -1;
		}
	}
	d.count = warp_distinct(&rank[0], &rank[1], p.topk > 32);
#pragma unroll
	for (int half = 0; half < 2; half++) {
		if (rank[half] >= 0) {
			d.slot[half] = ll_slot(c, rank[half], epoch, c.rank);
		}
	}
	return d;
}

/* This lane's chunks of a row as they are. */
DEV void read_chunks(const char *row, int parcel, int chunks, uint4 *v)
{
#pragma unroll
	for (int u = 0; u < CHUNKS; u++) {
		v[u] = make_uint4(0, 0, 0, 0);
		if (u < chunks) {
			v[u] = *(const uint4 *)(row + (first_chunk(parcel) + u * 32) * 16);
		}
	}
}

/* The same of a row that is cast, and their scales. */
DEV void cast_chunks(const char *row, int dtype, int quant, int parcel, int chunks, uint4 *v, float *scale)
{
	uint4 in[CHUNKS][2];

#pragma unroll
	for (int u = 0; u < CHUNKS; u++) {
		const char *from = row + (first_chunk(parcel) + u * 32) * 32;

		in[u][0] = make_uint4(0, 0, 0, 0);
		in[u][1] = make_uint4(0, 0, 0, 0);
		if (u < chunks) {
			in[u][0] = *(const uint4 *)from;
			in[u][1] = *(const uint4 *)(from + 16);
		}
	}
#pragma unroll
	for (int u = 0; u < CHUNKS; u++) {
		struct cast cast = dtype == MOEEP_BF16
					   ? cast_chunk<MOEEP_BF16>(in[u][0], in[u][1], quant)
					   : cast_chunk<MOEEP_FP16>(in[u][0], in[u][1], quant);

		v[u] = cast.v;
		scale[u] = cast.scale;
	}
}

/* A warp sends a parcel of a token. */
DEV void send_parcel(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int token, int parcel,
		     enum whereto only)
{
	const struct moeep_dev_context &c = p.c;
	bool cast = p.quant != MOEEP_QUANT_NONE;
	const char *row = p.x + (uint64_t)token * p.row_bytes * (cast ? 2 : 1);
	uint64_t number = parcel_number(token, parcel, p.row_bytes);
	uint64_t at = c.window.ll_slot_rows + number * MOEEP_DEV_PARCEL_ROOM;
	uint64_t scales = c.window.ll_slot_scales + number * MOEEP_DEV_PARCEL_SCALES +
			  (uint64_t)(LANE / SCALE_LANES) * MOEEP_DEV_WORD;
	int chunks = chunks_in(parcel, p.row_bytes);
	struct destinations d = row_destinations(p, epoch, token, only);
	uint4 v[CHUNKS];
	float scale[CHUNKS];

	if (d.count == 0) {
		return;
	}
	if (cast) {
		cast_chunks(row, p.dtype, p.quant, parcel, chunks, v, scale);
	} else {
		read_chunks(row, parcel, chunks, v);
	}
#pragma unroll 1
	for (int i = 0; i < d.count; i++) {
		char *slot = (char *)warp_pointer(i < 32 ? d.slot[0] : d.slot[1], i & 31);

		store_parcel(slot + at, v, chunks, epoch);
		if (cast && chunks > 0 && LANE % SCALE_LANES == 0) {
			store_whole16(slot + scales, __float_as_uint(scale[0]),
				      __float_as_uint(scale[1]), __float_as_uint(scale[2]),
				      tag_of(epoch));
		}
	}
}

/*
 * Rows dealt to the warps of a crew. Neighbouring warps of different blocks share a token: all blocks have the same
 * to do.
 */
DEV void send_rows(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const struct crew &crew,
		   enum whereto only)
{
	int parcels = parcels_of(p.row_bytes);
	int total = (int)p.num_tokens * parcels;

#pragma unroll 1
	for (int u = WARP * crew.count + crew.index; u < total; u += crew.count * NUM_WARPS) {
		send_parcel(p, epoch, u / parcels, u % parcels, only);
	}
}

#endif
