/* SPDX-License-Identifier: MIT */
/* A fuzz target on its corpus, or on the files that are named. FUZZ_NAME is the target's. */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "t/fuzz/fuzz.h"
#include "t/tap.h"

#define MOST_BYTES (1 << 20)

/* In memory that ends where the input does. */
static void replay(const char *path)
{
	FILE *file = fopen(path, "rb");
	uint8_t *all = malloc(MOST_BYTES);
	uint8_t *exact;
	size_t size;

	if (!file || !all) {
		tap_bail("%s: %s", path, strerror(errno));
	}
	size = fread(all, 1, MOST_BYTES, file);
	fclose(file);
	exact = malloc(size ? size : 1);
	if (!exact) {
		tap_bail("no memory");
	}
	memcpy(exact, all, size);
	free(all);
	(void)LLVMFuzzerTestOneInput(exact, size);
	free(exact);
}

int main(int argc, char **argv)
{
	const char *top = getenv("abs_top_srcdir");
	char path[4096];
	struct dirent *entry;
	int count = 0;
	DIR *dir;

	setenv("MOEEP_LOG", "none", 1);
	if (argc > 1) {
		for (; count < argc - 1; count++) {
			replay(argv[count + 1]);
		}
		ok(1, "%d files do no harm", count);
		return tap_done();
	}
	snprintf(path, sizeof(path), "%s/t/fuzz/corpus/%s", top ? top : ".", FUZZ_NAME);
	dir = opendir(path);
	if (!dir) {
		tap_bail("%s: %s", path, strerror(errno));
	}
	while ((entry = readdir(dir))) {
		char file[4400];

		if (entry->d_name[0] != '.') {
			snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
			replay(file);
			count++;
		}
	}
	closedir(dir);
	ok(count > 0, "%d inputs of the corpus of %s do no harm", count, FUZZ_NAME);
	return tap_done();
}
