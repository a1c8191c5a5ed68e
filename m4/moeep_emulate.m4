# MOEEP_CHECK_EMULATE
# Whether tests can run the CUDA kernels on CPUs: they are compiled as C++ for that, which nothing
# else here needs. Substitutes MOEEP_REASON_EMULATE, for the test that is skipped otherwise.
AC_DEFUN([MOEEP_CHECK_EMULATE], [
moeep_have_emulate=no
MOEEP_REASON_EMULATE=
AS_IF([test "x$moeep_have_cuda" != xyes], [
  MOEEP_REASON_EMULATE="the library is built without CUDA kernels"
], [test -n "$MOEEP_SANITIZERS"], [
  MOEEP_REASON_EMULATE="sanitizers do not know the stacks of its threads"
], [
  AC_LANG_PUSH([C++])
  moeep_save_CXXFLAGS=$CXXFLAGS
  CXXFLAGS="$CXXFLAGS -std=c++17 -ffp-contract=off"
  AC_CACHE_CHECK([whether $CXX compiles C++17], [moeep_cv_cxx17],
    [AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[
template <typename T, void function(T)> static void call(T value) { function(value); }
static void nothing(int) { }
struct alignas(16) four { float x[4]; };
]], [[call<int, nothing>(alignof(four));]])],
      [moeep_cv_cxx17=yes], [moeep_cv_cxx17=no])])
  CXXFLAGS=$moeep_save_CXXFLAGS
  AC_LANG_POP([C++])
  AS_IF([test "x$moeep_cv_cxx17" = xyes], [moeep_have_emulate=yes],
        [MOEEP_REASON_EMULATE="there is no compiler for C++17 (CXX is $CXX)"])
])
AC_SUBST([MOEEP_REASON_EMULATE])
AM_CONDITIONAL([MOEEP_EMULATE], [test "x$moeep_have_emulate" = xyes])
])
