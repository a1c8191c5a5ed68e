/* SPDX-License-Identifier: MIT */
/* cuda/result.c - what kernels say of an operation, as text. */
#include "config.h"

#include "core/comm.h"
#include "core/error.h"
#include "cuda/launch.h"

/* What check_agreement() of the kernels compares. */
static const char *const fields[] = {
	"the operation", "flags",	"the handle's dispatch (its epoch)",
	"dtype",	 "topk",	"row_layout",
	"scale_count",	 "scale_dtype", "what is given (1 weights, 2 scales, 4 x)",
};

static int with_detail(const struct moeep_comm *comm, int code, int detail, long long a,
		       long long b, long long c)
{
	switch (detail) {
	case MOEEP_DEV_DETAIL_CHOICE:
		return moeep_fail(
			code,
			"topk_idx of token %lld, choice %lld, is %lld, which is no expert "
			"and not -1; it was left out",
			a, b, c);
	case MOEEP_DEV_DETAIL_ROWS:
		return moeep_fail(code, "rank %lld receives %lld rows; its capacity is %lld", a, b,
				  c);
	case MOEEP_DEV_DETAIL_HANDLE:
		return moeep_fail(code, "rank %lld receives %lld tokens; its handle holds %lld", a,
				  b, c);
	case MOEEP_DEV_DETAIL_EXPERT:
		return moeep_fail(code, "an expert of rank %d receives %lld rows; capacity is %lld",
				  comm->rank, a, b);
	case MOEEP_DEV_DETAIL_RECORDS:
		return moeep_fail(code, "rank %d receives %lld tokens; its handle holds %lld",
				  comm->rank, a, b);
	case MOEEP_DEV_DETAIL_LOST:
		return moeep_fail(code,
				  "rows of this rank's tokens did not fit at rank %lld in the "
				  "dispatch",
				  a);
	case MOEEP_DEV_DETAIL_FIELD:
		return moeep_fail(code, "%s: %lld on rank %lld, another value elsewhere", fields[a],
				  c, b);
	case MOEEP_DEV_DETAIL_OVERFLOW:
		return moeep_fail(code, "the handle's last dispatch did not fit on every rank");
	case MOEEP_DEV_DETAIL_NO_ROUTE:
		return moeep_fail(code, "the handle has no routing of an HT dispatch");
	case MOEEP_DEV_DETAIL_WEIGHTS:
		return moeep_fail(
			code, "flags has MOEEP_COMBINE_WEIGHTED but the dispatch had no weights");
	case MOEEP_DEV_DETAIL_X:
		return moeep_fail(code, "capacity is %lld, but local expert %lld has %lld rows", c,
				  a, b);
	case MOEEP_DEV_DETAIL_NO_X:
		return moeep_fail(code, "x is NULL on rank %lld with %lld rows received", a, b);
	default:
		return moeep_fail(code, "%s", moeep_strerror(code));
	}
}

int moeep_cuda_result(struct moeep_comm *comm, const struct moeep_dev_result *result)
{
	const volatile struct moeep_dev_result *r = result;
	int rc = moeep_cuda_check(comm);

	/* A failure of the comm says more, and what was computed beside it is not a result. */
	if (rc != MOEEP_OK || r->code == MOEEP_OK) {
		return rc;
	}
	return with_detail(comm, r->code, r->detail, r->a, r->b, r->c);
}
