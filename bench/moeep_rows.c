/* SPDX-License-Identifier: MIT */
/*
 * bench/moeep_rows.c - what bench/mpi_baseline.c does, by moeep: the same steps on the same rows,
 * timed between the same barriers. MPI starts the ranks, gives them moeep's bootstrap and collects
 * the times.
 *
 * dispatch, then combine of the rows that it delivered (experts that change nothing), with a new
 * routing in each iteration. See bench/README.md.
 */
#include <getopt.h>
#include <math.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <moeep/moeep.h>

#define ROUTES	  4
#define MAX_CALLS 2000
#define MAX_TOPK  64

static int tokens, hidden = 7168, topk = 8, experts = 256, iters, warmup = 3, symmetric, ll, json,
		   bandwidth;
static int rank, ranks;
static moeep_comm_t *comm;
static moeep_buffer_t *buffer;
static moeep_handle_t *handle;
static int64_t capacity;
static uint16_t *x, *rows, *out;
static int64_t *choices;
static float *weights;
static double us[3][MAX_CALLS];

static void must(int rc, const char *call)
{
	if (rc != MOEEP_OK) {
		fprintf(stderr, "rank %d: %s: %s: %s\n", rank, call, moeep_strerror(rc),
			moeep_error_detail());
		MPI_Abort(MPI_COMM_WORLD, 1);
	}
}

static int gather(void *context, const void *send, void *recv, size_t bytes, void **request)
{
	(void)context;
	*request = NULL;
	return MPI_Allgather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE,
			     MPI_COMM_WORLD);
}

