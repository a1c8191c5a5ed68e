/* SPDX-License-Identifier: MIT */
/* kernels/ll_told.cuh - what a rank's blocks know of all sources of a low-latency dispatch. */
#ifndef MOEEP_KERNELS_LL_TOLD_CUH
#define MOEEP_KERNELS_LL_TOLD_CUH

#include "ll_common.cuh"

/* What sources tell, in shared memory. */
struct told {
	int *tokens;	 /* [R] */
	uint32_t *shape; /* [R] */
	int *counts;	 /* [R][L] choices of local experts; NULL: there is no room for them */
};

/* Word i of what a source tells of its counts: tokens for this rank, then choices of local experts. */
DEV const char *count_word(const struct moeep_dev_context &c, uint64_t epoch, int source, int i)
{
	return ll_slot(c, c.rank, epoch, source) + c.window.ll_slot_counts + i * MOEEP_DEV_WORD;
}

/* One count, from the slot. False: the comm has failed. */
DEV bool take_count(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int source, int e,
		    int *count)
{
	struct writer from = {source, MOEEP_DEV_ROWS, epoch};
	uint4 word;
	bool ok = take_word(p.c, count_word(p.c, epoch, source, e / VALUES + 1), from, &word);

	*count = (int)value_of(word, e % VALUES);
	return ok;
}

/* How many tokens each source has. False, in all threads: the comm has failed. */
DEV bool take_headers(const struct moeep_ll_dispatch_params &p, uint64_t epoch,
		      const struct told &told)
{
	const struct moeep_dev_context &c = p.c;
	bool ok = true;

	for (int source = (int)threadIdx.x; source < c.num_ranks && ok; source += (int)blockDim.x) {
		struct writer from = {source, MOEEP_DEV_ROWS, epoch};
		uint4 header;

		ok = take_word(c, ll_slot(c, c.rank, epoch, source), from, &header);
		told.tokens[source] = (int)header.x;
		told.shape[source] = header.y;
	}
	return __syncthreads_and(ok) != 0;
}

/* How many choices each local expert has of it. False, in all threads: the comm has failed. */
DEV bool take_counts(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const struct told &told)
{
	const struct moeep_dev_context &c = p.c;
	int words = told.counts ? words_of(c.local_experts) : 0;
	bool ok = true;

	for (int i = (int)threadIdx.x; i < c.num_ranks * words && ok; i += (int)blockDim.x) {
		struct writer from = {i / words, MOEEP_DEV_ROWS, epoch};
		uint4 word;

		ok = take_word(c, count_word(c, epoch, i / words, i % words + 1), from, &word);
#pragma unroll
		for (int v = 0; v < VALUES; v++) {
			int e = i % words * VALUES + v;

			if (e < c.local_experts) {
				told.counts[i / words * c.local_experts + e] =
					(int)value_of(word, v);
			}
		}
	}
	return __syncthreads_and(ok) != 0;
}

/* Counts of each source to counts of the sources in front of it. */
DEV void sum_counts(const struct moeep_dev_context &c, const struct told &told)
{
	for (int e = (int)threadIdx.x; told.counts && e < c.local_experts; e += (int)blockDim.x) {
		int total = 0;

		for (int source = 0; source < c.num_ranks; source++) {
			int count = told.counts[source * c.local_experts + e];

			told.counts[source * c.local_experts + e] = total;
			total += count;
		}
	}
	__syncthreads();
}

/* Rows of an expert from the sources in front of one. False: the comm has failed. */
DEV bool rows_before(const struct moeep_ll_dispatch_params &p, uint64_t epoch,
		     const struct told &told, int source, int e, int *rows)
{
	bool ok = true;

	if (told.counts) {
		*rows = told.counts[source * p.c.local_experts + e];
		return true;
	}
	*rows = 0;
	for (int other = 0; other < source && ok; other++) {
		int count;

		ok = take_count(p, epoch, other, e, &count);
		*rows += count;
	}
	return ok;
}

#endif
