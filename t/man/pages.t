#!/bin/sh
# SPDX-License-Identifier: MIT
# The manual is complete and sound: each function, constant, field, setting and option has its place
# in a page, aliases and references lead somewhere, and mandoc finds nothing to complain about.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
export LC_ALL=C

man=$abs_top_srcdir/man
include=$abs_top_srcdir/include/moeep

# An alias file is one line, ".so man3/page.3".
for path in "$man"/man[1-9]/*.[1-9]; do
	if grep -q '^\.so ' "$path"; then
		echo "$path" >>"$tap_dir/aliases"
	else
		echo "$path" >>"$tap_dir/pages"
	fi
done
test -s "$tap_dir/pages"
tap_ok $? "there are pages"
pages=$(cat "$tap_dir/pages")

# What the headers declare, without comments and preprocessor lines, one declaration a line.
for header in "$include"/*.h; do
	sed 's,/\*.*\*/,,' "$header" |
		awk '/\/\*/ { sub(/\/\*.*/, ""); text = 1; print } /\*\// { if (text) { sub(/.*\*\//, "");
		     text = 0 } } !text && !/^[ \t]*#/ { print }' | tr '\n\t' '  '
done >"$tap_dir/declarations"

# none LIST DESCRIPTION: the list, of things that are missing, is empty
none()
{
	tap_is "$(tr '\n' ' ' <"$1")" "" "$2"
}

# Functions.
tr ';{}' '\n\n\n' <"$tap_dir/declarations" |
	sed -n 's/.*MOEEP_API[^(]*[ *]\([a-z0-9_]*\)(.*/\1/p' | sort >"$tap_dir/functions"
test "$(wc -l <"$tap_dir/functions")" -gt 40
tap_ok $? "the headers declare functions"
while read -r function; do
	page=$man/man3/$function.3
	if [ ! -e "$page" ]; then
		echo "$function"
		continue
	fi
	if grep -q '^\.so ' "$page"; then
		page=$man/$(sed -n 's/^\.so //p' "$page")
	fi
	if [ ! -e "$page" ]; then
		echo "$function -> ${page##*/}"
		continue
	fi
	# In NAME, in SYNOPSIS and in DESCRIPTION.
	for macro in Nm "F[no]" Fn; do
		grep -q -E "^\.$macro \"?$function( |$)" "$page" || echo "$function(.$macro)"
	done
done <"$tap_dir/functions" >"$tap_dir/missing"
none "$tap_dir/missing" "each function has a page that names, declares and describes it"

# Aliases.
while read -r alias; do
	target=$(sed -n 's/^\.so //p' "$alias")
	name=${alias##*/}
	if [ "$(wc -l <"$alias")" -ne 1 ] || [ ! -e "$man/$target" ] ||
		! grep -q "^\.Nm ${name%.*}\( ,\)\{0,1\}\$" "$man/$target"; then
		echo "$name -> $target"
	fi
done <"$tap_dir/aliases" >"$tap_dir/missing"
none "$tap_dir/missing" "each alias leads to a page that has its name"
for path in "$man"/man3/*.3; do
	name=${path##*/}
	grep -q -x "${name%.3}" "$tap_dir/functions" || echo "$name"
done >"$tap_dir/missing"
none "$tap_dir/missing" "no page is left of a function that is gone"

# Constants: enumerators and macros. The guards and what builds the declarations are not for users.
{
	grep -o -h 'MOEEP_[A-Z0-9_]* =' "$tap_dir/declarations" | sed 's/ =//'
	sed -n 's/^#define \(MOEEP_[A-Z0-9_]*\)[ (].*/\1/p' "$include"/*.h "$include"/version.h.in
} | grep -v -x -e MOEEP_API -e 'MOEEP_[A-Z]*_H' | sort -u >"$tap_dir/constants"
while read -r constant; do
	# Names of files are words.
	# shellcheck disable=SC2086
	grep -q -w "$constant" $pages || echo "$constant"
done <"$tap_dir/constants" >"$tap_dir/missing"
none "$tap_dir/missing" "each constant stands in a page"

# Structures and their fields, as "type field": the field is a list item in a page that names the type.
grep -o 'typedef struct [a-z_]* {[^}]*} *[a-z_]*' "$tap_dir/declarations" |
	awk '{ type = $NF; sub(/.*\{/, ""); sub(/\}.*/, ""); n = split($0, field, ";");
	       for (i = 1; i <= n; i++) { print type, field[i] } }' |
	sed 's/\[[^]]*\]//g;s/ [^ ].*(\*\([a-z0-9_]*\)).*/ \1/;s/^\([a-z_]*\) .*[ *]\([a-z0-9_]\{1,\}\) *$/\1 \2/' |
	grep -x '[a-z_]* [a-z0-9_]\{1,\}' | grep -v -e ' reserved0$' -e '^moeep_unique_id_t' >"$tap_dir/fields"
