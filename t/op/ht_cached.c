/* SPDX-License-Identifier: MIT */
/* Handles used again: cached dispatch, counts before rows, many times, the backward pass. */
#include "config.h"

#include <math.h>
#include <string.h>

#include "t/op/ht.h"

#define ROUNDS 6

/* The same routing with other rows, types and weights. */
enum { FIRST, OTHER_ROWS, OTHER_WEIGHTS, CASES };

struct cached {
	struct ht_case c[CASES];
};

static int cached_without_weights(const struct ht_case *c, int rank, moeep_comm_t *comm,
				  moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	struct ht_dispatch d;

	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, MOEEP_DISPATCH_CACHED));
	/* The handle's go along. */
	d.args.topk_weights = NULL;
	ht_dispatch_end(&d, op_dispatch(buffer, handle, &d.args, NULL));
	return 0;
}

static int cached_explicit(const struct ht_case *c, int rank, moeep_comm_t *comm,
			   moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	struct ht_dispatch d;

	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, MOEEP_DISPATCH_CACHED));
	d.args.num_tokens = c->spec.tokens[rank];
	d.args.topk = c->spec.topk;
	d.args.row_layout = c->row_layout;
	d.args.expert_alignment = c->rank[rank].alignment;
	ht_dispatch_end(&d, op_dispatch(buffer, handle, &d.args, NULL));
	return 0;
}

static int cached_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = ((struct cached *)arg)->c;
	moeep_handle_info_t before = {.size = sizeof(before)}, after = {.size = sizeof(after)};
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;

	RANK_DO(ht_open(&c[OTHER_ROWS], comm, &buffer, &handle));
	RANK_DO(ht_dispatch(&c[FIRST], rank, comm, buffer, handle, 0));
	RANK_TRY(moeep_handle_query(handle, &before));
	RANK_DO(ht_combine(&c[FIRST], rank, comm, buffer, handle));
	RANK_DO(cached_without_weights(&c[OTHER_ROWS], rank, comm, buffer, handle));
	RANK_DO(ht_combine(&c[OTHER_ROWS], rank, comm, buffer, handle));
	RANK_DO(cached_explicit(&c[OTHER_ROWS], rank, comm, buffer, handle));
	RANK_DO(ht_dispatch(&c[OTHER_WEIGHTS], rank, comm, buffer, handle, MOEEP_DISPATCH_CACHED));
	/* Weights sent by a cached dispatch become the handle's, on both sides. */
	RANK_DO(ht_combine(&c[OTHER_WEIGHTS], rank, comm, buffer, handle));
	RANK_DO(cached_without_weights(&c[OTHER_WEIGHTS], rank, comm, buffer, handle));
	ht_query(&c[FIRST], rank, handle);
	RANK_TRY(moeep_handle_query(handle, &after));
	rank_check(after.epoch == before.epoch, "the handle's epoch went from %llu to %llu",
		   (unsigned long long)before.epoch, (unsigned long long)after.epoch);
	return ht_close(buffer, handle);
}

static void cached(int num_ranks, bool processes, int row_layout)
{
	static struct cached set;
	struct op_spec spec = {
		.num_ranks = num_ranks,
		.num_experts = 2 * num_ranks + 1,
		.topk = 3,
		.hidden = 48,
		.weights = true,
		.routing = ROUTE_MASKED,
		.seed = op_seed() + (uint64_t)num_ranks,
	};

	op_tokens_vary(&spec, 20);
	for (int i = 0; i < CASES; i++) {
		set.c[i] = (struct ht_case){.spec = spec, .row_layout = row_layout};
		set.c[i].spec.x_seed = (uint64_t)i;
		set.c[i].weighted = row_layout == MOEEP_ROWS_EXPERT_MAJOR && i != OTHER_ROWS;
		for (int r = 0; r < num_ranks; r++) {
			set.c[i].rank[r].alignment = r % 2 ? 4 : 1;
		}
	}
	set.c[OTHER_ROWS].spec.dtype = MOEEP_FP32;
	set.c[OTHER_ROWS].combine_dtype = MOEEP_FP32;
	set.c[OTHER_ROWS].spec.scale_count = 2;
	set.c[OTHER_WEIGHTS].spec.w_seed = 77;
	for (int i = 0; i < CASES; i++) {
		ht_case_make(&set.c[i]);
	}
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes},
		  cached_body, &set, "cached dispatch, layout %d", row_layout);
	for (int i = 0; i < CASES; i++) {
		ht_case_free(&set.c[i]);
	}
}

