/* SPDX-License-Identifier: MIT */
/* Operations on the buffer's stream: order, events, results, arguments that are copied. */
#include "config.h"

#include <string.h>

#include "t/device.h"
#include "t/op/ht.h"
#include "t/op/ll.h"

struct set {
	struct ht_case flat;
	struct ht_case again; /* the same routing */
	struct ht_case tight; /* does not fit */
	struct ll_case low;
};

/* Neither a result nor a code of the API. */
#define UNSET 4711

/* Results' places that operations of every backend can write. */
static int32_t *make_status(int count)
{
	int32_t *status = util_alloc((size_t)count * sizeof(*status));

	for (int i = 0; i < count; i++) {
		status[i] = UNSET;
	}
	return status;
}

/* Everything is queued at once; nothing of the argument structures is needed afterwards. */
static int queue_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	moeep_event_t *event[3];
	int32_t *status = make_status(3);
	struct ht_dispatch d, cached;
	struct ht_combine m;
	moeep_launch_t launch[3];

	RANK_DO(ht_open(&set->flat, comm, &buffer, &handle));
	for (int i = 0; i < 3; i++) {
		RANK_TRY(moeep_event_create(comm, 0, &event[i]));
		rank_is(moeep_event_query(event[i]), MOEEP_OK);
		launch[i] = (moeep_launch_t){
			.size = sizeof(launch[i]),
			.stream = MOEEP_STREAM_BUFFER,
			.status = &status[i],
			.done_event = event[i],
		};
	}
	for (int round = 0; round < 4; round++) {
		RANK_DO(ht_dispatch_begin(&d, &set->flat, rank, comm, 0));
		RANK_DO(ht_dispatch_begin(&cached, &set->again, rank, comm, MOEEP_DISPATCH_CACHED));
		RANK_DO(ht_combine_begin(&m, &set->flat, rank, comm));
		RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch[0]));
		RANK_TRY(moeep_combine(buffer, handle, &m.args, &launch[1]));
		RANK_TRY(moeep_dispatch(buffer, handle, &cached.args, &launch[2]));
		memset(&d.args, 0xff, sizeof(d.args));
		memset(&m.args, 0xff, sizeof(m.args));
		memset(&cached.args, 0xff, sizeof(cached.args));
		/* The last is complete, so all are. */
		rank_is(moeep_event_wait(event[2], MOEEP_TIMEOUT_NONE), MOEEP_OK);
		for (int i = 0; i < 3; i++) {
			rank_is(moeep_event_query(event[i]), MOEEP_OK);
			rank_check(status[i] == MOEEP_OK, "status %d is %d", i, status[i]);
			status[i] = UNSET;
		}
		ht_dispatch_end(&d, MOEEP_OK);
		ht_combine_end(&m, MOEEP_OK);
		ht_dispatch_end(&cached, MOEEP_OK);
	}
	for (int i = 0; i < 3; i++) {
		RANK_TRY(moeep_event_destroy(event[i]));
	}
	util_free(status);
	return ht_close(buffer, handle);
}

