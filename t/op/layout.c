/* SPDX-License-Identifier: MIT */
/* moeep_layout(): where a rank's tokens would go. */
#include "config.h"

#include "t/device.h"
#include "t/op/op.h"

enum { PER_RANK, PER_NODE, PER_EXPERT, IN_RANK, OUTPUTS };

struct layout_case {
	struct op_spec spec;
	struct op_inputs in;
	int nodes[OP_RANKS];
	int num_nodes;
};

static int one_call(const struct layout_case *c, int rank, moeep_comm_t *comm,
		    moeep_buffer_t *buffer, int topk_dtype, unsigned int leave)
{
	const struct oracle_group *group = &c->in.group;
	int64_t tokens = c->spec.tokens[rank];
	struct op_output out[OUTPUTS];
	void *topk = op_topk_as(&c->in, rank, topk_dtype ? topk_dtype : MOEEP_INT64);
	moeep_layout_args_t want = {.size = sizeof(want)}, args = {
								   .size = sizeof(args),
								   .topk_idx = topk,
								   .topk_dtype = topk_dtype,
								   .topk = group->topk,
								   .num_tokens = tokens,
							   };

	RANK_DO(op_output_make(&out[PER_RANK], "tokens_per_rank", group->num_ranks, 1, MOEEP_INT32,
			       comm, OP_ORDINARY, 0));
	RANK_DO(op_output_make(&out[PER_NODE], "tokens_per_node", c->num_nodes, 1, MOEEP_INT32,
			       comm, OP_ORDINARY, 0));
	RANK_DO(op_output_make(&out[PER_EXPERT], "tokens_per_expert", group->num_experts, 1,
			       MOEEP_INT32, comm, OP_ORDINARY, 0));
	RANK_DO(op_output_make(&out[IN_RANK], "token_in_rank", tokens, group->num_ranks, MOEEP_INT8,
			       comm, OP_ORDINARY, 0));
	if (!(leave & 1u << PER_RANK)) {
		args.tokens_per_rank = out[PER_RANK].at;
		want.tokens_per_rank = (void *)out[PER_RANK].want;
	}
	if (!(leave & 1u << PER_NODE)) {
		args.tokens_per_node = out[PER_NODE].at;
		want.tokens_per_node = (void *)out[PER_NODE].want;
	}
	if (!(leave & 1u << PER_EXPERT)) {
		args.tokens_per_expert = out[PER_EXPERT].at;
		want.tokens_per_expert = (void *)out[PER_EXPERT].want;
	}
	if (!(leave & 1u << IN_RANK)) {
		args.token_in_rank = out[IN_RANK].at;
		want.token_in_rank = out[IN_RANK].want;
	}
	oracle_layout(group, rank, &want);
	rank_ok(op_layout(buffer, &args, NULL));
	for (int i = 0; i < OUTPUTS; i++) {
		op_output_end(&out[i], comm);
	}
	util_free(topk);
	return 0;
}

static int body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct layout_case *c = arg;
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.num_experts = c->spec.num_experts,
		.max_topk = c->spec.topk,
		.hidden = c->spec.hidden,
		.ht_max_tokens = op_tokens_most(&c->spec) + 1,
		.ll_max_tokens = 1,
	};
	moeep_buffer_t *buffer;

	RANK_TRY(moeep_buffer_create(comm, &config, &buffer));
	RANK_DO(one_call(c, rank, comm, buffer, 0, 0));
	RANK_DO(one_call(c, rank, comm, buffer, MOEEP_INT32, 0));
	for (unsigned int leave = 1; leave < 1u << OUTPUTS; leave++) {
		RANK_DO(one_call(c, rank, comm, buffer, MOEEP_INT64, leave));
	}
	RANK_TRY(moeep_buffer_destroy(buffer));
	return 0;
}

static void check(int num_ranks, bool processes, enum op_routing routing, int num_experts, int topk)
{
	struct layout_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = num_experts,
				.topk = topk,
				.hidden = 16,
				.routing = routing,
				.seed = op_seed() + (uint64_t)num_ranks,
			},
		.num_nodes = 1,
	};

	op_tokens_vary(&c.spec, 33);
	op_inputs_make(&c.in, &c.spec);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes}, body, &c,
		  "layout: %s", op_spec_name(&c.spec));
	op_inputs_free(&c.in);
}

