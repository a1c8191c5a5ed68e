/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/util.h"

#include <errno.h>
#include <moeep/moeep.h>
#include <stdlib.h>
#include <string.h>

#include "t/device.h"
#include "t/oracle.h"
#include "t/ranks.h"
#include "t/tap.h"

/* Keeps the alignment of what lies between the guards. */
#define GUARD 64

/* splitmix64, by Sebastiano Vigna, public domain: good enough, and the same everywhere. */
static uint64_t mix(uint64_t z)
{
	z += UINT64_C(0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

uint64_t util_hash(uint64_t seed, uint64_t a, uint64_t b)
{
	return mix(mix(mix(seed) ^ a) ^ b);
}

uint64_t rng_next(struct rng *rng)
{
	rng->state += UINT64_C(0x9e3779b97f4a7c15);
	return mix(rng->state);
}

int64_t rng_range(struct rng *rng, int64_t low, int64_t high)
{
	return low + (int64_t)(rng_next(rng) % (uint64_t)(high - low + 1));
}

bool rng_chance(struct rng *rng, int percent)
{
	return rng_range(rng, 0, 99) < percent;
}

void *util_alloc(size_t bytes)
{
	size_t whole = (bytes + 64) / 64 * 64;
	bool pinned = device_mode() != DEVICE_NONE;
	void *memory = pinned ? arena_alloc(device_arena(), whole) : aligned_alloc(64, whole);

	if (!memory) {
		tap_bail("no memory: %zu bytes%s", bytes,
			 pinned ? "; MOEEP_TEST_ARENA=MIB makes the arena larger" : "");
	}
	memset(memory, 0, whole);
	return memory;
}

void util_free(const void *memory)
{
	if (device_mode() != DEVICE_NONE) {
		arena_free(device_arena(), memory);
	} else {
		free((void *)(uintptr_t)memory);
	}
}

uint64_t util_env(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

/* Sign, exponent and mantissa bits of a format, and the exponents of numbers of moderate size. */
struct number_format {
	int mantissa;
	int exponent;
	int low;
	int high;
};

static bool number_format(int dtype, struct number_format *format)
{
	switch (dtype) {
	case MOEEP_BF16:
		*format = (struct number_format){7, 8, 118, 133};
		return true;
	case MOEEP_FP16:
		*format = (struct number_format){10, 5, 6, 19};
		return true;
	case MOEEP_FP32:
		*format = (struct number_format){23, 8, 118, 133};
		return true;
	default:
		*format = (struct number_format){0, 0, 0, 0};
		return false;
	}
}

static uint64_t number(const struct number_format *format, uint64_t bits)
{
	uint64_t mantissa = bits & ((UINT64_C(1) << format->mantissa) - 1);
	uint64_t spread = (uint64_t)(format->high - format->low + 1);
	uint64_t exponent = (uint64_t)format->low + (bits >> 32) % spread;
	uint64_t sign = bits >> 63;

	return sign << (format->mantissa + format->exponent) | exponent << format->mantissa |
	       mantissa;
}

/* One of the values that break things. */
static uint64_t special(const struct number_format *format, uint64_t bits, bool infinities)
{
	int m = format->mantissa, e = format->exponent;
	uint64_t all = ((UINT64_C(1) << e) - 1) << m, quiet = UINT64_C(1) << (m - 1);
	uint64_t sign = (bits >> 63) << (m + e), any = bits & (quiet - 1);
	uint64_t value;

	switch ((bits >> 16) % (infinities ? 8 : 7)) {
	case 0:
		value = 0;
		break;
	case 1:
		value = 1; /* the smallest subnormal */
		break;
	case 2:
		value = (UINT64_C(1) << m) - 1; /* the largest subnormal */
		break;
	case 3:
		value = all - 1; /* the largest number */
		break;
	case 4:
		value = all | quiet | any;
		break;
	case 5:
		value = all | any | 1; /* a signalling NaN */
		break;
	case 6:
		value = UINT64_C(1) << m; /* the smallest normal number */
		break;
	default:
		value = all;
		break;
	}
	return sign | value;
}

void util_fill(void *rows, int dtype, int64_t num_rows, int64_t elements, enum payload payload,
	       uint64_t seed)
{
	size_t size = moeep_dtype_size(dtype);
	unsigned char *at = rows;
	struct number_format format;
	bool have_format = number_format(dtype, &format);

	for (int64_t row = 0; row < num_rows; row++) {
		uint64_t row_seed = util_hash(seed, (uint64_t)row, 1);

		for (int64_t i = 0; i < elements; i++, at += size) {
			uint64_t bits = mix(row_seed + (uint64_t)i), value = bits;

			if (payload != PAYLOAD_BITS && have_format) {
				if (payload != PAYLOAD_NUMBERS && (bits >> 40) % 8 == 0) {
					value = special(&format, bits, payload == PAYLOAD_SPECIAL);
				} else {
					value = number(&format, bits);
				}
			}
			memcpy(at, &value, size); /* little-endian: the low bytes */
		}
	}
}

void util_poison(void *memory, size_t bytes)
{
	unsigned char *at = memory;

	for (size_t i = 0; i < bytes; i++) {
		at[i] = (unsigned char)(0xa5 + i * 59);
	}
}

size_t guard_space(size_t bytes)
{
	return bytes + (size_t)2 * GUARD;
}

void guard_place(struct guarded *guarded, void *memory, size_t bytes)
{
	*guarded = (struct guarded){
		.data = (unsigned char *)memory + GUARD,
		.bytes = bytes,
		.base = memory,
	};
	memset(guarded->base, 0x5a, GUARD);
	util_poison(guarded->data, bytes);
	memset(guarded->data + bytes, 0x5a, GUARD);
}

void guard_alloc(struct guarded *guarded, size_t bytes)
{
	guard_place(guarded, util_alloc(guard_space(bytes)), bytes);
	guarded->owned = true;
}

static bool guard_intact(const unsigned char *guard, const char *what, const char *where)
{
	for (int i = 0; i < GUARD; i++) {
		if (guard[i] != 0x5a) {
			rank_fail("%s: guard byte %d %s it was overwritten with 0x%02x", what, i,
				  where, guard[i]);
			return false;
		}
	}
	return true;
}

bool guard_check(const struct guarded *guarded, const char *what)
{
	bool before = guard_intact(guarded->base, what, "before");

	return guard_intact(guarded->data + guarded->bytes, what, "behind") && before;
}

void guard_free(struct guarded *guarded)
{
	if (guarded->owned) {
		util_free(guarded->base);
	}
	*guarded = (struct guarded){.data = NULL};
}

static bool same_element(const unsigned char *got, const unsigned char *want, int dtype,
			 bool any_nan)
{
	if (memcmp(got, want, oracle_dtype_size(dtype)) == 0) {
		return true;
	}
	return any_nan && oracle_is_nan(dtype, want) && oracle_is_nan(dtype, got);
}

static uint64_t element_bits(const unsigned char *element, int dtype)
{
	uint64_t bits = 0;

	memcpy(&bits, element, oracle_dtype_size(dtype));
	return bits;
}

bool util_same(const char *what, const void *got, const void *want, int64_t rows, int64_t elements,
	       int dtype, bool any_nan)
{
	size_t size = oracle_dtype_size(dtype), bytes = (size_t)rows * (size_t)elements * size;
	const unsigned char *g = got, *w = want;
	int64_t first = -1, differ = 0;

	if (memcmp(g, w, bytes) == 0) {
		return true;
	}
	for (int64_t i = 0; i < rows * elements; i++) {
		if (!same_element(g + (size_t)i * size, w + (size_t)i * size, dtype, any_nan)) {
			first = differ++ == 0 ? i : first;
		}
	}
	if (differ == 0) {
		return true;
	}
	rank_fail("%s: row %lld element %lld: expected 0x%llx, got 0x%llx; %lld of %lld x %lld "
		  "elements differ",
		  what, (long long)(first / elements), (long long)(first % elements),
		  (unsigned long long)element_bits(w + (size_t)first * size, dtype),
		  (unsigned long long)element_bits(g + (size_t)first * size, dtype),
		  (long long)differ, (long long)rows, (long long)elements);
	return false;
}
