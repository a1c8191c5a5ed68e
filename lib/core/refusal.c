/* SPDX-License-Identifier: MIT */
/* core/refusal.c - refused calls, as words in shared memory. */
#include "config.h"

#include <stdio.h>

#include <moeep/moeep.h>

#include "core/refusal.h"

/* As often is counted; nobody does it on purpose. */
#define MOST_TIMES 1000000u

static uint64_t times_of(uint64_t word, uint64_t number)
{
	uint64_t times = word - moeep_flag_word(number, 0);

	return times < MOST_TIMES ? times : 0;
}

uint64_t moeep_refusal_next(const struct moeep_refusal_side *own)
{
	return ((moeep_flag_get(own->made) >> MOEEP_FLAG_COUNT_BITS) + 1) & MOEEP_EPOCH_MASK;
}

void moeep_refusal_write(const struct moeep_refusal_side *own, int result)
{
	struct moeep_refusal *refusal = own->refusal;
	uint64_t number = moeep_refusal_next(own);
	uint64_t times = times_of(moeep_flag_get(&refusal->word), number) + 1;

	if (times == MOST_TIMES) {
		return;
	}
	refusal->result = result;
	snprintf(refusal->text, sizeof(refusal->text), "%s", moeep_error_detail());
	/* Pairs with is_new() of the peers. */
	moeep_flag_publish(&refusal->word, moeep_flag_word(number, 0) + times);
}

static bool is_new(const struct moeep_refusal_side *own, const struct moeep_refusal_side *peer)
{
	uint64_t word = moeep_flag_get(&peer->refusal->word);
	uint64_t number = word >> MOEEP_FLAG_COUNT_BITS, call = moeep_flag_word(number, 0);

	return times_of(word, number) > 0 &&
	       !moeep_flag_reached(moeep_flag_get(&own->refusal->word), word) &&
	       !moeep_flag_reached(moeep_flag_get(peer->made), call) &&
	       moeep_flag_reached(moeep_flag_get(own->made), call);
}

bool moeep_refusal_find(const struct moeep_refusal_side own[MOEEP_REFUSABLES],
			const struct moeep_refusal_side peers[MOEEP_REFUSABLES], int peer,
			struct moeep_cause *cause)
{
	for (int kind = 0; kind < MOEEP_REFUSABLES; kind++) {
		const struct moeep_refusal *refusal = peers[kind].refusal;

		if (is_new(&own[kind], &peers[kind])) {
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
