/* SPDX-License-Identifier: MIT */
/* tools/perf_report.h - moeep-perf's results as a table, as JSON and as CSV. */
#ifndef MOEEP_TOOLS_PERF_REPORT_H
#define MOEEP_TOOLS_PERF_REPORT_H

#include "perf_run.h"

/* "HT dispatch", "LL combine" */
const char *perf_case_name(const struct perf_case *c);

/* "symmetric", "ordinary", or "-" where it makes no difference. */
const char *perf_memory_name(unsigned memory);

/* What is going to be run, for people; with --demo also why. Nothing for the other formats. */
void perf_report_start(const struct perf_run *run);

/*
 * The results in the format that was asked for. *wrong is the number of wrong values, of which the
 * first is described on standard error. -1 with a message if they could not be written.
 */
int perf_report_results(const struct perf_run *run, uint64_t *wrong);

#endif
