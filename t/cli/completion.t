#!/bin/sh
# SPDX-License-Identifier: MIT
# bash completion offers the options that the tools have, all of them and no others, and the words that
# options take.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

command -v bash >/dev/null 2>&1
tap_require_all bash $? "there is no bash"

cat >"$tap_dir/complete" <<'END'
# complete FILE FUNCTION WORD...: what is offered for the last word, a line each
file=$1
function=$2
shift 2
# shellcheck disable=SC1090
. "$file" || exit
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"$function"
printf '%s\n' "${COMPREPLY[@]}"
END

# offered TOOL WORD...: for the last word
offered()
{
	bash --norc "$tap_dir/complete" "$abs_top_srcdir/tools/completions/$1" "_$(echo "$1" | tr - _)" \
		"$@" 2>&1
}

# has_option TOOL: the options that its help speaks of
has_options()
{
	"$abs_top_builddir/tools/$1" --help |
		sed -n 's/^  \(-[a-zA-Z]\), \(--[a-z-]*\).*/\1\n\2/p;s/^      \(--[a-z-]*\).*/\1/p' | sort
}

for tool in moeep-perf moeep-info; do
	has_options "$tool" >"$tap_dir/has"
	offered "$tool" "" | sort >"$tap_dir/offered"
	tap_is "$(comm -23 "$tap_dir/has" "$tap_dir/offered" | tr '\n' ' ')" "" \
		"$tool: each option of the help is offered"
	tap_is "$(comm -13 "$tap_dir/has" "$tap_dir/offered" | tr '\n' ' ')" "" \
		"$tool: nothing else is"
	test "$(wc -l <"$tap_dir/has")" -gt 4
	tap_ok $? "$tool: there are options"
done
tap_is "$(offered moeep-perf --co | tr '\n' ' ')" "--combine-dtype --compare-host " "a part of a word"
# Each word that is offered for an option is one that the tool takes.
for option in --backend --mode --dtype --combine-dtype --partial-dtype --index-dtype --quant --scale-layout \
	--layout --check; do
	wrong=
	for word in $(offered moeep-perf "$option" ""); do
		mode=ht
		dtype=
		case $option in
		--quant | --scale-layout | --partial-dtype | --combine-dtype) mode=ll ;;
		esac
		case $option in
		--mode) mode=$word ;;
		esac
		[ "$word" != cuda ] || continue
		# shellcheck disable=SC2086
		"$abs_top_builddir/tools/moeep-perf" --backend host -n 1 --mode "$mode" --tokens 2 --ll-tokens 2 \
			--hidden 128 --topk 1 --experts 2 --iters 1 --warmup 0 --quiet $dtype "$option" "$word" \
			>"$tap_dir/said" 2>&1 || wrong="$wrong $word: $(head -n 1 "$tap_dir/said");"
	done
	tap_is "$wrong" "" "moeep-perf: the words that are offered for $option are taken"
done
tap_is "$(offered moeep-perf --tokens "")" "" "for a number nothing is offered"
(cd "$tap_dir" && : >routing.npy && : >other.txt &&
	offered moeep-perf --routing "" | sort | tr '\n' ' ') >"$tap_dir/files"
tap_is "$(cat "$tap_dir/files")" "routing.npy uniform zipf: " "for a routing its kinds, and arrays"
tap_done
