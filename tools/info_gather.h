/* SPDX-License-Identifier: MIT */
/* tools/info_gather.h - this machine's facts, from /sys, /proc and the system. */
#ifndef MOEEP_TOOLS_INFO_GATHER_H
#define MOEEP_TOOLS_INFO_GATHER_H

#include "info_machine.h"

/*
 * What is not there is left out. The driver's facts are info_gpus_look()'s. machine_sort() comes
 * after both.
 */
void info_gather(struct machine *machine);

#endif
