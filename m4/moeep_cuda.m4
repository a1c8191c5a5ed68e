# CUDA: only a compiler is looked for. Host code never includes or links CUDA; the driver is opened
# at run time.

# MOEEP_GPU_OPTIONS
# Reads --with-cuda and --with-rocm. A library is built for one of the two GPU stacks at most.
AC_DEFUN([MOEEP_GPU_OPTIONS], [
AC_ARG_WITH([cuda],
  [AS_HELP_STRING([--with-cuda@<:@=DIR@:>@],
     [use the CUDA compiler, from DIR/bin if given (yes, no, auto or DIR) @<:@auto@:>@])],
  [], [with_cuda=auto])
AC_ARG_WITH([rocm],
  [AS_HELP_STRING([--with-rocm@<:@=DIR@:>@],
     [build for ROCm, with hipcc from DIR/bin if given; excludes CUDA and IBGDA (yes, no, auto or
      DIR; auto takes ROCm if there is a hipcc and no nvcc) @<:@auto@:>@])],
  [], [with_rocm=auto])
AC_ARG_VAR([NVCC], [CUDA compiler command])
AC_ARG_VAR([NVCC_GENCODE],
           [nvcc options that select GPU architectures (default: by the version of nvcc)])
AC_ARG_VAR([NVCCFLAGS], [more options for nvcc (default: -O3)])
AC_ARG_VAR([HIPCC], [HIP compiler command])
AS_CASE([$with_cuda], [no|auto], [moeep_ask_cuda=no], [moeep_ask_cuda=yes])
AS_CASE([$with_rocm], [no|auto], [moeep_ask_rocm=no], [moeep_ask_rocm=yes])
AS_IF([test "$moeep_ask_cuda$moeep_ask_rocm" = yesyes],
      [AC_MSG_ERROR([--with-rocm and --with-cuda exclude each other; give one of them])])
])

# MOEEP_FIND_COMPILER(VARIABLE, program, requested, default-dirs-cache-variable, default dirs)
# Sets moeep_found to the command, or to nothing with the cause in moeep_missing. Order: VARIABLE
# as given by the user, DIR/bin, PATH, the default places. A place that the user names is the only
# one looked at: to take another compiler than the one asked for would be worse than an error.
AC_DEFUN([MOEEP_FIND_COMPILER], [
moeep_found=
moeep_missing=
moeep_places=${$4-$5}
AC_MSG_CHECKING([for $2])
AS_IF([test -n "$$1"], [
  set dummy $$1
  AS_IF([command -v "$[2]" >/dev/null 2>&1], [moeep_found=$$1],
        [moeep_missing="$1=$$1 cannot be run"])
], [
  AS_CASE([$3],
    [yes|no|auto], [
      dnl Only what comes out of an expansion is split at IFS, so the list is one variable.
      moeep_search=$PATH:$moeep_places
      moeep_save_IFS=$IFS; IFS=:
      for moeep_dir in $moeep_search; do
        IFS=$moeep_save_IFS
        AS_IF([test -n "$moeep_dir" && test -f "$moeep_dir/$2" && test -x "$moeep_dir/$2"],
              [moeep_found=$moeep_dir/$2; break])
      done
      IFS=$moeep_save_IFS
      AS_IF([test -z "$moeep_found"],
            [moeep_missing="$2 was not found in PATH or $moeep_places"])
    ], [
      AS_IF([test -f "$3/bin/$2" && test -x "$3/bin/$2"], [moeep_found=$3/bin/$2],
            [moeep_missing="$3/bin/$2 was not found"])
    ])
])
AC_MSG_RESULT([${moeep_found:-no}])
])

# MOEEP_FIRST_ERROR_LINE(variable, file)
# Sets variable to the line that tells most about why a compiler failed, short enough for a
# summary and without what a shell or a C string would take for its own (\140 is a backquote).
AC_DEFUN([MOEEP_FIRST_ERROR_LINE], [
$1=`{ $GREP -i -E 'error|fatal|unsupported|cannot|not found' $2 || cat $2; } 2>/dev/null |
  $SED -n 1p | tr -d '\140"$' | cut -c 1-120`
])

# MOEEP_CHECK_CUDA
# The default places after PATH can be set with moeep_cv_cuda_dirs, which the tests do.
AC_DEFUN([MOEEP_CHECK_CUDA], [
moeep_have_cuda=no
moeep_reason_cuda=
moeep_note_cuda=
moeep_nvcc_found=no
moeep_nvcc_version=
AS_IF([test "x$with_cuda" = xno], [
  moeep_reason_cuda="disabled by --without-cuda"
], [test "x$moeep_ask_rocm" = xyes], [
  moeep_reason_cuda="excluded by --with-rocm"
], [
  MOEEP_FIND_COMPILER([NVCC], [nvcc], [$with_cuda], [moeep_cv_cuda_dirs], [/usr/local/cuda/bin])
  AS_IF([test -z "$moeep_found"], [moeep_reason_cuda=$moeep_missing], [
    NVCC=$moeep_found
    moeep_nvcc_found=yes
    MOEEP_CUDA_VERSION
    AS_IF([test "x$moeep_have_cuda" = xyes], [MOEEP_CUDA_COMPILES])
  ])
])
AS_IF([test "x$moeep_have_cuda" != xyes], [NVCC= NVCC_GENCODE= NVCCFLAGS=])
dnl For a test that compares the library's declarations with the toolkit's.
CUDA_CPPFLAGS=
AS_IF([test -n "$NVCC"], [
  moeep_dir=`AS_DIRNAME(["$NVCC"])`/../include
  AS_IF([test -f "$moeep_dir/cuda.h"], [CUDA_CPPFLAGS="-isystem $moeep_dir"])
])
AC_SUBST([CUDA_CPPFLAGS])
MOEEP_FEATURE_RESULT([cuda], [CUDA], [--with-cuda], [$with_cuda], [CUDA kernels])
AM_CONDITIONAL([HAVE_NVCC], [test "x$moeep_have_cuda" = xyes])
])

