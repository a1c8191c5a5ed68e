/* SPDX-License-Identifier: MIT */
/*
 * For scripts: prints how many CUDA devices the tests can use, and on standard error why there are
 * none.
 */
#include "config.h"

#include <stdio.h>

#include "t/device.h"

int main(void)
{
	const char *reason;
	int count = device_count(&reason);

	printf("%d\n", count);
	if (count == 0) {
		fprintf(stderr, "%s\n", reason);
	}
	return 0;
}
