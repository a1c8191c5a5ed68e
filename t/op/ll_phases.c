/* SPDX-License-Identifier: MIT */
/* SEND and RECV apart: two in flight, a third refused, several handles and buffers interleaved. */
#include "config.h"

#include "t/op/ll.h"

#define HANDLES 3
#define BUFFERS 2

struct phases {
	struct ll_case c[HANDLES * BUFFERS];
};

static void note(int rank, moeep_handle_t *handle, int operation, int64_t tokens, bool known)
{
	moeep_handle_info_t info = {.size = sizeof(info)};

	(void)rank;
	if (!rank_ok(moeep_handle_query(handle, &info))) {
		return;
	}
	rank_check(info.operation == operation, "the handle's operation is %s, expected %s",
		   moeep_op_name(info.operation), moeep_op_name(operation));
	rank_check(info.num_tokens == tokens, "the handle has %lld tokens",
		   (long long)info.num_tokens);
	rank_check(known ? info.recv_per_expert && info.num_recv >= 0
			 : !info.recv_per_expert && info.num_recv == -1,
		   "the handle %s what it received", known ? "does not know" : "already knows");
}

static int flight_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ll_case *c = ((struct phases *)arg)->c;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle[HANDLES];
	struct ll_dispatch d[HANDLES];
	struct ll_combine m[HANDLES];

	RANK_DO(ll_open(&c[0], comm, &buffer, &handle[0]));
	RANK_TRY(moeep_handle_create(buffer, NULL, &handle[1]));
	RANK_TRY(moeep_handle_create(buffer, NULL, &handle[2]));
	RANK_DO(op_ready(comm));
	for (int i = 0; i < HANDLES; i++) {
		RANK_DO(ll_dispatch_begin(&d[i], &c[i], rank));
	}
	RANK_DO(ll_dispatch_send(&d[0], buffer, handle[0]));
	note(rank, handle[0], MOEEP_OP_LL_DISPATCH_SEND, c[0].spec.tokens[rank], false);
	RANK_DO(ll_dispatch_send(&d[1], buffer, handle[1]));
	/* A third one would need a third slot. */
	d[2].args.phase = MOEEP_PHASE_SEND;
	rank_is(op_ll_dispatch(buffer, handle[2], &d[2].args, NULL), MOEEP_ERR_STATE);
	/* RECV without SEND; combine before RECV; SEND twice on a handle. */
	rank_is(ll_dispatch_recv(&d[2], buffer, handle[2]), MOEEP_ERR_STATE);
	RANK_DO(ll_combine_begin(&m[0], &c[0], rank, comm, buffer, 0));
	m[0].args.phase = MOEEP_PHASE_SEND;
	rank_is(op_ll_combine(buffer, handle[0], &m[0].args, NULL), MOEEP_ERR_STATE);
	rank_is(moeep_comm_async_error(comm, NULL), MOEEP_OK);

	ll_dispatch_end(&d[0], ll_dispatch_recv(&d[0], buffer, handle[0]));
	note(rank, handle[0], MOEEP_OP_LL_DISPATCH_RECV, c[0].spec.tokens[rank], true);
	/* Its slot is free again. */
	RANK_DO(ll_dispatch_send(&d[2], buffer, handle[2]));
	ll_dispatch_end(&d[1], ll_dispatch_recv(&d[1], buffer, handle[1]));
	ll_dispatch_end(&d[2], ll_dispatch_recv(&d[2], buffer, handle[2]));
	rank_is(ll_dispatch_recv(&d[2], buffer, handle[2]), MOEEP_ERR_STATE);

	RANK_DO(ll_combine_begin(&m[1], &c[1], rank, comm, buffer, 1));
	RANK_DO(ll_combine_begin(&m[2], &c[2], rank, comm, buffer, 0));
	RANK_DO(ll_combine_send(&m[0], buffer, handle[0]));
	RANK_DO(ll_combine_send(&m[1], buffer, handle[1]));
	m[2].args.phase = MOEEP_PHASE_SEND;
	rank_is(op_ll_combine(buffer, handle[2], &m[2].args, NULL), MOEEP_ERR_STATE);
	rank_is(ll_combine_recv(&m[2], buffer, handle[2]), MOEEP_ERR_STATE);
	ll_combine_end(&m[0], ll_combine_recv(&m[0], buffer, handle[0]));
	RANK_DO(ll_combine_send(&m[2], buffer, handle[2]));
	ll_combine_end(&m[1], ll_combine_recv(&m[1], buffer, handle[1]));
	ll_combine_end(&m[2], ll_combine_recv(&m[2], buffer, handle[2]));
	for (int i = 1; i < HANDLES; i++) {
		RANK_TRY(moeep_handle_destroy(handle[i]));
	}
	return ll_close(buffer, handle[0]);
}

