/* SPDX-License-Identifier: MIT */
/*
 * tools/info_gpus.h - moeep-info's facts about GPUs: the driver, the devices, what joins them, and
 * what the library can do with them.
 *
 * They are found out in processes of their own, two at once, so that it can be tried whether one
 * can use the other's device memory; and so that a driver that crashes costs its part of the report
 * alone.
 */
#ifndef MOEEP_TOOLS_INFO_GPUS_H
#define MOEEP_TOOLS_INFO_GPUS_H

#include <stdbool.h>
#include <stdint.h>

#include "info_machine.h"
#include "output.h"

#define INFO_MAX_GPUS 32

struct info_gpu {
	char name[96];
	char pci[24];
	int major; /* compute capability */
	int minor;
	int sms;
	uint64_t bytes;
	bool dma_buf;  /* RDMA devices reach its memory without a module for it */
	bool usable;   /* by the library */
	char why[240]; /* not */
};

/* From one GPU to another. */
struct info_link {
	bool access;
	bool atomics; /* native ones: NVLink */
	int rank;     /* the driver's, of performance; 0 is the best */
};

struct info_gpus {
	int found; /* version of the driver, as cuDriverGetVersion() counts; 0: none */
	int needed;
	char why[300]; /* no GPU can be used; "": there are some */
	int count;
	struct info_gpu gpu[INFO_MAX_GPUS];
	struct info_link link[INFO_MAX_GPUS][INFO_MAX_GPUS];
	bool passed; /* device memory to another process, whose contents it saw */
	char not_passed[300];
};

/* Into the machine. */
void info_gpus_look(struct machine *machine);

/* And from it. */
void info_gpus_take(const struct machine *machine, struct info_gpus *gpus);

/* "for CUDA 12.4; 12.0 or later is needed", where a driver was found. Returns text. */
const char *info_gpus_versions(const struct info_gpus *gpus, char *text, size_t size);

/* here: it is this machine, so that this build's kernels matter. */
void info_gpus_text(const struct info_gpus *gpus, bool here);
void info_gpus_json(struct json *json, const struct info_gpus *gpus);

#endif
