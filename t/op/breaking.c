/* SPDX-License-Identifier: MIT */
/* Inputs that break implementations, through every family of operations. */
#include "config.h"

#include "t/op/ht.h"
#include "t/op/ll.h"

enum tokens { EVERY, VARY, ONE_HAS_NONE, ONE_HAS_SOME, NONE };

static void set_tokens(struct op_spec *spec, enum tokens tokens, int64_t most)
{
	op_tokens(spec, most);
	switch (tokens) {
	case EVERY:
		break;
	case VARY:
		op_tokens_vary(spec, most);
		break;
	case ONE_HAS_NONE:
		spec->tokens[spec->num_ranks / 2] = 0;
		break;
	case ONE_HAS_SOME:
		op_tokens(spec, 0);
		spec->tokens[spec->num_ranks / 2] = most;
		break;
	case NONE:
		op_tokens(spec, 0);
		break;
	}
}

/* Flat, expert-major and low latency, once with threads and once with processes. */
static void families(const struct op_spec *spec, const char *what)
{
	int64_t most = op_tokens_most(spec);

	for (int layout = MOEEP_ROWS_FLAT; layout <= MOEEP_ROWS_EXPERT_MAJOR; layout++) {
		struct ht_case c = {
			.spec = *spec,
			.row_layout = layout,
			.weighted = spec->weights && layout == MOEEP_ROWS_EXPERT_MAJOR,
			.send_weights = spec->weights,
			.bias = true,
		};

		for (int r = 0; r < spec->num_ranks; r++) {
			c.rank[r].flags = MOEEP_DISPATCH_FILL_TAIL;
			c.rank[r].alignment = 1 + r % 2;
		}
		ht_check(&c, layout == MOEEP_ROWS_FLAT, what);
	}
	for (int processes = 0; processes < 2; processes++) {
		struct ll_case c = {.spec = *spec, .bias = processes};

		/* Rows of FP8 are multiples of 16 bytes, too. */
		c.quant = processes && spec->hidden % 16 == 0 ? MOEEP_QUANT_FP8_POW2 : 0;
		for (int r = 0; r < spec->num_ranks; r++) {
			/* Enough even if every choice is the same expert. */
			c.rank[r].capacity = spec->num_ranks * most * spec->topk + 1;
		}
		ll_check(&c, processes, what);
	}
}

struct breaking {
	const char *what;
	int num_ranks;
	int num_experts;
	int topk;
	int64_t hidden;
	enum op_routing routing;
	enum tokens tokens;
	enum payload payload;
	bool weights;
};

static const struct breaking cases[] = {
	{"masked choices, whole rows", 4, 8, 4, 32, ROUTE_MASKED, EVERY, PAYLOAD_NUMBERS, true},
	{"nothing but masked", 3, 8, 4, 32, ROUTE_NONE, EVERY, PAYLOAD_NUMBERS, true},
	{"an expert twice in a token", 3, 5, 4, 32, ROUTE_ANY, EVERY, PAYLOAD_NUMBERS, true},
	{"an expert in all places of a token", 5, 9, 8, 16, ROUTE_SAME, VARY, PAYLOAD_NUMBERS,
	 true},
	{"k is 1", 5, 10, 1, 24, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"k is 1, unweighted", 2, 4, 1, 24, ROUTE_MASKED, VARY, PAYLOAD_NUMBERS, false},
	{"k is all experts", 4, 12, 12, 16, ROUTE_DISTINCT, EVERY, PAYLOAD_NUMBERS, true},
	{"k is 32", 3, 40, 32, 16, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"k is 64", 2, 64, 64, 8, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"all to one expert", 6, 12, 2, 16, ROUTE_ONE, EVERY, PAYLOAD_NUMBERS, true},
	{"all to the last rank", 7, 21, 3, 16, ROUTE_LAST_RANK, EVERY, PAYLOAD_NUMBERS, true},
	{"a rank without tokens", 3, 6, 2, 16, ROUTE_DISTINCT, ONE_HAS_NONE, PAYLOAD_NUMBERS, true},
	{"one rank with tokens", 5, 10, 2, 16, ROUTE_DISTINCT, ONE_HAS_SOME, PAYLOAD_NUMBERS, true},
	{"no tokens at all", 4, 8, 2, 16, ROUTE_DISTINCT, NONE, PAYLOAD_NUMBERS, true},
	{"one rank without tokens, alone", 1, 4, 2, 16, ROUTE_DISTINCT, NONE, PAYLOAD_NUMBERS,
	 true},
	{"3 ranks, 8 experts", 3, 8, 3, 40, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"5 ranks, 8 experts", 5, 8, 3, 40, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"6 ranks, 64 experts", 6, 64, 8, 40, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"7 ranks, 256 experts", 7, 256, 8, 40, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"fewer experts than ranks", 7, 3, 2, 24, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"one expert", 4, 1, 1, 24, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"NaN, infinity and -0", 3, 7, 3, 136, ROUTE_ANY, VARY, PAYLOAD_SPECIAL, true},
	{"any bits", 4, 7, 3, 136, ROUTE_MASKED, VARY, PAYLOAD_BITS, false},
	{"the shortest row", 4, 7, 3, 8, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	/* Longer than what a device sums at a time, and no multiple of it. */
	{"long rows", 2, 6, 3, 7176, ROUTE_DISTINCT, VARY, PAYLOAD_NUMBERS, true},
	{"more rows in a sum than a device holds", 12, 24, 12, 2056, ROUTE_DISTINCT, VARY,
	 PAYLOAD_NUMBERS, true},
};

static void all_cases(void)
{
	for (int i = 0; i < COUNT_OF(cases); i++) {
		const struct breaking *b = &cases[i];
		struct op_spec spec = {
			.num_ranks = b->num_ranks,
			.num_experts = b->num_experts,
			.topk = b->topk,
			.hidden = b->hidden,
			.routing = b->routing,
			.payload = b->payload,
			.weights = b->weights,
			.seed = op_seed() + (uint64_t)i,
		};

		set_tokens(&spec, b->tokens, b->topk > 8 ? 5 : 11);
		families(&spec, b->what);
	}
}

/* Exactly what fits: every token of every rank to one expert, capacities at their limit. */
static void at_capacity(int num_ranks, bool processes)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = num_ranks,
				.topk = 2,
				.hidden = 16,
				.weights = true,
				.routing = ROUTE_ONE,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed(),
			},
	};
	struct ll_case l = {.quant = MOEEP_QUANT_FP8};

	op_tokens(&c.spec, 32);
	ht_check(&c, processes, "all tokens to one expert, at capacity");
	l.spec = c.spec;
	/* R x M, the default. */
	ll_check(&l, processes, "all tokens to one expert, at capacity");
}

