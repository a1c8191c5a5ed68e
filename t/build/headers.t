#!/bin/sh
# SPDX-License-Identifier: MIT
# Each public header compiles alone, twice included, without a warning, as C and as C++.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

flags="-Wall -Wextra -Wpedantic -Werror -fsyntax-only"
include="-I$abs_top_srcdir/include -I$abs_top_builddir/include"
cc=${CC:-cc}
cxx=
for name in ${CXX:-g++ c++ clang++}; do
	if command -v "$name" >/dev/null 2>&1; then
		cxx=$name
		break
	fi
done

# compile COMMAND-AND-STANDARD SUFFIX HEADER
compile()
{
	# Options are words.
	# shellcheck disable=SC2086
	tap_run $1 $flags $include "$tap_dir/use.$2"
	tap_is "$tap_rc" 0 "moeep/$3 compiles alone with $1" || tap_diag "$tap_out"
}

for path in "$abs_top_srcdir"/include/moeep/*.h "$abs_top_builddir"/include/moeep/version.h; do
	header=${path##*/}
	printf '#include <moeep/%s>\n#include <moeep/%s>\nextern int use;\n' "$header" "$header" \
		>"$tap_dir/use.c"
	cp "$tap_dir/use.c" "$tap_dir/use.cc"
	for std in c99 c11; do
		if [ "$header" = mpi.h ]; then
			tap_skip 1 "moeep/mpi.h needs MPI's own header"
		else
			compile "$cc -std=$std" c "$header"
		fi
	done
	if [ "$header" = mpi.h ]; then
		tap_skip 1 "moeep/mpi.h needs MPI's own header"
	elif tap_require c++ "$(test -n "$cxx"; echo $?)" 1 "no C++ compiler was found"; then
		compile "$cxx -std=c++17" cc "$header"
	fi
	# A header that is not in the fragment would not be installed.
	tap_run grep -q -e "include/moeep/$header" "$abs_top_srcdir/lib/lib.am"
	tap_is "$tap_rc" 0 "lib/lib.am installs moeep/$header"
done
tap_done
