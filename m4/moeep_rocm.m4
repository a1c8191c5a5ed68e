# MOEEP_CHECK_ROCM
# A ROCm build excludes CUDA and IBGDA, so it is never chosen behind the back of somebody who has
# an nvcc, even one that cannot be used. moeep_cv_rocm_dirs sets the places after PATH, for tests.
AC_DEFUN([MOEEP_CHECK_ROCM], [
moeep_have_rocm=no
moeep_reason_rocm=
moeep_note_rocm=
AS_IF([test "x$with_rocm" = xno], [
  moeep_reason_rocm="disabled by --without-rocm"
], [test "x$moeep_ask_rocm" = xno && test "x$moeep_ask_cuda" = xyes], [
  moeep_reason_rocm="excluded by --with-cuda"
], [test "x$moeep_ask_rocm" = xno && test "x$moeep_nvcc_found" = xyes], [
  moeep_reason_rocm="an nvcc was found; --with-rocm would choose ROCm"
], [
  MOEEP_FIND_COMPILER([HIPCC], [hipcc], [$with_rocm], [moeep_cv_rocm_dirs], [/opt/rocm/bin])
  AS_IF([test -z "$moeep_found"], [moeep_reason_rocm=$moeep_missing], [
    HIPCC=$moeep_found
    MOEEP_ROCM_COMPILES
  ])
])
AS_IF([test "x$moeep_have_rocm" = xyes],
      [AC_MSG_NOTICE([this is a ROCm build: CUDA and IBGDA are excluded])],
      [HIPCC=])
MOEEP_FEATURE_RESULT([rocm], [ROCM], [--with-rocm], [$with_rocm], [ROCm compiler])
])

# MOEEP_ROCM_COMPILES
# The architecture is named: without one hipcc asks the GPU of the build host, if it has any.
AC_DEFUN([MOEEP_ROCM_COMPILES], [
AC_MSG_CHECKING([the version of hipcc])
moeep_hipcc_version=`$HIPCC --version 2>/dev/null |
  $SED -n 's/^HIP version: *\(@<:@0-9@:>@@<:@0-9.@:>@*@<:@0-9@:>@\).*/\1/p' | $SED -n 1p`
AC_MSG_RESULT([${moeep_hipcc_version:-unknown}])
AC_MSG_CHECKING([whether hipcc compiles a kernel])
cat >conftest.hip <<'MOEEP_EOF'
#include <hip/hip_runtime.h>
extern "C" __global__ void conftest_kernel(unsigned *out) { *out = threadIdx.x; }
MOEEP_EOF
rm -f conftest.o
AS_ECHO(["$HIPCC --offload-arch=gfx90a -c -o conftest.o conftest.hip"]) >&AS_MESSAGE_LOG_FD
AS_IF([$HIPCC --offload-arch=gfx90a -c -o conftest.o conftest.hip >conftest.err 2>&1 &&
       test -s conftest.o], [
  moeep_have_rocm=yes
  moeep_reason_rocm="hipcc${moeep_hipcc_version:+ $moeep_hipcc_version}"
  moeep_note_rocm=$HIPCC
], [
  MOEEP_FIRST_ERROR_LINE([moeep_line], [conftest.err])
  moeep_reason_rocm="hipcc cannot compile a kernel${moeep_line:+: $moeep_line}"
])
cat conftest.err >&AS_MESSAGE_LOG_FD
rm -f conftest.hip conftest.o conftest.err
AC_MSG_RESULT([$moeep_have_rocm])
])
