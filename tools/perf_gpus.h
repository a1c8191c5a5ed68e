/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_gpus.h - the GPUs of this machine, and whether the library can work on them.
 *
 * Found out in a process of its own: ranks are forked from the parent, and the CUDA driver does not
 * work in the children of a process that has started it.
 */
#ifndef MOEEP_TOOLS_PERF_GPUS_H
#define MOEEP_TOOLS_PERF_GPUS_H

#include <stdbool.h>
#include <stdint.h>

#include "perf_options.h"

#define PERF_MAX_GPUS 64

struct perf_gpu {
	char name[64];
	uint64_t total; /* bytes of memory */
	uint64_t free;
	int sms;
};

struct perf_gpus {
	bool usable;   /* by the library, all of them */
	char why[300]; /* not */
	int version;   /* of the driver, as cuDriverGetVersion() counts */
	int count;
	struct perf_gpu gpu[PERF_MAX_GPUS];
};

/* ranks: no more GPUs than these can have are looked at; 0: all. */
void perf_gpus_look(struct perf_gpus *gpus, int ranks);

/*
 * Decide on the backend, which is in options->backend afterwards, and on the number of ranks. 0, or
 * -1 with a message on standard error.
 */
int perf_gpus_choose(struct perf_options *options, struct perf_gpus *gpus);

/* The GPU of a rank. */
static inline int perf_gpus_of(const struct perf_gpus *gpus, int rank)
{
	return rank % gpus->count;
}

#endif
