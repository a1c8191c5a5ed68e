#!/bin/sh
# SPDX-License-Identifier: MIT
# moeep-info of recorded machines: the report and the findings of each are as t/cli/machines has them, every
# finding is made of a machine that has the fault, and what is no record is refused.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

info=$abs_top_builddir/tools/moeep-info
machines=$abs_top_srcdir/t/cli/machines
count=0

# same TEXT FILE NAME: with the difference, if there is any
same()
{
	printf '%s\n' "$1" >"$tap_dir/got"
	tap_run diff -u "$2" "$tap_dir/got"
	tap_is "$tap_rc" 0 "$3" || tap_diag "$tap_out"
}

for record in "$machines"/*.machine; do
	name=${record##*/}
	name=${name%.machine}
	count=$((count + 1))
	tap_run "$info" --input="$record"
	same "$(printf '%s\n' "$tap_out" | sed 1d)" "$machines/$name.report" "$name: the report"
	tap_run "$info" --check --input="$record"
	same "$tap_out${tap_out:+
}exit status $tap_rc" "$machines/$name.check" "$name: the findings"
	tap_run "$info" --json --check --input="$record"
	if tap_require python3 "$(command -v python3 >/dev/null 2>&1; echo $?)" 1 "it is not installed"; then
		findings=$(printf '%s\n' "$tap_out" | python3 -c '
import json, sys
info = json.load(sys.stdin)
assert "settings" not in info and "features" not in info and "hints" not in info
for finding in info["findings"]:
    print("%(level)s: %(what)s; %(why)s; mend: %(mend)s" % finding)' 2>&1)
		same "$findings${findings:+
}exit status $tap_rc" "$machines/$name.check" "$name: the same findings as JSON"
	fi
done
test "$count" -ge 5
tap_ok $? "there are machines of several kinds"

# finds RECORD EDIT PATTERN: an edit by sed makes a finding of it, and the machine before had none like it
finds()
{
	sed "$2" "$machines/$1.machine" >"$tap_dir/edited"
	tap_run "$info" --check --input="$machines/$1.machine"
	tap_unlike "$tap_out" "$3" "$1 has no such finding:"
	tap_run "$info" --check --input="$tap_dir/edited"
	tap_like "$tap_out" "$3" "with $2 it has"
	tap_is "$tap_rc" 3 "which is exit status 3"
}

nic='/sys/class/infiniband/mlx5_0'
finds dgx-h100 's/^host.anonymous_shared_memory yes/host\/anonymous_shared_memory Function not implemented/' \
	'^error: anonymous shared memory cannot be had: Function not implemented; .*; mend: allow'
finds dgx-h100 's/numa_balancing 0/numa_balancing 1/' '^warning: automatic NUMA balancing is on; .*sysctl -w'
finds dgx-h100 '/^driver/d;/module.nvidia/d' \
	'^error: 8 NVIDIA GPUs on PCI, and the kernel.s module nvidia is not loaded; .*modprobe nvidia'
finds dgx-h100 's/^driver.version .*/driver\/not_usable no CUDA driver: libcuda.so.1: cannot open/;/^driver.gpu/d' \
	'^error: 8 NVIDIA GPUs on PCI, and no libcuda.so.1: no CUDA driver'
finds dgx-h100 's/^driver.version .*/driver\/version 11040/;/^driver.gpu/d' \
	'^error: the driver is for CUDA 11.4; 12.0 or later is needed; .*newer driver'
finds dgx-h100 '/^driver.gpu/d;s/^driver.memory.*/driver\/not_usable cuInit: CUDA_ERROR_SYSTEM_NOT_READY/' \
	'^error: the GPUs wait for their NVSwitches .*; mend: systemctl start nvidia-fabricmanager'
finds dgx-h100 '/^driver.gpu/d;s/^driver.memory.*/driver\/not_usable cuInit: CUDA_ERROR_UNKNOWN/' \
	'^error: cuInit: CUDA_ERROR_UNKNOWN; .*dmesg'
