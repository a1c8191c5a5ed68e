/* SPDX-License-Identifier: MIT */
/* What a rank does in the scene of each fate. */
#include "config.h"

#include "t/cuda/fault.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "t/device.h"

#define REASON	   "the optimiser has seen a NaN"
#define REPLAYS	   4
#define ABSURD_SMS (1 << 20)

/* A call that must succeed before the one that fails. */
#define STEP(call)                                                                                 \
	do {                                                                                       \
		if (!fault_is(r, (call), MOEEP_OK, #call)) {                                       \
			return;                                                                    \
		}                                                                                  \
	} while (0)

/* The call that does not end well; in_call tells the others that its kernels are queued. */
static int failing_call(struct fault_rank *r, enum fault_call call, int handle)
{
	int rc = fault_begin(r, call, handle);

	atomic_store(&fault_slot(r, r->number)->in_call, 1);
	return fault_end(r, rc);
}

/* The victim of a scene in which it does not come: what it does before, and its strike. */
static void act_missing_victim(struct fault_rank *r)
{
	const struct fault_scene *scene = fault_scene(r);
	enum fault_call call = scene->call;
	uint64_t begun;
	char text[20];
	int rc;

	if (call == CALL_LL_SEND) {
		STEP(fault_do(r, CALL_LL_SEND, 1));
		STEP(fault_do(r, CALL_LL_SEND, 2));
		call = CALL_LL_RECV;
	} else if (call == CALL_LL_RECV) {
		call = CALL_LL_SEND;
	} else if (call == CALL_LL_CRECV) {
		call = CALL_LL_CSEND;
	}
	fault_await_in_call(r, r->number, -1);
	fault_strike(r, scene->fate == FATE_STOPPED  ? SIGSTOP
			: scene->fate == FATE_KILLED ? SIGKILL
						     : 0);
	/* A rank that was stopped goes on when there is nothing left to wait for. */
	fault_await_given_up(r, r->number, -1);
	begun = fault_now_ns();
	rc = fault_do(r, call, 1);
	fault_check_failure(r, rc, begun, MOEEP_ERR_TIMEOUT,
			    fault_name_victim(r, text, sizeof(text)), FAULT_SLACK_MS);
}

static void act_missing(struct fault_rank *r)
{
	enum fault_call call = fault_scene(r)->call;
	uint64_t begun;
	int rc;

	if (r->victim) {
		act_missing_victim(r);
		return;
	}
	if (call == CALL_LL_SEND) {
		STEP(fault_do(r, CALL_LL_SEND, 1));
		STEP(fault_do(r, CALL_LL_RECV, 1));
		STEP(fault_do(r, CALL_LL_SEND, 2));
		STEP(fault_do(r, CALL_LL_RECV, 2));
	} else if (call == CALL_LL_RECV) {
		STEP(fault_do(r, CALL_LL_SEND, 1));
	} else if (call == CALL_LL_CRECV) {
		STEP(fault_do(r, CALL_LL_CSEND, 1));
	}
	begun = fault_now_ns();
	rc = failing_call(r, call, 1);
	fault_check_survivor(r, rc, begun);
}

/* The victim dies while its kernels wait for a rank that does not come. */
static void act_killed_busy(struct fault_rank *r)
{
	enum fault_call call = fault_scene(r)->call;
	uint64_t begun = fault_now_ns();
	int rc;

	if (r->victim) {
		(void)fault_begin(r, call, 1);
		fault_await_in_call(r, r->number, fault_absent(r));
		fault_strike(r, SIGKILL);
	}
	if (r->number == fault_absent(r)) {
		fault_await_given_up(r, r->number, fault_victim(r->group, r->scene));
		begun = fault_now_ns();
	}
	rc = failing_call(r, call, 1);
	fault_check_survivor(r, rc, begun);
}

static void *abort_thread(void *arg)
{
	struct fault_rank *r = arg;

	fault_await_in_call(r, fault_absent(r), -1);
	fault_strike(r, 0);
	fault_ok(r, moeep_comm_abort(r->comm, REASON));
	return NULL;
}

/* All four operations as a graph. */
static int capture(struct fault_rank *r)
{
	static const enum fault_call calls[] = {CALL_DISPATCH, CALL_COMBINE, CALL_LL_DISPATCH,
						CALL_LL_COMBINE};
	const struct moeep_cu *cu = r->cu;
	moeep_launch_t launch = {.size = sizeof(launch), .status = r->status};
	int rc = device_stream(r->comm, &r->stream);
	CUresult result;

	if (rc != MOEEP_OK) {
		return rc;
	}
	launch.stream = r->stream;
	result = cu->cuStreamBeginCapture(r->stream, r->group->threads
							     ? CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
							     : CU_STREAM_CAPTURE_MODE_GLOBAL);
	for (int i = 0; i < 4 && result == CUDA_SUCCESS && rc == MOEEP_OK; i++) {
		rc = fault_start(r, calls[i], 1, &launch);
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuStreamEndCapture(r->stream, &r->graph);
	}
	if (result == CUDA_SUCCESS && rc == MOEEP_OK) {
		result = cu->cuGraphInstantiateWithFlags(&r->exec, r->graph, 0);
	}
	return result == CUDA_SUCCESS ? rc : moeep_cu_fail(cu, result, "the capture of a graph");
}

/* Several replays are queued; the first spins. */
static int replay(struct fault_rank *r)
{
	CUresult result = CUDA_SUCCESS;

	*r->status = 4711;
	for (int i = 0; i < REPLAYS && result == CUDA_SUCCESS; i++) {
		result = r->cu->cuGraphLaunch(r->exec, r->stream);
	}
	atomic_store(&fault_slot(r, r->number)->in_call, 1);
	if (result == CUDA_SUCCESS) {
		result = r->cu->cuStreamSynchronize(r->stream);
	}
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(r->cu, result, "replays of a graph");
	}
	fault_check(r, *r->status == MOEEP_ERR_ABORTED, "the last replay's status is %d",
		    *r->status);
	/* The comm's error is the detail. */
	return moeep_comm_barrier(r->comm);
}

