/* SPDX-License-Identifier: MIT */
/*
 * moeep/ht.h - high-throughput operations: training, prefill; thousands of tokens a rank.
 *
 * R ranks, N tokens of this rank (any number on each), H hidden, K choices a token, E
 * experts, L local experts, S scales a row, Nr rows received.
 *
 * A choice is an expert id, 0 to E - 1, or -1 for none. A token goes once to every rank that
 * holds one of its choices, to none if all its choices are -1. The same expert may be chosen twice.
 */
#ifndef MOEEP_HT_H
#define MOEEP_HT_H

#include <moeep/buffer.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Where this rank's tokens would go. Local: no peer is asked. Any output may be NULL. */
typedef struct moeep_layout_args {
	size_t size;
	const void *topk_idx;	    /* [N, K] */
	int32_t topk_dtype;	    /* MOEEP_INT64 (default) or MOEEP_INT32 */
	int32_t topk;		    /* K; default the buffer's max_topk */
	int64_t num_tokens;	    /* N */
	int32_t *tokens_per_rank;   /* [R] */
	int32_t *tokens_per_node;   /* [num_nodes] */
	int32_t *tokens_per_expert; /* [E], choices */
	uint8_t *token_in_rank;	    /* [N, R], 1 or 0 */
} moeep_layout_args_t;

MOEEP_API int moeep_layout(moeep_buffer_t *buffer, const moeep_layout_args_t *args,
			   const moeep_launch_t *launch);

/* Take the routing from the handle: topk_idx is not read and no new counts are computed. */
#define MOEEP_DISPATCH_CACHED 1u
/* Exchange the routing only; a cached dispatch moves rows later, into outputs made to size. */
#define MOEEP_DISPATCH_COUNTS_ONLY 2u
/* Zero the padding rows of an expert-major output (scales too). May differ between ranks. */
#define MOEEP_DISPATCH_ZERO_PADDING 4u
/* Fill index outputs with -1, and weights with 0, from num_recv up to capacity. May differ between
 * ranks. */
#define MOEEP_DISPATCH_FILL_TAIL 8u

/*
 * Send each token's row to the ranks that hold its experts.
 *
 * Rows are copied bit for bit. Outputs that are NULL are left out. num_tokens, capacity,
 * topk_dtype, the layouts of scales and the choice of outputs may differ between ranks; dtype,
 * topk, row_layout, scale_count, scale_dtype, the other flags and, on ranks that have tokens,
 * whether x, weights and scales are given may not (MOEEP_ERR_MISMATCH on all ranks).
 * expert_alignment may differ.
 *
 * recv_x in symmetric memory is written by the peers in place (CUDA: flat rows only); in ordinary
 * memory this rank copies.
 *
 * A choice that is neither an expert nor -1 is MOEEP_ERR_INVALID before the operation begins. CUDA:
 * on the device; the operation completes on all ranks without that choice, and has this result
 * here.
 *
 * CACHED: the handle's num_tokens, topk, row_layout and expert_alignment hold; an argument that is
 * not zero and differs is MOEEP_ERR_INVALID. All outputs may be asked for; topk_weights, if given,
 * become the handle's, else the handle's are sent; its routing is not changed. COUNTS_ONLY: x and
 * scales are not needed, topk_weights are kept in the handle; num_recv, the recv_per_expert arrays
 * and recv_expert_offsets are written, no rows. The two flags exclude each other.
 *
 * If rows of some rank do not fit its capacity, every rank completes the call with
 * MOEEP_ERR_CAPACITY: num_recv says what was needed, rows that fit are written (flat layout; of an
 * expert-major output that does not fit nothing is). The handle serves cached dispatches; combine
 * on it gives MOEEP_ERR_CAPACITY on every rank and writes nothing, until a cached dispatch with it
 * has fitted everywhere; after COUNTS_ONLY alone combine gives MOEEP_ERR_STATE. More tokens than
 * some rank's handle holds (its max_recv) also give MOEEP_ERR_CAPACITY and the counts on every
 * rank, but no rows, and the handle keeps no routing.
 */
