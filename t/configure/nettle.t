#!/bin/sh
# SPDX-License-Identifier: MIT
# The probe of libnettle, which nobody is to be without unawares.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/configure/fakes.sh"
fake_default="--without-cuda --without-rocm --without-verbs"

# pc VERSION: a directory with a nettle.pc
pc()
{
	mkdir -p "$tap_dir/pc$1"
	cat >"$tap_dir/pc$1/nettle.pc" <<END
Name: Nettle
Description: a fake
Version: $1
Libs: -lnettle-of-$1
Cflags: -I/nettle/$1
END
	echo "PKG_CONFIG_LIBDIR=$tap_dir/pc$1"
}

fake_configure "missing" --with-nettle
fake_fails "libnettle 3.4 or later is needed (nettle-dev, nettle-devel)"
tap_like "$tap_out" "without-nettle" "and says how to do without"

fake_configure "too old" --with-nettle "$(pc 3.3)"
fake_fails "libnettle 3.4 or later is needed"

fake_configure "found" --with-nettle "$(pc 3.8)"
fake_succeeds
fake_feature NETTLE 1 "nettle 3.8" "proofs by HMAC"
tap_like "$(fake_subst NETTLE_LIBS)" "-lnettle-of-3.8" "pkg-config's libraries are used"

fake_configure "without" --without-nettle "$(pc 3.8)"
fake_succeeds
fake_feature NETTLE 0 "disabled by --without-nettle" "proofs by HMAC"
tap_is "$(fake_subst NETTLE_LIBS)" "" "the library needs none"
tap_done
