/* SPDX-License-Identifier: MIT */
/* The objects of a scene, its calls, and rows whose every element is known. */
#include "config.h"

#include "t/cuda/fault.h"

#include <stdio.h>
#include <string.h>

#include "t/device.h"
#include "t/util.h"

#define ROWS	  (FAULT_RANKS * FAULT_TOKENS)
#define ROW_BYTES (FAULT_HIDDEN * sizeof(uint16_t))

/* Whole numbers that are BF16, and whose sums over ranks are as well. */
static int element(int rank, int token, int h)
{
	return (rank * 7 + token * 5 + h) % 16;
}

static uint16_t bf16_of(int number)
{
	float value = (float)number;
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t)(bits >> 16);
}

void fault_memory_make(struct fault_rank *r)
{
	r->x = util_alloc(FAULT_TOKENS * ROW_BYTES);
	/* LL: each expert has room for all tokens. */
	r->received = util_alloc(FAULT_EXPERTS * ROWS * ROW_BYTES);
	r->out = util_alloc(FAULT_TOKENS * ROW_BYTES);
	r->topk_idx = util_alloc(FAULT_TOKENS * FAULT_RANKS * sizeof(*r->topk_idx));
	r->src_rank = util_alloc(ROWS * sizeof(*r->src_rank));
	r->src_token = util_alloc(FAULT_EXPERTS * ROWS * sizeof(*r->src_token));
	r->count = util_alloc(FAULT_EXPERTS * sizeof(*r->count));
	r->num_recv = util_alloc(sizeof(*r->num_recv));
	r->status = util_alloc(sizeof(*r->status));
}

void fault_memory_free(struct fault_rank *r)
{
	util_free(r->x);
	util_free(r->received);
	util_free(r->out);
	util_free(r->topk_idx);
	util_free(r->src_rank);
	util_free(r->src_token);
	util_free(r->count);
	util_free(r->num_recv);
	util_free(r->status);
}

/* Every token goes to one of the two experts of each rank. */
static void fill(struct fault_rank *r)
{
	for (int t = 0; t < FAULT_TOKENS; t++) {
		for (int h = 0; h < FAULT_HIDDEN; h++) {
			r->x[t * FAULT_HIDDEN + h] = bf16_of(element(r->rank, t, h));
		}
		for (int k = 0; k < r->num_ranks; k++) {
			r->topk_idx[t * r->num_ranks + k] = FAULT_EXPERTS * k + t % FAULT_EXPERTS;
		}
	}
}

static int open_all(struct fault_rank *r, uint32_t timeout_ms)
{
	moeep_comm_config_t comm = {
		.size = sizeof(comm),
		.id = &r->group->shared->id[r->scene],
		.timeout_ms = timeout_ms,
	};
	moeep_buffer_config_t buffer = {
		.size = sizeof(buffer),
		.num_experts = FAULT_EXPERTS * r->num_ranks,
		.max_topk = r->num_ranks,
		.hidden = FAULT_HIDDEN,
		.ht_max_tokens = FAULT_TOKENS,
		.ll_max_tokens = FAULT_TOKENS,
	};
	int rc;

	/* The device is the number's: it is the one whose context the process has. */
	device_config(r->number, &comm);
	rc = moeep_comm_create(r->rank, r->num_ranks, &comm, &r->comm);
	rc = rc == MOEEP_OK ? moeep_buffer_create(r->comm, &buffer, &r->buffer) : rc;
	for (int i = 0; i < 3 && rc == MOEEP_OK; i++) {
		rc = moeep_handle_create(r->buffer, NULL, &r->handle[i]);
	}
	rc = rc == MOEEP_OK ? moeep_event_create(r->comm, 0, &r->event) : rc;
	/* No rank is at work while another one allocates. */
	return rc == MOEEP_OK ? moeep_comm_barrier(r->comm) : rc;
}

bool fault_open(struct fault_rank *r, uint32_t timeout_ms)
{
	fill(r);
	return fault_is(r, open_all(r, timeout_ms), MOEEP_OK, "comm, buffer, handles, event");
}

