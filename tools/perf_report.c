/* SPDX-License-Identifier: MIT */
/* tools/perf_report.c - moeep-perf's results for people: what is run, the table, what is wrong. */
#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "output.h"
#include "perf_export.h"
#include "perf_lines.h"
#include "perf_report.h"

/* Which GPUs, or why none. */
static void start_backend(const struct perf_run *run)
{
	const struct perf_gpus *gpus = run->gpus;
	int sms = run->options->sms;

	if (run->options->backend != MOEEP_BACKEND_CUDA) {
		printf("GPUs: none used (");
		print_text(stdout, gpus->why);
		printf(")\n");
		return;
	}
	printf("GPUs: %d, the first of them %s with %d SMs, driver for CUDA %d.%d; SMs of an "
	       "operation: ",
	       gpus->count, gpus->gpu[0].name, gpus->gpu[0].sms, gpus->version / 1000,
	       gpus->version % 1000 / 10);
	if (sms) {
		printf("%d at most\n", sms);
	} else {
		printf("the library's default\n");
	}
}

void perf_report_start(const struct perf_run *run)
{
	const struct perf_options *o = run->options;
	char needs[HUMAN_TEXT], has[HUMAN_TEXT];

	if (o->format != PERF_TEXT || o->quiet) {
		return;
	}
	if (o->demo) {
		printf("Expert parallelism between %d ranks of the %s backend on this machine. "
		       "Dispatch moves\neach token's row to the ranks that hold its %d experts; "
		       "combine sums the experts' rows\nback at the token's own rank. HT is the "
		       "high-throughput form (training, prefill), LL the\nlow-latency form "
		       "(decode). Symmetric rows are written and read by the peers in place;\n"
		       "ordinary rows are copied once more. Every result is compared bit for bit "
		       "with one that\nthis tool computes by itself.\n\n",
		       o->ranks, perf_backend_name(o->backend), o->topk);
	}
	printf("moeep-perf %s, library %s: %d %s, %s backend\n", MOEEP_VERSION_STRING,
	       moeep_version_string(), o->ranks,
	       o->threads      ? "ranks in one process"
	       : o->ranks == 1 ? "process"
			       : "processes",
	       perf_backend_name(o->backend));
	start_backend(run);
	if (o->modes & MOEEP_MODE_HT) {
		printf("HT: %s%" PRId64 " tokens a rank, hidden %" PRId64 ", top-%d of %d, "
		       "dispatch %s%s, combine %s, %s rows%s\n",
		       o->uneven ? "up to " : "", o->tokens, o->hidden, o->topk, o->experts,
		       perf_dtype_name(o->dtype),
		       o->dtype == MOEEP_FP8_E4M3 ? " with FP32 scales" : "",
		       perf_dtype_name(o->combine_dtype),
		       o->row_layout == MOEEP_ROWS_FLAT ? "flat" : "expert-major",
		       o->cached ? ", cached routing" : "");
	}
	if (o->modes & MOEEP_MODE_LL) {
		printf("LL: %s%" PRId64 " tokens a rank, hidden %" PRId64 ", top-%d of %d, "
		       "dispatch %s, cast to FP8: %s, combine %s, %" PRId64 " rows an expert\n",
		       o->uneven ? "up to " : "", o->ll_tokens, o->hidden, o->topk, o->experts,
		       perf_dtype_name(o->dtype), perf_quant_name(o->quant),
		       perf_dtype_name(o->combine_dtype), run->plan->ll_capacity);
	}
	printf("Routing: ");
	print_text(stdout, o->routing);
	if (o->masked > 0) {
		printf(", %g of the choices masked", o->masked);
	}
	printf("; memory: about %s", human_bytes(run->plan->bytes, needs));
	if (run->plan->memory.available) {
		printf(" of the %s left by %s", human_bytes(run->plan->memory.available, has),
		       run->plan->memory.limited_by);
	}
	printf("%s\n\n", run->plan->reduced ? " (sizes reduced to fit in half of it)" : "");
	fflush(stdout);
}

