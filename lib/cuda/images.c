/* SPDX-License-Identifier: MIT */
/* cuda/images.c - the table of the kernel images; kernels/embed.S holds the images themselves. */
#include "config.h"

#include <string.h>

#include "cuda/images.h"

/* Hidden as they are defined, so that the table is the same in a static and in a shared library. */
#define MOEEP_IMAGE(name)                                                                          \
	extern const unsigned char moeep_fatbin_##name[] __attribute__((visibility("hidden")));    \
	extern const unsigned char moeep_fatbin_##name##_end[]                                     \
		__attribute__((visibility("hidden")));
#include "kernels/image_list.h"
#undef MOEEP_IMAGE

#define MOEEP_IMAGE(name) {#name, moeep_fatbin_##name, moeep_fatbin_##name##_end},
const struct moeep_image moeep_images[] = {
#include "kernels/image_list.h"
	{NULL, NULL, NULL},
};

const struct moeep_image *moeep_image_find(const char *name)
{
	const struct moeep_image *image;

	for (image = moeep_images; image->name; image++) {
		if (strcmp(image->name, name) == 0) {
			return image;
		}
	}
	return NULL;
}
