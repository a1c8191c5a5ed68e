/* SPDX-License-Identifier: MIT */
/* host/scales.h - where the scales of rows lie, and moving them between layouts. */
#ifndef MOEEP_HOST_SCALES_H
#define MOEEP_HOST_SCALES_H

#include <moeep/moeep.h>

/* Scales of many rows, in either layout. */
struct moeep_scales {
	void *base; /* NULL: none */
	int32_t layout;
	int32_t dtype;
	int32_t count;	/* a row */
	int64_t stride; /* resolved */
};

/* Fill in the default stride for `rows` rows. */
void moeep_scales_resolve(struct moeep_scales *scales, int64_t rows);
void moeep_scales_read(const struct moeep_scales *scales, int64_t row, void *dense);
void moeep_scales_write(const struct moeep_scales *scales, int64_t row, const void *dense);

#endif
