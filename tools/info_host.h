/* SPDX-License-Identifier: MIT */
/*
 * tools/info_host.h - moeep-info's facts about a host: kernel, processors, memory.
 *
 * What the library says about itself is moeep-info.c's, and what a buffer takes is info_hints.h's.
 */
#ifndef MOEEP_TOOLS_INFO_HOST_H
#define MOEEP_TOOLS_INFO_HOST_H

#include "info_machine.h"
#include "output.h"

void info_host_text(const struct machine *machine);
void info_host_json(struct json *json, const struct machine *machine);

/* 1 if the machine does not say: each has one. */
int info_host_numa_nodes(const struct machine *machine);

#endif