finds dgx-h100 's/^driver.gpu.3.usable yes/driver\/gpu\/3\/usable no kernel for it/' \
	'^error: GPU 3 (NVIDIA H100 80GB HBM3) is not usable: no kernel for it; .*CUDA_VISIBLE_DEVICES'
finds dgx-h100 '/^driver.gpu.7/d' '^warning: the driver has 7 of the 8 NVIDIA GPUs on PCI; .*Xid'
finds dgx-h100 's/^\(driver.gpu.[01].peer.[67]\) .*/\1 none/' \
	"^error: GPU 0 and GPU 6 do not reach each other's memory (and 3 more pairs); .*topo -p2p"
finds dgx-h100 's/^driver.memory_passed yes/driver\/memory_passed the process that takes it: no/' \
	'^error: device memory cannot be passed between processes: the process that takes it: no; ranks'
finds dgx-h100 '/1b:00.0.current_link_width/s/16$/8/' '^warning: GPU 0 has 8 of 16 lanes of PCI; .*1b:00.0'
finds dgx-h100 '/infiniband_verbs.uverbs0/d' '^error: mlx5_0 has no uverbs device; .*modprobe ib_uverbs'
finds dgx-h100 's/^.dev.infiniband.uverbs0 yes/\/dev\/infiniband\/uverbs0 Permission denied/' \
	'^error: /dev/infiniband/uverbs0 of mlx5_0: Permission denied; .*--device'
finds dgx-h100 '/18:00.0.current_link_width/s/16$/4/' '^warning: mlx5_0 has 4 of 16 lanes of PCI; rows to other'
finds dgx-h100 '/18:00.0.current_link_speed/s/32.0/16.0/' '^warning: mlx5_0 has PCI at 16 of 32 GT/s; rows to'
finds dgx-h100 "s,^\\($nic/ports/1/state\\) .*,\\1 2: INIT," \
	'^error: mlx5_0 port 1 is INIT: it waits for a subnet manager; .*opensm'
finds dgx-h100 "s,^\\($nic/ports/1/state\\) .*,\\1 1: DOWN," '^warning: mlx5_0 port 1 is DOWN (LinkUp); .*ibstat mlx5_0'
finds dgx-h100 '/^.sys.class.infiniband.mlx5_0/d;/uverbs0/d' \
	'^error: the NIC at 0000:18:00.0 has no RDMA device; .*modprobe mlx5_ib'
finds dgx-h100 's/^host.locked_memory_bytes .*/host\/locked_memory_bytes 65536/;s/may_lock_memory 1/may_lock_memory 0/' \
	'^error: this process may lock 64.0 KiB of memory; .*limits.conf.*LimitMEMLOCK.*--ulimit'
finds dgx-h100 '/nvidia_peermem/d;s/dma_buf 1/dma_buf 0/' \
	'^error: RDMA devices cannot reach memory of GPUs: .*; mend: modprobe nvidia-peermem'
finds dgx-h100 's/\(iommu_groups.*type\) identity/\1 DMA-FQ/' \
	'^warning: the IOMMU translates .*; mend: start the kernel with iommu=pt'
finds cloud-roce 's/^\(.sys.class.net.rdma3.mtu\) .*/\1 1500/' \
	'^warning: rdma3 of mlx5_4 port 1 has an MTU of 1500; .*; mend: ip link set rdma3 mtu 9000'
finds cloud-roce '/mlx5_5.ports.1.gid_attrs.types/d' '^error: mlx5_5 port 1 has no GID of RoCE v2; .*give rdma4 an'
finds cloud-roce "s,^\\(/sys/class/infiniband/mlx5_5/ports/1/state\\) .*,\\1 1: DOWN," \
	'^warning: mlx5_5 port 1 is DOWN (LinkUp); .*; mend: ip link set rdma4 up'

