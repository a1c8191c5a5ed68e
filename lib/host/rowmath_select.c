/* SPDX-License-Identifier: MIT */
/* host/rowmath_select.c - which of the row arithmetics this processor runs. */
#include "config.h"

#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "host/rowmath.h"

extern const struct moeep_rowmath moeep_rowmath_generic;
#ifdef MOEEP_HAVE_X86_ROWMATH
extern const struct moeep_rowmath moeep_rowmath_avx2;
extern const struct moeep_rowmath moeep_rowmath_avx512;
#endif

const struct moeep_rowmath *moeep_rowmath_find(const char *name)
{
#ifdef MOEEP_HAVE_X86_ROWMATH
	if (strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
	    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
	    __builtin_cpu_supports("avx512dq")) {
		return &moeep_rowmath_avx512;
	}
	if (strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) {
		return &moeep_rowmath_avx2;
	}
#endif
	return strcmp(name, "generic") == 0 ? &moeep_rowmath_generic : NULL;
}

const struct moeep_rowmath *moeep_rowmath_get(void)
{
	static const char *const names[] = {"avx512", "avx2", "generic"};
	const struct moeep_rowmath *found = NULL;

	for (size_t i = 0; !found && i < sizeof(names) / sizeof(names[0]); i++) {
		found = moeep_rowmath_find(names[i]);
	}
	return found;
}

void moeep_rowmath_fence(void)
{
#if defined(__SSE2__)
	_mm_sfence();
#endif
}