void fault_close(struct fault_rank *r)
{
	if (r->exec) {
		fault_check(r, r->cu->cuGraphExecDestroy(r->exec) == CUDA_SUCCESS,
			    "cuGraphExecDestroy fails");
	}
	if (r->graph) {
		fault_check(r, r->cu->cuGraphDestroy(r->graph) == CUDA_SUCCESS,
			    "cuGraphDestroy fails");
	}
	fault_ok(r, moeep_event_destroy(r->event));
	for (int i = 0; i < 3; i++) {
		fault_ok(r, moeep_handle_destroy(r->handle[i]));
		r->handle[i] = NULL;
	}
	fault_ok(r, moeep_buffer_destroy(r->buffer));
	fault_ok(r, moeep_comm_destroy(r->comm));
	if (r->stream) {
		fault_check(r, r->cu->cuStreamDestroy(r->stream) == CUDA_SUCCESS,
			    "cuStreamDestroy fails");
	}
	r->exec = NULL;
	r->graph = NULL;
	r->stream = NULL;
	r->event = NULL;
	r->buffer = NULL;
	r->comm = NULL;
}

/* Those that no call knows. */
static uint32_t wrong_flags(const struct fault_rank *r)
{
	return r->field == FIELD_FLAGS ? 1u << 31 : 0;
}

static int dispatch(struct fault_rank *r, const moeep_launch_t *launch)
{
	moeep_dispatch_args_t args = {
		.size = sizeof(args),
		.flags = wrong_flags(r),
		.num_tokens = FAULT_TOKENS,
		.dtype = r->field == FIELD_DTYPE ? MOEEP_FP16 : MOEEP_BF16,
		.topk = r->num_ranks - (r->field == FIELD_TOPK),
		.x = r->x,
		.topk_idx = r->topk_idx,
		.capacity = ROWS,
		.recv_x = r->received,
		.recv_src_rank = r->src_rank,
		.recv_src_token = r->src_token,
		.num_recv = r->num_recv,
	};

	return moeep_dispatch(r->buffer, r->handle[0], &args, launch);
}

static int combine(struct fault_rank *r, const moeep_launch_t *launch)
{
	moeep_combine_args_t args = {
		.size = sizeof(args),
		.flags = wrong_flags(r),
		.dtype = r->field == FIELD_DTYPE ? MOEEP_FP16 : MOEEP_BF16,
		.x = r->received,
		.out = r->out,
	};

	return moeep_combine(r->buffer, r->handle[0], &args, launch);
}

static int ll_dispatch(struct fault_rank *r, int handle, int phase, const moeep_launch_t *launch)
{
	moeep_ll_dispatch_args_t args = {
		.size = sizeof(args),
		.flags = wrong_flags(r),
		.phase = phase,
		.num_tokens = FAULT_TOKENS,
		.dtype = r->field == FIELD_DTYPE ? MOEEP_FP16 : MOEEP_BF16,
		.quant = r->field == FIELD_QUANT ? MOEEP_QUANT_FP8 : MOEEP_QUANT_NONE,
		.topk = r->num_ranks - (r->field == FIELD_TOPK),
		.x = r->x,
		.topk_idx = r->topk_idx,
		.recv_x = r->received,
		.recv_count = r->count,
		.recv_src_token = r->src_token,
	};

	return moeep_ll_dispatch(r->buffer, r->handle[handle], &args, launch);
}

static int ll_combine(struct fault_rank *r, int handle, int phase, const moeep_launch_t *launch)
{
	moeep_ll_combine_args_t args = {
		.size = sizeof(args),
		.flags = wrong_flags(r),
		.phase = phase,
		.dtype = r->field == FIELD_DTYPE ? MOEEP_FP16 : MOEEP_BF16,
		.x = r->received,
		.out = r->out,
	};

	return moeep_ll_combine(r->buffer, r->handle[handle], &args, launch);
}

int fault_start(struct fault_rank *r, enum fault_call call, int handle,
		const moeep_launch_t *launch)
{
	switch (call) {
	case CALL_DISPATCH:
		return dispatch(r, launch);
	case CALL_COMBINE:
		return combine(r, launch);
	case CALL_LL_DISPATCH:
		return ll_dispatch(r, handle, MOEEP_PHASE_BOTH, launch);
	case CALL_LL_COMBINE:
		return ll_combine(r, handle, MOEEP_PHASE_BOTH, launch);
	case CALL_LL_SEND:
		return ll_dispatch(r, handle, MOEEP_PHASE_SEND, launch);
	case CALL_LL_RECV:
		return ll_dispatch(r, handle, MOEEP_PHASE_RECV, launch);
	case CALL_LL_CSEND:
		return ll_combine(r, handle, MOEEP_PHASE_SEND, launch);
	default:
		return ll_combine(r, handle, MOEEP_PHASE_RECV, launch);
	}
}

