/* SPDX-License-Identifier: MIT */
/*
 * A call that one rank's library refuses, while its peers make it: all ranks get that rank's cause,
 * long before the time-out. What all ranks are refused has no effect, however late one of them is.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/wait.h"
#include "t/op/op.h"
#include "t/ranks.h"
#include "t/tap.h"
#include "t/util.h"

#define RANKS	 3
#define BAD	 1
#define TOKENS	 4
#define HIDDEN	 64
#define EXPERTS	 6
#define TOPK	 2
#define ROWS	 (RANKS * TOKENS * TOPK)
#define LIMIT_MS 20000
/* What a refusal may take to be noticed, on a machine that has much else to do. */
#define SOON_MS 5000
/* Longer than waits take to look at peers. */
#define LATE_US 150000

enum call { DISPATCH, COMBINE, LL_DISPATCH, LL_SEND, LL_RECV, LL_COMBINE, LL_CSEND, LL_CRECV };

static const char *const call_names[] = {"dispatch", "combine",	   "LL dispatch", "its SEND",
					 "its RECV", "LL combine", "its SEND",	  "its RECV"};

struct kit {
	int rank;
	moeep_comm_t *comm;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle, *ll_handle;
	int64_t topk[TOKENS * TOPK];
	_Alignas(16) uint16_t x[TOKENS * HIDDEN];
	_Alignas(16) uint16_t rows[ROWS * HIDDEN * EXPERTS];
	_Alignas(16) uint16_t out[TOKENS * HIDDEN];
	int32_t counts[EXPERTS];
};

static int open_kit(struct kit *k, int rank, moeep_comm_t *comm)
{
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.num_experts = EXPERTS,
		.max_topk = TOPK,
		.hidden = HIDDEN,
		.ht_max_tokens = TOKENS,
		.ll_max_tokens = TOKENS,
	};

	memset(k, 0, sizeof(*k));
	k->rank = rank;
	k->comm = comm;
	for (int i = 0; i < TOKENS * TOPK; i++) {
		k->topk[i] = (rank + i) % EXPERTS;
	}
	RANK_TRY(moeep_buffer_create(comm, &config, &k->buffer));
	RANK_TRY(moeep_handle_create(k->buffer, NULL, &k->handle));
	RANK_TRY(moeep_handle_create(k->buffer, NULL, &k->ll_handle));
	return 0;
}

static int close_kit(struct kit *k)
{
	RANK_TRY(moeep_handle_destroy(k->handle));
	RANK_TRY(moeep_handle_destroy(k->ll_handle));
	RANK_TRY(moeep_buffer_destroy(k->buffer));
	return 0;
}

static int phase_of(enum call call)
{
	return call == LL_SEND || call == LL_CSEND   ? MOEEP_PHASE_SEND
	       : call == LL_RECV || call == LL_CRECV ? MOEEP_PHASE_RECV
						     : MOEEP_PHASE_BOTH;
}

/* bad: flags that no call knows. */
static int make_call(struct kit *k, enum call call, bool bad, const moeep_launch_t *launch)
{
	uint32_t flags = bad ? 1u << 31 : 0;
	moeep_dispatch_args_t dispatch = {
		.size = sizeof(dispatch),
		.flags = flags,
		.x = k->x,
		.topk_idx = k->topk,
		.num_tokens = TOKENS,
		.topk = TOPK,
		.recv_x = k->rows,
		.capacity = ROWS,
	};
	moeep_combine_args_t combine = {
		.size = sizeof(combine), .flags = flags, .x = k->rows, .out = k->out};
	moeep_ll_dispatch_args_t ll = {
		.size = sizeof(ll),
		.flags = flags,
		.phase = phase_of(call),
		.x = k->x,
		.topk_idx = k->topk,
		.num_tokens = TOKENS,
		.topk = TOPK,
		.recv_x = k->rows,
		.recv_count = k->counts,
		.capacity = RANKS * TOKENS,
	};
	moeep_ll_combine_args_t ll_combine = {
		.size = sizeof(ll_combine),
		.flags = flags | MOEEP_LL_COMBINE_UNWEIGHTED,
		.phase = phase_of(call),
		.x = k->rows,
		.out = k->out,
	};

	switch (call) {
	case DISPATCH:
		return moeep_dispatch(k->buffer, k->handle, &dispatch, launch);
	case COMBINE:
		return moeep_combine(k->buffer, k->handle, &combine, launch);
	case LL_DISPATCH:
	case LL_SEND:
	case LL_RECV:
		return moeep_ll_dispatch(k->buffer, k->ll_handle, &ll, launch);
	default:
		return moeep_ll_combine(k->buffer, k->ll_handle, &ll_combine, launch);
	}
}

