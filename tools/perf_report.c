/* SPDX-License-Identifier: MIT */
/* tools/perf_report.c - moeep-perf's results as a table, as JSON and as CSV. */
#include <config.h>

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "perf_report.h"

/* One line of the table. */
struct line {
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
	uint64_t values; /* compared, all ranks */
	uint64_t wrong;
};

/* A case whose phases are timed apart has three lines. */
#define MAX_LINES (3 * PERF_MAX_CASES)

const char *perf_case_name(const struct perf_case *c)
{
	if (c->mode == MOEEP_MODE_HT) {
		return c->op == PERF_DISPATCH ? "HT dispatch" : "HT combine";
	}
	return c->op == PERF_DISPATCH ? "LL dispatch" : "LL combine";
}

const char *perf_memory_name(unsigned memory)
{
	return memory == PERF_SYMMETRIC ? "symmetric" : memory == PERF_ORDINARY ? "ordinary" : "-";
}

static const char *dtype_text(int dtype)
{
	return dtype == MOEEP_FP8_E4M3 ? "fp8" : moeep_dtype_name(dtype);
}

static const char *quant_text(int quant)
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
static int line_times(const struct perf_run *run, int index, int phase, struct line *line)
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

static int line_bytes(const struct perf_run *run, int index, struct line *line)
{
	const struct perf_case *c = &run->cases[index];
	const struct perf_outcome *outcomes = run->shared->outcome[index];
	int ranks = run->options->ranks;
	int variants = (c->mode == MOEEP_MODE_HT ? &run->plan->ht : &run->plan->ll)->shape.variants;
	int64_t count = run->shared->iterations[index];
	int64_t first = perf_warmup(run->options, c->mode) + 1;
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
		line->values += o->check.values;
		line->wrong += o->check.wrong;
	}
	return 0;
}

