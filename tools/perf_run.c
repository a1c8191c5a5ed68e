/* SPDX-License-Identifier: MIT */
/* tools/perf_run.c - what one rank does: its group and buffers, and the order of its calls. */
#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "perf_rank.h"

uint64_t rank_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int rank_fail(struct rank *r, const char *what, const char *why)
{
	struct perf_shared *shared = r->run->shared;
	int none = 0;

	if (shared->error[r->rank][0] == '\0') {
		snprintf(shared->error[r->rank], PERF_ERROR_TEXT, "%s: %s", what, why);
	}
	atomic_compare_exchange_strong(&shared->failed, &none, r->rank + 1);
	if (r->comm) {
		(void)moeep_comm_abort(r->comm, shared->error[r->rank]);
	}
	if (r->twin && r->twin->comm) {
		(void)moeep_comm_abort(r->twin->comm, shared->error[r->rank]);
	}
	return 1;
}

int rank_fail_call(struct rank *r, const char *call, int result)
{
	const char *detail = moeep_error_detail();

	return rank_fail(r, call, detail[0] ? detail : moeep_strerror(result));
}

int rank_barrier(struct rank *r)
{
	int rc = moeep_comm_barrier(r->comm);

	return rc ? rank_fail_call(r, "moeep_comm_barrier", rc) : 0;
}

/* How many calls to time: the same number on all ranks, from the slowest one's warm-up. */
static int agree_iterations(struct rank *r, int index, uint64_t warm_ns, int64_t *count)
{
	struct perf_shared *shared = r->run->shared;
	const struct perf_options *o = r->o;
	int64_t most = r->mode == MOEEP_MODE_HT ? PERF_MOST_HT_ITERS : PERF_MOST_LL_ITERS,
		least = r->device ? PERF_LEAST_GPU_ITERS : PERF_LEAST_ITERS, n = o->iters;
	uint64_t slowest = 1;

	shared->warm_ns[r->rank] = warm_ns;
	if (rank_barrier(r)) {
		return 1;
	}
	for (int rank = 0; rank < o->ranks; rank++) {
		slowest = shared->warm_ns[rank] > slowest ? shared->warm_ns[rank] : slowest;
	}
	if (n == 0) {
		double fit = o->seconds * 1e9 / (double)slowest;

		n = fit < (double)least ? least : fit > (double)most ? most : (int64_t)fit;
	}
	/* Nobody writes the next figure before all have read this one. */
	if (rank_barrier(r)) {
		return 1;
	}
	if (r->rank == 0) {
		shared->iterations[index] = n;
		atomic_store_explicit(&shared->calls_to_do, n, memory_order_relaxed);
	}
	*count = n;
	return 0;
}

/* What a call gave, and, with --compare-host, what the host backend gives for it. */
static int check_call(struct rank *r, const struct perf_case *c, int64_t call,
		      struct check_result *result)
{
	if (rank_check_call(r, c, rank_last_call(r, c, call), result)) {
		return 1;
	}
	return r->twin ? rank_twin_check(r, c, rank_last_call(r, c, call), result) : 0;
}

/* Several calls, each timed; on a GPU they are put on the stream together. */
static int some_calls(struct rank *r, const struct perf_case *c, int64_t first, int count,
		      uint64_t ns[][PERF_MAX_PHASES])
{
	int rc = 0;

	if (r->device) {
		return rank_stream_calls(r, c, first, count, ns);
	}
	for (int i = 0; rc == 0 && i < count; i++) {
		rc = rank_step(r, c, first + i, ns[i]);
	}
	return rc;
}

static int batch_of(const struct rank *r, int64_t left)
{
	if (!r->device) {
		return 1;
	}
	return left < DEVICE_BATCH ? (int)left : DEVICE_BATCH;
}

static int timed_calls(struct rank *r, int index, int64_t first, int64_t count,
		       struct check_result *result)
{
	const struct perf_case *c = &r->run->cases[index];
	uint64_t ns[DEVICE_BATCH][PERF_MAX_PHASES] = {{0}};
	int batch;

	for (int64_t done = 0; done < count; done += batch) {
		int64_t last;

		batch = r->o->check_all ? 1 : batch_of(r, count - done);
		last = first + done + batch - 1;
		if (r->o->check_all &&
		    (rank_fill(r, c, rank_last_call(r, c, last)) || rank_poison(r, c))) {
			return 1;
		}
		if (some_calls(r, c, first + done, batch, ns)) {
			return 1;
		}
		for (int i = 0; i < batch * PERF_MAX_PHASES; i++) {
			int call = i / PERF_MAX_PHASES, phase = i % PERF_MAX_PHASES;

			*perf_run_ns(r->run, index, phase, done + call, r->rank) = ns[call][phase];
		}
		if ((r->o->check_all || done + batch == count) && check_call(r, c, last, result)) {
			return 1;
		}
		if (r->rank == 0) {
			atomic_store_explicit(&r->run->shared->calls_done, done + batch,
					      memory_order_relaxed);
		}
	}
	return 0;
}