/* An empty array has no address. */
static int empty_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	bool empty = c->spec.tokens[rank] == 0;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ht_dispatch d;
	struct ht_combine m;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, 0));
	if (empty) {
		d.args.x = d.args.topk_idx = NULL;
		d.args.topk_weights = NULL;
	}
	if (d.args.capacity == 0) {
		d.args.recv_x = d.args.recv_topk_idx = NULL;
		d.args.recv_topk_weights = NULL;
		d.args.recv_src_token = d.args.recv_src_rank = NULL;
	}
	ht_dispatch_end(&d, op_dispatch(buffer, handle, &d.args, NULL));
	RANK_DO(ht_combine_begin(&m, c, rank, comm));
	if (empty) {
		m.args.out = NULL;
	}
	if (c->side[rank].rows.count == 0) {
		m.args.x = NULL;
	}
	ht_combine_end(&m, op_combine(buffer, handle, &m.args, NULL));
	return ht_close(buffer, handle);
}

static void empty(int num_ranks, bool processes, bool weights, enum tokens tokens)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = num_ranks,
				.topk = 1,
				.hidden = 16,
				.weights = weights,
				.seed = op_seed(),
				.routing = ROUTE_ONE,
			},
	};

	set_tokens(&c.spec, tokens, 3);
	ht_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes},
		  empty_body, &c, "empty arrays are NULL, %s weights",
		  weights ? "with" : "without");
	ht_case_free(&c);
}

/* The epoch's 40 bits run over. */
#define WRAP_ROUNDS 12

static int wrap_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	struct ll_case l = {.spec = c->spec, .initial_epoch = c->initial_epoch};
	moeep_buffer_info_t info = {.size = sizeof(info)};
	moeep_buffer_t *buffer, *low;
	moeep_handle_t *handle, *low_handle;

	ll_case_make(&l);
	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(ll_open(&l, comm, &low, &low_handle));
	for (int i = 0; i < WRAP_ROUNDS; i++) {
		RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, 0));
		RANK_DO(ht_combine(c, rank, comm, buffer, handle));
		RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, MOEEP_DISPATCH_CACHED));
		RANK_DO(ll_dispatch(&l, rank, comm, low, low_handle, i % 2));
		RANK_DO(ll_combine(&l, rank, comm, low, low_handle, i % 2));
	}
	RANK_TRY(moeep_buffer_query(buffer, &info));
	rank_check(info.ht_epoch != 0, "no operations were counted");
	RANK_DO(ll_close(low, low_handle));
	ll_case_free(&l);
	return ht_close(buffer, handle);
}

static void wrap(int num_ranks, bool processes, uint64_t before)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 7,
				.topk = 3,
				.hidden = 24,
				.weights = true,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed(),
			},
		.initial_epoch = (UINT64_C(1) << 40) - before,
	};

	op_tokens_vary(&c.spec, 9);
	ht_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes}, wrap_body,
		  &c, "epochs wrap after %llu", (unsigned long long)before);
	ht_case_free(&c);
}