int fault_begin(struct fault_rank *r, enum fault_call call, int handle)
{
	moeep_launch_t launch = {
		.size = sizeof(launch),
		.stream = MOEEP_STREAM_BUFFER,
		.status = r->status,
		.num_sms = r->num_sms,
		.done_event = r->event,
	};

	*r->status = 4711; /* no result */
	return fault_start(r, call, handle, &launch);
}

int fault_end(struct fault_rank *r, int begun)
{
	int rc = begun == MOEEP_OK ? moeep_event_wait(r->event, MOEEP_TIMEOUT_NONE) : begun;
	int status = *(volatile int32_t *)r->status;

	if (begun == MOEEP_OK) {
		fault_check(r, status == rc, "status is %d, and the event has %d (%s)", status, rc,
			    moeep_strerror(rc));
	}
	return rc;
}

/* The first element of [row] that differs. */
static bool same_row(struct fault_rank *r, const char *what, const uint16_t *row, int source,
		     int token, int times)
{
	for (int h = 0; h < FAULT_HIDDEN; h++) {
		uint16_t want = bf16_of(times * element(source, token, h));

		if (row[h] != want) {
			fault_fail(r, "%s: element %d of token %d of rank %d is 0x%04x, not 0x%04x",
				   what, h, token, source, row[h], want);
			return false;
		}
	}
	return true;
}

static bool same_rows(struct fault_rank *r)
{
	bool same = fault_check(r, *r->num_recv == (int64_t)FAULT_TOKENS * r->num_ranks,
				"dispatch: %lld rows came", (long long)*r->num_recv);

	for (int i = 0; same && i < *r->num_recv; i++) {
		int source = i / FAULT_TOKENS, token = i % FAULT_TOKENS;

		same = fault_check(r, r->src_rank[i] == source && r->src_token[i] == token,
				   "dispatch: row %d is token %d of rank %d", i, r->src_token[i],
				   r->src_rank[i]) &&
		       same_row(r, "dispatch", r->received + i * FAULT_HIDDEN, source, token, 1);
	}
	return same;
}

static bool same_experts(struct fault_rank *r)
{
	int each = FAULT_TOKENS / FAULT_EXPERTS, capacity = FAULT_TOKENS * r->num_ranks;
	bool same = true;

	for (int e = 0; same && e < FAULT_EXPERTS; e++) {
		same = fault_check(r, r->count[e] == each * r->num_ranks,
				   "LL dispatch: expert %d has %d rows", e, r->count[e]);
		for (int i = 0; same && i < each * r->num_ranks; i++) {
			int at = e * capacity + i, token = i % each * FAULT_EXPERTS + e;

			same = fault_check(r, r->src_token[at] == token,
					   "LL dispatch: row %d of expert %d is token %d", i, e,
					   r->src_token[at]) &&
			       same_row(r, "LL dispatch", r->received + at * FAULT_HIDDEN, i / each,
					token, 1);
		}
	}
	return same;
}

static bool same_sums(struct fault_rank *r, const char *what)
{
	bool same = true;

	for (int t = 0; same && t < FAULT_TOKENS; t++) {
		same = same_row(r, what, r->out + t * FAULT_HIDDEN, r->rank, t, r->num_ranks);
	}
	return same;
}

static bool call(struct fault_rank *r, enum fault_call which)
{
	if (which == CALL_DISPATCH || which == CALL_LL_DISPATCH) {
		util_poison(r->received, FAULT_EXPERTS * ROWS * ROW_BYTES);
		*r->num_recv = -1;
	} else {
		util_poison(r->out, FAULT_TOKENS * ROW_BYTES);
	}
	return fault_is(r, fault_do(r, which, 1), MOEEP_OK, "a call that has no fault");
}

bool fault_verify(struct fault_rank *r)
{
	return call(r, CALL_DISPATCH) && same_rows(r) && call(r, CALL_COMBINE) &&
	       same_sums(r, "combine") && call(r, CALL_LL_DISPATCH) && same_experts(r) &&
	       call(r, CALL_LL_COMBINE) && same_sums(r, "LL combine");
}

void fault_check_device(struct fault_rank *r)
{
	uint64_t *words = util_alloc(128 * sizeof(*words));

	for (uint64_t i = 0; i < 64; i++) {
		words[i] = util_hash(i, 0, 0);
	}
	fault_ok(r, device_copy(words + 64, words, 64 * sizeof(*words)));
	fault_check(r, memcmp(words, words + 64, 64 * sizeof(*words)) == 0,
		    "a copy after the failure has other bytes");
	util_free(words);
}
