#!/bin/sh
# SPDX-License-Identifier: MIT
# Every test of operations once more, with ranks on several nodes that the emulated network joins.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/ops-functions.sh"

# Smaller groups than on one node are left out: with one rank there is nothing new.
quick=${MOEEP_TEST_QUICK-}
MOEEP_TEST_QUICK=1
MOEEP_LOG=none
export MOEEP_TEST_NODES MOEEP_TEST_QUICK MOEEP_LOG MOEEP_EMULATED_NIC MOEEP_NUM_PROXIES

# nodes NIC PROXIES MAP NAME...
nodes()
{
	MOEEP_EMULATED_NIC=$1
	MOEEP_NUM_PROXIES=$2
	MOEEP_TEST_NODES=$3
	ops_label="$3${1:+, $1}: "
	shift 3
	for name; do
		ops_run '' "op/$name"
	done
}

rows='ht_cached ht_capacity ht_combine ht_dispatch ht_expert_major ll_combine ll_dispatch ll_phases
	ll_quant random symmetric'
# shellcheck disable=SC2086
nodes '' auto 'block 2' arguments async breaking crossing refused $rows
# shellcheck disable=SC2086
nodes '' auto 'sizes 1,2,5' async $rows
if [ "$quick" != 1 ]; then
	# shellcheck disable=SC2086
	nodes '' 2 'cyclic 3' $rows
	# Every rank a node.
	# shellcheck disable=SC2086
	nodes '' 3 'cyclic 64' $rows
fi
# A slow network whose channels overtake each other.
# shellcheck disable=SC2086
nodes 'latency=30,jitter=200,bandwidth=2000,seed=7' 2 'cyclic 3' async $rows
tap_done
