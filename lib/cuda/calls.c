/* SPDX-License-Identifier: MIT */
/* cuda/calls.c - counting the calls of GPU ranks, and comparing them. */
#include "config.h"

#include "core/comm.h"
#include "core/refusal.h"
#include "cuda/calls.h"
#include "ep/buffer.h"

static struct moeep_calls *own_calls(const struct moeep_buffer *buffer)
{
	return &moeep_comm_control(buffer->comm)->calls[buffer->calls];
}

/* One thread at a time calls operations of a buffer. */
static uint64_t next(const struct moeep_calls *calls, int kind)
{
	return (moeep_flag_get(&calls->made[kind]) >> MOEEP_FLAG_COUNT_BITS) + 1;
}

void moeep_cuda_call_made(const struct moeep_buffer *buffer, uint32_t kinds)
{
	struct moeep_calls *calls = own_calls(buffer);

	for (int kind = 0; kind < MOEEP_REFUSABLES; kind++) {
		if (kinds & (1u << kind)) {
			moeep_flag_publish(&calls->made[kind],
					   moeep_flag_word(next(calls, kind), 0));
		}
	}
}

void moeep_cuda_call_refused(const struct moeep_buffer *buffer, enum moeep_refusable kind,
			     int result)
{
	struct moeep_calls *calls = own_calls(buffer);

	moeep_refusal_write(&calls->refusals[kind], next(calls, (int)kind), result);
}

static bool find_one(const struct moeep_calls *own, const struct moeep_calls *peers, int peer,
		     struct moeep_cause *cause)
{
	for (int kind = 0; kind < MOEEP_REFUSABLES; kind++) {
		struct moeep_refusal_side mine = {&own->refusals[kind], &own->made[kind]};
		struct moeep_refusal_side theirs = {&peers->refusals[kind], &peers->made[kind]};

		if (moeep_refusal_is_new(&mine, &theirs)) {
			moeep_refusal_explain(theirs.refusal, peer, cause);
			return true;
		}
	}
	return false;
}

bool moeep_cuda_call_find(const struct moeep_comm *comm, struct moeep_cause *cause)
{
	const struct moeep_control *own = moeep_comm_control(comm);

	for (int peer = 0; peer < comm->num_ranks; peer++) {
		const struct moeep_control *control = comm->peers[peer].control;

		for (int i = 0; i < MOEEP_CALL_BUFFERS && peer != comm->rank; i++) {
			if (find_one(&own->calls[i], &control->calls[i], peer, cause)) {
				return true;
			}
		}
	}
	return false;
}