static void text_line(const struct perf_line *line)
{
	char name[32], p50[HUMAN_TEXT], p99[HUMAN_TEXT], least[HUMAN_TEXT], logical[HUMAN_TEXT];
	char wire[HUMAN_TEXT], bytes[HUMAN_TEXT], values[HUMAN_TEXT], wrong[HUMAN_TEXT];
	bool whole = !strcmp(line->phase, "both");

	snprintf(name, sizeof(name), "%s%s%s%s", perf_case_name(line->c), whole ? "" : " ",
		 whole ? "" : line->phase, line->c->graph ? " graph" : "");
	strcpy(logical, "-");
	strcpy(wire, "-");
	if (perf_line_has_bandwidth(line)) {
		snprintf(logical, sizeof(logical), "%.3f", line->logical_bytes / line->p50 * 1e-9);
		snprintf(wire, sizeof(wire), "%.3f", line->wire_bytes / line->p50 * 1e-9);
	}
	printf("%-17s %-9s %5" PRId64 " %8s %8s %8s %8s %8s %9s", name,
	       perf_memory_name(line->c->memory), line->calls, human_time(line->p50, p50),
	       human_time(line->p99, p99), human_time(line->least, least), logical, wire,
	       human_bytes(line->window_bytes + line->symmetric_bytes + line->private_bytes,
			   bytes));
	if (whole) {
		printf(" %8s %5s", human_count(line->values, values),
		       human_count(line->wrong, wrong));
	}
	putchar('\n');
}

/* What the sums in the table are made of. */
static void text_bytes(const struct perf_line *lines, int count, unsigned mode, bool slots)
{
	char window[HUMAN_TEXT], own[HUMAN_TEXT], symmetric[HUMAN_TEXT];
	uint64_t most = 0;
	int last = -1;

	for (int i = 0; i < count; i++) {
		if (lines[i].c->mode == mode) {
			last = i;
			most = lines[i].symmetric_bytes > most ? lines[i].symmetric_bytes : most;
		}
	}
	if (last < 0) {
		return;
	}
	printf("      %s: window %s%s, private %s", mode == MOEEP_MODE_HT ? "HT" : "LL",
	       human_bytes(lines[last].window_bytes, window),
	       mode == MOEEP_MODE_LL && slots ? " with the slot of symmetric rows" : "",
	       human_bytes(lines[last].private_bytes, own));
	if (most > 0) {
		printf(", symmetric rows %s", human_bytes(most, symmetric));
	}
	printf("\n");
}

/* What the times are of. */
static void text_times(const struct perf_options *o)
{
	if (o->backend == MOEEP_BACKEND_CUDA) {
		printf("\n"
		       "Time: of one call, on its stream: from an event right before it to one "
		       "right after it, on the\n"
		       "      rank that was slowest in it. The exchange of counts, barriers and "
		       "all "
		       "copies are inside; the\n"
		       "      barrier before the call, on the stream as well, is not. Routings and "
		       "inputs take turns.\n");
	} else {
		printf("\n"
		       "Time: of one call, on the rank that was slowest in it. The exchange of "
		       "counts and all copies are\n"
		       "      inside; the barrier before the call is not. Routings and inputs take "
		       "turns.\n");
	}
	if (o->phases) {
		printf("      LL: all ranks meet between SEND and RECV; the line without a phase "
		       "is their sum.\n");
	}
	if (o->graph) {
		printf("      graph: of a CUDA graph of %d calls, divided by %d.\n", o->graph,
		       o->graph);
	}
}

/* Time to get ready, and what it took of the GPU. */
static void text_creation(const struct perf_line *lines, int count)
{
	char comm[HUMAN_TEXT], made[HUMAN_TEXT], bytes[HUMAN_TEXT];

	for (int i = 0; i < count; i++) {
		const struct perf_line *line = &lines[i];

		if (i > 0 && line->c->mode == lines[i - 1].c->mode) {
			continue;
		}
		printf("%s of %s: comm %s, buffer %s", i == 0 ? "Creation" : "        ",
		       line->c->mode == MOEEP_MODE_HT ? "HT" : "LL",
		       human_time(line->comm_seconds, comm),
		       human_time(line->buffer_seconds, made));
		if (line->device_bytes > 0) {
			printf("; the GPU gave %s for the buffer and its handles",
			       human_bytes(line->device_bytes, bytes));
		}
		printf("\n");
	}
}