static int lines_make(const struct perf_run *run, struct line *lines, int *count)
{
	int n = 0;

	for (int i = 0; i < run->num_cases; i++) {
		bool apart = run->options->phases && run->cases[i].mode == MOEEP_MODE_LL;

		for (int phase = apart ? 1 : -1; phase >= -1; phase--) {
			struct line *line = &lines[n++];

			*line = (struct line){.c = &run->cases[i]};
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

/* A phase by itself moves no defined number of bytes. */
static bool has_bandwidth(const struct line *line)
{
	return !strcmp(line->phase, "both") && line->p50 > 0;
}

void perf_report_start(const struct perf_run *run)
{
	const struct perf_options *o = run->options;
	char needs[HUMAN_TEXT], has[HUMAN_TEXT];

	if (o->format != PERF_TEXT || o->quiet) {
		return;
	}
	if (o->demo) {
		printf("Expert parallelism between %d ranks of the host backend on this machine. "
		       "Dispatch moves\neach token's row to the ranks that hold its %d experts; "
		       "combine sums the experts' rows\nback at the token's own rank. HT is the "
		       "high-throughput form (training, prefill), LL the\nlow-latency form "
		       "(decode). Symmetric rows are written and read by the peers in place;\n"
		       "ordinary rows are copied once more. Every result is compared bit for bit "
		       "with one that\nthis tool computes by itself.\n\n",
		       o->ranks, o->topk);
	}
	printf("moeep-perf %s, library %s: %d %s, host backend\n", MOEEP_VERSION_STRING,
	       moeep_version_string(), o->ranks,
	       o->threads      ? "ranks in one process"
	       : o->ranks == 1 ? "process"
			       : "processes");
	if (o->modes & MOEEP_MODE_HT) {
		printf("HT: %s%" PRId64 " tokens a rank, hidden %" PRId64 ", top-%d of %d, "
		       "dispatch %s%s, combine %s, %s rows%s\n",
		       o->uneven ? "up to " : "", o->tokens, o->hidden, o->topk, o->experts,
		       dtype_text(o->dtype), o->dtype == MOEEP_FP8_E4M3 ? " with FP32 scales" : "",
		       dtype_text(o->combine_dtype),
		       o->row_layout == MOEEP_ROWS_FLAT ? "flat" : "expert-major",
		       o->cached ? ", cached routing" : "");
	}
	if (o->modes & MOEEP_MODE_LL) {
		printf("LL: %s%" PRId64 " tokens a rank, hidden %" PRId64 ", top-%d of %d, "
		       "dispatch %s, cast to FP8: %s, combine %s, %" PRId64 " rows an expert\n",
		       o->uneven ? "up to " : "", o->ll_tokens, o->hidden, o->topk, o->experts,
		       dtype_text(o->dtype), quant_text(o->quant), dtype_text(o->combine_dtype),
		       run->plan->ll_capacity);
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

static void text_line(const struct line *line)
{
	char name[32], p50[HUMAN_TEXT], p99[HUMAN_TEXT], least[HUMAN_TEXT], logical[HUMAN_TEXT];
	char wire[HUMAN_TEXT], bytes[HUMAN_TEXT], values[HUMAN_TEXT], wrong[HUMAN_TEXT];
	bool whole = !strcmp(line->phase, "both");

	snprintf(name, sizeof(name), "%s%s%s", perf_case_name(line->c), whole ? "" : " ",
		 whole ? "" : line->phase);
	strcpy(logical, "-");
	strcpy(wire, "-");
	if (has_bandwidth(line)) {
		snprintf(logical, sizeof(logical), "%.3f", line->logical_bytes / line->p50 * 1e-9);
		snprintf(wire, sizeof(wire), "%.3f", line->wire_bytes / line->p50 * 1e-9);
	}
	printf("%-16s %-9s %5" PRId64 " %8s %8s %8s %8s %8s %9s", name,
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
static void text_bytes(const struct line *lines, int count, unsigned mode, bool slots)
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

static void report_text(const struct perf_run *run, const struct line *lines, int count,
			uint64_t values, uint64_t wrong)
{
	bool slots = (run->options->memories & PERF_SYMMETRIC) != 0;

	printf("%32s %26s %17s %9s %14s\n", "", "time of the slowest rank", "GB/s of a rank",
	       "bytes of", "results");
	printf("%-16s %-9s %5s %8s %8s %8s %8s %8s %9s %8s %5s\n", "operation", "rows in", "calls",
	       "p50", "p99", "least", "logical", "wire", "a rank", "checked", "wrong");
	for (int i = 0; i < count; i++) {
		text_line(&lines[i]);
	}
	if (!run->options->quiet) {
		printf("\n"
		       "Time: of one call, on the rank that was slowest in it. The exchange of "
		       "counts "
		       "and all copies are\n"
		       "      inside; the barrier before the call is not. Routings and inputs take "
		       "turns.\n");
		if (run->options->phases) {
			printf("      LL: all ranks meet between SEND and RECV; the line without a "
			       "phase is their sum.\n");
		}
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
		printf("Transport: %s.\n", run->shared->transport);
	}
	printf("%sresults checked: %" PRIu64 " values, %" PRIu64 " wrong\n",
	       run->options->quiet ? "" : "\n", values, wrong);
}

static void report_config(const struct perf_run *run, struct json *json)
{
	const struct perf_options *o = run->options;

	json_object(json, "config");
	json_int(json, "ranks", o->ranks);
	json_string(json, "ranks_are", o->threads ? "threads" : "processes");
	json_string(json, "backend", "host");
	json_string(json, "transport", run->shared->transport);
	json_int(json, "tokens", o->tokens);
	json_int(json, "ll_tokens", o->ll_tokens);
	json_int(json, "ll_capacity", run->plan->ll_capacity);
	json_bool(json, "uneven", o->uneven);
	json_int(json, "hidden", o->hidden);
	json_int(json, "topk", o->topk);
	json_int(json, "experts", o->experts);
	json_string(json, "dtype", dtype_text(o->dtype));
	json_string(json, "combine_dtype", dtype_text(o->combine_dtype));
	json_string(json, "partial_dtype",
		    o->partial_dtype ? dtype_text(o->partial_dtype) : dtype_text(o->combine_dtype));
	json_string(json, "index_dtype", moeep_dtype_name(o->index_dtype));
	json_string(json, "quant", quant_text(o->quant));
	json_string(json, "layout", o->row_layout == MOEEP_ROWS_FLAT ? "flat" : "expert-major");
	json_int(json, "alignment", o->alignment);
	json_bool(json, "cached", o->cached);
	json_string(json, "routing", o->routing);
	json_double(json, "masked", o->masked);
	json_uint(json, "seed", o->seed);
	json_uint(json, "memory_planned_bytes", run->plan->bytes);
	json_uint(json, "memory_available_bytes", run->plan->memory.available);
	json_bool(json, "reduced", run->plan->reduced);
	json_close(json);
}

static void report_json(const struct perf_run *run, const struct line *lines, int count,
			uint64_t values, uint64_t wrong)
{
	struct json json;

	json_start(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "program", "moeep-perf");
	json_string(&json, "version", MOEEP_VERSION_STRING);
	json_string(&json, "library_version", moeep_version_string());
	report_config(run, &json);
	json_array(&json, "results");
	for (int i = 0; i < count; i++) {
		const struct line *line = &lines[i];

		json_object(&json, NULL);
		json_string(&json, "mode", line->c->mode == MOEEP_MODE_HT ? "ht" : "ll");
		json_string(&json, "operation",
			    line->c->op == PERF_DISPATCH ? "dispatch" : "combine");
		json_string(&json, "phase", line->phase);
		json_string(&json, "rows_in",
			    line->c->memory ? perf_memory_name(line->c->memory) : NULL);
		json_int(&json, "calls", line->calls);
		json_double(&json, "p50_seconds", line->p50);
		json_double(&json, "p99_seconds", line->p99);
		json_double(&json, "least_seconds", line->least);
		json_double(&json, "mean_seconds", line->mean);
		if (has_bandwidth(line)) {
			json_double(&json, "logical_bytes", line->logical_bytes);
			json_double(&json, "wire_bytes", line->wire_bytes);
			json_double(&json, "logical_gb_per_second",
				    line->logical_bytes / line->p50 * 1e-9);
			json_double(&json, "wire_gb_per_second",
				    line->wire_bytes / line->p50 * 1e-9);
		}
		json_uint(&json, "window_bytes", line->window_bytes);
		json_uint(&json, "symmetric_bytes", line->symmetric_bytes);
		json_uint(&json, "private_bytes", line->private_bytes);
		json_uint(&json, "values_checked", line->values);
		json_uint(&json, "values_wrong", line->wrong);
		json_close(&json);
	}
	json_close(&json);
	json_uint(&json, "values_checked", values);
	json_uint(&json, "values_wrong", wrong);
	json_bool(&json, "ok", wrong == 0);
	json_close(&json);
}

static void report_csv(const struct perf_run *run, const struct line *lines, int count)
{
	printf("mode,operation,phase,rows_in,ranks,tokens,hidden,topk,experts,dtype,combine_dtype,"
	       "quant,routing,calls,p50_seconds,p99_seconds,least_seconds,mean_seconds,"
	       "logical_gb_per_second,wire_gb_per_second,window_bytes,symmetric_bytes,"
	       "private_bytes,values_checked,values_wrong\n");
	for (int i = 0; i < count; i++) {
		const struct perf_options *o = run->options;
		const struct line *line = &lines[i];
		bool ht = line->c->mode == MOEEP_MODE_HT;

		printf("%s,%s,%s,%s,%d,%" PRId64 ",%" PRId64 ",%d,%d,%s,%s,%s,", ht ? "ht" : "ll",
		       line->c->op == PERF_DISPATCH ? "dispatch" : "combine", line->phase,
		       line->c->memory ? perf_memory_name(line->c->memory) : "", o->ranks,
		       ht ? o->tokens : o->ll_tokens, o->hidden, o->topk, o->experts,
		       dtype_text(o->dtype), dtype_text(o->combine_dtype),
		       ht ? "" : quant_text(o->quant));
		print_csv(stdout, o->routing);
		printf(",%" PRId64 ",%.9g,%.9g,%.9g,%.9g,", line->calls, line->p50, line->p99,
		       line->least, line->mean);
		if (has_bandwidth(line)) {
			printf("%.6g,%.6g", line->logical_bytes / line->p50 * 1e-9,
			       line->wire_bytes / line->p50 * 1e-9);
		} else {
			putchar(',');
		}
		printf(",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 "\n",
		       line->window_bytes, line->symmetric_bytes, line->private_bytes, line->values,
		       line->wrong);
	}
}

/* The first wrong value of all, by case and rank. */
static void report_first(const struct perf_run *run)
{
	for (int i = 0; i < run->num_cases; i++) {
		for (int rank = 0; rank < run->options->ranks; rank++) {
			const struct check_result *check = &run->shared->outcome[i][rank].check;

			if (check->wrong > 0) {
				fprintf(stderr,
					"moeep-perf: wrong result of %s (rows in memory: %s): %s\n",
					perf_case_name(&run->cases[i]),
					perf_memory_name(run->cases[i].memory), check->first);
				return;
			}
		}
	}
}

int perf_report_results(const struct perf_run *run, uint64_t *wrong)
{
	struct line lines[MAX_LINES];
	uint64_t values = 0, bad = 0;
	int count;

	if (lines_make(run, lines, &count)) {
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
		report_json(run, lines, count, values, bad);
	} else if (run->options->format == PERF_CSV) {
		report_csv(run, lines, count);
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
