/* SPDX-License-Identifier: MIT */
/*
 * HT operations, one round after the other, through rings of two tokens.
 *
 * Elements are small whole numbers in FP32, so that every sum is exact and what is expected needs
 * no oracle: a row's elements are a hash of round, source, token and place.
 */
#include "config.h"

#include "t/protocol/stress.h"

#include <string.h>

#define TOPK	     3
#define EXPERTS	     2 /* of each rank */
#define HIDDEN	     32
#define TOKENS	     20
#define CAPACITY     (STRESS_RANKS * TOKENS * TOPK) /* rows, whoever gets them */
#define ROW_BYTES    (HIDDEN * sizeof(float))
#define WEIGHTS_BACK 1000.0f

struct flow {
	const struct stress *s;
	int row_layout;
	bool combine; /* else cached dispatches follow */
	int direct;   /* this many ranks, from 0, have rows in symmetric memory */
};

struct row {
	int src;
	int token;
	int expert; /* expert-major only */
	int k;
};

/* One rank's run. */
struct run {
	const struct flow *flow;
	int rank;
	struct rng rng;
	moeep_comm_t *comm;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct row rows[CAPACITY]; /* expected */
	int64_t num_rows;
	float *recv_x, *expert_x; /* [CAPACITY, HIDDEN], in symmetric memory or below */
	_Alignas(64) float memory[2][CAPACITY * HIDDEN];
	_Alignas(64) float x[TOKENS * HIDDEN];
	_Alignas(64) float out[TOKENS * HIDDEN];
	int64_t topk[TOKENS * TOPK];
	float weights[TOKENS * TOPK];
	float out_weights[TOKENS * TOPK];
	float recv_weights[CAPACITY * TOPK];
	float expert_weights[CAPACITY * TOPK];
	int32_t src_token[CAPACITY];
	int32_t src_rank[CAPACITY];
};

/*
 * One rank alone has tokens in every fourth round: then it hears of the others by one flag only,
 * and no other flag orders what that one has to order.
 */
static int tokens_of(const struct stress *s, int round, int rank)
{
	if (round % 4 == 0) {
		return rank == round / 4 % s->num_ranks ? TOKENS : 0;
	}
	return (int)(stress_mix(s, (uint64_t)round, 4, (uint64_t)rank) % (TOKENS + 1));
}

/* -1 is none. */
static int choice(const struct stress *s, int round, int src, int token, int k)
{
	uint64_t hash =
		stress_mix(s, (uint64_t)round, stress_token(src, token), 1000 + (uint64_t)k);

	return (int)(hash % (uint64_t)(EXPERTS * s->num_ranks + 1)) - 1;
}

/* Of one of several sets of rows in a round. */
static float element(const struct stress *s, int round, int set, int src, int token, int i)
{
	uint64_t row = (uint64_t)(round * 4 + set);

	return (float)(stress_mix(s, row, stress_token(src, token), (uint64_t)i) % 1024);
}

static float weight(const struct stress *s, int round, int src, int token, int k)
{
	uint64_t id = stress_token(src, token);

	return (float)(stress_mix(s, (uint64_t)round, id, 2000 + (uint64_t)k) % 256);
}

/* What an expert, or flat a rank, makes of a row. */
static float answer(const struct stress *s, int round, const struct row *row, int owner, int i)
{
	return element(s, round, 2, row->src, row->token, i) + (float)(5 * owner);
}

static void list_rows(struct run *r, int round)
{
	const struct stress *s = r->flow->s;
	int first = r->rank * EXPERTS;
	bool flat = r->flow->row_layout == MOEEP_ROWS_FLAT;

	r->num_rows = 0;
	for (int e = first; e < (flat ? first + 1 : first + EXPERTS); e++) {
		for (int src = 0; src < s->num_ranks; src++) {
			for (int t = 0; t < tokens_of(s, round, src); t++) {
				for (int k = 0; k < TOPK; k++) {
					int to = choice(s, round, src, t, k);

					if (flat ? to >= 0 && to / EXPERTS == r->rank : to == e) {
						r->rows[r->num_rows++] =
							(struct row){src, t, to, k};
						k = flat ? TOPK : k;
					}
				}
			}
		}
	}
}

static void fill_input(struct run *r, int round, int set)
{
	const struct stress *s = r->flow->s;

	for (int t = 0; t < tokens_of(s, round, r->rank); t++) {
		for (int i = 0; i < HIDDEN; i++) {
			r->x[t * HIDDEN + i] = element(s, round, set, r->rank, t, i);
		}
		for (int k = 0; k < TOPK; k++) {
			r->topk[t * TOPK + k] = choice(s, round, r->rank, t, k);
			r->weights[t * TOPK + k] = weight(s, round, r->rank, t, k);
		}
	}
}