test "$(wc -l <"$tap_dir/fields")" -gt 150
tap_ok $? "the headers declare fields"
while read -r type field; do
	# shellcheck disable=SC2086
	if [ "$field" != size ] &&
		! grep -l -w "$type" $pages | xargs grep -q -E "^\.It Fa (.* )?$field( |\$)"; then
		echo "$type.$field"
	fi
done <"$tap_dir/fields" >"$tap_dir/missing"
none "$tap_dir/missing" "each field of a structure is described"

# References.
# shellcheck disable=SC2086
grep -h -E '^\.(Xr|It .*Xr) moeep' $pages | sed 's/.*Xr \([a-z_-]*\) \([1-9]\).*/man\2\/\1.\2/' |
	sort -u | while read -r target; do
	test -e "$man/$target" || echo "$target"
done >"$tap_dir/missing"
none "$tap_dir/missing" "references lead to pages that exist"

# What is installed.
for path in "$man"/man[1-9]/*.[1-9]; do
	grep -q -F "man/${path#"$man"/}" "$man/man.am" || echo "${path##*/}"
done >"$tap_dir/missing"
none "$tap_dir/missing" "man/man.am installs each page"

# Settings.
sed -n 's/^[[:blank:]]*{ *"\(MOEEP_[A-Z_]*\)".*/\1/p' "$abs_top_srcdir/lib/core/settings_table.c" >"$tap_dir/settings"
test "$(wc -l <"$tap_dir/settings")" -gt 5
tap_ok $? "the library has settings"
while read -r setting; do
	grep -q -x "\.It Ev $setting" "$man/man7/moeep_env.7" || echo "$setting"
done <"$tap_dir/settings" >"$tap_dir/missing"
none "$tap_dir/missing" "each setting stands in moeep_env.7"
sed -n 's/^\.It Ev //p' "$man/man7/moeep_env.7" | while read -r setting; do
	grep -q -x "$setting" "$tap_dir/settings" || echo "$setting"
done >"$tap_dir/missing"
none "$tap_dir/missing" "moeep_env.7 has no setting that does not exist"

# Options of the tools, both ways.
for tool in moeep-info moeep-perf; do
	page=$man/man1/$tool.1
	program=$abs_top_builddir/tools/$tool
	test -x "$program"
	tap_require "$tool" $? 2 "it is not built" || continue
	"$program" --help | grep -o -E '(^|[ ,])--?[a-zA-Z][a-z-]*' | tr -d ' ,' | sort -u \
		>"$tap_dir/options"
	while read -r option; do
		grep -q -E -e "^\.It .*Fl ${option#-}( |\$)" "$page" || echo "$option"
	done <"$tap_dir/options" >"$tap_dir/missing"
	test -s "$tap_dir/options" || echo "no options in --help" >"$tap_dir/missing"
	none "$tap_dir/missing" "each option of $tool stands in its page"
	grep '^\.It Fl' "$page" | tr ',' '\n' | sed -n 's/.*Fl \([a-zA-Z-]*\).*/-\1/p' |
		while read -r option; do
			grep -q -x -e "$option" "$tap_dir/options" || echo "$option"
		done >"$tap_dir/missing"
	none "$tap_dir/missing" "the page of $tool has no option that does not exist"
done

command -v mandoc >/dev/null 2>&1
tap_require mandoc $? "$(wc -l <"$tap_dir/pages")" "it is not installed" || tap_done
while read -r page; do
	tap_run mandoc -Tlint -Wwarning "$page"
	tap_is "$tap_out" "" "mandoc has nothing to say of ${page##*/}"
done <"$tap_dir/pages"
tap_done
