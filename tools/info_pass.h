/* SPDX-License-Identifier: MIT */
/*
 * tools/info_pass.h - whether processes can share device memory here, by trying it: one makes some
 * and sends its descriptor, the other maps it and looks at its contents.
 */
#ifndef MOEEP_TOOLS_INFO_PASS_H
#define MOEEP_TOOLS_INFO_PASS_H

#include <stddef.h>
#include <stdint.h>

#include "cuda_driver.h"

/* What the two processes share; the socket pair is theirs alone. */
struct info_pass {
	int socket;
	char *why; /* in memory of both: what failed first; "" at the end: it works */
	size_t why_size;
};

/*
 * Each from a process that has not started the driver before a fork. The giver has a context on
 * GPU 0 that is current.
 */
void info_pass_give(const struct info_pass *pass, const struct moeep_cu *cu, CUdevice device);
void info_pass_take(const struct info_pass *pass);

#endif
