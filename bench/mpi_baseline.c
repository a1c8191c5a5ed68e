/* SPDX-License-Identifier: MIT */
/* bench/mpi_baseline.c - dispatch and combine with MPI collectives only: see bench/README.md. */
#define _GNU_SOURCE
#include <getopt.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define NROUTES 4	/* routings made before the timing, rotated over the iterations */
#define MAX_RANKS 64	/* the destinations of a token are kept as one 64-bit mask */
#define MAX_TOPK 64
#define LIMIT 4096	/* of experts and of iterations, checks included */

struct term {			/* an expert and its weight; or a row of a sum and its weight */
	int64_t id;
	float w;
};

static int tokens, hidden = 7168, topk = 8, experts = 256, iters, warmup = 3, seed = 1;
static int ll, json, rank, ranks;
static int first[MAX_RANKS + 1];	/* first expert of each rank */
static int owner[LIMIT];		/* rank of each expert */
static size_t row_size;
static uint16_t *x, *y;			/* [tokens][hidden] input, combined output */
static uint16_t *sendbuf, *recvbuf;	/* rows by (destination, token), by (source, token) */
static uint16_t *expert_rows;		/* LL: [local experts][ranks * tokens][hidden] */
static struct term *route;		/* [NROUTES][tokens][topk] global expert ids */
static struct term *send_meta, *recv_meta; /* [rows][topk] local expert ids, -1 where elsewhere */
static struct term *sent, *placed;	/* [][topk] rows to sum: per token, in sendbuf; LL: per */
static int *nsent, *nplaced;		/* row of recvbuf, in expert_rows; [] how many */
static int scount[MAX_RANKS], sdispl[MAX_RANKS + 1], rcount[MAX_RANKS], rdispl[MAX_RANKS + 1];
static MPI_Datatype row_type, meta_type;
static double us[3][LIMIT];

static uint64_t mix64(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return (z ^ (z >> 31)) + 0x9e3779b97f4a7c15u;
}

static inline float bf16_to_f32(uint16_t b)
{
	return (union { uint32_t u; float f; }){ .u = (uint32_t)b << 16 }.f;
}

