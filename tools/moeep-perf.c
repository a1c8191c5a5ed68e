/* SPDX-License-Identifier: MIT */
/*
 * tools/moeep-perf.c - run, check and time the operations between ranks of this machine.
 *
 * The parent reads the options (perf_options.h), looks for GPUs (perf_gpus.h), makes the routings
 * (perf_plan.h), opens the rendezvous, starts the ranks and watches over them (perf_ranks.h); the
 * ranks report through memory that all share (perf_run.h); the parent sums it up (perf_report.h).
 */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "perf_options.h"
#include "perf_plan.h"
#include "perf_ranks.h"
#include "perf_report.h"
#include "perf_run.h"

/* A line, and with --graph one more for the same calls in a graph. */
static void add_case(struct perf_run *run, unsigned mode, enum perf_op op, unsigned memory)
{
	run->cases[run->num_cases++] = (struct perf_case){mode, op, memory, false};
	if (run->options->graph) {
		run->cases[run->num_cases++] = (struct perf_case){mode, op, memory, true};
	}
}

/* The lines of the table to be, and the memory that all ranks write to. */
static int run_prepare(struct perf_run *run, const struct perf_options *options,
		       const struct perf_plan *plan, const struct perf_gpus *gpus)
{
	static const unsigned memories[] = {PERF_SYMMETRIC, PERF_ORDINARY};
	void *shared;

	*run = (struct perf_run){.options = options, .plan = plan, .gpus = gpus};
	for (int i = 0; i < 2; i++) {
		if ((options->modes & MOEEP_MODE_HT) && (options->memories & memories[i])) {
			add_case(run, MOEEP_MODE_HT, PERF_DISPATCH, memories[i]);
			add_case(run, MOEEP_MODE_HT, PERF_COMBINE, memories[i]);
		}
	}
	if (options->modes & MOEEP_MODE_LL) {
		add_case(run, MOEEP_MODE_LL, PERF_DISPATCH, 0);
		for (int i = 0; i < 2; i++) {
			if (options->memories & memories[i]) {
				add_case(run, MOEEP_MODE_LL, PERF_COMBINE, memories[i]);
			}
		}
	}
	run->most_iterations = options->iters ? options->iters : PERF_MOST_LL_ITERS;
	run->shared_bytes = sizeof(*run->shared) + (size_t)run->num_cases * PERF_MAX_PHASES *
							   (size_t)run->most_iterations *
							   (size_t)options->ranks *
							   sizeof(uint64_t);
	/* Only the pages of calls that are made are ever touched. */
	shared = mmap(NULL, run->shared_bytes, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shared == MAP_FAILED) {
		fprintf(stderr, "moeep-perf: no memory for the times of %lld calls: %s\n",
			(long long)run->most_iterations, strerror(errno));
		return -1;
	}
	run->shared = shared;
	return 0;
}

int main(int argc, char **argv)
{
	struct perf_run run = {.shared = NULL};
	struct perf_options options;
	struct perf_gpus gpus;
	struct perf_plan plan;
	uint64_t wrong = 0;
	int status;

	if (perf_options_parse(argc, argv, &options, &status)) {
		return status;
	}
	/* Ranks that are threads share a GPU's work queues, which must be one a stream. */
	if (options.threads) {
		(void)setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
	}
	if (options.emulate_nodes) {
		(void)setenv("MOEEP_TRANSPORT", "emulated", 1);
	}
	if (perf_gpus_choose(&options, &gpus)) {
		return PERF_EXIT_FAILED;
	}
	if (perf_plan_make(&options, &gpus, &plan)) {
		return PERF_EXIT_USAGE;
	}
	status = PERF_EXIT_FAILED;
	if (run_prepare(&run, &options, &plan, &gpus)) {
		goto out;
	}
	if (!options.threads) {
		/* Threads end with the process; children have to be ended first. */
		perf_ranks_catch_signals();
	}
	perf_report_start(&run);
	if (perf_ranks_run(&run) == 0 && perf_report_results(&run, &wrong) == 0 && wrong == 0) {
		status = PERF_EXIT_OK;
	}
out:
	if (run.shared) {
		munmap(run.shared, run.shared_bytes);
	}
	perf_plan_free(&plan);
	if (perf_ranks_signal()) {
		(void)signal(perf_ranks_signal(), SIG_DFL);
		(void)raise(perf_ranks_signal());
	}
	return status;
}
