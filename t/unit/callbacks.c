/* SPDX-License-Identifier: MIT */
/* Exchanges over the caller's functions, and the single rank that needs none. */
#include "config.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "t/tap.h"
#include "t/unit/group.h"

#define TIMEOUT_MS 20000
#define MAX_RANKS  8

/* A framework's exchange: ranks are threads, a round is complete when all have put their bytes. */
struct world {
	int num_ranks;
	pthread_mutex_t lock;
	pthread_cond_t moved;
	int in;	 /* ranks that have put */
	int out; /* ranks that have taken */
	unsigned round;
	const void *parts[MAX_RANKS];
};

enum fault { NO_FAULT, FAIL_ALLGATHER, FAIL_TEST, NEVER_COMPLETE, COMPLETE_LATE, SWAP_RANKS };

struct context {
	struct world *world;
	int rank;
	enum fault fault;
	int fault_round; /* of this rank's calls */
	int calls;
	int requests; /* given and not released */
	int tests;
	int late; /* tests that say "in progress" before one looks */
	int64_t complete_at;
};

struct request {
	struct context *context;
	const void *send;
	void *recv;
	size_t bytes;
	unsigned round;
	int tests;
	bool taken;
};

static struct request *volatile unfinished[MAX_RANKS];
static const void *volatile given[2];

static void put(struct world *world, int rank, const void *send)
{
	world->parts[rank] = send;
	world->in++;
	if (world->in == world->num_ranks) {
		world->round++;
		pthread_cond_broadcast(&world->moved);
	}
}

/* After the round is complete. Returns once all have taken: the parts are the ranks' memory. */
static void take(struct context *context, void *recv, size_t bytes)
{
	struct world *world = context->world;
	unsigned round = world->round;

	for (int i = 0; i < world->num_ranks; i++) {
		int from = context->fault == SWAP_RANKS ? world->num_ranks - 1 - i : i;

		memcpy((char *)recv + (size_t)i * bytes, world->parts[from], bytes);
	}
	world->out++;
	if (world->out == world->num_ranks) {
		world->in = 0;
		world->out = 0;
		world->round++;
		pthread_cond_broadcast(&world->moved);
	}
	while (world->round == round) {
		pthread_cond_wait(&world->moved, &world->lock);
	}
}

static int sync_allgather(void *arg, const void *send, void *recv, size_t bytes, void **request)
{
	struct context *context = arg;
	struct world *world = context->world;
	unsigned round;

	context->calls++;
	if (context->fault == FAIL_ALLGATHER && context->calls == context->fault_round) {
		return -5;
	}
	pthread_mutex_lock(&world->lock);
	round = world->round;
	put(world, context->rank, send);
	while (world->round == round) {
		pthread_cond_wait(&world->moved, &world->lock);
	}
	take(context, recv, bytes);
	pthread_mutex_unlock(&world->lock);
	*request = NULL;
	return 0;
}

static int async_allgather(void *arg, const void *send, void *recv, size_t bytes, void **request)
{
	struct context *context = arg;
	struct world *world = context->world;
	struct request *own = calloc(1, sizeof(*own));

	if (!own) {
		return -12;
	}
	context->calls++;
	context->requests++;
	*own = (struct request){.context = context, .send = send, .recv = recv, .bytes = bytes};
	pthread_mutex_lock(&world->lock);
	own->round = world->round;
	if (!(context->fault == NEVER_COMPLETE && context->calls == context->fault_round)) {
		put(world, context->rank, send);
	}
	pthread_mutex_unlock(&world->lock);
	if (context->fault == NEVER_COMPLETE) {
		/* The memory that it was given stays its own; leak checkers shall see that. */
		unfinished[context->rank] = own;
	}
	*request = own;
	return 0;
}

static int async_test(void *arg, void *request)
{
	struct context *context = arg;
	struct world *world = context->world;
	struct request *own = request;
	int rc = 1;

	context->tests++;
	own->tests++;
	if (context->fault == FAIL_TEST && context->calls == context->fault_round) {
		return -7;
	}
	if (own->tests <= context->late) {
		return 1;
	}
	if (context->fault == COMPLETE_LATE && context->calls == context->fault_round &&
	    now_ms() < context->complete_at) {
		return 1;
	}
	pthread_mutex_lock(&world->lock);
	if (!own->taken && world->round != own->round) {
		take(context, own->recv, own->bytes);
		own->taken = true;
		rc = 0;
	}
	pthread_mutex_unlock(&world->lock);
	return rc;
}

static void async_release(void *arg, void *request)
{
	struct context *context = arg;

	context->requests--;
	free(request);
}

static int exchange_sizes(struct member *member, struct moeep_boot *boot)
{
	static const size_t sizes[] = {1, 0, 1000, 100000, 0, 17};
	int rc = MOEEP_OK;

	for (unsigned i = 0; i < 6 && rc == MOEEP_OK; i++) {
		rc = exchange_check(boot, member->rank, member->num_ranks, sizes[i], i,
				    member->timeout_ms);
	}
	if (rc == MOEEP_OK && moeep_boot_lost(boot) != -1) {
		rc = 3;
	}
	return rc;
}

