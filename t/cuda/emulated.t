#!/bin/sh
# SPDX-License-Identifier: MIT
# The kernels without a GPU: the tests of operations with a driver that runs kernels on CPUs, see
# t/cuda/emulate/machine.h. What only a GPU shows, memory order above all, it does not show.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/ops-functions.sh"

driver=$abs_top_builddir/t/cuda/.libs/emulated_driver.so
[ -e "$driver" ]
tap_require_all emulation $? "${MOEEP_REASON_EMULATE:-$driver is not built}"
# A device of few multiprocessors has small grids; there are ranks of up to 16.
export MOEEP_CUDA_DRIVER="$driver" FAKE_CUDA_SMS=16 FAKE_CUDA_RESIDENT=2
export MOEEP_TEST_QUICK=1 MOEEP_TEST_ROUNDS=10
unset MOEEP_BACKEND

tap_require_devices 1
for name in layout ht_dispatch ht_combine ht_expert_major ht_cached ht_capacity symmetric \
	ll_dispatch ll_combine ll_phases ll_quant async random; do
	ops_run threads "op/$name"
done
ops_run threads cuda/streams
ops_run threads cuda/graph
# A driver that does not take into a graph what other ones do.
export FAKE_CUDA_VERSION=12020
ops_run threads op/layout
# Without the copy engine, which kernels that are built for older devices do not use.
export FAKE_CUDA_PTX=80 FAKE_CUDA_VERSION=12040
for name in ht_dispatch ht_combine; do
	ops_run threads "op/$name"
done
tap_done
