/* SPDX-License-Identifier: MIT */
/* tools/perf_plan.c - what was not given, and sizes that fit in the machine's memory. */
#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "perf_plan.h"

#ifndef MOEEP_PKGDATADIR
#define MOEEP_PKGDATADIR "/usr/share/moeep"
#endif

#define DEFAULT_EXPERTS 256
#define DEFAULT_TOPK	8
#define HT_VARIANTS	3

/* On GPUs: more than a cache holds, so that no call finds its inputs there. */
#define GPU_INPUT_BYTES (160 << 20)

#define LEAST_TOKENS 64

static const char default_trace[] =
	MOEEP_PKGDATADIR "/trace_topk.npy," MOEEP_PKGDATADIR "/trace_weights.npy";

void perf_buffer_config(const struct perf_options *o, const struct perf_plan *plan, unsigned mode,
			moeep_buffer_config_t *config)
{
	bool combine_wider = moeep_dtype_size(o->combine_dtype) > moeep_dtype_size(o->dtype);

	*config = (moeep_buffer_config_t){
		.size = sizeof(*config),
		.modes = mode,
		.num_experts = o->experts,
		.max_topk = o->topk,
		.dtype = combine_wider ? o->combine_dtype : o->dtype,
		.hidden = o->hidden,
		.partial_dtype = o->partial_dtype,
	};
	/* A limit of 0 tokens would mean the default. */
	if (mode == MOEEP_MODE_HT) {
		config->ht_max_tokens = o->tokens ? o->tokens : 1;
	} else {
		config->ll_max_tokens = o->ll_tokens ? o->ll_tokens : 1;
		config->ll_capacity = plan->ll_capacity;
		config->ll_combine_slots = (o->memories & PERF_SYMMETRIC) ? 1 : 0;
	}
}

/* Bytes of one rank in one mode; 0 with a message if the library refuses the sizes. */
static uint64_t mode_bytes(const struct perf_options *o, const struct perf_plan *plan,
			   unsigned mode)
{
	bool ht = mode == MOEEP_MODE_HT;
	uint64_t dispatch =
		(uint64_t)perf_row_bytes(o, o->dtype) + (uint64_t)perf_scale_count(o) * 4;
	uint64_t combine = (uint64_t)perf_row_bytes(o, o->combine_dtype);
	uint64_t wider = combine > dispatch ? combine : dispatch;
	uint64_t tokens = (uint64_t)(ht ? o->tokens : o->ll_tokens);
	uint64_t variants = (uint64_t)(ht ? plan->ht : plan->ll).shape.variants;
	uint64_t experts = (uint64_t)(o->experts + o->ranks - 1) / (uint64_t)o->ranks;
	uint64_t rows = ht ? (uint64_t)plan->ht_rows : experts * (uint64_t)plan->ll_capacity;
	uint64_t side = (uint64_t)o->topk * 12 + sizeof(struct routing_row);
	moeep_size_hint_t hint = {.size = sizeof(hint)};
	moeep_buffer_config_t config;
	uint64_t bytes;

	perf_buffer_config(o, plan, mode, &config);
	if (moeep_buffer_size_hint(NULL, 0, o->ranks, &config, &hint)) {
		fprintf(stderr, "moeep-perf: these sizes are not possible: %s\n",
			moeep_error_detail());
		return 0;
	}
	bytes = hint.window_bytes + hint.private_bytes + hint.handle_bytes * variants;
	bytes += tokens * combine + variants * tokens * (uint64_t)o->topk * 20;
	if (ht) {
		/* One region serves as dispatch's output and as combine's input. */
		bytes += (uint64_t)plan->copies * tokens * dispatch + rows * (wider + side);
	} else {
		bytes += variants * tokens * dispatch + rows * (dispatch + combine + side);
	}
	return bytes + (8u << 20);
}

static int ht_variants(const struct perf_options *o)
{
	return o->backend == MOEEP_BACKEND_CUDA ? PERF_MAX_VARIANTS : HT_VARIANTS;
}

