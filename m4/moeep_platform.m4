# The platform, the compiler's dialect, and the few system libraries.

# MOEEP_CHECK_PLATFORM
# Shared-memory layouts have fixed widths and flags are single 64-bit words: both rest on a 64-bit
# little-endian Linux, and on C11 atomics. Say so here rather than fail in the middle of a build.
AC_DEFUN([MOEEP_CHECK_PLATFORM], [
AC_CACHE_CHECK([for 64-bit little-endian Linux], [moeep_cv_platform],
[AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[
#if !defined(__linux__) || __SIZEOF_POINTER__ != 8 || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "not supported"
#endif
]])], [moeep_cv_platform=yes], [moeep_cv_platform=no])])
AS_IF([test "x$moeep_cv_platform" != xyes],
      [AC_MSG_ERROR([moeep runs on 64-bit little-endian Linux only])])

AC_CACHE_CHECK([whether $CC compiles C11 with atomics], [moeep_cv_c11],
[AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[
#include <stdatomic.h>
#if __STDC_VERSION__ < 201112L
#error "older than C11"
#endif
_Static_assert(sizeof(_Atomic unsigned long long) == 8, "64-bit flag word");
]], [[
_Atomic unsigned long long word;
atomic_init(&word, 0);
atomic_store_explicit(&word, 1, memory_order_release);
]])], [moeep_cv_c11=yes], [moeep_cv_c11=no])])
AS_IF([test "x$moeep_cv_c11" != xyes],
      [AC_MSG_ERROR([a C11 compiler with stdatomic.h is needed; CC is $CC])])

dnl The map is the ABI: a library without it would export its internals.
AC_CACHE_CHECK([whether the linker takes a version script], [moeep_cv_version_script],
[moeep_save_LDFLAGS=$LDFLAGS
LDFLAGS="$LDFLAGS -Wl,--version-script=conftest.map"
echo 'CONFTEST_1 { global: main; local: *; };' >conftest.map
AC_LINK_IFELSE([AC_LANG_PROGRAM], [moeep_cv_version_script=yes], [moeep_cv_version_script=no])
rm -f conftest.map
LDFLAGS=$moeep_save_LDFLAGS])
AS_IF([test "x$moeep_cv_version_script" != xyes],
      [AC_MSG_ERROR([the linker must accept --version-script])])
])

# MOEEP_CHECK_SYSTEM_LIBS
# Substitutes MOEEP_LIBS. On a C library that has folded these into libc nothing is added.
AC_DEFUN([MOEEP_CHECK_SYSTEM_LIBS], [
MOEEP_SAVE_FLAGS([syslibs])
LIBS=
AC_SEARCH_LIBS([pthread_create], [pthread], [], [AC_MSG_ERROR([POSIX threads are needed])])
AC_SEARCH_LIBS([shm_open], [rt], [], [AC_MSG_ERROR([POSIX shared memory is needed])])
AC_SEARCH_LIBS([dlopen], [dl], [], [AC_MSG_ERROR([dlopen is needed])])
AC_SEARCH_LIBS([fabsf], [m], [], [AC_MSG_ERROR([the mathematical library is needed])])
MOEEP_LIBS="$LIBS -pthread"
MOEEP_RESTORE_FLAGS([syslibs])
AC_SUBST([MOEEP_LIBS])
])

# MOEEP_CHECK_SYSCONFDIR
# Defines MOEEP_SYSCONFDIR, expanded: config.h is read by compilers, not by make.
AC_DEFUN([MOEEP_CHECK_SYSCONFDIR], [
moeep_prefix=$prefix
AS_IF([test "x$prefix" = xNONE], [prefix=$ac_default_prefix])
dnl Twice, as it is in terms of prefix, which may be so itself.
eval "moeep_sysconfdir=\"$sysconfdir\""
eval "moeep_sysconfdir=\"$moeep_sysconfdir\""
prefix=$moeep_prefix
AC_DEFINE_UNQUOTED([MOEEP_SYSCONFDIR], ["$moeep_sysconfdir"], [where the site's moeep.conf is])
])
