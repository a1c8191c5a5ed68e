#!/bin/sh
# SPDX-License-Identifier: MIT
# Each wait and each publish of the protocol is needed: the library without it, see *.list here,
# fails a named program of stress.t, or is reported by the thread sanitizer. The library as it is
# passes them all.
#
# By hand, in a build tree: abs_top_builddir=$PWD .../mutants.t [NAME...] runs these mutants only.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

protocol=$abs_top_srcdir/t/protocol
# MOEEP_TEST_QUICK: a wait of each kind, one flag that comes early, one wake-up, one of order.
quick_names='enter room rows partial readers credit combine-sent head-early seq tail-publish'
lists="$protocol/mutants.list $protocol/mutants-order.list"
limit=20
jobs=2
# A mutant that hangs ends by its time-out. Nothing else from outside may change what runs.
unset MOEEP_SPIN MOEEP_BACKEND MOEEP_HT_CHUNK_BYTES MOEEP_HT_CHUNKS MOEEP_TEST_SEED
export MOEEP_TIMEOUT=3000 MOEEP_LOG=none MOEEP_TEST_ROUNDS=40

# What the build was configured with.
tap_ask_make "how the library is built" CC DEFS CPPFLAGS CFLAGS LDFLAGS LIBS \
	MOEEP_CODEGEN_CFLAGS MOEEP_SANITIZER_CFLAGS MOEEP_LIBS NETTLE_CFLAGS NETTLE_LIBS lib_libmoeep_internal_la_SOURCES \
	rowmath_sources

archive=$abs_top_builddir/lib/.libs/libmoeep_internal.a
cc=$(tap_made CC)
flags="$(tap_made DEFS) -I$abs_top_builddir -I$abs_top_srcdir -I$abs_top_srcdir/include
	-I$abs_top_builddir/include -I$abs_top_srcdir/lib
	$(tap_made CPPFLAGS) $(tap_made NETTLE_CFLAGS) $(tap_made MOEEP_CODEGEN_CFLAGS) $(tap_made CFLAGS) -w -pthread"
libs="$(tap_made LDFLAGS) -lm $(tap_made NETTLE_LIBS) $(tap_made MOEEP_LIBS) $(tap_made LIBS) -pthread"
case "$(tap_made MOEEP_SANITIZER_CFLAGS) $(tap_made CFLAGS)" in
*-fsanitize*)
	tap_skip 1 "this build has a sanitizer of its own; mutants need one without"
	tap_done
	;;
esac
# What the test programs share: it needs no mutants, and the sanitizer nothing of it.
helpers="$abs_top_builddir/t/.libs/libop.a $abs_top_builddir/t/.libs/libtap.a"
# Kernels are data, and linked as they are; a build without them has no such archive.
images=$abs_top_builddir/kernels/.libs/libimages.a
[ -e "$images" ] || images=
helpers="$helpers $images"
# shellcheck disable=SC2086
ls "$archive" $helpers >/dev/null
tap_ok $? "the archives of library and tests are built" || tap_done
# A structure that changed since would make nonsense of an archive with one new object.
newer=$(find "$abs_top_srcdir/lib" "$abs_top_srcdir/include" -name '*.[ch]' -newer "$archive")
tap_is "$newer" "" "the library is built of its present sources" || tap_done
tests=$(ls "$protocol"/stress*.c)

