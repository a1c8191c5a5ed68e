/* SPDX-License-Identifier: MIT */
/* tools/perf_options.c - moeep-perf's command line, and sizes that fit the machine. */
#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "perf_options.h"

#ifndef MOEEP_PKGDATADIR
#define MOEEP_PKGDATADIR "/usr/share/moeep"
#endif

#define DEFAULT_RANKS	  8
#define DEFAULT_TOKENS	  4096
#define DEFAULT_LL_TOKENS 128
#define DEFAULT_EXPERTS	  256
#define DEFAULT_TOPK	  8
#define HT_VARIANTS	  3
#define LEAST_TOKENS	  64

static const char default_trace[] =
	MOEEP_PKGDATADIR "/trace_topk.npy," MOEEP_PKGDATADIR "/trace_weights.npy";

static const char help_text[] =
	"Usage: moeep-perf [OPTION]...\n"
	"Run moeep's dispatch and combine between ranks on this machine, check every result, and\n"
	"print times and bandwidths.\n"
	"\n"
	"Ranks\n"
	"  -n, --ranks N          ranks, 1 to 256 [8, or fewer if memory is short]\n"
	"      --threads          ranks are threads of one process instead of processes\n"
	"      --timeout MS       longest wait for another rank; 0: none [30000]\n"
	"\n"
	"What is run\n"
	"      --mode MODE        ht (high throughput), ll (low latency) or both [both]\n"
	"      --tokens N         tokens of a rank, HT [4096, or fewer if memory is short]\n"
	"      --ll-tokens N      tokens of a rank, LL [128]\n"
	"      --hidden N         elements of a row [7168]\n"
	"      --topk K           choices of a token, 1 to 64 [8, or what the file has]\n"
	"      --experts N        experts over all ranks [256, or what the file names]\n"
	"      --dtype T          rows of dispatch: bf16, fp16; HT also fp32, int8, fp8 (E4M3\n"
	"                         with an FP32 scale for 128 elements) [bf16]\n"
	"      --combine-dtype T  rows of combine: bf16, fp16, fp32 [as dispatch, else bf16]\n"
	"      --partial-dtype T  partial sums on their way: same or fp32 [same]\n"
	"      --index-dtype T    expert ids: int64 or int32 [int64]\n"
	"      --quant Q          LL dispatch casts rows: none, fp8, fp8-pow2, fp8-ue8m0 [none]\n"
	"      --scale-layout L   of received scales: row or column [row]\n"
	"      --symmetric        rows that HT receives and combine reads lie in symmetric memory\n"
	"      --ordinary         ... in ordinary memory; both are run unless one is named\n"
	"      --layout L         HT rows: flat or expert-major [flat]\n"
	"      --alignment N      expert-major groups start at a multiple of N rows [1]\n"
	"      --cached           HT dispatch takes the routing from its handle\n"
	"      --phases           LL: SEND and RECV are called apart and timed apart\n"
	"\n"
	"Routing\n"
	"      --routing R        uniform, zipf:EXPONENT, INDICES.npy or INDICES.npy,WEIGHTS.npy\n"
	"                         (int32 or int64, float32; [tokens, K]) [uniform]\n"
	"      --masked F         this share of the choices is -1, 0 to 1 [0]\n"
	"      --uneven           a different number of tokens on each rank, none on one\n"
	"      --seed N           of routing and payload [1]\n"
	"\n"
	"Measurement\n"
	"      --iters N          timed calls [as many as fit in --time, 3 at least]\n"
	"      --time S           seconds of timed calls for each row of the table [3; demo 2]\n"
	"      --warmup N         calls before them [2, LL 10]\n"
	"      --check WHICH      ends: the first call before and the last call of the timing;\n"
	"                         all: every call [ends]\n"
	"\n"
	"Output\n"
	"      --json             one JSON document\n"
	"      --csv              one line for each row of the table\n"
	"      --demo             explain the run, and take the routing of a real text if it is\n"
	"                         installed\n"
	"      --trace FILES      --demo: where that is, as for --routing\n"
	"      --quiet            the table alone\n"
	"      --no-progress      no progress line on a terminal\n"
	"  -h, --help             this text\n"
	"  -V, --version          the version\n"
	"\n"
	"Exit status: 0 all results right; 1 a wrong result, a failed call or a lost rank; 2 "
	"usage.\n";

