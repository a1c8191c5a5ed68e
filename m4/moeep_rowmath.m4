# MOEEP_CHECK_ROWMATH
# Row arithmetic is compiled for several x86 instruction sets and chosen at run time. Defines
# MOEEP_HAVE_X86_ROWMATH, the conditional of the same name, and ROWMATH_CFLAGS: vectorisation on,
# whatever level the user's CFLAGS choose. Nobody looks at exception flags, and a loop that may not raise
# one early cannot be made of vectors; -fno-trapping-math changes no result.
AC_DEFUN([MOEEP_CHECK_ROWMATH], [
AC_CACHE_CHECK([whether $CC compiles for AVX2 and AVX-512], [moeep_cv_x86_rowmath],
[moeep_save_rowmath_CFLAGS=$CFLAGS
CFLAGS="$CFLAGS -mavx2 -mavx512f -mavx512bw -mavx512vl -mavx512dq"
AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[
#if !defined(__x86_64__)
#error "not x86-64"
#endif
#include <immintrin.h>
]], [[
static char to[64] __attribute__((aligned(64)));
_mm512_stream_si512((void *)to, _mm512_setzero_si512());
return __builtin_cpu_supports("avx512bw");
]])], [moeep_cv_x86_rowmath=yes], [moeep_cv_x86_rowmath=no])
CFLAGS=$moeep_save_rowmath_CFLAGS])
AS_IF([test "x$moeep_cv_x86_rowmath" = xyes],
      [AC_DEFINE([MOEEP_HAVE_X86_ROWMATH], [1], [Row arithmetic for AVX2 and AVX-512 is built.])])
AM_CONDITIONAL([MOEEP_HAVE_X86_ROWMATH], [test "x$moeep_cv_x86_rowmath" = xyes])

ROWMATH_CFLAGS=
for moeep_flag in -ftree-vectorize -fvect-cost-model=dynamic -fno-trapping-math; do
	AC_MSG_CHECKING([whether $CC takes $moeep_flag])
	moeep_save_rowmath_CFLAGS=$CFLAGS
	CFLAGS="$CFLAGS $moeep_flag -Werror"
	AC_COMPILE_IFELSE([AC_LANG_PROGRAM],
		[AC_MSG_RESULT([yes])
		 ROWMATH_CFLAGS="$ROWMATH_CFLAGS $moeep_flag"],
		[AC_MSG_RESULT([no])])
	CFLAGS=$moeep_save_rowmath_CFLAGS
done
AC_SUBST([ROWMATH_CFLAGS])
])
