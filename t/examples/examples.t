#!/bin/sh
# SPDX-License-Identifier: MIT
# The examples compile against what `make install` installs, run, and find their results right. So
# do the program in moeep(7) and the code in the README.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

dest=$tap_dir/dest
tap_run "${MAKE:-make}" -C "$abs_top_builddir" install DESTDIR="$dest"
tap_is "$tap_rc" 0 "make install with DESTDIR succeeds" || {
	tap_diag "$(printf '%s\n' "$tap_out" | tail -n 20)"
	tap_done
}
pc=$(find "$dest" -name moeep.pc)
examples=$(find "$dest" -name moe_layer.c)
examples=${examples%/*}
for name in moe_layer.c ll_decode.c moe_layer.py; do
	test -f "$examples/$name"
	tap_ok $? "$name is installed"
done

command -v "${PKG_CONFIG:-pkg-config}" >/dev/null 2>&1
tap_require pkg-config $? 9 "pkg-config is not installed" || tap_done
pc()
{
	PKG_CONFIG_LIBDIR=${pc%/*} PKG_CONFIG_SYSROOT_DIR=$dest "${PKG_CONFIG:-pkg-config}" "$@" moeep
}
libdir=$dest$(PKG_CONFIG_LIBDIR=${pc%/*} "${PKG_CONFIG:-pkg-config}" --variable=libdir moeep)
flags="-std=c11 -Wall -Wextra -Wpedantic -Werror -O1 -pthread"
if [ -n "${MOEEP_TEST_SANITIZERS-}" ]; then
	flags="$flags -fsanitize=$MOEEP_TEST_SANITIZERS"
fi
cflags=$(pc --cflags)
if [ -e "$libdir/libmoeep.so" ]; then
	link=$(pc --cflags --libs)
else
	link=$(pc --cflags --libs --static)
fi

# compile SOURCE PROGRAM
compile()
{
	# Flags are words.
	# shellcheck disable=SC2086
	tap_run ${CC:-cc} $flags -o "$2" "$1" $link -lm
	tap_is "$tap_rc" 0 "${1##*/} compiles without a warning" || tap_diag "$tap_out"
}

# Their arrays are the host's, also where the library could take a GPU: here one without kernels.
fake=$abs_top_builddir/t/cuda/.libs/fake_driver.so
if [ -e "$fake" ]; then
	MOEEP_CUDA_DRIVER=$fake
	export MOEEP_CUDA_DRIVER
fi
unset MOEEP_BACKEND

# run_one WHAT EXPECTED-LINE COMMAND...
run_one()
{
	what=$1
	expected=$2
	shift 2
	tap_run env LD_LIBRARY_PATH="$libdir" "$@"
	tap_is "$tap_rc" 0 "$what runs" || tap_diag "$tap_out"
	tap_like "$tap_out" "$expected" "$what finds its results right"
}

compile "$examples/moe_layer.c" "$tap_dir/moe_layer"
run_one moe_layer.c 'outputs and gradients: .*: good$' "$tap_dir/moe_layer"

# POSIX names, which -std=c11 hides.
flags="$flags -D_POSIX_C_SOURCE=200809L"
compile "$examples/ll_decode.c" "$tap_dir/ll_decode"
run_one ll_decode.c '^rank 2: 10 micro-batches of 12 tokens: good$' "$tap_dir/ll_decode"
tap_unlike "$tap_out" WRONG "all ranks of ll_decode.c do"

# The listing in EXAMPLES of the page; \e stands for a backslash there.
sed -n '/^\.Sh EXAMPLES/,/^\.Sh SEE/p' "$abs_top_srcdir/man/man7/moeep.7" |
	sed -n '/^\.Bd -literal/,/^\.Ed/p' | sed '/^\./d;s/\\e/\\/g' >"$tap_dir/moeep.7.c"
