# MOEEP_TRY_CFLAGS(VARIABLE, flags)
# Appends to VARIABLE each flag that the compiler takes. -Werror during the test: clang only warns
# about a flag that it does not know.
AC_DEFUN([MOEEP_TRY_CFLAGS], [
m4_foreach_w([moeep_flag], [$2], [
AS_VAR_PUSHDEF([moeep_cache], [moeep_cv_cflag_]moeep_flag)
AC_CACHE_CHECK([whether $CC takes ]moeep_flag, [moeep_cache],
[moeep_save_CFLAGS=$CFLAGS
CFLAGS="$CFLAGS -Werror ]moeep_flag["
AC_COMPILE_IFELSE([AC_LANG_PROGRAM], [AS_VAR_SET([moeep_cache], [yes])],
                  [AS_VAR_SET([moeep_cache], [no])])
CFLAGS=$moeep_save_CFLAGS])
AS_VAR_IF([moeep_cache], [yes], [$1="$$1 ]moeep_flag["])
AS_VAR_POPDEF([moeep_cache])
])])

# MOEEP_CHECK_WARNINGS
# Substitutes MOEEP_WARN_CFLAGS. Warnings become errors only on request: a newer compiler than the
# one that was tested must not break somebody's build.
AC_DEFUN([MOEEP_CHECK_WARNINGS], [
AC_ARG_ENABLE([werror],
  [AS_HELP_STRING([--enable-werror], [treat compiler warnings as errors @<:@no@:>@])],
  [], [enable_werror=no])
AS_CASE([$enable_werror], [yes|no], [],
        [AC_MSG_ERROR([--enable-werror takes yes or no, not "$enable_werror"])])
MOEEP_WARN_CFLAGS=
MOEEP_TRY_CFLAGS([MOEEP_WARN_CFLAGS],
  [-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition
   -Wpointer-arith -Wwrite-strings -Wundef -Wvla -Wformat=2 -Wnull-dereference
   -Wdouble-promotion -Wimplicit-fallthrough])
AS_IF([test "x$enable_werror" = xyes], [MOEEP_WARN_CFLAGS="$MOEEP_WARN_CFLAGS -Werror"])
AC_SUBST([MOEEP_WARN_CFLAGS])
])

# MOEEP_CHECK_CODEGEN
# Substitutes MOEEP_CODEGEN_CFLAGS: symbol visibility and arithmetic. Results are compared bit for
# bit between backends, so a product and a sum must each be rounded: no contraction into a fused
# multiply-add, no reassociation, no flush to zero.
AC_DEFUN([MOEEP_CHECK_CODEGEN], [
MOEEP_CODEGEN_CFLAGS=
MOEEP_TRY_CFLAGS([MOEEP_CODEGEN_CFLAGS], [-fvisibility=hidden -fno-fast-math -ffp-contract=off])
AS_CASE([$MOEEP_CODEGEN_CFLAGS], [*-ffp-contract=off*], [],
        [AC_MSG_ERROR([$CC does not take -ffp-contract=off, so sums would not be reproducible])])
dnl The user's CFLAGS come last on the command line and can undo the flags above.
AC_CACHE_CHECK([whether CFLAGS keep IEEE arithmetic], [moeep_cv_ieee],
[moeep_save_CFLAGS=$CFLAGS
CFLAGS="$MOEEP_CODEGEN_CFLAGS $CFLAGS"
AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[
#ifdef __FAST_MATH__
#error "fast math"
#endif
]])], [moeep_cv_ieee=yes], [moeep_cv_ieee=no])
CFLAGS=$moeep_save_CFLAGS])
AS_IF([test "x$moeep_cv_ieee" != xyes],
      [AC_MSG_ERROR([CFLAGS ($CFLAGS) turn on fast-math; results would not be reproducible])])
AS_CASE([" $CFLAGS "], [*" -ffp-contract=fast "*|*" -ffp-contract=on "*],
      [AC_MSG_ERROR([CFLAGS ($CFLAGS) turn on contraction; results would not be reproducible])])
AC_SUBST([MOEEP_CODEGEN_CFLAGS])
])