# MOEEP_CUDA_VERSION
# 12.0 is the first that knows sm_90, whose copy engine the kernels use.
AC_DEFUN([MOEEP_CUDA_VERSION], [
AC_MSG_CHECKING([the version of nvcc])
moeep_nvcc_version=`$NVCC --version 2>/dev/null |
  $SED -n 's/.*release \(@<:@0-9@:>@@<:@0-9@:>@*\.@<:@0-9@:>@@<:@0-9@:>@*\).*/\1/p' |
  $SED -n 1p`
AC_MSG_RESULT([${moeep_nvcc_version:-unknown}])
moeep_nvcc_major=${moeep_nvcc_version%%.*}
moeep_nvcc_minor=${moeep_nvcc_version#*.}
AS_IF([test -z "$moeep_nvcc_version"], [
  moeep_reason_cuda="$NVCC --version does not tell a release"
], [test "$moeep_nvcc_major" -lt 12], [
  moeep_reason_cuda="nvcc $moeep_nvcc_version is too old, 12.0 or later is needed"
], [
  moeep_have_cuda=yes
])
])

# MOEEP_CUDA_COMPILES
# Compiles as the build will compile, for the same architectures: an nvcc can be there and still
# refuse the host compiler, an architecture or an option.
AC_DEFUN([MOEEP_CUDA_COMPILES], [
AS_IF([test -z "$NVCC_GENCODE"], [
  moeep_sm="80 90"
  AS_IF([test "$moeep_nvcc_major" -gt 12 ||
         { test "$moeep_nvcc_major" -eq 12 && test "$moeep_nvcc_minor" -ge 8; }],
        [moeep_sm="$moeep_sm 100"])
  for moeep_arch in $moeep_sm; do
    NVCC_GENCODE="$NVCC_GENCODE -gencode arch=compute_$moeep_arch,code=sm_$moeep_arch"
  done
  dnl PTX of the newest, so that the driver of a later GPU can translate it.
  NVCC_GENCODE="$NVCC_GENCODE -gencode arch=compute_$moeep_arch,code=compute_$moeep_arch"
  NVCC_GENCODE=`AS_ECHO(["$NVCC_GENCODE"]) | $SED 's/^ *//'`
])
AS_IF([test -z "$NVCCFLAGS"], [NVCCFLAGS=-O3])
dnl Sums are multiplied and added, each rounded, as on the host: no contraction. A kernel that
dnl spills registers should be seen.
MOEEP_NVCCFLAGS="-std=c++17 --fmad=false -Xptxas -warn-spills"
AC_MSG_CHECKING([whether nvcc compiles a kernel])
cat >conftest.cu <<'MOEEP_EOF'
extern "C" __global__ void conftest_kernel(unsigned *out) { *out = threadIdx.x; }
MOEEP_EOF
rm -f conftest.fatbin
moeep_command="$NVCC $NVCC_GENCODE -fatbin $MOEEP_NVCCFLAGS $NVCCFLAGS"
moeep_command="$moeep_command -MD -MP -MT conftest.fatbin -MF conftest.d -o conftest.fatbin"
AS_ECHO(["$moeep_command conftest.cu"]) >&AS_MESSAGE_LOG_FD
AS_IF([$moeep_command conftest.cu >conftest.err 2>&1 && test -s conftest.fatbin], [
  MOEEP_CUDA_TARGETS
  moeep_reason_cuda="nvcc $moeep_nvcc_version; $moeep_targets"
  moeep_note_cuda=$NVCC
], [
  moeep_have_cuda=no
  MOEEP_FIRST_ERROR_LINE([moeep_line], [conftest.err])
  moeep_reason_cuda="nvcc $moeep_nvcc_version cannot compile a kernel"
  moeep_reason_cuda="$moeep_reason_cuda${moeep_line:+: $moeep_line}"
])
cat conftest.err >&AS_MESSAGE_LOG_FD
rm -f conftest.cu conftest.fatbin conftest.d conftest.err
AC_MSG_RESULT([$moeep_have_cuda])
AC_SUBST([MOEEP_NVCCFLAGS])
])

# MOEEP_CUDA_TARGETS
# Sets moeep_targets to what NVCC_GENCODE puts into an image, for people: the codes, without the
# architectures that they are made from. -arch=sm_NN is nvcc's short form of code and PTX.
AC_DEFUN([MOEEP_CUDA_TARGETS], [
moeep_targets=
moeep_ptx=
for moeep_word in `AS_ECHO(["$NVCC_GENCODE"]) |
  $SED -e 's/--gpu-architecture/-arch/g' \
       -e 's/-arch[[= ]]*sm_\([[0-9]][[0-9a-z]]*\)/sm_\1 compute_\1/g' \
       -e 's/arch=compute_[[0-9a-z]]*//g' -e 's/[[^a-z0-9_]]/ /g'`; do
  AS_CASE([$moeep_word],
    [sm_[[0-9]]*], [moeep_targets="$moeep_targets $moeep_word"],
    [compute_[[0-9]]*], [moeep_ptx="$moeep_ptx $moeep_word"])
done
moeep_targets="${moeep_targets# }${moeep_ptx:+${moeep_targets:+ and }PTX of$moeep_ptx}"
dnl Options in a form that is not known here, such as -arch=native, speak for themselves.
AS_IF([test -z "$moeep_targets"], [moeep_targets=$NVCC_GENCODE])
])
