/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_run.h - what is run, what one rank does of it, and what it finds out.
 *
 * Ranks are processes or threads; what they find out goes to the parent through memory that all
 * share.
 */
#ifndef MOEEP_TOOLS_PERF_RUN_H
#define MOEEP_TOOLS_PERF_RUN_H

#include <stdatomic.h>

#include <moeep/moeep.h>

#include "perf_check.h"
#include "perf_gpus.h"
#include "perf_options.h"
#include "perf_plan.h"

enum perf_op { PERF_DISPATCH, PERF_COMBINE };

/* One operation in one kind of memory. */
struct perf_case {
	unsigned mode; /* MOEEP_MODE_HT or MOEEP_MODE_LL */
	enum perf_op op;
	unsigned memory; /* PERF_SYMMETRIC or PERF_ORDINARY; 0 where it makes no difference */
	bool graph;	 /* a call is the replay of a CUDA graph of options->graph calls */
};

#define PERF_MAX_CASES	16
#define PERF_MAX_PHASES 2
#define PERF_ERROR_TEXT 384

/* Of one rank in one case. */
struct perf_outcome {
	struct check_result check;
	uint64_t window_bytes;
	uint64_t symmetric_bytes;
	uint64_t private_bytes;
	uint64_t device_bytes; /* of the GPU, that creating the buffer and its handles took */
	uint64_t buffer_ns;    /* that creating the buffer took */
};

/* Handed to the network by one rank. */
struct perf_network {
	uint64_t requests;
	uint64_t bytes;
	uint64_t own_bytes; /* of them, for ranks of its own host */
};

/* In shared memory. Each field has one writer; readers come after a barrier or the ranks' end. */
struct perf_shared {
	moeep_unique_id_t id;	   /* where the ranks meet */
	moeep_unique_id_t twin_id; /* and where their twins with the host backend do */
	atomic_int arrived;	   /* ranks that are ready to join */
	atomic_int failed;	   /* the first rank that failed, plus 1 */
	atomic_int case_now;	   /* for the progress line */
	atomic_llong calls_done;   /* of this case */
	atomic_llong calls_to_do;
	atomic_int finished; /* ranks that are through */
	int64_t iterations[PERF_MAX_CASES];
	char transport[32]; /* from rank 0 to its last peer */
	uint64_t warm_ns[PERF_MAX_RANKS];
	uint64_t comm_ns[PERF_MAX_RANKS]; /* that creating the comm took */
	struct perf_network network[PERF_MAX_RANKS];
	char error[PERF_MAX_RANKS][PERF_ERROR_TEXT];
	struct perf_outcome outcome[PERF_MAX_CASES][PERF_MAX_RANKS];
	uint64_t ns[]; /* [case, phase, iteration, rank] */
};

struct perf_run {
	const struct perf_options *options;
	const struct perf_plan *plan;
	const struct perf_gpus *gpus;
	int num_cases;
	struct perf_case cases[PERF_MAX_CASES];
	int64_t most_iterations;
	struct perf_shared *shared;
	size_t shared_bytes;
};

/* Play one rank. 0, or 1 with shared->error[rank] set. Wrong results are not a failure of this. */
int perf_run_rank(struct perf_run *run, int rank);

#define PERF_LEAST_ITERS     3
#define PERF_LEAST_GPU_ITERS 50
#define PERF_MOST_HT_ITERS   200
#define PERF_MOST_LL_ITERS   5000

/* LL's phases are called apart if that is asked for, but in a graph. */
static inline int perf_phases(const struct perf_options *o, const struct perf_case *c)
{
	return o->phases && c->mode == MOEEP_MODE_LL && !c->graph ? 2 : 1;
}

static inline int perf_phase(int phases, int phase)
{
	return phases == 1 ? MOEEP_PHASE_BOTH : phase == 0 ? MOEEP_PHASE_SEND : MOEEP_PHASE_RECV;
}

static inline uint64_t *perf_run_ns(const struct perf_run *run, int index, int phase,
				    int64_t iteration, int rank)
{
	int64_t at = ((int64_t)index * PERF_MAX_PHASES + phase) * run->most_iterations + iteration;

	return run->shared->ns + at * run->options->ranks + rank;
}

#endif
