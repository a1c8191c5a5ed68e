/* SPDX-License-Identifier: MIT */
/*
 * tools/info_machine.h - the facts of a machine that moeep-info reads, by name: files of /sys and
 * /proc by their path, symbolic links by their path and '@', others as "host/..." and "driver/...".
 *
 * The program first gathers them, or reads them from a record of another machine, and only then
 * looks at what they mean: what it says of a record is what it says there.
 *
 * A record is text. Its first line is "moeep-machine 1"; then there is a fact a line: name, a
 * space, value. Lines that are empty or begin with '#' are for people.
 */
#ifndef MOEEP_TOOLS_INFO_MACHINE_H
#define MOEEP_TOOLS_INFO_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define MACHINE_NAME 64

struct machine_fact {
	char *name;
	char *value;
};

struct machine {
	struct machine_fact *facts;
	size_t count;
	size_t room;
	bool failed; /* memory ran out: the last facts are not there */
};

void machine_free(struct machine *machine);

/* Bytes of value that are no text become '?'. */
void machine_put(struct machine *machine, const char *value, const char *name, ...)
	__attribute__((format(printf, 3, 4)));

void machine_put_number(struct machine *machine, int64_t number, const char *name, ...)
	__attribute__((format(printf, 3, 4)));

/* Before what is below. A name that is there twice, or NULL. */
const char *machine_sort(struct machine *machine);

/* NULL: not known. */
const char *machine_get(const struct machine *machine, const char *name, ...)
	__attribute__((format(printf, 2, 3)));

/* Is that what is known? */
static inline bool machine_is(const char *value, const char *expected)
{
	return value && strcmp(value, expected) == 0;
}

/* The whole number that the value begins with, decimal or with 0x; other if there is none. */
int64_t machine_number(const struct machine *machine, int64_t other, const char *name, ...)
	__attribute__((format(printf, 3, 4)));

/* What is below a directory, in the order of numbers in the names. Returns how many, at most max.
 */
int machine_names(const struct machine *machine, const char *directory, char (*names)[MACHINE_NAME],
		  int max);

/* 0, or -1 with the cause in error. */
int machine_parse(struct machine *machine, const char *text, size_t size, char *error,
		  size_t error_size);

/* The same of a file, "-" for standard input, with a message on standard error. */
int machine_load(struct machine *machine, const char *path);

/* As a record; path may be "-", for standard output. 0, or -1 with a message. */
int machine_save(const struct machine *machine, const char *path);

#endif
