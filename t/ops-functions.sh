# SPDX-License-Identifier: MIT
# shellcheck shell=sh disable=SC2154
# The operations' programs, run again from another script: on CUDA (t/cuda/ops-threads.t,
# ops-processes.t), or with ranks on several nodes (t/op/nodes.t).

# More than any of them needs; what hangs past its own limits fails by this one.
ops_limit=300

# ops_run MODE NAME: t/NAME.t with MOEEP_TEST_CUDA=MODE. Its checks become this script's, each
# with $ops_label and the program's name in front; one more says that it came to its end.
ops_label=
ops_run()
{
	{
		ops_rc=0
		MOEEP_TEST_CUDA=$1 timeout -k 20 "$ops_limit" "$abs_top_builddir/t/$2.t" ||
			ops_rc=$?
		echo "ops_run: $ops_rc"
	} | awk -v name="$ops_label${2#*/}" -v limit="$ops_limit" -v count="$tap_count" -v failed="$tap_failed" \
		-v result="$tap_dir/result" '
	function check(passed, text) {
		count++
		failed += !passed
		own_failed += !passed
		print (passed ? "ok " : "not ok ") count " - " name ": " text
		fflush()
	}
	/^ok / || /^not ok / {
		passed = /^ok /
		sub(/^(not )?ok [0-9]*( - )?/, "")
		if (/^ *# SKIP/) {
			count++
			sub(/^ *# SKIP */, "")
			print "ok " count " # SKIP " name ": " $0
		} else {
			check(passed, $0)
		}
		made++
		next
	}
	/^1\.\.0 *# SKIP/ { skipped = $0; sub(/.*SKIP */, "", skipped); next }
	/^1\.\.[0-9]+$/ { planned = substr($0, 4); next }
	/^Bail out!/ { print "# " name ": " $0; next }
	/^ops_run: [0-9]+$/ { status = $2; next }
	{ print }
	END {
		if (skipped != "") {
			check(0, "it is skipped: " skipped)
		} else if (status == 124) {
			check(0, "it did not end within " limit " s")
		} else if (status == 137) {
			check(0, "it was killed, by the limit of " limit " s or otherwise")
		} else if (planned == "" || planned != made) {
			check(0, "it ended with status " status " after " made + 0 " checks" \
				(planned == "" ? " without a plan" : " of " planned))
		} else if (status != (own_failed > 0)) {
			check(0, "it ended with status " status)
		} else {
			check(1, "it came to its end")
		}
		print count, failed >result
	}'
	read -r tap_count tap_failed <"$tap_dir/result"
}

# ops_all MODE [NAME...]: all programs of operations, those, and the end of the script
ops_all()
{
	for ops_name in arguments async breaking ht_cached ht_capacity ht_combine ht_dispatch \
		ht_expert_major layout ll_combine ll_dispatch ll_phases ll_quant random symmetric; do
		ops_run "$1" "op/$ops_name"
	done
	ops_run "$1" cuda/streams
	ops_run "$1" cuda/graph
	ops_mode=$1
	shift
	for ops_name; do
		ops_run "$ops_mode" "$ops_name"
	done
	tap_done
}