/* Round to nearest even; every value here is finite. */
static inline uint16_t f32_to_bf16(float f)
{
	uint32_t u = (union { float f; uint32_t u; }){ .f = f }.u;

	return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline uint16_t *row_at(uint16_t *buf, int64_t i)
{
	return buf + i * hidden;
}

/* Finite BF16 values of either sign that differ per author, source rank, token and element. */
static inline uint16_t payload(int author, int src, int t, int i)
{
	uint64_t row = (uint64_t)(author * MAX_RANKS + src) * (uint64_t)tokens + (uint64_t)t;
	uint64_t h = mix64(((uint64_t)seed << 48) + (row << 16) + (uint64_t)i);

	return (uint16_t)((h & 0x8000u) | (0x3c00u + (h & 0x3ffu)));
}

/* The choices of one token: a pure function of its arguments, so that every rank can check them. */
static void make_route(struct term *c, int src, int r, int t)
{
	uint64_t s = mix64(mix64((uint64_t)seed) + (uint64_t)((src * NROUTES + r) * tokens + t));

	for (int k = 0, j; k < topk; k += j == k) {
		s = mix64(s + 1);
		c[k].id = (int64_t)((s >> 32) % (uint64_t)experts);
		c[k].w = (float)((s & 0xffff) + 1) / 65536.0f;
		for (j = 0; c[j].id != c[k].id;) {
			j++;
		}
	}
}

static inline uint64_t dest_mask(const struct term *c)
{
	uint64_t mask = 0;

	for (int k = 0; k < topk; k++) {
		mask |= (uint64_t)1 << owner[c[k].id];
	}
	return mask;
}

/* Inlined with a constant n, the sums stay in registers and the loop over i is vectorised. */
static inline __attribute__((always_inline)) void
sum_n(uint16_t *restrict out, uint16_t *buf, const struct term *c, int n)
{
	for (int i = 0; i < hidden; i++) {
		float sum = c[0].w * bf16_to_f32(row_at(buf, c[0].id)[i]);

		for (int j = 1; j < n; j++) {
			sum += c[j].w * bf16_to_f32(row_at(buf, c[j].id)[i]);
		}
		out[i] = f32_to_bf16(sum);
	}
}

/* Each output is the sum of its n weighted rows of buf in FP32, in their order, rounded once. */
static void sum_rows(uint16_t *out, uint16_t *buf, const struct term *c, const int *n, int outputs)
{
	for (int o = 0; o < outputs; o++, out += hidden, c += topk) {
		switch (n[o]) {
#define CASE(n) case n: sum_n(out, buf, c, n); break;
		CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
		default:
			sum_n(out, buf, c, n[o]);
		}
	}
}

/* A row to each distinct rank of a token; LL: then a copy to each expert that it chose there. */
static void dispatch(int r)
{
	int next[MAX_RANKS], fill[LIMIT] = { 0 }; /* rows so far: of a rank; LL: of an expert */

	memset(scount, 0, sizeof(scount));
	for (int t = 0; t < tokens; t++) {
		for (uint64_t m = dest_mask(route + (r * tokens + t) * topk); m; m &= m - 1) {
			scount[__builtin_ctzll(m)]++;
		}
	}
	MPI_Alltoall(scount, 1, MPI_INT, rcount, 1, MPI_INT, MPI_COMM_WORLD);
	for (int d = 0; d < ranks; d++) {
		next[d] = sdispl[d];
		sdispl[d + 1] = sdispl[d] + scount[d];
		rdispl[d + 1] = rdispl[d] + rcount[d];
	}
	for (int t = 0; t < tokens; t++) {
		const struct term *c = route + (r * tokens + t) * topk;

		nsent[t] = 0;
		for (uint64_t m = dest_mask(c); m; m &= m - 1) {
			int d = __builtin_ctzll(m), row = next[d]++;

			for (int k = 0; k < topk; k++) {
				send_meta[row * topk + k] = owner[c[k].id] != d ?
					(struct term){ -1, 0.0f } :
					(struct term){ c[k].id - first[d], c[k].w };
			}
			memcpy(row_at(sendbuf, row), row_at(x, t), row_size);
			sent[t * topk + nsent[t]++] = (struct term){ row, 1.0f };
		}
	}
	MPI_Alltoallv(send_meta, scount, sdispl, meta_type, recv_meta, rcount, rdispl, meta_type,
		      MPI_COMM_WORLD);
	MPI_Alltoallv(sendbuf, scount, sdispl, row_type, recvbuf, rcount, rdispl, row_type,
		      MPI_COMM_WORLD);
	for (int i = 0; ll && i < rdispl[ranks]; i++) {
		const struct term *c = recv_meta + i * topk;

		nplaced[i] = 0;
		for (int k = 0; k < topk; k++) {
			if (c[k].id >= 0) {
				int64_t at = c[k].id * ranks * tokens + fill[c[k].id]++;

				placed[i * topk + nplaced[i]++] = (struct term){ at, c[k].w };
				memcpy(row_at(expert_rows, at), row_at(recvbuf, i), row_size);
			}
		}
	}
}

/* Each row goes back to its place in sendbuf, and the source sums them, ranks ascending. */
static void combine(void)
{
	sum_rows(recvbuf, expert_rows, placed, nplaced, ll ? rdispl[ranks] : 0);
	MPI_Alltoallv(recvbuf, rcount, rdispl, row_type, sendbuf, scount, sdispl, row_type,
		      MPI_COMM_WORLD);
	sum_rows(y, sendbuf, sent, nsent, tokens);
}

static bool wrong(const char *what, int src, int t, int i, int got, int want)
{
	fprintf(stderr, "%s: rank %d, source %d, token %d, position %d: %#x, expected %#x\n", what,
		rank, src, t, i, (unsigned)got, (unsigned)want);
	return false;
}

/* Compare all rows with routing r; their author becomes the rank (HT) or the expert (LL). */
static bool check_dispatch(int r)
{
	int seen[LIMIT] = { 0 }, row = 0;
	struct term c[MAX_TOPK];

	for (int st = 0; st < ranks * tokens; st++) {
		int src = st / tokens, t = st % tokens, n = 0;

		make_route(c, src, r, t);
		for (int k = 0; dest_mask(c) >> rank & 1 && k < topk; k++) {
			const struct term *got = &recv_meta[row * topk + k];
			int id = (int)c[k].id, e = owner[id] == rank ? id - first[rank] : -1;
			uint16_t *in, want;

			if (got->id != e || got->w != (e >= 0 ? c[k].w : 0.0f)) {
				return wrong("dispatch metadata", src, t, k, (int)got->id, e);
			}
			if (e < 0 || (n++ && !ll)) {
				continue;
			}
			in = !ll ? row_at(recvbuf, row) :
			     row_at(expert_rows, (int64_t)e * ranks * tokens + seen[e]++);
			for (int i = 0; i < hidden; i++) {
				want = payload(0, src, t, i);
				if (in[i] != want) {
					return wrong("dispatch", src, t, i, in[i], want);
				}
				in[i] = payload(1 + (ll ? id : rank), src, t, i);
			}
		}
		row += n > 0;
	}
	return row == rdispl[ranks] || wrong("dispatch rows", 0, 0, 0, rdispl[ranks], row);
}

/* Compare y with the ordered FP32 sums of the rows that check_dispatch left. */
static bool check_combine(int r)
{
	for (int t = 0; t < tokens; t++) {
		const struct term *c = route + (r * tokens + t) * topk;

		for (int i = 0; i < hidden; i++) {
			uint16_t got = row_at(y, t)[i];
			float sum = 0.0f;

			for (uint64_t m = dest_mask(c); m; m &= m - 1) {
				int d = __builtin_ctzll(m);
				float part = 0.0f;

				for (int k = 0; k < topk; k++) {
					int author = 1 + (ll ? (int)c[k].id : d);

					if (owner[c[k].id] == d) {
						part = (ll ? part : 0.0f) + (ll ? c[k].w : 1.0f) *
							bf16_to_f32(payload(author, rank, t, i));
					}
				}
				sum += bf16_to_f32(f32_to_bf16(part));
			}
			if (got != f32_to_bf16(sum)) {
				return wrong("combine", rank, t, i, got, f32_to_bf16(sum));
			}
		}
	}
	return true;
}

static void parse(int argc, char **argv)
{
	int *values[] = { &tokens, &hidden, &topk, &experts, &iters, &warmup, &seed, &ll, &json };
	const struct option options[] = {
		{ "tokens", 1, 0, 0 }, { "hidden", 1, 0, 0 }, { "topk", 1, 0, 0 },
		{ "experts", 1, 0, 0 }, { "iters", 1, 0, 0 }, { "warmup", 1, 0, 0 },
		{ "seed", 1, 0, 0 }, { "mode", 1, 0, 0 }, { "json", 0, 0, 0 }, { 0 },
	};
	int o, c;

	while (!(c = getopt_long(argc, argv, "", options, &o))) {
		*values[o] = !optarg || !strcmp(optarg, "ll") ? 1 : atoi(optarg);
	}
	tokens = tokens ? tokens : ll ? 128 : 4096;
	iters = iters ? iters : ll ? 100 : 20;
	if (c != -1 || optind < argc || tokens < 1 || hidden < 1 || topk < 1 || topk > MAX_TOPK ||
	    topk > experts || experts > LIMIT || ranks > MAX_RANKS || iters < 1 ||
	    warmup < 0 || iters + warmup + 2 * NROUTES > LIMIT) {
		fprintf(stderr, "bad arguments: see bench/README.md\n");
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
}

static void *alloc_touched(int count, size_t size)
{
	size_t bytes = (((size_t)count * size >> 21) + 1) << 21;
	void *p = aligned_alloc((size_t)1 << 21, bytes);

	if (!p) {
		fprintf(stderr, "rank %d: no memory for %zu bytes\n", rank, bytes);
		MPI_Abort(MPI_COMM_WORLD, 1);
	}
	madvise(p, bytes, MADV_HUGEPAGE);
	return memset(p, 0, bytes);
}

static void setup(void)
{
	int all = tokens * ranks, most = tokens * (topk < ranks ? topk : ranks);
	size_t meta_size = (size_t)topk * sizeof(struct term);

	row_size = (size_t)hidden * sizeof(uint16_t);
	MPI_Type_contiguous((int)row_size, MPI_BYTE, &row_type);
	MPI_Type_contiguous((int)meta_size, MPI_BYTE, &meta_type);
	MPI_Type_commit(&row_type);
	MPI_Type_commit(&meta_type);
	for (int d = 0, e = 0; d < ranks; d++) {
		first[d + 1] = first[d] + experts / ranks + (d < experts % ranks);
		while (e < first[d + 1]) {
			owner[e++] = d;
		}
	}
	x = alloc_touched(tokens, row_size);
	y = alloc_touched(tokens, row_size);
	sendbuf = alloc_touched(most, row_size);
	recvbuf = alloc_touched(all, row_size);
	send_meta = alloc_touched(most, meta_size);
	recv_meta = alloc_touched(all + 1, meta_size);
	sent = alloc_touched(tokens, meta_size);
	nsent = alloc_touched(tokens, sizeof(int));
	placed = alloc_touched(all, meta_size);
	nplaced = alloc_touched(all, sizeof(int));
	expert_rows = alloc_touched(ll * all * (first[rank + 1] - first[rank]), row_size);
	route = alloc_touched(NROUTES * tokens, meta_size);
	for (int i = 0; i < NROUTES * tokens; i++) {
		make_route(route + i * topk, rank, i / tokens, i % tokens);
	}
	for (int i = 0; i < tokens * hidden; i++) {
		x[i] = payload(0, rank, i / hidden, i % hidden);
	}
}

static double now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b)
{
	double d = *(const double *)a - *(const double *)b;

	return (d > 0) - (d < 0);
}

int main(int argc, char **argv)
{
	const char *op[] = { "dispatch", "combine", "both" };
	int good[3] = { 1, 1, 1 }, end;
	double start, rows = 0;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	parse(argc, argv);
	setup();
	end = NROUTES + warmup + iters;
	/* Each routing is checked once before the warm-up and once after the timed iterations. */
	for (int i = 0; i < end + NROUTES; i++) {
		bool check = i < NROUTES || i >= end;

		MPI_Barrier(MPI_COMM_WORLD);
		start = now_us();
		dispatch(i % NROUTES);
		us[0][i] = now_us() - start;
		if (check) {
			good[2] &= good[0] &= check_dispatch(i % NROUTES);
			rows += ll ? tokens * topk : rdispl[ranks];
		}
		MPI_Barrier(MPI_COMM_WORLD);
		start = now_us();
		combine();
		us[1][i] = now_us() - start;
		us[2][i] = us[0][i] + us[1][i];
		if (check) {
			good[2] &= good[1] &= check_combine(i % NROUTES);
		}
	}
	MPI_Allreduce(MPI_IN_PLACE, good, 3, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
	MPI_Allreduce(MPI_IN_PLACE, &rows, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
	MPI_Allreduce(MPI_IN_PLACE, us, 3 * LIMIT, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
	for (int o = 0; !rank && o < 2 + ll; o++) {
		double *v = us[o] + end - iters;

		qsort(v, (size_t)iters, sizeof(*v), by_value);
		printf(json ? "{\"op\": \"%s_%s\", \"ranks\": %d, \"tokens\": %d, \"hidden\": %d, "
		       "\"topk\": %d, \"experts\": %d, \"median_us\": %.1f, \"p99_us\": %.1f, "
		       "\"bytes_logical\": %.0f, \"validated\": %s}\n" :
		       "%s_%s R=%d M=%d H=%d K=%d E=%d: %.1f us, p99 %.1f us, %.0f B, valid %s\n",
		       ll ? "ll" : "ht", op[o], ranks, tokens, hidden, topk, experts,
		       v[(iters + 1) / 2 - 1], v[(iters * 99 + 99) / 100 - 1],
		       rows / (2 * NROUTES * ranks) * (double)row_size * (o == 2 ? 2 : 1),
		       good[o] ? "true" : "false");
	}
	MPI_Finalize();
	return !good[2];
}
