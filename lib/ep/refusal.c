/* SPDX-License-Identifier: MIT */
/* ep/refusal.c - telling peers of a refused call, and finding theirs. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "core/error.h"
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

/* How often the call of an epoch was refused. */
static uint64_t count(uint64_t word, uint64_t epoch)
{
	uint64_t times = word - moeep_flag_word(epoch, 0);

	return times < MOEEP_REFUSALS ? times : 0;
}

void moeep_refusal_post(struct moeep_buffer *buffer, enum moeep_refusable kind, int result)
{
	struct moeep_refusal *own = &moeep_buffer_words(buffer, buffer->geo.rank)->refusals[kind];
	uint64_t epoch = moeep_refusal_epoch(buffer, kind);
	uint64_t times = count(moeep_flag_get(&own->word), epoch) + 1;

	if (times == MOEEP_REFUSALS) {
		return;
	}
	own->result = result;
	snprintf(own->text, sizeof(own->text), "%s", moeep_error_detail());
	/* Pairs with find() of the peers. */
	moeep_flag_publish(&own->word, moeep_flag_word(epoch, 0) + times);
	moeep_wait_wake_all(buffer->comm);
}

/*
 * A peer that is waited for has not come as far as this rank. So if all ranks are refused the same
 * calls, this one was refused all that the peer was, if not more.
 */
static bool find_one(const struct moeep_buffer *buffer, int peer, enum moeep_refusable kind)
{
	const struct moeep_words *words = moeep_buffer_words(buffer, peer);
	uint64_t own =
		moeep_flag_get(&moeep_buffer_words(buffer, buffer->geo.rank)->refusals[kind].word);
	uint64_t word = moeep_flag_get(&words->refusals[kind].word);
	uint64_t epoch = word >> 24;

	return count(word, epoch) > 0 && !moeep_flag_reached(own, word) &&
	       !moeep_flag_reached(moeep_flag_get(made(words, kind)), moeep_flag_word(epoch, 0));
}

static bool find(const void *buffer_void, int peer, struct moeep_cause *cause)
{
	const struct moeep_buffer *buffer = buffer_void;

	for (int kind = 0; kind < MOEEP_REFUSABLES; kind++) {
		if (find_one(buffer, peer, (enum moeep_refusable)kind)) {
			const struct moeep_refusal *refusal =
				&moeep_buffer_words(buffer, peer)->refusals[kind];

			cause->result = refusal->result;
			cause->peer = peer;
			snprintf(cause->message, sizeof(cause->message),
				 "rank %d refused its call: %.*s", peer,
				 (int)sizeof(refusal->text) - 1, refusal->text);
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