/* What every rank calls in turn; the phases of each in one call, and in two. */
static const enum call round_calls[] = {DISPATCH, COMBINE, LL_DISPATCH, LL_COMBINE,
					LL_SEND,  LL_RECV, LL_CSEND,	LL_CRECV};

static int play_round(struct kit *k)
{
	int rc = MOEEP_OK;

	for (int i = 0; i < COUNT_OF(round_calls) && rc == MOEEP_OK; i++) {
		rc = make_call(k, round_calls[i], false, NULL);
	}
	return rc;
}

/* The failure of the group, on all ranks. */
static void check_failure(struct kit *k, int result, uint64_t begun)
{
	moeep_error_report_t report = {.size = sizeof(report)};
	uint64_t ms = (moeep_now_ns() - begun) / 1000000;

	rank_check(result == MOEEP_ERR_INVALID &&
			   strstr(moeep_error_detail(), "rank 1 refused its call: "),
		   "got %s (%s)", moeep_strerror(result), moeep_error_detail());
	rank_check(ms < SOON_MS, "after %llu ms", (unsigned long long)ms);
	rank_is(moeep_comm_async_error(k->comm, &report), MOEEP_ERR_INVALID);
	rank_check(report.peer == BAD, "the report names rank %d", report.peer);
	rank_check(strstr(report.message, "rank 1 refused its call: ") != NULL, "it says %s",
		   report.message);
	result = make_call(k, DISPATCH, false, NULL);
	rank_check(result == MOEEP_ERR_INVALID, "a later call gave %s", moeep_strerror(result));
}

/* Until the others have found it. */
static void wait_for_failure(struct kit *k)
{
	uint64_t begun = moeep_now_ns();

	while (moeep_comm_async_error(k->comm, NULL) == MOEEP_OK &&
	       moeep_now_ns() - begun < (uint64_t)SOON_MS * 1000000) {
		usleep(1000);
	}
	check_failure(k, moeep_comm_barrier(k->comm), begun);
}

/* arg: which of round_calls is refused to a rank, once all have made a round. */
static int one_body(int rank, moeep_comm_t *comm, void *arg)
{
	const int *which = arg;
	struct kit *k = util_alloc(sizeof(*k));
	uint64_t begun;
	int rc = MOEEP_OK;

	RANK_DO(open_kit(k, rank, comm));
	RANK_TRY(play_round(k));
	if (rank == BAD) {
		for (int i = 0; i < *which; i++) {
			RANK_TRY(make_call(k, round_calls[i], false, NULL));
		}
		rc = make_call(k, round_calls[*which], true, NULL);
		rank_check(rc == MOEEP_ERR_INVALID &&
				   strncmp(moeep_error_detail(), "flags is 0x", 11) == 0,
			   "its own error: %s (%s)", moeep_strerror(rc), moeep_error_detail());
		wait_for_failure(k);
	} else {
		begun = moeep_now_ns();
		/* LL ends two rounds later, where its slots do. */
		for (int i = 0; i < 3 && rc == MOEEP_OK; i++) {
			rc = play_round(k);
		}
		check_failure(k, rc, begun);
	}
	RANK_DO(close_kit(k));
	util_free(k);
	return 0;
}

/* A choice that is no expert, which is found when the call has its turn. */
static int choice_body(int rank, moeep_comm_t *comm, void *arg)
{
	enum call call = *(const int *)arg ? LL_DISPATCH : DISPATCH;
	struct kit *k = util_alloc(sizeof(*k));
	uint64_t begun;

	RANK_DO(open_kit(k, rank, comm));
	RANK_TRY(play_round(k));
	begun = moeep_now_ns();
	if (rank == BAD) {
		k->topk[3] = EXPERTS;
		rank_is(make_call(k, call, false, NULL), MOEEP_ERR_INVALID);
		rank_check(strstr(moeep_error_detail(), "topk_idx") != NULL, "its own error: %s",
			   moeep_error_detail());
		wait_for_failure(k);
	} else {
		check_failure(k, make_call(k, call, false, NULL), begun);
	}
	RANK_DO(close_kit(k));
	util_free(k);
	return 0;
}

