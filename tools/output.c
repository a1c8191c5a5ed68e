/* SPDX-License-Identifier: MIT */
/* tools/output.c - numbers for people, JSON, CSV; the memory that this process may use. */
#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"

/* Three digits: 1.23, 12.3, 123. */
static const char *human(double value, const char *unit, char text[HUMAN_TEXT])
{
	int digits = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;

	snprintf(text, HUMAN_TEXT, "%.*f%s", digits, value, unit);
	return text;
}

const char *human_bytes(uint64_t bytes, char text[HUMAN_TEXT])
{
	static const char *const units[] = {" KiB", " MiB", " GiB", " TiB", " PiB", " EiB"};
	double value = (double)bytes / 1024;
	size_t unit = 0;

	if (bytes < 1024) {
		snprintf(text, HUMAN_TEXT, "%u B", (unsigned)bytes);
		return text;
	}
	while (value >= 1023.5 && unit + 1 < sizeof(units) / sizeof(units[0])) {
		value /= 1024;
		unit++;
	}
	return human(value, units[unit], text);
}

const char *human_time(double seconds, char text[HUMAN_TEXT])
{
	if (seconds < 999.5e-6) {
		return human(seconds * 1e6, " us", text);
	}
	if (seconds < 999.5e-3) {
		return human(seconds * 1e3, " ms", text);
	}
	return human(seconds, " s", text);
}

const char *human_count(uint64_t count, char text[HUMAN_TEXT])
{
	static const char *const units[] = {" k", " M", " G", " T", " P", " E"};
	double value = (double)count / 1000;
	size_t unit = 0;

	if (count < 10000) {
		snprintf(text, HUMAN_TEXT, "%u", (unsigned)count);
		return text;
	}
	while (value >= 999.5 && unit + 1 < sizeof(units) / sizeof(units[0])) {
		value /= 1000;
		unit++;
	}
	return human(value, units[unit], text);
}

void print_text(FILE *file, const char *text)
{
	for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
		putc(*c < 0x20 || *c == 0x7f ? '?' : *c, file);
	}
}

void print_field(const char *name, const char *value)
{
	printf("  %-16s", name);
	print_text(stdout, value);
	putchar('\n');
}

void print_csv(FILE *file, const char *text)
{
	if (!strpbrk(text, ",\"\r\n")) {
		fputs(text, file);
		return;
	}
	putc('"', file);
	for (; *text; text++) {
		if (*text == '"') {
			putc('"', file);
		}
		putc(*text, file);
	}
	putc('"', file);
}

/*
 * Bytes of the UTF-8 sequence at text, 0 if there is none: overlong forms, surrogates and what is
 * past U+10FFFF do not count.
 */
static size_t utf8_length(const unsigned char *text)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t length;

	if (text[0] < 0x80) {
		return 1;
	}
	if (text[0] >= 0xc2 && text[0] <= 0xdf) {
		length = 2;
	} else if (text[0] >= 0xe0 && text[0] <= 0xef) {
		length = 3;
		low = text[0] == 0xe0 ? 0xa0 : 0x80;
		high = text[0] == 0xed ? 0x9f : 0xbf;
	} else if (text[0] >= 0xf0 && text[0] <= 0xf4) {
		length = 4;
		low = text[0] == 0xf0 ? 0x90 : 0x80;
		high = text[0] == 0xf4 ? 0x8f : 0xbf;
	} else {
		return 0;
	}
	/* The final NUL is no continuation byte, so this never reads past it. */
	for (size_t i = 1; i < length; i++) {
		if (text[i] < low || text[i] > high) {
			return 0;
		}
		low = 0x80;
		high = 0xbf;
	}
	return length;
}

static void json_quote(struct json *json, const char *value)
{
	const unsigned char *text = (const unsigned char *)value;

	putc('"', json->file);
	while (*text) {
		size_t length = utf8_length(text);

		if (length == 0) {
			fputs("\\ufffd", json->file);
			length = 1;
		} else if (*text == '"' || *text == '\\') {
			fprintf(json->file, "\\%c", *text);
		} else if (*text < 0x20 || *text == 0x7f) {
			fprintf(json->file, "\\u%04x", (unsigned)*text);
		} else {
			fwrite(text, 1, length, json->file);
		}
		text += length;
	}
	putc('"', json->file);
}

/* What comes before a value: comma, line, indentation, key. */
static void json_prefix(struct json *json, const char *key)
{
	if (json->depth > 0) {
		fputs(json->first ? "\n" : ",\n", json->file);
		for (int i = 0; i < json->depth; i++) {
			fputs("  ", json->file);
		}
	}
	json->first = false;
	if (key) {
		json_quote(json, key);
		fputs(": ", json->file);
	}
}

static void json_open(struct json *json, const char *key, char opening, char closing)
{
	json_prefix(json, key);
	putc(opening, json->file);
	/* The documents are ours: their depth is known. */
	if ((size_t)json->depth < sizeof(json->closing)) {
		json->closing[json->depth] = closing;
	}
	json->depth++;
	json->first = true;
}

void json_start(struct json *json, FILE *file)
{
	memset(json, 0, sizeof(*json));
	json->file = file;
	json->first = true;
}

void json_object(struct json *json, const char *key)
{
	json_open(json, key, '{', '}');
}

void json_array(struct json *json, const char *key)
{
	json_open(json, key, '[', ']');
}

