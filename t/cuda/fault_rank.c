/* SPDX-License-Identifier: MIT */
/* A rank plays the scenes of its group: it is struck, or looks closely at how its call failed. */
#include "config.h"

#include "t/cuda/fault.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "t/device.h"

#define REASON "the optimiser has seen a NaN"
/* Between the last call of the others and a strike: their kernels spin by then. */
#define PAUSE_MS 100
/* No rank waits longer for another to get somewhere. */
#define PATIENCE_MS 40000
/* Every call takes less than this once the comm has failed; destroying everything, than that. */
#define AT_ONCE_MS 300
#define DESTROY_MS 1500
#define REPLAYS	   4
#define ABSURD_SMS (1 << 20)

/* A call that must succeed before the one that fails. */
#define STEP(call)                                                                                 \
	do {                                                                                       \
		if (!fault_is(r, (call), MOEEP_OK, #call)) {                                       \
			return;                                                                    \
		}                                                                                  \
	} while (0)

uint64_t fault_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void fault_sleep_ms(int ms)
{
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

static int ms_since(uint64_t ns)
{
	uint64_t now = fault_now_ns();

	return now > ns ? (int)((now - ns) / 1000000) : 0;
}

void fault_fail(struct fault_rank *r, const char *fmt, ...)
{
	struct fault_slot *slot = fault_slot(r, r->number);
	char text[400];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	slot->failures++;
	if (slot->used + strlen(text) + 2 <= sizeof(slot->text)) {
		slot->used += (size_t)snprintf(slot->text + slot->used,
					       sizeof(slot->text) - slot->used, "%s\n", text);
	}
}

bool fault_is(struct fault_rank *r, int got, int want, const char *call)
{
	return fault_check(r, got == want, "%s: %d (%s), not %d: %s", call, got,
			   moeep_strerror(got), want, got == MOEEP_OK ? "" : moeep_error_detail());
}

static bool kills(const struct fault_scene *scene)
{
	return scene->fate == FATE_KILLED || scene->fate == FATE_KILLED_BUSY;
}

/* At most one rank of a group is killed. */
bool fault_is_dead(const struct fault_group *group, int scene, int number)
{
	for (int i = 0; i < scene; i++) {
		if (kills(group->scenes[i]) && fault_victim(group, i) == number) {
			return true;
		}
	}
	return false;
}

int fault_victim(const struct fault_group *group, int scene)
{
	return group->scenes[scene]->victim % group->num_ranks;
}

static int alive(const struct fault_rank *r)
{
	int count = 0;

	for (int number = 0; number < r->group->num_ranks; number++) {
		count += !fault_is_dead(r->group, r->scene, number);
	}
	return count;
}

/* Until a word of that rank's slot is set. */
static bool await_word(struct fault_rank *r, int number, const atomic_int *word, const char *what)
{
	uint64_t since = fault_now_ns();

	while (!atomic_load((atomic_int *)(uintptr_t)word)) {
		if (ms_since(since) > PATIENCE_MS) {
			fault_fail(r, "rank %d has not %s", number, what);
			return false;
		}
		fault_sleep_ms(1);
	}
	return true;
}

/* The rank that never comes while others wait for it and the victim acts. */
static int absent(const struct fault_rank *r)
{
	return (fault_victim(r->group, r->scene) + 1) % r->num_ranks;
}

/* All but these two, one of which may be -1. */
static void await_given_up(struct fault_rank *r, int but, int or)
{
	for (int number = 0; number < r->num_ranks; number++) {
		if (number != but && number != or) {
			await_word(r, number, &fault_slot(r, number)->given_up, "given up");
		}
	}
}

static void await_in_call(struct fault_rank *r, int but, int or)
{
	for (int number = 0; number < r->num_ranks; number++) {
		if (number != but && number != or) {
			await_word(r, number, &fault_slot(r, number)->in_call, "begun its call");
		}
	}
	fault_sleep_ms(PAUSE_MS);
}

static void strike(struct fault_rank *r, int signal)
{
	atomic_store(&fault_slot(r, r->number)->struck_ns, fault_now_ns());
	if (signal) {
		kill(getpid(), signal);
	}
}

static int want_operation(enum fault_call call)
{
	switch (call) {
	case CALL_DISPATCH:
		return MOEEP_OP_DISPATCH;
	case CALL_COMBINE:
		return MOEEP_OP_COMBINE;
	case CALL_LL_SEND:
		return MOEEP_OP_LL_DISPATCH_SEND;
	case CALL_LL_RECV:
		return MOEEP_OP_LL_DISPATCH_RECV;
	case CALL_LL_CSEND:
		return MOEEP_OP_LL_COMBINE_SEND;
	case CALL_LL_CRECV:
		return MOEEP_OP_LL_COMBINE_RECV;
	default:
		return MOEEP_OP_NONE;
	}
}

static void check_report(struct fault_rank *r, int want)
{
	int victim = fault_victim(r->group, r->scene);
	moeep_error_report_t report = {.size = sizeof(report)};

	fault_is(r, moeep_comm_async_error(r->comm, &report), want, "moeep_comm_async_error");
	fault_check(r, report.result == want, "report.result is %d", report.result);
	if (want == MOEEP_ERR_TIMEOUT || want == MOEEP_ERR_PEER_LOST) {
		fault_check(r, report.peer == victim, "report.peer is %d, not %d: %s", report.peer,
			    victim, report.message);
		fault_check(r, report.rank != victim, "report.rank is the victim: %s",
			    report.message);
	}
	if (want == MOEEP_ERR_TIMEOUT) {
		int operation = want_operation(fault_scene(r)->call);

		fault_check(r, report.operation == operation, "report.operation is %s, not %s",
			    moeep_op_name(report.operation), moeep_op_name(operation));
		fault_check(r, (int64_t)(report.expected - report.seen) > 0,
			    "expected is 0x%llx, seen is 0x%llx",
			    (unsigned long long)report.expected, (unsigned long long)report.seen);
	}
}

/* Every later call has the same error at once. */
static void check_sticky(struct fault_rank *r, int want)
{
	uint64_t since = fault_now_ns();

	fault_is(r, moeep_comm_barrier(r->comm), want, "later moeep_comm_barrier");
	fault_is(r, fault_do(r, CALL_DISPATCH, 0), want, "later moeep_dispatch");
	fault_check(r, ms_since(since) < AT_ONCE_MS, "later calls took %d ms", ms_since(since));
}

/* After the call that failed: as it should, and in time? */
static void check_failure(struct fault_rank *r, int rc, uint64_t begun, int want, const char *text,
			  int limit_ms)
{
	struct fault_slot *slot = fault_slot(r, r->number);
	uint64_t struck = atomic_load(&fault_slot(r, fault_victim(r->group, r->scene))->struck_ns);
	char detail[600];

	snprintf(detail, sizeof(detail), "%s", moeep_error_detail());
	slot->call_ms = ms_since(begun);
	slot->notice_ms = ms_since(struck > begun ? struck : begun);
	atomic_store(&slot->given_up, 1);
	fault_is(r, rc, want, "the call");
	fault_check(r, strstr(detail, text) != NULL, "detail without \"%s\": %s", text, detail);
	fault_check(r, slot->notice_ms <= limit_ms, "noticed after %d ms", slot->notice_ms);
	check_report(r, want);
	check_sticky(r, want);
	fault_check_device(r);
}

/* "rank 2" */
static const char *name_victim(const struct fault_rank *r, char *text, size_t size)
{
	snprintf(text, size, "rank %d", fault_victim(r->group, r->scene));
	return text;
}

/* What survivors of a late, stopped or killed rank get. */
static void check_survivor(struct fault_rank *r, int rc, uint64_t begun)
{
	bool killed = kills(fault_scene(r));
	char text[20];

	name_victim(r, text, sizeof(text));
	if (killed) {
		check_failure(r, rc, begun, MOEEP_ERR_PEER_LOST, text, FAULT_LOST_MS);
	} else {
		check_failure(r, rc, begun, MOEEP_ERR_TIMEOUT, text,
			      FAULT_TIMEOUT_MS + FAULT_SLACK_MS);
		/* One of them was the first, and did not give up too early. */
		fault_check(r, fault_slot(r, r->number)->call_ms >= FAULT_TIMEOUT_MS / 2,
			    "gave up after %d ms", fault_slot(r, r->number)->call_ms);
	}
}

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
	await_in_call(r, r->number, -1);
	strike(r, scene->fate == FATE_STOPPED ? SIGSTOP : scene->fate == FATE_KILLED ? SIGKILL : 0);
	/* A rank that was stopped goes on when there is nothing left to wait for. */
	await_given_up(r, r->number, -1);
	begun = fault_now_ns();
	rc = fault_do(r, call, 1);
	check_failure(r, rc, begun, MOEEP_ERR_TIMEOUT, name_victim(r, text, sizeof(text)),
		      FAULT_SLACK_MS);
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
	check_survivor(r, rc, begun);
}

/* The victim dies while its kernels wait for a rank that does not come. */
static void act_killed_busy(struct fault_rank *r)
{
	enum fault_call call = fault_scene(r)->call;
	uint64_t begun = fault_now_ns();
	int rc;

	if (r->victim) {
		(void)fault_begin(r, call, 1);
		await_in_call(r, r->number, absent(r));
		strike(r, SIGKILL);
	}
	if (r->number == absent(r)) {
		await_given_up(r, r->number, fault_victim(r->group, r->scene));
		begun = fault_now_ns();
	}
	rc = failing_call(r, call, 1);
	check_survivor(r, rc, begun);
}

static void *abort_thread(void *arg)
{
	struct fault_rank *r = arg;

	await_in_call(r, absent(r), -1);
	strike(r, 0);
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
	if (r->number == absent(r)) {
		while (moeep_comm_async_error(r->comm, NULL) == MOEEP_OK &&
		       ms_since(begun) < PATIENCE_MS) {
			fault_sleep_ms(1);
		}
		rc = fault_do(r, fault_scene(r)->call, 1);
	} else {
		rc = graph ? replay(r) : failing_call(r, fault_scene(r)->call, 1);
	}
	if (r->victim) {
		pthread_join(thread, NULL);
	}
	check_failure(r, rc, begun, MOEEP_ERR_ABORTED, REASON, FAULT_ABORT_MS);
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
		fault_check(r, ms_since(since) < AT_ONCE_MS, "it took %d ms", ms_since(since));
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
		check_failure(r, rc, begun, MOEEP_ERR_MISMATCH, text, FAULT_SLACK_MS);
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
		await_in_call(r, r->number, -1);
		strike(r, 0);
		r->field = FIELD_FLAGS;
		fault_is(r, fault_do(r, call, 1), MOEEP_ERR_INVALID, "the refused call");
		r->field = FIELD_NONE;
		await_given_up(r, r->number, -1);
		begun = fault_now_ns();
	}
	check_failure(r, failing_call(r, call, 1), begun, MOEEP_ERR_INVALID, text, FAULT_ABORT_MS);
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

static void act(struct fault_rank *r)
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

static bool times_out(const struct fault_scene *scene)
{
	return scene->fate == FATE_LATE || scene->fate == FATE_STOPPED;
}

static void play(struct fault_rank *r)
{
	const struct fault_scene *scene = fault_scene(r);
	struct fault_slot *slot = fault_slot(r, r->number);
	uint64_t begun;

	r->num_ranks = alive(r);
	r->rank = 0;
	for (int number = 0; number < r->number; number++) {
		r->rank += !fault_is_dead(r->group, r->scene, number);
	}
	r->victim = scene->fate != FATE_NONE && r->number == fault_victim(r->group, r->scene);
	if (fault_open(r, times_out(scene) ? FAULT_TIMEOUT_MS : FAULT_LONG_MS) && fault_verify(r) &&
	    fault_ok(r, moeep_comm_barrier(r->comm))) {
		act(r);
	}
	/* Nobody waits for one whose scene went wrong. */
	if (slot->failures > 0 && r->comm) {
		(void)moeep_comm_abort(r->comm, "a scene went wrong");
	}
	atomic_store(&slot->in_call, 1);
	atomic_store(&slot->given_up, 1);
	begun = fault_now_ns();
	fault_close(r);
	slot->destroy_ms = ms_since(begun);
	fault_check(r, slot->destroy_ms <= DESTROY_MS, "destruction took %d ms", slot->destroy_ms);
	fault_check_device(r);
	atomic_store(&slot->finished, 1);
}

/* Comms are made within their time-out, so ranks begin together. */
static bool meet(struct fault_rank *r)
{
	atomic_int *met = &r->group->shared->met[r->scene];
	uint64_t since = fault_now_ns();

	atomic_fetch_add(met, 1);
	while (atomic_load(met) < alive(r)) {
		if (ms_since(since) > PATIENCE_MS) {
			fault_fail(r, "the others do not come to this scene");
			return false;
		}
		fault_sleep_ms(1);
	}
	return true;
}

void fault_rank_run(struct fault_rank *r)
{
	if (device_mode() != DEVICE_NONE) {
		if (!fault_ok(r, device_begin(r->number)) || !fault_ok(r, moeep_cu_load(&r->cu))) {
			return;
		}
	}
	fault_memory_make(r);
	for (r->scene = 0; r->scene < r->group->num_scenes; r->scene++) {
		if (!meet(r)) {
			break;
		}
		play(r);
	}
	fault_memory_free(r);
}
