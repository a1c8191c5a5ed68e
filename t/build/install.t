#!/bin/sh
# SPDX-License-Identifier: MIT
# What `make install` puts into a DESTDIR is enough to compile, link and run a program through
# pkg-config, with the shared and with the static library.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

dest=$tap_dir/dest
tap_run "${MAKE:-make}" -C "$abs_top_builddir" install DESTDIR="$dest"
tap_is "$tap_rc" 0 "make install with DESTDIR succeeds" || {
	tap_diag "$(printf '%s\n' "$tap_out" | tail -n 20)"
	tap_done
}

pc=$(find "$dest" -name moeep.pc)
test -n "$pc"
tap_ok $? "moeep.pc is installed"
tap_is "$(find "$dest" -name version.h | sed 's,.*/moeep/,moeep/,')" moeep/version.h \
	"moeep/version.h is installed"
libdir=$dest$(sed -n 's/^libdir=//p' "$abs_top_builddir/moeep.pc" |
	sed "s,[$]{exec_prefix},\${prefix},;s,[$]{prefix},$(sed -n 's/^prefix=//p' \
		"$abs_top_builddir/moeep.pc"),")
includedir=$dest$(sed -n 's/^includedir=//p' "$abs_top_builddir/moeep.pc" |
	sed "s,[$]{prefix},$(sed -n 's/^prefix=//p' "$abs_top_builddir/moeep.pc"),")
tap_is "$(find "$dest" -name 'libmoeep_internal*' -o -name 'libtap*' -o -name '*.t')" "" \
	"nothing of the tests is installed"
# Paths of the build in an installed text would make it useless anywhere else. Both libtool's .la
# and the programs are left out: a debugging section may name the sources.
tap_is "$(grep -rlI -F -e "$abs_top_builddir" "$dest" --include='*.h' --include='*.pc')" "" \
	"installed headers and moeep.pc do not name the build tree"

command -v "${PKG_CONFIG:-pkg-config}" >/dev/null 2>&1
tap_require pkg-config $? 5 "pkg-config is not installed" || tap_done
pc()
{
	PKG_CONFIG_LIBDIR=${pc%/*} "${PKG_CONFIG:-pkg-config}" --define-variable=prefix="$dest" \
		--define-variable=libdir="$libdir" --define-variable=includedir="$includedir" "$@" moeep
}
cat >"$tap_dir/user.c" <<'END'
#include <moeep/moeep.h>
#include <stdio.h>
int main(void)
{
	return moeep_version() == MOEEP_VERSION_NUMBER ? puts(moeep_version_string()) < 0 : 1;
}
END
version=$(pc --modversion)
tap_like "$version" '^[0-9]*\.[0-9]*\.[0-9]*$' "moeep.pc tells a version"
sanitize=
if [ -n "${MOEEP_TEST_SANITIZERS-}" ]; then
	sanitize=-fsanitize=$MOEEP_TEST_SANITIZERS
fi

# Flags are words throughout.
# shellcheck disable=SC2046,SC2086
if [ -e "$libdir/libmoeep.so" ]; then
	tap_run ${CC:-cc} $sanitize -o "$tap_dir/shared" "$tap_dir/user.c" $(pc --cflags --libs) \
		-Wl,-rpath,"$libdir"
	tap_is "$tap_rc" 0 "a program links with the shared library" || tap_diag "$tap_out"
	tap_run env LD_LIBRARY_PATH="$libdir" "$tap_dir/shared"
	tap_is "$tap_out" "$version" "it runs and prints the version"
else
	tap_require shared 1 2 "the build has no shared library"
fi
# shellcheck disable=SC2046,SC2086
if [ -e "$libdir/libmoeep.a" ]; then
	mkdir "$tap_dir/static"
	cp "$libdir/libmoeep.a" "$tap_dir/static"
	# The directory with the archive alone goes first, so that the linker cannot prefer the other.
	tap_run ${CC:-cc} $sanitize -o "$tap_dir/program" "$tap_dir/user.c" -L"$tap_dir/static" \
		$(pc --cflags --libs --static)
	tap_is "$tap_rc" 0 "a program links with the static library" || tap_diag "$tap_out"
	tap_run "$tap_dir/program"
	tap_is "$tap_out" "$version" "it runs and prints the version"
else
	tap_require static 1 2 "the build has no static library"
fi
tap_done
