/* SPDX-License-Identifier: MIT */
/*
 * What a fuzz target is: a function that takes any bytes without harm. libFuzzer calls it with
 * those that it makes, replay.c with those of the corpus; HACKING.md says how to run either.
 */
#ifndef T_FUZZ_FUZZ_H
#define T_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* 0 always. What is wrong ends the program, by a sanitizer or by abort(). */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
