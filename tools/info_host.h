/* SPDX-License-Identifier: MIT */
/*
 * tools/info_host.h - moeep-info's facts about this host: kernel, processors, memory.
 *
 * What the library says about itself is moeep-info.c's, and what a buffer takes is info_hints.h's.
 */
#ifndef MOEEP_TOOLS_INFO_HOST_H
#define MOEEP_TOOLS_INFO_HOST_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include "output.h"

struct info_host {
	struct utsname uname;
	char boot_id[64];
	int cpus_online;
	int cpus_allowed;
	int numa_nodes;
	struct memory_limit memory;
	bool memory_known;
	struct rlimit memlock;
	uint64_t shm_bytes;
	uint64_t shm_free;
	bool shm_known;
	int memfd_errno; /* 0: anonymous shared memory can be had */
	char thp_shmem[32];
};

/* 0, or -1 with a message on standard error. */
int info_host_look(struct info_host *host);

void info_host_text(const struct info_host *host);
void info_host_json(struct json *json, const struct info_host *host);

#endif
