/* SPDX-License-Identifier: MIT */
/*
 * tools/output.h - what the tools share: numbers for people, JSON, CSV, and how much memory this
 * process may use.
 */
#ifndef MOEEP_TOOLS_OUTPUT_H
#define MOEEP_TOOLS_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Enough for any of the texts below. */
#define HUMAN_TEXT 32

/* Each fills text and returns it: "58.7 MiB", "412 ms", "29.2 us", "1.23 G". */
const char *human_bytes(uint64_t bytes, char text[HUMAN_TEXT]);
const char *human_time(double seconds, char text[HUMAN_TEXT]);
const char *human_count(uint64_t count, char text[HUMAN_TEXT]);

/* Text from outside (a path, a host name) on a terminal: control bytes become '?'. */
void print_text(FILE *file, const char *text);

/* A line of a report on standard output: name, and value as print_text() does it. */
void print_field(const char *name, const char *value);

/* A CSV field, quoted where it has to be. */
void print_csv(FILE *file, const char *text);

/*
 * A JSON document, written as it goes. key is NULL for the document itself and inside arrays.
 * Strings that are not UTF-8 have U+FFFD in place of what is wrong; numbers that JSON does not know
 * (infinite, NaN) become null.
 */
struct json {
	FILE *file;
	int depth;
	bool first; /* nothing was written yet at this depth */
	char closing[16];
};

void json_start(struct json *json, FILE *file);
void json_object(struct json *json, const char *key);
void json_array(struct json *json, const char *key);
void json_close(struct json *json); /* the innermost object or array */
void json_string(struct json *json, const char *key, const char *value); /* NULL: null */
void json_int(struct json *json, const char *key, int64_t value);
void json_uint(struct json *json, const char *key, uint64_t value);
void json_double(struct json *json, const char *key, double value);
void json_bool(struct json *json, const char *key, bool value);

/* Write out what is buffered; -1, and a message on standard error, if not all of it got through. */
int output_finish(FILE *file, const char *program);

/* A whole number from min to max with nothing around it; -1 if it is not one. */
int parse_int(const char *text, int64_t min, int64_t max, int64_t *value);

struct memory_limit {
	uint64_t total;		/* of the machine */
	uint64_t available;	/* what this process could still get */
	const char *limited_by; /* "the machine" or "a cgroup" */
};

/* -1 if the machine does not say. */
int memory_limit_get(struct memory_limit *limit);

#endif
