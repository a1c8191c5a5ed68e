/* SPDX-License-Identifier: MIT */
/*
 * CUDA graphs: operations of both families, captured once and replayed with other rows and another
 * routing each time, several replays queued at once, and calls that are not captured between them.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "t/cuda/try.h"
#include "t/device.h"
#include "t/op/ht.h"
#include "t/op/ll.h"

#define ROUNDS 7
#define CASES  2

/* Of the same shapes, with other rows, weights and choices. */
struct set {
	struct ht_case high[CASES];
	struct ll_case low[CASES];
};

/* One rank's graph: what it reads, and the calls whose outputs it writes are those of case 0. */
struct replay {
	const struct set *set;
	int rank;
	const struct moeep_cu *cu;
	CUstream stream;
	CUgraph graph;
	CUgraphExec exec;
	int32_t *status; /* [4] */
	void *x, *weights, *rows, *low_rows;
	struct ht_dispatch d[CASES];
	struct ht_combine m[CASES];
	struct ll_dispatch l[CASES];
	struct ll_combine n[CASES];
};

static size_t row_bytes(const struct op_spec *spec)
{
	return (size_t)spec->hidden * 2;
}

static size_t low_bytes(const struct ll_case *c, int rank)
{
	return (size_t)(c->local_experts[rank] * c->combine_capacity[rank]) * row_bytes(&c->spec);
}

static int replay_make(struct replay *r, const struct set *set, int rank, moeep_comm_t *comm,
		       moeep_buffer_t *low)
{
	const struct ht_case *c = &set->high[0];
	size_t tokens = (size_t)c->spec.tokens[rank];

	*r = (struct replay){.set = set, .rank = rank};
	for (int i = 0; i < CASES; i++) {
		RANK_DO(ht_dispatch_begin(&r->d[i], &set->high[i], rank, comm, 0));
		RANK_DO(ht_combine_begin(&r->m[i], &set->high[i], rank, comm));
		RANK_DO(ll_dispatch_begin(&r->l[i], &set->low[i], rank));
		RANK_DO(ll_combine_begin(&r->n[i], &set->low[i], rank, comm, low, 0));
	}
	r->status = util_alloc(4 * sizeof(*r->status));
	r->x = util_alloc(tokens * row_bytes(&c->spec));
	r->weights = util_alloc(tokens * (size_t)c->spec.topk * sizeof(float));
	r->rows = util_alloc((size_t)c->capacity[rank] * row_bytes(&c->spec));
	r->low_rows = util_alloc(low_bytes(&set->low[0], rank));
	r->d[0].args.x = r->x;
	r->d[0].args.topk_weights = r->weights;
	r->m[0].args.x = r->rows;
	r->n[0].args.x = r->low_rows;
	RANK_TRY(moeep_cu_load(&r->cu));
	RANK_TRY(device_stream(comm, &r->stream));
	return 0;
}

