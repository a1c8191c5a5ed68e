/* SPDX-License-Identifier: MIT */
/*
 * The kernel images as data of the library. Image NAME lies between moeep_fatbin_NAME and
 * moeep_fatbin_NAME_end, aligned as the driver wants it; lib/cuda/images.c has the table. The
 * images are found where make writes them, from the top of the build tree.
 */
#define STRING(text) #text
#define PATH(path) STRING(path)

#define MOEEP_IMAGE(name)                             \
	.balign 16;                                   \
	.globl moeep_fatbin_##name;                   \
	.hidden moeep_fatbin_##name;                  \
	.type moeep_fatbin_##name, %object;           \
	.globl moeep_fatbin_##name##_end;             \
	.hidden moeep_fatbin_##name##_end;            \
	.type moeep_fatbin_##name##_end, %object;     \
	moeep_fatbin_##name:                          \
	.incbin PATH(kernels/name.fatbin);            \
	moeep_fatbin_##name##_end:                    \
	.size moeep_fatbin_##name, . - moeep_fatbin_##name;

	.section .rodata, "a", %progbits
#include "kernels/image_list.h"

/* An object that says nothing takes these protections from the library that it is linked into. */
	.section .note.GNU-stack, "", %progbits
#if defined(__CET__)
#include <cet.h>
#endif
#if defined(__ARM_FEATURE_BTI_DEFAULT) || defined(__ARM_FEATURE_PAC_DEFAULT)
	.section .note.gnu.property, "a"
	.balign 8
	.long 4, 16, 5
	.asciz "GNU"
	/* GNU_PROPERTY_AARCH64_FEATURE_1_AND: branch targets, return addresses. */
	.long 0xc0000000, 4, 3, 0
#endif
