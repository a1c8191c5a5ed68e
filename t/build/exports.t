#!/bin/sh
# SPDX-License-Identifier: MIT
# What the shared library exports is what the headers declare and what the map lists: no more, as
# everything exported is kept for ever; no less, as a program would not link.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
export LC_ALL=C

lib=$abs_top_builddir/lib/.libs/libmoeep.so
test -e "$lib"
tap_require_all shared $? "the build has no shared library"

# Declarations span lines: join them, drop comments, take the name before the first parenthesis.
for header in "$abs_top_srcdir"/include/moeep/*.h; do
	sed 's,/\*.*\*/,,' "$header" |
		awk '/\/\*/ { skip = 1 } !skip && !/^[ \t]*#/ { printf "%s ", $0 } /\*\// { skip = 0 }' |
		tr ';{}' '\n' | sed -n 's/.*MOEEP_API[^(]*[ *]\([a-z0-9_]*\)(.*/\1/p'
done | sort >"$tap_dir/declared"
awk '/^MOEEP_/ { node = 1 } /local:/ { node = 0 } /^}/ { node = 0 }
     node && /^[ \t]+[a-z0-9_]+;/ { gsub(/[ \t;]/, ""); print }' \
	"$abs_top_srcdir/lib/moeep.map" | sort >"$tap_dir/mapped"
# nm may print "name@@NODE"; type A lines are the nodes themselves.
${NM:-nm} -D --defined-only "$lib" >"$tap_dir/nm"
awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' "$tap_dir/nm" | sort >"$tap_dir/exported"

# same A B DESCRIPTION: the two lists are equal and not empty
same()
{
	if [ -s "$tap_dir/$1" ] && cmp -s "$tap_dir/$1" "$tap_dir/$2"; then
		tap_pass "$3"
		return
	fi
	tap_fail "$3"
	tap_diag "in $1 but not in $2:"
	comm -23 "$tap_dir/$1" "$tap_dir/$2" | sed 's/^/#   /'
	tap_diag "in $2 but not in $1:"
	comm -13 "$tap_dir/$1" "$tap_dir/$2" | sed 's/^/#   /'
}

same exported mapped "the library exports the names in the map"
same declared mapped "the headers declare the names in the map"
tap_is "$(uniq -d "$tap_dir/declared")" "" "no function is declared twice"
tap_is "$(awk '$2 !~ /^[AT]$/' "$tap_dir/nm")" "" "only functions are exported"
tap_is "$(sed 's/^moeep_.*//' "$tap_dir/exported" | tr -d '\n')" "" \
	"all names start with moeep_"

# The tools of a login node must load the library: nothing beyond the C library and libnettle, which every
# distribution has, is needed there.
if command -v readelf >/dev/null 2>&1; then
	dynamic=$(readelf -d "$lib")
	tap_like "$dynamic" 'SONAME.*\[libmoeep\.so\.0\]' "the soname is libmoeep.so.0"
	pattern='\[(libc|libnettle|libpthread|libm|libdl|librt|ld-linux-[a-z0-9-]*)\.so\.[0-9]*\]'
	if [ -n "${MOEEP_TEST_SANITIZERS-}" ]; then
		pattern="$pattern|\[lib(asan|ubsan|tsan|gcc_s)\.so|\[libclang_rt"
	fi
	tap_is "$(printf '%s\n' "$dynamic" | grep NEEDED | grep -v -E "$pattern")" "" \
		"it needs the C library and libnettle alone"
	tap_is "$(${NM:-nm} -D --undefined-only "$lib" | grep -E ' (cuda|cu[A-Z]|_Z)')" "" \
		"it has no undefined CUDA or C++ symbols"
	tap_unlike "$(readelf -lW "$lib")" 'GNU_STACK.*E ' "its stack is not executable"
	tap_unlike "$dynamic" TEXTREL "it has no text relocations"
else
	tap_require readelf 1 5 "binutils is not installed"
fi
tap_done
