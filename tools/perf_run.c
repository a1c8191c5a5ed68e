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
		n = o->iters;
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

		n = fit < PERF_LEAST_ITERS ? PERF_LEAST_ITERS
		    : fit > (double)most   ? most
					   : (int64_t)fit;
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

static int timed_calls(struct rank *r, int index, int64_t first, int64_t count,
		       struct check_result *result)
{
	const struct perf_case *c = &r->run->cases[index];
	uint64_t ns[PERF_MAX_PHASES];

	for (int64_t i = 0; i < count; i++) {
		bool check = r->o->check_all || i + 1 == count;

		if (r->o->check_all && rank_fill(r, c, first + i)) {
			return 1;
		}
		if (r->o->check_all) {
			rank_poison(r, c);
		}
		if (rank_step(r, c, first + i, ns)) {
			return 1;
		}
		for (int phase = 0; phase < PERF_MAX_PHASES; phase++) {
			*perf_run_ns(r->run, index, phase, i, r->rank) = ns[phase];
		}
		if (check && rank_check_call(r, c, first + i, result)) {
			return 1;
		}
		if (r->rank == 0) {
			atomic_store_explicit(&r->run->shared->calls_done, i + 1,
					      memory_order_relaxed);
		}
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
	uint64_t ns[PERF_MAX_PHASES], start;
	int rc;

	if (r->rank == 0) {
		atomic_store_explicit(&shared->case_now, index, memory_order_relaxed);
		atomic_store_explicit(&shared->calls_done, 0, memory_order_relaxed);
		atomic_store_explicit(&shared->calls_to_do, 0, memory_order_relaxed);
	}
	if ((c->op == PERF_COMBINE || r->o->cached) && rank_route_all(r)) {
		return 1;
	}
	rank_poison(r, c);
	if (rank_fill(r, c, 0) || rank_step(r, c, 0, ns) ||
	    rank_check_call(r, c, 0, &outcome->check)) {
		return 1;
	}
	start = rank_now_ns();
	for (int64_t i = 1; i <= warmup; i++) {
		if (rank_step(r, c, i, ns)) {
			return 1;
		}
	}
	ns[0] = warmup > 0 ? (rank_now_ns() - start) / (uint64_t)warmup : ns[0] + ns[1];
	if (agree_iterations(r, index, ns[0], &count)) {
		return 1;
	}
	if (!r->o->check_all && rank_fill(r, c, warmup + count)) {
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
	return 0;
}

static int mode_open(struct rank *r, unsigned mode)
{
	moeep_buffer_config_t config;
	bool ht = mode == MOEEP_MODE_HT;
	const struct perf_plan *plan = r->run->plan;
	int rc;

	r->mode = mode;
	r->routing = ht ? &plan->ht : &plan->ll;
	r->copies = ht ? plan->copies : r->routing->shape.variants;
	r->capacity = ht ? (plan->ht_rows ? plan->ht_rows : 1) : plan->ll_capacity;
	memset(r->routed, 0, sizeof(r->routed));
	perf_buffer_config(r->o, plan, mode, &config);
	rc = moeep_buffer_create(r->comm, &config, &r->buffer);
	if (rc) {
		r->buffer = NULL;
		return rank_fail_call(r, "moeep_buffer_create", rc);
	}
	for (int v = 0; v < r->routing->shape.variants; v++) {
		rc = moeep_handle_create(r->buffer, NULL, &r->handle[v]);
		if (rc) {
			r->handle[v] = NULL;
			return rank_fail_call(r, "moeep_handle_create", rc);
		}
	}
	return rank_mode_blocks(r);
}

static void mode_close(struct rank *r)
{
	for (int i = 0; i < NUM_BLOCKS; i++) {
		rank_block_free(r, i);
	}
	for (int v = 0; v < PERF_MAX_VARIANTS; v++) {
		if (r->handle[v]) {
			(void)moeep_handle_destroy(r->handle[v]);
		}
		r->handle[v] = NULL;
	}
	(void)moeep_buffer_destroy(r->buffer);
	r->buffer = NULL;
	r->mode = 0;
}

static int note_bytes(struct rank *r, int index)
{
	struct perf_outcome *outcome = &r->run->shared->outcome[index][r->rank];
	moeep_buffer_info_t info = {.size = sizeof(info)};
	moeep_size_hint_t hint = {.size = sizeof(hint)};
	moeep_buffer_config_t config;
	int rc;

	rc = moeep_buffer_query(r->buffer, &info);
	if (rc) {
		return rank_fail_call(r, "moeep_buffer_query", rc);
	}
	perf_buffer_config(r->o, r->run->plan, r->mode, &config);
	rc = moeep_buffer_size_hint(r->comm, 0, 0, &config, &hint);
	if (rc) {
		return rank_fail_call(r, "moeep_buffer_size_hint", rc);
	}
	outcome->window_bytes = info.window_bytes;
	outcome->private_bytes =
		hint.private_bytes + hint.handle_bytes * (uint64_t)r->routing->shape.variants;
	return 0;
}

static int run_cases(struct rank *r)
{
	const struct perf_case *previous = NULL;

	for (int i = 0; i < r->run->num_cases; i++) {
		const struct perf_case *c = &r->run->cases[i];

		if (!previous || previous->mode != c->mode) {
			if (previous) {
				if (rank_barrier(r)) {
					return 1;
				}
				mode_close(r);
			}
			if (mode_open(r, c->mode)) {
				return 1;
			}
			previous = NULL;
		}
		if (!previous || previous->memory != c->memory) {
			/* Peers may still read the rows that go. */
			if (rank_barrier(r)) {
				return 1;
			}
			if (c->mode == MOEEP_MODE_HT) {
				rank_block_free(r, BLOCK_ROWS);
			}
			/* Symmetric rows are gone when all have let go of them. */
			if (rank_barrier(r) || rank_row_blocks(r, c->memory)) {
				return 1;
			}
		}
		if (note_bytes(r, i) || run_case(r, i)) {
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

int perf_run_rank(struct perf_run *run, int rank)
{
	struct rank r = {.run = run, .o = run->options, .rank = rank};
	moeep_comm_config_t config = {
		.size = sizeof(config),
		.id = &run->shared->id,
		.backend = MOEEP_BACKEND_HOST,
		.timeout_ms = run->options->timeout_ms,
		.log = log_line,
	};
	moeep_peer_info_t peer = {.size = sizeof(peer)};
	int rc;

	rc = moeep_comm_create(rank, run->options->ranks, &config, &r.comm);
	if (rc) {
		r.comm = NULL;
		return rank_fail_call(&r, "moeep_comm_create", rc);
	}
	if (rank == 0 && moeep_comm_query_peer(r.comm, run->options->ranks - 1, &peer) == 0) {
		snprintf(run->shared->transport, sizeof(run->shared->transport), "%s",
			 moeep_transport_name(peer.transport));
	}
	rc = run_cases(&r);
	mode_close(&r);
	(void)moeep_comm_destroy(r.comm);
	return rc;
}
