/* SPDX-License-Identifier: MIT */
/* ep/refusal.c - telling peers of a refused call, and finding theirs. */
#include "config.h"

#include "core/refusal.h"
#include "ep/refusal.h"

uint64_t moeep_refusal_epoch(const struct moeep_buffer *buffer, enum moeep_refusable kind)
{
	uint64_t last = 0;

	switch (kind) {
	case MOEEP_REFUSABLE_HT:
		last = atomic_load_explicit(&buffer->ht_epoch, memory_order_relaxed);
		break;
	case MOEEP_REFUSABLE_LL_SEND:
		last = atomic_load_explicit(&buffer->ll_epoch, memory_order_relaxed);
		break;
	case MOEEP_REFUSABLE_LL_RECV:
		last = buffer->ll_recv_epoch;
		break;
	case MOEEP_REFUSABLE_LL_CSEND:
		last = buffer->ll_cepoch;
		break;
	case MOEEP_REFUSABLE_LL_CRECV:
		last = buffer->ll_crecv_epoch;
		break;
	case MOEEP_REFUSABLES:
		break;
	}
	return (last + 1) & MOEEP_EPOCH_MASK;
}

/* What a rank publishes when it makes a call of that kind. */
static const moeep_flag_t *made(const struct moeep_words *words, enum moeep_refusable kind)
{
	switch (kind) {
	case MOEEP_REFUSABLE_LL_SEND:
		return &words->ll_sent.word;
	case MOEEP_REFUSABLE_LL_RECV:
		return &words->ll_received.word;
	case MOEEP_REFUSABLE_LL_CSEND:
		return &words->ll_csent.word;
	case MOEEP_REFUSABLE_LL_CRECV:
		return &words->ll_creceived.word;
	default:
		return &words->ht_entry.word;
	}
}

void moeep_refusal_post(struct moeep_buffer *buffer, enum moeep_refusable kind, int result)
{
	struct moeep_words *words = moeep_buffer_words(buffer, buffer->geo.rank);

	moeep_refusal_write(&words->refusals[kind], moeep_refusal_epoch(buffer, kind), result);
	moeep_wait_wake_all(buffer->comm);
}

/*
 * A peer that is waited for has not come as far as this rank. So if all ranks are refused the same
 * calls, this one was refused all that the peer was, if not more.
 */
static bool find(const void *buffer_void, int peer, struct moeep_cause *cause)
{
	const struct moeep_buffer *buffer = buffer_void;
	const struct moeep_words *own = moeep_buffer_words(buffer, buffer->geo.rank);
	const struct moeep_words *words = moeep_buffer_words(buffer, peer);

	for (int i = 0; i < MOEEP_REFUSABLES; i++) {
		enum moeep_refusable kind = (enum moeep_refusable)i;
		struct moeep_refusal_side mine = {&own->refusals[i], made(own, kind)};
		struct moeep_refusal_side theirs = {&words->refusals[i], made(words, kind)};

		if (moeep_refusal_is_new(&mine, &theirs)) {
			moeep_refusal_explain(theirs.refusal, peer, cause);
			return true;
		}
	}
	return false;
}

void moeep_refusal_watch(struct moeep_wait *wait, const struct moeep_buffer *buffer)
{
	wait->refused = find;
	wait->buffer = buffer;
}