/* The routings and sizes for the options as they are. */
static int plan_sizes(const struct perf_options *o, struct perf_plan *plan)
{
	struct routing_shape shape = {
		.ranks = o->ranks,
		.topk = o->topk,
		.experts = o->experts,
		.masked = o->masked,
		.uneven = o->uneven,
		.seed = o->seed,
	};
	struct routing_sums sums;
	uint64_t ht = 0, ll = 0;
	char error[320];

	routing_free(&plan->ht);
	routing_free(&plan->ll);
	plan->ht_rows = 0;
	plan->ll_capacity = 1;
	if (o->modes & MOEEP_MODE_HT) {
		shape.tokens = o->tokens;
		shape.variants = ht_variants(o);
		if (routing_make(&plan->source, &shape, &plan->ht, error, sizeof(error))) {
			goto err;
		}
		for (int v = 0; v < shape.variants; v++) {
			if (routing_sum(&plan->ht, v, perf_ht_layout(o), o->alignment, &sums)) {
				snprintf(error, sizeof(error), "no memory for the routing");
				goto err;
			}
			plan->ht_rows =
				sums.most_rows > plan->ht_rows ? sums.most_rows : plan->ht_rows;
		}
		ht = mode_bytes(o, plan, MOEEP_MODE_HT);
		if (ht == 0) {
			return -1;
		}
	}
	if (o->modes & MOEEP_MODE_LL) {
		shape.tokens = o->ll_tokens;
		shape.variants = PERF_MAX_VARIANTS;
		shape.seed = o->seed + 1;
		if (routing_make(&plan->source, &shape, &plan->ll, error, sizeof(error))) {
			goto err;
		}
		for (int v = 0; v < shape.variants; v++) {
			if (routing_sum(&plan->ll, v, ROWS_CAPACITY, 1, &sums)) {
				snprintf(error, sizeof(error), "no memory for the routing");
				goto err;
			}
			plan->ll_capacity = sums.most_choices > plan->ll_capacity
						    ? sums.most_choices
						    : plan->ll_capacity;
		}
		plan->ll_capacity = (plan->ll_capacity + 15) / 16 * 16;
		ll = mode_bytes(o, plan, MOEEP_MODE_LL);
		if (ll == 0) {
			return -1;
		}
	}
	plan->bytes = (uint64_t)o->ranks * (ht > ll ? ht : ll);
	return 0;

err:
	fprintf(stderr, "moeep-perf: --routing: %s\n", error);
	return -1;
}

/*
 * Less than any plan for the options takes: inputs, outputs and choices. Sizes that no machine has
 * are seen by it before the routing is made.
 */
static uint64_t floor_bytes(const struct perf_options *o)
{
	uint64_t rows =
		(uint64_t)(perf_row_bytes(o, o->dtype) + perf_row_bytes(o, o->combine_dtype));
	uint64_t choices = (uint64_t)o->topk * 8;
	uint64_t ht = (uint64_t)o->tokens * (rows + choices * (uint64_t)ht_variants(o));
	uint64_t ll = (uint64_t)o->ll_tokens * (rows + choices * PERF_MAX_VARIANTS);

	ht = (o->modes & MOEEP_MODE_HT) ? ht : 0;
	ll = (o->modes & MOEEP_MODE_LL) ? ll : 0;
	return (uint64_t)o->ranks * (ht > ll ? ht : ll);
}

/* Less of what was not given; false if there is nothing left to reduce. */
static bool reduce(struct perf_options *o, struct perf_plan *plan)
{
	if (plan->copies > 1) {
		plan->copies--;
		return true;
	}
	plan->reduced = true;
	if ((o->modes & MOEEP_MODE_HT) && !o->tokens_given && o->tokens > LEAST_TOKENS) {
		o->tokens /= 2;
		return true;
	}
	if (!o->ranks_given && o->ranks > 1) {
		o->ranks /= 2;
		o->tokens = o->tokens_given ? o->tokens : PERF_DEFAULT_TOKENS;
		return true;
	}
	return false;
}

