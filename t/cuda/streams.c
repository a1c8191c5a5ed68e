/* SPDX-License-Identifier: MIT */
/*
 * Operations on CUDA streams of the caller's: what comes before and behind them on the stream, the
 * events that they wait for and complete, and what is known while they wait. A stream is held up by
 * a function of the host's, so that nothing here depends on how long anything takes.
 */
#include "config.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "t/cuda/try.h"
#include "t/device.h"
#include "t/op/ht.h"
#include "t/op/ll.h"

/* Neither a result nor a code of the API. */
#define UNSET 4711

#define WAIT_MS 20000

struct set {
	struct ht_case flat;
	struct ht_case direct; /* the same, received in symmetric memory */
	struct ht_case tight;  /* does not fit */
	struct ll_case low;
};

/* What a body works with. */
struct caller {
	const struct moeep_cu *cu;
	CUstream stream;
	atomic_int *open; /* lets pass what hold() put on the stream */
	int32_t *status;
	moeep_event_t *gate, *done;
};

static int caller_open(struct caller *c, moeep_comm_t *comm)
{
	*c = (struct caller){.status = util_alloc(sizeof(int32_t))};
	c->open = util_alloc(sizeof(*c->open));
	*c->status = UNSET;
	RANK_TRY(moeep_cu_load(&c->cu));
	RANK_TRY(device_stream(comm, &c->stream));
	RANK_TRY(moeep_event_create(comm, 0, &c->gate));
	RANK_TRY(moeep_event_create(comm, 0, &c->done));
	/* From here on nothing may wait for a device as a whole. */
	RANK_TRY(moeep_comm_barrier(comm));
	return 0;
}

static int caller_close(struct caller *c, moeep_comm_t *comm)
{
	RANK_TRY(moeep_event_destroy(c->gate));
	RANK_TRY(moeep_event_destroy(c->done));
	RANK_TRY(moeep_comm_barrier(comm));
	TRY_CU(c->cu, cuStreamDestroy(c->stream));
	util_free(c->status);
	util_free(c->open);
	return 0;
}

/* In a thread of the driver's. It ends by itself, so that a test that failed does not hang. */
static void wait_open(void *data)
{
	atomic_int *open = data;
	struct timespec pause = {.tv_nsec = 100000};

	for (int i = 0; i < WAIT_MS * 10 && !atomic_load(open); i++) {
		nanosleep(&pause, NULL);
	}
}

/* Hold the stream up until let_go(). */
static int hold(struct caller *c)
{
	atomic_store(c->open, 0);
	TRY_CU(c->cu, cuLaunchHostFunc(c->stream, wait_open, c->open));
	return 0;
}

static void let_go(struct caller *c)
{
	atomic_store(c->open, 1);
}

/*
 * The rows are copied to where dispatch reads them by what comes before it on the stream, and taken
 * from where it writes them by what comes behind it.
 */
static int order_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = &((const struct set *)arg)->direct;
	const struct oracle_input *input = &c->in.input[rank];
	size_t x_bytes = (size_t)(input->num_tokens * c->spec.hidden) * 2;
	struct op_block x;
	unsigned char *copy;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ht_dispatch d;
	struct caller own;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(op_block_make(&x, comm, OP_SYMMETRIC, 1u << OP_SYMMETRIC, x_bytes + 64));
	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, 0));
	copy = util_alloc(d.output[HT_X].got.bytes + 64);
	RANK_DO(caller_open(&own, comm));
	for (int round = 0; round < 3; round++) {
		moeep_launch_t launch = {
			.size = sizeof(launch),
			.stream = own.stream,
			.status = own.status,
			.done_event = round == 1 ? own.done : NULL,
		};

		util_poison(x.host, x.bytes);
		RANK_DO(op_block_push(&x));
		*own.status = UNSET;
		d.args.x = x.memory;
		RANK_DO(hold(&own));
		if (x_bytes > 0) {
			TRY_CU(own.cu, cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)x.memory, input->x,
							 x_bytes, own.stream));
		}
		RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
		if (d.output[HT_X].got.bytes > 0) {
			TRY_CU(own.cu,
			       cuMemcpyDtoHAsync(copy, (CUdeviceptr)(uintptr_t)d.output[HT_X].at,
						 d.output[HT_X].got.bytes, own.stream));
		}
		rank_check(*own.status == UNSET, "the operation ended before its turn: %d",
			   *own.status);
		let_go(&own);
		TRY_CU(own.cu, cuStreamSynchronize(own.stream));
		rank_check(*own.status == MOEEP_OK, "the status is %d", *own.status);
		if (round == 1) {
			rank_is(moeep_event_query(own.done), MOEEP_OK);
		}
		util_same("the copy", copy, d.output[HT_X].want, d.output[HT_X].rows,
			  d.output[HT_X].elements, d.output[HT_X].dtype, false);
	}
	ht_dispatch_end(&d, MOEEP_OK);
	util_free(copy);
	RANK_DO(caller_close(&own, comm));
	RANK_DO(ht_close(buffer, handle));
	op_block_free(&x, comm);
	return 0;
}

