/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_recv.cuh - rows of a low-latency dispatch to their experts. The place of a row follows from what
 * its source tells of its choices and from how many earlier sources have for the same expert, so each warp takes
 * any parcel as it comes.
 */
#ifndef MOEEP_KERNELS_LL_RECV_CUH
#define MOEEP_KERNELS_LL_RECV_CUH

#include "ll_cast.cuh"
#include "ll_choices.cuh"
#include "ll_told.cuh"

/* Of the words that the lanes hold, value k. By all lanes. */
DEV uint32_t value_at(const uint4 &word, int k)
{
	uint32_t x = __shfl_sync(FULL, word.x, k / VALUES & 31);
	uint32_t y = __shfl_sync(FULL, word.y, k / VALUES & 31);
	uint32_t z = __shfl_sync(FULL, word.z, k / VALUES & 31);

	return k % VALUES == 0 ? x : k % VALUES == 1 ? y : z;
}

/* A parcel of a token that has come, or not yet. */
struct arrival {
	struct writer from;
	int token;
	int parcel;
	int chunks;
	const char *slot;
};

/* A token's words of an array in the slot, a lane each. They may not be there yet. */
DEV const char *token_word(const struct moeep_ll_dispatch_params &p, const struct arrival &a,
			   uint64_t array)
{
	return a.slot + array +
	       ((uint64_t)a.token * (uint64_t)words_of(p.topk) + (uint64_t)LANE) * MOEEP_DEV_WORD;
}

/*
 * Places of a token's choices, choice k at lane k % 32: expert << 32 | row, -1: not here, -2: no room.
 * id, number: what a lane has found of its words. False: the comm has failed.
 */
DEV bool find_places(const struct moeep_ll_dispatch_params &p, const struct told &told,
		     const struct arrival &a, uint4 id, uint4 number, int64_t *place)
{
	const struct moeep_dev_context &c = p.c;
	uint32_t tag = tag_of(a.from.epoch);
	bool ok = true;

	if (LANE < words_of(p.topk)) {
		ok = id.w == tag ||
		     take_word(c, token_word(p, a, MOEEP_DEV_LL_HEADER), a.from, &id);
		ok = ok && (number.w == tag ||
			    take_word(c, token_word(p, a, c.window.ll_slot_numbers), a.from,
				      &number));
	}
	if (!__all_sync(FULL, ok)) {
		return false;
	}
#pragma unroll
	for (int half = 0; half < 2; half++) {
		int k = half * 32 + LANE;
		int e, row;

		place[half] = -1;
		if (half * 32 >= p.topk) {
			continue;
		}
		e = local_expert(c, (int)value_at(id, k));
		row = (int)value_at(number, k);
		if (k < p.topk && e >= 0) {
			int before = 0;

			ok = rows_before(p, a.from.epoch, told, a.from.rank, e, &before) && ok;
			row += before;
			place[half] = row < p.capacity ? (int64_t)e << 32 | row : -2;
		}
	}
	return __all_sync(FULL, ok) != 0;
}

/* For combine: where a token's rows are, and their weights. False: the comm has failed. */
DEV bool keep_record(const struct moeep_ll_dispatch_params &p, const struct told &told,
		     const struct arrival &a, const int64_t *place)
{
	int64_t record = (a.from.rank * p.c.ll_max_tokens + a.token) * p.topk;
	bool weighted = shape_has_weights(told.shape[a.from.rank]);
	uint4 weight = make_uint4(0, 0, 0, 0);
	bool ok = true;

	if (weighted && LANE < words_of(p.topk)) {
		ok = take_word(p.c, token_word(p, a, p.c.window.ll_slot_weights), a.from, &weight);
	}
	for (int half = 0; half * 32 < p.topk; half++) {
		int k = half * 32 + LANE;
		float value = __uint_as_float(value_at(weight, k));

		if (k < p.topk) {
			p.route.record_rows[record + k] = half == 0 ? place[0] : place[1];
			p.route.record_weights[record + k] = value;
		}
	}
	return __all_sync(FULL, ok) != 0;
}

/* A parcel's scales, of which each 8th lane has a word, to a row of an expert. */
DEV void write_scales(const struct moeep_ll_dispatch_params &p, int64_t place,
		      const struct arrival &a, const uint4 &word)
{
	struct moeep_dev_scales scales = p.recv_scales;
	int count = scales.count;

	scales.base = (char *)scales.base + (uint64_t)(place >> 32) * p.expert_scales_bytes;
	/* Unused bytes of a column's last word are zero. */
	if (scales.dtype == MOEEP_UE8M0 && scales.layout == MOEEP_SCALES_COLUMN_MAJOR) {
		count = (count + 3) / 4 * 4;
	}
#pragma unroll
	for (int u = 0; u < CHUNKS; u++) {
		int i = (a.parcel * CHUNKS + u) * (32 / SCALE_LANES) + LANE / SCALE_LANES;
		uint32_t bits = i < scales.count ? value_of(word, u) : 0u;
		char *to;

		if (LANE % SCALE_LANES != 0 || i >= count) {
			continue;
		}
		to = (char *)scales.base + scale_at(scales, place & 0xffffffff, i);
		if (scales.dtype == MOEEP_UE8M0) {
			*(uint8_t *)to = (uint8_t)(bits >> 23);
		} else {
			*(uint32_t *)to = bits;
		}
	}
}

/* What a lane has found of an arrival's words, which may not have been there. */
struct asked {
	uint4 id;
	uint4 number;
	uint4 row[WORDS];
};