/* Untimed; *each is what one took. */
static int warm_up(struct rank *r, const struct perf_case *c, int64_t first, int64_t count,
		   uint64_t *each)
{
	uint64_t ns[DEVICE_BATCH][PERF_MAX_PHASES], start = rank_now_ns();
	int batch;

	for (int64_t done = 0; done < count; done += batch) {
		batch = batch_of(r, count - done);
		if (some_calls(r, c, first + done, batch, ns)) {
			return 1;
		}
	}
	if (count > 0) {
		*each = (rank_now_ns() - start) / (uint64_t)count;
	}
	return 0;
}

/* Check, warm up, time, check. */
static int run_case(struct rank *r, int index)
{
	const struct perf_case *c = &r->run->cases[index];
	struct perf_shared *shared = r->run->shared;
	struct perf_outcome *outcome = &shared->outcome[index][r->rank];
	moeep_comm_info_t info = {.size = sizeof(info)};
	int64_t warmup = perf_warmup(r->o, c->mode), count;
	uint64_t ns[PERF_MAX_PHASES] = {0}, each;
	int rc;

	if (r->rank == 0) {
		atomic_store_explicit(&shared->case_now, index, memory_order_relaxed);
		atomic_store_explicit(&shared->calls_done, 0, memory_order_relaxed);
		atomic_store_explicit(&shared->calls_to_do, 0, memory_order_relaxed);
	}
	if ((c->op == PERF_COMBINE || r->o->cached) && rank_route_all(r)) {
		return 1;
	}
	if (c->graph && rank_graph_make(r, c)) {
		return 1;
	}
	if (rank_poison(r, c) || rank_fill(r, c, rank_last_call(r, c, 0)) ||
	    rank_step(r, c, 0, ns) || check_call(r, c, 0, &outcome->check)) {
		return 1;
	}
	each = ns[0] + ns[1];
	if (warm_up(r, c, 1, warmup, &each) || agree_iterations(r, index, each, &count)) {
		return 1;
	}
	if (!r->o->check_all && rank_fill(r, c, rank_last_call(r, c, warmup + count))) {
		return 1;
	}
	if (timed_calls(r, index, warmup + 1, count, &outcome->check)) {
		return 1;
	}
	rc = moeep_comm_query(r->comm, &info);
	if (rc) {
		return rank_fail_call(r, "moeep_comm_query", rc);
	}
	outcome->symmetric_bytes = info.symmetric_bytes;
	if (c->graph) {
		/* Taking memory back may wait for the GPU: nobody's call may be on it. */
		if (rank_barrier(r)) {
			return 1;
		}
		rank_graph_free(r);
		return rank_barrier(r);
	}
	return 0;
}

/* The rows of another kind of memory. */
static int change_rows(struct rank *r, const struct perf_case *c)
{
	/* Peers may still read the rows that go. */
	if (rank_barrier(r)) {
		return 1;
	}
	if (c->mode == MOEEP_MODE_HT) {
		rank_block_free(r, BLOCK_ROWS);
	}
	rank_block_free(r, BLOCK_COMBINE);
	/* Symmetric rows are gone when all have let go of them. */
	if (rank_barrier(r) || rank_row_blocks(r, c->memory)) {
		return 1;
	}
	/* On a GPU, nobody's call may be under way while somebody takes memory. */
	return rank_barrier(r);
}

static int run_cases(struct rank *r)
{
	const struct perf_case *previous = NULL;

	for (int i = 0; i < r->run->num_cases; i++) {
		const struct perf_case *c = &r->run->cases[i];

		if (!previous || previous->mode != c->mode) {
			if (previous && rank_barrier(r)) {
				return 1;
			}
			rank_mode_close(r->twin);
			rank_mode_close(r);
			if (rank_mode_open(r, c->mode) ||
			    (r->twin && rank_mode_open(r->twin, c->mode))) {
				return 1;
			}
			previous = NULL;
		}
		if ((!previous || previous->memory != c->memory) &&
		    (change_rows(r, c) || (r->twin && change_rows(r->twin, c)))) {
			return 1;
		}
		if (rank_note_bytes(r, i) || run_case(r, i)) {
			return 1;
		}
		previous = c;
	}
	return rank_barrier(r);
}