/* Exchange the counts, make outputs to size, then move the rows. */
static int counts_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	moeep_handle_info_t info = {.size = sizeof(info)};
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	for (int i = 0; i < 3; i++) {
		RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, MOEEP_DISPATCH_COUNTS_ONLY));
		RANK_TRY(moeep_handle_query(handle, &info));
		rank_check(info.num_recv == c->capacity[rank], "the handle tells %lld rows",
			   (long long)info.num_recv);
		RANK_DO(cached_without_weights(c, rank, comm, buffer, handle));
		RANK_DO(ht_combine(c, rank, comm, buffer, handle));
	}
	return ht_close(buffer, handle);
}

static void counts(int num_ranks, bool processes, int row_layout)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 3 * num_ranks + 2,
				.topk = 4,
				.hidden = 64,
				.weights = true,
				.scale_count = 3,
				.routing = ROUTE_ANY,
				.seed = op_seed() + (uint64_t)num_ranks,
			},
		.row_layout = row_layout,
		.weighted = row_layout == MOEEP_ROWS_EXPERT_MAJOR,
		.send_weights = true,
	};

	op_tokens_vary(&c.spec, 20);
	for (int r = 0; r < num_ranks; r++) {
		c.rank[r].alignment = 1 + r % 3;
	}
	ht_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes},
		  counts_body, &c, "counts, then rows, layout %d", row_layout);
	ht_case_free(&c);
}

/* One handle, and two in turn, through many dispatches of changing routing. */
struct many {
	struct ht_case c[ROUNDS];
	int times;
};

static int many_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct many *many = arg;
	struct rng rng = {99};
	moeep_buffer_t *buffer;
	moeep_handle_t *handle[2];
	int holds[2] = {0, 1};

	RANK_DO(ht_open(&many->c[0], comm, &buffer, &handle[0]));
	RANK_TRY(moeep_handle_create(buffer, NULL, &handle[1]));
	RANK_DO(op_ready(comm));
	RANK_DO(ht_dispatch(&many->c[0], rank, comm, buffer, handle[0], 0));
	RANK_DO(ht_dispatch(&many->c[1], rank, comm, buffer, handle[1], 0));
	for (int i = 0; i < many->times; i++) {
		int which = (int)rng_range(&rng, 0, 1);
		const struct ht_case *c = &many->c[holds[which]];

		switch (rng_range(&rng, 0, 3)) {
		case 0:
			holds[which] = (int)rng_range(&rng, 0, ROUNDS - 1);
			c = &many->c[holds[which]];
			RANK_DO(ht_dispatch(c, rank, comm, buffer, handle[which], 0));
			break;
		case 1:
			RANK_DO(cached_without_weights(c, rank, comm, buffer, handle[which]));
			break;
		default:
			RANK_DO(ht_combine(c, rank, comm, buffer, handle[which]));
			break;
		}
	}
	RANK_TRY(moeep_handle_destroy(handle[1]));
	return ht_close(buffer, handle[0]);
}

