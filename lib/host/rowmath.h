/* SPDX-License-Identifier: MIT */
/*
 * host/rowmath.h - arithmetic and copies of rows.
 *
 * host/rowmath.c and rowmath_sum.c are compiled for several instruction sets, with the name of one
 * as MOEEP_ROWMATH; all of them give the same bits, as FP32 operations are neither contracted nor
 * reordered.
 */
#ifndef MOEEP_HOST_ROWMATH_H
#define MOEEP_HOST_ROWMATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One row of a sum. */
struct moeep_term {
	const void *row;
	float weight;  /* multiplies the row if `weighted` */
	int32_t dtype; /* BF16, FP16 or FP32 */
	bool weighted;
	bool group_end; /* last term of its group */
	bool node_end;	/* last term of its node; none in the whole sum: there is one node */
};

struct moeep_sum {
	const struct moeep_term *terms; /* groups are summed first, in order, then the groups of
					   each node, in order, then over nodes, in order */
	int num_terms;
	int32_t group_dtype; /* groups are rounded to it; 0: not rounded */
	const void *bias;    /* of out_dtype, added last; may be NULL */
	void *out;
	int32_t out_dtype;
	bool stream;		      /* out is not read again soon: keep it out of the caches */
	const struct moeep_sum *next; /* whose rows are to be prefetched, or NULL */
};

struct moeep_rowmath {
	const char *name;
	/* Zeros if there is no term. */
	void (*sum)(const struct moeep_sum *sum, int64_t hidden);
	/*
	 * E4M3 of a row of BF16 or FP16 as moeep_quant_t says: hidden bytes to q, and for each 128
	 * elements a float to scales, or a byte if ue8m0.
	 */
	void (*quantize)(const void *row, int32_t dtype, int64_t hidden, int32_t quant, uint8_t *q,
			 void *scales);
	/* Copy a row that is not read again soon here, past the caches; moeep_rowmath_fence()
	 * before publishing. */
	void (*copy_stream)(void *to, const void *from, size_t bytes);
};

#ifdef MOEEP_ROWMATH
#define MOEEP_ROWMATH_PASTE(prefix, name) prefix##_##name
#define MOEEP_ROWMATH_JOIN(prefix, name)  MOEEP_ROWMATH_PASTE(prefix, name)
#define MOEEP_ROWMATH_NAME(prefix)	  MOEEP_ROWMATH_JOIN(prefix, MOEEP_ROWMATH)
#define MOEEP_ROWMATH_QUOTE(name)	  #name
#define MOEEP_ROWMATH_STRING(name)	  MOEEP_ROWMATH_QUOTE(name)
#define MOEEP_ROWMATH_TEXT		  MOEEP_ROWMATH_STRING(MOEEP_ROWMATH)

void MOEEP_ROWMATH_NAME(moeep_rowmath_sum)(const struct moeep_sum *sum, int64_t hidden);
#endif

/* The best one for this processor. */
const struct moeep_rowmath *moeep_rowmath_get(void);

/* One by name ("generic", "avx2", "avx512"), or NULL if not built or not runnable here; for tests.
 */
const struct moeep_rowmath *moeep_rowmath_find(const char *name);

/* Orders streaming stores before the release store that publishes them, which by itself does not on
 * x86. */
void moeep_rowmath_fence(void);

#endif