/* Behind calls that are queued, the refusal comes in its turn. */
static int queued_body(int rank, moeep_comm_t *comm, void *arg)
{
	moeep_launch_t launch = {.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER};
	struct kit *k = util_alloc(sizeof(*k));
	int32_t status[3] = {1, 1, 1};
	uint64_t begun;

	(void)arg;
	RANK_DO(open_kit(k, rank, comm));
	begun = moeep_now_ns();
	for (int i = 0; i < 3; i++) {
		launch.status = &status[i];
		if (rank == BAD && i == 2) {
			rank_is(make_call(k, DISPATCH, true, &launch), MOEEP_ERR_INVALID);
		} else {
			RANK_TRY(make_call(k, DISPATCH, false, &launch));
		}
	}
	if (rank == BAD) {
		wait_for_failure(k);
	} else {
		while (moeep_comm_async_error(comm, NULL) == MOEEP_OK &&
		       moeep_now_ns() - begun < (uint64_t)SOON_MS * 1000000) {
			usleep(1000);
		}
		check_failure(k, make_call(k, DISPATCH, false, NULL), begun);
	}
	rank_check(status[0] == MOEEP_OK && status[1] == MOEEP_OK,
		   "calls before it ended with %d and %d", status[0], status[1]);
	rank_check(status[2] == (rank == BAD ? 1 : MOEEP_ERR_INVALID), "the call ended with %d",
		   status[2]);
	RANK_DO(close_kit(k));
	util_free(k);
	return 0;
}

/* Every call is refused to all ranks, once or several times, before it is made; one rank is late.
 */
static int all_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct kit *k = util_alloc(sizeof(*k));

	(void)arg;
	RANK_DO(open_kit(k, rank, comm));
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < COUNT_OF(round_calls); i++) {
			for (int times = 0; times <= (i + round) % 3; times++) {
				rank_is(make_call(k, round_calls[i], true, NULL),
					MOEEP_ERR_INVALID);
			}
			if (rank == (i + round) % RANKS && (i + round) % 2 == 0) {
				usleep(LATE_US);
			}
			RANK_TRY(make_call(k, round_calls[i], false, NULL));
		}
	}
	rank_is(moeep_comm_async_error(comm, NULL), MOEEP_OK);
	RANK_DO(close_kit(k));
	util_free(k);
	return 0;
}

/* One rank is refused what no other rank calls, and then is late: nobody minds. */
static int alone_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct kit *k = util_alloc(sizeof(*k));

	(void)arg;
	RANK_DO(open_kit(k, rank, comm));
	for (int i = 0; i < COUNT_OF(round_calls); i++) {
		RANK_TRY(play_round(k));
		if (rank == BAD) {
			rank_is(make_call(k, round_calls[i], true, NULL), MOEEP_ERR_INVALID);
			usleep(LATE_US);
		}
		/* Of the other family: the next call of the same one would make good for it. */
		for (int low = 0; low < 4; low++) {
			RANK_TRY(make_call(k,
					   i < 2 ? round_calls[2 + low % 2] : round_calls[low % 2],
					   false, NULL));
		}
	}
	rank_is(moeep_comm_async_error(comm, NULL), MOEEP_OK);
	RANK_DO(close_kit(k));
	util_free(k);
	return 0;
}

int main(void)
{
	struct ranks_config config = {.num_ranks = RANKS, .timeout_ms = LIMIT_MS};

	/* GPUs count their calls themselves. */
	unsetenv("MOEEP_TEST_CUDA");
	ranks_begin();
	for (int i = 0; i < COUNT_OF(round_calls); i++) {
		config.processes = i % 2 == 0;
		ranks_run(&config, one_body, &i, "one rank is refused: %s%s",
			  i > 5	  ? "LL combine, "
			  : i > 3 ? "LL dispatch, "
				  : "",
			  call_names[round_calls[i]]);
	}
	for (int i = 0; i < 2; i++) {
		config.processes = i != 0;
		ranks_run(&config, choice_body, &i, "one rank has a choice that is no expert, %s",
			  i ? "LL" : "HT");
	}
	for (int i = 0; i < 2; i++) {
		config.processes = i != 0;
		ranks_run(&config, queued_body, NULL, "one rank is refused behind queued calls");
		ranks_run(&config, all_body, NULL, "all ranks are refused, one is late");
		ranks_run(&config, alone_body, NULL, "one rank is refused what no other calls");
	}
	return tap_done();
}