static int exchange_mismatch(struct member *member, struct moeep_boot *boot)
{
	int rc = exchange_check(boot, member->rank, member->num_ranks, member->rank == 1 ? 9 : 8, 0,
				member->timeout_ms);

	if (rc != MOEEP_ERR_MISMATCH || !strstr(moeep_error_detail(), "rank 0 gives 8 bytes") ||
	    !strstr(moeep_error_detail(), "rank 1 9")) {
		return 3;
	}
	return exchange_check(boot, member->rank, member->num_ranks, 8, 0, member->timeout_ms);
}

struct run {
	struct world world;
	struct context contexts[MAX_RANKS];
	moeep_bootstrap_t bootstraps[MAX_RANKS];
	struct member members[MAX_RANKS];
};

static void run_prepare(struct run *run, int num_ranks, bool async)
{
	memset(run, 0, sizeof(*run));
	run->world.num_ranks = num_ranks;
	pthread_mutex_init(&run->world.lock, NULL);
	pthread_cond_init(&run->world.moved, NULL);
	for (int i = 0; i < num_ranks; i++) {
		run->contexts[i] = (struct context){.world = &run->world, .rank = i};
		run->bootstraps[i] = (moeep_bootstrap_t){
			.size = sizeof(moeep_bootstrap_t),
			.context = &run->contexts[i],
			.allgather = async ? async_allgather : sync_allgather,
			.test = async ? async_test : NULL,
			.release = async ? async_release : NULL,
		};
		run->members[i] = (struct member){
			.bootstrap = &run->bootstraps[i],
			.rank = i,
			.num_ranks = num_ranks,
			.timeout_ms = TIMEOUT_MS,
			.fn = exchange_sizes,
		};
	}
}

static int run_go(struct run *run, int rc)
{
	int requests = 0;
	int count;

	for (int i = 0; i < run->world.num_ranks; i++) {
		member_start(&run->members[i]);
	}
	for (int i = 0; i < run->world.num_ranks; i++) {
		member_wait(&run->members[i]);
		requests += run->contexts[i].requests;
	}
	is_int(requests, 0, "every request is released once");
	count = group_count(run->members, run->world.num_ranks, rc);
	pthread_mutex_destroy(&run->world.lock);
	pthread_cond_destroy(&run->world.moved);
	return count;
}

static void test_success(void)
{
	static struct run run;

	for (int n = 1; n <= MAX_RANKS; n += n == 1 ? 1 : 3) {
		run_prepare(&run, n, false);
		is_int(run_go(&run, MOEEP_OK), n, "%d ranks, finished at once", n);
		run_prepare(&run, n, true);
		is_int(run_go(&run, MOEEP_OK), n, "%d ranks, finished later", n);
	}
	run_prepare(&run, 3, true);
	run.contexts[1].late = 230;
	is_int(run_go(&run, MOEEP_OK), 3, "one that is not ready for long");
	ok(run.contexts[1].tests > 230, "it was asked until it was");
	run_prepare(&run, 3, false);
	for (int i = 0; i < 3; i++) {
		run.members[i].fn = exchange_mismatch;
	}
	is_int(run_go(&run, MOEEP_OK), 3, "sizes that differ are named; the next exchange works");
}

/* Faults that every rank has, so that none waits for another. */
static void test_faults(void)
{
	static struct run run;

	for (int round = 1; round <= 5; round++) {
		run_prepare(&run, 2, false);
		for (int i = 0; i < 2; i++) {
			run.contexts[i].fault = FAIL_ALLGATHER;
			run.contexts[i].fault_round = round;
		}
		is_int(run_go(&run, MOEEP_ERR_RENDEZVOUS), 2, "allgather fails at call %d", round);
		ok(strstr(run.members[0].detail, "returned -5"), "detail: %s",
		   run.members[0].detail);
	}
	for (int round = 1; round <= 3; round++) {
		run_prepare(&run, 1, true);
		run.contexts[0].fault = FAIL_TEST;
		run.contexts[0].fault_round = round;
		is_int(run_go(&run, MOEEP_ERR_RENDEZVOUS), 1, "test fails at call %d", round);
		ok(strstr(run.members[0].detail, "returned -7"), "detail: %s",
		   run.members[0].detail);
	}

	run_prepare(&run, 2, false);
	run.contexts[0].fault = SWAP_RANKS;
	run.contexts[1].fault = SWAP_RANKS;
	is_int(run_go(&run, MOEEP_ERR_RENDEZVOUS), 2, "ranks in the wrong order");
	ok(strstr(run.members[0].detail, "rank 0"), "detail: %s", run.members[0].detail);

	run_prepare(&run, 2, false);
	run.members[1].num_ranks = 3;
	is_int(run_go(&run, MOEEP_ERR_MISMATCH), 2, "another number of ranks");
	ok(strstr(run.members[0].detail, "2 on rank 0 and 3 on rank 1"), "detail: %s",
	   run.members[0].detail);
}

