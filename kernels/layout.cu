/* SPDX-License-Identifier: MIT */
/* kernels/layout.cu - where a rank's tokens would go: moeep_layout(). One block. */
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(MOEEP_DEV_LL_THREADS, 1)
	moeep_kernel_layout(const __grid_constant__ struct moeep_layout_params p)
{
	const struct moeep_dev_context &c = p.c;

	if (!kernel_begin(c)) {
		return;
	}
	for (int i = (int)threadIdx.x; i < c.num_ranks && p.tokens_per_rank; i += (int)blockDim.x) {
		p.tokens_per_rank[i] = 0;
	}
	for (int i = (int)threadIdx.x; i < p.num_nodes && p.tokens_per_node; i += (int)blockDim.x) {
		p.tokens_per_node[i] = 0;
	}
	for (int i = (int)threadIdx.x; i < c.num_experts && p.tokens_per_expert;
	     i += (int)blockDim.x) {
		p.tokens_per_expert[i] = 0;
	}
	__syncthreads();
	for (int64_t token = WARP; token < p.num_tokens; token += NUM_WARPS) {
		int rank[2], node[2];

		for (int half = 0; half < 2; half++) {
			int k = half * 32 + LANE;
			int id = k < p.topk
					 ? check_choice(c,
							raw_choice(p.topk_idx, p.topk_dtype,
								   token * p.topk + k),
							token, k)
					 : -1;

			rank[half] = id < 0 ? -1 : expert_rank(c, id);
			if (id >= 0 && p.tokens_per_expert) {
				atomicAdd(&p.tokens_per_expert[id], 1);
			}
		}
		warp_distinct(&rank[0], &rank[1], p.topk > 32);
		for (int i = LANE; i < c.num_ranks && p.token_in_rank; i += 32) {
			p.token_in_rank[token * c.num_ranks + i] = 0;
		}
		__syncwarp();
		for (int half = 0; half < 2; half++) {
			node[half] = rank[half] < 0 ? -1 : p.node[rank[half]];
			if (rank[half] >= 0 && p.tokens_per_rank) {
				atomicAdd(&p.tokens_per_rank[rank[half]], 1);
			}
			if (rank[half] >= 0 && p.token_in_rank) {
				p.token_in_rank[token * c.num_ranks + rank[half]] = 1;
			}
		}
		warp_distinct(&node[0], &node[1], p.topk > 32);
		for (int half = 0; half < 2; half++) {
			if (node[half] >= 0 && p.tokens_per_node) {
				atomicAdd(&p.tokens_per_node[node[half]], 1);
			}
		}
	}
	__syncthreads();
	if (threadIdx.x == 0) {
		finish_result(c, MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0);
	}
}
