/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_lines.h - moeep-perf's results as figures: times, bytes and counts of each operation,
 * and the words for them.
 *
 * How they look as a table is perf_report.h's, as JSON and CSV perf_export.h's.
 */
#ifndef MOEEP_TOOLS_PERF_LINES_H
#define MOEEP_TOOLS_PERF_LINES_H

#include <stdbool.h>
#include <stdint.h>

#include "perf_run.h"

/* One line of the table. */
struct perf_line {
	const struct perf_case *c;
	const char *phase; /* "both", "send", "recv" */
	int64_t calls;
	double p50; /* seconds */
	double p99;
	double least;
	double mean;
	double logical_bytes; /* of a call and rank, on average */
	double wire_bytes;
	uint64_t window_bytes; /* of the rank that has the most */
	uint64_t symmetric_bytes;
	uint64_t private_bytes;
	uint64_t device_bytes; /* of the GPU; 0: unknown */
	double buffer_seconds; /* to make the buffer, and the comm; the slowest rank */
	double comm_seconds;
	uint64_t values; /* compared, all ranks */
	uint64_t wrong;
};

/* A case whose phases are timed apart has three lines. */
#define PERF_MAX_LINES (3 * PERF_MAX_CASES)

/* lines has room for PERF_MAX_LINES. -1 only for want of memory. */
int perf_lines_make(const struct perf_run *run, struct perf_line *lines, int *count);

/* A phase by itself moves no defined number of bytes. */
bool perf_line_has_bandwidth(const struct perf_line *line);

/* "HT dispatch", "LL combine" */
const char *perf_case_name(const struct perf_case *c);

/* "host", "cuda": the values of options->backend */
const char *perf_backend_name(int backend);

/* "symmetric", "ordinary", or "-" where it makes no difference. */
const char *perf_memory_name(unsigned memory);

/* The words of --dtype and --quant. */
const char *perf_dtype_name(int dtype);
const char *perf_quant_name(int quant);

#endif
