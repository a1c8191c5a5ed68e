#!/bin/sh
# SPDX-License-Identifier: MIT
# moeep-info: what it prints, as text and as JSON, and its exit status.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

info=$abs_top_builddir/tools/moeep-info
version=$(sed -n 's/^#define MOEEP_VERSION_STRING "\(.*\)"/\1/p' \
	"$abs_top_builddir/include/moeep/version.h")

tap_run "$info" --version
tap_is "$tap_rc:$tap_out" "0:moeep-info $version" "--version"
tap_run "$info" --help
tap_is "$tap_rc" 0 "--help succeeds"
for option in settings hints check record input json help version; do
	tap_like "$tap_out" "--$option" "--help names --$option"
done
tap_like "$tap_out" "^Exit status: 0 .* 1 .* 2 " "--help documents the exit status"

tap_run "$info"
tap_is "$tap_rc" 0 "without options it succeeds"
tap_like "$tap_out" "library $version" "it gives the library's version"
for name in host cuda verbs mlx5dv ibgda rocm nettle; do
	tap_like "$tap_out" "^  $name  *\(yes\|no\)  *[^ ]" "feature $name has a reason"
done
for name in name kernel processors "NUMA nodes" memory "locked memory" "shared memory"; do
	tap_like "$tap_out" "^  $name  *[^ ]" "host: $name"
done
tap_like "$tap_out" "^GPUs" "GPUs"
tap_like "$tap_out" "^  driver  *.*12.0 or later is needed" "which driver is needed"
tap_like "$tap_out" "^  kernels  *[^ ]" "which kernels there are"
tap_like "$tap_out" "^  MOEEP_TIMEOUT" "settings"
tap_like "$tap_out" "^  HT  *shared .*, private .*, each handle" "hints for HT"
tap_like "$tap_out" "^  LL  *shared .*, private .*, each handle" "hints for LL"

tap_run "$info" --settings
tap_is "$tap_rc" 0 "--settings succeeds"
tap_like "$tap_out" "MOEEP_TIMEOUT  *30000 ms, from the default" "a default"
tap_unlike "$tap_out" "^Host" "--settings prints settings alone"
tap_run env MOEEP_TIMEOUT=1234 "$info" --settings
tap_like "$tap_out" "MOEEP_TIMEOUT  *1234 ms, from the environment (default 30000)" \
	"a value from the environment"
tap_run env MOEEP_TIMEOUT=soon "$info" --settings
tap_is "$tap_rc" 0 "a setting that is not valid is listed all the same"
tap_like "$tap_out" "MOEEP_TIMEOUT  *soon (not valid)" "and marked"

tap_run "$info" --hints=ranks=2,hidden=256,experts=16,topk=4,ht-tokens=64,ll-tokens=16,dtype=fp16
tap_is "$tap_rc" 0 "--hints=LIST succeeds"
tap_like "$tap_out" "2 ranks on one host, hidden 256, top-4 of 16, fp16" "with what was asked for"
one=$tap_out
tap_run "$info" --hints ranks=2,hidden=256,experts=16,topk=4,ht-tokens=64,ll-tokens=16,dtype=fp16
tap_is "$tap_out" "$one" "--hints LIST is the same"
tap_run "$info" --hints=hidden=7
tap_is "$tap_rc" 1 "a configuration that the library refuses gives 1"
tap_like "$tap_out" "not possible: .*hidden is 7" "and the library's reason"

tap_run env MOEEP_CUDA_DRIVER=/none "$info"
tap_is "$tap_rc" 0 "without a driver it succeeds"
tap_like "$tap_out" "^  driver  *none;" "and says so"
tap_like "$tap_out" "^  usable  *none: no CUDA driver: /none: " "and why no GPU can be used"
tap_run "$info" --settings
tap_unlike "$tap_out" "^GPUs" "--settings asks no driver"

