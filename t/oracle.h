/* SPDX-License-Identifier: MIT */
/*
 * The operations once more, from the headers' text alone: slow, one process, no memory that anybody
 * shares, no code of the library. Given what all ranks hand in, it says what each of them gets.
 *
 * Outputs are described by the argument structures of the API. Their pointers lead to images: the
 * oracle writes what the operation has to write, and leaves alone what it has to leave alone.
 */
#ifndef T_ORACLE_H
#define T_ORACLE_H

#include <moeep/moeep.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Element formats. 0 bytes if it is none. */
size_t oracle_dtype_size(int dtype);
bool oracle_is_nan(int dtype, const void *element);
/* BF16, FP16, FP32 and FP8_E4M3: all values are floats. */
float oracle_load(int dtype, const void *row, int64_t index);
/* To nearest even; FP8_E4M3 saturates; NaN keeps its sign. */
void oracle_store(int dtype, void *row, int64_t index, float value);

/* What one rank hands in. Its caller keeps the arrays. */
struct oracle_input {
	int64_t num_tokens;
	const int64_t *topk;   /* [N, K] */
	const float *weights;  /* [N, K] or NULL */
	const void *x;	       /* [N, H] */
	const uint8_t *scales; /* [N, S], dense and row-major whatever the call's layout */
};

struct oracle_group {
	int num_ranks;
	int num_experts;
	int topk;
	const int *node; /* [R] number of each rank's node; NULL: all on one */
	int64_t hidden;
	int dtype; /* of x */
	int scale_dtype;
	int scale_count;
	const struct oracle_input *input; /* [R] */
};

/* A choice of a token of `rank`; the local expert of a choice at `rank`, -1 if it is none there. */
int64_t oracle_choice(const struct oracle_group *group, int rank, int64_t token, int k);
int oracle_local_expert(const struct oracle_group *group, int rank, int64_t expert);

/* The experts of a rank. */
void oracle_experts(const struct oracle_group *group, int rank, int *first, int *count);

/* A row that a rank receives. */
struct oracle_row {
	int src_rank; /* -1: padding */
	int64_t src_token;
	int expert; /* local; expert-major only, else -1 */
	int k;	    /* position in the top-k; expert-major only, else -1 */
};

struct oracle_rows {
	int64_t count; /* padding included */
	struct oracle_row *row;
	int local_experts;
	int64_t *per_expert; /* [L] choices */
	int64_t *padded;     /* [L] */
	int64_t *offsets;    /* [L + 1] */
};

/* The rows of `rank` in order: flat, or expert-major with groups rounded up to alignment. */
void oracle_route(const struct oracle_group *group, int rank, int row_layout, int alignment,
		  struct oracle_rows *rows);
void oracle_rows_free(struct oracle_rows *rows);

/* want: as in the call, outputs are images. */
void oracle_layout(const struct oracle_group *group, int rank, const moeep_layout_args_t *want);

/*
 * want: as in the call, its defaults filled in, outputs are images. Reads its flags, capacity and
 * layouts of outputs; the inputs are those of group.
 */
void oracle_dispatch(const struct oracle_group *group, int rank, const moeep_dispatch_args_t *want);

/* What a rank hands to combine. */
struct oracle_expert_side {
	struct oracle_rows rows;
	const void *x;
	const float *weights; /* sent back: [Nr, K] or [Nr]; NULL: none */
};

/* want: as in the call of `rank`; partial_dtype as in the buffer's configuration. */
void oracle_combine(const struct oracle_group *group, const struct oracle_expert_side *side,
		    int rank, int row_layout, int partial_dtype, const moeep_combine_args_t *want);

/* One group of at most 128 elements: values and the scale's bytes. */
void oracle_quantize(int quant, int dtype, const void *x, int64_t count, uint8_t *q,
		     uint8_t *scale);

/*
 * want: as in the call, its defaults filled in. Returns false if a local expert's rows exceed
 * the capacity.
 */
bool oracle_ll_dispatch(const struct oracle_group *group, int rank,
			const moeep_ll_dispatch_args_t *want);

/*
 * x: of each rank, [L, capacity[rank], H] of want's dtype; dispatch_capacity: of each rank. Returns
 * false if rows of this rank's tokens were lost.
 */
bool oracle_ll_combine(const struct oracle_group *group, const void *const *x,
		       const int64_t *capacity, const int64_t *dispatch_capacity, int rank,
		       int partial_dtype, const moeep_ll_combine_args_t *want);

/* Write scale `index` of a row in a layout of the API; UE8M0 words are filled with zeros. */
void oracle_put_scale(void *scales, int scale_dtype, int layout, int64_t stride, int64_t row,
		      int index, const uint8_t *value);
/* A layout's default stride, and the bytes of an array; stride 0 is the default. */
int64_t oracle_scale_stride(int layout, int64_t rows, int scale_count);
size_t oracle_scales_bytes(int scale_dtype, int layout, int64_t rows, int scale_count,
			   int64_t stride);

#endif /* T_ORACLE_H */
