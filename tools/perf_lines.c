/* SPDX-License-Identifier: MIT */
/* tools/perf_lines.c - from the ranks' times and counts to the lines of a report. */
#include <config.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "perf_lines.h"

const char *perf_case_name(const struct perf_case *c)
{
	if (c->mode == MOEEP_MODE_HT) {
		return c->op == PERF_DISPATCH ? "HT dispatch" : "HT combine";
	}
	return c->op == PERF_DISPATCH ? "LL dispatch" : "LL combine";
}

const char *perf_backend_name(int backend)
{
	return backend == MOEEP_BACKEND_CUDA ? "cuda" : "host";
}

const char *perf_memory_name(unsigned memory)
{
	return memory == PERF_SYMMETRIC ? "symmetric" : memory == PERF_ORDINARY ? "ordinary" : "-";
}

const char *perf_dtype_name(int dtype)
{
	return dtype == MOEEP_FP8_E4M3 ? "fp8" : moeep_dtype_name(dtype);
}

const char *perf_quant_name(int quant)
{
	static const char *const names[] = {"none", "fp8", "fp8-pow2", "fp8-ue8m0"};

	return names[quant];
}

/* Bytes of the rows of one variant: delivered or summed, and sent to another rank; all ranks. */
static int variant_bytes(const struct perf_run *run, const struct perf_case *c, int variant,
			 double *logical, double *wire)
{
	const struct perf_options *o = run->options;
	bool ht = c->mode == MOEEP_MODE_HT, flat = ht && o->row_layout == MOEEP_ROWS_FLAT;
	int partial = flat || !o->partial_dtype ? o->combine_dtype : o->partial_dtype;
	int64_t row = perf_row_bytes(o, o->combine_dtype), sent = perf_row_bytes(o, partial);
	struct routing_sums sums;

	if (routing_sum(ht ? &run->plan->ht : &run->plan->ll, variant,
			flat ? ROWS_FLAT : ROWS_CAPACITY, 1, &sums)) {
		return -1;
	}
	if (c->op == PERF_DISPATCH) {
		row = perf_row_bytes(o, o->dtype);
		if (!ht && o->quant != MOEEP_QUANT_NONE) {
			row = o->hidden +
			      perf_scale_count(o) * (o->quant == MOEEP_QUANT_FP8_UE8M0 ? 1 : 4);
		} else if (ht && o->dtype == MOEEP_FP8_E4M3) {
			row += perf_scale_count(o) * 4;
		}
		sent = row;
	}
	*logical = (double)(flat ? sums.pairs : sums.choices) * (double)row;
	*wire = (double)sums.pairs_away * (double)sent;
	return 0;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Nearest rank: the smallest value that `share` of all do not exceed. */
static double percentile(const uint64_t *sorted, int64_t count, double share)
{
	int64_t at = (int64_t)ceil(share * (double)count) - 1;

	return (double)sorted[at < 0 ? 0 : at] * 1e-9;
}

/* phase -1: the sum of both. */
static int line_times(const struct perf_run *run, int index, int phase, struct perf_line *line)
{
	int64_t count = run->shared->iterations[index];
	uint64_t *slowest = calloc((size_t)count + 1, sizeof(*slowest));
	double sum = 0;

	if (!slowest) {
		return -1;
	}
	for (int64_t i = 0; i < count; i++) {
		for (int rank = 0; rank < run->options->ranks; rank++) {
			uint64_t ns = phase < 0 ? *perf_run_ns(run, index, 0, i, rank) +
							  *perf_run_ns(run, index, 1, i, rank)
						: *perf_run_ns(run, index, phase, i, rank);

			slowest[i] = ns > slowest[i] ? ns : slowest[i];
		}
		sum += (double)slowest[i];
	}
	qsort(slowest, (size_t)count, sizeof(*slowest), compare);
	line->calls = count;
	line->p50 = percentile(slowest, count, 0.5);
	line->p99 = percentile(slowest, count, 0.99);
	line->least = (double)slowest[0] * 1e-9;
	line->mean = sum * 1e-9 / (double)count;
	line->phase = phase < 0 ? "both" : phase == 0 ? "send" : "recv";
	free(slowest);
	return 0;
}

static int line_bytes(const struct perf_run *run, int index, struct perf_line *line)
{
	const struct perf_case *c = &run->cases[index];
	const struct perf_outcome *outcomes = run->shared->outcome[index];
	int ranks = run->options->ranks;
	int variants = (c->mode == MOEEP_MODE_HT ? &run->plan->ht : &run->plan->ll)->shape.variants;
	/* The calls that the times are of. */
	int64_t count = c->graph ? run->options->graph : run->shared->iterations[index];
	int64_t first = c->graph ? 0 : perf_warmup(run->options, c->mode) + 1;
	double logical, wire;

	for (int v = 0; v < variants; v++) {
		/* Calls take the variants in turn; this many of the timed ones took this one. */
		int64_t skip = (v - first % variants + variants) % variants;
		double share = skip < count
				       ? (double)((count - skip - 1) / variants + 1) / (double)count
				       : 0;

		if (variant_bytes(run, c, v, &logical, &wire)) {
			return -1;
		}
		line->logical_bytes += share * logical / ranks;
		line->wire_bytes += share * wire / ranks;
	}
	for (int rank = 0; rank < ranks; rank++) {
		const struct perf_outcome *o = &outcomes[rank];

		line->window_bytes =
			o->window_bytes > line->window_bytes ? o->window_bytes : line->window_bytes;
		line->symmetric_bytes = o->symmetric_bytes > line->symmetric_bytes
						? o->symmetric_bytes
						: line->symmetric_bytes;
		line->private_bytes = o->private_bytes > line->private_bytes ? o->private_bytes
									     : line->private_bytes;
		line->device_bytes =
			o->device_bytes > line->device_bytes ? o->device_bytes : line->device_bytes;
		line->buffer_seconds = fmax(line->buffer_seconds, (double)o->buffer_ns * 1e-9);
		line->comm_seconds =
			fmax(line->comm_seconds, (double)run->shared->comm_ns[rank] * 1e-9);
		line->values += o->check.values;
		line->wrong += o->check.wrong;
	}
	return 0;
}

int perf_lines_make(const struct perf_run *run, struct perf_line *lines, int *count)
{
	int n = 0;

	for (int i = 0; i < run->num_cases; i++) {
		bool apart = perf_phases(run->options, &run->cases[i]) == 2;

		for (int phase = apart ? 1 : -1; phase >= -1; phase--) {
			struct perf_line *line = &lines[n++];

			*line = (struct perf_line){.c = &run->cases[i]};
			/* In the order send, recv, both. */
			if (line_times(run, i, phase < 0 ? -1 : 1 - phase, line) ||
			    line_bytes(run, i, line)) {
				return -1;
			}
		}
	}
	*count = n;
	return 0;
}

bool perf_line_has_bandwidth(const struct perf_line *line)
{
	return !strcmp(line->phase, "both") && line->p50 > 0;
}
