/* SPDX-License-Identifier: MIT */
/* ep/refusal.c - telling peers of a refused call, and finding theirs. */
#include "config.h"

#include <stddef.h>

#include "core/refusal.h"
#include "ep/publish.h"
#include "ep/refusal.h"

/* What a rank publishes when it makes a call of each kind; its epoch is the call's. */
static const size_t made[MOEEP_REFUSABLES] = {
	[MOEEP_REFUSABLE_HT] = offsetof(struct moeep_words, ht_entry),
	[MOEEP_REFUSABLE_LL_SEND] = offsetof(struct moeep_words, ll_sent),
	[MOEEP_REFUSABLE_LL_RECV] = offsetof(struct moeep_words, ll_received),
	[MOEEP_REFUSABLE_LL_CSEND] = offsetof(struct moeep_words, ll_csent),
	[MOEEP_REFUSABLE_LL_CRECV] = offsetof(struct moeep_words, ll_creceived),
};

static struct moeep_refusal_side side_of(const struct moeep_buffer *buffer, int rank, int kind)
{
	struct moeep_words *words = moeep_buffer_words(buffer, rank);

	return (struct moeep_refusal_side){
		.refusal = &words->refusals[kind],
		.made = &((struct moeep_flag_line *)((char *)words + made[kind]))->word,
	};
}

uint64_t moeep_refusal_epoch(const struct moeep_buffer *buffer, enum moeep_refusable kind)
{
	struct moeep_refusal_side own = side_of(buffer, buffer->geo.rank, (int)kind);

	return moeep_refusal_next(&own);
}

void moeep_refusal_post(struct moeep_buffer *buffer, enum moeep_refusable kind, int result)
{
	struct moeep_refusal_side own = side_of(buffer, buffer->geo.rank, (int)kind);

	uint64_t before = moeep_flag_get(&own.refusal->word);

	moeep_refusal_write(&own, result);
	moeep_wait_wake_all(buffer->comm);
	/* Its word goes with a second request, behind what it speaks of. */
	moeep_send_to_nodes(buffer, &own.refusal->result,
			    sizeof(*own.refusal) - offsetof(struct moeep_refusal, result));
	moeep_republish(buffer, &own.refusal->word, before);
}

/*
 * A peer that is waited for has not come as far as this rank. So if all ranks are refused the same
 * calls, this one was refused all that the peer was, if not more.
 */
static bool find(const void *buffer_void, int peer, struct moeep_cause *cause)
{
	const struct moeep_buffer *buffer = buffer_void;
	struct moeep_refusal_side own[MOEEP_REFUSABLES], peers[MOEEP_REFUSABLES];

	for (int kind = 0; kind < MOEEP_REFUSABLES; kind++) {
		own[kind] = side_of(buffer, buffer->geo.rank, kind);
		peers[kind] = side_of(buffer, peer, kind);
	}
	return moeep_refusal_find(own, peers, peer, cause);
}

void moeep_refusal_watch(struct moeep_wait *wait, const struct moeep_buffer *buffer)
{
	wait->refused = find;
	wait->buffer = buffer;
}
