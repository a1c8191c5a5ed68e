/* SPDX-License-Identifier: MIT */
/* tools/perf_usage.c - moeep-perf's help text, and its options as getopt_long() wants them. */
#include <config.h>

#include <stddef.h>

#include "perf_usage.h"

const char perf_help_text[] =
	"Usage: moeep-perf [OPTION]...\n"
	"Run moeep's dispatch and combine between ranks on this machine, on GPUs or processors,\n"
	"check every result, and print times and bandwidths.\n"
	"\n"
	"Ranks\n"
	"  -n, --ranks N          ranks, 1 to 256 [one for each GPU; with the host backend 8, or\n"
	"                         fewer if memory is short]\n"
	"      --threads          ranks are threads of one process instead of processes\n"
	"      --timeout MS       longest wait for another rank; 0: none [30000]\n"
	"      --backend B        cuda (GPUs), host (processors) or auto: cuda if the library can\n"
	"                         work on the GPUs of this machine, else host [auto]\n"
	"      --emulate-nodes N  host backend: ranks count as N hosts, which an emulated network\n"
	"                         joins (moeep_env(7) says how it can be slowed down)\n"
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
	"      --sms N            GPUs: most SMs that an operation takes [the library's default]\n"
	"      --graph N          GPUs: time each operation in a CUDA graph of N calls as well\n"
	"\n"
	"Routing\n"
	"      --routing R        uniform, zipf:EXPONENT, INDICES.npy or INDICES.npy,WEIGHTS.npy\n"
	"                         (int32 or int64, float32; [tokens, K]) [uniform]\n"
	"      --masked F         this share of the choices is -1, 0 to 1 [0]\n"
	"      --uneven           a different number of tokens on each rank, none on one\n"
	"      --seed N           of routing and payload [1]\n"
	"\n"
	"Measurement\n"
	"      --iters N          timed calls [as many as fit in --time, 3 at least, GPUs 50]\n"
	"      --time S           seconds of timed calls for each row of the table [3; demo 2]\n"
	"      --warmup N         calls before them [2; LL and GPUs 10]\n"
	"      --check WHICH      ends: the first call before and the last call of the timing;\n"
	"                         all: every call [ends]\n"
	"      --compare-host     GPUs: make each checked call with the host backend too, and\n"
	"                         compare bit for bit\n"
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

const struct option perf_long_options[] = {
	{"ranks", required_argument, NULL, 'n'},
	{"threads", no_argument, NULL, OPT_THREADS},
	{"timeout", required_argument, NULL, OPT_TIMEOUT},
	{"backend", required_argument, NULL, OPT_BACKEND},
	{"emulate-nodes", required_argument, NULL, OPT_EMULATE_NODES},
	{"sms", required_argument, NULL, OPT_SMS},
	{"graph", required_argument, NULL, OPT_GRAPH},
	{"compare-host", no_argument, NULL, OPT_COMPARE_HOST},
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
