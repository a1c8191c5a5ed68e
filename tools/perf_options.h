/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_options.h - moeep-perf's options as they were given, and what follows from them by
 * arithmetic alone.
 *
 * What needs the routing or the machine's memory is perf_plan.h's.
 */
#ifndef MOEEP_TOOLS_PERF_OPTIONS_H
#define MOEEP_TOOLS_PERF_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include <moeep/moeep.h>

#define PERF_MAX_RANKS	  256
#define PERF_MAX_ITERS	  1000000
#define PERF_MAX_VARIANTS 8
#define PERF_MAX_GRAPH	  1000

#define PERF_DEFAULT_RANKS     8
#define PERF_DEFAULT_TOKENS    4096
#define PERF_DEFAULT_LL_TOKENS 128

/* Exit status. */
#define PERF_EXIT_OK	 0
#define PERF_EXIT_FAILED 1
#define PERF_EXIT_USAGE	 2

enum perf_format { PERF_TEXT, PERF_JSON, PERF_CSV };

/* Memory that HT receives into, and that combine reads from. */
#define PERF_SYMMETRIC 1u
#define PERF_ORDINARY  2u

struct perf_options {
	int ranks;
	bool ranks_given;
	bool threads;
	int backend;	   /* moeep_backend_t, -1: not given; host or CUDA once that is decided */
	int emulate_nodes; /* "hosts" that the ranks are dealt to in blocks; 0: this one */
	int sms;	   /* CUDA: of an operation; 0: the library's default */
	int graph;	   /* CUDA: calls in a graph; 0: none */
	bool compare_host; /* CUDA: every checked call is made with the host backend too */
	unsigned modes;	   /* MOEEP_MODE_* */
	int64_t tokens;	   /* HT, of a rank */
	bool tokens_given;
	int64_t ll_tokens;
	bool ll_tokens_given;
	int64_t hidden;
	int topk; /* 0 until it is known from the routing */
	int experts;
	int dtype; /* of dispatch, both modes */
	int combine_dtype;
	int partial_dtype; /* as in moeep_buffer_config_t */
	int index_dtype;
	int quant;
	int scale_layout;
	unsigned memories; /* PERF_SYMMETRIC, PERF_ORDINARY */
	int row_layout;	   /* HT */
	int alignment;
	bool cached;
	bool phases;
	const char *routing;
	const char *trace; /* --demo: the routing to take if the file is there */
	double masked;
	bool uneven;
	int64_t iters;	/* 0: as many as fit in `seconds` */
	double seconds; /* of timed calls for each row of the table */
	int64_t warmup; /* -1: two (HT) or ten (LL, GPUs) */
	uint64_t seed;
	uint32_t timeout_ms; /* 0: the library's default */
	bool check_all;
	enum perf_format format;
	bool demo;
	bool quiet;
	bool progress;
};

/*
 * Read the command line: 0, or, if nothing remains to be done, 1 with the exit status in *status.
 * What is wrong is said on standard error.
 */
int perf_options_parse(int argc, char **argv, struct perf_options *options, int *status);

/* Bytes of a row of elements, and the number of its FP8 scales. */
static inline int64_t perf_row_bytes(const struct perf_options *o, int dtype)
{
	return o->hidden * (int64_t)moeep_dtype_size(dtype);
}

static inline int32_t perf_scale_count(const struct perf_options *o)
{
	return (int32_t)((o->hidden + 127) / 128);
}

/* Calls before the timed ones, after the first, which is checked. */
static inline int64_t perf_warmup(const struct perf_options *o, unsigned mode)
{
	bool few = mode == MOEEP_MODE_HT && o->backend != MOEEP_BACKEND_CUDA;

	return o->warmup >= 0 ? o->warmup : few ? 2 : 10;
}

/* The "host" of a rank; they are numbered by their lowest ranks. */
static inline int perf_node(const struct perf_options *o, int rank)
{
	return o->emulate_nodes ? rank * o->emulate_nodes / o->ranks : 0;
}

#endif
