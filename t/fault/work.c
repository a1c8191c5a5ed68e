/* SPDX-License-Identifier: MIT */
/* What ranks do in the fault tests: every operation in a small form, and a proof that one works. */
#include "config.h"

#include "t/fault/fault.h"
#include "t/nodes.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Every call takes less than this once the comm has failed. */
#define AT_ONCE_MS	 300
#define AGAIN_TIMEOUT_MS 20000
#define ROOM(ranks)	 ((size_t)(ranks)*FAULT_TOKENS * FAULT_ROW_BYTES * 2)

/* Pages of their own, so that fault_trap() can take one away. */
static void *pages(size_t bytes)
{
	void *memory =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		abort();
	}
	return memory;
}

/* BF16, positive; a row is known by its rank and token. */
static uint16_t element(int rank, int token, int h)
{
	return (uint16_t)(0x3f80 + ((rank * 29 + token * 5 + h) & 0x7f));
}

int fault_join(struct fault_rank *r, int which, int rank, int num_ranks, uint32_t timeout_ms)
{
	moeep_comm_config_t config = {
		.size = sizeof(config),
		.id = &r->shared->id[which],
		.backend = MOEEP_BACKEND_HOST,
		.timeout_ms = timeout_ms,
	};
	char host[NODES_HOST_BYTES];

	config.host_id = nodes_host(rank, num_ranks, host);
	return moeep_comm_create(rank, num_ranks, &config, &r->comm);
}

static void make_memory(struct fault_rank *r)
{
	int64_t experts = 2 * (int64_t)r->num_ranks;

	r->ht_tokens = FAULT_TOKENS;
	r->ll_tokens = FAULT_LL_TOKENS;
	r->x = pages(FAULT_TOKENS * FAULT_ROW_BYTES);
	r->received = pages(ROOM(r->num_ranks));
	r->out = pages(FAULT_TOKENS * FAULT_ROW_BYTES);
	r->topk_idx = calloc(FAULT_TOKENS * (size_t)r->num_ranks, sizeof(*r->topk_idx));
	r->src_rank = calloc(FAULT_TOKENS * (size_t)r->num_ranks, sizeof(*r->src_rank));
	r->src_token = calloc(FAULT_TOKENS * (size_t)r->num_ranks * 2, sizeof(*r->src_token));
	r->count = calloc((size_t)experts, sizeof(*r->count));
	for (int t = 0; t < FAULT_TOKENS; t++) {
		uint16_t *row = (uint16_t *)(void *)(r->x + (size_t)t * FAULT_ROW_BYTES);

		for (int h = 0; h < FAULT_HIDDEN; h++) {
			row[h] = element(r->rank, t, h);
		}
		/* Every token goes to an expert of every rank. */
		for (int k = 0; k < r->num_ranks; k++) {
			r->topk_idx[t * r->num_ranks + k] = 2 * k + t % 2;
		}
	}
}

int fault_make(struct fault_rank *r)
{
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.num_experts = 2 * r->num_ranks,
		.max_topk = r->num_ranks,
		.hidden = FAULT_HIDDEN,
		.ht_max_tokens = FAULT_TOKENS,
		.ll_max_tokens = FAULT_LL_TOKENS,
		.ll_combine_slots = 1,
		/* Rings so small that they fill up many times in each call. */
		.ht_chunk_bytes = 4 * (FAULT_ROW_BYTES + 64),
		.ht_chunks = 2,
	};
	int rc = moeep_buffer_create(r->comm, &config, &r->buffer);

	if (rc == MOEEP_OK) {
		make_memory(r);
	}
	for (int i = 0; i < 3 && rc == MOEEP_OK; i++) {
		rc = moeep_handle_create(r->buffer, NULL, &r->handle[i]);
	}
	return rc == MOEEP_OK ? moeep_event_create(r->comm, 0, &r->event) : rc;
}

int fault_dispatch(struct fault_rank *r, const moeep_launch_t *launch)
{
	moeep_dispatch_args_t args = {
		.size = sizeof(args),
		.num_tokens = r->ht_tokens,
		.x = r->x,
		.topk = r->num_ranks,
		.topk_idx = r->topk_idx,
		.capacity = (int64_t)FAULT_TOKENS * r->num_ranks,
		.recv_x = r->received,
		.recv_src_rank = r->src_rank,
		.recv_src_token = r->src_token,
		.num_recv = &r->num_recv,
	};

	return moeep_dispatch(r->buffer, r->handle[0], &args, launch);
}

int fault_combine(struct fault_rank *r, const void *x, const moeep_launch_t *launch)
{
	moeep_combine_args_t args = {.size = sizeof(args), .x = x, .out = r->out};

	return moeep_combine(r->buffer, r->handle[0], &args, launch);
}

int fault_ll_dispatch(struct fault_rank *r, int handle, int phase, const moeep_launch_t *launch)
{
	moeep_ll_dispatch_args_t args = {
		.size = sizeof(args),
		.phase = phase,
		.topk = r->num_ranks,
		.num_tokens = r->ll_tokens,
		.x = r->x,
		.topk_idx = r->topk_idx,
		.recv_x = r->received,
		.recv_count = r->count,
		.recv_src_token = r->src_token,
	};

	return moeep_ll_dispatch(r->buffer, r->handle[handle], &args, launch);
}

int fault_ll_combine(struct fault_rank *r, int handle, int phase, const void *x,
		     const moeep_launch_t *launch)
{
	moeep_ll_combine_args_t args = {
		.size = sizeof(args), .phase = phase, .x = x, .out = r->out};

	return moeep_ll_combine(r->buffer, r->handle[handle], &args, launch);
}

