#!/bin/sh
# SPDX-License-Identifier: MIT
# shellcheck disable=SC2317 # functions that are called through tap_run
# Each wait and each publish of the kernels is needed: with kernels that lack one, see mutants.list,
# a program here fails on a device. With the kernels as they are it passes.
#
# It takes minutes, so it runs only with MOEEP_TEST_MUTANTS=1, or =DIRECTORY (absolute), where the
# mutants' kernels are kept: made on a machine with nvcc and no device, run on one that has a device.
# MOEEP_TEST_MUTANTS=emulate runs them on CPUs, see t/cuda/emulated.t, with neither nvcc nor device.
# By hand, in a build tree: abs_top_builddir=$PWD .../mutants.t [NAME...] takes these mutants only.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

list=$abs_top_srcdir/t/cuda/mutants.list
limit=90
jobs=2
gencode=${MOEEP_TEST_GENCODE:--gencode arch=compute_90,code=sm_90}
# Nothing from outside may change what runs. Of these mutants some hang until the time-out.
unset MOEEP_BACKEND MOEEP_TEST_SEED MOEEP_TEST_IMAGES
emulate=
export MOEEP_LOG=none MOEEP_TEST_CUDA=threads

case ${MOEEP_TEST_MUTANTS-} in
'' | 0) tap_skip_all "it takes minutes: MOEEP_TEST_MUTANTS=1 runs it" ;;
emulate)
	emulate=$abs_top_builddir/t/cuda/.libs/emulated_driver.so
	[ -e "$emulate" ]
	tap_require_all emulation $? "${MOEEP_REASON_EMULATE:-$emulate is not built}"
	keep=$tap_dir/images
	export MOEEP_CUDA_DRIVER="$emulate" FAKE_CUDA_SMS=16 FAKE_CUDA_RESIDENT=1
	MOEEP_TEST_ROUNDS=${MOEEP_TEST_ROUNDS-100}
	;;
