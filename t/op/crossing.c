/* SPDX-License-Identifier: MIT */
/*
 * Two threads of each rank, each with a comm of its own: their calls cross, as each thread goes at
 * its own pace. One comm fails in the middle; the other does not notice.
 */
#include "config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "t/op/op.h"
#include "t/ranks.h"
#include "t/tap.h"
#include "t/util.h"

#define COMMS	2
#define TOKENS	6
#define HIDDEN	32
#define EXPERTS 4
#define ROUNDS	200
/* Of the comm that fails, the rounds that are good. */
#define GOOD_ROUNDS 60

struct lane {
	int rank;
	int number;
	int num_ranks;
	moeep_comm_t *comm;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	int rounds; /* made */
	int wrong;  /* elements */
	int result; /* the first that is not MOEEP_OK */
	char detail[300];
};

/* Element of a row, in each round another; small, so that sums of copies are exact. */
static float value(int round, int rank, int token, int i)
{
	return (float)((round * 3 + rank * 5 + token * 7 + i) % 64);
}

/* Each token goes to the experts of two ranks or of one twice; its sum is as many rows. */
static int play_round(struct lane *lane, int round)
{
	float x[TOKENS * HIDDEN], out[TOKENS * HIDDEN];
	float *rows = malloc(sizeof(float) * (size_t)lane->num_ranks * TOKENS * HIDDEN);
	int64_t topk[TOKENS * 2];
	moeep_dispatch_args_t dispatch = {
		.size = sizeof(dispatch),
		.dtype = MOEEP_FP32,
		.x = x,
		.topk_idx = topk,
		.topk = 2,
		.num_tokens = TOKENS,
		.recv_x = rows,
		.capacity = (int64_t)lane->num_ranks * TOKENS,
	};
	moeep_combine_args_t combine = {
		.size = sizeof(combine), .dtype = MOEEP_FP32, .x = rows, .out = out};
	int rc;

	for (int t = 0; t < TOKENS; t++) {
		topk[2 * t] = (round + t) % EXPERTS;
		topk[2 * t + 1] = (round + 2 * t + 1 + (t % 2)) % EXPERTS;
		for (int i = 0; i < HIDDEN; i++) {
			x[t * HIDDEN + i] = value(round, lane->rank, t, i);
		}
	}
	memset(out, 0xa5, sizeof(out));
	if (lane->number == 1 && round == GOOD_ROUNDS && lane->rank == 0) {
		dispatch.num_tokens = TOKENS + 1;
	}
	rc = moeep_dispatch(lane->buffer, lane->handle, &dispatch, NULL);
	if (rc == MOEEP_OK) {
		rc = moeep_combine(lane->buffer, lane->handle, &combine, NULL);
	}
	for (int t = 0; t < TOKENS && rc == MOEEP_OK; t++) {
		int first, count, from[2];

		for (int k = 0; k < 2; k++) {
			for (from[k] = 0; from[k] < lane->num_ranks; from[k]++) {
				if (moeep_expert_range(EXPERTS, lane->num_ranks, from[k], &first,
						       &count) == MOEEP_OK &&
				    topk[2 * t + k] >= first && topk[2 * t + k] < first + count) {
					break;
				}
			}
		}
		for (int i = 0; i < HIDDEN; i++) {
			float want = value(round, lane->rank, t, i) * (from[0] == from[1] ? 1 : 2);

			lane->wrong += out[t * HIDDEN + i] != want;
		}
	}
	free(rows);
	return rc;
}

static void *lane_main(void *arg)
{
	struct lane *lane = arg;

	for (int round = 0; round < ROUNDS && lane->result == MOEEP_OK; round++) {
		if ((round + lane->rank) % (7 + 4 * lane->number) == 0) {
			usleep(300);
		}
		lane->result = play_round(lane, round);
		lane->rounds += lane->result == MOEEP_OK;
	}
	snprintf(lane->detail, sizeof(lane->detail), "%s", moeep_error_detail());
	return NULL;
}

static int body(int rank, moeep_comm_t *comm, void *arg)
{
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.modes = MOEEP_MODE_HT,
		.num_experts = EXPERTS,
		.max_topk = 2,
		.dtype = MOEEP_FP32,
		.hidden = HIDDEN,
		.ht_max_tokens = TOKENS,
	};
	struct lane lane[COMMS];
	pthread_t thread[COMMS];

	(void)comm;
	for (int i = 0; i < COMMS; i++) {
		lane[i] = (struct lane){.rank = rank,
					.number = i,
					.num_ranks = *(const int *)arg,
					.comm = ranks_comm(i)};
		RANK_TRY(moeep_buffer_create(lane[i].comm, &config, &lane[i].buffer));
		RANK_TRY(moeep_handle_create(lane[i].buffer, NULL, &lane[i].handle));
	}
	for (int i = 0; i < COMMS; i++) {
		if (pthread_create(&thread[i], NULL, lane_main, &lane[i]) != 0) {
			rank_fail("no thread");
			return -1;
		}
	}
	for (int i = 0; i < COMMS; i++) {
		pthread_join(thread[i], NULL);
		rank_check(lane[i].wrong == 0, "comm %d: %d elements wrong", i, lane[i].wrong);
	}
	rank_check(lane[0].rounds == ROUNDS, "comm 0 made %d rounds: %s", lane[0].rounds,
		   lane[0].detail);
	rank_is(moeep_comm_async_error(lane[0].comm, NULL), MOEEP_OK);
	rank_check(lane[1].rounds == GOOD_ROUNDS, "comm 1 made %d rounds: %s", lane[1].rounds,
		   lane[1].detail);
	rank_check(lane[1].result == MOEEP_ERR_INVALID && strstr(lane[1].detail, "num_tokens is 7"),
		   "comm 1 ended with %s (%s)", moeep_strerror(lane[1].result), lane[1].detail);
	for (int i = 0; i < COMMS; i++) {
		RANK_TRY(moeep_handle_destroy(lane[i].handle));
		RANK_TRY(moeep_buffer_destroy(lane[i].buffer));
	}
	return 0;
}

int main(void)
{
	/* The streams of GPUs are t/cuda/stress.c's. */
	unsetenv("MOEEP_TEST_CUDA");
	ranks_begin();
	for (int num_ranks = 2; num_ranks <= 4; num_ranks++) {
		for (int processes = 0; processes < 2; processes++) {
			struct ranks_config config = {.num_ranks = num_ranks,
						      .num_comms = COMMS,
						      .processes = processes != 0};

			ranks_run(&config, body, &num_ranks, "two comms on two threads of a rank");
		}
	}
	return tap_done();
}