int fault_make_and_use(struct fault_rank *r)
{
	int rc = fault_make(r);

	rc = rc == MOEEP_OK ? fault_dispatch(r, NULL) : rc;
	rc = rc == MOEEP_OK ? fault_combine(r, r->received, NULL) : rc;
	rc = rc == MOEEP_OK ? fault_ll_dispatch(r, 1, MOEEP_PHASE_BOTH, NULL) : rc;
	return rc == MOEEP_OK ? fault_ll_combine(r, 1, MOEEP_PHASE_BOTH, r->received, NULL) : rc;
}

static void at_once(struct fault_rank *r, uint64_t *since, int got, int want, const char *call)
{
	uint64_t now = fault_now_ns();
	int64_t ms = (int64_t)(now - *since) / 1000000;

	fault_check(r, got == want, "later %s: %d (%s), not %d", call, got, moeep_strerror(got),
		    want);
	fault_check(r, ms < AT_ONCE_MS * fault_slowness(), "later %s took %d ms", call, (int)ms);
	*since = now;
}

void fault_sticky(struct fault_rank *r, int result)
{
	moeep_buffer_config_t config = {.size = sizeof(config), .num_experts = 8, .hidden = 64};
	moeep_buffer_t *buffer = NULL;
	uint64_t since = fault_now_ns();
	void *memory = NULL;

	at_once(r, &since, moeep_comm_async_error(r->comm, NULL), result, "async_error");
	at_once(r, &since, moeep_comm_barrier(r->comm), result, "barrier");
	at_once(r, &since, moeep_buffer_create(r->comm, &config, &buffer), result, "buffer_create");
	at_once(r, &since, moeep_mem_alloc(r->comm, 4096, 0, &memory), result, "mem_alloc");
	if (r->event) {
		moeep_launch_t launch = {.size = sizeof(launch),
					 .stream = MOEEP_STREAM_BUFFER,
					 .done_event = r->event};

		at_once(r, &since, moeep_buffer_clean(r->buffer), result, "buffer_clean");
		at_once(r, &since, fault_dispatch(r, NULL), result, "dispatch");
		at_once(r, &since, fault_combine(r, r->received, NULL), result, "combine");
		at_once(r, &since, fault_ll_dispatch(r, 2, MOEEP_PHASE_SEND, NULL), result,
			"ll_dispatch");
		at_once(r, &since, fault_ll_combine(r, 2, MOEEP_PHASE_RECV, r->received, NULL),
			result, "ll_combine");
		at_once(r, &since, fault_dispatch(r, &launch), MOEEP_OK, "queued dispatch");
		at_once(r, &since, moeep_event_wait(r->event, MOEEP_TIMEOUT_NONE), result,
			"event_wait");
	}
}

void fault_free(struct fault_rank *r)
{
	fault_ok(r, moeep_event_destroy(r->event));
	for (int i = 0; i < 3; i++) {
		fault_ok(r, moeep_handle_destroy(r->handle[i]));
		r->handle[i] = NULL;
	}
	if (r->comm && r->symmetric) {
		fault_ok(r, moeep_mem_free(r->comm, r->symmetric));
	}
	fault_ok(r, moeep_buffer_destroy(r->buffer));
	fault_ok(r, moeep_comm_destroy(r->comm));
	r->event = NULL;
	r->symmetric = NULL;
	r->buffer = NULL;
	r->comm = NULL;
	if (r->x) {
		munmap(r->x, FAULT_TOKENS * FAULT_ROW_BYTES);
		munmap(r->received, ROOM(r->num_ranks));
		munmap(r->out, FAULT_TOKENS * FAULT_ROW_BYTES);
		free(r->topk_idx);
		free(r->src_rank);
		free(r->src_token);
		free(r->count);
		r->x = NULL;
	}
}

static void check_rows(struct fault_rank *r)
{
	fault_check(r, r->num_recv == (int64_t)FAULT_TOKENS * r->num_ranks, "%d rows came",
		    (int)r->num_recv);
	for (int64_t i = 0; i < r->num_recv; i++) {
		const uint16_t *row =
			(const uint16_t *)(void *)(r->received + (size_t)i * FAULT_ROW_BYTES);

		for (int h = 0; h < FAULT_HIDDEN; h++) {
			if (row[h] != element(r->src_rank[i], r->src_token[i], h)) {
				fault_fail(r, "row %d is not token %d of rank %d", (int)i,
					   r->src_token[i], r->src_rank[i]);
				return;
			}
		}
	}
}

void fault_again(struct fault_rank *r)
{
	struct fault_rank again = {
		.fault = r->fault, .shared = r->shared, .slot = r->slot, .victim = r->victim};

	for (int rank = 0; rank < r->num_ranks; rank++) {
		if (fault_survives(r->fault, rank)) {
			again.rank += rank < r->rank;
			again.num_ranks++;
		}
	}
	if (fault_ok(r, fault_join(&again, 1, again.rank, again.num_ranks, AGAIN_TIMEOUT_MS)) &&
	    fault_ok(r, fault_make_and_use(&again)) && fault_ok(r, fault_dispatch(&again, NULL))) {
		check_rows(&again);
		fault_ok(r, fault_combine(&again, again.received, NULL));
		fault_ok(r, moeep_comm_barrier(again.comm));
	}
	fault_free(&again);
}