/* Dispatches and combines of two handles overlap, in a pipeline, over and over. */
static int pipeline_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ll_case *c = ((struct phases *)arg)->c;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle[2];
	struct ll_dispatch d[2];
	struct ll_combine m[2];
	int rounds = tap_quick() ? 10 : 40;

	RANK_DO(ll_open(&c[0], comm, &buffer, &handle[0]));
	RANK_TRY(moeep_handle_create(buffer, NULL, &handle[1]));
	RANK_DO(op_ready(comm));
	for (int i = 0; i <= rounds; i++) {
		int now = i % 2, last = 1 - now;

		if (i < rounds) {
			RANK_DO(ll_dispatch_begin(&d[now], &c[i % HANDLES], rank));
			RANK_DO(ll_dispatch_send(&d[now], buffer, handle[now]));
		}
		if (i > 0) {
			const struct ll_case *before = &c[(i - 1) % HANDLES];

			ll_dispatch_end(&d[last], ll_dispatch_recv(&d[last], buffer, handle[last]));
			RANK_DO(ll_combine_begin(&m[last], before, rank, comm, buffer, last));
			RANK_DO(ll_combine_send(&m[last], buffer, handle[last]));
		}
		if (i > 0) {
			ll_combine_end(&m[last], ll_combine_recv(&m[last], buffer, handle[last]));
		}
	}
	RANK_TRY(moeep_handle_destroy(handle[1]));
	return ll_close(buffer, handle[0]);
}

/* Buffers do not know of each other: two in flight on each, in any order between them. */
static int buffers_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ll_case *c = ((struct phases *)arg)->c;
	moeep_buffer_t *buffer[BUFFERS];
	moeep_handle_t *handle[BUFFERS][2];
	struct ll_dispatch d[BUFFERS][2];
	struct ll_combine m[BUFFERS][2];

	for (int b = 0; b < BUFFERS; b++) {
		RANK_DO(ll_open(&c[0], comm, &buffer[b], &handle[b][0]));
		RANK_TRY(moeep_handle_create(buffer[b], NULL, &handle[b][1]));
	}
	RANK_DO(op_ready(comm));
	for (int i = 0; i < 2; i++) {
		/* Each rank takes the buffers in an order of its own. */
		for (int k = 0; k < BUFFERS; k++) {
			int b = (k + rank) % BUFFERS;

			RANK_DO(ll_dispatch_begin(&d[b][i], &c[2 * b + i], rank));
			RANK_DO(ll_dispatch_send(&d[b][i], buffer[b], handle[b][i]));
		}
	}
	for (int i = 0; i < 2; i++) {
		for (int k = 0; k < BUFFERS; k++) {
			int b = (k + rank / 2) % BUFFERS;

			ll_dispatch_end(&d[b][i],
					ll_dispatch_recv(&d[b][i], buffer[b], handle[b][i]));
			RANK_DO(ll_combine_begin(&m[b][i], &c[2 * b + i], rank, comm, buffer[b],
						 i));
			RANK_DO(ll_combine_send(&m[b][i], buffer[b], handle[b][i]));
		}
	}
	for (int i = 0; i < 2; i++) {
		for (int b = 0; b < BUFFERS; b++) {
			ll_combine_end(&m[b][i],
				       ll_combine_recv(&m[b][i], buffer[b], handle[b][i]));
		}
	}
	for (int b = 0; b < BUFFERS; b++) {
		RANK_TRY(moeep_handle_destroy(handle[b][1]));
		RANK_DO(ll_close(buffer[b], handle[b][0]));
	}
	return 0;
}

static void check(int num_ranks, bool processes, ranks_body_fn body, enum op_memory memory,
		  const char *what)
{
	static struct phases phases;

	for (int i = 0; i < HANDLES * BUFFERS; i++) {
		struct ll_case *c = &phases.c[i];

		*c = (struct ll_case){
			.spec =
				{
					.num_ranks = num_ranks,
					.num_experts = 2 * num_ranks + 1,
					.topk = 3,
					.hidden = 144,
					.weights = i % 2,
					.routing = i % 3 ? ROUTE_MASKED : ROUTE_DISTINCT,
					.payload = PAYLOAD_NUMBERS,
					.seed = op_seed() + (uint64_t)i,
					.x_seed = (uint64_t)i,
				},
			.quant = i % 4,
			.max_tokens = 7,
			.slots = 2,
			.bias = i % 2,
		};
		op_tokens_vary(&c->spec, 7);
		for (int r = 0; r < num_ranks; r++) {
			c->rank[r].memory = memory;
		}
		ll_case_make(c);
	}
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes}, body,
		  &phases, "%s, memory %d", what, memory);
	for (int i = 0; i < HANDLES * BUFFERS; i++) {
		ll_case_free(&phases.c[i]);
	}
}

int main(void)
{
	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		int num_ranks = op_sizes[i];

		for (int processes = 0; processes < 2 && op_use_size(num_ranks); processes++) {
			check(num_ranks, processes, flight_body, OP_ORDINARY, "two in flight");
			check(num_ranks, processes, pipeline_body,
			      processes ? OP_SLOT : OP_ORDINARY, "a pipeline");
			check(num_ranks, processes, buffers_body, processes ? OP_ORDINARY : OP_SLOT,
			      "two buffers");
		}
	}
	return tap_done();
}
