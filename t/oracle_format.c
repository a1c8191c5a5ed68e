/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/oracle.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "t/tap.h"

_Static_assert(FLT_EVAL_METHOD == 0, "a product or a sum of floats has to be rounded to a float");

/* Numbers of a format: sign, exponent, mantissa. */
struct format {
	int bytes;
	int mantissa;
	int exponent;
	int bias;
	bool infinities; /* else the largest exponent is an ordinary one, all ones apart: NaN */
};

static const struct format *format_of(int dtype)
{
	static const struct format bf16 = {2, 7, 8, 127, true};
	static const struct format fp16 = {2, 10, 5, 15, true};
	static const struct format fp32 = {4, 23, 8, 127, true};
	static const struct format e4m3 = {1, 3, 4, 7, false};
	static const struct format e5m2 = {1, 2, 5, 15, true};

	switch (dtype) {
	case MOEEP_BF16:
		return &bf16;
	case MOEEP_FP16:
		return &fp16;
	case MOEEP_FP32:
		return &fp32;
	case MOEEP_FP8_E4M3:
		return &e4m3;
	case MOEEP_FP8_E5M2:
		return &e5m2;
	default:
		return NULL;
	}
}

size_t oracle_dtype_size(int dtype)
{
	switch (dtype) {
	case MOEEP_BF16:
	case MOEEP_FP16:
		return 2;
	case MOEEP_FP32:
	case MOEEP_INT32:
		return 4;
	case MOEEP_FP8_E4M3:
	case MOEEP_FP8_E5M2:
	case MOEEP_INT8:
	case MOEEP_UE8M0:
		return 1;
	case MOEEP_INT64:
		return 8;
	default:
		return 0;
	}
}

static uint32_t load_bits(const struct format *f, const void *element)
{
	uint32_t bits = 0;

	memcpy(&bits, element, (size_t)f->bytes);
	return bits;
}

static bool bits_are_nan(const struct format *f, uint32_t bits)
{
	uint32_t mantissa = bits & ((1u << f->mantissa) - 1);
	uint32_t exponent = bits >> f->mantissa & ((1u << f->exponent) - 1);

	if (exponent != (1u << f->exponent) - 1) {
		return false;
	}
	return f->infinities ? mantissa != 0 : mantissa == (1u << f->mantissa) - 1;
}

bool oracle_is_nan(int dtype, const void *element)
{
	const struct format *f = format_of(dtype);

	return f && bits_are_nan(f, load_bits(f, element));
}

/* For dtypes that have values. */
static const struct format *number_format(int dtype)
{
	const struct format *f = format_of(dtype);

	if (!f) {
		tap_bail("dtype %d has no numbers", dtype);
	}
	return f;
}

float oracle_load(int dtype, const void *row, int64_t index)
{
	const struct format *f = number_format(dtype);
	uint32_t bits = load_bits(f, (const unsigned char *)row + index * f->bytes);
	uint32_t mantissa = bits & ((1u << f->mantissa) - 1);
	uint32_t exponent = bits >> f->mantissa & ((1u << f->exponent) - 1);
	bool negative = bits >> (f->mantissa + f->exponent) & 1;
	double value;

	if (bits_are_nan(f, bits)) {
		value = (double)NAN;
	} else if (f->infinities && exponent == (1u << f->exponent) - 1) {
		value = (double)INFINITY;
	} else if (exponent == 0) {
		value = ldexp((double)mantissa, 1 - f->bias - f->mantissa);
	} else {
		value = ldexp((double)(mantissa + (1u << f->mantissa)),
			      (int)exponent - f->bias - f->mantissa);
	}
	return (float)copysign(value, negative ? -1.0 : 1.0);
}

/* The bits of |value|, rounded to nearest even. */
static uint32_t round_bits(const struct format *f, double value)
{
	uint32_t all = (1u << f->exponent) - 1;
	uint32_t largest = f->infinities ? (all << f->mantissa) - 1
					 : (all << f->mantissa) + (1u << f->mantissa) - 2;
	int exponent;
	double units;

	if (isinf(value)) {
		return f->infinities ? all << f->mantissa : largest;
	}
	if (value == 0) {
		return 0;
	}
	exponent = ilogb(value);
	if (exponent < 1 - f->bias) {
		exponent = 1 - f->bias; /* subnormal: the distance between numbers stays the same */
	}
	/* How many distances between two neighbours it is: exact, then rounded. */
	units = rint(ldexp(value, f->mantissa - exponent));
	/*
	 * As integers, the bits of the format's numbers are consecutive, across exponents, too: so
	 * a mantissa that is rounded up to the next power of two needs no care.
	 */
	units += ldexp((double)(exponent + f->bias - 1), f->mantissa);
	if (units > (double)largest) {
		return f->infinities ? all << f->mantissa : largest;
	}
	return (uint32_t)units;
}

void oracle_store(int dtype, void *row, int64_t index, float value)
{
	const struct format *f = number_format(dtype);
	uint32_t bits;

	if (isnan(value)) {
		bits = (1u << (f->mantissa + f->exponent)) - 1;
		if (f->infinities) {
			/* The quiet bit alone. */
			bits = ((1u << f->exponent) - 1) << f->mantissa | 1u << (f->mantissa - 1);
		}
	} else {
		bits = round_bits(f, fabs((double)value));
	}
	bits |= (uint32_t)(signbit(value) != 0) << (f->mantissa + f->exponent);
	memcpy((unsigned char *)row + index * f->bytes, &bits, (size_t)f->bytes);
}

/* The cast to FP8. */

/* The largest magnitude of a group: NaN does not count, and it is at least 1e-4. */
static float group_maximum(int dtype, const void *x, int64_t count)
{
	float a = 1e-4f;

	for (int64_t i = 0; i < count; i++) {
		float value = fabsf(oracle_load(dtype, x, i));

		if (value > a) {
			a = value;
		}
	}
	return a;
}

void oracle_quantize(int quant, int dtype, const void *x, int64_t count, uint8_t *q, uint8_t *scale)
{
	float a = group_maximum(dtype, x, count), multiplier, stored;

	if (quant == MOEEP_QUANT_FP8) {
		multiplier = 448.0f / a;
		stored = a * (1.0f / 448.0f);
	} else {
		int exponent = -149;

		stored = a * (1.0f / 448.0f);
		if (!isinf(stored)) {
			while (ldexpf(1.0f, exponent) < stored) {
				exponent++;
			}
			stored = ldexpf(1.0f, exponent);
		}
		multiplier = 1.0f / stored;
	}
	for (int64_t i = 0; i < count; i++) {
		float value = oracle_load(dtype, x, i), product = value * multiplier;

		/* The product of an infinity is a NaN whose sign the hardware picks. */
		if (isnan(product)) {
			product = copysignf(NAN, value);
		}
		oracle_store(MOEEP_FP8_E4M3, q, i, product);
	}
	if (quant == MOEEP_QUANT_FP8_UE8M0) {
		*scale = isinf(stored) ? 255 : (uint8_t)(ilogbf(stored) + 127);
	} else {
		memcpy(scale, &stored, sizeof(stored));
	}
}
