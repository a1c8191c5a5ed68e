/* SPDX-License-Identifier: MIT */
/*
 * moeep/ll.h - low-latency operations: decode; up to a few hundred tokens a rank.
 *
 * Letters as in moeep/ht.h; M is the buffer's ll_max_tokens, C an output's capacity, the rows it
 * has for each local expert.
 *
 * Each operation has two phases that can be called apart, so that other work runs between them:
 * SEND hands this rank's rows over, RECV waits for the peers' and produces the output. At most two
 * dispatches, and two combines, of a buffer may be between their SEND and their RECV; phases of
 * several handles are called in the same order on all ranks.
 */
#ifndef MOEEP_LL_H
#define MOEEP_LL_H

#include <moeep/buffer.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum moeep_phase {
	MOEEP_PHASE_BOTH = 0,
	MOEEP_PHASE_SEND = 1,
	MOEEP_PHASE_RECV = 2
} moeep_phase_t;

/* What happens to rows on their way. */
typedef enum moeep_quant {
	MOEEP_QUANT_NONE = 0,
	/*
	 * E4M3 with one scale for 128 elements (the last group may be shorter): a = max(|x|, 1e-4),
	 * q = e4m3(x * (448 / a)) to nearest even, saturating, FP32 scale a * (1 / 448): x is about
	 * q * scale. Any NaN in the group is ignored by the maximum and stays NaN (0x7f with its
	 * sign); an infinity makes the scale infinite (UE8M0: 255), its own q NaN and the others'
	 * 0.
	 */
	MOEEP_QUANT_FP8 = 1,
	/* The same with the scale rounded up to a power of two before use. */
	MOEEP_QUANT_FP8_POW2 = 2,
	/* The same, the power of two stored as UE8M0. */
	MOEEP_QUANT_FP8_UE8M0 = 3
} moeep_quant_t;

/*
 * Send each token to its experts. SEND reads the inputs, RECV writes the outputs; with
 * MOEEP_PHASE_BOTH one call does both. Inputs are free again when SEND is complete. Fields of the
 * other phase are ignored: RECV takes those of SEND from the handle.
 *
 * num_tokens may differ between ranks; dtype, quant, topk and whether weights are given may not
 * (MOEEP_ERR_MISMATCH, sticky).
 *
 * A choice out of range: as in moeep/ht.h, at SEND.
 *
 * More than C choices on one local expert: RECV completes with MOEEP_ERR_CAPACITY on this rank;
 * nothing past C is written, recv_count tells what was needed. All ranks still call combine, which
 * leaves the lost rows out and completes with MOEEP_ERR_CAPACITY on every rank that had sent a
 * token there.
 */
typedef struct moeep_ll_dispatch_args {
	size_t size;
	int32_t phase;	/* moeep_phase_t */
	uint32_t flags; /* none yet */
	/* SEND */
	int32_t dtype;		   /* of x: BF16 (default), FP16 */
	int32_t quant;		   /* moeep_quant_t */
	int32_t topk;		   /* K; default the buffer's max_topk */
	int32_t topk_dtype;	   /* MOEEP_INT64 (default) or MOEEP_INT32 */
	int64_t num_tokens;	   /* N, at most M */
	const void *x;		   /* [N, H] */
	const void *topk_idx;	   /* [N, K] */
	const float *topk_weights; /* [N, K]: used by combine; NULL: it sums unweighted */
	/* RECV */
	int32_t row_layout; /* MOEEP_ROWS_EXPERT_MAJOR (default); others are not supported yet */
	int32_t recv_scale_layout; /* moeep_scale_layout_t within each expert, each
				      moeep_scales_bytes() long */
	int64_t recv_scale_stride; /* default: as moeep_scale_layout_t says, for C rows */
	int64_t capacity;  /* C; default R * M, which always suffices unless a token names an expert
			      twice */
	void *recv_x;	   /* [L, C, H] of dtype, or FP8_E4M3 with quant */
	void *recv_scales; /* [L][C, S], S = H / 128 rounded up, in recv_scale_layout */
	int32_t *recv_count;	 /* [L] rows of each expert */
	int32_t *recv_src_token; /* [L, C] index of the token at its source; rows past the count are
				    not written */
	int64_t *recv_range;	 /* [L, R] rows that came from each rank: first row << 32 | count */
} moeep_ll_dispatch_args_t;

MOEEP_API int moeep_ll_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle,
				const moeep_ll_dispatch_args_t *args, const moeep_launch_t *launch);

/*
 * Sum the experts' rows back: at each rank a token's rows, by ascending position in the top-k, each
 * multiplied by its weight of the dispatch; that partial sum rounded to the buffer's partial_dtype;
 * then over ranks ascending, plus bias, in FP32 with every product and sum rounded, and to dtype at
 * the end.
 *
 * Several nodes do not change this order. SEND reads x, RECV writes out. x in ordinary memory is
 * free when SEND is complete; symmetric memory (the combine slots too) is read by the peers in
 * place and free when RECV is complete. CUDA: x is free when SEND is complete, wherever it is.
 */
/* Leave the weights out. The same on all ranks. */
#define MOEEP_LL_COMBINE_UNWEIGHTED 1u

typedef struct moeep_ll_combine_args {
	size_t size;
	int32_t phase;	/* moeep_phase_t */
	int32_t dtype;	/* of x, out and bias: BF16 (default), FP16, FP32; the same on all ranks */
	uint32_t flags; /* MOEEP_LL_COMBINE_*: SEND */
	int32_t reserved0;
	int64_t capacity; /* C of x, may differ from the dispatch's; default that one */
	const void *x;	  /* [L, C, H] */
	void *out;	  /* [N, H] */
	const void *bias; /* [N, H] or NULL; read by RECV */
} moeep_ll_combine_args_t;

MOEEP_API int moeep_ll_combine(moeep_buffer_t *buffer, moeep_handle_t *handle,
			       const moeep_ll_combine_args_t *args, const moeep_launch_t *launch);

/*
 * Memory that combine reads in place, as if symmetric, for its x (CUDA: device memory, no faster
 * than other): slot `index` of the config's ll_combine_slots, [L, ll_capacity, H] of the buffer's
 * dtype. The address stays the same for the buffer's life; use the slots in turn when two combines
 * are in flight.
 */
MOEEP_API int moeep_ll_combine_slot(moeep_buffer_t *buffer, int index, void **slot, size_t *bytes);

#ifdef __cplusplus
}
#endif

#endif
