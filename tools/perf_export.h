/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_export.h - moeep-perf's results for programs: one JSON document, or CSV. Both go to
 * standard output; names of fields are an interface that only grows.
 */
#ifndef MOEEP_TOOLS_PERF_EXPORT_H
#define MOEEP_TOOLS_PERF_EXPORT_H

#include <stdint.h>

#include "perf_lines.h"

/* values, wrong: of all lines together. */
void perf_export_json(const struct perf_run *run, const struct perf_line *lines, int count,
		      uint64_t values, uint64_t wrong);
void perf_export_csv(const struct perf_run *run, const struct perf_line *lines, int count);

#endif
