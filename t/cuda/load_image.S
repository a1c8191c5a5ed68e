/* SPDX-License-Identifier: MIT */
/* t/cuda/load_image.S - the kernel of load.cu as data; as kernels/embed.S. */
	.section .rodata, "a", %progbits
	.balign 16
	.globl stress_load_image
	.hidden stress_load_image
	.type stress_load_image, %object
stress_load_image:
	.incbin "t/cuda/load.fatbin"
	.size stress_load_image, . - stress_load_image

	.section .note.GNU-stack, "", %progbits
