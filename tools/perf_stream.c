/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_stream.c - calls of one rank on a GPU: put on its stream, each after a barrier on the
 * stream itself, and timed there by events.
 */
#include <config.h>

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "perf_rank.h"

/* How often a closed gate looks, and when it gives up: it must not hold what it was waiting for. */
#define GATE_LOOK_NS 20000
#define GATE_LOOKS   2500

static int gpu_fail(struct rank *r)
{
	return rank_fail(r, "GPU", device_error(r->device));
}

static int gpu_look(struct rank *r, CUresult result, const char *what)
{
	return device_look(r->device, result, what) ? gpu_fail(r) : 0;
}

/* The buffer whose dispatches of nothing are barriers. */
int rank_stream_open(struct rank *r)
{
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.modes = MOEEP_MODE_HT,
		.num_experts = r->o->ranks,
		.max_topk = 1,
		.hidden = 64,
		.ht_max_tokens = 1,
	};
	struct device *d = r->device;
	int rc;

	rc = moeep_buffer_create(r->comm, &config, &d->meet);
	if (rc) {
		d->meet = NULL;
		return rank_fail_call(r, "moeep_buffer_create", rc);
	}
	rc = moeep_handle_create(d->meet, NULL, &d->meet_handle);
	if (rc) {
		d->meet_handle = NULL;
		return rank_fail_call(r, "moeep_handle_create", rc);
	}
	return 0;
}

void rank_stream_close(struct rank *r)
{
	struct device *d = r->device;

	if (d->meet_handle) {
		(void)moeep_handle_destroy(d->meet_handle);
	}
	(void)moeep_buffer_destroy(d->meet);
	d->meet = NULL;
	d->meet_handle = NULL;
}

/* All ranks' streams meet here: no rank's counts are complete before every rank has come. */
static int meet(struct rank *r)
{
	moeep_launch_t launch = {.size = sizeof(launch), .stream = r->device->stream};
	moeep_dispatch_args_t args = {
		.size = sizeof(args),
		.flags = MOEEP_DISPATCH_COUNTS_ONLY,
		.topk = 1,
	};
	int rc = moeep_dispatch(r->device->meet, r->device->meet_handle, &args, &launch);

	return rc ? rank_fail_call(r, "moeep_dispatch (a barrier)", rc) : 0;
}

static moeep_launch_t launch_of(const struct rank *r, int32_t *status)
{
	*status = MOEEP_ERR_NOT_READY;
	return (moeep_launch_t){
		.size = sizeof(moeep_launch_t),
		.stream = r->device->stream,
		.num_sms = r->o->sms,
		.status = status,
	};
}

/*
 * The stream stands still until all calls of a batch are on it: what the host takes for one call
 * is then not in the time of the one before.
 */
static void gate_wait(void *argument)
{
	const struct timespec ts = {0, GATE_LOOK_NS};
	struct device *d = argument;

	for (int i = 0; i < GATE_LOOKS && !atomic_load(&d->gate); i++) {
		(void)nanosleep(&ts, NULL);
	}
}

/* Where the result of a phase of call i of a batch goes. */
static int32_t *status_of(const struct rank *r, int i, int phase)
{
	return &r->device->status[i * PERF_MAX_PHASES + phase];
}

static int put_call(struct rank *r, const struct perf_case *c, int64_t call, int i)
{
	int phases = perf_phases(r->o, c);
	struct device *d = r->device;
	struct prepared p;

	if (!c->graph) {
		rank_prepare(r, c, call, &p);
	}
	for (int phase = 0; phase < phases; phase++) {
		moeep_launch_t launch;

		/* Also between the phases: RECV then finds what the peers sent. */
		if (meet(r) || gpu_look(r, d->cu->cuEventRecord(d->event[i][phase][0], d->stream),
					"cuEventRecord")) {
			return 1;
		}
		if (c->graph) {
			if (gpu_look(r, d->cu->cuGraphLaunch(d->exec, d->stream),
				     "cuGraphLaunch")) {
				return 1;
			}
		} else {
			launch = launch_of(r, status_of(r, i, phase));
			if (rank_look(r, c,
				      rank_issue(r, &p, perf_phase(phases, phase), &launch))) {
				return 1;
			}
		}
		if (gpu_look(r, d->cu->cuEventRecord(d->event[i][phase][1], d->stream),
			     "cuEventRecord")) {
			return 1;
		}
	}
	return 0;
}

