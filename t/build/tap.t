#!/bin/sh
# SPDX-License-Identifier: MIT
# The test helpers themselves: a failure must come out as one, and a skip must not hide one.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

cat >"$tap_dir/c.c" <<'END'
#include "t/tap.h"
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	if (strcmp(mode, "pass") == 0) {
		ok(1, "a # and\nlines");
		is_int(3, 3, "int");
		is_str(NULL, NULL, "null");
		is_mem("abc", "abc", 3, "memory");
	} else if (strcmp(mode, "values") == 0) {
		is_int(3, 4, "int");
		is_str("a", NULL, "string");
		is_u64(~0ULL, 0, "word");
		is_mem("abc", "abd", 3, "memory");
	} else if (strcmp(mode, "short") == 0) {
		tap_plan(2);
		ok(1, "one of two");
	} else if (strcmp(mode, "require") == 0) {
		tap_require("cuda", false, 2, "no device");
		tap_require("verbs", true, 2, "not used");
	} else if (strcmp(mode, "all") == 0) {
		tap_require_all("cuda", false, "no device");
	} else if (strcmp(mode, "child") == 0) {
		int status = 0;
		ok(1, "parent");
		pid_t pid = fork();
		if (pid == 0) {
			tap_diag("a child may comment");
			ok(1, "a child may not report");
			_exit(0);
		}
		waitpid(pid, &status, 0);
		ok(WIFEXITED(status) && WEXITSTATUS(status) == 3, "the child was stopped");
	} else if (strcmp(mode, "bail") == 0) {
		tap_bail("no %s", "way");
	}
	return tap_done();
}
END
: >"$tap_dir/config.h"
cat >"$tap_dir/s.sh" <<'END'
. "$abs_top_srcdir/t/tap-functions.sh"
case $1 in
pass) tap_ok 0 "a # and
lines"; tap_is a a "same"; tap_like abc b "like"; tap_unlike abc d "unlike" ;;
values) tap_is a b "is"; tap_ok 1 "ok"; tap_like abc d "like"; tap_unlike abc b "unlike" ;;
short) tap_plan 2; tap_ok 0 "one of two" ;;
require) tap_require cuda 1 2 "no device"; tap_require verbs 0 2 "not used" ;;
all) tap_require_all cuda 1 "no device" ;;
esac
tap_done
END
# CC may hold options.
# shellcheck disable=SC2086
tap_run ${CC:-cc} -std=gnu11 -pthread -I"$tap_dir" -I"$abs_top_srcdir" -o "$tap_dir/c" \
	"$tap_dir/c.c" "$abs_top_srcdir/t/tap.c"
tap_is "$tap_rc" 0 "tap.c compiles" || tap_diag "$tap_out"
export abs_top_srcdir

# expect MODE STATUS PASSED FAILED SKIPPED [REQUIRE]: for the C and the shell form
expect()
{
	for form in "$tap_dir/c" "sh $tap_dir/s.sh"; do
		label="${form##*/} $1 ${6-}"
		# The form is a command of one or two words.
		# shellcheck disable=SC2086
		tap_run env MOEEP_TEST_REQUIRE="${6-}" $form "$1"
		tap_is "$tap_rc" "$2" "$label: exit status"
		tap_is "$(printf '%s\n' "$tap_out" | awk '
			/^ok .*# SKIP / || /^1\.\.0 # SKIP / { s++; next }
			/^ok / { p++ } /^not ok / { f++ }
			!/^(ok|not ok|#|1\.\.)/ { bad++ }
			END { print p + 0, f + 0, s + 0, bad + 0 }')" "$3 $4 $5 0" \
			"$label: passed, failed, skipped, other lines"
	done
}

expect pass 0 4 0 0
expect values 1 0 4 0
expect short 1 1 0 0
expect require 0 0 0 2
expect require 1 0 2 0 cuda
expect require 1 0 2 0 "verbs, cuda"
expect require 0 0 0 2 "verbs cud cudaa"
expect all 0 0 0 1
expect all 1 0 1 0 "verbs,cuda"

tap_run "$tap_dir/c" child
tap_like "$tap_out" '^Bail out! a forked child' "a result of a forked child stops the test"
tap_like "$tap_out" '^ok 2 - the child was stopped' "and the child's exit status tells it"
tap_run "$tap_dir/c" bail
tap_is "$tap_rc: $tap_out" "3: Bail out! no way" "giving up is told to the harness"
tap_done
