# MOEEP_CHECK_SANITIZERS
# --enable-sanitizers=LIST. Substitutes MOEEP_SANITIZER_CFLAGS, which goes on compile and link
# lines, and MOEEP_SANITIZERS, the list, for the tests.
AC_DEFUN([MOEEP_CHECK_SANITIZERS], [
AC_ARG_ENABLE([sanitizers],
  [AS_HELP_STRING([--enable-sanitizers=LIST],
     [build with address, undefined, or thread (a comma-separated list; thread goes alone or with
      undefined) @<:@no@:>@])],
  [], [enable_sanitizers=no])
moeep_have_sanitizers=no
moeep_reason_sanitizers="not asked for"
MOEEP_SANITIZER_CFLAGS=
MOEEP_SANITIZERS=
AS_IF([test "x$enable_sanitizers" = xyes], [enable_sanitizers=address,undefined])
AS_IF([test "x$enable_sanitizers" != xno], [
  for moeep_item in `AS_ECHO(["$enable_sanitizers"]) | tr ',' ' '`; do
    AS_CASE([$moeep_item], [address|undefined|thread], [],
      [AC_MSG_ERROR([--enable-sanitizers: "$moeep_item" is not one of address, undefined, thread])])
    MOEEP_SANITIZERS="$MOEEP_SANITIZERS${MOEEP_SANITIZERS:+,}$moeep_item"
  done
  AS_IF([test -z "$MOEEP_SANITIZERS"],
        [AC_MSG_ERROR([--enable-sanitizers needs a list of address, undefined, thread])])
  AS_CASE([",$MOEEP_SANITIZERS,"], [*,address,*],
    [AS_CASE([",$MOEEP_SANITIZERS,"], [*,thread,*],
       [AC_MSG_ERROR([--enable-sanitizers: address and thread exclude each other])])])
  MOEEP_SANITIZER_CFLAGS="-fsanitize=$MOEEP_SANITIZERS -fno-sanitize-recover=all"
  MOEEP_SANITIZER_CFLAGS="$MOEEP_SANITIZER_CFLAGS -fno-omit-frame-pointer"
  AC_MSG_CHECKING([whether $CC links with -fsanitize=$MOEEP_SANITIZERS])
  MOEEP_SAVE_FLAGS([sanitizers])
  CFLAGS="$CFLAGS $MOEEP_SANITIZER_CFLAGS"
  AC_LINK_IFELSE([AC_LANG_PROGRAM], [moeep_have_sanitizers=yes], [moeep_have_sanitizers=no])
  MOEEP_RESTORE_FLAGS([sanitizers])
  AC_MSG_RESULT([$moeep_have_sanitizers])
  AS_IF([test "x$moeep_have_sanitizers" = xyes],
        [moeep_reason_sanitizers=$MOEEP_SANITIZERS],
        [moeep_reason_sanitizers="$CC cannot link with -fsanitize=$MOEEP_SANITIZERS"])
])
MOEEP_FEATURE_RESULT([sanitizers], [SANITIZERS], [--enable-sanitizers], [$enable_sanitizers],
                     [Sanitizers])
AC_SUBST([MOEEP_SANITIZER_CFLAGS])
AC_SUBST([MOEEP_SANITIZERS])
dnl A sanitizer's functions come from the program's run-time library, so a shared library that uses
dnl them has undefined symbols; any other must have none.
MOEEP_NO_UNDEFINED=
AS_IF([test "x$MOEEP_SANITIZERS" = x], [MOEEP_NO_UNDEFINED="-Wl,-z,defs"])
AC_SUBST([MOEEP_NO_UNDEFINED])
])