static void act_aborts(struct fault_rank *r)
{
	bool graph = fault_scene(r)->fate == FATE_ABORTS_GRAPH;
	uint64_t begun = fault_now_ns();
	pthread_t thread;
	int rc;

	if (graph) {
		/* All have captured before any of them replays. */
		STEP(capture(r));
		STEP(moeep_comm_barrier(r->comm));
	}
	if (r->victim) {
		pthread_create(&thread, NULL, abort_thread, r);
	}
	if (r->number == fault_absent(r)) {
		while (moeep_comm_async_error(r->comm, NULL) == MOEEP_OK &&
		       fault_ms_since(begun) < FAULT_PATIENCE_MS) {
			fault_sleep_ms(1);
		}
		rc = fault_do(r, fault_scene(r)->call, 1);
	} else {
		rc = graph ? replay(r) : failing_call(r, fault_scene(r)->call, 1);
	}
	if (r->victim) {
		pthread_join(thread, NULL);
	}
	fault_check_failure(r, rc, begun, MOEEP_ERR_ABORTED, REASON, FAULT_ABORT_MS);
}

/* Refused on every rank by itself, at once; nothing of it is left behind. */
static void act_asks(struct fault_rank *r)
{
	static const enum fault_call calls[] = {CALL_DISPATCH, CALL_COMBINE, CALL_LL_DISPATCH,
						CALL_LL_COMBINE};
	static const struct {
		int32_t num_sms;
		int result;
		const char *text;
	} asked[] = {
		{ABSURD_SMS, MOEEP_ERR_UNSUPPORTED, "num_sms is 1048576"},
		{-1, MOEEP_ERR_INVALID, "num_sms is -1"},
	};

	for (int i = 0; i < 8; i++) {
		uint64_t since = fault_now_ns();

		r->num_sms = asked[i / 4].num_sms;
		fault_is(r, fault_begin(r, calls[i % 4], 1), asked[i / 4].result, "the call");
		fault_check(r, strstr(moeep_error_detail(), asked[i / 4].text) != NULL,
			    "detail without \"%s\": %s", asked[i / 4].text, moeep_error_detail());
		fault_check(r, fault_ms_since(since) < FAULT_AT_ONCE_MS, "it took %d ms",
			    fault_ms_since(since));
		fault_is(r, moeep_event_query(r->event), MOEEP_OK, "its done_event");
	}
	r->num_sms = 0;
	fault_is(r, moeep_comm_async_error(r->comm, NULL), MOEEP_OK, "moeep_comm_async_error");
	fault_verify(r);
}

