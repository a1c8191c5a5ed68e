#!/bin/sh
# SPDX-License-Identifier: MIT
# The options of configure that concern the compiler, and the summary's form.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/configure/fakes.sh"
fake_default="--without-cuda --without-rocm --without-verbs"

fake_configure "defaults"
fake_succeeds
fake_feature SANITIZERS 0 "not asked for" "sanitizers"
fake_value MOEEP_HAVE_SANITIZERS 0
tap_like "$(fake_subst MOEEP_CODEGEN_CFLAGS)" "-ffp-contract=off" "products are not contracted"
tap_unlike "$(fake_subst MOEEP_WARN_CFLAGS)" "-Werror" "warnings are no errors by default"
tap_is "$(fake_subst MOEEP_NO_UNDEFINED)" "-Wl,-z,defs" "undefined symbols are errors"
for label in "host backend" "CUDA kernels" "ROCm compiler" libibverbs mlx5dv IBGDA sanitizers \
	"warnings as errors" "shared library" "static library"; do
	tap_is "$(printf '%s\n' "$tap_out" | grep -c "^  $label  *\(yes\|no\)\( (.*)\)*\$")" 1 \
		"the summary has one line for: $label"
done

fake_configure "werror" --enable-werror --disable-static
fake_succeeds
tap_like "$(fake_subst MOEEP_WARN_CFLAGS)" "-Werror\$" "--enable-werror adds -Werror"
tap_like "$tap_out" "^  static library  *no" "--disable-static is in the summary"

fake_configure "werror, odd value" --enable-werror=some
fake_fails "takes yes or no, not \"some\""

fake_configure "fast math" CFLAGS="-O2 -ffast-math"
fake_fails "fast-math"

fake_configure "contraction" CFLAGS="-O2 -ffp-contract=fast"
fake_fails "contraction"

fake_configure "unknown sanitizer" --enable-sanitizers=address,memory
fake_fails "\"memory\" is not one of address, undefined, thread"

fake_configure "empty list" --enable-sanitizers=,
fake_fails "needs a list"

fake_configure "sanitizers that exclude each other" --enable-sanitizers=address,thread
fake_fails "exclude each other"

# Whether the compiler has the run-time libraries is the machine's affair.
echo 'int main(void) { return 0; }' >"$tap_dir/main.c"
# CC may hold options.
# shellcheck disable=SC2086
$CC -fsanitize=address,undefined -o "$tap_dir/main" "$tap_dir/main.c" 2>/dev/null
if tap_require sanitizers $? 6 "$CC does not link with -fsanitize=address,undefined"; then
	fake_configure "address,undefined" --enable-sanitizers=address,undefined
	fake_succeeds
	fake_feature SANITIZERS 1 "address,undefined" "sanitizers"
	tap_like "$(fake_subst MOEEP_SANITIZER_CFLAGS)" "-fsanitize=address,undefined" \
		"the flag is passed on"
	tap_is "$(fake_subst MOEEP_NO_UNDEFINED)" "" "the run-time's symbols may stay undefined"
fi
tap_done
