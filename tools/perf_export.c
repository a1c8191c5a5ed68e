/* SPDX-License-Identifier: MIT */
/* tools/perf_export.c - moeep-perf's results as JSON and as CSV. */
#include <config.h>

#include <inttypes.h>
#include <stdio.h>

#include "output.h"
#include "perf_export.h"

static void report_gpus(const struct perf_run *run, struct json *json)
{
	const struct perf_options *o = run->options;

	json_int(json, "driver_version", run->gpus->version);
	json_int(json, "sms", o->sms);
	json_int(json, "graph_calls", o->graph);
	json_bool(json, "compare_host", o->compare_host);
	json_array(json, "gpus");
	for (int i = 0; i < run->gpus->count; i++) {
		json_object(json, NULL);
		json_string(json, "name", run->gpus->gpu[i].name);
		json_int(json, "sms", run->gpus->gpu[i].sms);
		json_uint(json, "memory_bytes", run->gpus->gpu[i].total);
		json_close(json);
	}
	json_close(json);
}

static void report_config(const struct perf_run *run, struct json *json)
{
	const struct perf_options *o = run->options;

	json_object(json, "config");
	json_int(json, "ranks", o->ranks);
	json_string(json, "ranks_are", o->threads ? "threads" : "processes");
	json_string(json, "backend", perf_backend_name(o->backend));
	if (o->backend == MOEEP_BACKEND_CUDA) {
		report_gpus(run, json);
	}
	json_string(json, "transport", run->shared->transport);
	json_int(json, "tokens", o->tokens);
	json_int(json, "ll_tokens", o->ll_tokens);
	json_int(json, "ll_capacity", run->plan->ll_capacity);
	json_bool(json, "uneven", o->uneven);
	json_int(json, "hidden", o->hidden);
	json_int(json, "topk", o->topk);
	json_int(json, "experts", o->experts);
	json_string(json, "dtype", perf_dtype_name(o->dtype));
	json_string(json, "combine_dtype", perf_dtype_name(o->combine_dtype));
	json_string(json, "partial_dtype",
		    o->partial_dtype ? perf_dtype_name(o->partial_dtype)
				     : perf_dtype_name(o->combine_dtype));
	json_string(json, "index_dtype", moeep_dtype_name(o->index_dtype));
	json_string(json, "quant", perf_quant_name(o->quant));
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

void perf_export_json(const struct perf_run *run, const struct perf_line *lines, int count,
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
		const struct perf_line *line = &lines[i];

		json_object(&json, NULL);
		json_string(&json, "mode", line->c->mode == MOEEP_MODE_HT ? "ht" : "ll");
		json_string(&json, "operation",
			    line->c->op == PERF_DISPATCH ? "dispatch" : "combine");
		json_string(&json, "phase", line->phase);
		json_string(&json, "rows_in",
			    line->c->memory ? perf_memory_name(line->c->memory) : NULL);
		json_int(&json, "calls", line->calls);
		json_int(&json, "graph_calls", line->c->graph ? run->options->graph : 0);
		json_double(&json, "p50_seconds", line->p50);
		json_double(&json, "p99_seconds", line->p99);
		json_double(&json, "least_seconds", line->least);
		json_double(&json, "mean_seconds", line->mean);
		if (perf_line_has_bandwidth(line)) {
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
		json_uint(&json, "device_bytes", line->device_bytes);
		json_double(&json, "buffer_create_seconds", line->buffer_seconds);
		json_double(&json, "comm_create_seconds", line->comm_seconds);
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

void perf_export_csv(const struct perf_run *run, const struct perf_line *lines, int count)
{
	printf("mode,operation,phase,rows_in,ranks,tokens,hidden,topk,experts,dtype,combine_dtype,"
	       "quant,routing,calls,p50_seconds,p99_seconds,least_seconds,mean_seconds,"
	       "logical_gb_per_second,wire_gb_per_second,window_bytes,symmetric_bytes,"
	       "private_bytes,values_checked,values_wrong,backend,sms,graph_calls,cached,"
	       "device_bytes,buffer_create_seconds,comm_create_seconds\n");
	for (int i = 0; i < count; i++) {
		const struct perf_options *o = run->options;
		const struct perf_line *line = &lines[i];
		bool ht = line->c->mode == MOEEP_MODE_HT;

		printf("%s,%s,%s,%s,%d,%" PRId64 ",%" PRId64 ",%d,%d,%s,%s,%s,", ht ? "ht" : "ll",
		       line->c->op == PERF_DISPATCH ? "dispatch" : "combine", line->phase,
		       line->c->memory ? perf_memory_name(line->c->memory) : "", o->ranks,
		       ht ? o->tokens : o->ll_tokens, o->hidden, o->topk, o->experts,
		       perf_dtype_name(o->dtype), perf_dtype_name(o->combine_dtype),
		       ht ? "" : perf_quant_name(o->quant));
		print_csv(stdout, o->routing);
		printf(",%" PRId64 ",%.9g,%.9g,%.9g,%.9g,", line->calls, line->p50, line->p99,
		       line->least, line->mean);
		if (perf_line_has_bandwidth(line)) {
			printf("%.6g,%.6g", line->logical_bytes / line->p50 * 1e-9,
			       line->wire_bytes / line->p50 * 1e-9);
		} else {
			putchar(',');
		}
		printf(",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64,
		       line->window_bytes, line->symmetric_bytes, line->private_bytes, line->values,
		       line->wrong);
		printf(",%s,%d,%d,%d,%" PRIu64 ",%.6g,%.6g\n", perf_backend_name(o->backend),
		       o->sms, line->c->graph ? o->graph : 0, ht && o->cached, line->device_bytes,
		       line->buffer_seconds, line->comm_seconds);
	}
}