/* Operations of both families one behind the other, on the caller's stream and on the buffer's. */
static int queue_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	moeep_buffer_t *buffer, *low;
	moeep_handle_t *handle, *low_handle;
	struct caller own;

	RANK_DO(ht_open(&set->flat, comm, &buffer, &handle));
	RANK_DO(ll_open(&set->low, comm, &low, &low_handle));
	RANK_DO(caller_open(&own, comm));
	for (int round = 0; round < 6; round++) {
		bool apart = round % 3 == 2;
		/* On two streams kernels of both buffers run at once, and all have to have SMs. */
		moeep_launch_t launch = {
			.size = sizeof(launch),
			.stream = apart ? MOEEP_STREAM_BUFFER : own.stream,
			.num_sms = apart ? 2 : 0,
		};
		struct ht_dispatch d;
		struct ht_combine m;
		struct ll_dispatch l;
		struct ll_combine n;

		RANK_DO(ht_dispatch_begin(&d, &set->flat, rank, comm, 0));
		RANK_DO(ht_combine_begin(&m, &set->flat, rank, comm));
		RANK_DO(ll_dispatch_begin(&l, &set->low, rank));
		RANK_DO(ll_combine_begin(&n, &set->low, rank, comm, low, 0));
		RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
		RANK_TRY(moeep_ll_dispatch(low, low_handle, &l.args, &launch));
		launch.done_event = own.gate;
		RANK_TRY(moeep_combine(buffer, handle, &m.args, &launch));
		launch.done_event = own.done;
		RANK_TRY(moeep_ll_combine(low, low_handle, &n.args, &launch));
		memset(&d.args, 0xff, sizeof(d.args));
		memset(&m.args, 0xff, sizeof(m.args));
		memset(&n.args, 0xff, sizeof(n.args));
		rank_is(moeep_event_wait(own.done, WAIT_MS), MOEEP_OK);
		rank_is(moeep_event_wait(own.gate, WAIT_MS), MOEEP_OK);
		ht_dispatch_end(&d, MOEEP_OK);
		ht_combine_end(&m, MOEEP_OK);
		ll_dispatch_end(&l, MOEEP_OK);
		ll_combine_end(&n, MOEEP_OK);
	}
	RANK_DO(caller_close(&own, comm));
	RANK_DO(ll_close(low, low_handle));
	return ht_close(buffer, handle);
}

