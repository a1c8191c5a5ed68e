/* SPDX-License-Identifier: MIT */
/* Rows that do not fit: every rank completes and knows; a cached dispatch that fits repairs it. */
#include "config.h"

#include "t/op/ht.h"

struct capacity {
	struct ht_case tight; /* too small on some rank */
	struct ht_case roomy; /* the same routing */
};

static int body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct capacity *set = arg;
	const struct ht_case *tight = &set->tight, *roomy = &set->roomy;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;

	RANK_DO(ht_open(tight, comm, &buffer, &handle));
	RANK_DO(ht_dispatch(tight, rank, comm, buffer, handle, 0));
	ht_query(tight, rank, handle);
	RANK_DO(ht_combine(tight, rank, comm, buffer, handle));
	RANK_DO(ht_dispatch(tight, rank, comm, buffer, handle, MOEEP_DISPATCH_CACHED));
	RANK_DO(ht_combine(tight, rank, comm, buffer, handle));
	RANK_DO(ht_dispatch(roomy, rank, comm, buffer, handle, MOEEP_DISPATCH_CACHED));
	RANK_DO(ht_combine(roomy, rank, comm, buffer, handle));
	/* From the start again, and with another handle's routing in between. */
	RANK_DO(ht_dispatch(tight, rank, comm, buffer, handle, 0));
	RANK_DO(ht_combine(tight, rank, comm, buffer, handle));
	RANK_DO(ht_dispatch(roomy, rank, comm, buffer, handle, 0));
	RANK_DO(ht_combine(roomy, rank, comm, buffer, handle));
	return ht_close(buffer, handle);
}

static int64_t cut(int64_t rows, int how)
{
	switch (how) {
	case 0:
		return rows > 1 ? rows - 1 : HT_NO_ROWS;
	case 1:
		return rows > 2 ? rows / 2 : HT_NO_ROWS;
	default:
		return HT_NO_ROWS;
	}
}

static void check(int num_ranks, bool processes, int row_layout, int how, bool everywhere,
		  enum op_memory memory)
{
	static struct capacity set;
	struct op_spec spec = {
		.num_ranks = num_ranks,
		.num_experts = 2 * num_ranks,
		.topk = 3,
		.hidden = 40,
		.weights = true,
		.scale_count = 2,
		.routing = ROUTE_ANY,
		.payload = PAYLOAD_NUMBERS,
		.seed = op_seed() + (uint64_t)num_ranks,
	};

	op_tokens(&spec, 13);
	set.roomy = (struct ht_case){.spec = spec, .row_layout = row_layout};
	for (int r = 0; r < num_ranks; r++) {
		set.roomy.rank[r].memory = memory;
		set.roomy.rank[r].alignment = 1 + r % 4;
		set.roomy.rank[r].flags = MOEEP_DISPATCH_FILL_TAIL;
	}
	set.tight = set.roomy;
	ht_case_make(&set.roomy);
	for (int r = 0; r < num_ranks; r++) {
		if (everywhere || r == num_ranks / 2) {
			set.tight.rank[r].capacity = cut(set.roomy.side[r].rows.count, how + r);
		}
	}
	ht_case_make(&set.tight);
	ok(!set.tight.fits && set.roomy.fits, "the capacities are as meant");
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes}, body,
		  &set, "capacity: layout %d, cut %d %s, memory %d", row_layout, how,
		  everywhere ? "on every rank" : "on one rank", memory);
	ht_case_free(&set.roomy);
	ht_case_free(&set.tight);
}

/* A handle's own limit of tokens that it receives. */
static int limit_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	moeep_handle_config_t config = {.size = sizeof(config), .max_recv = 4};
	moeep_buffer_t *buffer;
	moeep_handle_t *handle, *narrow;
	struct ht_dispatch d;

	RANK_DO(ht_open(&c[0], comm, &buffer, &handle));
	/* Only one rank's handle is narrow, every rank is told. */
	RANK_TRY(moeep_handle_create(buffer, rank == 1 ? &config : NULL, &narrow));
	RANK_DO(op_ready(comm));
	RANK_DO(ht_dispatch_begin(&d, &c[0], rank, comm, 0));
	rank_is(op_dispatch(buffer, narrow, &d.args, NULL), MOEEP_ERR_CAPACITY);
	/* The counts are told, no rows come, and no routing is kept. */
	for (int i = 0; i < HT_NUM_RECV; i++) {
		if (d.output[i].name) {
			util_poison(d.output[i].want, d.output[i].got.bytes);
		}
	}
	d.expect = MOEEP_ERR_CAPACITY;
	ht_dispatch_end(&d, MOEEP_ERR_CAPACITY);
	RANK_DO(ht_refused(&c[0], rank, comm, buffer, narrow));
	/* Fewer tokens fit into it. */
	RANK_DO(ht_dispatch(&c[1], rank, comm, buffer, narrow, 0));
	RANK_DO(ht_combine(&c[1], rank, comm, buffer, narrow));
	RANK_DO(ht_dispatch(&c[0], rank, comm, buffer, handle, 0));
	RANK_DO(ht_combine(&c[0], rank, comm, buffer, handle));
	RANK_TRY(moeep_handle_destroy(narrow));
	return ht_close(buffer, handle);
}

static void limit(bool processes, int row_layout)
{
	static struct ht_case c[2];

	for (int i = 0; i < 2; i++) {
		c[i] = (struct ht_case){
			.spec =
				{
					.num_ranks = 3,
					.num_experts = 3,
					.topk = 2,
					.hidden = 16,
					.seed = op_seed(),
				},
			.row_layout = row_layout,
			.max_tokens = 8,
		};
		op_tokens(&c[i].spec, i == 0 ? 8 : 1);
		ht_case_make(&c[i]);
	}
	ranks_run(&(struct ranks_config){.num_ranks = 3, .processes = processes}, limit_body, c,
		  "a handle that receives more than its max_recv, layout %d", row_layout);
	ht_case_free(&c[0]);
	ht_case_free(&c[1]);
}

int main(void)
{
	static const int layouts[] = {MOEEP_ROWS_FLAT, MOEEP_ROWS_EXPERT_MAJOR};

	ranks_begin();
	for (int i = 0; i < 2; i++) {
		for (int how = 0; how < 3; how++) {
			check(3, how % 2, layouts[i], how, false, OP_ORDINARY);
			check(2, how % 2 == 0, layouts[i], how, true, OP_ORDINARY);
		}
		check(1, false, layouts[i], 1, false, OP_ORDINARY);
		check(4, true, layouts[i], 1, true, OP_SYMMETRIC);
		check(5, false, layouts[i], 0, false, OP_SYMMETRIC);
		check(7, true, layouts[i], 0, true, OP_ORDINARY);
		check(8, false, layouts[i], 1, false, OP_ORDINARY);
		check(16, i, layouts[i], 1, false, OP_ORDINARY);
		limit(i, layouts[i]);
	}
	return tap_done();
}
