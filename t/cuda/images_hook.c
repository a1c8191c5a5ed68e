/* SPDX-License-Identifier: MIT */
/*
 * In place of the library's lib/cuda/images.c, in tests that t/cuda/mutants.t runs: with
 * MOEEP_TEST_IMAGES=DIRECTORY a kernel image that is there, as NAME.fatbin, is loaded instead of
 * the one in the library.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/images.h"
#include "t/tap.h"

#define MOEEP_IMAGE(name)                                                                          \
	extern const unsigned char moeep_fatbin_##name[] __attribute__((visibility("hidden")));    \
	extern const unsigned char moeep_fatbin_##name##_end[]                                     \
		__attribute__((visibility("hidden")));
#include "kernels/image_list.h"
#undef MOEEP_IMAGE

#define MOEEP_IMAGE(name) {#name, moeep_fatbin_##name, moeep_fatbin_##name##_end},
static struct moeep_image images[] = {
#include "kernels/image_list.h"
	{NULL, NULL, NULL},
};

/* A file that is not there leaves the image as it is. */
static void replace(struct moeep_image *image, const char *directory)
{
	char path[4096];
	unsigned char *memory;
	long bytes;
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s.fatbin", directory, image->name);
	file = fopen(path, "rb");
	if (!file) {
		return;
	}
	fseek(file, 0, SEEK_END);
	bytes = ftell(file);
	rewind(file);
	/* It is needed as long as the process lives. */
	memory = aligned_alloc(16, ((size_t)bytes + 16) / 16 * 16);
	if (bytes <= 0 || !memory || fread(memory, 1, (size_t)bytes, file) != (size_t)bytes) {
		tap_bail("cannot read %s", path);
	}
	fclose(file);
	image->start = memory;
	image->end = memory + bytes;
}

/* The library calls it with a lock held. */
const struct moeep_image *moeep_image_find(const char *name)
{
	static bool replaced;
	const char *directory = getenv("MOEEP_TEST_IMAGES");

	for (struct moeep_image *image = images; !replaced && directory && image->name; image++) {
		replace(image, directory);
	}
	replaced = true;
	for (const struct moeep_image *image = images; image->name; image++) {
		if (strcmp(image->name, name) == 0) {
			return image;
		}
	}
	return NULL;
}
