# SPDX-License-Identifier: MIT
#
# Makes a mutant of sources: awk -v want=NAME -v top=SOURCES -v to=DIRECTORY -f mutate.awk LIST...
# Lists are as t/protocol/mutants.list says. Prints the rest of the mutant's first line, and then the
# files that it wrote: into DIRECTORY under names without slashes, or with -v tree=1 at the same
# place below it as below SOURCES. An edit that does not apply is an error.
function fail(text) { print want ": " text >"/dev/stderr"; failed = 1; exit 1 }
function load(path,   line, lines) {
	if (path in count) { return }
	lines = 0
	while ((getline line < (top "/" path)) > 0) { source[path, ++lines] = line }
	count[path] = lines
	if (!lines) { fail("cannot read " path) }
	files[++num_files] = path
}
# The lines of the function: from its name, not indented or alone in its line, to its closing brace.
function find_function(   i) {
	for (first = 1; first <= count[file]; first++) {
		if (source[file, first] ~ "^([A-Za-z_].*[ *]|\t)" func_name "\\(") {
			for (i = first; source[file, i] !~ /[;{]$|^\{/; i++) { }
			if (source[file, i] !~ /;$/) { break }
		}
	}
	if (first > count[file]) { fail(file " has no function " func_name) }
	for (last = first; source[file, last] != "}"; last++) { }
}
function edit(old, new,   i, at, hits, line) {
	for (i = first; i <= last; i++) {
		at = index(source[file, i], old)
		if (at) { hits++; line = i }
	}
	if (hits != 1) { fail(file " " func_name " has " hits + 0 " of: " old) }
	at = index(source[file, line], old)
	source[file, line] = substr(source[file, line], 1, at - 1) new \
		substr(source[file, line], at + length(old))
}
/^#/ { next }
/^$/ { inside = 0; next }
!inside && /^[a-z]/ {
	inside = 1
	mine = $1 == want
	if (mine) {
		found = 1
		$1 = ""
		print substr($0, 2)
	}
	next
}
!mine { next }
/^@/ { file = $2; func_name = $3; load(file); find_function() }
/^-/ { old = substr($0, 3) }
/^[+]/ { edit(old, substr($0, 3)); edits++ }
END {
	if (failed) { exit 1 }
	if (!edits) { fail("no such mutant, or one without edits") }
	for (n = 1; n <= num_files; n++) {
		path = files[n]
		name = path
		if (!tree) { gsub("/", "-", name) }
		name = to "/" name
		for (i = 1; i <= count[path]; i++) { print source[path, i] >name }
		close(name)
		print name
	}
}