void json_close(struct json *json)
{
	json->depth--;
	if (!json->first) {
		putc('\n', json->file);
		for (int i = 0; i < json->depth; i++) {
			fputs("  ", json->file);
		}
	}
	putc(json->closing[json->depth], json->file);
	json->first = false;
	if (json->depth == 0) {
		putc('\n', json->file);
	}
}

void json_string(struct json *json, const char *key, const char *value)
{
	json_prefix(json, key);
	if (value) {
		json_quote(json, value);
	} else {
		fputs("null", json->file);
	}
}

void json_int(struct json *json, const char *key, int64_t value)
{
	json_prefix(json, key);
	fprintf(json->file, "%" PRId64, value);
}

void json_uint(struct json *json, const char *key, uint64_t value)
{
	json_prefix(json, key);
	fprintf(json->file, "%" PRIu64, value);
}

void json_double(struct json *json, const char *key, double value)
{
	json_prefix(json, key);
	if (isfinite(value)) {
		fprintf(json->file, "%.9g", value);
	} else {
		fputs("null", json->file);
	}
}

void json_bool(struct json *json, const char *key, bool value)
{
	json_prefix(json, key);
	fputs(value ? "true" : "false", json->file);
}

int output_finish(FILE *file, const char *program)
{
	errno = 0;
	if (fflush(file) != 0 || ferror(file)) {
		fprintf(stderr, "%s: the output could not be written: %s\n", program,
			strerror(errno ? errno : EIO));
		return -1;
	}
	return 0;
}

int parse_int(const char *text, int64_t min, int64_t max, int64_t *value)
{
	long long number;
	char *end;

	/* strtoll() itself takes blanks and a plus sign. */
	if (!((text[0] >= '0' && text[0] <= '9') ||
	      (text[0] == '-' && text[1] >= '0' && text[1] <= '9'))) {
		return -1;
	}
	errno = 0;
	number = strtoll(text, &end, 10);
	if (errno != 0 || *end != '\0' || number < min || number > max) {
		return -1;
	}
	*value = number;
	return 0;
}

/* The number after `key` in a file of "key number" lines; key NULL: the file's only number. */
static int read_number(const char *path, const char *key, uint64_t *value)
{
	size_t length = key ? strlen(key) : 0;
	char line[256];
	FILE *file;
	int rc = -1;

	file = fopen(path, "re");
	if (!file) {
		return -1;
	}
	while (rc != 0 && fgets(line, sizeof(line), file)) {
		const char *text = line + length;
		unsigned long long number;
		char *end;

		if (key && (strncmp(line, key, length) != 0 || !strchr(" \t:", line[length]))) {
			continue;
		}
		text += strspn(text, ": \t");
		if (*text < '0' || *text > '9') {
			continue; /* "max" in a cgroup that has no limit */
		}
		errno = 0;
		number = strtoull(text, &end, 10);
		if (errno == 0) {
			*value = number;
			rc = 0;
		}
	}
	fclose(file);
	return rc;
}

/* What one cgroup leaves; its page cache that nobody uses counts as free. */
static void cgroup_apply(const char *directory, bool v1, struct memory_limit *limit)
{
	uint64_t most, used, cache = 0, left;
	char path[1200];

	snprintf(path, sizeof(path), "%s/%s", directory,
		 v1 ? "memory.limit_in_bytes" : "memory.max");
	if (read_number(path, NULL, &most)) {
		return;
	}
	snprintf(path, sizeof(path), "%s/%s", directory,
		 v1 ? "memory.usage_in_bytes" : "memory.current");
	if (read_number(path, NULL, &used)) {
		return;
	}
	snprintf(path, sizeof(path), "%s/memory.stat", directory);
	(void)read_number(path, v1 ? "total_inactive_file" : "inactive_file", &cache);
	used -= cache < used ? cache : used;
	left = most > used ? most - used : 0;
	if (left < limit->available) {
		limit->available = left;
		limit->limited_by = "a cgroup";
	}
}

/* The limits of a cgroup and of all above it, up to where the hierarchy is mounted. */
static void cgroup_walk(const char *mount, const char *group, bool v1, struct memory_limit *limit)
{
	char path[1024];
	size_t root = strlen(mount);

	snprintf(path, sizeof(path), "%s%s", mount, group);
	for (;;) {
		char *slash;

		cgroup_apply(path, v1, limit);
		slash = strrchr(path, '/');
		if (!slash || (size_t)(slash - path) < root) {
			return;
		}
		*slash = '\0';
	}
}

int memory_limit_get(struct memory_limit *limit)
{
	struct memory_limit own = {.limited_by = "the machine"};
	char line[512];
	FILE *file;

	if (read_number("/proc/meminfo", "MemTotal", &own.total) ||
	    read_number("/proc/meminfo", "MemAvailable", &own.available)) {
		return -1;
	}
	own.total *= 1024;
	own.available *= 1024;
	file = fopen("/proc/self/cgroup", "re");
	while (file && fgets(line, sizeof(line), file)) {
		char *controllers = strchr(line, ':');
		char *group = controllers ? strchr(controllers + 1, ':') : NULL;

		/* "4:memory:/group" in version 1, "0::/group" in version 2 */
		if (!group) {
			continue;
		}
		*group++ = '\0';
		group[strcspn(group, "\n")] = '\0';
		if (!strcmp(controllers, ":memory")) {
			cgroup_walk("/sys/fs/cgroup/memory", group, true, &own);
		} else if (!strcmp(controllers, ":")) {
			cgroup_walk("/sys/fs/cgroup", group, false, &own);
		}
	}
	if (file) {
		fclose(file);
	}
	*limit = own;
	return 0;
}
