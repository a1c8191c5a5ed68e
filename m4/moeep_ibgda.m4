# MOEEP_CHECK_IBGDA
# GPU-initiated RDMA: the GPU writes mlx5 work requests. No library of its own, only a condition on
# the other probes: verbs and mlx5dv and CUDA, and not ROCm.
AC_DEFUN([MOEEP_CHECK_IBGDA], [
AC_ARG_ENABLE([ibgda],
  [AS_HELP_STRING([--enable-ibgda],
     [GPU-initiated RDMA; needs libibverbs, mlx5dv and CUDA (yes, no or auto) @<:@auto@:>@])],
  [], [enable_ibgda=auto])
AS_CASE([$enable_ibgda], [yes|no|auto], [],
        [AC_MSG_ERROR([--enable-ibgda takes yes, no or auto, not "$enable_ibgda"])])
moeep_have_ibgda=no
moeep_note_ibgda=
AC_MSG_CHECKING([whether IBGDA can be built])
dnl ROCm goes first: no package that could be installed would change that answer.
AS_IF([test "x$enable_ibgda" = xno],
      [moeep_reason_ibgda="disabled by --disable-ibgda"],
      [test "x$moeep_have_rocm" = xyes],
      [moeep_reason_ibgda="ROCm excludes it"],
      [test "x$moeep_have_verbs" != xyes],
      [moeep_reason_ibgda="it needs libibverbs: $moeep_reason_verbs"],
      [test "x$moeep_have_mlx5dv" != xyes],
      [moeep_reason_ibgda="it needs mlx5dv: $moeep_reason_mlx5dv"],
      [test "x$moeep_have_cuda" != xyes],
      [moeep_reason_ibgda="it needs CUDA: $moeep_reason_cuda"],
      [moeep_have_ibgda=yes
       moeep_reason_ibgda="libibverbs, mlx5dv and CUDA were found"])
AC_MSG_RESULT([$moeep_have_ibgda])
MOEEP_FEATURE_RESULT([ibgda], [IBGDA], [--enable-ibgda], [$enable_ibgda], [IBGDA])
])
