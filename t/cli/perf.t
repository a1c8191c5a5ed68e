#!/bin/sh
# SPDX-License-Identifier: MIT
# moeep-perf: options, small runs of every kind, files that it must refuse, results that it must see
# to be wrong, and ranks that die.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

perf=$abs_top_builddir/tools/moeep-perf
version=$(sed -n 's/^#define MOEEP_VERSION_STRING "\(.*\)"/\1/p' \
	"$abs_top_builddir/include/moeep/version.h")
# On GPUs it is perf_cuda.t's.
MOEEP_BACKEND=host
export MOEEP_BACKEND
small="--tokens 40 --ll-tokens 12 --hidden 256 --experts 13 --iters 3 --warmup 1 --quiet"

tap_run "$perf" --version
tap_is "$tap_rc:$tap_out" "0:moeep-perf $version" "--version"
tap_run "$perf" --help
tap_is "$tap_rc" 0 "--help succeeds"
tap_like "$tap_out" "^Exit status: 0 .* 1 .* 2 " "--help documents the exit status"

# refused EXPECTED ARGUMENT...
refused()
{
	expected=$1
	shift
	tap_run "$perf" "$@"
	if [ "$tap_rc" -ne 2 ]; then
		tap_fail "$*: refused"
		tap_diag "exit status $tap_rc; $tap_out"
	else
		tap_like "$tap_out" "$expected" "$*: refused by name"
	fi
}
refused "unrecognized option.*--wrong" --wrong
refused "unexpected argument \"word\"" word
refused "ranks \"0\".*from 1 to 256" --ranks 0
refused "ranks \"x\"" -n x
refused "mode \"fast\".*ht, ll, both" --mode fast
refused "tokens \"-1\"" --tokens -1
refused "tokens \"16777216\"" --tokens 16777216
refused "backend \"gpu\".*auto, host, cuda" --backend gpu
refused "emulate-nodes \"0\"" --emulate-nodes 0
refused "emulate-nodes 3 is more than the 2 ranks" -n 2 --emulate-nodes 3
refused "emulate-nodes is for --backend host" --backend cuda --emulate-nodes 2
refused "sms \"0\"" --sms 0
refused "graph \"1001\"" --graph 1001
refused "ll-tokens \"65536\"" --ll-tokens 65536
refused "hidden 7:.*multiple of 16" --hidden 7
refused "hidden 200:.*fp8_e4m3.*multiple of 16" --hidden 200 --quant fp8
refused "topk \"65\"" --topk 65
refused "topk 20.*experts (10)" --topk 20 --experts 10
refused "experts \"0\"" --experts 0
refused "dtype \"int4\"" --dtype int4
refused "dtype fp8 is for --mode ht" --dtype fp8
refused "combine-dtype \"int8\"" --combine-dtype int8
refused "quant \"fp4\"" --quant fp4
refused "quant is for LL" --quant fp8 --mode ht
refused "layout \"tall\"" --layout tall
refused "masked \"1.5\"" --masked 1.5
refused "iters \"0\"" --iters 0
refused "seed \"1x\"" --seed 1x
refused "\"nowhere\" is not uniform" --routing nowhere
refused "exponent of \"zipf:0\"" --routing zipf:0
refused "exponent of \"zipf:nan\"" --routing zipf:nan
refused "missing.npy\": No such file" --routing "$tap_dir/missing.npy"
refused "needs about .* of memory" --ranks 256 --tokens 16000000 --mode ht

# right DESCRIPTION ARGUMENT...: it runs, and all results are right
right()
{
	what=$1
	shift
	# shellcheck disable=SC2086
	tap_run "$perf" $small "$@"
	if [ "$tap_rc" -ne 0 ]; then
		tap_fail "$what"
		tap_diag "exit status $tap_rc; $tap_out"
		return
	fi
	tap_like "$tap_out" "^results checked: [1-9][0-9]* values, 0 wrong$" "$what"
}
for ranks in 1 2 3 8; do
	right "$ranks ranks" --ranks $ranks
done
right "threads" --ranks 3 --threads --uneven
right "uneven counts, masked choices, expert-major rows, phases" --ranks 4 --uneven --masked 0.3 \
	--layout expert-major --alignment 8 --phases
