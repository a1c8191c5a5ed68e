/* SPDX-License-Identifier: MIT */
/* tools/info_machine.c - a machine's facts, by name, and as a record. */
#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "info_machine.h"
#include "output.h"

#define HEADER "moeep-machine 1"
/* More than any machine has; what is past it is no record. */
#define MAX_BYTES (4 << 20)
#define MAX_FACTS 32768
#define MAX_NAME  512
#define MAX_VALUE 2048

void machine_free(struct machine *machine)
{
	for (size_t i = 0; i < machine->count; i++) {
		free(machine->facts[i].name);
		free(machine->facts[i].value);
	}
	free(machine->facts);
	*machine = (struct machine){0};
}

static void add(struct machine *machine, const char *name, size_t name_size, const char *value,
		size_t value_size)
{
	struct machine_fact fact = {strndup(name, name_size), strndup(value, value_size)};

	if (machine->count == machine->room) {
		size_t room = machine->room ? 2 * machine->room : 256;
		struct machine_fact *facts = reallocarray(machine->facts, room, sizeof(*facts));

		if (facts) {
			machine->facts = facts;
			machine->room = room;
		}
	}
	if (!fact.name || !fact.value || machine->count == machine->room) {
		free(fact.name);
		free(fact.value);
		machine->failed = true;
		return;
	}
	for (char *c = fact.value; *c; c++) {
		if ((unsigned char)*c < 0x20 || *c == 0x7f) {
			*c = '?';
		}
	}
	machine->facts[machine->count++] = fact;
}

void machine_put(struct machine *machine, const char *value, const char *name, ...)
{
	char text[MAX_NAME];
	va_list args;

	va_start(args, name);
	vsnprintf(text, sizeof(text), name, args);
	va_end(args);
	/* Of names with a space none matters. */
	if (!strchr(text, ' ') && !strchr(text, '\n')) {
		add(machine, text, strlen(text), value, strnlen(value, MAX_VALUE));
	}
}

void machine_put_number(struct machine *machine, int64_t number, const char *name, ...)
{
	char text[24], whole[MAX_NAME];
	va_list args;

	va_start(args, name);
	vsnprintf(whole, sizeof(whole), name, args);
	va_end(args);
	snprintf(text, sizeof(text), "%" PRId64, number);
	machine_put(machine, text, "%s", whole);
}

static int compare(const void *a, const void *b)
{
	const struct machine_fact *one = a, *two = b;

	return strcmp(one->name, two->name);
}

const char *machine_sort(struct machine *machine)
{
	if (machine->count == 0) {
		return NULL;
	}
	qsort(machine->facts, machine->count, sizeof(machine->facts[0]), compare);
	for (size_t i = 1; i < machine->count; i++) {
		if (compare(&machine->facts[i - 1], &machine->facts[i]) == 0) {
			return machine->facts[i].name;
		}
	}
	return NULL;
}

static const char *find(const struct machine *machine, char *name)
{
	struct machine_fact wanted = {.name = name}, *fact;

	if (machine->count == 0) {
		return NULL;
	}
	fact = bsearch(&wanted, machine->facts, machine->count, sizeof(wanted), compare);
	return fact ? fact->value : NULL;
}

const char *machine_get(const struct machine *machine, const char *name, ...)
{
	char text[MAX_NAME];
	va_list args;

	va_start(args, name);
	vsnprintf(text, sizeof(text), name, args);
	va_end(args);
	return find(machine, text);
}

int64_t machine_number(const struct machine *machine, int64_t other, const char *name, ...)
{
	char text[MAX_NAME], *end;
	const char *value;
	va_list args;
	int64_t number;

	va_start(args, name);
	vsnprintf(text, sizeof(text), name, args);
	va_end(args);
	value = find(machine, text);
	if (!value) {
		return other;
	}
	errno = 0;
	number = strtoll(value, &end, strncmp(value, "0x", 2) == 0 ? 16 : 10);
	return end == value || errno ? other : number;
}

/* mlx5_10 is behind mlx5_9; addresses of PCI are hexadecimal. */
static int compare_names(const void *a, const void *b)
{
	return strchr(a, ':') && strchr(b, ':') ? strcmp(a, b) : strverscmp(a, b);
}

