/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_report.h - what moeep-perf says: the head and the table for people, and the choice
 * among the formats.
 */
#ifndef MOEEP_TOOLS_PERF_REPORT_H
#define MOEEP_TOOLS_PERF_REPORT_H

#include <stdint.h>

#include "perf_run.h"

/* What is going to be run, for people; with --demo also why. Nothing for the other formats. */
void perf_report_start(const struct perf_run *run);

/*
 * The results in the format that was asked for. *wrong is the number of wrong values, of which the
 * first is described on standard error. -1 with a message if they could not be written.
 */
int perf_report_results(const struct perf_run *run, uint64_t *wrong);

#endif
