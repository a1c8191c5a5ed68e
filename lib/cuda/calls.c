/* SPDX-License-Identifier: MIT */
/* cuda/calls.c - counting the calls of GPU ranks, and comparing them. */
#include "config.h"

#include "core/comm.h"
#include "core/refusal.h"
#include "cuda/calls.h"
#include "ep/buffer.h"

static struct moeep_refusal_side side_of(struct moeep_control *control, int calls, int kind)
{
	return (struct moeep_refusal_side){
		.refusal = &control->calls[calls].refusals[kind],
		.made = &control->calls[calls].made[kind],
	};
}

/* One thread at a time calls operations of a buffer. */
void moeep_cuda_call_made(const struct moeep_buffer *buffer, uint32_t kinds)
{
	for (int kind = 0; kind < MOEEP_REFUSABLES; kind++) {
		struct moeep_refusal_side own =
			side_of(moeep_comm_control(buffer->comm), buffer->calls, kind);

		if (kinds & (1u << kind)) {
			moeep_flag_publish(own.made, moeep_flag_word(moeep_refusal_next(&own), 0));
		}
	}
}

void moeep_cuda_call_refused(const struct moeep_buffer *buffer, enum moeep_refusable kind,
			     int result)
{
	struct moeep_refusal_side own =
		side_of(moeep_comm_control(buffer->comm), buffer->calls, (int)kind);

	moeep_refusal_write(&own, result);
}

static bool find_one(const struct moeep_comm *comm, int peer, int calls, struct moeep_cause *cause)
{
	struct moeep_refusal_side own[MOEEP_REFUSABLES], peers[MOEEP_REFUSABLES];

	for (int kind = 0; kind < MOEEP_REFUSABLES; kind++) {
		own[kind] = side_of(moeep_comm_control(comm), calls, kind);
		peers[kind] = side_of(comm->peers[peer].control, calls, kind);
	}
	return moeep_refusal_find(own, peers, peer, cause);
}

bool moeep_cuda_call_find(const struct moeep_comm *comm, struct moeep_cause *cause)
{
	for (int peer = 0; peer < comm->num_ranks; peer++) {
		for (int i = 0; i < MOEEP_CALL_BUFFERS && peer != comm->rank; i++) {
			if (find_one(comm, peer, i, cause)) {
				return true;
			}
		}
	}
	return false;
}
