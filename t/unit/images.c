/* SPDX-License-Identifier: MIT */
/* The table of kernel images holds what nvcc wrote, where the driver can read it. */
#include "config.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/images.h"
#include "t/tap.h"

#if MOEEP_HAVE_CUDA

/* How a fatbin begins; the driver finds its end by this. */
struct fatbin_header {
	uint32_t magic;
	uint16_t version;
	uint16_t header_size;
	uint64_t size;
};
#define FATBIN_MAGIC 0xba55ed50u

/* Reads a file of the build tree. The caller frees it; NULL if it cannot be read. */
static unsigned char *read_file(const char *path, size_t *size)
{
	FILE *file = fopen(path, "rb");
	unsigned char *data = NULL;
	long end;

	if (!file) {
		return NULL;
	}
	if (fseek(file, 0, SEEK_END) == 0 && (end = ftell(file)) > 0) {
		rewind(file);
		data = malloc((size_t)end);
		if (data && fread(data, 1, (size_t)end, file) != (size_t)end) {
			free(data);
			data = NULL;
		}
		*size = (size_t)end;
	}
	fclose(file);
	return data;
}

static void check_image(const struct moeep_image *image, const char *top)
{
	struct fatbin_header header = {0};
	size_t embedded = (size_t)(image->end - image->start);
	size_t made = 0;
	unsigned char *data;
	char path[4096];

	snprintf(path, sizeof(path), "%s/kernels/%s.fatbin", top, image->name);
	data = read_file(path, &made);
	if (ok(data, "%s: %s is there", image->name, path) &&
	    is_u64(embedded, made, "%s: the image has the size of the file", image->name)) {
		is_mem(image->start, data, made, "%s: and its bytes", image->name);
	}
	free(data);
	is_u64((uintptr_t)image->start % 16, 0, "%s: it is aligned", image->name);
	if (ok(embedded > sizeof(header), "%s: it is not empty", image->name)) {
		memcpy(&header, image->start, sizeof(header));
	}
	is_u64(header.magic, FATBIN_MAGIC, "%s: it begins as a fatbin does", image->name);
	is_u64(header.header_size + header.size, embedded, "%s: its header tells its size",
	       image->name);
	ok(moeep_image_find(image->name) == image, "%s: it is found by its name", image->name);
}

int main(void)
{
	const struct moeep_image *image;
	const char *top = getenv("abs_top_builddir");

	for (image = moeep_images; image->name; image++) {
		check_image(image, top ? top : ".");
	}
	ok(image > moeep_images, "the library has kernels");
	ok(!moeep_image_find("none"), "a name that no image has is not found");
	ok(!moeep_image_find(""), "nor is an empty one");
	return tap_done();
}

#else

int main(void)
{
	tap_require_all("nvcc", false, "this build has no kernels: %s", MOEEP_REASON_CUDA);
	return tap_done();
}

#endif