int machine_names(const struct machine *machine, const char *directory, char (*names)[MACHINE_NAME],
		  int max)
{
	size_t length = strlen(directory), size;
	int count = 0;

	for (size_t i = 0; i < machine->count && count < max; i++) {
		const char *rest = machine->facts[i].name;

		if (strncmp(rest, directory, length) != 0 || rest[length] != '/') {
			continue;
		}
		rest += length + 1;
		size = strcspn(rest, "/@");
		if (size == 0 || size >= MACHINE_NAME ||
		    (count > 0 && strncmp(names[count - 1], rest, size) == 0 &&
		     names[count - 1][size] == '\0')) {
			continue;
		}
		memcpy(names[count], rest, size);
		names[count++][size] = '\0';
	}
	qsort(names, (size_t)count, sizeof(names[0]), compare_names);
	/* "a/b" and "a.c" have others between them. */
	size = 0;
	for (int i = 1; i < count; i++) {
		if (strcmp(names[size], names[i]) != 0) {
			memmove(names[++size], names[i], sizeof(names[0]));
		}
	}
	return count > 0 ? (int)size + 1 : 0;
}

/* One line of a record, without its end. NULL: it is fine. */
static const char *take_line(struct machine *machine, const char *line, size_t size)
{
	const char *space = memchr(line, ' ', size);
	size_t name_size = space ? (size_t)(space - line) : 0;

	if (!space || name_size == 0) {
		return "a name, a space and a value are expected";
	}
	if (name_size >= MAX_NAME || size - name_size > MAX_VALUE) {
		return "it is too long";
	}
	for (size_t i = 0; i < size; i++) {
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) {
			return "it has a control character";
		}
	}
	if (machine->count >= MAX_FACTS) {
		return "there are more than 32768 facts";
	}
	add(machine, line, name_size, space + 1, size - name_size - 1);
	return NULL;
}

int machine_parse(struct machine *machine, const char *text, size_t size, char *error,
		  size_t error_size)
{
	const char *twice;
	int line = 0;

	error[0] = '\0';
	while (size > 0) {
		const char *end = memchr(text, '\n', size), *what = NULL;
		size_t length = end ? (size_t)(end - text) : size;

		line++;
		if (line == 1 && (length != strlen(HEADER) || memcmp(text, HEADER, length) != 0)) {
			break;
		}
		if (line > 1 && length > 0 && text[0] != '#') {
			what = take_line(machine, text, length);
		}
		if (what) {
			snprintf(error, error_size, "line %d: %s", line, what);
			return -1;
		}
		length += end ? 1 : 0;
		text += length;
		size -= length;
	}
	if (line == 0 || size > 0) {
		snprintf(error, error_size, "line 1: a record begins with \"" HEADER "\"");
		return -1;
	}
	if (machine->failed) {
		snprintf(error, error_size, "no memory");
		return -1;
	}
	twice = machine_sort(machine);
	if (twice) {
		snprintf(error, error_size, "%s is there twice", twice);
		return -1;
	}
	return 0;
}

static void complain(const char *path, const char *why)
{
	fputs("moeep-info: ", stderr);
	print_text(stderr, path);
	fprintf(stderr, ": %s\n", why);
}

int machine_load(struct machine *machine, const char *path)
{
	bool standard = strcmp(path, "-") == 0;
	FILE *file = standard ? stdin : fopen(path, "re");
	char *text = malloc(MAX_BYTES + 1), error[MAX_NAME + 64];
	size_t size;
	int rc = -1;

	if (!file || !text) {
		complain(path, strerror(file ? ENOMEM : errno));
		goto out;
	}
	size = fread(text, 1, MAX_BYTES + 1, file);
	if (ferror(file)) {
		complain(path, strerror(errno));
	} else if (size > MAX_BYTES) {
		complain(path, "it is longer than 4 MiB: no record");
	} else if (machine_parse(machine, text, size, error, sizeof(error))) {
		complain(standard ? "standard input" : path, error);
	} else {
		rc = 0;
	}
out:
	if (file && !standard) {
		fclose(file);
	}
	free(text);
	return rc;
}

int machine_save(const struct machine *machine, const char *path)
{
	bool standard = strcmp(path, "-") == 0;
	FILE *file = standard ? stdout : fopen(path, "we");
	int rc;

	if (!file) {
		complain(path, strerror(errno));
		return -1;
	}
	fputs(HEADER "\n", file);
	for (size_t i = 0; i < machine->count; i++) {
		fprintf(file, "%s %s\n", machine->facts[i].name, machine->facts[i].value);
	}
	rc = output_finish(file, "moeep-info");
	if (!standard) {
		fclose(file);
	}
	return rc;
}
