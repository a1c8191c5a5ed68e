/* SPDX-License-Identifier: MIT */
/* tools/perf_options.c - reading moeep-perf's command line. */
#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "output.h"
#include "perf_options.h"
#include "perf_usage.h"

struct word {
	const char *text;
	int value;
};

static const struct word backend_words[] = {
	{"auto", MOEEP_BACKEND_AUTO},
	{"host", MOEEP_BACKEND_HOST},
	{"cuda", MOEEP_BACKEND_CUDA},
	{NULL, 0},
};
static const struct word mode_words[] = {
	{"ht", MOEEP_MODE_HT},
	{"ll", MOEEP_MODE_LL},
	{"both", MOEEP_MODE_HT | MOEEP_MODE_LL},
	{NULL, 0},
};
static const struct word dtype_words[] = {
	{"bf16", MOEEP_BF16}, {"fp16", MOEEP_FP16},    {"fp32", MOEEP_FP32},
	{"int8", MOEEP_INT8}, {"fp8", MOEEP_FP8_E4M3}, {NULL, 0},
};
static const struct word combine_words[] = {
	{"bf16", MOEEP_BF16}, {"fp16", MOEEP_FP16}, {"fp32", MOEEP_FP32}, {NULL, 0}};
static const struct word partial_words[] = {
	{"same", MOEEP_DTYPE_DEFAULT}, {"fp32", MOEEP_FP32}, {NULL, 0}};
static const struct word index_words[] = {
	{"int64", MOEEP_INT64}, {"int32", MOEEP_INT32}, {NULL, 0}};
static const struct word quant_words[] = {
	{"none", MOEEP_QUANT_NONE},
	{"fp8", MOEEP_QUANT_FP8},
	{"fp8-pow2", MOEEP_QUANT_FP8_POW2},
	{"fp8-ue8m0", MOEEP_QUANT_FP8_UE8M0},
	{NULL, 0},
};
static const struct word scale_words[] = {
	{"row", MOEEP_SCALES_ROW_MAJOR}, {"column", MOEEP_SCALES_COLUMN_MAJOR}, {NULL, 0}};
static const struct word layout_words[] = {
	{"flat", MOEEP_ROWS_FLAT}, {"expert-major", MOEEP_ROWS_EXPERT_MAJOR}, {NULL, 0}};
static const struct word check_words[] = {{"ends", 0}, {"all", 1}, {NULL, 0}};

/* A command line under way: the options, and the one that is being read. */
struct reader {
	struct perf_options *o;
	const char *name;
	bool bad;
};

static void bad(struct reader *r, const char *text, const char *takes)
{
	fprintf(stderr, "moeep-perf: --%s \"", r->name);
	print_text(stderr, text);
	fprintf(stderr, "\": it takes %s\n", takes);
	r->bad = true;
}

static int64_t read_int(struct reader *r, const char *text, int64_t min, int64_t max)
{
	int64_t value = min;
	char takes[80];

	if (parse_int(text, min, max, &value)) {
		snprintf(takes, sizeof(takes), "a whole number from %" PRId64 " to %" PRId64, min,
			 max);
		bad(r, text, takes);
	}
	return value;
}

static double read_real(struct reader *r, const char *text, double min, double max)
{
	char takes[80], *end = NULL;
	double value = strtod(text, &end);

	if (!((text[0] >= '0' && text[0] <= '9') || text[0] == '.') || *end != '\0' ||
	    !(value >= min && value <= max)) {
		snprintf(takes, sizeof(takes), "a number from %g to %g", min, max);
		bad(r, text, takes);
		return min;
	}
	return value;
}

static int read_word(struct reader *r, const char *text, const struct word *words)
{
	char takes[120];
	size_t used = 0;

	for (const struct word *w = words; w->text; w++) {
		if (!strcmp(text, w->text)) {
			return w->value;
		}
		used += (size_t)snprintf(takes + used, sizeof(takes) - used, "%s%s",
					 used ? ", " : "", w->text);
	}
	bad(r, text, takes);
	return words[0].value;
}

