/* SPDX-License-Identifier: MIT */
/* Random numbers, payloads, guarded buffers and comparisons for the operations' tests. */
#ifndef T_UTIL_H
#define T_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Random numbers that are a function of a seed, the same on every rank and in every process. */
struct rng {
	uint64_t state;
};

uint64_t rng_next(struct rng *rng);
/* From low to high, both included. */
int64_t rng_range(struct rng *rng, int64_t low, int64_t high);
bool rng_chance(struct rng *rng, int percent);
uint64_t util_hash(uint64_t seed, uint64_t a, uint64_t b);

/*
 * Memory that operations may be given, whatever the backend (t/device.h). Gives up on the program
 * where there is none; never NULL, aligned to 64 bytes, zeroed.
 */
void *util_alloc(size_t bytes);
/* NULL is a no-op. */
void util_free(const void *memory);

/* A number from the environment, or the default. */
uint64_t util_env(const char *name, uint64_t otherwise);

enum payload {
	PAYLOAD_BITS,	 /* any bit pattern */
	PAYLOAD_NUMBERS, /* finite numbers of moderate size, so that sums round */
	PAYLOAD_NAN,	 /* the same with NaNs, -0, the smallest and the largest among them */
	PAYLOAD_SPECIAL	 /* the same with infinities, too */
};

/* Elements that differ per row and per element: a permuted row does not go unseen. */
void util_fill(void *rows, int dtype, int64_t num_rows, int64_t elements, enum payload payload,
	       uint64_t seed);

/* A pattern for memory that is to be overwritten, or that must not be; it depends on the offset. */
void util_poison(void *memory, size_t bytes);

/*
 * Memory with guard bytes before and behind it, poisoned. It comes from util_alloc(), or lies in
 * memory of guard_space() bytes that the caller has.
 */
struct guarded {
	unsigned char *data;
	size_t bytes;
	unsigned char *base;
	bool owned;
};

size_t guard_space(size_t bytes);
void guard_alloc(struct guarded *guarded, size_t bytes);
void guard_place(struct guarded *guarded, void *memory, size_t bytes);
/* Notes a failure if a guard byte has changed. */
bool guard_check(const struct guarded *guarded, const char *what);
void guard_free(struct guarded *guarded);

/*
 * Compare matrices of `rows` rows of `elements` elements, and note a failure with the first element
 * that differs. With any_nan, a NaN stands for every NaN.
 */
bool util_same(const char *what, const void *got, const void *want, int64_t rows, int64_t elements,
	       int dtype, bool any_nan);

#endif /* T_UTIL_H */