/* Ranks of several hosts: whether a comm of them can be had depends on the transports. */
static int several_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct layout_case own = *(struct layout_case *)arg;
	moeep_comm_info_t info = {.size = sizeof(info)};

	own.in.group.node = own.nodes;
	own.in.group.input = ((struct layout_case *)arg)->in.input;
	RANK_TRY(moeep_comm_query(comm, &info));
	rank_check(info.num_nodes == own.num_nodes, "%d nodes", info.num_nodes);
	rank_check(info.node == own.nodes[rank], "on node %d", info.node);
	return body(rank, comm, &own);
}

static int probe_body(int rank, moeep_comm_t *comm, void *arg)
{
	static const char *const hosts[] = {"a", "b"};
	moeep_comm_config_t config = {
		.size = sizeof(config),
		.host_id = hosts[rank],
		.timeout_ms = 5000,
	};
	moeep_comm_t *other = NULL;
	int *result = arg;

	(void)comm;
	device_config(rank, &config);
	config.id = (const moeep_unique_id_t *)(const void *)(result + 2);
	result[rank] = moeep_comm_create(rank, 2, &config, &other);
	moeep_comm_destroy(other);
	return 0;
}

/* Whether ranks with different host ids can be one group. */
static bool several_hosts(void)
{
	int *result = ranks_share(2 * sizeof(int) + sizeof(moeep_unique_id_t));
	moeep_unique_id_t *id = (void *)(result + 2);
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = 2000};
	moeep_rendezvous_t *rendezvous = NULL;
	bool works;

	ok(moeep_rendezvous_create(&config, &rendezvous, id) == MOEEP_OK, "a rendezvous");
	ranks_run(&(struct ranks_config){.num_ranks = 2}, probe_body, result,
		  "two hosts give a group or an error");
	works = result[0] == MOEEP_OK && result[1] == MOEEP_OK;
	ok(works || (result[0] == MOEEP_ERR_UNSUPPORTED && result[1] == MOEEP_ERR_UNSUPPORTED),
	   "the same result on both: %s, %s", moeep_strerror(result[0]), moeep_strerror(result[1]));
	moeep_rendezvous_destroy(rendezvous);
	ranks_unshare(result, 2 * sizeof(int) + sizeof(moeep_unique_id_t));
	return works;
}

int main(void)
{
	/* Nodes are numbered by their lowest rank. */
	static const char *const hosts[] = {"x", "y", "x", "z", "y"};
	struct layout_case several = {
		.spec = {.num_ranks = 5,
			 .num_experts = 12,
			 .topk = 3,
			 .hidden = 16,
			 .routing = ROUTE_MASKED,
			 .seed = op_seed()},
		.nodes = {0, 1, 0, 2, 1},
		.num_nodes = 3,
	};

	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		int num_ranks = op_sizes[i];

		for (int processes = 0; processes < 2 && op_use_size(num_ranks); processes++) {
			check(num_ranks, processes, ROUTE_DISTINCT, 3 * num_ranks + 1, 3);
			check(num_ranks, processes, ROUTE_MASKED, 8, 8);
		}
	}
	check(3, false, ROUTE_ANY, 7, 6);
	check(7, false, ROUTE_DISTINCT, 3, 2);
	check(4, false, ROUTE_NONE, 4, 1);
	check(4, true, ROUTE_SAME, 64, 32);
	if (!several_hosts()) {
		tap_skip(1, "no transport between hosts: tokens_per_node of several nodes");
		return tap_done();
	}
	op_tokens_vary(&several.spec, 20);
	op_inputs_make(&several.in, &several.spec);
	ranks_run(&(struct ranks_config){.num_ranks = 5, .host_ids = hosts}, several_body, &several,
		  "layout: three nodes");
	op_inputs_free(&several.in);
	return tap_done();
}