/* An operation starts after its wait_event, or after an event that the stream is to wait for. */
static int wait_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	moeep_event_t *gate, *done;
	int32_t *status = make_status(1);
	struct ht_dispatch d;

	RANK_DO(ht_open(&set->flat, comm, &buffer, &handle));
	RANK_TRY(moeep_event_create(comm, 0, &gate));
	RANK_TRY(moeep_event_create(comm, 0, &done));
	for (int how = 0; how < 3; how++) {
		moeep_launch_t launch = {
			.size = sizeof(launch),
			.stream = MOEEP_STREAM_BUFFER,
			.status = status,
			.wait_event = how == 0 ? gate : NULL,
			.done_event = how == 2 ? NULL : done,
		};

		*status = UNSET;
		RANK_DO(ht_dispatch_begin(&d, &set->flat, rank, comm, 0));
		RANK_TRY(moeep_event_reset(gate));
		rank_is(moeep_event_query(gate), MOEEP_ERR_NOT_READY);
		if (how > 0) {
			RANK_TRY(moeep_stream_wait_event(buffer, MOEEP_STREAM_BUFFER, gate));
		}
		RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
		if (how == 2) {
			RANK_TRY(moeep_event_record(done, buffer, MOEEP_STREAM_BUFFER));
		}
		rank_is(moeep_event_query(done), MOEEP_ERR_NOT_READY);
		rank_is(moeep_event_wait(done, 30), MOEEP_ERR_NOT_READY);
		rank_check(*status == UNSET, "the operation ended before its event: %d", *status);
		rank_check(memcmp(d.args.num_recv, d.output[HT_NUM_RECV].want, 8) != 0,
			   "the operation ran before its event");
		RANK_TRY(moeep_event_record(gate, NULL, NULL));
		rank_is(moeep_event_query(gate), MOEEP_OK);
		rank_is(moeep_event_wait(done, 20000), MOEEP_OK);
		rank_check(*status == MOEEP_OK, "the status is %d", *status);
		ht_dispatch_end(&d, MOEEP_OK);
	}
	util_free(status);
	RANK_TRY(moeep_event_destroy(gate));
	RANK_TRY(moeep_event_destroy(done));
	return ht_close(buffer, handle);
}

/* An operation whose event completed with an error is not run, and has that error. */
static int error_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle, *other;
	moeep_event_t *first, *second;
	int32_t *status = make_status(2);
	struct ht_dispatch d, e;
	moeep_launch_t launch = {.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER};

	RANK_DO(ht_open(&set->tight, comm, &buffer, &handle));
	RANK_TRY(moeep_handle_create(buffer, NULL, &other));
	RANK_DO(op_ready(comm));
	RANK_TRY(moeep_event_create(comm, 0, &first));
	RANK_TRY(moeep_event_create(comm, 0, &second));
	RANK_DO(ht_dispatch_begin(&d, &set->tight, rank, comm, 0));
	RANK_DO(ht_dispatch_begin(&e, &set->flat, rank, comm, 0));
	launch.status = &status[0];
	launch.done_event = first;
	RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
	launch.status = &status[1];
	launch.wait_event = first;
	launch.done_event = second;
	RANK_TRY(moeep_dispatch(buffer, other, &e.args, &launch));
	rank_is(moeep_event_wait(first, 20000), MOEEP_ERR_CAPACITY);
	rank_is(moeep_event_query(first), MOEEP_ERR_CAPACITY);
	rank_is(moeep_event_wait(second, 20000), MOEEP_ERR_CAPACITY);
	rank_check(status[0] == MOEEP_ERR_CAPACITY && status[1] == MOEEP_ERR_CAPACITY,
		   "the results are %d and %d", status[0], status[1]);
	ht_dispatch_end(&d, status[0]);
	/* Nothing of the second was written. */
	for (int i = 0; i < HT_OUTPUTS; i++) {
		if (e.output[i].name) {
			util_poison(e.output[i].want, e.output[i].got.bytes);
		}
	}
	ht_dispatch_end(&e, MOEEP_OK);
	/* The stream and the comm are sound. */
	rank_is(moeep_comm_async_error(comm, NULL), MOEEP_OK);
	RANK_DO(ht_dispatch_begin(&e, &set->flat, rank, comm, 0));
	launch.wait_event = NULL;
	RANK_TRY(moeep_dispatch(buffer, other, &e.args, &launch));
	ht_dispatch_end(&e, moeep_event_wait(second, 20000));
	util_free(status);
	RANK_TRY(moeep_event_destroy(first));
	RANK_TRY(moeep_event_destroy(second));
	RANK_TRY(moeep_handle_destroy(other));
	return ht_close(buffer, handle);
}

