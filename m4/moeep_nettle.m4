# HMAC-SHA-256, by which ranks prove that they know a unique id's secret.

# MOEEP_CHECK_NETTLE
# Not "auto": a library without it sends the secret itself, and nobody should get that unawares.
AC_DEFUN([MOEEP_CHECK_NETTLE], [
AC_ARG_WITH([nettle],
  [AS_HELP_STRING([--without-nettle],
     [do without libnettle: ranks that join a rendezvous send its secret as it is])],
  [], [with_nettle=yes])
moeep_have_nettle=no
moeep_reason_nettle="disabled by --without-nettle"
moeep_note_nettle=
AS_IF([test "x$with_nettle" != xno], [
  PKG_CHECK_MODULES([NETTLE], [nettle >= 3.4],
    [moeep_have_nettle=yes
     moeep_reason_nettle="nettle `$PKG_CONFIG --modversion nettle 2>/dev/null`"
     moeep_reason_nettle=`AS_ECHO(["$moeep_reason_nettle"]) | $SED 's/ *$//'`],
    [AC_MSG_ERROR([libnettle 3.4 or later is needed (nettle-dev, nettle-devel): $NETTLE_PKG_ERRORS
Without it, by --without-nettle, ranks that join a rendezvous send its secret as it is.])])
], [NETTLE_CFLAGS= NETTLE_LIBS=])
MOEEP_FEATURE_RESULT([nettle], [NETTLE], [--with-nettle], [$with_nettle], [libnettle])
])