static void read_option(struct reader *r, int id, const char *text)
{
	struct perf_options *o = r->o;

	switch (id) {
	case 'n':
		o->ranks = (int)read_int(r, text, 1, PERF_MAX_RANKS);
		o->ranks_given = true;
		break;
	case OPT_THREADS:
		o->threads = true;
		break;
	case OPT_BACKEND:
		o->backend = read_word(r, text, backend_words);
		break;
	case OPT_EMULATE_NODES:
		o->emulate_nodes = (int)read_int(r, text, 1, PERF_MAX_RANKS);
		break;
	case OPT_SMS:
		o->sms = (int)read_int(r, text, 1, 4096);
		break;
	case OPT_GRAPH:
		o->graph = (int)read_int(r, text, 1, PERF_MAX_GRAPH);
		break;
	case OPT_COMPARE_HOST:
		o->compare_host = true;
		break;
	case OPT_TIMEOUT:
		o->timeout_ms = (uint32_t)read_int(r, text, 0, UINT32_MAX - 1);
		if (o->timeout_ms == 0) {
			o->timeout_ms = MOEEP_TIMEOUT_NONE;
		}
		break;
	case OPT_MODE:
		o->modes = (unsigned)read_word(r, text, mode_words);
		break;
	case OPT_TOKENS:
		o->tokens = read_int(r, text, 0, (1 << 24) - 1);
		o->tokens_given = true;
		break;
	case OPT_LL_TOKENS:
		o->ll_tokens = read_int(r, text, 0, 65535);
		o->ll_tokens_given = true;
		break;
	case OPT_HIDDEN:
		o->hidden = read_int(r, text, 1, 1 << 24);
		break;
	case OPT_TOPK:
		o->topk = (int)read_int(r, text, 1, 64);
		break;
	case OPT_EXPERTS:
		o->experts = (int)read_int(r, text, 1, 65536);
		break;
	case OPT_DTYPE:
		o->dtype = read_word(r, text, dtype_words);
		break;
	case OPT_COMBINE_DTYPE:
		o->combine_dtype = read_word(r, text, combine_words);
		break;
	case OPT_PARTIAL_DTYPE:
		o->partial_dtype = read_word(r, text, partial_words);
		break;
	case OPT_INDEX_DTYPE:
		o->index_dtype = read_word(r, text, index_words);
		break;
	case OPT_QUANT:
		o->quant = read_word(r, text, quant_words);
		break;
	case OPT_SCALE_LAYOUT:
		o->scale_layout = read_word(r, text, scale_words);
		break;
	case OPT_SYMMETRIC:
		o->memories |= PERF_SYMMETRIC;
		break;
	case OPT_ORDINARY:
		o->memories |= PERF_ORDINARY;
		break;
	case OPT_LAYOUT:
		o->row_layout = read_word(r, text, layout_words);
		break;
	case OPT_ALIGNMENT:
		o->alignment = (int)read_int(r, text, 1, 65536);
		break;
	case OPT_CACHED:
		o->cached = true;
		break;
	case OPT_PHASES:
		o->phases = true;
		break;
	case OPT_ROUTING:
		o->routing = text;
		break;
	case OPT_MASKED:
		o->masked = read_real(r, text, 0, 1);
		break;
	case OPT_UNEVEN:
		o->uneven = true;
		break;
	case OPT_SEED:
		o->seed = (uint64_t)read_int(r, text, 0, INT64_MAX);
		break;
	case OPT_ITERS:
		o->iters = read_int(r, text, 1, PERF_MAX_ITERS);
		break;
	case OPT_TIME:
		o->seconds = read_real(r, text, 0, 86400);
		break;
	case OPT_WARMUP:
		o->warmup = read_int(r, text, 0, PERF_MAX_ITERS);
		break;
	case OPT_CHECK:
		o->check_all = read_word(r, text, check_words) != 0;
		break;
	case OPT_JSON:
		o->format = PERF_JSON;
		break;
	case OPT_CSV:
		o->format = PERF_CSV;
		break;
	case OPT_DEMO:
		o->demo = true;
		break;
	case OPT_TRACE:
		o->trace = text;
		break;
	case OPT_QUIET:
		o->quiet = true;
		break;
	case OPT_NO_PROGRESS:
		o->progress = false;
		break;
	default:
		r->bad = true;
		break;
	}
}

