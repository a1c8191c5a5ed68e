/* SPDX-License-Identifier: MIT */
/*
 * tools/cuda_driver.h - the CUDA driver for the tools.
 *
 * Its functions are the library's lib/cuda/driver.c, which the library does not export; built a
 * second time under names of its own, so that a tool can be linked with the static library as well.
 */
#ifndef MOEEP_TOOLS_CUDA_DRIVER_H
#define MOEEP_TOOLS_CUDA_DRIVER_H

#define moeep_cu_load	    tool_cu_load
#define moeep_cu_versions   tool_cu_versions
#define moeep_cu_fail	    tool_cu_fail
#define moeep_fail	    tool_cu_note
#define moeep_settings_load tool_cu_settings

#include <stdbool.h>

#include "cuda/driver.h"

/* Why the last of the calls above failed in this thread; the tools' moeep_error_detail() for it. */
const char *tool_cu_detail(void);

/*
 * Whether the library can work on GPU `ordinal`: it makes a group of one there. If not, the cause
 * is in why. From a process that is for such questions.
 */
bool tool_cu_try_library(int ordinal, char *why, size_t why_size);

#endif