# compile DIRECTORY FLAGS SOURCE...: objects of the sources, named in a way that keeps them apart
compile()
{
	compile_dir=$1
	compile_flags=$2
	shift 2
	for source in "$@"; do
		object=${source#"$abs_top_srcdir"/}
		object=$compile_dir/$(printf '%s' "${object%.c}" | tr / -).o
		# shellcheck disable=SC2086
		$cc $flags $compile_flags -c "$source" -o "$object" || return 1
	done
}

# The program with the library as it is, and objects for those with mutants.
mkdir "$tap_dir/plain" "$tap_dir/tsan" "$tap_dir/mutant"
# shellcheck disable=SC2086
tap_run compile "$tap_dir/plain" "" $tests
# shellcheck disable=SC2086
test "$tap_rc" -eq 0 &&
	tap_run $cc -o "$tap_dir/stress" "$tap_dir"/plain/*.o $helpers "$archive" $libs
tap_is "$tap_rc" 0 "the program is linked with the library" || {
	tap_diag "$tap_out"
	tap_done
}

# The same for the sanitizer. Streaming stores would go unseen by it: rows are copied without.
build_tsan()
{
	printf '#include <pthread.h>\nstatic void *f(void *a) { return a; }\nint main(void)
{ pthread_t t; return pthread_create(&t, 0, f, 0) || pthread_join(t, 0); }\n' \
		>"$tap_dir/tsan.c"
	# shellcheck disable=SC2086
	$cc $flags -fsanitize=thread -o "$tap_dir/tsan-works" "$tap_dir/tsan.c" $libs &&
		"$tap_dir/tsan-works"
}

compile_tsan()
{
	compile_sources=
	for source in $(tap_made lib_libmoeep_internal_la_SOURCES); do
		case $source in
		*.c) compile_sources="$compile_sources $abs_top_srcdir/$source" ;;
		esac
	done
	# shellcheck disable=SC2086
	compile "$tap_dir/tsan" "-fsanitize=thread -O1" $compile_sources &
	# shellcheck disable=SC2086
	compile "$tap_dir/tsan" "-fsanitize=thread -O1" $tests || return 1
	for name in generic avx2 avx512; do
		for source in $(tap_made rowmath_sources); do
			case $source in *.c) ;; *) continue ;; esac
			compile "$tap_dir/tsan" "-fsanitize=thread -O1 -U__SSE2__ -DMOEEP_ROWMATH=$name" \
				"$abs_top_srcdir/$source" || return 1
			source=$(basename "$source" .c)
			mv "$tap_dir/tsan/lib-host-$source.o" "$tap_dir/tsan/$source-$name.o"
		done
	done
	wait $! || return 1
	# shellcheck disable=SC2086
	$cc -fsanitize=thread -o "$tap_dir/stress-tsan" "$tap_dir"/tsan/*.o $helpers $libs
}

# mutate NAME: writes the mutant's sources, edits that do not apply are an error. Prints the mode
# and the test, then the sources.
mutate()
{
	# shellcheck disable=SC2086
	awk -v want="$1" -v top="$abs_top_srcdir" -v to="$tap_dir/mutant/$1" \
		-f "$abs_top_srcdir/t/mutate.awk" $lists
}

# judge NAME: makes the mutant, runs its test, and writes the verdict to a file.
judge()
{
	dir=$tap_dir/mutant/$1
	mkdir "$dir"
	if ! mutate "$1" >"$dir/plan" 2>"$dir/log"; then
		echo "not ok cannot be made" >"$dir/verdict"
		return
	fi
	read -r mode test <"$dir/plan"
	objects=$tap_dir/plain
	mutant_flags=
	if [ "$mode" = tsan ]; then
		objects=$tap_dir/tsan
		mutant_flags='-fsanitize=thread -O1'
	fi
	sources=$(sed 1d "$dir/plan")
	others=$(ls "$objects"/*.o)
	for source in $sources; do
		# The mutated source's own object gives way; of an archive it is not even taken.
		others=$(printf '%s\n' "$others" | grep -v "/$(basename "$source" .c).o\$")
		# shellcheck disable=SC2086
		$cc $flags $mutant_flags -include "$protocol/mutant.h" -c "$source" \
			-o "${source%.c}.o" >>"$dir/log" 2>&1 || {
			echo "not ok does not compile" >"$dir/verdict"
			return
		}
	done
	others="$others $helpers"
	if [ "$mode" = tsan ]; then
		others="$others $images"
	else
		others="$others $archive"
	fi
	# shellcheck disable=SC2086
	$cc $mutant_flags -o "$dir/stress" "$dir"/*.o $others $libs >>"$dir/log" 2>&1 || {
		echo "not ok does not link" >"$dir/verdict"
		return
	}
	try=0
	rc=0
	# Several data and delays; more of them where only one processor in many shows it.
	tries=3
	[ "$mode" != hardware ] || tries=10
	while [ "$try" -lt "$tries" ] && [ "$rc" -eq 0 ]; do
		try=$((try + 1))
		# shellcheck disable=SC2086
		run_stress "$mode" "$try" "$dir/stress" $test >"$dir/log" 2>&1
		rc=$?
		[ "$mode" != same ] || try=$tries
	done
	if [ "$mode" = tsan ] && ! grep -q 'WARNING: ThreadSanitizer: data race' "$dir/log"; then
		rc=0
	fi
	rm -f "$dir/stress"
	case $mode:$rc in
	same:0) echo "ok passes $test" ;;
	same:*) echo "not ok passes $test" ;;
	hardware:0) echo "skip $test: this processor, or this load, does not show it" ;;
	*:0) echo "not ok fails $test" ;;
	*) echo "ok fails $test" ;;
	esac >"$dir/verdict"
	# What a rank found, else the check's own text.
	why=$(sed -n 's/^# \(rank [0-9]*: .*\)/\1/p' "$dir/log" | grep -v 'failures$\|aborted' |
		head -n 1)
	[ -n "$why" ] || why=$(sed -n 's/^not ok [0-9]* - //p' "$dir/log" | head -n 1)
	case $mode:$rc in
	same:* | *:0) ;;
	tsan:*) grep -A 1 '^  .* of size [0-9]* at' "$dir/log" | grep -v '^--' | head -n 4 ;;
	*:124) echo "it hangs" ;;
	*) echo "seen at try $try, exit $rc: $why" ;;
	esac >>"$dir/verdict"
}

# run_stress MODE SEED PROGRAM ARGUMENT...
run_stress()
{
	run_mode=$1
	run_seed=$2
	shift 2
	if [ "$run_mode" = tsan ]; then
		# Ranks that spin have no other word between them than the flags. The first report
		# is enough.
		MOEEP_TEST_SEED=$run_seed MOEEP_SPIN=2000000 MOEEP_TEST_ROUNDS=12 \
			TSAN_OPTIONS='halt_on_error=1 exitcode=66' timeout -k 1 "$limit" "$@"
	else
		MOEEP_TEST_SEED=$run_seed timeout -k 1 "$limit" "$@"
	fi
}

# Which ones, and whether they need the sanitizer.
names=$*
if [ -z "$names" ] && tap_quick; then
	names=$quick_names
elif [ -z "$names" ]; then
	# shellcheck disable=SC2086
	names=$(cat $lists | awk '/^#/ { next } /^$/ { inside = 0; next }
		!inside { print $1; inside = 1 }')
fi
list=$tap_dir/list
for name in $names; do
	# shellcheck disable=SC2086
	cat $lists | sed -n "/^$name \(plain\|same\|tsan\|hardware\) /p"
done >"$list"

tested=$(awk '$2 != "tsan" { print $NF }' "$list" | sort -u | tr '\n' ' ')
tested=${tested:-barrier}
# shellcheck disable=SC2086
tap_run run_stress plain 1 "$tap_dir/stress" $tested
tap_is "$tap_rc" 0 "the library as it is passes: $tested" || {
	tap_diag "$tap_out"
	tap_done
}

if grep -q '^[^ ]* tsan ' "$list"; then
	tap_run build_tsan
	if tap_require tsan "$tap_rc" 3 "$(printf '%s\n' "$tap_out" | head -n 1)"; then
		tap_run compile_tsan
		tap_is "$tap_rc" 0 "the library compiles with the thread sanitizer" || {
			tap_diag "$tap_out"
			tap_done
		}
		tested='barrier report ht_rows ht_direct ht_combine ht_experts ll_rows ll_combine
			ll_direct'
		# shellcheck disable=SC2086
		tap_run run_stress tsan 1 "$tap_dir/stress-tsan" -r 2 $tested
		tap_is "$tap_rc" 0 "ranks that spin: no report of the sanitizer" || tap_diag "$tap_out"
		# shellcheck disable=SC2086
		tap_run env MOEEP_TEST_ROUNDS=12 TSAN_OPTIONS='halt_on_error=1 exitcode=66' \
			timeout -k 1 "$limit" "$tap_dir/stress-tsan" $tested abort \
			abort_collective first leave depart
		tap_is "$tap_rc" 0 "ranks that sleep: no report of the sanitizer" || tap_diag "$tap_out"
	else
		names=$(awk '$2 != "tsan" { print $1 }' "$list")
	fi
fi

work()
{
	n=0
	for name in $names; do
		n=$((n + 1))
		[ $((n % jobs)) -ne "$1" ] || judge "$name"
	done
}

job=0
while [ "$job" -lt "$jobs" ]; do
	work "$job" &
	job=$((job + 1))
done
wait
for name in $names; do
	dir=$tap_dir/mutant/$name
	read -r verdict <"$dir/verdict" || verdict='not ok has no verdict'
	case $verdict in
	"ok "*) tap_pass "$name: ${verdict#ok }" ;;
	"skip "*) tap_skip 1 "$name: ${verdict#skip }" ;;
	*)
		tap_fail "$name: ${verdict#not ok }"
		tap_diag "$(tail -n 15 "$dir/log")"
		;;
	esac
	[ "$(wc -l <"$dir/verdict")" -lt 2 ] || tap_diag "$(sed 1d "$dir/verdict")"
done
tap_done
