/* SPDX-License-Identifier: MIT */
/* Fuzz target: files of NumPy arrays. */
#include "config.h"

#include <stdlib.h>

#include "t/fuzz/fuzz.h"
#include "tools/npy.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct npy npy;
	char error[200] = "";
	int64_t sum = 0;

	if (npy_parse(data, size, &npy, error, sizeof(error))) {
		/* Whoever is refused is told why. */
		return error[0] ? 0 : (abort(), 0);
	}
	for (int64_t i = 0; i < npy.rows * npy.columns; i++) {
		sum += npy_integer(&npy, i) & 1;
	}
	npy_free(&npy);
	return sum < 0;
}
