/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_plan.h - from the options to a run: the routings, defaults that depend on them, and
 * sizes that fit the machine.
 */
#ifndef MOEEP_TOOLS_PERF_PLAN_H
#define MOEEP_TOOLS_PERF_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include <moeep/moeep.h>

#include "output.h"
#include "perf_gpus.h"
#include "perf_options.h"
#include "routing.h"
#include "rows.h"

/* What runs: the routings of both modes, and the sizes that follow from them. */
struct perf_plan {
	struct routing_source source;
	struct routing ht;
	struct routing ll;
	int64_t ht_rows;	    /* most that a rank receives, padding included */
	int64_t ll_capacity;	    /* rows of each expert */
	int copies;		    /* of HT's inputs; LL has PERF_MAX_VARIANTS */
	uint64_t bytes;		    /* of memory that all ranks together use at once, about */
	struct memory_limit memory; /* of the machine, or of the GPUs that are used */
	bool reduced;		    /* ranks or tokens are fewer than the defaults */
};

/*
 * Open the routing and choose what was not given so that it fits in half of the memory. 0, or -1
 * with a message on standard error; perf_plan_free() what it gave.
 */
int perf_plan_make(struct perf_options *options, const struct perf_gpus *gpus,
		   struct perf_plan *plan);
void perf_plan_free(struct perf_plan *plan);

static inline enum rows_layout perf_ht_layout(const struct perf_options *o)
{
	return o->row_layout == MOEEP_ROWS_EXPERT_MAJOR ? ROWS_GROUPED : ROWS_FLAT;
}

/* The buffer of one mode; the two modes have one each, so that its bytes can be told apart. */
void perf_buffer_config(const struct perf_options *o, const struct perf_plan *plan, unsigned mode,
			moeep_buffer_config_t *config);

#endif