/* A failure is reported once, by the parent, unless somebody wants every rank's lines. */
static void log_line(void *context, int level, const char *line)
{
	(void)context;
	if (level > 1 || getenv("MOEEP_LOG")) {
		fprintf(stderr, "%s\n", line);
	}
}

/*
 * All ranks come here once they are ready, so that joining takes no longer than joining takes. 1 if
 * one of them never will.
 */
static int arrive(struct rank *r)
{
	const struct timespec ts = {0, 100000};
	struct perf_shared *shared = r->run->shared;

	atomic_fetch_add(&shared->arrived, 1);
	while (atomic_load(&shared->arrived) < r->o->ranks && !atomic_load(&shared->failed)) {
		(void)nanosleep(&ts, NULL);
	}
	return atomic_load(&shared->failed) != 0;
}

static int open_device(struct rank *r)
{
	int results = r->o->graph > DEVICE_BATCH * DEVICE_PHASES ? r->o->graph
								 : DEVICE_BATCH * DEVICE_PHASES;
	char why[300];

	if (r->o->backend != MOEEP_BACKEND_CUDA) {
		return 0;
	}
	return device_open(perf_gpus_of(r->run->gpus, r->rank), results, &r->device, why,
			   sizeof(why))
		       ? rank_fail(r, "GPU", why)
		       : 0;
}

static int join(struct rank *r, const moeep_unique_id_t *id, int backend)
{
	moeep_comm_config_t config = {
		.size = sizeof(config),
		.id = id,
		.backend = backend,
		.device_plus_one = r->device ? r->device->ordinal + 1 : 0,
		.timeout_ms = r->o->timeout_ms,
		.log = log_line,
	};
	char host[32];
	moeep_comm_info_t info = {.size = sizeof(info)};
	int rc;

	if (r->o->emulate_nodes) {
		snprintf(host, sizeof(host), "node %d", perf_node(r->o, r->rank));
		config.host_id = host;
	}
	rc = moeep_comm_create(r->rank, r->o->ranks, &config, &r->comm);
	if (rc) {
		r->comm = NULL;
		return rank_fail_call(r, "moeep_comm_create", rc);
	}
	rc = moeep_comm_query(r->comm, &info);
	if (rc) {
		return rank_fail_call(r, "moeep_comm_query", rc);
	}
	if (info.backend != backend) {
		return rank_fail(r, "moeep_comm_create",
				 "the library works with another backend than it was asked for");
	}
	return 0;
}

/* The group, and what it says about itself. */
static int enter(struct rank *r, struct rank *twin)
{
	struct perf_shared *shared = r->run->shared;
	moeep_peer_info_t peer = {.size = sizeof(peer)};
	uint64_t start;

	if (open_device(r) || arrive(r)) {
		return 1;
	}
	start = rank_now_ns();
	if (join(r, &shared->id, r->o->backend)) {
		return 1;
	}
	shared->comm_ns[r->rank] = rank_now_ns() - start;
	if (r->rank == 0 && moeep_comm_query_peer(r->comm, r->o->ranks - 1, &peer) == 0) {
		snprintf(shared->transport, sizeof(shared->transport), "%s",
			 moeep_transport_name(peer.transport));
	}
	if (r->o->compare_host) {
		r->twin = twin;
		twin->twin = r;
		if (join(twin, &shared->twin_id, MOEEP_BACKEND_HOST)) {
			return 1;
		}
	}
	return r->device ? rank_stream_open(r) : 0;
}

/* What this rank has handed to the network, for ranks of its own host and of others. */
static void count_network(const struct rank *r)
{
	struct perf_network *network = &r->run->shared->network[r->rank];

	for (int rank = 0; rank < r->o->ranks; rank++) {
		moeep_peer_info_t peer = {.size = sizeof(peer)};

		if (moeep_comm_query_peer(r->comm, rank, &peer) == 0) {
			bool own = perf_node(r->o, rank) == perf_node(r->o, r->rank);

			network->requests += peer.network_requests;
			network->bytes += peer.network_bytes;
			network->own_bytes += own ? peer.network_bytes : 0;
		}
	}
}

int perf_run_rank(struct perf_run *run, int rank)
{
	struct rank r = {.run = run, .o = run->options, .rank = rank};
	struct rank twin = {.run = run, .o = run->options, .rank = rank};
	int rc = enter(&r, &twin);

	if (rc == 0) {
		rc = run_cases(&r);
		count_network(&r);
	}
	rank_mode_close(&twin);
	(void)moeep_comm_destroy(twin.comm);
	rank_mode_close(&r);
	if (r.device) {
		rank_stream_close(&r);
	}
	(void)moeep_comm_destroy(r.comm);
	device_close(r.device);
	return rc;
}
