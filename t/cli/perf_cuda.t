#!/bin/sh
# SPDX-License-Identifier: MIT
# moeep-perf on GPUs: first on GPUs that are not there (fake_cuda.c), which shows that it never
# touches device memory itself, tells wrong results, and says what failed; then on those of this
# machine.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

perf=$abs_top_builddir/tools/moeep-perf
small="--backend cuda --tokens 40 --ll-tokens 12 --hidden 256 --experts 13 --iters 3 --warmup 1"
unset MOEEP_BACKEND

# right DESCRIPTION ARGUMENT...: it runs, and all results are right
right()
{
	what=$1
	shift
	# shellcheck disable=SC2086
	tap_run $with "$perf" $small "$@"
	if [ "$tap_rc" -ne 0 ]; then
		tap_fail "$what"
		tap_diag "exit status $tap_rc; $tap_out"
		return
	fi
	tap_like "$tap_out" "^results checked: [1-9][0-9]* values, 0 wrong$" "$what"
}
# wrong VARIABLE=VALUE EXPECTED DESCRIPTION ARGUMENT...: it fails and says how
wrong()
{
	how=$1
	expected=$2
	what=$3
	shift 3
	# shellcheck disable=SC2086
	tap_run $with "$how" "$perf" $small --quiet "$@"
	if [ "$tap_rc" -ne 1 ]; then
		tap_fail "$what: exit status"
		tap_diag "exit status $tap_rc, not 1; $tap_out"
		return
	fi
	tap_like "$tap_out" "$expected" "$what"
}
# every PREFIX: what is to work on fake and real GPUs alike
every()
{
	right "$1: each operation" --quiet
	right "$1: one rank" -n 1 --quiet
	right "$1: each call checked" --check all --iters 4 --quiet
	right "$1: uneven counts, masked choices, expert-major rows" --uneven --masked 0.3 \
		--layout expert-major --alignment 8 --quiet
	right "$1: phases apart, FP8 with scales by column" --mode ll --phases --quant fp8-ue8m0 \
		--scale-layout column --quiet
	right "$1: FP8 with scales, cached routing, narrow indices" --mode ht --dtype fp8 --cached \
		--index-dtype int32 --quiet
	right "$1: the same results as the host backend's" --compare-host --quiet
	right "$1: the same of FP8, expert-major rows, phases" --compare-host --quant fp8 --phases \
		--layout expert-major --quiet
	right "$1: no tokens" --tokens 0 --ll-tokens 0 --quiet
	# More calls than routings, so that each handle is in the graph more than once.
	right "$1: graphs" --graph 11 --compare-host --check all --iters 2
	tap_like "$tap_out" "^HT dispatch graph symmetric " "$1: graphs have rows of their own"
	tap_like "$tap_out" "graph of 11 calls, divided by 11" "$1: and say what their time is"
	tap_like "$tap_out" "^Creation of HT: comm .*, buffer " "$1: the time to get ready"
	tap_like "$tap_out" "^GPUs: [0-9]*, .* SMs, driver for CUDA" "$1: which GPUs"
}
every_count=14

built=1
if [ -n "${MOEEP_TEST_SANITIZERS-}" ]; then
	why="not with sanitizers, whose library has to come first"
elif ! [ -e "$abs_top_builddir/lib/.libs/libmoeep.so" ]; then
	why="the tool is linked with the static library"
elif ! [ -e "$abs_top_builddir/t/cuda/.libs/fake_driver.so" ]; then
	why="t/cuda/fake_driver.la is not built"
else
	why="it does not compile"
	tap_run "${CC:-cc}" -shared -fPIC -I"$abs_top_srcdir/include" -I"$abs_top_srcdir/lib" \
		-I"$abs_top_builddir/include" -o "$tap_dir/fake.so" \
		"$abs_top_srcdir/t/cli/fake_cuda.c" -Wl,--no-as-needed \
		"$abs_top_builddir/t/cuda/.libs/fake_driver.so" \
		-Wl,-rpath,"$abs_top_builddir/t/cuda/.libs" -ldl
	built=$tap_rc
fi
if tap_require preload "$built" $((every_count + 17)) "$why"; then
	with="env LD_PRELOAD=$tap_dir/fake.so MOEEP_CUDA_DRIVER=$tap_dir/fake.so FAKE_CUDA_DEVICES=2"
	every "fake GPUs"
	right "auto takes GPUs" --backend auto
	tap_like "$tap_out" "2 processes, cuda backend" "one rank for each"
	right "more ranks than GPUs" -n 3 --sms 8
	tap_like "$tap_out" "SMs of an operation: 8 at most" "SMs are given"
	# shellcheck disable=SC2086
	tap_run $with "$perf" $small --csv --graph 2 --mode ht --cached
	tap_is "$(printf '%s\n' "$tap_out" | awk -F, '{ print NF ":" $26 ":" $28 ":" $29 }' |
		tr '\n' ' ')" "32:backend:graph_calls:cached 32:cuda:0:1 32:cuda:2:1 32:cuda:0:1 \
32:cuda:2:1 32:cuda:0:1 32:cuda:2:1 32:cuda:0:1 32:cuda:2:1 " "--csv tells what is in a graph"
	# shellcheck disable=SC2086
	tap_run $with "$perf" $small --json --graph 2
	for word in '"backend": *"cuda"' '"graph_calls": *2' '"name": *"[^"]*"' '"sms": *[1-9]' \
		'"comm_create_seconds"'; do
		tap_like "$tap_out" "$word" "--json has $word"
	done
	wrong FAKE_SPOIL=1 "HT dispatch .*row\[0\] element 1" "a wrong bit is seen" --mode ht
	wrong FAKE_STATUS=-7 "moeep_dispatch: .*" "a result that comes later is seen" --mode ht
	wrong FAKE_CUDA_DEVICES=0 "no GPU can be used: .*NO_DEVICE" "no device"
	wrong FAKE_CUDA_VERSION=11080 "for CUDA 11.8; 12.0 or later is needed" "an old driver"
	wrong FAKE_CUDA_FAIL=cuInit:999 "no GPU can be used: cuInit: CUDA_ERROR_UNKNOWN" \
		"a driver that does not start"
	wrong FAKE_CUDA_FAIL=cuMemAlloc:2:3 \
		"rank [01]: GPU: cuMemAlloc of [0-9]* bytes: .*OUT_OF_MEMORY" "no memory on the GPU"
	wrong FAKE_CUDA_FAIL=cuGraphInstantiateWithFlags:2 "rank [01]: GPU: cuGraphInstantiate" \
		"a graph that cannot be made" --graph 2
fi

with="env"
tap_run "$perf" --backend cuda -n 1 --mode ll --ll-tokens 1 --hidden 256 --iters 1 --quiet
if tap_require cuda "$tap_rc" $((every_count + 2)) "$tap_out"; then
	every "GPUs"
	right "GPUs: two ranks at least, threads" --threads -n 2 --quiet
	right "GPUs: threads, graphs" --threads -n 2 --graph 4 --quiet
fi
tap_done