static int exchange_then_again(struct member *member, struct moeep_boot *boot)
{
	int rc = exchange_check(boot, member->rank, member->num_ranks, 8, 0, 300);

	if (rc != MOEEP_ERR_TIMEOUT || !strstr(moeep_error_detail(), "not complete")) {
		return 3;
	}
	return exchange_check(boot, member->rank, member->num_ranks, 8, 1, 300);
}

static void test_timeout(void)
{
	static struct run run;
	int64_t start = now_ms();

	/* Complete when the rank has given up, but not yet left. */
	run_prepare(&run, 2, true);
	for (int i = 0; i < 2; i++) {
		run.members[i].fn = exchange_then_again;
		run.contexts[i].fault = COMPLETE_LATE;
		run.contexts[i].fault_round = 2;
		run.contexts[i].complete_at = start + 340;
	}
	is_int(run_go(&run, MOEEP_ERR_RENDEZVOUS), 2,
	       "an exchange that is not complete in time ends them all");
	ok(now_ms() - start >= 300 && now_ms() - start < 5000 * slowness(), "in time");

	run_prepare(&run, 2, true);
	for (int i = 0; i < 2; i++) {
		run.members[i].fn = exchange_then_again;
		run.contexts[i].fault = NEVER_COMPLETE;
		run.contexts[i].fault_round = 2;
		member_start(&run.members[i]);
	}
	for (int i = 0; i < 2; i++) {
		member_wait(&run.members[i]);
	}
	is_int(group_count(run.members, 2, MOEEP_ERR_RENDEZVOUS), 2,
	       "so does one that is never complete");
	is_int(run.contexts[0].requests, 1, "its request is not released");
	pthread_mutex_destroy(&run.world.lock);
	pthread_cond_destroy(&run.world.moved);
}

static int open_with(const moeep_comm_config_t *config, int rank, int num_ranks)
{
	struct moeep_boot *boot = NULL;
	int rc = moeep_boot_open(config, rank, num_ranks, TIMEOUT_MS, &boot);

	if (boot) {
		moeep_boot_close(boot);
		return rc ? 99 : 0;
	}
	return rc;
}

static int request_without_test(void *context, const void *send, void *recv, size_t bytes,
				void **request)
{
	(void)bytes;
	given[0] = send;
	given[1] = recv;
	*request = context;
	return 0;
}

static void test_arguments(void)
{
	moeep_unique_id_t id = {.bytes = {0}};
	moeep_bootstrap_t bootstrap = {.size = sizeof(bootstrap)};
	moeep_comm_config_t config = {.size = sizeof(config)};
	struct moeep_boot *boot = NULL;
	char all[4] = "";

	is_int(open_with(NULL, 0, 1), MOEEP_OK, "one rank, no configuration");
	is_int(open_with(&config, 0, 1), MOEEP_OK, "one rank, neither id nor functions");
	is_int(open_with(&config, 0, 2), MOEEP_ERR_INVALID, "two ranks, neither");
	is_int(open_with(&config, 1, 1), MOEEP_ERR_INVALID, "rank 1 of 1");
	is_int(open_with(&config, -1, 1), MOEEP_ERR_INVALID, "rank -1");
	is_int(open_with(&config, 0, 0), MOEEP_ERR_INVALID, "no ranks");
	is_int(open_with(&config, 0, 4097), MOEEP_ERR_INVALID, "4097 ranks");
	ok(strstr(moeep_error_detail(), "4097"), "detail: %s", moeep_error_detail());
	config.bootstrap = &bootstrap;
	is_int(open_with(&config, 0, 1), MOEEP_ERR_INVALID, "no allgather");
	bootstrap.allgather = request_without_test;
	bootstrap.context = all;
	is_int(open_with(&config, 0, 1), MOEEP_ERR_RENDEZVOUS, "a request, but no test");
	bootstrap.size = 3;
	is_int(open_with(&config, 0, 1), MOEEP_ERR_INVALID, "functions of a wrong size");
	bootstrap.size = sizeof(bootstrap);
	config.id = &id;
	is_int(open_with(&config, 0, 1), MOEEP_ERR_INVALID, "both id and functions");
	config.bootstrap = NULL;
	is_int(open_with(&config, 0, 1), MOEEP_ERR_INVALID, "an id of zeros");
	moeep_boot_close(NULL);

	is_int(moeep_boot_open(NULL, 0, 1, TIMEOUT_MS, &boot), MOEEP_OK, "a single rank");
	is_int(moeep_boot_allgather(boot, "abc", all, 3, TIMEOUT_MS), MOEEP_OK, "exchanges");
	is_mem(all, "abc", 3, "with itself");
	is_int(moeep_boot_allgather(boot, NULL, NULL, 0, TIMEOUT_MS), MOEEP_OK, "nothing, too");
	is_int(moeep_boot_lost(boot), -1, "and loses nobody");
	moeep_boot_close(boot);
}

int main(void)
{
	test_success();
	test_faults();
	test_timeout();
	test_arguments();
	return tap_done();
}
