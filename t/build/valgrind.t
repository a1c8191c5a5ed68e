#!/bin/sh
# SPDX-License-Identifier: MIT
# One run of every operation under valgrind: no bad access, nothing left allocated.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

have=1
if command -v valgrind >/dev/null 2>&1 && [ -z "${MOEEP_TEST_SANITIZERS:-}" ]; then
	have=0
fi
if tap_require valgrind "$have" 2 "valgrind is not installed, or this is a build with sanitizers"; then
	# Through libtool: the program in the build tree is a script. Ranks are threads, so one run
	# sees all of them.
	for mode in ht ll; do
		tap_run "$abs_top_builddir/libtool" --mode=execute valgrind -q --error-exitcode=9 \
			--leak-check=full --show-leak-kinds=all \
			"$abs_top_builddir/tools/moeep-perf" -n 3 --threads --backend host --mode "$mode" \
			--hidden 256 --tokens 64 --ll-tokens 16 --experts 13 --topk 3 \
			--iters 2 --warmup 1 --quiet --no-progress
		tap_is "$tap_rc" 0 "$mode under valgrind" || tap_diag "$tap_out"
	done
fi
tap_done