static uint64_t mix(uint64_t v)
{
	v = (v ^ v >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	v = (v ^ v >> 27) * UINT64_C(0x94d049bb133111eb);
	return v ^ v >> 31;
}

/* BF16 between 1 and 4, of either sign, different for each element. */
static uint16_t payload(int64_t token, int64_t element)
{
	uint64_t h = mix((uint64_t)rank << 48 ^ (uint64_t)token << 24 ^ (uint64_t)element);

	return (uint16_t)(0x3f80u | (h & 0x80ffu));
}

static float from_bf16(uint16_t v)
{
	uint32_t bits = (uint32_t)v << 16;
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

static uint16_t to_bf16(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* topk different experts for each token, all equally likely. */
static void make_routes(void)
{
	for (int64_t t = 0; t < (int64_t)ROUTES * tokens; t++) {
		for (int k = 0; k < topk; k++) {
			uint64_t h = mix((uint64_t)rank << 40 ^ (uint64_t)t << 8 ^ (uint64_t)k) + 1;
			bool again;

			do {
				again = false;
				h = mix(h);
				for (int j = 0; j < k; j++) {
					again |= choices[t * topk + j] ==
						 (int64_t)(h % (uint64_t)experts);
				}
			} while (again);
			choices[t * topk + k] = (int64_t)(h % (uint64_t)experts);
			weights[t * topk + k] = (float)(h >> 40 & 0xff) / 256.0f;
		}
	}
}

/* As in the baseline: huge pages where the system gives them on request, all touched. */
static void *alloc_touched(size_t bytes)
{
	size_t huge = (size_t)1 << 21;
	void *p = aligned_alloc(huge, (bytes / huge + 1) * huge);

	if (!p) {
		fprintf(stderr, "rank %d: no memory for %zu bytes\n", rank, bytes);
		MPI_Abort(MPI_COMM_WORLD, 1);
	}
	madvise(p, (bytes / huge + 1) * huge, MADV_HUGEPAGE);
	return memset(p, 0, bytes);
}

static void setup(void)
{
	moeep_bootstrap_t bootstrap = {.size = sizeof(bootstrap), .allgather = gather};
	moeep_comm_config_t config = {
		.size = sizeof(config), .bootstrap = &bootstrap, .backend = MOEEP_BACKEND_HOST};
	moeep_buffer_config_t sizes = {.size = sizeof(sizes),
				       .modes = ll ? MOEEP_MODE_LL : MOEEP_MODE_HT,
				       .num_experts = experts,
				       .max_topk = topk,
				       .hidden = hidden,
				       .ht_max_tokens = ll ? 0 : tokens,
				       .ll_max_tokens = ll ? tokens : 0};
	int first, local;
	size_t row_bytes = (size_t)hidden * 2;

	must(moeep_comm_create(rank, ranks, &config, &comm), "moeep_comm_create");
	must(moeep_expert_range(experts, ranks, rank, &first, &local), "moeep_expert_range");
	must(moeep_buffer_create(comm, &sizes, &buffer), "moeep_buffer_create");
	must(moeep_handle_create(buffer, NULL, &handle), "moeep_handle_create");
	capacity = (int64_t)tokens * ranks;
	x = alloc_touched((size_t)tokens * row_bytes);
	out = alloc_touched((size_t)tokens * row_bytes);
	choices = malloc((size_t)ROUTES * (size_t)tokens * (size_t)topk * sizeof(*choices));
	weights = malloc((size_t)ROUTES * (size_t)tokens * (size_t)topk * sizeof(*weights));
	if (symmetric) {
		void *memory;

		must(moeep_mem_alloc(comm, (size_t)(capacity * (ll ? local : 1)) * row_bytes, 0,
				     &memory),
		     "moeep_mem_alloc");
		rows = memory;
	} else {
		rows = alloc_touched((size_t)(capacity * (ll ? local : 1)) * row_bytes);
	}
	if (!choices || !weights) {
		fprintf(stderr, "rank %d: no memory\n", rank);
		MPI_Abort(MPI_COMM_WORLD, 1);
	}
	for (int64_t t = 0; t < tokens; t++) {
		for (int64_t i = 0; i < hidden; i++) {
			x[t * hidden + i] = payload(t, i);
		}
	}
	make_routes();
}

static void dispatch(int route)
{
	int64_t at = (int64_t)route * tokens * topk;
	moeep_dispatch_args_t ht = {.size = sizeof(ht),
				    .num_tokens = tokens,
				    .x = x,
				    .topk_idx = &choices[at],
				    .topk_weights = &weights[at],
				    .capacity = capacity,
				    .recv_x = rows};
	moeep_ll_dispatch_args_t low = {.size = sizeof(low),
					.num_tokens = tokens,
					.x = x,
					.topk_idx = &choices[at],
					.topk_weights = &weights[at],
					.recv_x = rows};

	must(ll ? moeep_ll_dispatch(buffer, handle, &low, NULL)
		: moeep_dispatch(buffer, handle, &ht, NULL),
	     "dispatch");
}

static void combine(void)
{
	moeep_combine_args_t ht = {.size = sizeof(ht), .x = rows, .out = out};
	moeep_ll_combine_args_t low = {.size = sizeof(low), .x = rows, .out = out};

	must(ll ? moeep_ll_combine(buffer, handle, &low, NULL)
		: moeep_combine(buffer, handle, &ht, NULL),
	     "combine");
}

/* Experts change nothing, so every result follows from the token's own row. */
static bool check(int route)
{
	for (int64_t t = 0; t < tokens; t++) {
		const int64_t *choice = &choices[((int64_t)route * tokens + t) * topk];
		const float *weight = &weights[((int64_t)route * tokens + t) * topk];

		for (int64_t i = 0; i < hidden; i++) {
			float value = from_bf16(payload(t, i));
			float sum = 0;

			for (int r = 0; r < ranks; r++) {
				int first, local;
				float partial = 0;
				bool here = false;

				moeep_expert_range(experts, ranks, r, &first, &local);
				for (int k = 0; k < topk; k++) {
					if (choice[k] >= first && choice[k] < first + local) {
						float product = value * weight[k];

						here = true;
						partial += product;
					}
				}
				if (here) {
					sum += ll ? from_bf16(to_bf16(partial)) : value;
				}
			}
			if (out[t * hidden + i] != to_bf16(sum)) {
				fprintf(stderr,
					"rank %d, token %lld, element %lld: %#x, expected %#x\n",
					rank, (long long)t, (long long)i, out[t * hidden + i],
					to_bf16(sum));
				return false;
			}
		}
	}
	return true;
}

static double now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

static void copy_rows(size_t bytes)
{
	memcpy(out, x, bytes);
}

static void read_rows(size_t bytes)
{
	const uint64_t *words = (const uint64_t *)(const void *)x;
	uint64_t all = 0;

	for (size_t i = 0; i < bytes / sizeof(*words); i++) {
		all |= words[i];
	}
	*(volatile uint64_t *)(void *)out = all;
}

/* Past the caches, as rows are written that fill more than those. */
static void write_rows(size_t bytes)
{
#ifdef __SSE2__
	for (size_t i = 0; i < bytes; i += 16) {
		_mm_stream_si128((__m128i *)(void *)((char *)out + i), _mm_set1_epi8((char)i));
	}
	_mm_sfence();
#else
	memset(out, 1, bytes);
#endif
}

/* What memory gives while all ranks ask for it: the yardstick. */
static void measure_memory(const char *name, void (*pass)(size_t bytes))
{
	size_t bytes = (size_t)tokens * (size_t)hidden * 2;
	double best = 0;

	for (int i = 0; i < 10; i++) {
		double start;
		double seconds;
		double all;

		MPI_Barrier(MPI_COMM_WORLD);
		start = now_us();
		pass(bytes);
		/* Until all are done: ranks that share a processor take turns. */
		MPI_Barrier(MPI_COMM_WORLD);
		seconds = (now_us() - start) * 1e-6;
		MPI_Allreduce(&seconds, &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
		best = (double)bytes * ranks / all > best ? (double)bytes * ranks / all : best;
	}
	if (rank == 0) {
		printf("%d ranks at once, %zu MB each, %s: %.1f GB/s\n", ranks, bytes / 1000000,
		       name, best / 1e9);
	}
}

static int by_value(const void *a, const void *b)
{
	double d = *(const double *)a - *(const double *)b;

	return (d > 0) - (d < 0);
}

static void parse(int argc, char **argv)
{
	int *values[] = {&tokens, &hidden, &topk,      &experts, &iters,
			 &warmup, &ll,	   &symmetric, &json,	 &bandwidth};
	const struct option options[] = {
		{"tokens", 1, 0, 0},
		{"hidden", 1, 0, 0},
		{"topk", 1, 0, 0},
		{"experts", 1, 0, 0},
		{"iters", 1, 0, 0},
		{"warmup", 1, 0, 0},
		{"mode", 1, 0, 0},
		{"symmetric", 0, 0, 0},
		{"json", 0, 0, 0},
		{"bandwidth", 0, 0, 0},
		{0},
	};
	int index;
	int c;

	while ((c = getopt_long(argc, argv, "", options, &index)) == 0) {
		*values[index] = !optarg ? 1 : strcmp(optarg, "ll") == 0 ? 1 : atoi(optarg);
	}
	tokens = tokens ? tokens : ll ? 128 : 4096;
	iters = iters ? iters : ll ? 100 : 20;
	if (c != -1 || tokens < 1 || topk < 1 || topk > MAX_TOPK || topk > experts || iters < 1 ||
	    warmup < 0 || iters + warmup > MAX_CALLS) {
		fprintf(stderr, "bad arguments: see bench/README.md\n");
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
}

int main(int argc, char **argv)
{
	static const char *const names[] = {"dispatch", "combine", "both"};
	int good = 1;
	int calls;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	parse(argc, argv);
	setup();
	if (bandwidth) {
		measure_memory("memcpy", copy_rows);
		measure_memory("read", read_rows);
		measure_memory("written past the caches", write_rows);
	}
	calls = bandwidth ? 0 : warmup + iters;
	for (int i = 0; i < calls; i++) {
		double start;

		MPI_Barrier(MPI_COMM_WORLD);
		start = now_us();
		dispatch(i % ROUTES);
		us[0][i] = now_us() - start;
		MPI_Barrier(MPI_COMM_WORLD);
		start = now_us();
		combine();
		us[1][i] = now_us() - start;
		us[2][i] = us[0][i] + us[1][i];
		if (i == 0 || i == calls - 1) {
			good &= check(i % ROUTES);
		}
	}
	MPI_Allreduce(MPI_IN_PLACE, &good, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
	MPI_Allreduce(MPI_IN_PLACE, us, 3 * MAX_CALLS, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
	for (int o = 0; rank == 0 && o < 3 && !bandwidth; o++) {
		double *v = us[o] + warmup;

		qsort(v, (size_t)iters, sizeof(*v), by_value);
		printf(json ? "{\"op\": \"%s_%s\", \"memory\": \"%s\", \"ranks\": %d, \"tokens\": "
			      "%d, "
			      "\"median_us\": %.1f, \"p99_us\": %.1f, \"validated\": %s}\n"
			    : "%s_%s %s R=%d M=%d: %.1f us, p99 %.1f us, valid %s\n",
		       ll ? "ll" : "ht", names[o], symmetric ? "symmetric" : "ordinary", ranks,
		       tokens, v[(iters + 1) / 2 - 1], v[(iters * 99 + 99) / 100 - 1],
		       good ? "true" : "false");
	}
	if (symmetric) {
		must(moeep_mem_free(comm, rows), "moeep_mem_free");
	}
	must(moeep_handle_destroy(handle), "moeep_handle_destroy");
	must(moeep_buffer_destroy(buffer), "moeep_buffer_destroy");
	must(moeep_comm_destroy(comm), "moeep_comm_destroy");
	MPI_Finalize();
	return !good;
}