/* What a launch must not be; the caller's own stream; handles in flight. */
static int rules_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	moeep_handle_info_t info = {.size = sizeof(info)};
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	moeep_event_t *gate, *done;
	int32_t *status = make_status(1);
	struct ht_dispatch d;
	moeep_launch_t launch = {.size = sizeof(launch), .status = status};

	RANK_DO(ht_open(&set->flat, comm, &buffer, &handle));
	RANK_TRY(moeep_event_create(comm, 0, &gate));
	RANK_TRY(moeep_event_create(comm, 0, &done));
	RANK_DO(ht_dispatch_begin(&d, &set->flat, rank, comm, 0));

	launch.stream = status;
	rank_check(moeep_dispatch(buffer, handle, &d.args, &launch) != MOEEP_OK,
		   "a stream of the caller's was taken");
	launch.stream = MOEEP_STREAM_BUFFER;
	launch.wait_event = launch.done_event = done;
	rank_check(moeep_dispatch(buffer, handle, &d.args, &launch) != MOEEP_OK,
		   "one event to wait for and to complete was taken");
	launch.wait_event = NULL;
	RANK_TRY(moeep_event_reset(done));
	rank_is(moeep_dispatch(buffer, handle, &d.args, &launch), MOEEP_ERR_STATE);
	RANK_TRY(moeep_event_record(done, NULL, NULL));
	launch.flags = 1;
	rank_is(moeep_dispatch(buffer, handle, &d.args, &launch), MOEEP_ERR_INVALID);
	launch.flags = 0;
	rank_check(*status == UNSET, "an operation that was not started has the result %d",
		   *status);

	/* In flight: the handle says so, and may be asked at any time. */
	RANK_TRY(moeep_event_reset(gate));
	launch.wait_event = gate;
	RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
	rank_is(moeep_handle_query(handle, &info), MOEEP_ERR_NOT_READY);
	RANK_TRY(moeep_event_record(gate, buffer, NULL));
	rank_is(moeep_event_wait(done, 20000), MOEEP_OK);
	rank_is(moeep_handle_query(handle, &info), MOEEP_OK);
	ht_dispatch_end(&d, MOEEP_OK);

	/* NULL is the calling thread: complete on return, the event and the status with it. */
	RANK_DO(ht_dispatch_begin(&d, &set->flat, rank, comm, 0));
	launch.stream = NULL;
	launch.wait_event = gate;
	*status = UNSET;
	RANK_TRY(moeep_stream_wait_event(buffer, NULL, gate));
	ht_dispatch_end(&d, moeep_dispatch(buffer, handle, &d.args, &launch));
	rank_is(moeep_event_query(done), MOEEP_OK);
	rank_check(*status == MOEEP_OK, "the status is %d", *status);
	util_free(status);
	RANK_TRY(moeep_event_destroy(gate));
	RANK_TRY(moeep_event_destroy(done));
	rank_is(moeep_event_destroy(NULL), MOEEP_OK);
	return ht_close(buffer, handle);
}

/* Destroying waits for what is in flight. */
static int destroy_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	moeep_launch_t launch = {.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER};
	int32_t *status = make_status(2);
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	moeep_event_t *event;
	struct ht_dispatch d;
	struct ht_combine m;

	RANK_DO(ht_open(&set->flat, comm, &buffer, &handle));
	RANK_TRY(moeep_event_create(comm, 0, &event));
	RANK_DO(ht_dispatch_begin(&d, &set->flat, rank, comm, 0));
	RANK_DO(ht_combine_begin(&m, &set->flat, rank, comm));
	launch.status = &status[0];
	RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
	launch.status = &status[1];
	launch.done_event = event;
	RANK_TRY(moeep_combine(buffer, handle, &m.args, &launch));
	rank_is(moeep_buffer_destroy(buffer), MOEEP_ERR_STATE); /* a handle is left */
	if (rank % 2) {
		RANK_TRY(moeep_event_destroy(event));
		RANK_DO(ht_close(buffer, handle));
	} else {
		RANK_DO(ht_close(buffer, handle));
		rank_is(moeep_event_query(event), MOEEP_OK);
		RANK_TRY(moeep_event_destroy(event));
	}
	ht_dispatch_end(&d, status[0]);
	ht_combine_end(&m, status[1]);
	util_free(status);
	return 0;
}