/* Two comms of the same ranks, each with a stream; ranks call them in different orders. */
static int comms_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	moeep_launch_t launch = {.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER};
	moeep_buffer_t *buffer[2];
	moeep_handle_t *handle[2];
	moeep_event_t *event[2];
	struct ht_dispatch d[2];
	struct ht_combine m[2];

	(void)comm;
	for (int i = 0; i < 2; i++) {
		RANK_DO(ht_open(&c[i], ranks_comm(i), &buffer[i], &handle[i]));
		RANK_TRY(moeep_event_create(ranks_comm(i), 0, &event[i]));
	}
	for (int round = 0; round < 10; round++) {
		for (int k = 0; k < 2; k++) {
			int i = (k + rank + round / 2) % 2;

			RANK_DO(ht_dispatch_begin(&d[i], &c[i], rank, ranks_comm(i), 0));
			RANK_DO(ht_combine_begin(&m[i], &c[i], rank, ranks_comm(i)));
			launch.done_event = NULL;
			RANK_TRY(moeep_dispatch(buffer[i], handle[i], &d[i].args, &launch));
			launch.done_event = event[i];
			RANK_TRY(moeep_combine(buffer[i], handle[i], &m[i].args, &launch));
		}
		for (int i = 0; i < 2; i++) {
			rank_is(moeep_event_wait(event[i], 20000), MOEEP_OK);
			ht_dispatch_end(&d[i], MOEEP_OK);
			ht_combine_end(&m[i], MOEEP_OK);
		}
	}
	for (int i = 0; i < 2; i++) {
		RANK_TRY(moeep_event_destroy(event[i]));
		RANK_DO(ht_close(buffer[i], handle[i]));
	}
	return 0;
}

static void two_comms(int num_ranks, bool processes)
{
	static struct ht_case c[2];

	for (int i = 0; i < 2; i++) {
		c[i] = (struct ht_case){
			.spec =
				{
					.num_ranks = num_ranks,
					.num_experts = 9 + 4 * i,
					.topk = 2 + i,
					.hidden = i ? 16 : 200,
					.seed = op_seed() + (uint64_t)i,
				},
		};
		op_tokens_vary(&c[i].spec, i ? 30 : 10);
		ht_case_make(&c[i]);
	}
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks,
					 .processes = processes,
					 .num_comms = 2},
		  comms_body, c, "two comms, interleaved");
	ht_case_free(&c[0]);
	ht_case_free(&c[1]);
}

/* Both families on one buffer: high throughput between the phases of low latency. */
static int both_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	struct ll_case l = {.spec = c->spec, .quant = MOEEP_QUANT_FP8_UE8M0, .slots = 1};
	moeep_buffer_config_t config;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle, *low;
	struct ll_dispatch d;
	struct ll_combine m;

	for (int r = 0; r < l.spec.num_ranks; r++) {
		l.rank[r].memory = r % 2 ? OP_SLOT : OP_ORDINARY;
	}
	ll_case_make(&l);
	ht_config(c, &config);
	config.modes = MOEEP_MODE_HT | MOEEP_MODE_LL;
	config.ll_max_tokens = l.most;
	config.ll_combine_slots = 1;
	RANK_TRY(moeep_buffer_create(comm, &config, &buffer));
	RANK_TRY(moeep_handle_create(buffer, NULL, &handle));
	RANK_TRY(moeep_handle_create(buffer, NULL, &low));
	RANK_DO(op_ready(comm));
	for (int i = 0; i < 6; i++) {
		RANK_DO(ll_dispatch_begin(&d, &l, rank));
		RANK_DO(ll_dispatch_send(&d, buffer, low));
		RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, 0));
		ll_dispatch_end(&d, ll_dispatch_recv(&d, buffer, low));
		RANK_DO(ll_combine_begin(&m, &l, rank, comm, buffer, 0));
		RANK_DO(ll_combine_send(&m, buffer, low));
		RANK_DO(ht_combine(c, rank, comm, buffer, handle));
		ll_combine_end(&m, ll_combine_recv(&m, buffer, low));
	}
	RANK_TRY(moeep_handle_destroy(low));
	ll_case_free(&l);
	return ht_close(buffer, handle);
}

static void both(int num_ranks, bool processes)
{
	struct ht_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 11,
				.topk = 3,
				.hidden = 144,
				.weights = true,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed(),
			},
	};

	op_tokens_vary(&c.spec, 9);
	ht_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes}, both_body,
		  &c, "both families on one buffer");
	ht_case_free(&c);
}

int main(void)
{
	ranks_begin();
	all_cases();
	for (int processes = 0; processes < 2; processes++) {
		at_capacity(2 + processes, processes);
		at_capacity(7, processes);
		empty(3, processes, false, ONE_HAS_NONE);
		empty(3, processes, true, ONE_HAS_SOME);
		empty(1, processes, true, NONE);
		wrap(3, processes, 1);
		wrap(2, processes, 5);
		wrap(4, processes, 17);
		both(2 + processes, processes);
		both(5, processes);
		two_comms(2, processes);
		two_comms(5, processes);
	}
	return tap_done();
}