DEV const char *row_words(const struct moeep_ll_dispatch_params &p, const struct arrival &a)
{
	return a.slot + p.c.window.ll_slot_rows +
	       parcel_number(a.token, a.parcel, p.row_bytes) * MOEEP_DEV_PARCEL_ROOM;
}

/* All on their way at once, the row as well, though it may never be sent. */
DEV void ask(const struct moeep_ll_dispatch_params &p, const struct arrival &a, struct asked *asked)
{
	if (LANE < words_of(p.topk)) {
		asked->id = load_whole16(token_word(p, a, MOEEP_DEV_LL_HEADER));
		asked->number = load_whole16(token_word(p, a, p.c.window.ll_slot_numbers));
	}
	load_parcel(asked->row, row_words(p, a), a.chunks);
}

/* The row itself, and a word of scales in each 8th lane. False: the comm has failed. */
DEV bool take_row(const struct moeep_ll_dispatch_params &p, const struct arrival &a,
		  struct asked *asked, uint4 *v, uint4 *scales)
{
	bool ok = true;

	if (p.recv_scales.base && a.chunks > 0 && LANE % SCALE_LANES == 0) {
		ok = take_word(p.c,
			       a.slot + p.c.window.ll_slot_scales +
				       parcel_number(a.token, a.parcel, p.row_bytes) *
					       MOEEP_DEV_PARCEL_SCALES +
				       LANE / SCALE_LANES * MOEEP_DEV_WORD,
			       a.from, scales);
	}
	return take_parcel(p.c, asked->row, row_words(p, a), a.chunks, a.from, v) &&
	       __all_sync(FULL, ok);
}

/* What has come of an arrival. */
struct taken {
	int64_t place[2];
	uint4 row[CHUNKS];
	uint4 scales;
};

/* Wait for all that a parcel takes. False: the comm has failed. */
DEV bool take(const struct moeep_ll_dispatch_params &p, const struct told &told,
	      const struct arrival &a, struct asked *asked, struct taken *t)
{
	if (!find_places(p, told, a, asked->id, asked->number, t->place) ||
	    (a.parcel == 0 && !keep_record(p, told, a, t->place))) {
		return false;
	}
	/* Also what is lost was sent. */
	return !__any_sync(FULL, t->place[0] != -1 || t->place[1] != -1) ||
	       take_row(p, a, asked, t->row, &t->scales);
}

/* A warp writes a parcel to the rows of the choices that live here. */
DEV void write_parcel(const struct moeep_ll_dispatch_params &p, const struct arrival &a,
		      const struct taken &t)
{
#pragma unroll 1
	for (int half = 0; half * 32 < p.topk; half++) {
		int64_t place = half == 0 ? t.place[0] : t.place[1];

#pragma unroll 1
		for (unsigned m = __ballot_sync(FULL, place >= 0); m; m &= m - 1) {
			int64_t to = __shfl_sync(FULL, place, __ffs((int)m) - 1);
			char *row = p.recv_x +
				    (uint64_t)((to >> 32) * p.capacity + (to & 0xffffffff)) *
					    p.row_bytes;

#pragma unroll
			for (int u = 0; u < CHUNKS; u++) {
				if (p.recv_x && u < a.chunks) {
					*(uint4 *)(row + (first_chunk(a.parcel) + u * 32) * 16) =
						t.row[u];
				}
			}
			if (p.recv_scales.base) {
				write_scales(p, to, a, t.scales);
			}
		}
		if (a.parcel == 0 && place >= 0 && p.recv_src_token) {
			p.recv_src_token[(place >> 32) * p.capacity + (place & 0xffffffff)] =
				(int32_t)a.token;
		}
	}
}

/* All parcels, dealt to the warps of a crew, this rank's own first. Where a warp is: */
struct walk {
	int source; /* how many behind this rank */
	int at;	    /* among the parcels of that source, or behind them */
	int stride;
};

/* The warp's next one. False: it has had its last. */
DEV bool next_arrival(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const struct told &told,
		      struct walk *walk, struct arrival *a)
{
	const struct moeep_dev_context &c = p.c;
	int parcels = parcels_of(p.row_bytes);

	for (; walk->source < c.num_ranks; walk->source++) {
		int rank = c.rank + walk->source;
		int count;

		rank = rank < c.num_ranks ? rank : rank - c.num_ranks;
		count = told.tokens[rank] * parcels;
		if (walk->at < count) {
			a->from = {rank, MOEEP_DEV_ROWS, epoch};
			a->token = walk->at / parcels;
			a->parcel = walk->at % parcels;
			a->chunks = chunks_in(a->parcel, p.row_bytes);
			a->slot = ll_slot(c, c.rank, epoch, rank);
			walk->at += walk->stride;
			return true;
		}
		walk->at -= count;
	}
	return false;
}

/* False, in some warps: the comm has failed. */
DEV bool recv_rows(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const struct told &told,
		   const struct crew &crew)
{
	struct walk walk = {0, WARP * crew.count + crew.index, NUM_WARPS * crew.count};
	struct arrival a;
	struct asked asked;
	bool more = next_arrival(p, epoch, told, &walk, &a);

	if (more) {
		ask(p, a, &asked);
	}
	if (!take_counts(p, epoch, told)) {
		return false;
	}
	sum_counts(p.c, told);
	while (more) {
		struct arrival now = a;
		struct taken taken;

		if (!take(p, told, now, &asked, &taken)) {
			return false;
		}
		/* On its way while this one is written. */
		more = next_arrival(p, epoch, told, &walk, &a);
		if (more) {
			ask(p, a, &asked);
		}
		write_parcel(p, now, taken);
	}
	return true;
}

#endif
