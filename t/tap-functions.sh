# SPDX-License-Identifier: MIT
# shellcheck shell=sh disable=SC2034
# TAP for shell tests, the twin of t/tap.h. Source it first:
#
#	. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
#
# It gives the functions below, an empty directory $tap_dir that is removed at the end, and
# $abs_top_srcdir and $abs_top_builddir (the source tree itself when run by hand with no build).

tap_count=0
tap_failed=0
tap_planned=
tap_out=
tap_rc=
abs_top_builddir=${abs_top_builddir:-$abs_top_srcdir}
tap_dir=$(mktemp -d "${TMPDIR:-/tmp}/moeep-test.XXXXXX") || exit 99
# A read-only tree may have been copied there.
trap 'chmod -R u+w "$tap_dir" 2>/dev/null; rm -rf "$tap_dir"' EXIT
trap 'exit 99' HUP INT TERM

# tap_plan COUNT
tap_plan()
{
	tap_planned=$1
	echo "1..$1"
}

# tap_diag TEXT: comment lines
tap_diag()
{
	printf '%s\n' "$*" | sed 's/^/# /'
}

# A description must stay on one line, and a '#' would start a directive.
tap_clean()
{
	printf '%s' "$*" | tr '\n#' ' /'
}

tap_pass()
{
	tap_count=$((tap_count + 1))
	echo "ok $tap_count - $(tap_clean "$*")"
}

tap_fail()
{
	tap_count=$((tap_count + 1))
	tap_failed=$((tap_failed + 1))
	echo "not ok $tap_count - $(tap_clean "$*")"
	return 1
}

# tap_ok STATUS DESCRIPTION: passes if STATUS is 0. Use: test ...; tap_ok $? "..."
tap_ok()
{
	tap_status=$1
	shift
	if [ "$tap_status" -eq 0 ]; then
		tap_pass "$*"
	else
		tap_fail "$*"
	fi
}

# tap_is GOT EXPECTED DESCRIPTION
tap_is()
{
	if [ "$1" = "$2" ]; then
		tap_pass "$3"
		return 0
	fi
	tap_fail "$3"
	tap_diag "     got: $1"
	tap_diag "expected: $2"
	return 1
}

# tap_like TEXT BASIC-REGEX DESCRIPTION: some line of the text matches
tap_like()
{
	if printf '%s\n' "$1" | grep -q -e "$2"; then
		tap_pass "$3"
		return 0
	fi
	tap_fail "$3"
	tap_diag "no line matches: $2"
	tap_diag "$(printf '%s\n' "$1" | tail -n 15)"
	return 1
}

# tap_unlike TEXT BASIC-REGEX DESCRIPTION: no line of the text matches
tap_unlike()
{
	if printf '%s\n' "$1" | grep -q -e "$2"; then
		tap_fail "$3"
		tap_diag "a line matches $2: $(printf '%s\n' "$1" | grep -e "$2" | head -n 3)"
		return 1
	fi
	tap_pass "$3"
}

# tap_run COMMAND...: runs it with standard error joined to its output; sets tap_out and tap_rc
tap_run()
{
	tap_rc=0
	tap_out=$("$@" 2>&1) || tap_rc=$?
}

# tap_skip COUNT REASON
tap_skip()
{
	tap_left=$1
	shift
	while [ "$tap_left" -gt 0 ]; do
		tap_count=$((tap_count + 1))
		tap_left=$((tap_left - 1))
		echo "ok $tap_count # SKIP $(tap_clean "$*")"
	done
}

# tap_skip_all REASON: nothing here can be checked; before any plan
tap_skip_all()
{
	echo "1..0 # SKIP $(tap_clean "$*")"
	exit 0
}

# Whether MOEEP_TEST_REQUIRE names the word.
tap_required()
{
	case " $(printf '%s' "${MOEEP_TEST_REQUIRE-}" | tr ',\t\n' '   ') " in
	*" $1 "*) return 0 ;;
	*) return 1 ;;
	esac
}

# tap_require WHAT STATUS COUNT REASON: STATUS 0 says that the prerequisite WHAT is there. If not,
# COUNT checks are skipped with the reason, or fail where MOEEP_TEST_REQUIRE names WHAT. Returns
# STATUS.
tap_require()
{
	if [ "$2" -eq 0 ]; then
		return 0
	fi
	if ! tap_required "$1"; then
		tap_skip "$3" "no $1: $4"
		return 1
	fi
	tap_left=$3
	while [ "$tap_left" -gt 0 ]; do
		tap_left=$((tap_left - 1))
		tap_fail "$1 is required by MOEEP_TEST_REQUIRE: $4"
	done
	return 1
}

# tap_require_all WHAT STATUS REASON: the same for the whole script, which ends here if it is
# missing
tap_require_all()
{
	if [ "$2" -eq 0 ]; then
		return 0
	fi
	if ! tap_required "$1"; then
		tap_skip_all "no $1: $3"
	fi
	tap_plan 1
	tap_fail "$1 is required by MOEEP_TEST_REQUIRE: $3"
	exit 1
}

# tap_require_devices COUNT: prerequisite "cuda" of the whole script, which ends here unless that
# many CUDA devices can be used
tap_require_devices()
{
	tap_devices=$("$abs_top_builddir/t/cuda/devices" 2>"$tap_dir/devices")
	tap_reason=$(cat "$tap_dir/devices")
	if [ -z "$tap_reason" ]; then
		tap_reason="$1 devices are needed, ${tap_devices:-none} can be used"
	fi
	test "${tap_devices:-0}" -ge "$1"
	tap_require_all cuda $? "$tap_reason"
}

# tap_ask_make WHAT NAME...: what the Makefile of the build has for these variables, which
# tap_made NAME then prints; a check says that the Makefile tells WHAT, and without it the script ends
tap_ask_make()
{
	tap_what=$1
	shift
	{
		printf 'include Makefile\ntap-print:\n'
		for tap_name; do
			# shellcheck disable=SC2016
			printf '\t@echo "%s=$(%s)"\n' "$tap_name" "$tap_name"
		done
	} >"$tap_dir/print.mk"
	tap_run "${MAKE:-make}" -s --no-print-directory -C "$abs_top_builddir" \
		-f "$tap_dir/print.mk" tap-print
	printf '%s\n' "$tap_out" >"$tap_dir/made"
	tap_is "$tap_rc" 0 "the Makefile tells $tap_what" || {
		tap_diag "$tap_out"
		tap_done
	}
}

tap_made()
{
	sed -n "s/^$1=//p" "$tap_dir/made"
}

# tap_quick: whether MOEEP_TEST_QUICK asks for a short run
tap_quick()
{
	case ${MOEEP_TEST_QUICK-} in
	'' | 0) return 1 ;;
	*) return 0 ;;
	esac
}

# tap_done: prints the plan if there was none, and exits
tap_done()
{
	if [ -z "$tap_planned" ]; then
		tap_plan "$tap_count"
	fi
	if [ "$tap_count" -ne "$tap_planned" ]; then
		tap_diag "planned $tap_planned checks, made $tap_count"
		exit 1
	fi
	[ "$tap_failed" -eq 0 ]
	exit
}