/* An operation of the buffer's stream starts after an event of the caller's. */
static int wait_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = &((const struct set *)arg)->flat;
	moeep_handle_info_t info = {.size = sizeof(info)};
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ht_dispatch d;
	struct caller own;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(caller_open(&own, comm));
	for (int how = 0; how < 3; how++) {
		moeep_launch_t launch = {
			.size = sizeof(launch),
			.stream = MOEEP_STREAM_BUFFER,
			.status = own.status,
			.wait_event = how == 0 ? own.gate : NULL,
			.done_event = how == 2 ? NULL : own.done,
		};

		*own.status = UNSET;
		RANK_DO(ht_dispatch_begin(&d, c, rank, comm, 0));
		RANK_DO(hold(&own));
		RANK_TRY(moeep_event_record(own.gate, NULL, own.stream));
		rank_is(moeep_event_query(own.gate), MOEEP_ERR_NOT_READY);
		if (how > 0) {
			RANK_TRY(moeep_stream_wait_event(buffer, MOEEP_STREAM_BUFFER, own.gate));
		}
		RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
		if (how == 2) {
			RANK_TRY(moeep_event_record(own.done, buffer, MOEEP_STREAM_BUFFER));
		}
		rank_is(moeep_event_query(own.done), MOEEP_ERR_NOT_READY);
		rank_is(moeep_event_wait(own.done, 30), MOEEP_ERR_NOT_READY);
		rank_is(moeep_handle_query(handle, &info), MOEEP_ERR_NOT_READY);
		rank_check(*own.status == UNSET, "the operation ended before its event: %d",
			   *own.status);
		rank_check(memcmp(d.args.num_recv, d.output[HT_NUM_RECV].want, 8) != 0,
			   "the operation ran before its event");
		let_go(&own);
		rank_is(moeep_event_wait(own.gate, WAIT_MS), MOEEP_OK);
		rank_is(moeep_event_wait(own.done, WAIT_MS), MOEEP_OK);
		rank_check(*own.status == MOEEP_OK, "the status is %d", *own.status);
		rank_is(moeep_handle_query(handle, &info), MOEEP_OK);
		ht_dispatch_end(&d, MOEEP_OK);
	}
	RANK_DO(caller_close(&own, comm));
	return ht_close(buffer, handle);
}

/* What a launch must not be; nothing of it is started, and the event stays as it was. */
static int rules_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = &((const struct set *)arg)->flat;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ht_dispatch d;
	struct caller own;
	moeep_launch_t launch = {.size = sizeof(launch)};

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, 0));
	RANK_DO(caller_open(&own, comm));
	launch.stream = own.stream;
	launch.status = own.status;
	launch.wait_event = launch.done_event = own.done;
	rank_check(moeep_dispatch(buffer, handle, &d.args, &launch) != MOEEP_OK,
		   "one event to wait for and to complete was taken");
	launch.wait_event = NULL;
	launch.flags = 1;
	rank_is(moeep_dispatch(buffer, handle, &d.args, &launch), MOEEP_ERR_INVALID);
	launch.flags = 0;
	rank_is(moeep_event_query(own.done), MOEEP_OK);

	RANK_DO(hold(&own));
	RANK_TRY(moeep_event_record(own.done, NULL, own.stream));
	rank_is(moeep_dispatch(buffer, handle, &d.args, &launch), MOEEP_ERR_STATE);
	let_go(&own);
	rank_is(moeep_event_wait(own.done, WAIT_MS), MOEEP_OK);
	rank_check(*own.status == UNSET, "an operation that was not started has the result %d",
		   *own.status);

	RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
	ht_dispatch_end(&d, moeep_event_wait(own.done, WAIT_MS));
	RANK_DO(caller_close(&own, comm));
	return ht_close(buffer, handle);
}

/* Events carry an error from stream to stream, and the stream is sound behind it. */
static int error_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct set *set = arg;
	moeep_launch_t launch = {.size = sizeof(launch)};
	moeep_buffer_t *buffer;
	moeep_handle_t *handle, *other;
	struct ht_dispatch d, e;
	struct caller own;

	RANK_DO(ht_open(&set->tight, comm, &buffer, &handle));
	RANK_TRY(moeep_handle_create(buffer, NULL, &other));
	RANK_DO(ht_dispatch_begin(&d, &set->tight, rank, comm, 0));
	RANK_DO(ht_dispatch_begin(&e, &set->flat, rank, comm, 0));
	RANK_DO(caller_open(&own, comm));
	launch.stream = own.stream;
	launch.done_event = own.gate;
	RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
	launch.stream = MOEEP_STREAM_BUFFER;
	launch.status = own.status;
	launch.wait_event = own.gate;
	launch.done_event = own.done;
	RANK_TRY(moeep_dispatch(buffer, other, &e.args, &launch));
	rank_is(moeep_event_wait(own.done, WAIT_MS), MOEEP_ERR_CAPACITY);
	rank_is(moeep_event_wait(own.gate, WAIT_MS), MOEEP_ERR_CAPACITY);
	rank_check(*own.status == MOEEP_ERR_CAPACITY, "the status is %d", *own.status);
	ht_dispatch_end(&d, MOEEP_ERR_CAPACITY);
	for (int i = 0; i < HT_OUTPUTS; i++) {
		if (e.output[i].name) {
			util_poison(e.output[i].want, e.output[i].got.bytes);
		}
	}
	ht_dispatch_end(&e, MOEEP_OK);
	rank_is(moeep_comm_async_error(comm, NULL), MOEEP_OK);
	RANK_DO(ht_dispatch(&set->flat, rank, comm, buffer, other, 0));
	RANK_DO(caller_close(&own, comm));
	RANK_TRY(moeep_handle_destroy(other));
	return ht_close(buffer, handle);
}