right "every choice masked" --ranks 3 --masked 1
right "no tokens" --ranks 3 --tokens 0 --ll-tokens 0
right "more ranks than experts" --ranks 5 --experts 3 --topk 2
for dtype in fp16 fp32 int8 fp8; do
	right "HT rows of $dtype" --ranks 3 --mode ht --dtype $dtype --index-dtype int32
done
right "HT fp8, expert-major, scales by column" --ranks 3 --mode ht --dtype fp8 \
	--layout expert-major --scale-layout column
for quant in fp8 fp8-pow2 fp8-ue8m0; do
	right "LL cast to $quant" --ranks 3 --mode ll --quant $quant
	right "LL cast to $quant, of fp16, scales by column" --ranks 3 --mode ll --quant $quant \
		--dtype fp16 --scale-layout column --phases
done
right "cached routing" --ranks 3 --mode ht --cached
right "cached routing, expert-major" --ranks 3 --mode ht --cached --layout expert-major
right "partial sums in fp32" --ranks 3 --layout expert-major --partial-dtype fp32
right "combine in fp32" --ranks 3 --combine-dtype fp32
right "a popular expert" --ranks 3 --routing zipf:1.5
right "every call checked" --ranks 2 --check all --iters 6
right "symmetric rows alone" --ranks 2 --symmetric
tap_unlike "$tap_out" "ordinary" "ordinary ones are left out"
right "ordinary rows alone" --ranks 2 --ordinary
tap_unlike "$tap_out" "symmetric" "symmetric ones are left out"

# shellcheck disable=SC2086
tap_run "$perf" $small --ranks 2 --mode ht
plain=$(printf '%s\n' "$tap_out" | sed -n 's/^results checked: //p')
# shellcheck disable=SC2086
tap_run "$perf" $small --ranks 2 --mode ht
tap_is "$(printf '%s\n' "$tap_out" | sed -n 's/^results checked: //p')" "$plain" \
	"a run can be repeated"

trace=$abs_top_srcdir/t/data/trace_topk.npy,$abs_top_srcdir/t/data/trace_weights.npy
tap_run "$perf" --demo --trace "$trace" --ranks 3 --tokens 32 --ll-tokens 8 --hidden 128 --time 0
tap_is "$tap_rc" 0 "--demo succeeds" || tap_diag "$tap_out"
tap_like "$tap_out" "^Expert parallelism between 3 ranks" "--demo explains itself"
tap_like "$tap_out" "^Routing: .*trace_topk.npy" "--demo takes the routing of a real text"
tap_like "$tap_out" "top-8 of 256" "top-k and experts come from the file"
for word in p50 p99 logical wire checked; do
	tap_like "$tap_out" " $word " "the table has a column $word"
done
tap_like "$tap_out" "^Wire GB/s: " "bandwidths are defined"
tap_like "$tap_out" "window .*, private .*, symmetric rows" "bytes are itemised"
tap_run "$perf" --demo --trace "$tap_dir/none.npy" --ranks 2 --tokens 32 --ll-tokens 8 \
	--hidden 128 --time 0
tap_is "$tap_rc" 0 "--demo without the trace succeeds" || tap_diag "$tap_out"
tap_like "$tap_out" "^Routing: uniform" "and takes uniform routing"

