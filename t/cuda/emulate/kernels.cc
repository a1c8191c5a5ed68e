/* SPDX-License-Identifier: MIT */
/* The kernels, compiled for the processors that run the tests. */
#include "t/cuda/emulate/ptx.h"

/* What several of them include is known before, so that a namespace does not have it for itself. */
#include "kernels/ht_landed.cuh"
#include "kernels/ht_plan.cuh"
#include "kernels/ll_common.cuh"

namespace ht_combine
{
#include "kernels/ht_combine.cu"
}
namespace ht_dispatch
{
#include "kernels/ht_dispatch.cu"
}
namespace ht_expand
{
#include "kernels/ht_expand.cu"
}
namespace layout
{
#include "kernels/layout.cu"
}
namespace ll_combine
{
#include "kernels/ll_combine.cu"
}
namespace ll_dispatch
{
#include "kernels/ll_dispatch.cu"
}

/* A launch has a block's parameters in memory, a kernel has them as an argument. */
template <typename P, void kernel(P)> static void run(const void *params)
{
	kernel(*(const P *)params);
}

#define KERNEL(name, params, threads)                                                              \
	{                                                                                          \
		"moeep_kernel_" #name, sizeof(struct params), threads,                             \
			run<struct params, name::moeep_kernel_##name>                              \
	}

const struct emulated_kernel emulated_kernels[] = {
	KERNEL(ht_combine, moeep_ht_combine_params, MOEEP_DEV_HT_THREADS),
	KERNEL(ht_dispatch, moeep_ht_dispatch_params, MOEEP_DEV_HT_THREADS),
	KERNEL(ht_expand, moeep_ht_expand_params, MOEEP_DEV_SUM_THREADS),
	KERNEL(layout, moeep_layout_params, MOEEP_DEV_LL_THREADS),
	KERNEL(ll_combine, moeep_ll_combine_params, MOEEP_DEV_LL_THREADS),
	KERNEL(ll_dispatch, moeep_ll_dispatch_params, MOEEP_DEV_LL_THREADS),
	{},
};
