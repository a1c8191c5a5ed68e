/* SPDX-License-Identifier: MIT */
/* core/feature.c - what this build contains, and why it lacks the rest. */
#include "config.h"

#include "core/error.h"

/*
 * What configure found is not always what the library can use: this release has no RDMA transport
 * and no ROCm kernels. So these are off, and the reason says what was found as well.
 */
#if MOEEP_HAVE_VERBS
#define REASON_VERBS MOEEP_REASON_VERBS " found; this release has no RDMA transport"
#else
#define REASON_VERBS MOEEP_REASON_VERBS
#endif

#if MOEEP_HAVE_MLX5DV
#define REASON_MLX5DV MOEEP_REASON_MLX5DV " found; this release has no RDMA transport"
#else
#define REASON_MLX5DV MOEEP_REASON_MLX5DV
#endif

#if MOEEP_HAVE_IBGDA
#define REASON_IBGDA MOEEP_REASON_IBGDA "; this release has no RDMA transport"
#else
#define REASON_IBGDA MOEEP_REASON_IBGDA
#endif

#if MOEEP_HAVE_ROCM
#define REASON_ROCM MOEEP_REASON_ROCM " found; this release carries no ROCm kernels"
#else
#define REASON_ROCM MOEEP_REASON_ROCM
#endif

static const struct {
	const char *name;
	int32_t enabled;
	const char *reason;
} features[] = {
	{"host", 1, "always built"},
	{"cuda", MOEEP_HAVE_CUDA, MOEEP_REASON_CUDA},
	{"verbs", 0, REASON_VERBS},
	{"mlx5dv", 0, REASON_MLX5DV},
	{"ibgda", 0, REASON_IBGDA},
	{"rocm", 0, REASON_ROCM},
	{"nettle", MOEEP_HAVE_NETTLE, MOEEP_REASON_NETTLE},
};

#define NUM_FEATURES (sizeof(features) / sizeof(features[0]))

int moeep_feature_query(unsigned index, moeep_feature_info_t *info)
{
	moeep_feature_info_t own = {.size = sizeof(own)};

	if (index >= NUM_FEATURES) {
		return moeep_fail(MOEEP_ERR_INVALID, "index is %u; there are %zu features", index,
				  NUM_FEATURES);
	}
	own.name = features[index].name;
	own.enabled = features[index].enabled;
	own.reason = features[index].reason;
	return moeep_struct_out("info", info, &own, sizeof(own));
}
