/* SPDX-License-Identifier: MIT */
/* Fibers: several stacks of one thread, and the way from one to the other. */
#ifndef T_CUDA_EMULATE_FIBER_H
#define T_CUDA_EMULATE_FIBER_H

#include <stddef.h>

/* Prepare a stack; switching to the result calls entry(), which must not return. */
void *fiber_prepare(char *stack, size_t bytes, void (*entry)(void));

/* Keep where this one is in *from, and go on where `to` was kept. */
void fiber_switch(void **from, void *to);

#endif /* T_CUDA_EMULATE_FIBER_H */