typedef struct moeep_dispatch_args {
	size_t size;
	uint32_t flags; /* MOEEP_DISPATCH_* */
	int32_t dtype;	/* of x: BF16 (default), FP16, FP32, FP8_E4M3, FP8_E5M2, INT8 */
	int64_t num_tokens;
	const void *x; /* [N, H] */

	const void *scales;   /* of x, as scale_layout says; NULL: none */
	int32_t scale_count;  /* S */
	int32_t scale_dtype;  /* FP32 (default) or UE8M0 */
	int32_t scale_layout; /* moeep_scale_layout_t, of scales */
	int32_t topk;	      /* K; default the buffer's max_topk */
	int64_t scale_stride; /* default: dense */

	const void *topk_idx;	   /* [N, K] */
	const float *topk_weights; /* [N, K], or NULL */
	int32_t topk_dtype;	   /* MOEEP_INT64 (default) or MOEEP_INT32; recv_topk_idx too */
	int32_t row_layout;	   /* moeep_row_layout_t of the outputs; the same on all ranks */
	int32_t expert_alignment;  /* padded counts and groups are rounded up to a multiple; default
				      1 */
	int32_t recv_scale_layout; /* moeep_scale_layout_t, of recv_scales */
	int64_t recv_scale_stride; /* default: dense, for column-major capacity */

	int64_t capacity;    /* rows that the outputs hold */
	void *recv_x;	     /* [capacity, H] */
	void *recv_scales;   /* [capacity, S] in recv_scale_layout; left alone without scales */
	void *recv_topk_idx; /* flat: [capacity, K] local expert ids, -1 where the choice is
				elsewhere */
	float *recv_topk_weights; /* flat: [capacity, K], 0 where elsewhere; expert-major:
				     [capacity], 0 in padding */
	int32_t *recv_src_token;  /* [capacity] index of the token at its source; -1 in padding rows
				   */
	int32_t *recv_src_rank;	  /* [capacity]; -1 in padding rows */
	int32_t *recv_expert; /* expert-major: [capacity] local expert of each row; -1 in padding
				 rows */
	int64_t *num_recv;    /* one value: rows, padding included */
	int32_t *recv_per_expert;	 /* [L] choices on each local expert */
	int32_t *recv_per_expert_padded; /* [L] rounded up to expert_alignment */
	int32_t *recv_expert_offsets;	 /* [L + 1] running sum of the padded counts */
} moeep_dispatch_args_t;

MOEEP_API int moeep_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle,
			     const moeep_dispatch_args_t *args, const moeep_launch_t *launch);

/* Expert-major rows: multiply each by its choice's weight, as the handle's last dispatch sent it.
 */
#define MOEEP_COMBINE_WEIGHTED 1u

/*
 * Sum rows back at their token's rank:
 *
 *	out[t] = ((x of the lowest rank that got t) + (of the next) + ...) + bias[t]
 *
 * in FP32, each sum rounded to FP32 in this order, and rounded once to dtype at the end, to nearest
 * even. Where ranks are on several nodes, each node's ranks are summed so first, and then the nodes
 * by ascending number; a node's sum that travels is rounded to the partial dtype. Tokens that went
 * nowhere give bias, or zeros. Expert-major rows of a token are first summed at their rank, by
 * ascending position in the top-k, each multiplied by its weight if MOEEP_COMBINE_WEIGHTED (the
 * product rounded to FP32), and that partial sum is rounded to the buffer's partial_dtype, also
 * where the rank is the token's own.
 *
 * x in symmetric memory is read by the peers in place; the call completes when they have read it
 * (CUDA: flat rows only, others are sent as from ordinary memory). CUDA: a NULL x on a rank that
 * has rows, or one whose symmetric memory ends before its rows do, fails the group. dtype, flags
 * and, on ranks that have rows, whether topk_weights are given must be the same on all ranks.
 * MOEEP_COMBINE_WEIGHTED needs expert-major rows, and weights at the dispatch. A handle of an LL
 * dispatch is MOEEP_ERR_STATE here. Combine is also how the gradient of dispatch is computed; that
 * of combine is a cached dispatch.
 */
typedef struct moeep_combine_args {
	size_t size;
	uint32_t flags;		   /* MOEEP_COMBINE_* */
	int32_t dtype;		   /* of x, out and bias: BF16 (default), FP16, FP32 */
	const void *x;		   /* rows in the order of the dispatch */
	const float *topk_weights; /* flat: [Nr, K], expert-major: [Nr], one value a row;
				      sent back to out_topk_weights, not applied; NULL: none */
	void *out;		   /* [N, H]; NULL if only topk_weights are wanted back */
	float *out_topk_weights;   /* [N, K]: each choice's value from the rank that holds it, 0 for
				      -1 */
	const void *bias;	   /* [N, H] or NULL */
} moeep_combine_args_t;

MOEEP_API int moeep_combine(moeep_buffer_t *buffer, moeep_handle_t *handle,
			    const moeep_combine_args_t *args, const moeep_launch_t *launch);

#ifdef __cplusplus
}
#endif

#endif
