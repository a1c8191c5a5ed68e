#!/bin/sh
# SPDX-License-Identifier: MIT
# Every test of operations once more, on CUDA devices, with ranks that are threads.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/ops-functions.sh"

tap_require_devices 1
ops_all threads