static void spoil(void *memory, size_t bytes)
{
	memset(memory, 0xff, bytes); /* NaN */
}

static int check_number(float got, float want, const char *what, int round, int row, int i)
{
	rank_check(got == want, "round %d %s %d, element %d: %g, not %g", round, what, row, i,
		   (double)got, (double)want);
	return got == want ? 0 : -1;
}

static int check_row(const struct run *r, int round, int set, int64_t at)
{
	const struct stress *s = r->flow->s;
	const struct row *row = &r->rows[at];
	bool flat = r->flow->row_layout == MOEEP_ROWS_FLAT;

	if (!rank_check(r->src_rank[at] == row->src && r->src_token[at] == row->token,
			"round %d row %lld: token %d of rank %d, expected %d of %d", round,
			(long long)at, r->src_token[at], r->src_rank[at], row->token, row->src)) {
		return -1;
	}
	for (int i = 0; i < HIDDEN; i++) {
		float want = element(s, round, set, row->src, row->token, i);
		float got = r->recv_x[at * HIDDEN + i];

		RANK_DO(check_number(got, want, "row", round, (int)at, i));
	}
	for (int k = 0; k < (flat ? TOPK : 1); k++) {
		int own = flat ? k : row->k;
		int to = choice(s, round, row->src, row->token, own);
		float want = to >= 0 && to / EXPERTS == r->rank
				     ? weight(s, round, row->src, row->token, own)
				     : 0;
		float got = r->recv_weights[flat ? at * TOPK + k : at];

		RANK_DO(check_number(got, want, "weight", round, (int)at, k));
	}
	return 0;
}

static int dispatch(struct run *r, int round, int set, bool cached)
{
	const struct stress *s = r->flow->s;
	int64_t num_recv = -1;
	moeep_dispatch_args_t args = {
		.size = sizeof(args),
		.flags = cached ? MOEEP_DISPATCH_CACHED : 0,
		.dtype = MOEEP_FP32,
		.num_tokens = cached ? 0 : tokens_of(s, round, r->rank),
		.x = r->x,
		.topk_idx = cached ? NULL : r->topk,
		.topk_weights = cached ? NULL : r->weights,
		.row_layout = r->flow->row_layout,
		.capacity = CAPACITY,
		.recv_x = r->recv_x,
		.recv_topk_weights = r->recv_weights,
		.recv_src_token = r->src_token,
		.recv_src_rank = r->src_rank,
		.num_recv = &num_recv,
	};

	fill_input(r, round, set);
	spoil(r->recv_x, CAPACITY * ROW_BYTES);
	spoil(r->recv_weights, sizeof(r->recv_weights));
	spoil(r->src_token, sizeof(r->src_token));
	spoil(r->src_rank, sizeof(r->src_rank));
	stress_pause(s, &r->rng, r->rank, 2 * round + set % 2);
	RANK_TRY(moeep_dispatch(r->buffer, r->handle, &args, NULL));
	spoil(r->x, sizeof(r->x));
	/* Peers that are ahead have begun the next call: they must not write here yet. */
	if (rng_chance(&r->rng, 30)) {
		stress_sleep_us(200);
	}
	if (!rank_check(num_recv == r->num_rows, "round %d: %lld rows, expected %lld", round,
			(long long)num_recv, (long long)r->num_rows)) {
		return -1;
	}
	for (int64_t at = 0; at < num_recv; at++) {
		RANK_DO(check_row(r, round, set, at));
	}
	return 0;
}

static void fill_answers(struct run *r, int round)
{
	const struct stress *s = r->flow->s;
	bool flat = r->flow->row_layout == MOEEP_ROWS_FLAT;

	for (int64_t at = 0; at < r->num_rows; at++) {
		const struct row *row = &r->rows[at];

		for (int i = 0; i < HIDDEN; i++) {
			r->expert_x[at * HIDDEN + i] =
				answer(s, round, row, flat ? r->rank : row->expert, i);
		}
		for (int k = 0; k < (flat ? TOPK : 1); k++) {
			r->expert_weights[flat ? at * TOPK + k : at] =
				weight(s, round, row->src, row->token, flat ? k : row->k) +
				WEIGHTS_BACK;
		}
	}
}

/* The sum of a token's answers: flat, one of each rank that has it; else one of each choice. */
static float answers(const struct run *r, int round, int t, int i)
{
	const struct stress *s = r->flow->s;
	struct row row = {.src = r->rank, .token = t};
	bool flat = r->flow->row_layout == MOEEP_ROWS_FLAT;
	float sum = 0;

	for (int k = 0; k < TOPK; k++) {
		int to = choice(s, round, r->rank, t, k);
		bool again = false;

		for (int j = 0; flat && j < k; j++) {
			int other = choice(s, round, r->rank, t, j);

			again |= to >= 0 && other >= 0 && other / EXPERTS == to / EXPERTS;
		}
		if (to >= 0 && !again) {
			sum += answer(s, round, &row, flat ? to / EXPERTS : to, i);
		}
	}
	return sum;
}

