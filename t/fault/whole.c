/* SPDX-License-Identifier: MIT */
/* All that a program asks the library for, once. */
#include "config.h"

#include <stdbool.h>
#include <stdint.h>

#include "t/fault/whole.h"

#define HIDDEN 64
#define TOKENS 4

/* 1, 2, 3 and 4 in BF16, and twice that. */
static const uint16_t one_of[4] = {0x3f80, 0x4000, 0x4040, 0x4080};
static const uint16_t twice_of[4] = {0x4000, 0x4080, 0x40c0, 0x4100};

int whole_use(int rank, int num_ranks, const moeep_unique_id_t *id, uint32_t timeout_ms)
{
	moeep_comm_config_t config = {.size = sizeof(config),
				      .id = id,
				      .backend = MOEEP_BACKEND_HOST,
				      .timeout_ms = timeout_ms};
	moeep_buffer_config_t buffer_config = {.size = sizeof(buffer_config),
					       .modes = MOEEP_MODE_HT | MOEEP_MODE_LL,
					       .num_experts = 4,
					       .max_topk = 2,
					       .hidden = HIDDEN,
					       .ht_max_tokens = TOKENS,
					       .ll_max_tokens = TOKENS};
	uint16_t x[TOKENS][HIDDEN], rows[WHOLE_RANKS * TOKENS][HIDDEN], out[TOKENS][HIDDEN];
	int64_t experts[TOKENS][2] = {{0, 2}, {1, 3}, {2, -1}, {0, 3}};
	float weights[TOKENS][2] = {{1, 1}, {1, 1}, {1, 1}, {1, 1}};
	moeep_dispatch_args_t dispatch = {.size = sizeof(dispatch),
					  .num_tokens = TOKENS,
					  .x = x,
					  .topk = 2,
					  .topk_idx = &experts[0][0],
					  .topk_weights = &weights[0][0],
					  .capacity = WHOLE_RANKS * TOKENS,
					  .recv_x = rows};
	moeep_combine_args_t combine = {.size = sizeof(combine), .x = rows, .out = out};
	moeep_buffer_t *buffer = NULL;
	moeep_handle_t *handle = NULL;
	moeep_event_t *event = NULL;
	moeep_comm_t *comm = NULL;
	void *symmetric = NULL;
	int rc;

	for (int i = 0; i < TOKENS * HIDDEN; i++) {
		/* Whole numbers, whose sums are exact. */
		x[i / HIDDEN][i % HIDDEN] = one_of[(i + rank) % 4];
	}
	rc = moeep_comm_create(rank, num_ranks, &config, &comm);

	if (rc == MOEEP_OK) {
		rc = moeep_mem_alloc(comm, 4096, 0, &symmetric);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_buffer_create(comm, &buffer_config, &buffer);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_handle_create(buffer, NULL, &handle);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_event_create(comm, 0, &event);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_dispatch(buffer, handle, &dispatch, NULL);
	}
	if (rc == MOEEP_OK) {
		moeep_launch_t launch = {
			.size = sizeof(launch), .stream = MOEEP_STREAM_BUFFER, .done_event = event};

		rc = moeep_combine(buffer, handle, &combine, &launch);
		if (rc == MOEEP_OK) {
			rc = moeep_event_wait(event, MOEEP_TIMEOUT_NONE);
		}
	}
	for (int i = 0; rc == MOEEP_OK && i < TOKENS * HIDDEN; i++) {
		/* Two experts of two ranks have the row, or one of one. */
		bool twice = i / HIDDEN != 2;
		uint16_t expected = twice ? twice_of[(i + rank) % 4] : one_of[(i + rank) % 4];

		if (out[i / HIDDEN][i % HIDDEN] != expected) {
			rc = WHOLE_WRONG;
		}
	}
	(void)moeep_event_destroy(event);
	(void)moeep_handle_destroy(handle);
	(void)moeep_buffer_destroy(buffer);
	if (symmetric) {
		(void)moeep_mem_free(comm, symmetric);
	}
	(void)moeep_comm_destroy(comm);
	return rc;
}