/* --demo without --routing: the trace, if it can be read. */
static const char *demo_routing(const struct perf_options *o)
{
	const char *trace = o->trace ? o->trace : default_trace;
	const char *comma = strstr(trace, ".npy,");
	char *path = strndup(trace, comma ? (size_t)(comma - trace) + 4 : strlen(trace));
	bool there = path && access(path, R_OK) == 0;

	free(path);
	return there ? trace : NULL;
}

/* Copies of HT's inputs. */
static int plan_copies(const struct perf_options *o)
{
	int64_t bytes = o->tokens * perf_row_bytes(o, o->dtype);
	int copies = 2;

	while (o->backend == MOEEP_BACKEND_CUDA && copies < PERF_MAX_VARIANTS &&
	       copies * bytes < GPU_INPUT_BYTES) {
		copies++;
	}
	return copies;
}

/* Memory that the ranks can have, where rows lie: of the machine, or of the fullest GPU. */
static void memory_of(const struct perf_options *o, const struct perf_gpus *gpus,
		      struct memory_limit *memory)
{
	if (o->backend != MOEEP_BACKEND_CUDA) {
		(void)memory_limit_get(memory);
		return;
	}
	*memory = (struct memory_limit){.available = UINT64_MAX, .limited_by = "the GPUs"};
	for (int i = 0; i < gpus->count; i++) {
		const struct perf_gpu *gpu = &gpus->gpu[i];
		/* Of all ranks' memory, this GPU holds that of its own. */
		uint64_t ranks = (uint64_t)((o->ranks - i + gpus->count - 1) / gpus->count);
		uint64_t all = ranks ? gpu->free / ranks * (uint64_t)o->ranks : UINT64_MAX;

		memory->available = all < memory->available ? all : memory->available;
		memory->total += gpu->total;
	}
}

int perf_plan_make(struct perf_options *options, const struct perf_gpus *gpus,
		   struct perf_plan *plan)
{
	char error[480], needs[HUMAN_TEXT], has[HUMAN_TEXT];
	uint64_t most;

	memset(plan, 0, sizeof(*plan));
	plan->copies = plan_copies(options);
	if (options->demo && !options->routing) {
		options->routing = demo_routing(options);
	}
	if (!options->routing) {
		options->routing = "uniform";
	}
	if (routing_source_open(options->routing, &plan->source, error, sizeof(error))) {
		fputs("moeep-perf: --routing: ", stderr);
		print_text(stderr, error);
		fputs("\n", stderr);
		return -1;
	}
	if (options->topk == 0) {
		options->topk = plan->source.kind == ROUTING_FILE
					? (int)plan->source.indices.columns
					: DEFAULT_TOPK;
	}
	if (options->experts == 0) {
		options->experts = plan->source.kind == ROUTING_FILE && plan->source.largest >= 0
					   ? (int)plan->source.largest + 1
					   : DEFAULT_EXPERTS;
	}
	if (plan->source.kind != ROUTING_FILE && options->topk > options->experts) {
		fprintf(stderr, "moeep-perf: --topk %d is more than there are experts (%d)\n",
			options->topk, options->experts);
		goto err;
	}
	memory_of(options, gpus, &plan->memory);
	most = plan->memory.available ? plan->memory.available : UINT64_MAX;
	for (;;) {
		plan->bytes = floor_bytes(options);
		if (plan->bytes <= most && plan_sizes(options, plan)) {
			goto err;
		}
		if (plan->bytes <= most / 2 || !reduce(options, plan)) {
			break;
		}
	}
	/* What was asked for by name may use nearly all. */
	if (plan->bytes > most - most / 10) {
		fprintf(stderr,
			"moeep-perf: this needs about %s of memory and %s is left by %s; use fewer "
			"ranks or tokens\n",
			human_bytes(plan->bytes, needs), human_bytes(most, has),
			plan->memory.limited_by ? plan->memory.limited_by : "the machine");
		goto err;
	}
	return 0;

err:
	perf_plan_free(plan);
	return -1;
}

void perf_plan_free(struct perf_plan *plan)
{
	routing_free(&plan->ht);
	routing_free(&plan->ll);
	routing_source_free(&plan->source);
}