/* Low latency: dispatches and combines queued, phases apart, on the streams of two buffers. */
static int low_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	/* Few SMs: kernels of both buffers, and of all ranks of a device, have to run at once. */
	moeep_launch_t launch = {
		.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER, .num_sms = 2};
	moeep_buffer_t *buffer[2];
	moeep_handle_t *handle[2];
	moeep_event_t *event[2];
	struct ll_dispatch d[2];
	struct ll_combine m[2];

	for (int b = 0; b < 2; b++) {
		RANK_DO(ll_open(&set->low, comm, &buffer[b], &handle[b]));
		RANK_TRY(moeep_event_create(comm, 0, &event[b]));
	}
	for (int round = 0; round < 3; round++) {
		for (int k = 0; k < 2; k++) {
			int b = (k + rank) % 2;

			RANK_DO(ll_dispatch_begin(&d[b], &set->low, rank));
			RANK_DO(ll_combine_begin(&m[b], &set->low, rank, comm, buffer[b], 0));
			launch.done_event = NULL;
			d[b].args.phase = MOEEP_PHASE_SEND;
			RANK_TRY(moeep_ll_dispatch(buffer[b], handle[b], &d[b].args, &launch));
			d[b].args.phase = MOEEP_PHASE_RECV;
			RANK_TRY(moeep_ll_dispatch(buffer[b], handle[b], &d[b].args, &launch));
			m[b].args.phase = MOEEP_PHASE_SEND;
			RANK_TRY(moeep_ll_combine(buffer[b], handle[b], &m[b].args, &launch));
			m[b].args.phase = MOEEP_PHASE_RECV;
			launch.done_event = event[b];
			RANK_TRY(moeep_ll_combine(buffer[b], handle[b], &m[b].args, &launch));
		}
		for (int b = 0; b < 2; b++) {
			rank_is(moeep_event_wait(event[b], 20000), MOEEP_OK);
			ll_dispatch_end(&d[b], MOEEP_OK);
			ll_combine_end(&m[b], MOEEP_OK);
		}
	}
	for (int b = 0; b < 2; b++) {
		RANK_TRY(moeep_event_destroy(event[b]));
		RANK_DO(ll_close(buffer[b], handle[b]));
	}
	return 0;
}

static void make(struct set *set, int num_ranks)
{
	struct op_spec spec = {
		.num_ranks = num_ranks,
		.num_experts = 2 * num_ranks + 1,
		.topk = 3,
		.hidden = 64,
		.weights = true,
		.payload = PAYLOAD_NUMBERS,
		.seed = op_seed() + (uint64_t)num_ranks,
	};

	op_tokens(&spec, 12);
	set->flat = (struct ht_case){.spec = spec};
	set->again = (struct ht_case){.spec = spec};
	set->again.spec.x_seed = 5;
	set->tight = (struct ht_case){.spec = spec};
	set->tight.rank[num_ranks - 1].capacity = 1;
	spec.tokens[0] = 5;
	set->low = (struct ll_case){.spec = spec, .quant = MOEEP_QUANT_FP8};
	ht_case_make(&set->flat);
	ht_case_make(&set->again);
	ht_case_make(&set->tight);
	ll_case_make(&set->low);
}

int main(void)
{
	static const struct {
		ranks_body_fn body;
		const char *what;
		bool host; /* needs moeep_event_reset() */
	} tests[] = {
		{queue_body, "a queue of operations", false},
		{wait_body, "events to wait for", true},
		{error_body, "errors travel along events", false},
		{rules_body, "launches", true},
		{destroy_body, "destroying with operations in flight", false},
		{low_body, "low latency on two streams", false},
	};
	static struct set set;

	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		int num_ranks = op_sizes[i];

		if (!op_use_size(num_ranks)) {
			continue;
		}
		make(&set, num_ranks);
		for (int t = 0; t < COUNT_OF(tests); t++) {
			if (tests[t].host && device_mode() != DEVICE_NONE) {
				tap_skip(1, "%s: the host backend's events and streams",
					 tests[t].what);
				continue;
			}
			/* Every test with threads and with processes, in turn. */
			ranks_run(&(struct ranks_config){.num_ranks = num_ranks,
							 .processes = (i + t) % 2},
				  tests[t].body, &set, "%s", tests[t].what);
		}
		ht_case_free(&set.flat);
		ht_case_free(&set.again);
		ht_case_free(&set.tight);
		ll_case_free(&set.low);
	}
	return tap_done();
}