/* Capturing starts nothing: peers need not be there. */
static int replay_capture(struct replay *r, moeep_buffer_t *high, moeep_handle_t *high_handle,
			  moeep_buffer_t *low, moeep_handle_t *low_handle)
{
	moeep_launch_t launch = {.size = sizeof(launch), .stream = r->stream};

	/* Other threads of the process may call what a capture in global mode forbids to all. */
	TRY_CU(r->cu,
	       cuStreamBeginCapture(r->stream, ranks_forked(false)
						       ? CU_STREAM_CAPTURE_MODE_GLOBAL
						       : CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
	launch.status = &r->status[0];
	RANK_TRY(moeep_dispatch(high, high_handle, &r->d[0].args, &launch));
	launch.status = &r->status[1];
	RANK_TRY(moeep_combine(high, high_handle, &r->m[0].args, &launch));
	launch.status = &r->status[2];
	RANK_TRY(moeep_ll_dispatch(low, low_handle, &r->l[0].args, &launch));
	launch.status = &r->status[3];
	RANK_TRY(moeep_ll_combine(low, low_handle, &r->n[0].args, &launch));
	TRY_CU(r->cu, cuStreamEndCapture(r->stream, &r->graph));
	TRY_CU(r->cu, cuGraphInstantiateWithFlags(&r->exec, r->graph, 0));
	return 0;
}

/* The inputs of a case go to where the graph reads them. */
static void replay_load(struct replay *r, int which)
{
	const struct ht_case *c = &r->set->high[which];
	const struct ll_case *l = &r->set->low[which];
	const struct oracle_input *in = &c->in.input[r->rank], *low = &l->in.input[r->rank];
	size_t choices = (size_t)(in->num_tokens * c->spec.topk);
	size_t low_choices = (size_t)(low->num_tokens * l->spec.topk);

	memcpy(r->x, in->x, (size_t)in->num_tokens * row_bytes(&c->spec));
	memcpy(r->weights, in->weights, choices * sizeof(float));
	memcpy(r->d[0].topk, in->topk, choices * sizeof(int64_t));
	memcpy(r->rows, c->side[r->rank].x,
	       (size_t)c->side[r->rank].rows.count * row_bytes(&c->spec));
	memcpy(r->l[0].x, low->x, (size_t)low->num_tokens * row_bytes(&l->spec));
	memcpy(r->l[0].topk, low->topk, low_choices * sizeof(int64_t));
	memcpy(r->l[0].weights, low->weights, low_choices * sizeof(float));
	memcpy(r->low_rows, l->x[r->rank], low_bytes(l, r->rank));
	for (int i = 0; i < 4; i++) {
		r->status[i] = -1;
	}
}

/* What the graph wrote is what the case's calls would have written. */
static void compare(struct op_output *out, const struct op_output *want)
{
	if (!out->name) {
		return;
	}
	util_same(out->name, out->got.data, want->want, out->rows, out->elements, out->dtype,
		  out->any_nan);
	guard_check(&out->got, out->name);
	util_poison(out->got.data, out->got.bytes);
}

static void replay_compare(struct replay *r, int which)
{
	for (int i = 0; i < 4; i++) {
		rank_check(r->status[i] == MOEEP_OK, "the status of operation %d is %d", i,
			   r->status[i]);
	}
	for (int i = 0; i < HT_OUTPUTS; i++) {
		compare(&r->d[0].output[i], &r->d[which].output[i]);
	}
	for (int i = 0; i < LL_OUTPUTS; i++) {
		compare(&r->l[0].output[i], &r->l[which].output[i]);
	}
	compare(&r->m[0].out, &r->m[which].out);
	compare(&r->m[0].out_weights, &r->m[which].out_weights);
	compare(&r->n[0].out, &r->n[which].out);
}

static int replay_free(struct replay *r, moeep_comm_t *comm)
{
	RANK_TRY(moeep_comm_barrier(comm));
	TRY_CU(r->cu, cuGraphExecDestroy(r->exec));
	TRY_CU(r->cu, cuGraphDestroy(r->graph));
	TRY_CU(r->cu, cuStreamDestroy(r->stream));
	for (int i = 0; i < CASES; i++) {
		/* Compared before; what is left is to be freed. */
		for (int j = 0; j < HT_OUTPUTS; j++) {
			util_poison(r->d[i].output[j].want, r->d[i].output[j].got.bytes);
		}
		for (int j = 0; j < LL_OUTPUTS; j++) {
			util_poison(r->l[i].output[j].want, r->l[i].output[j].got.bytes);
		}
		util_poison(r->m[i].out.want, r->m[i].out.got.bytes);
		util_poison(r->m[i].out_weights.want, r->m[i].out_weights.got.bytes);
		util_poison(r->n[i].out.want, r->n[i].out.got.bytes);
		ht_dispatch_end(&r->d[i], MOEEP_OK);
		ht_combine_end(&r->m[i], MOEEP_OK);
		ll_dispatch_end(&r->l[i], MOEEP_OK);
		ll_combine_end(&r->n[i], MOEEP_OK);
	}
	util_free(r->status);
	util_free(r->x);
	util_free(r->weights);
	util_free(r->rows);
	util_free(r->low_rows);
	return 0;
}

static int graph_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	moeep_buffer_t *high, *low;
	moeep_handle_t *high_handle, *low_handle, *other;
	struct replay r;

	RANK_DO(ht_open(&set->high[0], comm, &high, &high_handle));
	RANK_TRY(moeep_handle_create(high, NULL, &other));
	RANK_DO(ll_open(&set->low[0], comm, &low, &low_handle));
	RANK_DO(replay_make(&r, set, rank, comm, low));
	RANK_DO(replay_capture(&r, high, high_handle, low, low_handle));
	/* No rank is at work while another one still captures. */
	RANK_TRY(moeep_comm_barrier(comm));
	for (int i = 0; i < ROUNDS; i++) {
		int which = i % CASES;

		replay_load(&r, which);
		for (int times = 0; times <= i % 3; times++) {
			TRY_CU(r.cu, cuGraphLaunch(r.exec, r.stream));
		}
		TRY_CU(r.cu, cuStreamSynchronize(r.stream));
		replay_compare(&r, which);
		if (i % 2) {
			RANK_DO(ht_dispatch(&set->high[1 - which], rank, comm, high, other, 0));
			RANK_DO(ht_combine(&set->high[1 - which], rank, comm, high, other));
		}
	}
	RANK_DO(replay_free(&r, comm));
	RANK_TRY(moeep_handle_destroy(other));
	RANK_DO(ll_close(low, low_handle));
	return ht_close(high, high_handle);
}

static void make(struct set *set, int num_ranks, int row_layout, int quant, uint64_t initial_epoch)
{
	for (int i = 0; i < CASES; i++) {
		struct op_spec spec = {
			.num_ranks = num_ranks,
			.num_experts = 2 * num_ranks + 1,
			.topk = 3,
			.hidden = 144,
			.weights = true,
			.routing = i ? ROUTE_MASKED : ROUTE_DISTINCT,
			.payload = PAYLOAD_NUMBERS,
			.seed = op_seed() + (uint64_t)i,
			.x_seed = (uint64_t)i,
		};

		for (int r = 0; r < num_ranks; r++) {
			spec.tokens[r] = r % 3 == 1 ? 0 : 9 + r;
		}
		set->high[i] = (struct ht_case){
			.spec = spec,
			.row_layout = row_layout,
			.weighted = row_layout == MOEEP_ROWS_EXPERT_MAJOR,
			.send_weights = false,
			.bias = false,
			.initial_epoch = initial_epoch,
		};
		for (int r = 0; r < num_ranks; r++) {
			set->high[i].rank[r].capacity = num_ranks * 17 * 3;
			set->high[i].rank[r].flags = MOEEP_DISPATCH_FILL_TAIL;
		}
		set->low[i] = (struct ll_case){
			.spec = spec,
			.quant = quant,
			.initial_epoch = initial_epoch,
		};
		ht_case_make(&set->high[i]);
		ll_case_make(&set->low[i]);
	}
}

static void check(int num_ranks, int row_layout, int quant, uint64_t initial_epoch)
{
	static struct set set;

	make(&set, num_ranks, row_layout, quant, initial_epoch);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks}, graph_body, &set,
		  "replays, row layout %d, quant %d, first epoch %llu", row_layout, quant,
		  (unsigned long long)initial_epoch);
	for (int i = 0; i < CASES; i++) {
		ht_case_free(&set.high[i]);
		ll_case_free(&set.low[i]);
	}
}

int main(void)
{
	/* By hand; t/ops-functions.sh says it. */
	setenv("MOEEP_TEST_CUDA", "threads", 0);
	ranks_begin();
	for (int i = 0; i < op_num_sizes && op_sizes[i] <= 8; i++) {
		int num_ranks = op_sizes[i];

		if (op_use_size(num_ranks)) {
			check(num_ranks, MOEEP_ROWS_FLAT, MOEEP_QUANT_NONE, 0);
			check(num_ranks, MOEEP_ROWS_EXPERT_MAJOR, MOEEP_QUANT_FP8, 0);
		}
	}
	/* The epoch's 40 bits run over between two replays. */
	check(3, MOEEP_ROWS_FLAT, MOEEP_QUANT_FP8_UE8M0, (UINT64_C(1) << 40) - 5);
	return tap_done();
}