/* The driver's own streams, which belong to no one: NULL is the legacy default stream. */
static int default_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = &((const struct set *)arg)->flat;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ht_combine m;
	struct ht_dispatch d;
	struct caller own;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(caller_open(&own, comm));
	for (int i = 0; i < 4; i++) {
		moeep_launch_t launch = {
			.size = sizeof(launch),
			.done_event = own.done,
			.status = own.status,
		};
		/* Ranks of one context share the legacy stream, on which one would wait for all. */
		bool per_thread = i % 2 || !ranks_forked(false), no_launch = !per_thread && i == 0;

		launch.stream = per_thread ? CU_STREAM_PER_THREAD : NULL;
		RANK_DO(ht_dispatch_begin(&d, c, rank, comm, 0));
		RANK_DO(ht_combine_begin(&m, c, rank, comm));
		RANK_TRY(moeep_dispatch(buffer, handle, &d.args, &launch));
		rank_is(moeep_event_wait(own.done, WAIT_MS), MOEEP_OK);
		*own.status = UNSET;
		RANK_TRY(moeep_combine(buffer, handle, &m.args, no_launch ? NULL : &launch));
		TRY_CU(own.cu, cuStreamSynchronize(per_thread ? CU_STREAM_PER_THREAD : NULL));
		rank_check(*own.status == (no_launch ? UNSET : MOEEP_OK), "the status is %d",
			   *own.status);
		ht_dispatch_end(&d, MOEEP_OK);
		ht_combine_end(&m, MOEEP_OK);
	}
	RANK_DO(caller_close(&own, comm));
	return ht_close(buffer, handle);
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
	set->direct = (struct ht_case){.spec = spec};
	set->tight = (struct ht_case){.spec = spec};
	set->tight.rank[num_ranks - 1].capacity = 1;
	for (int r = 0; r < num_ranks; r++) {
		set->direct.rank[r].memory = OP_SYMMETRIC;
	}
	spec.tokens[0] = 5;
	set->low = (struct ll_case){.spec = spec, .quant = MOEEP_QUANT_FP8};
	ht_case_make(&set->flat);
	ht_case_make(&set->direct);
	ht_case_make(&set->tight);
	ll_case_make(&set->low);
}

int main(void)
{
	static const struct {
		ranks_body_fn body;
		const char *what;
	} tests[] = {
		{order_body, "the order of a stream"},
		{queue_body, "operations of both families in a queue"},
		{wait_body, "events of the caller's stream"},
		{rules_body, "launches"},
		{error_body, "errors from stream to stream"},
		{default_body, "the driver's own streams"},
	};
	static struct set set;

	/* By hand; t/ops-functions.sh says it. */
	setenv("MOEEP_TEST_CUDA", "threads", 0);
	ranks_begin();
	for (int i = 0; i < op_num_sizes && op_sizes[i] <= 8; i++) {
		int num_ranks = op_sizes[i];

		if (!op_use_size(num_ranks)) {
			continue;
		}
		make(&set, num_ranks);
		for (int t = 0; t < COUNT_OF(tests); t++) {
			ranks_run(&(struct ranks_config){.num_ranks = num_ranks}, tests[t].body,
				  &set, "%s", tests[t].what);
		}
		ht_case_free(&set.flat);
		ht_case_free(&set.direct);
		ht_case_free(&set.tight);
		ll_case_free(&set.low);
	}
	return tap_done();
}