/* What options are together; -1 with a message. */
static int check_options(struct perf_options *o)
{
	bool narrow = o->dtype == MOEEP_FP8_E4M3 || o->dtype == MOEEP_INT8;
	int dtypes[3];

	if ((o->modes & MOEEP_MODE_LL) && o->dtype != MOEEP_BF16 && o->dtype != MOEEP_FP16) {
		fprintf(stderr,
			"moeep-perf: --dtype %s is for --mode ht; LL takes bf16 and fp16%s\n",
			o->dtype == MOEEP_FP8_E4M3 ? "fp8" : moeep_dtype_name(o->dtype),
			o->dtype == MOEEP_FP8_E4M3 ? ", and casts with --quant fp8" : "");
		return -1;
	}
	if (o->quant != MOEEP_QUANT_NONE && !(o->modes & MOEEP_MODE_LL)) {
		fprintf(stderr, "moeep-perf: --quant is for LL, which --mode ht leaves out\n");
		return -1;
	}
	if (o->emulate_nodes && o->backend > 0 && o->backend != MOEEP_BACKEND_HOST) {
		fprintf(stderr, "moeep-perf: --emulate-nodes is for --backend host in this "
				"release\n");
		return -1;
	}
	if (o->emulate_nodes > o->ranks) {
		fprintf(stderr, "moeep-perf: --emulate-nodes %d is more than the %d ranks\n",
			o->emulate_nodes, o->ranks);
		return -1;
	}
	if (o->emulate_nodes) {
		o->backend = MOEEP_BACKEND_HOST;
	}
	if (o->combine_dtype == MOEEP_DTYPE_DEFAULT) {
		o->combine_dtype = narrow ? MOEEP_BF16 : o->dtype;
	}
	if (o->memories == 0) {
		o->memories = PERF_SYMMETRIC | PERF_ORDINARY;
	}
	if (o->seconds < 0) {
		o->seconds = o->demo ? 2 : 3;
	}
	dtypes[0] = o->dtype;
	dtypes[1] = o->combine_dtype;
	dtypes[2] = o->quant == MOEEP_QUANT_NONE ? o->dtype : MOEEP_FP8_E4M3;
	for (int i = 0; i < 3; i++) {
		if (perf_row_bytes(o, dtypes[i]) % 16 != 0) {
			fprintf(stderr,
				"moeep-perf: --hidden %" PRId64 ": rows of %s have %" PRId64
				" bytes, which is not a multiple of 16\n",
				o->hidden, moeep_dtype_name(dtypes[i]),
				perf_row_bytes(o, dtypes[i]));
			return -1;
		}
	}
	return 0;
}

int perf_options_parse(int argc, char **argv, struct perf_options *options, int *status)
{
	struct reader r = {.o = options};
	static char program[] = "moeep-perf";
	int id, index = -1;

	*options = (struct perf_options){
		.ranks = PERF_DEFAULT_RANKS,
		.backend = -1,
		.modes = MOEEP_MODE_HT | MOEEP_MODE_LL,
		.tokens = PERF_DEFAULT_TOKENS,
		.ll_tokens = PERF_DEFAULT_LL_TOKENS,
		.hidden = 7168,
		.dtype = MOEEP_BF16,
		.index_dtype = MOEEP_INT64,
		.row_layout = MOEEP_ROWS_FLAT,
		.alignment = 1,
		.seconds = -1,
		.warmup = -1,
		.seed = 1,
		.progress = isatty(STDERR_FILENO) == 1,
	};
	*status = PERF_EXIT_USAGE;
	/* getopt_long() puts it before its messages; the path that was typed is of no use there. */
	argv[0] = program;
	while ((id = getopt_long(argc, argv, "n:hV", perf_long_options, &index)) != -1) {
		if (id == 'h') {
			fputs(perf_help_text, stdout);
			*status = output_finish(stdout, "moeep-perf") ? PERF_EXIT_FAILED
								      : PERF_EXIT_OK;
			return 1;
		}
		if (id == 'V') {
			printf("moeep-perf %s\n", moeep_version_string());
			*status = output_finish(stdout, "moeep-perf") ? PERF_EXIT_FAILED
								      : PERF_EXIT_OK;
			return 1;
		}
		r.name = index >= 0 ? perf_long_options[index].name : "ranks";
		index = -1;
		read_option(&r, id, optarg);
		if (r.bad) {
			goto err_usage;
		}
	}
	if (optind < argc) {
		fputs("moeep-perf: unexpected argument \"", stderr);
		print_text(stderr, argv[optind]);
		fputs("\"\n", stderr);
		goto err_usage;
	}
	if (check_options(options)) {
		goto err_usage;
	}
	return 0;

err_usage:
	fputs("Try \"moeep-perf --help\".\n", stderr);
	return 1;
}
