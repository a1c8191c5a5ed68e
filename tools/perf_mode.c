/* SPDX-License-Identifier: MIT */
/* tools/perf_mode.c - the buffer of one mode, with its handles and memory: made, measured, freed.
 */
#include <config.h>

#include <string.h>

#include "perf_rank.h"

/* Free memory of the rank's GPU; 0 where others take from it as well, or there is none. */
static uint64_t device_left(const struct rank *r)
{
	return r->device && r->o->ranks <= r->run->gpus->count ? device_memory_left(r->device) : 0;
}

int rank_mode_open(struct rank *r, unsigned mode)
{
	moeep_buffer_config_t config;
	bool ht = mode == MOEEP_MODE_HT;
	const struct perf_plan *plan = r->run->plan;
	uint64_t start, left, now;
	int rc;

	r->mode = mode;
	r->routing = ht ? &plan->ht : &plan->ll;
	r->copies = ht ? plan->copies : r->routing->shape.variants;
	r->capacity = ht ? (plan->ht_rows ? plan->ht_rows : 1) : plan->ll_capacity;
	memset(r->routed, 0, sizeof(r->routed));
	perf_buffer_config(r->o, plan, mode, &config);
	/* So that the time of making the buffer is no time of waiting. */
	if (rank_barrier(r)) {
		return 1;
	}
	left = device_left(r);
	start = rank_now_ns();
	rc = moeep_buffer_create(r->comm, &config, &r->buffer);
	if (rc) {
		r->buffer = NULL;
		return rank_fail_call(r, "moeep_buffer_create", rc);
	}
	r->buffer_ns = rank_now_ns() - start;
	for (int v = 0; v < r->routing->shape.variants; v++) {
		rc = moeep_handle_create(r->buffer, NULL, &r->handle[v]);
		if (rc) {
			r->handle[v] = NULL;
			return rank_fail_call(r, "moeep_handle_create", rc);
		}
	}
	now = device_left(r);
	r->device_bytes = now < left ? left - now : 0;
	return rank_mode_blocks(r);
}

/*
 * The rank's calls have ended, or will soon, as the group has failed. NULL, or a mode that is not
 * open: nothing.
 */
void rank_mode_close(struct rank *r)
{
	if (!r) {
		return;
	}
	if (r->device) {
		(void)device_wait(r->device);
	}
	rank_graph_free(r);
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

int rank_note_bytes(struct rank *r, int index)
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
	outcome->device_bytes = r->device_bytes;
	outcome->buffer_ns = r->buffer_ns;
	outcome->private_bytes =
		hint.private_bytes + hint.handle_bytes * (uint64_t)r->routing->shape.variants;
	return 0;
}