/* A result that came with the stream. */
static int look_at_status(struct rank *r, const struct perf_case *c, int32_t result)
{
	moeep_error_report_t report = {.size = sizeof(report)};

	if (result == MOEEP_OK) {
		return 0;
	}
	if (result == MOEEP_ERR_NOT_READY) {
		return rank_fail(r, rank_call_name(c), "launch.status was not written");
	}
	(void)moeep_comm_async_error(r->comm, &report);
	return rank_fail(r, rank_call_name(c),
			 report.result && report.message[0] ? report.message
							    : moeep_strerror(result));
}

static int take_times(struct rank *r, const struct perf_case *c, int count,
		      uint64_t ns[][PERF_MAX_PHASES])
{
	double calls = c->graph ? r->o->graph : 1;
	int phases = perf_phases(r->o, c);
	struct device *d = r->device;

	for (int i = 0; i < count; i++) {
		for (int phase = 0; phase < phases; phase++) {
			float ms = 0;

			if (!c->graph && look_at_status(r, c, *status_of(r, i, phase))) {
				return 1;
			}
			if (gpu_look(r,
				     d->cu->cuEventElapsedTime(&ms, d->event[i][phase][0],
							       d->event[i][phase][1]),
				     "cuEventElapsedTime")) {
				return 1;
			}
			ns[i][phase] = (uint64_t)((double)ms * 1e6 / calls + 0.5);
		}
	}
	for (int i = 0; c->graph && i < r->o->graph; i++) {
		if (look_at_status(r, c, d->status[i])) {
			return 1;
		}
	}
	return 0;
}

int rank_stream_calls(struct rank *r, const struct perf_case *c, int64_t first, int count,
		      uint64_t ns[][PERF_MAX_PHASES])
{
	struct device *d = r->device;
	int rc = 0;

	for (int i = 0; c->graph && i < r->o->graph; i++) {
		d->status[i] = MOEEP_ERR_NOT_READY;
	}
	atomic_store(&d->gate, 0);
	rc = gpu_look(r, d->cu->cuLaunchHostFunc(d->stream, gate_wait, d), "cuLaunchHostFunc");
	for (int i = 0; rc == 0 && i < count; i++) {
		rc = put_call(r, c, first + i, i);
	}
	atomic_store(&d->gate, 1);
	if (rc == 0 && device_wait(d)) {
		rc = gpu_fail(r);
	}
	return rc ? rc : take_times(r, c, count, ns);
}

static int capture_calls(struct rank *r, const struct perf_case *c)
{
	struct prepared p;

	for (int i = 0; i < r->o->graph; i++) {
		moeep_launch_t launch = launch_of(r, &r->device->status[i]);

		rank_prepare(r, c, i, &p);
		if (rank_look(r, c, rank_issue(r, &p, MOEEP_PHASE_BOTH, &launch))) {
			return 1;
		}
	}
	return 0;
}

int rank_graph_make(struct rank *r, const struct perf_case *c)
{
	struct device *d = r->device;
	CUresult result;
	int rc;

	if (gpu_look(r, d->cu->cuStreamBeginCapture(d->stream, CU_STREAM_CAPTURE_MODE_RELAXED),
		     "cuStreamBeginCapture")) {
		return 1;
	}
	rc = capture_calls(r, c);
	/* Also after a failure: the stream serves nothing else before. */
	result = d->cu->cuStreamEndCapture(d->stream, &d->graph);
	if (result != CUDA_SUCCESS) {
		d->graph = NULL;
	}
	if (rc || gpu_look(r, result, "cuStreamEndCapture")) {
		return 1;
	}
	if (gpu_look(r, d->cu->cuGraphInstantiateWithFlags(&d->exec, d->graph, 0),
		     "cuGraphInstantiate")) {
		d->exec = NULL;
		return 1;
	}
	/* Nobody replays while another one still makes its graph. */
	return rank_barrier(r);
}

void rank_graph_free(struct rank *r)
{
	struct device *d = r->device;

	if (d && d->exec) {
		(void)d->cu->cuGraphExecDestroy(d->exec);
		d->exec = NULL;
	}
	if (d && d->graph) {
		(void)d->cu->cuGraphDestroy(d->graph);
		d->graph = NULL;
	}
}
