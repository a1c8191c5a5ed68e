/* SPDX-License-Identifier: MIT */
/* Several nodes: what every rank gets when a network card fails, or a rank of one node aborts. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "t/device.h"
#include "t/op/ht.h"

/* Far more than they do until something happens. */
#define ROUNDS 1000000
/* From the first failed call anywhere to the last one. The time-out is 20 s. */
#define LIMIT_S 5

struct failure_case {
	int victim;
	int result;
	const char *text;
	bool buffers; /* buffers come and go, else barriers */
};

static int use(int rank, moeep_comm_t *comm, const struct failure_case *c, int round)
{
	const moeep_buffer_config_t config = {
		.size = sizeof(config), .num_experts = 8, .hidden = 64, .ht_max_tokens = 16};
	moeep_buffer_t *buffer = NULL;
	int rc;

	if (c->result == MOEEP_ERR_ABORTED && rank == c->victim && round == 20) {
		rank_ok(moeep_comm_abort(comm, c->text));
	}
	if (!c->buffers) {
		return moeep_comm_barrier(comm);
	}
	rc = moeep_buffer_create(comm, &config, &buffer);
	rank_ok(moeep_buffer_destroy(buffer));
	return rc;
}

static int failure_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct failure_case *c = arg;
	moeep_error_report_t report = {.size = sizeof(report)};
	time_t begun = time(NULL);
	int rc = MOEEP_OK;

	for (int round = 0; round < ROUNDS && rc == MOEEP_OK; round++) {
		rc = use(rank, comm, c, round);
	}
	rank_check(rc == c->result, "got %d (%s), not %d: %s", rc, moeep_strerror(rc), c->result,
		   moeep_error_detail());
	rank_check(strstr(moeep_error_detail(), c->text) != NULL, "the detail has no \"%s\": %s",
		   c->text, moeep_error_detail());
	rank_is(moeep_comm_async_error(comm, &report), c->result);
	rank_check(report.rank == c->victim, "report.rank is %d", report.rank);
	rank_check(strstr(report.message, c->text) != NULL, "the report has no \"%s\": %s", c->text,
		   report.message);
	rank_is(moeep_comm_barrier(comm), c->result);
	rank_check(time(NULL) - begun <= LIMIT_S, "that took %d s", (int)(time(NULL) - begun));
	return 0;
}

static void check(const char *nodes, int num_ranks, const char *nic, struct failure_case *c)
{
	struct ranks_config config = {.num_ranks = num_ranks};

	setenv("MOEEP_TEST_NODES", nodes, 1);
	setenv("MOEEP_EMULATED_NIC", nic, 1);
	for (int processes = 0; processes < 2; processes++) {
		config.processes = processes;
		ranks_run(&config, failure_body, c, "%s %s: %s, in %s", nodes, nic, c->text,
			  c->buffers ? "buffers" : "barriers");
	}
	unsetenv("MOEEP_EMULATED_NIC");
}

/* A channel that has failed cannot tell the other side of it: the rendezvous does. */
static void card_fails(const char *nodes, int num_ranks, int victim)
{
	struct failure_case c = {.victim = victim,
				 .result = MOEEP_ERR_NETWORK,
				 .text = "emulated NIC was told to fail"};
	static const int requests[] = {1, 2, 17, 100};
	char nic[64];

	for (int i = 0; i < COUNT_OF(requests); i++) {
		c.buffers = i % 2 == 1;
		snprintf(nic, sizeof(nic), "fail=%d,rank=%d", requests[i], victim);
		check(nodes, num_ranks, nic, &c);
	}
}

static void aborts(const char *nodes, int num_ranks, int victim)
{
	struct failure_case c = {
		.victim = victim, .result = MOEEP_ERR_ABORTED, .text = "that rank has had enough"};

	check(nodes, num_ranks, "", &c);
	c.buffers = true;
	check(nodes, num_ranks, "latency=500,jitter=500", &c);
}

/*
 * Rows of this node's ranks go by memory: the network carries what other nodes want, to one rank of
 * each. Every token goes to all ranks.
 */
static int counters_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	const uint64_t row = (uint64_t)c->spec.hidden * 2, tokens = (uint64_t)c->spec.tokens[0];
	moeep_comm_info_t info = {.size = sizeof(info)};
	uint64_t before = 0, bytes = 0;
	moeep_buffer_t *buffer = NULL;
	moeep_handle_t *handle = NULL;
	int gates = 0;

	RANK_TRY(moeep_comm_query(comm, &info));
	RANK_DO(ht_open(c, comm, &buffer, &handle));
	for (int after = 0; after < 2; after++) {
		bytes = 0;
		gates = 0;
		for (int r = 0; r < c->spec.num_ranks; r++) {
			moeep_peer_info_t peer = {.size = sizeof(peer)};

			RANK_TRY(moeep_comm_query_peer(comm, r, &peer));
			bytes += peer.network_bytes;
			gates += peer.network_requests > 0;
			rank_check(peer.network_bytes == 0 || peer.node != info.node,
				   "rank %d of this node: %llu bytes by the network", r,
				   (unsigned long long)peer.network_bytes);
		}
		if (!after) {
			before = bytes;
			RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, 0));
			RANK_DO(ht_combine(c, rank, comm, buffer, handle));
		}
	}
	rank_check(gates == info.num_nodes - 1, "%d ranks hear this one", gates);
	bytes -= before;
	/* A row out to the other node, and a sum back for each token of a rank there. */
	rank_check(bytes >= 2 * tokens * row && bytes < 3 * tokens * row,
		   "%llu bytes for %llu rows of %llu each way", (unsigned long long)bytes,
		   (unsigned long long)tokens, (unsigned long long)row);
	return ht_close(buffer, handle);
}

static void counters(void)
{
	struct ht_case c = {.spec = {.num_ranks = 16,
				     .num_experts = 16,
				     .topk = 16,
				     .hidden = 1024,
				     .routing = ROUTE_DISTINCT,
				     .seed = op_seed()}};

	setenv("MOEEP_TEST_NODES", "block 2", 1);
	op_tokens(&c.spec, 40);
	ht_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = 16}, counters_body, &c,
		  "2 nodes of 8: no byte of a node's own goes by the network");
	ht_case_free(&c);
}

static int open_body(int rank, moeep_comm_t *comm, void *arg)
{
	(void)arg;
	rank_check(comm != NULL, "rank %d has no comm", rank);
	return 0;
}

int main(void)
{
	struct ranks_config good = {.num_ranks = 3};

	setenv("MOEEP_TEST_NODES", "block 2", 1);
	setenv("MOEEP_LOG", "none", 1);
	if (device_mode() != DEVICE_NONE) {
		tap_skip(1, "with GPUs there is one node yet");
		return tap_done();
	}
	ranks_begin();
	card_fails("block 2", 4, 1);
	card_fails("block 2", 2, 0);
	card_fails("sizes 1,2", 3, 2);
	card_fails("cyclic 3", 5, 4);
	counters();
	aborts("block 2", 4, 3);
	aborts("cyclic 3", 6, 1);
	ranks_run(&good, open_body, NULL, "after all that: a group");
	return tap_done();
}