enum option_id {
	OPT_THREADS = 256,
	OPT_TIMEOUT,
	OPT_MODE,
	OPT_TOKENS,
	OPT_LL_TOKENS,
	OPT_HIDDEN,
	OPT_TOPK,
	OPT_EXPERTS,
	OPT_DTYPE,
	OPT_COMBINE_DTYPE,
	OPT_PARTIAL_DTYPE,
	OPT_INDEX_DTYPE,
	OPT_QUANT,
	OPT_SCALE_LAYOUT,
	OPT_SYMMETRIC,
	OPT_ORDINARY,
	OPT_LAYOUT,
	OPT_ALIGNMENT,
	OPT_CACHED,
	OPT_PHASES,
	OPT_ROUTING,
	OPT_MASKED,
	OPT_UNEVEN,
	OPT_SEED,
	OPT_ITERS,
	OPT_TIME,
	OPT_WARMUP,
	OPT_CHECK,
	OPT_JSON,
	OPT_CSV,
	OPT_DEMO,
	OPT_TRACE,
	OPT_QUIET,
	OPT_NO_PROGRESS
};

static const struct option long_options[] = {
	{"ranks", required_argument, NULL, 'n'},
	{"threads", no_argument, NULL, OPT_THREADS},
	{"timeout", required_argument, NULL, OPT_TIMEOUT},
	{"mode", required_argument, NULL, OPT_MODE},
	{"tokens", required_argument, NULL, OPT_TOKENS},
	{"ll-tokens", required_argument, NULL, OPT_LL_TOKENS},
	{"hidden", required_argument, NULL, OPT_HIDDEN},
	{"topk", required_argument, NULL, OPT_TOPK},
	{"experts", required_argument, NULL, OPT_EXPERTS},
	{"dtype", required_argument, NULL, OPT_DTYPE},
	{"combine-dtype", required_argument, NULL, OPT_COMBINE_DTYPE},
	{"partial-dtype", required_argument, NULL, OPT_PARTIAL_DTYPE},
	{"index-dtype", required_argument, NULL, OPT_INDEX_DTYPE},
	{"quant", required_argument, NULL, OPT_QUANT},
	{"scale-layout", required_argument, NULL, OPT_SCALE_LAYOUT},
	{"symmetric", no_argument, NULL, OPT_SYMMETRIC},
	{"ordinary", no_argument, NULL, OPT_ORDINARY},
	{"layout", required_argument, NULL, OPT_LAYOUT},
	{"alignment", required_argument, NULL, OPT_ALIGNMENT},
	{"cached", no_argument, NULL, OPT_CACHED},
	{"phases", no_argument, NULL, OPT_PHASES},
	{"routing", required_argument, NULL, OPT_ROUTING},
	{"masked", required_argument, NULL, OPT_MASKED},
	{"uneven", no_argument, NULL, OPT_UNEVEN},
	{"seed", required_argument, NULL, OPT_SEED},
	{"iters", required_argument, NULL, OPT_ITERS},
	{"time", required_argument, NULL, OPT_TIME},
	{"warmup", required_argument, NULL, OPT_WARMUP},
	{"check", required_argument, NULL, OPT_CHECK},
	{"json", no_argument, NULL, OPT_JSON},
	{"csv", no_argument, NULL, OPT_CSV},
	{"demo", no_argument, NULL, OPT_DEMO},
	{"trace", required_argument, NULL, OPT_TRACE},
	{"quiet", no_argument, NULL, OPT_QUIET},
	{"no-progress", no_argument, NULL, OPT_NO_PROGRESS},
	{"help", no_argument, NULL, 'h'},
	{"version", no_argument, NULL, 'V'},
	{NULL, 0, NULL, 0},
};

struct word {
	const char *text;
	int value;
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
		.ranks = DEFAULT_RANKS,
		.modes = MOEEP_MODE_HT | MOEEP_MODE_LL,
		.tokens = DEFAULT_TOKENS,
		.ll_tokens = DEFAULT_LL_TOKENS,
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
	while ((id = getopt_long(argc, argv, "n:hV", long_options, &index)) != -1) {
		if (id == 'h') {
			fputs(help_text, stdout);
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
		r.name = index >= 0 ? long_options[index].name : "ranks";
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
		shape.variants = HT_VARIANTS;
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
	uint64_t ht = (uint64_t)o->tokens * (rows + choices * HT_VARIANTS);
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
		o->tokens = o->tokens_given ? o->tokens : DEFAULT_TOKENS;
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

int perf_plan_make(struct perf_options *options, struct perf_plan *plan)
{
	char error[480], needs[HUMAN_TEXT], has[HUMAN_TEXT];
	uint64_t most = UINT64_MAX;

	memset(plan, 0, sizeof(*plan));
	plan->copies = 2;
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
	if (memory_limit_get(&plan->memory) == 0) {
		most = plan->memory.available;
	}
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