static int combine(struct run *r, int round)
{
	const struct stress *s = r->flow->s;
	moeep_combine_args_t args = {
		.size = sizeof(args),
		.dtype = MOEEP_FP32,
		.x = r->expert_x,
		.topk_weights = r->expert_weights,
		.out = r->out,
		.out_topk_weights = r->out_weights,
	};

	fill_answers(r, round);
	spoil(r->out, sizeof(r->out));
	spoil(r->out_weights, sizeof(r->out_weights));
	stress_pause(s, &r->rng, r->rank, 2 * round + 1);
	RANK_TRY(moeep_combine(r->buffer, r->handle, &args, NULL));
	/* At once: nobody may still be reading. */
	spoil(r->expert_x, CAPACITY * ROW_BYTES);
	spoil(r->expert_weights, sizeof(r->expert_weights));
	for (int t = 0; t < tokens_of(s, round, r->rank); t++) {
		for (int i = 0; i < HIDDEN; i++) {
			float want = answers(r, round, t, i), got = r->out[t * HIDDEN + i];

			RANK_DO(check_number(got, want, "sum", round, t, i));
		}
		for (int k = 0; k < TOPK; k++) {
			int to = choice(s, round, r->rank, t, k);
			float want = to < 0 ? 0 : weight(s, round, r->rank, t, k) + WEIGHTS_BACK;
			float got = r->out_weights[t * TOPK + k];

			RANK_DO(check_number(got, want, "value", round, t, k));
		}
	}
	return 0;
}

static int make_rows(struct run *r, int index, float **rows)
{
	bool direct = r->rank < r->flow->direct;
	void *memory = NULL;

	RANK_TRY(moeep_mem_alloc(r->comm, direct ? CAPACITY * ROW_BYTES : 0, 0, &memory));
	*rows = direct ? memory : r->memory[index];
	return 0;
}

static int open_run(struct run *r)
{
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.modes = MOEEP_MODE_HT,
		.num_experts = EXPERTS * r->flow->s->num_ranks,
		.max_topk = TOPK,
		.dtype = MOEEP_FP32,
		.hidden = HIDDEN,
		.ht_max_tokens = TOKENS,
		.ht_chunk_bytes = 16,
		.ht_chunks = 2,
		/* Epochs wrap on the way. */
		.initial_epoch = (UINT64_C(1) << 40) - 5,
	};

	RANK_TRY(moeep_buffer_create(r->comm, &config, &r->buffer));
	RANK_TRY(moeep_handle_create(r->buffer, NULL, &r->handle));
	RANK_DO(make_rows(r, 0, &r->recv_x));
	return make_rows(r, 1, &r->expert_x);
}

static int all_rounds(struct run *r)
{
	for (int round = 0; round < r->flow->s->rounds; round++) {
		list_rows(r, round);
		RANK_DO(dispatch(r, round, 0, false));
		if (r->flow->combine) {
			RANK_DO(combine(r, round));
		} else {
			RANK_DO(dispatch(r, round, 1, true));
		}
	}
	return 0;
}

static int ht_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct flow *flow = arg;
	struct run *r = util_alloc(sizeof(*r));
	int rc;

	r->flow = flow;
	r->rank = rank;
	r->comm = comm;
	r->rng = stress_rng(flow->s, rank);
	rc = open_run(r);
	if (rc == 0) {
		rc = stress_end(all_rounds(r), comm);
	}
	rank_ok(moeep_handle_destroy(r->handle));
	rank_ok(moeep_buffer_destroy(r->buffer));
	/* Symmetric memory goes with the comm. */
	util_free(r);
	return rc;
}

static void run(const struct stress *s, int row_layout, bool combines, int direct)
{
	struct flow flow = {s, row_layout, combines, direct};

	stress_run(s, ht_body, &flow);
}

void stress_ht_rows(const struct stress *s)
{
	run(s, MOEEP_ROWS_FLAT, false, 0);
}

void stress_ht_direct(const struct stress *s)
{
	run(s, MOEEP_ROWS_FLAT, true, s->num_ranks);
}

void stress_ht_combine(const struct stress *s)
{
	run(s, MOEEP_ROWS_FLAT, true, 0);
}

/* Expert-major rows, and one rank without symmetric memory among others that have it. */
void stress_ht_experts(const struct stress *s)
{
	run(s, MOEEP_ROWS_EXPERT_MAJOR, true, s->num_ranks - 1);
}
