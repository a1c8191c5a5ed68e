/* SPDX-License-Identifier: MIT */
/* A driver call without which the rest of a rank's body makes no sense; as RANK_TRY(). */
#ifndef T_CUDA_TRY_H
#define T_CUDA_TRY_H

#include "cuda/driver.h"
#include "t/ranks.h"

#define TRY_CU(cu, call)                                                                           \
	do {                                                                                       \
		CUresult result_ = (cu)->call;                                                     \
		if (result_ != CUDA_SUCCESS) {                                                     \
			moeep_cu_fail(cu, result_, "%s", #call);                                   \
			rank_fail("%s:%d: %s", __FILE__, __LINE__, moeep_error_detail());          \
			return -1;                                                                 \
		}                                                                                  \
	} while (0)

#endif /* T_CUDA_TRY_H */
