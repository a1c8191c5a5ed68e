# MOEEP_RDMA_FLAGS(feature, VARIABLE, module, header, library, requested)
# Sets VARIABLE_CFLAGS, VARIABLE_LIBS and moeep_from_feature (where they come from). A directory
# given by the user counts alone; else pkg-config, whose answer the user can override with the two
# variables; else the compiler's own search path.
AC_DEFUN([MOEEP_RDMA_FLAGS], [
moeep_from_$1=
AS_CASE([$6],
  [yes|auto], [
    PKG_CHECK_MODULES([$2], [$3],
      [moeep_from_$1="$3 `$PKG_CONFIG --modversion $3 2>/dev/null`"
       moeep_from_$1=`AS_ECHO(["$moeep_from_$1"]) | $SED 's/ *$//'`],
      [$2_CFLAGS=
       $2_LIBS=-l$5
       moeep_from_$1="lib$5 without pkg-config"])
  ], [
    $2_CFLAGS="-I$6/include"
    moeep_libdir=$6/lib
    AS_IF([test -d "$6/lib64" && test ! -e "$6/lib/lib$5.so"], [moeep_libdir=$6/lib64])
    $2_LIBS="-L$moeep_libdir -l$5"
    moeep_from_$1="lib$5 from $6"
    AS_IF([test ! -f "$6/include/$4"],
          [moeep_have_$1=no
           moeep_reason_$1="$6/include/$4 was not found"])
  ])
])

# MOEEP_CHECK_VERBS
# Defines HAVE_DECL_* for what later rdma-core releases added: the library does without, or looks
# for it at run time.
AC_DEFUN([MOEEP_CHECK_VERBS], [
AC_ARG_WITH([verbs],
  [AS_HELP_STRING([--with-verbs@<:@=DIR@:>@],
     [look for libibverbs, below DIR if given (yes, no, auto or DIR) @<:@auto@:>@])],
  [], [with_verbs=auto])
moeep_have_verbs=yes
moeep_reason_verbs=
moeep_note_verbs=
AS_IF([test "x$with_verbs" = xno], [
  moeep_have_verbs=no
  moeep_reason_verbs="disabled by --without-verbs"
  VERBS_CFLAGS= VERBS_LIBS=
], [
  MOEEP_RDMA_FLAGS([verbs], [VERBS], [libibverbs], [infiniband/verbs.h], [ibverbs], [$with_verbs])
  MOEEP_SAVE_FLAGS([verbs])
  CPPFLAGS="$VERBS_CFLAGS $CPPFLAGS"
  LIBS="$VERBS_LIBS $LIBS"
  AS_IF([test "x$moeep_have_verbs" = xyes],
        [AC_CHECK_HEADER([infiniband/verbs.h], [],
                         [moeep_have_verbs=no
                          moeep_reason_verbs="infiniband/verbs.h was not found or does not\
 compile"],
                         [AC_INCLUDES_DEFAULT])])
  MOEEP_NEED_DECLS([verbs], [@%:@include <infiniband/verbs.h>],
    [ibv_get_device_list ibv_open_device ibv_reg_mr ibv_create_qp ibv_modify_qp ibv_query_gid
     ibv_post_send IBV_WR_RDMA_WRITE IBV_WR_ATOMIC_FETCH_AND_ADD])
  AS_IF([test "x$moeep_have_verbs" = xyes], [
    AC_MSG_CHECKING([whether libibverbs links])
    AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <infiniband/verbs.h>]],
                                    [[return ibv_get_device_list(0) != 0;]])], [],
                   [moeep_have_verbs=no
                    moeep_reason_verbs="a program does not link with $VERBS_LIBS"])
    AC_MSG_RESULT([$moeep_have_verbs])
  ])
  AS_IF([test "x$moeep_have_verbs" = xyes], [
    AC_CHECK_DECLS([ibv_reg_dmabuf_mr, ibv_query_gid_ex, ibv_query_gid_table, ibv_reg_mr_ex,
                    IBV_ACCESS_RELAXED_ORDERING], [], [], [[#include <infiniband/verbs.h>]])
    moeep_reason_verbs=$moeep_from_verbs
  ])
  MOEEP_RESTORE_FLAGS([verbs])
])
MOEEP_FEATURE_RESULT([verbs], [VERBS], [--with-verbs], [$with_verbs], [libibverbs])
AC_SUBST([VERBS_CFLAGS])
AC_SUBST([VERBS_LIBS])
])
