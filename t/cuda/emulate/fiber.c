/* SPDX-License-Identifier: MIT */
/*
 * Fibers. On x86-64 by a few instructions, as a kernel switches a hundred thousand times;
 * elsewhere by the C library, which makes two system calls of each.
 */
#include "config.h"

#include "t/cuda/emulate/fiber.h"

#include <stdint.h>

#if defined(__x86_64__)

/* What a callee has to preserve goes to the old stack, and comes from the new one. */
__asm__(".text\n"
	".globl fiber_switch\n"
	".hidden fiber_switch\n"
	".type fiber_switch, @function\n"
	"fiber_switch:\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	ret\n"
	".size fiber_switch, . - fiber_switch\n");

void *fiber_prepare(char *stack, size_t bytes, void (*entry)(void))
{
	uint64_t *top = (uint64_t *)(void *)(stack + bytes);

	/* As a call leaves it: 8 bytes below a multiple of 16, and nobody to return to. */
	*--top = 0;
	*--top = (uintptr_t)entry;
	for (int i = 0; i < 6; i++) {
		*--top = 0;
	}
	return top;
}

#else

#include <ucontext.h>

/* Each stack ends with its context. */
static ucontext_t *context_at(char *stack, size_t bytes)
{
	uintptr_t at = (uintptr_t)stack + bytes - sizeof(ucontext_t);

	return (ucontext_t *)(at / 64 * 64);
}

void *fiber_prepare(char *stack, size_t bytes, void (*entry)(void))
{
	ucontext_t *context = context_at(stack, bytes);

	getcontext(context);
	context->uc_stack.ss_sp = stack;
	context->uc_stack.ss_size = (size_t)((char *)context - stack);
	context->uc_link = NULL;
	makecontext(context, entry, 0);
	return context;
}

void fiber_switch(void **from, void *to)
{
	ucontext_t own;

	*from = &own;
	swapcontext(&own, to);
}

#endif
