#!/bin/sh
# SPDX-License-Identifier: MIT
# A library with kernels is the same library otherwise: nothing of CUDA is linked or exported, and
# the same source gives the same bytes, wherever it is built.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
export LC_ALL=C

grep -q '^#define MOEEP_HAVE_CUDA 1' "$abs_top_builddir/config.h" 2>/dev/null
tap_require_all nvcc $? "this build has no kernels: $(sed -n 's/^#define MOEEP_REASON_CUDA //p' \
	"$abs_top_builddir/config.h" 2>/dev/null)"
if [ -n "${MOEEP_TEST_SANITIZERS-}" ]; then
	tap_skip_all "kernels are the same with sanitizers; the plain build tests them"
fi
shared=$abs_top_builddir/lib/.libs/libmoeep.so
static=$abs_top_builddir/lib/.libs/libmoeep.a
images=$(sed -n 's/^MOEEP_IMAGE(\(.*\))$/\1/p' "$abs_top_builddir/kernels/image_list.h")
cuda_names=' (cuda|cu[A-Z]|__cuda|_Z)'
# A fault that no image shows would pass.
test -n "$images"
tap_ok $? "the build has kernels"

tap_like "$("$abs_top_builddir/tools/moeep-info")" '^  cuda  *yes  *nvcc [0-9.]*; .*[0-9]' \
	"moeep-info tells which targets they are for"

command -v readelf >/dev/null 2>&1
have_readelf=$?

if tap_require shared "$(test -e "$shared"; echo $?)" 4 "the build has no shared library" &&
	tap_require readelf "$have_readelf" 4 "binutils is not installed"; then
	tap_is "$(${NM:-nm} -D --undefined-only "$shared" | grep -E "$cuda_names")" "" \
		"the shared library has no undefined CUDA or C++ symbols"
	tap_is "$(readelf -d "$shared" | grep NEEDED | grep -E '\[lib(cuda|nv|stdc\+\+|c\+\+)')" "" \
		"it needs no library of CUDA or C++"
	tap_is "$(${NM:-nm} -D --defined-only "$shared" | grep -E 'fatbin|image')" "" \
		"it exports no image"
	tap_is "$(readelf -lW "$shared" | awk '$1 == "GNU_STACK" { print $7 }')" RW \
		"its stack is not executable"
fi

if tap_require static "$(test -e "$static"; echo $?)" 2 "the build has no static library" &&
	tap_require readelf "$have_readelf" 2 "binutils is not installed"; then
	tap_is "$(${NM:-nm} --undefined-only "$static" | grep -E "$cuda_names")" "" \
		"the static library has no undefined CUDA or C++ symbols"
	# Without the note an object makes the stack of a program executable.
	tap_is "$(readelf -SW "$static" |
		awk '/^File: / { if (file && !note) { print file }; file = $2; note = 0 }
		     / \.note\.GNU-stack / { note = !/ X / }
		     END { if (file && !note) { print file } }')" "" \
		"each of its objects asks for a stack that is not executable"
fi

# Two copies of the sources at different places, built at different depths. What nvcc makes of them
# must be what it made for this build. Without -g, as the paths in debugging sections are the
# builder's to map.

# value NAME: a variable of this build's Makefile
value()
{
	sed -n "s/^$1 = *//p" "$abs_top_builddir/Makefile"
}

# This build was made without what is not there.
nettle=
grep -q '^#define MOEEP_HAVE_NETTLE 1' "$abs_top_builddir/config.h" || nettle=--without-nettle

# copy SOURCE BUILD: a configured copy
copy()
{
	mkdir -p "$1" "$2" || return
	# Names in the list are words.
	# shellcheck disable=SC2046
	(cd "$abs_top_srcdir" && tar cf - configure configure.ac aclocal.m4 config.h.in Makefile.am \
		Makefile.in moeep.pc.in bootstrap build-aux m4 include kernels lib $(echo */*.am)) |
		(cd "$1" && tar xpf -) || return
	chmod -R u+w "$1" && cp "$tap_dir/cache" "$2" && cd "$2" || return
	# The option is there or not.
	# shellcheck disable=SC2086
	"$1/configure" -q --cache-file=cache --enable-shared --disable-static --without-verbs \
		$nettle --with-cuda NVCC="$(value NVCC)" NVCC_GENCODE="$(value NVCC_GENCODE)" \
		NVCCFLAGS="$(value NVCCFLAGS)" CC="$(value CC)" CFLAGS="-O1 -g0" CCASFLAGS=-g0
}

# build DIRECTORY TARGET...
build()
{
	build_dir=$1
	shift
	"${MAKE:-make}" -s -j2 -C "$build_dir" "$@"
}

# same DIRECTORY DIRECTORY FILE...: prints which files are not the same in both
same()
{
	same_one=$1
	same_two=$2
	shift 2
	for same_file in "$@"; do
		cmp "$same_one/$same_file" "$same_two/$same_file" 2>&1
	done
}

grep -E '^(ac|am|lt)_cv_[A-Za-z0-9_]*=' "$abs_top_builddir/config.log" |
	grep -v -E '^ac_cv_(env_|have_decl_|member_|header_infiniband)' >"$tap_dir/cache"
one=$tap_dir/one/build
two=$tap_dir/second/build
fatbins=$(for name in $images; do echo "kernels/$name.fatbin"; done)
tap_run copy "$tap_dir/one" "$one"
tap_is "$tap_rc" 0 "a copy of the sources is configured" || tap_diag "$tap_out"
# Lists are words from here on.
# shellcheck disable=SC2086
tap_run build "$one" $fatbins
tap_is "$tap_rc" 0 "the kernels are compiled again" || tap_diag "$tap_out"
# shellcheck disable=SC2086
tap_is "$(same "$abs_top_builddir" "$one" $fatbins)" "" "to the same bytes"

if tap_quick; then
	tap_skip 4 "MOEEP_TEST_QUICK leaves out two builds of the library"
	tap_done
fi
tap_run copy "$tap_dir/deeper/below/two" "$two"
tap_is "$tap_rc" 0 "another copy elsewhere" || tap_diag "$tap_out"
# The second library takes the images of this build, which saves the time to compile them.
mkdir -p "$two/kernels"
for fatbin in $fatbins; do
	cp "$abs_top_builddir/$fatbin" "$two/kernels"
done
tap_run build "$one" lib/libmoeep.la
tap_is "$tap_rc" 0 "the library is built there" || tap_diag "$tap_out"
tap_run build "$two" lib/libmoeep.la
tap_is "$tap_rc" 0 "and here" || tap_diag "$tap_out"
tap_is "$(same "$one" "$two" lib/.libs/libmoeep.so)" "" "to the same bytes"
tap_done
