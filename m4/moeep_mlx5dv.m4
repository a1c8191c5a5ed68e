# MOEEP_CHECK_MLX5DV
# mlx5dv is the part of rdma-core that shows the queues of an mlx5 NIC to its user, which is what a
# GPU needs to write its own work requests. Asked for by declaration and structure member.
AC_DEFUN([MOEEP_CHECK_MLX5DV], [
AC_ARG_WITH([mlx5dv],
  [AS_HELP_STRING([--with-mlx5dv@<:@=DIR@:>@],
     [look for libmlx5 and its direct verbs, below DIR if given (yes, no, auto or DIR)
      @<:@auto@:>@])],
  [], [with_mlx5dv=auto])
moeep_have_mlx5dv=yes
moeep_reason_mlx5dv=
moeep_note_mlx5dv=
AS_IF([test "x$with_mlx5dv" = xno], [
  moeep_have_mlx5dv=no
  moeep_reason_mlx5dv="disabled by --without-mlx5dv"
  MLX5DV_CFLAGS= MLX5DV_LIBS=
], [test "x$moeep_have_verbs" != xyes], [
  moeep_have_mlx5dv=no
  moeep_reason_mlx5dv="it needs libibverbs: $moeep_reason_verbs"
  MLX5DV_CFLAGS= MLX5DV_LIBS=
], [
  MOEEP_RDMA_FLAGS([mlx5dv], [MLX5DV], [libmlx5], [infiniband/mlx5dv.h], [mlx5], [$with_mlx5dv])
  MOEEP_SAVE_FLAGS([mlx5dv])
  CPPFLAGS="$MLX5DV_CFLAGS $VERBS_CFLAGS $CPPFLAGS"
  LIBS="$MLX5DV_LIBS $VERBS_LIBS $LIBS"
  AS_IF([test "x$moeep_have_mlx5dv" = xyes],
        [AC_CHECK_HEADER([infiniband/mlx5dv.h], [],
                         [moeep_have_mlx5dv=no
                          moeep_reason_mlx5dv="infiniband/mlx5dv.h was not found or does not\
 compile"],
                         [AC_INCLUDES_DEFAULT])])
  MOEEP_NEED_DECLS([mlx5dv], [@%:@include <infiniband/mlx5dv.h>],
    [mlx5dv_init_obj mlx5dv_create_qp mlx5dv_devx_umem_reg mlx5dv_devx_alloc_uar
     MLX5DV_UAR_ALLOC_TYPE_NC])
  MOEEP_NEED_MEMBERS([mlx5dv], [@%:@include <infiniband/mlx5dv.h>], [struct mlx5dv_qp],
                     [dbrec sq.buf bf.reg])
  MOEEP_NEED_MEMBERS([mlx5dv], [@%:@include <infiniband/mlx5dv.h>], [struct mlx5dv_cq],
                     [buf dbrec])
  AS_IF([test "x$moeep_have_mlx5dv" = xyes], [
    AC_MSG_CHECKING([whether libmlx5 links])
    AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <infiniband/mlx5dv.h>]],
                                    [[return mlx5dv_init_obj(0, 0);]])], [],
                   [moeep_have_mlx5dv=no
                    moeep_reason_mlx5dv="a program does not link with $MLX5DV_LIBS $VERBS_LIBS"])
    AC_MSG_RESULT([$moeep_have_mlx5dv])
  ])
  AS_IF([test "x$moeep_have_mlx5dv" = xyes], [
    AC_CHECK_DECLS([MLX5DV_UMEM_MASK_DMABUF, MLX5DV_UAR_ALLOC_TYPE_NC_DEDICATED,
                    mlx5dv_reg_dmabuf_mr, mlx5dv_devx_umem_reg_ex], [], [],
                   [[#include <infiniband/mlx5dv.h>]])
    moeep_reason_mlx5dv=$moeep_from_mlx5dv
  ])
  MOEEP_RESTORE_FLAGS([mlx5dv])
])
MOEEP_FEATURE_RESULT([mlx5dv], [MLX5DV], [--with-mlx5dv], [$with_mlx5dv], [mlx5dv])
AC_SUBST([MLX5DV_CFLAGS])
AC_SUBST([MLX5DV_LIBS])
])
