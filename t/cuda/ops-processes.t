#!/bin/sh
# SPDX-License-Identifier: MIT
# Every test of operations, and the long random one, once more on CUDA devices, with ranks that are
# processes. Each of them starts the driver and makes a context, so the long variants are left out unless
# MOEEP_TEST_QUICK=0 asks for them.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/ops-functions.sh"

MOEEP_TEST_QUICK=${MOEEP_TEST_QUICK:-1}
# Each pins it, which takes most of their time.
MOEEP_TEST_ARENA=${MOEEP_TEST_ARENA:-256}
export MOEEP_TEST_QUICK MOEEP_TEST_ARENA
tap_require_devices 1
# Ranks that share a device take turns of milliseconds without MPS.
if [ -z "${WITH_MPS-}" ]; then
	rm -rf "$tap_dir"
	exec "$abs_top_srcdir/bench/with-mps" "$0"
fi
[ "$WITH_MPS" -eq 1 ] || tap_diag "no MPS: ranks take turns on a device"
ops_all processes cuda/stress
