/* SPDX-License-Identifier: MIT */
/* cuda/images.h - the kernel images in this library; only in builds with a CUDA compiler. */
#ifndef MOEEP_CUDA_IMAGES_H
#define MOEEP_CUDA_IMAGES_H

#include <stddef.h>

/* The image of kernels/<name>.cu: a fatbin at a 16-byte boundary, [start, end). */
struct moeep_image {
	const char *name;
	const unsigned char *start;
	const unsigned char *end;
};

/* All images, in the order of kernels/kernels.am; ended by one whose name is NULL. */
extern const struct moeep_image moeep_images[];

/* The image of that name, or NULL. */
const struct moeep_image *moeep_image_find(const char *name);

#endif
