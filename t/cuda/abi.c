/* SPDX-License-Identifier: MIT */
/* lib/cuda/driver.h declares what CUDA's own header does. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/driver.h"
#include "t/cuda/abi.h"
#include "t/tap.h"

const struct abi_number abi_ours[] = {ABI_NUMBERS(ABI_SIZE, ABI_FIELD, ABI_VALUE){NULL, 0}};

static const struct abi_number *find(const struct abi_number *numbers, const char *name)
{
	for (; numbers->name; numbers++) {
		if (strcmp(numbers->name, name) == 0) {
			return numbers;
		}
	}
	return NULL;
}

/*
 * The name that a line of driver.h declares: a value, "<tab>NAME = 1", or a type, "} NAME;" or
 * "typedef struct ... *NAME;". False for other lines.
 */
static bool declared(const char *line, char *name)
{
	char text[128];
	int value;

	/* A macro that is a pointer has a parenthesis where a number would be. */
	if (sscanf(line, "\t%127[A-Za-z0-9_] = %i", text, &value) == 2 ||
	    sscanf(line, "#define %127[A-Za-z0-9_] %i", text, &value) == 2) {
		strcpy(name, text);
		return strncmp(name, "CU", 2) == 0;
	}
	if (sscanf(line, "} %127[A-Za-z0-9_];", text) == 1 ||
	    sscanf(line, "typedef struct %*s *%127[A-Za-z0-9_];", text) == 1 ||
	    sscanf(line, "typedef int %127[A-Za-z0-9_];", text) == 1 ||
	    sscanf(line, "typedef unsigned long long %127[A-Za-z0-9_];", text) == 1) {
		snprintf(name, sizeof(text) + 8, "sizeof %s", text);
		return strncmp(text, "CU", 2) == 0;
	}
	return false;
}

/* A value that is added to the header must not go unchecked. */
static void test_list_is_complete(void)
{
	const char *top = getenv("abs_top_srcdir");
	char path[4096];
	char line[256];
	char name[160];
	int count = 0;
	int missing = 0;
	FILE *file;

	snprintf(path, sizeof(path), "%s/lib/cuda/driver.h", top ? top : ".");
	file = fopen(path, "r");
	if (!tap_require("sources", file != NULL, 2, "%s cannot be read", path)) {
		return;
	}
	while (fgets(line, sizeof(line), file)) {
		if (declared(line, name)) {
			count++;
			if (!find(abi_ours, name)) {
				missing++;
				tap_diag("%s is not in the list", name);
			}
		}
	}
	fclose(file);
	ok(count > 150, "driver.h declares %d values and types", count);
	is_int(missing, 0, "all of them are in the list");
}

static void test_numbers(void)
{
	int count = 0;
	int wrong = 0;

	for (const struct abi_number *ours = abi_ours; ours->name; ours++, count++) {
		const struct abi_number *theirs = find(abi_toolkit, ours->name);

		if (!theirs || theirs->number != ours->number) {
			wrong++;
			tap_diag("%s is %lld, and %lld in cuda.h", ours->name, ours->number,
				 theirs ? theirs->number : -1);
		}
	}
	is_int(wrong, 0, "%d sizes, offsets and values are those of cuda.h for CUDA %d.%d", count,
	       abi_toolkit_version / 1000, abi_toolkit_version % 1000 / 10);
}

/*
 * Functions that got another symbol after the oldest driver that will do. The old one stays in all
 * later drivers.
 */
static bool newer_symbol(const char *theirs)
{
	return strcmp(theirs, "cuEventElapsedTime_v2") == 0;
}

static void test_symbols(void)
{
	int count = 0;
	int wrong = 0;

	for (const struct abi_symbol *symbol = abi_symbols; symbol->name; symbol++, count++) {
		if (strcmp(symbol->ours, symbol->theirs) != 0 && !newer_symbol(symbol->theirs)) {
			wrong++;
			tap_diag("%s is looked up as %s; cuda.h makes it %s", symbol->name,
				 symbol->ours, symbol->theirs);
		}
	}
	is_int(wrong, 0, "%d functions are looked up by the symbols of cuda.h", count);
}

int main(void)
{
	test_list_is_complete();
	if (tap_require("cuda-toolkit", abi_toolkit_version != 0, 2, "there is no cuda.h")) {
		test_numbers();
		test_symbols();
	}
	return tap_done();
}