fake=$abs_top_builddir/t/cuda/.libs/fake_driver.so
test -e "$fake" && [ -z "${MOEEP_TEST_SANITIZERS-}" ]
if tap_require fake $? 11 "t/cuda/fake_driver.la is not built, or this is a build with sanitizers"; then
	MOEEP_CUDA_DRIVER=$fake
	FAKE_CUDA_DEVICES=2
	export MOEEP_CUDA_DRIVER FAKE_CUDA_DEVICES
	tap_run "$info"
	tap_is "$tap_rc" 0 "with a driver it succeeds"
	tap_like "$tap_out" "^  driver  *for CUDA 12.4; 12.0 or later is needed" "its version"
	tap_like "$tap_out" "^  GPU 1  *Fake device 1, compute capability 9.0, 16 SMs, 80.0 GiB, PCI 0" \
		"a device"
	tap_like "$tap_out" "^  *usable by moeep: \(yes\|no: .\)" "whether the library can use it"
	tap_like "$tap_out" "^  GPU 0  *X  *NVLink  *-" "how it reaches the other"
	tap_like "$tap_out" "^  device memory  *passed between processes: yes" "memory is passed"
	tap_run env FAKE_CUDA_PEERS=0 "$info"
	tap_like "$tap_out" "^  GPU 0  *X  *none  *-" "that it does not reach the other"
	tap_run env FAKE_CUDA_FAIL=cuMemImportFromShareableHandle:801 "$info"
	tap_like "$tap_out" \
		"passed between processes: no: the process that takes it: cuMemImportFrom.*NOT_SUPPORTED" \
		"that memory cannot be passed, and which end says so"
	tap_run env FAKE_CUDA_FAIL=cuMemExportToShareableHandle:801 "$info"
	tap_like "$tap_out" "passed between processes: no: the process that gives it: cuMemExport" \
		"the other end"
	tap_run env FAKE_CUDA_FAIL=cuInit:999 "$info"
	tap_like "$tap_out" "^  usable  *none: cuInit: CUDA_ERROR_UNKNOWN" "a driver that does not start"
	tap_run env FAKE_CUDA_VERSION=11040 "$info"
	tap_like "$tap_out" "^  usable  *none: .* for CUDA 11.4; 12.0 or later is needed" "an old driver"
	unset MOEEP_CUDA_DRIVER FAKE_CUDA_DEVICES
fi

# refused EXPECTED ARGUMENT...
refused()
{
	expected=$1
	shift
	tap_run "$info" "$@"
	tap_is "$tap_rc" 2 "$*: exit status 2"
	tap_like "$tap_out" "$expected" "$*: the message names it"
}
refused "unrecognized option.*--wrong" --wrong
refused "unexpected argument \"word\"" word
refused "ranks=\"0\"" --hints=ranks=0
refused "ranks=\"many\"" --hints=ranks=many
refused "dtype=\"int4\"" --hints=dtype=int4
refused "speed" --hints=speed=9
refused "NAME=VALUE" --hints=ranks

if [ -c /dev/full ]; then
	"$info" >/dev/full 2>"$tap_dir/full"
	tap_is "$?" 1 "output that cannot be written gives 1"
	tap_like "$(cat "$tap_dir/full")" "could not be written" "and a message"
else
	tap_skip 2 "no /dev/full"
fi

command -v python3 >/dev/null 2>&1
if tap_require python3 $? 3 "it is not installed"; then
	"$info" --json >"$tap_dir/info.json"
	tap_run python3 - "$tap_dir/info.json" "$version" <<'END'
import json, sys
info = json.load(open(sys.argv[1], encoding="utf-8"))
assert info["program"] == "moeep-info" and info["library_version"] == sys.argv[2]
assert [f["name"] for f in info["features"]][0] == "host" and info["features"][0]["enabled"]
assert all(f["reason"] for f in info["features"])
assert info["host"]["processors_allowed"] >= 1 and info["host"]["numa_nodes"] >= 1
assert {"name", "value", "source", "default", "description", "unit"} == set(info["settings"][0])
assert info["gpus"]["driver_version_needed"] == 12000
assert info["gpus"]["devices"] or info["gpus"]["not_usable_because"]
assert info["hints"]["ranks"] == 8 and info["hints"]["ht"]["window_bytes"] > 0
assert info["hints"]["ll"]["handle_bytes"] > 0
END
	tap_is "$tap_rc" 0 "--json is a document with everything" || tap_diag "$tap_out"
	# Quotes, a control byte, bytes that are not UTF-8, and a character that is.
	hostile=$(printf 'a"b\\c\001d\377e\303\251')
	MOEEP_HOST_ID=$hostile "$info" --json >"$tap_dir/hostile.json"
	tap_run python3 - "$tap_dir/hostile.json" <<'END'
import json, sys
info = json.load(open(sys.argv[1], encoding="utf-8"))
value = {s["name"]: s["value"] for s in info["settings"]}["MOEEP_HOST_ID"]
assert value == 'a"b\\c\x01d\ufffde\u00e9', ascii(value)
END
	tap_is "$tap_rc" 0 "--json escapes what comes from outside" || tap_diag "$tap_out"
	"$info" --json --hints=hidden=7 >"$tap_dir/refused.json"
	tap_run python3 -c 'import json, sys; assert json.load(sys.stdin)["hints"]["error"]' \
		<"$tap_dir/refused.json"
	tap_is "$tap_rc" 0 "--json carries a refusal" || tap_diag "$tap_out"
fi
tap_done