static void act_differs(struct fault_rank *r)
{
	static const char *const fields[] = {"", "dtype", "topk", "quant"};
	const struct fault_scene *scene = fault_scene(r);
	bool high = scene->call == CALL_DISPATCH || scene->call == CALL_COMBINE;
	/* The host backend's LL tells all fields of both. */
	const char *text = high || r->cu ? fields[scene->field] : "rank";
	uint64_t begun;
	int rc;

	if (scene->call == CALL_COMBINE) {
		STEP(fault_do(r, CALL_DISPATCH, 0));
	}
	begun = fault_now_ns();
	r->field = r->victim ? scene->field : FIELD_NONE;
	rc = failing_call(r, scene->call, 1);
	r->field = FIELD_NONE;
	if (!high) {
		fault_check_failure(r, rc, begun, MOEEP_ERR_MISMATCH, text, FAULT_SLACK_MS);
		return;
	}
	/* An operation that failed; the comm goes on. */
	fault_is(r, rc, MOEEP_ERR_MISMATCH, "the call");
	fault_check(r, strstr(moeep_error_detail(), text) != NULL, "detail without \"%s\": %s",
		    text, moeep_error_detail());
	fault_is(r, moeep_comm_async_error(r->comm, NULL), MOEEP_OK, "moeep_comm_async_error");
	fault_verify(r);
}

/* The victim's call is refused, which the others learn while they wait for it. */
static void act_refused(struct fault_rank *r)
{
	enum fault_call call = fault_scene(r)->call;
	uint64_t begun;
	char text[60];

	snprintf(text, sizeof(text), "rank %d refused its call: flags is 0x80000000",
		 fault_victim(r->group, r->scene));
	if (call == CALL_COMBINE) {
		STEP(fault_do(r, CALL_DISPATCH, 0));
	}
	begun = fault_now_ns();
	if (r->victim) {
		fault_await_in_call(r, r->number, -1);
		fault_strike(r, 0);
		r->field = FIELD_FLAGS;
		fault_is(r, fault_do(r, call, 1), MOEEP_ERR_INVALID, "the refused call");
		r->field = FIELD_NONE;
		fault_await_given_up(r, r->number, -1);
		begun = fault_now_ns();
	}
	fault_check_failure(r, failing_call(r, call, 1), begun, MOEEP_ERR_INVALID, text,
			    FAULT_ABORT_MS);
}

/* That is no failure of the group. */
static void act_all_refused(struct fault_rank *r)
{
	enum fault_call call = fault_scene(r)->call;

	r->field = FIELD_FLAGS;
	fault_is(r, fault_do(r, call, 1), MOEEP_ERR_INVALID, "the refused call");
	r->field = FIELD_NONE;
	if (r->victim) {
		/* Longer than peers wait before they believe it. */
		fault_sleep_ms(FAULT_TIMEOUT_MS / 3);
	}
	STEP(fault_do(r, call, 1));
	fault_is(r, moeep_comm_async_error(r->comm, NULL), MOEEP_OK, "moeep_comm_async_error");
	fault_verify(r);
}

void fault_act(struct fault_rank *r)
{
	switch (fault_scene(r)->fate) {
	case FATE_NONE:
		break;
	case FATE_LATE:
	case FATE_STOPPED:
	case FATE_KILLED:
		act_missing(r);
		break;
	case FATE_KILLED_BUSY:
		act_killed_busy(r);
		break;
	case FATE_ABORTS:
	case FATE_ABORTS_GRAPH:
		act_aborts(r);
		break;
	case FATE_REFUSED:
		act_refused(r);
		break;
	case FATE_ALL_REFUSED:
		act_all_refused(r);
		break;
	case FATE_ASKS:
		act_asks(r);
		break;
	case FATE_DIFFERS:
		act_differs(r);
		break;
	}
}