# npy FILE HEADER DATA: a file of format 1.0; DATA is a format for printf
npy()
{
	length=$((${#2} + 1))
	# shellcheck disable=SC2059
	{
		printf '\223NUMPY\001\000'
		printf "\\$(printf %03o $((length % 256)))\\$(printf %03o $((length / 256)))"
		printf '%s\n' "$2"
		printf "$3"
	} >"$1"
}
i4="{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }"
f4="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"
good='\000\000\000\000\002\000\000\000\377\377\377\377\005\000\000\000'
floats='\000\000\200\077\000\000\000\077\000\000\000\076\000\000\000\277'
npy "$tap_dir/good.npy" "$i4" "$good"
npy "$tap_dir/weights.npy" "$f4" "$floats"
cd "$tap_dir" || exit 99
files="--tokens 40 --ll-tokens 12 --hidden 256 --iters 3 --warmup 1 --quiet"
# shellcheck disable=SC2086
tap_run "$perf" $files --ranks 2 --routing good.npy,weights.npy
tap_is "$tap_rc" 0 "a file of indices and one of weights" || tap_diag "$tap_out"
# shellcheck disable=SC2086
tap_run "$perf" $files --ranks 2 --routing good.npy --topk 1 --experts 9
tap_is "$tap_rc" 0 "fewer choices and more experts than the file's" || tap_diag "$tap_out"
refused "has 2 choices a token, not 3" --routing good.npy --topk 3
refused "names expert 5; there are 4" --routing good.npy --experts 4
refused "holds float32" --routing weights.npy
refused "weights file \"good.npy\"" --routing good.npy,good.npy
npy nan.npy "$f4" '\000\000\200\077\000\000\300\177\000\000\000\076\000\000\000\277'
refused "weights file \"nan.npy\".*not finite" --routing good.npy,nan.npy
npy low.npy "$i4" '\376\377\377\377\002\000\000\000\377\377\377\377\005\000\000\000'
refused "low.npy.*expert -2" --routing low.npy
npy high.npy "$i4" '\000\000\001\000\002\000\000\000\377\377\377\377\005\000\000\000'
refused "high.npy.*expert 65536" --routing high.npy
: >empty.npy
refused "empty.npy" --routing empty.npy
head -c 70 good.npy >cut.npy
refused "cut.npy" --routing cut.npy
printf '%s\n' "not an array" >text.npy
refused "text.npy.*not a NumPy array" --routing text.npy
mkdir directory.npy
refused "directory.npy.*not a regular file" --routing directory.npy
npy fortran.npy "{'descr': '<i4', 'fortran_order': True, 'shape': (2, 2), }" "$good"
refused "fortran.npy.*Fortran" --routing fortran.npy
npy big.npy "{'descr': '>i4', 'fortran_order': False, 'shape': (2, 2), }" "$good"
refused "big.npy.*type" --routing big.npy
npy zero.npy "{'descr': '<i4', 'fortran_order': False, 'shape': (0, 8), }" ""
refused "zero.npy.*no elements" --routing zero.npy
npy wide.npy "{'descr': '<i4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }" ""
refused "wide.npy.*too large" --routing wide.npy
npy long.npy "{'descr': '<i4', 'fortran_order': False, 'shape': (3, 2), }" "$good"
refused "long.npy.*16 bytes of data" --routing long.npy
npy object.npy "{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }" "$good"
refused "object.npy.*type" --routing object.npy

# shellcheck disable=SC2086
tap_run "$perf" $small --ranks 2 --csv --phases
tap_is "$tap_rc" 0 "--csv succeeds" || tap_diag "$tap_out"
tap_is "$(printf '%s\n' "$tap_out" | awk -F, '{ print NF }' | sort -u)" 32 \
	"--csv: every line has every column"
tap_is "$(printf '%s\n' "$tap_out" | wc -l | tr -d ' ')" 14 "--csv: a line a row and one of names"
command -v python3 >/dev/null 2>&1
if tap_require python3 $? 1 "it is not installed"; then
	# shellcheck disable=SC2086
	"$perf" $small --ranks 2 --json --phases >perf.json
	tap_run python3 - perf.json <<'END'
import json, sys
perf = json.load(open(sys.argv[1], encoding="utf-8"))
assert perf["ok"] and perf["values_wrong"] == 0 and perf["values_checked"] > 0
assert perf["config"]["backend"] == "host"
assert perf["config"]["ranks"] == 2 and perf["config"]["hidden"] == 256
assert len(perf["results"]) == 13, len(perf["results"])
for row in perf["results"]:
    assert row["calls"] == 3
    assert 0 < row["least_seconds"] <= row["p50_seconds"] <= row["p99_seconds"]
    if row["phase"] == "both":
        assert row["logical_bytes"] > row["wire_bytes"] > 0
        assert row["values_checked"] > 0
assert {r["phase"] for r in perf["results"] if r["mode"] == "ll"} == {"send", "recv", "both"}
END
	tap_is "$tap_rc" 0 "--json is a document with everything" || tap_diag "$tap_out"
fi
# Several emulated nodes. Their network carries something, but nothing between ranks of one node.
for layout in flat expert-major; do
	# shellcheck disable=SC2086
	tap_run "$perf" ${small% --quiet} -n 6 --emulate-nodes 3 --layout "$layout" --no-progress
	tap_is "$tap_rc" 0 "three emulated nodes, $layout rows: all results are right"
	tap_like "$tap_out" "3 emulated nodes: [1-9].* requests, .*[1-9].*; to ranks of the own node 0 B" \
		"and what the network carried is told"
done

for option in "--sms 4" "--graph 2" --compare-host "--backend cuda"; do
	# shellcheck disable=SC2086
	tap_run env MOEEP_CUDA_DRIVER=/none "$perf" $small --ranks 1 $option
	tap_is "$tap_rc" 1 "$option needs a GPU"
	tap_like "$tap_out" "^moeep-perf: ${option%% [0-9]*}: no GPU can be used: ." "and says why there is none"
done
tap_run env MOEEP_BACKEND=auto MOEEP_CUDA_DRIVER=/none "$perf" --ranks 1 --tokens 4 --ll-tokens 4 \
	--hidden 256 --iters 1
tap_is "$tap_rc" 0 "without a GPU it runs on the host" || tap_diag "$tap_out"
tap_like "$tap_out" "^GPUs: none used (.*)$" "and says why there is none"
tap_run env MOEEP_BACKEND=soon "$perf" --ranks 1 --iters 1
tap_is "$tap_rc" 2 "a MOEEP_BACKEND that is not valid is not ignored"
tap_like "$tap_out" "MOEEP_BACKEND.*soon" "but named"

if [ -c /dev/full ]; then
	# shellcheck disable=SC2086
	"$perf" $small --ranks 1 --mode ht >/dev/full 2>full
	tap_is "$?" 1 "output that cannot be written gives 1"
else
	tap_skip 1 "no /dev/full"
fi

# A result that is wrong has to be seen. A library between the tool and moeep spoils one.
cat >spoil.c <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <moeep/moeep.h>

static int wanted(const char *what)
{
	const char *spoil = getenv("SPOIL");

	return spoil && !strcmp(spoil, what);
}

static void flip(void *bytes, size_t at)
{
	((unsigned char *)bytes)[at] ^= 1;
}

int moeep_dispatch(moeep_buffer_t *b, moeep_handle_t *h, const moeep_dispatch_args_t *a,
		   const moeep_launch_t *l)
{
	int (*next)(moeep_buffer_t *, moeep_handle_t *, const moeep_dispatch_args_t *,
		    const moeep_launch_t *);
	unsigned char *rows = a->recv_x, held[512];
	int rc;

	*(void **)&next = dlsym(RTLD_NEXT, "moeep_dispatch");
	rc = next(b, h, a, l);
	if (rc == 0 && wanted("bit")) {
		flip(rows, 5 * 512 + 77);
	} else if (rc == 0 && wanted("swap")) {
		memcpy(held, rows, 512);
		memcpy(rows, rows + 512, 512);
		memcpy(rows + 512, held, 512);
	} else if (rc == 0 && wanted("weight")) {
		flip(a->recv_topk_weights, 8);
	} else if (rc == 0 && wanted("count")) {
		flip(a->num_recv, 0);
	}
	return rc;
}

int moeep_combine(moeep_buffer_t *b, moeep_handle_t *h, const moeep_combine_args_t *a,
		  const moeep_launch_t *l)
{
	int (*next)(moeep_buffer_t *, moeep_handle_t *, const moeep_combine_args_t *,
		    const moeep_launch_t *);
	int rc;

	*(void **)&next = dlsym(RTLD_NEXT, "moeep_combine");
	rc = next(b, h, a, l);
	if (rc == 0 && wanted("sum")) {
		flip(a->out, 3 * 512 + 10);
	}
	return rc;
}

int moeep_ll_dispatch(moeep_buffer_t *b, moeep_handle_t *h, const moeep_ll_dispatch_args_t *a,
		      const moeep_launch_t *l)
{
	int (*next)(moeep_buffer_t *, moeep_handle_t *, const moeep_ll_dispatch_args_t *,
		    const moeep_launch_t *);
	int rc;

	*(void **)&next = dlsym(RTLD_NEXT, "moeep_ll_dispatch");
	rc = next(b, h, a, l);
	if (rc == 0 && wanted("scale")) {
		flip(a->recv_scales, 0);
	} else if (rc == 0 && wanted("cast")) {
		flip(a->recv_x, 1);
	} else if (rc == 0 && wanted("range")) {
		flip(a->recv_range, 0);
	} else if (rc == 0 && wanted("exit")) {
		_Exit(7);
	}
	return rc;
}
END
built=1
if [ -n "${MOEEP_TEST_SANITIZERS-}" ]; then
	why="not with sanitizers, whose library has to come first"
elif ! [ -e "$abs_top_builddir/lib/.libs/libmoeep.so" ]; then
	why="the tool is linked with the static library"
else
	why="it does not compile"
	tap_run "${CC:-cc}" -shared -fPIC -I"$abs_top_srcdir/include" \
		-I"$abs_top_builddir/include" -o spoil.so spoil.c -ldl
	built=$tap_rc
fi
# spoilt WHAT EXPECTED ARGUMENT...
spoilt()
{
	what=$1
	expected=$2
	shift 2
	# shellcheck disable=SC2086
	tap_run env SPOIL="$what" LD_PRELOAD="$tap_dir/spoil.so" "$perf" $small --experts 4 \
		--topk 4 --ranks 2 "$@"
	if [ "$tap_rc" -ne 1 ]; then
		tap_fail "a spoilt result ($what) gives 1"
		tap_diag "exit status $tap_rc; $tap_out"
	else
		tap_like "$tap_out" "$expected" "a spoilt result ($what) is seen and described"
	fi
}
if tap_require preload "$built" 9 "$why"; then
	spoilt bit "wrong result of HT dispatch .*rank [01]: row\[5\] element 38" --mode ht
	spoilt swap "wrong result of HT dispatch .*row\[0\]" --mode ht
	spoilt weight "wrong result of HT dispatch .*recv_topk_weights\[2\]" --mode ht
	spoilt count "wrong result of HT dispatch .*num_recv" --mode ht
	spoilt sum "wrong result of HT combine .*out\[3\] element 5" --mode ht
	spoilt scale "wrong result of LL dispatch .*scale 0" --mode ll --quant fp8
	spoilt cast "wrong result of LL dispatch .*row\[0\] element 1" --mode ll --quant fp8
	spoilt range "wrong result of LL dispatch .*recv_range" --mode ll
	spoilt exit "rank [01] (process [0-9]*) exited with status 7" --mode ll
fi

# children PID: the ids of its children
children()
{
	for stat in /proc/[0-9]*/stat; do
		if read -r child _ _ parent _ 2>/dev/null <"$stat" && [ "$parent" = "$1" ]; then
			echo "$child"
		fi
	done
}
# begin ARGUMENT...: a long run in the background; sets pid, and ranks to the ids of its 3 ranks
begin()
{
	# shellcheck disable=SC2086
	"$perf" --tokens 40 --hidden 256 --experts 13 --mode ht --quiet --ranks 3 --iters 1000000 \
		"$@" >long 2>&1 &
	pid=$!
	looks=0
	ranks=
	while [ "$(printf '%s\n' "$ranks" | wc -w)" -ne 3 ] && [ $looks -lt 200 ]; do
		sleep 0.05
		looks=$((looks + 1))
		ranks=$(children $pid)
	done
	# Into the calls, past the creation of the group.
	sleep 0.3
}
# ended STATUS EXPECTED DESCRIPTION
ended()
{
	rc=0
	wait "$pid" 2>/dev/null || rc=$?
	tap_is "$rc" "$1" "$3: exit status" || tap_diag "$(cat long)"
	tap_like "$(cat long)" "$2" "$3: the message"
	left=
	for rank in $ranks; do
		# One that nobody has collected yet has ended all the same.
		if read -r _ _ state _ 2>/dev/null <"/proc/$rank/stat" && [ "$state" != Z ]; then
			left="$left $rank"
		fi
	done
	tap_is "$left" "" "$3: no rank is left"
}
begin
kill -KILL "$(printf '%s\n' "$ranks" | tail -n 1)"
ended 1 "rank [0-2] (process [0-9]*) was killed by signal 9" "a rank is killed"
begin --timeout 500
kill -STOP "$(printf '%s\n' "$ranks" | tail -n 1)"
ended 1 "rank [0-2]: moeep_.*did not come in time" "a rank is stopped"
begin
kill -TERM "$pid"
ended 143 "stopped by signal 15" "the tool is ended"
begin
kill -KILL "$pid"
sleep 0.3
ended 137 "" "the tool is killed"
tap_done
