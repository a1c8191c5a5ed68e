# What every probe shares: saved flags, recorded results, the closing summary.
#
# A probe for feature X leaves three shell variables behind:
#   moeep_have_X    yes or no
#   moeep_reason_X  for "no" the cause, for "yes" what was found; goes into config.h
#   moeep_note_X    something for the summary alone (a path, say, which would make config.h differ
#                   between build hosts)

# MOEEP_SAVE_FLAGS(TAG), MOEEP_RESTORE_FLAGS(TAG)
# A probe compiles with flags of its own; none of them may reach the next probe or the build.
AC_DEFUN([MOEEP_SAVE_FLAGS], [
moeep_save_$1_CPPFLAGS=$CPPFLAGS
moeep_save_$1_CFLAGS=$CFLAGS
moeep_save_$1_LDFLAGS=$LDFLAGS
moeep_save_$1_LIBS=$LIBS
])

AC_DEFUN([MOEEP_RESTORE_FLAGS], [
CPPFLAGS=$moeep_save_$1_CPPFLAGS
CFLAGS=$moeep_save_$1_CFLAGS
LDFLAGS=$moeep_save_$1_LDFLAGS
LIBS=$moeep_save_$1_LIBS
])

# MOEEP_FEATURE_RESULT(feature, FEATURE, --option, requested, description)
# Ends a probe. "requested" is the option's value: anything but "no" and "auto" was asked for by
# the user, and then a failed probe must not pass unnoticed.
AC_DEFUN([MOEEP_FEATURE_RESULT], [
AS_CASE([$4],
        [no|auto], [],
        [AS_IF([test "x$moeep_have_$1" != xyes],
               [AC_MSG_ERROR([$3 was given, but $moeep_reason_$1])])])
dnl The reason becomes a C string: quotes and backslashes in a path must not end it.
moeep_reason_$1=`AS_ECHO(["$moeep_reason_$1"]) | tr -d '"\\\\'`
AS_IF([test "x$moeep_have_$1" = xyes],
      [AC_DEFINE([MOEEP_HAVE_$2], [1], [$5: 1 if found at build time, else 0])],
      [AC_DEFINE([MOEEP_HAVE_$2], [0])])
AC_DEFINE_UNQUOTED([MOEEP_REASON_$2], ["$moeep_reason_$1"], [$5: what was found, or why not])
AM_CONDITIONAL([MOEEP_HAVE_$2], [test "x$moeep_have_$1" = xyes])
])

# MOEEP_NEED_DECLS(feature, headers, [names])
# Clears moeep_have_feature and names the first missing declaration. Declarations say what the
# installed header can do; version numbers only say what it was meant to.
AC_DEFUN([MOEEP_NEED_DECLS], [
m4_foreach_w([moeep_name], [$3], [
AS_IF([test "x$moeep_have_$1" = xyes],
      [AC_CHECK_DECL(moeep_name, [],
                     [moeep_have_$1=no
                      moeep_reason_$1="]moeep_name[ is not declared"], [$2])])
])])

# MOEEP_NEED_MEMBERS(feature, headers, [struct tag], [members])
AC_DEFUN([MOEEP_NEED_MEMBERS], [
m4_foreach_w([moeep_name], [$4], [
AS_IF([test "x$moeep_have_$1" = xyes],
      [AC_CHECK_MEMBER([$3.]moeep_name, [],
                       [moeep_have_$1=no
                        moeep_reason_$1="$3 has no member ]moeep_name["], [$2])])
])])

# MOEEP_SUMMARY_LINE(label, yes or no, reason, note)
AC_DEFUN([MOEEP_SUMMARY_LINE], [
moeep_text="$3"
moeep_extra="$4"
AS_IF([test -n "$moeep_extra"], [moeep_text="$moeep_text; $moeep_extra"])
AS_IF([test -n "$moeep_text"], [moeep_text=" ($moeep_text)"])
dnl printf pads; AS_ECHO could not.
printf '  %-22s %s%s\n' "$1" "$2" "$moeep_text" >&AS_MESSAGE_FD
printf '  %-22s %s%s\n' "$1" "$2" "$moeep_text" >&AS_MESSAGE_LOG_FD
])

AC_DEFUN([MOEEP_SUMMARY], [
AS_IF([test "x$moeep_have_rocm" = xyes],
      [moeep_note_rocm="$moeep_note_rocm; this release has no ROCm kernels yet"])
AS_IF([test "x$moeep_have_verbs" = xyes],
      [moeep_note_verbs="this release has no RDMA transport yet"])
AS_IF([test "x$moeep_have_mlx5dv" = xyes],
      [moeep_note_mlx5dv="this release has no RDMA transport yet"])
AS_IF([test "x$moeep_have_ibgda" = xyes],
      [moeep_note_ibgda="this release has no RDMA transport yet"])
AC_MSG_NOTICE([$PACKAGE_NAME $PACKAGE_VERSION is configured as follows])
MOEEP_SUMMARY_LINE([host backend], [yes], [always built])
MOEEP_SUMMARY_LINE([CUDA kernels], [$moeep_have_cuda], [$moeep_reason_cuda], [$moeep_note_cuda])
MOEEP_SUMMARY_LINE([ROCm compiler], [$moeep_have_rocm], [$moeep_reason_rocm], [$moeep_note_rocm])
MOEEP_SUMMARY_LINE([libibverbs], [$moeep_have_verbs], [$moeep_reason_verbs], [$moeep_note_verbs])
MOEEP_SUMMARY_LINE([mlx5dv], [$moeep_have_mlx5dv], [$moeep_reason_mlx5dv], [$moeep_note_mlx5dv])
MOEEP_SUMMARY_LINE([IBGDA], [$moeep_have_ibgda], [$moeep_reason_ibgda], [$moeep_note_ibgda])
MOEEP_SUMMARY_LINE([proofs by HMAC], [$moeep_have_nettle], [$moeep_reason_nettle], [$moeep_note_nettle])
MOEEP_SUMMARY_LINE([sanitizers], [$moeep_have_sanitizers], [$moeep_reason_sanitizers], [])
MOEEP_SUMMARY_LINE([warnings as errors], [$enable_werror], [], [])
MOEEP_SUMMARY_LINE([shared library], [$enable_shared], [], [])
MOEEP_SUMMARY_LINE([static library], [$enable_static], [], [])
])