static void many_times(int num_ranks, bool processes, int times)
{
	static struct many many;

	many.times = times;
	for (int i = 0; i < ROUNDS; i++) {
		many.c[i] = (struct ht_case){
			.spec =
				{
					.num_ranks = num_ranks,
					.num_experts = 12,
					.topk = 3,
					.hidden = 16,
					.weights = i % 2,
					.routing = (enum op_routing)(i % ROUTE_KINDS),
					.seed = op_seed() + (uint64_t)i,
				},
			.row_layout = i % 3 == 0 ? MOEEP_ROWS_EXPERT_MAJOR : MOEEP_ROWS_FLAT,
			.max_tokens = 10,
		};
		op_tokens_vary(&many.c[i].spec, 10);
		ht_case_make(&many.c[i]);
	}
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes}, many_body,
		  &many, "two handles, %d operations", times);
	for (int i = 0; i < ROUNDS; i++) {
		ht_case_free(&many.c[i]);
	}
}

/*
 * The backward pass: dispatch and combine are linear and each other's transpose, so
 * <dispatch(x), y> = <x, combine(y)>, summed over all ranks, without any help of the oracle.
 */
struct transpose {
	struct ht_case c;
	double (*products)[2]; /* [R], shared */
};

static double product(const float *a, const float *b, int64_t count)
{
	double sum = 0;

	for (int64_t i = 0; i < count; i++) {
		sum += (double)a[i] * (double)b[i];
	}
	return sum;
}

static int transpose_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct transpose *t = arg;
	const struct ht_case *c = &t->c;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ht_dispatch forward, backward;
	struct ht_combine combine;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(ht_dispatch_begin(&forward, c, rank, comm, 0));
	RANK_TRY(op_dispatch(buffer, handle, &forward.args, NULL));
	/* The gradient of dispatch is combine. */
	RANK_DO(ht_combine_begin(&combine, c, rank, comm));
	RANK_TRY(op_combine(buffer, handle, &combine.args, NULL));
	t->products[rank][0] = product(forward.args.recv_x, combine.args.x,
				       c->side[rank].rows.count * c->spec.hidden);
	t->products[rank][1] =
		product(forward.args.x, combine.args.out, c->spec.tokens[rank] * c->spec.hidden);
	ht_dispatch_end(&forward, MOEEP_OK);
	ht_combine_end(&combine, MOEEP_OK);
	/* That of combine is a cached dispatch. */
	RANK_DO(ht_dispatch_begin(&backward, c, rank, comm, MOEEP_DISPATCH_CACHED));
	ht_dispatch_end(&backward, op_dispatch(buffer, handle, &backward.args, NULL));
	return ht_close(buffer, handle);
}

static void transpose(int num_ranks, bool processes)
{
	static struct transpose t;
	size_t bytes = (size_t)num_ranks * sizeof(*t.products);
	double left = 0, right = 0;

	t.c = (struct ht_case){
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 10,
				.topk = 4,
				.hidden = 32,
				.dtype = MOEEP_FP32,
				.routing = ROUTE_MASKED,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed(),
			},
		.combine_dtype = MOEEP_FP32,
	};
	op_tokens_vary(&t.c.spec, 30);
	t.products = ranks_share(bytes);
	ht_case_make(&t.c);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes},
		  transpose_body, &t, "forward and backward");
	for (int r = 0; r < num_ranks; r++) {
		left += t.products[r][0];
		right += t.products[r][1];
	}
	ok(left != 0 && fabs(left - right) < 1e-4 * fabs(left),
	   "combine is the transpose of dispatch: %g, %g", left, right);
	ht_case_free(&t.c);
	ranks_unshare(t.products, bytes);
}

int main(void)
{
	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		int num_ranks = op_sizes[i];

		for (int processes = 0; processes < 2 && op_use_size(num_ranks); processes++) {
			cached(num_ranks, processes,
			       processes ? MOEEP_ROWS_EXPERT_MAJOR : MOEEP_ROWS_FLAT);
			counts(num_ranks, processes,
			       processes ? MOEEP_ROWS_FLAT : MOEEP_ROWS_EXPERT_MAJOR);
		}
	}
	many_times(2, false, tap_quick() ? 50 : 400);
	many_times(3, true, tap_quick() ? 50 : 300);
	many_times(8, false, 40);
	transpose(3, false);
	transpose(4, true);
	return tap_done();
}