/* By all ranks, from the first call to the last, checks and warm-up included. */
static void text_network(const struct perf_run *run)
{
	struct perf_network all = {0};
	char requests[HUMAN_TEXT], bytes[HUMAN_TEXT], own[HUMAN_TEXT];

	if (!run->options->emulate_nodes) {
		return;
	}
	for (int rank = 0; rank < run->options->ranks; rank++) {
		all.requests += run->shared->network[rank].requests;
		all.bytes += run->shared->network[rank].bytes;
		all.own_bytes += run->shared->network[rank].own_bytes;
	}
	printf("Network between %d emulated nodes: %s requests, %s; to ranks of the own node %s.\n",
	       run->options->emulate_nodes, human_count(all.requests, requests),
	       human_bytes(all.bytes, bytes), human_bytes(all.own_bytes, own));
}

static void report_text(const struct perf_run *run, const struct perf_line *lines, int count,
			uint64_t values, uint64_t wrong)
{
	bool slots = (run->options->memories & PERF_SYMMETRIC) != 0;

	printf("%33s %26s %17s %9s %14s\n", "", "time of the slowest rank", "GB/s of a rank",
	       "bytes of", "results");
	printf("%-17s %-9s %5s %8s %8s %8s %8s %8s %9s %8s %5s\n", "operation", "rows in", "calls",
	       "p50", "p99", "least", "logical", "wire", "a rank", "checked", "wrong");
	for (int i = 0; i < count; i++) {
		text_line(&lines[i]);
	}
	if (!run->options->quiet) {
		text_times(run->options);
		printf("Logical GB/s: bytes of the rows, with their scales, that dispatch delivers "
		       "or "
		       "combine sums, those of\n"
		       "      the own rank included; mean of the ranks, over the p50 time.\n"
		       "Wire GB/s: bytes of the rows that went to another rank, one for each token "
		       "and rank; likewise.\n"
		       "Bytes: the buffer's window, its and its handles' private memory, and "
		       "symmetric rows; not the\n"
		       "      caller's ordinary memory. On the rank that has most:\n");
		text_bytes(lines, count, MOEEP_MODE_HT, slots);
		text_bytes(lines, count, MOEEP_MODE_LL, slots);
		text_creation(lines, count);
		printf("Transport: %s.\n", run->shared->transport);
		text_network(run);
	}
	printf("%sresults checked: %" PRIu64 " values, %" PRIu64 " wrong\n",
	       run->options->quiet ? "" : "\n", values, wrong);
}

/* The first wrong value of all, by case and rank. */
static void report_first(const struct perf_run *run)
{
	for (int i = 0; i < run->num_cases; i++) {
		for (int rank = 0; rank < run->options->ranks; rank++) {
			const struct check_result *check = &run->shared->outcome[i][rank].check;

			if (check->wrong > 0) {
				fprintf(stderr,
					"moeep-perf: wrong result of %s%s (rows in memory: %s): "
					"%s\n",
					perf_case_name(&run->cases[i]),
					run->cases[i].graph ? " in a graph" : "",
					perf_memory_name(run->cases[i].memory), check->first);
				return;
			}
		}
	}
}

int perf_report_results(const struct perf_run *run, uint64_t *wrong)
{
	struct perf_line lines[PERF_MAX_LINES];
	uint64_t values = 0, bad = 0;
	int count;

	if (perf_lines_make(run, lines, &count)) {
		fprintf(stderr, "moeep-perf: no memory to sum up the results\n");
		return -1;
	}
	for (int i = 0; i < count; i++) {
		if (!strcmp(lines[i].phase, "both")) {
			values += lines[i].values;
			bad += lines[i].wrong;
		}
	}
	if (run->options->format == PERF_JSON) {
		perf_export_json(run, lines, count, values, bad);
	} else if (run->options->format == PERF_CSV) {
		perf_export_csv(run, lines, count);
	} else {
		report_text(run, lines, count, values, bad);
	}
	if (output_finish(stdout, "moeep-perf")) {
		return -1;
	}
	if (bad > 0) {
		report_first(run);
	}
	*wrong = bad;
	return 0;
}
