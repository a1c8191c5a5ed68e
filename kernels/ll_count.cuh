/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_count.cuh - what one block of a low-latency dispatch counts while the others receive: rows of
 * each expert and source, and whether ranks agree.
 */
#ifndef MOEEP_KERNELS_LL_COUNT_CUH
#define MOEEP_KERNELS_LL_COUNT_CUH

#include "ll_recv.cuh"

/* Ranks must agree on what rows are; whoever sees a difference ends the group. */
DEV void check_shape(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int source,
		     const struct told &told)
{
	uint32_t differs = told.shape[source] ^ ll_shape(p);
	int field = differs & 0xffu	  ? 1
		    : differs & 0xff00u	  ? 2
		    : differs & 0xff0000u ? 3
					  : 0;

	/* A rank without tokens cannot have weights to give. */
	if (field == 0 && differs != 0 && told.tokens[source] > 0 && p.num_tokens > 0) {
		field = 4;
	}
	if (field != 0) {
		raise(p.c, MOEEP_ERR_MISMATCH, source, field, epoch, 0, 0);
	}
}

/* Where each expert's rows of a source begin, and how many; and all of it. False: the comm has failed. */
DEV bool count_expert(const struct moeep_ll_dispatch_params &p, uint64_t epoch,
		      const struct told &told, int e, int *total)
{
	const struct moeep_dev_context &c = p.c;
	bool ok = true;

	*total = 0;
	for (int source = 0; source < c.num_ranks && ok; source++) {
		int count = 0;

		if (told.counts) {
			count = told.counts[source * c.local_experts + e];
		} else {
			ok = take_count(p, epoch, source, e, &count);
		}
		if (p.recv_range) {
			p.recv_range[(int64_t)e * c.num_ranks + source] =
				(int64_t)*total << 32 | (unsigned)count;
		}
		*total += count;
	}
	return ok;
}

/* False, in some threads: the comm has failed. */
DEV bool recv_counts(const struct moeep_ll_dispatch_params &p, uint64_t epoch, const struct told &told)
{
	const struct moeep_dev_context &c = p.c;
	const struct moeep_dev_route &route = p.route;
	bool ok = true;
	__shared__ int weighted;
	__shared__ int most;
	__shared__ int rows;
	__shared__ int records;

	if (!take_counts(p, epoch, told)) {
		return false;
	}
	if (threadIdx.x == 0) {
		weighted = 0;
		most = 0;
		rows = 0;
		records = 0;
	}
	__syncthreads();
	for (int e = (int)threadIdx.x; e < c.local_experts && ok; e += (int)blockDim.x) {
		int total;

		ok = count_expert(p, epoch, told, e, &total);
		if (p.recv_count) {
			p.recv_count[e] = total;
		}
		route.expert_count[e] = total;
		atomicMax(&most, total);
		atomicAdd(&rows, total);
	}
	for (int source = (int)(blockDim.x - 1 - threadIdx.x); source < c.num_ranks && ok;
	     source += (int)blockDim.x) {
		struct writer from = {source, MOEEP_DEV_ROWS, epoch};
		uint4 word;

		check_shape(p, epoch, source, told);
		if (told.tokens[source] > 0 && shape_has_weights(told.shape[source])) {
			weighted = 1;
		}
		route.ll_tokens[source] = told.tokens[source];
		ok = take_word(c, count_word(c, epoch, source, 0), from, &word);
		route.recv_count[source] = (int)word.x;
		atomicAdd(&records, (int)word.x);
	}
	__syncthreads();
	if (threadIdx.x == 0) {
		route.state->weighted = weighted;
		route.state->ll_most = most;
		route.state->num_rows = rows;
		route.state->num_records = records;
		route.state->overflow = most > p.capacity || records > p.max_recv;
		/* The last block reads it, behind a ticket that does not order it. */
		__threadfence();
	}
	count_traffic(c, whole_block(), MOEEP_DEV_DISPATCH_ROWS, route.recv_count, p.row_bytes);
	return ok;
}

#endif