compile "$tap_dir/moeep.7.c" "$tap_dir/page"
run_one "the program in moeep(7)" '^rank 0: token 1: 10 becomes 25$' "$tap_dir/page"
tap_like "$tap_out" '^rank 1: token 1: 110 becomes 220$' "on both ranks"

# The code in the README is a function.
{
	echo '#include <moeep/moeep.h>'
	# shellcheck disable=SC2016
	sed -n '/^```c$/,/^```$/p' "$abs_top_srcdir/README.md" | sed '/^```/d'
} >"$tap_dir/readme.c"
# shellcheck disable=SC2086
tap_run ${CC:-cc} $flags -c -o "$tap_dir/readme.o" "$tap_dir/readme.c" $cflags
tap_is "$tap_rc" 0 "the code in the README compiles without a warning" || tap_diag "$tap_out"
test "$(wc -l <"$tap_dir/readme.c")" -gt 10
tap_ok $? "there is code in the README"

# Pieces of code in the pages of section 3 compile with these declarations around them. One that
# starts with a function stands for itself.
cat >"$tap_dir/around.c" <<'END'
#include <stdio.h>
#include <stdlib.h>
#include <moeep/moeep.h>
typedef int MPI_Comm;
enum { MPI_COMM_WORLD, MPI_BYTE };
int MPI_Allgather(const void *, int, int, void *, int, int, MPI_Comm);
END
cat >"$tap_dir/names.c" <<'END'
void shared_expert(void *);
void attention_of_the_other_half(void);
void grouped_gemm(const void *, const int32_t *, void *);
extern moeep_comm_t *comm;
extern moeep_buffer_t *buffer;
extern moeep_handle_t *handle;
extern moeep_buffer_config_t config;
extern moeep_dispatch_args_t args;
extern int64_t n, *topk_idx;
extern size_t row_bytes;
extern void *x, *y, *out, *shared_expert_out, *recv_x;
extern float *recv_scales, *topk_weights;
extern int32_t *offsets, *recv_count;
END
awk -v dir="$tap_dir" '
	FNR == 1 { examples = 0; piece = 0; page = FILENAME; sub(/.*\//, "", page) }
	/^\.Sh / { examples = $2 == "EXAMPLES" }
	/^\.Ed/ { file = "" }
	file != "" { gsub(/\\e/, "\\"); print >file }
	examples && /^\.Bd -literal/ { file = dir "/" page "." ++piece ".piece" }
' "$abs_top_srcdir"/man/man3/*.3
pieces=0
for piece in "$tap_dir"/*.piece; do
	pieces=$((pieces + 1))
	if head -n 1 "$piece" | grep -q '^static'; then
		cat "$tap_dir/around.c" "$piece"
	else
		cat "$tap_dir/around.c" "$tap_dir/names.c"
		echo 'void piece(void);'
		echo 'void piece(void)'
		echo '{'
		cat "$piece"
		echo '}'
	fi >"$tap_dir/piece.c"
	# shellcheck disable=SC2086
	tap_run ${CC:-cc} $flags -Wno-unused -c -o "$tap_dir/piece.o" "$tap_dir/piece.c" $cflags
	name=${piece##*/}
	tap_is "$tap_rc" 0 "code in ${name%.piece} compiles" || tap_diag "$tap_out"
done
test "$pieces" -gt 8
tap_ok $? "there is code in the pages"

command -v python3 >/dev/null 2>&1
tap_require python3 $? 2 "it is not installed" || tap_done
test -e "$libdir/libmoeep.so.0"
tap_require shared $? 2 "the build has no shared library" || tap_done
test -z "${MOEEP_TEST_SANITIZERS-}"
tap_require uninstrumented $? 2 "python3 cannot load a library built with sanitizers" || tap_done
run_one moe_layer.py 'from the dense layer: .*: good$' \
	env PYTHONDONTWRITEBYTECODE=1 python3 "$examples/moe_layer.py"
tap_done