# This machine: its record says what it said. What moves by itself does not count.
still()
{
	sed '1d;/^Settings/,$d;/^Features/,/^$/d;/^  memory /d;/^  .dev.shm /d;/^  kernels /d' | sed '/./,$!d'
}
"$info" --record="$tap_dir/own" 2>"$tap_dir/said"
tap_is "$?:$(cat "$tap_dir/said")" "0:" "this machine is recorded"
tap_is "$(head -n 1 "$tap_dir/own")" "moeep-machine 1" "its record begins as it has to"
"$info" | still >"$tap_dir/live"
"$info" --input="$tap_dir/own" | still >"$tap_dir/recorded"
tap_is "$(cat "$tap_dir/recorded")" "$(cat "$tap_dir/live")" "its report is the same as of itself"
test "$(wc -l <"$tap_dir/live")" -gt 12
tap_ok $? "which says something"
"$info" --record=- >"$tap_dir/own2"
tap_is "$(sed '/available\|free/d' "$tap_dir/own2")" "$(sed '/available\|free/d' "$tap_dir/own")" \
	"--record=- goes to the output"
"$info" --input=- <"$tap_dir/own" | still >"$tap_dir/recorded"
tap_is "$(cat "$tap_dir/recorded")" "$(cat "$tap_dir/live")" "--input=- comes from the input"
MOEEP_ID=moeep:secret MOEEP_LOG=none "$info" --record=- >"$tap_dir/own2"
tap_unlike "$(cat "$tap_dir/own2")" "secret" "a record has no secret"
MOEEP_TIMEOUT=soon "$info" --check >"$tap_dir/own2"
tap_is "$?" 3 "--check of this machine looks at settings"
tap_like "$(cat "$tap_dir/own2")" '^error: MOEEP_TIMEOUT: soon (not valid); every group is refused; mend: unset' \
	"and says which is not valid"

# refused EXPECTED STATUS ARGUMENT...
refused()
{
	expected=$1
	status=$2
	shift 2
	tap_run "$info" "$@"
	tap_is "$tap_rc" "$status" "$*: exit status $status"
	tap_like "$tap_out" "$expected" "it says why"
}

# refused_record EXPECTED FORMAT [ARGUMENT]: a record of this text, by printf
refused_record()
{
	pattern=$1
	shift
	# shellcheck disable=SC2059 # the text is the format
	printf "$@" >"$tap_dir/record"
	refused "$pattern" 1 --input="$tap_dir/record"
}
refused '/none: No such file' 1 --input=/none
refused "$tap_dir: Is a directory" 1 --input="$tap_dir"
refused '/none/none: No such file' 1 --record=/none/none
refused_record 'record: line 1: a record begins with "moeep-machine 1"' ''
refused_record 'line 1: a record begins with' 'moeep-machine 2\n'
refused_record 'line 2: a name, a space and a value are expected' 'moeep-machine 1\nhost/name\n'
refused_record 'line 4: a name, a space and a value' 'moeep-machine 1\n\n# x\n x\n'
refused_record 'line 2: it has a control character' 'moeep-machine 1\nhost/name a\001b\n'
refused_record 'host/name is there twice' 'moeep-machine 1\nhost/name a\nhost/kernel b\nhost/name c\n'
refused_record 'line 2: it is too long' 'moeep-machine 1\nhost/name %3000d\n' 1
refused_record 'line 2: a name, a space' 'moeep-machine 1\n%600d x\n' 1
head -c 5000000 /dev/zero >"$tap_dir/record"
refused 'longer than 4 MiB' 1 --input="$tap_dir/record"
printf 'moeep-machine 1\n' >"$tap_dir/record"
refused 'RDMA devices' 0 --input="$tap_dir/record"
refused 'exclude each other' 2 --record="$tap_dir/x" --input="$tap_dir/record"
refused 'of this build' 2 --settings --input="$tap_dir/record"
refused 'neither' 2 --check --hints
refused 'neither' 2 --record="$tap_dir/x" --settings
refused 'alone on the output' 2 --record=- --check
if [ -c /dev/full ]; then
	refused 'could not be written' 1 --record=/dev/full
else
	tap_skip 2 "no /dev/full"
fi
tap_done
