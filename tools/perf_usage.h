/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_usage.h - which options moeep-perf has: their names, ids and description.
 *
 * An option is added here, in perf_usage.c, and where perf_options.c reads it; docs follow --help.
 */
#ifndef MOEEP_TOOLS_PERF_USAGE_H
#define MOEEP_TOOLS_PERF_USAGE_H

#include <getopt.h>

/* What perf_long_options gives; -n, -h and -V give their letters. */
enum option_id {
	OPT_THREADS = 256,
	OPT_TIMEOUT,
	OPT_BACKEND,
	OPT_EMULATE_NODES,
	OPT_SMS,
	OPT_GRAPH,
	OPT_COMPARE_HOST,
	OPT_MODE,
	OPT_TOKENS,
	OPT_LL_TOKENS,
	OPT_HIDDEN,
	OPT_TOPK,
	OPT_EXPERTS,
	OPT_DTYPE,
	OPT_COMBINE_DTYPE,
	OPT_PARTIAL_DTYPE,
	OPT_INDEX_DTYPE,
	OPT_QUANT,
	OPT_SCALE_LAYOUT,
	OPT_SYMMETRIC,
	OPT_ORDINARY,
	OPT_LAYOUT,
	OPT_ALIGNMENT,
	OPT_CACHED,
	OPT_PHASES,
	OPT_ROUTING,
	OPT_MASKED,
	OPT_UNEVEN,
	OPT_SEED,
	OPT_ITERS,
	OPT_TIME,
	OPT_WARMUP,
	OPT_CHECK,
	OPT_JSON,
	OPT_CSV,
	OPT_DEMO,
	OPT_TRACE,
	OPT_QUIET,
	OPT_NO_PROGRESS
};

extern const struct option perf_long_options[];
extern const char perf_help_text[];

#endif