/*) keep=$MOEEP_TEST_MUTANTS ;;
*) keep=$tap_dir/images ;;
esac
mkdir -p "$keep" || tap_done

# What the build was configured with.
tap_ask_make "how kernels are built" NVCC AM_NVCCFLAGS NVCCFLAGS CXX \
	t_cuda_emulated_driver_la_CXXFLAGS CXXFLAGS

nvcc=$(tap_made NVCC)
"$nvcc" --version >/dev/null 2>&1
have_nvcc=$?
case $keep$emulate in
"$tap_dir/images") tap_require nvcc "$have_nvcc" 1 "$nvcc cannot be run" || tap_done ;;
esac

# line NAME: mode, images, program and its arguments
line()
{
	sed -n "s/^$1 \(\(plain\|same\|hardware\) .*\)/\1/p" "$list"
}

# A driver with its kernels, for CPUs.
build_emulated()
{
	# shellcheck disable=SC2046
	$(tap_made CXX) -shared -fPIC $(tap_made t_cuda_emulated_driver_la_CXXFLAGS) $(tap_made CXXFLAGS) -w \
		-I"$2" -I"$2/kernels" -I"$abs_top_srcdir" -I"$abs_top_srcdir/include" \
		-I"$abs_top_builddir/include" -I"$abs_top_srcdir/lib" \
		-include t/cuda/emulate/ptx.h -include t/cuda/mutant.cuh \
		-o "$1/driver.so" "$abs_top_srcdir/t/cuda/emulate/kernels.cc" \
		-Wl,--whole-archive "$abs_top_builddir/t/cuda/.libs/libemulate.a" \
		-Wl,--no-whole-archive -pthread >"$1/log" 2>&1
}

# build NAME: its kernels, unless they are there of the same sources. A failure is in NAME/log.
build()
{
	dir=$keep/$1
	tree=$tap_dir/tree/$1
	mkdir -p "$dir" "$tree"
	cp -R "$abs_top_srcdir/kernels" "$tree/" || return 1
	chmod -R u+w "$tree"
	awk -v want="$1" -v top="$abs_top_srcdir" -v to="$tree" -v tree=1 \
		-f "$abs_top_srcdir/t/mutate.awk" "$list" >"$dir/plan" 2>"$dir/log" || return 1
	sum=$(cat "$tree"/kernels/*.cu* "$tree/kernels/args.h" "$abs_top_srcdir/t/cuda/mutant.cuh" |
		cksum)
	[ "$(cat "$dir/sum" 2>/dev/null)" != "$sum" ] || return 0
	rm -f "$dir/sum"
	if [ -n "$emulate" ]; then
		build_emulated "$dir" "$tree"
		return
	fi
	if [ "$have_nvcc" -ne 0 ]; then
		echo "there is no nvcc to build it, and it has not been built before" >"$dir/log"
		return 1
	fi
	for image in $(line "$1" | cut -d ' ' -f 2 | tr , ' '); do
		# shellcheck disable=SC2046,SC2086
		(cd "$abs_top_builddir" && "$nvcc" $gencode -fatbin -I"$tree/kernels" \
			$(tap_made AM_NVCCFLAGS) $(tap_made NVCCFLAGS) -w \
			-include "$abs_top_srcdir/t/cuda/mutant.cuh" \
			-o "$dir/$image.fatbin" "$tree/kernels/$image.cu") >"$dir/log" 2>&1 ||
			return 1
	done
	echo "$sum" >"$dir/sum"
}

names=$*
if [ -z "$names" ]; then
	names=$(awk '/^#/ { next } /^$/ { inside = 0; next } !inside { print $1; inside = 1 }' \
		"$list")
fi

# Every jobs-th mutant.
build_some()
{
	n=0
	for name in $names; do
		n=$((n + 1))
		[ $((n % jobs)) -eq "$1" ] || continue
		build "$name" || : >"$keep/$name/failed"
	done
}

for name in $names; do
	mkdir -p "$keep/$name"
	rm -f "$keep/$name/failed"
done
job=0
while [ "$job" -lt "$jobs" ]; do
	build_some "$job" &
	job=$((job + 1))
done
wait
for name in $names; do
	[ -f "$keep/$name/failed" ] || continue
	tap_fail "$name can be built"
	tap_diag "$(tail -n 5 "$keep/$name/log")"
done
[ "$tap_failed" -ne 0 ] || tap_pass "all mutants can be built"

tap_devices=$("$abs_top_builddir/t/cuda/devices" 2>"$tap_dir/devices")
test "${tap_devices:-0}" -ge 1
tap_require cuda $? 1 "$(cat "$tap_dir/devices")" || tap_done

# run SEED IMAGES PROGRAM ARGUMENT...
run()
{
	run_seed=$1
	run_images=$2
	run_program=$3
	shift 3
	if [ -e "$run_images/driver.so" ]; then
		MOEEP_CUDA_DRIVER=$run_images/driver.so
	elif [ -n "$emulate" ]; then
		MOEEP_CUDA_DRIVER=$emulate
	fi
	MOEEP_TEST_IMAGES=$run_images MOEEP_TEST_SEED=$run_seed \
		MOEEP_TEST_ROUNDS="${MOEEP_TEST_ROUNDS-400}" \
		timeout -k 5 "$limit" "$abs_top_builddir/t/cuda/$run_program" "$@"
}

# Without mutants, each program as it is called below.
for name in $names; do
	line "$name" | cut -d ' ' -f 3-
done | sort -u >"$tap_dir/programs"
while read -r program; do
	# shellcheck disable=SC2086
	tap_run run 1 /nonexistent $program
	tap_is "$tap_rc" 0 "the kernels as they are pass $program" || tap_diag "$tap_out"
done <"$tap_dir/programs"

for name in $names; do
	[ ! -f "$keep/$name/failed" ] || continue
	mode=$(line "$name" | cut -d ' ' -f 1)
	program=$(line "$name" | cut -d ' ' -f 3-)
	try=0
	tap_rc=0
	# Several data and delays.
	while [ "$try" -lt 3 ] && [ "$tap_rc" -eq 0 ]; do
		try=$((try + 1))
		# shellcheck disable=SC2086
		tap_run run "$try" "$keep/$name" $program
		[ "$mode" != same ] || break
	done
	# What a rank found, else the check's own text.
	why=$(printf '%s\n' "$tap_out" | sed -n 's/^# \(rank [0-9]*: .*\)/\1/p' |
		grep -v 'failures$' | head -n 1)
	[ -n "$why" ] || why=$(printf '%s\n' "$tap_out" | grep '^emulated ' | head -n 1)
	[ -n "$why" ] || why=$(printf '%s\n' "$tap_out" | sed -n 's/^not ok [0-9]* - //p' |
		head -n 1)
	case $mode:$tap_rc in
	same:*)
		tap_is "$tap_rc" 0 "$name: passes $program" || tap_diag "$tap_out"
		;;
	hardware:0) tap_skip 1 "$name: this device, or this load, does not show it" ;;
	*:0) tap_fail "$name: fails $program" ;;
	*)
		tap_pass "$name: fails $program"
		tap_diag "seen at try $try, exit $tap_rc: $why"
		;;
	esac
done
tap_done
