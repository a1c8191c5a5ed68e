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

void moeep_refusal_write(struct moeep_refusal *own, uint64_t number, int result)
{
	uint64_t times = times_of(moeep_flag_get(&own->word), number) + 1;

	if (times == MOST_TIMES) {
		return;
	}
	own->result = result;
	snprintf(own->text, sizeof(own->text), "%s", moeep_error_detail());
	/* Pairs with moeep_refusal_is_new() of the peers. */
	moeep_flag_publish(&own->word, moeep_flag_word(number, 0) + times);
}

bool moeep_refusal_is_new(const struct moeep_refusal_side *own,
			  const struct moeep_refusal_side *peer)
{
	uint64_t word = moeep_flag_get(&peer->refusal->word);
	uint64_t number = word >> MOEEP_FLAG_COUNT_BITS, call = moeep_flag_word(number, 0);

	return times_of(word, number) > 0 &&
	       !moeep_flag_reached(moeep_flag_get(&own->refusal->word), word) &&
	       !moeep_flag_reached(moeep_flag_get(peer->made), call) &&
	       moeep_flag_reached(moeep_flag_get(own->made), call);
}

void moeep_refusal_explain(const struct moeep_refusal *refusal, int peer, struct moeep_cause *cause)
{
	cause->result = refusal->result;
	cause->peer = peer;
	snprintf(cause->message, sizeof(cause->message), "rank %d refused its call: %.*s", peer,
		 (int)sizeof(refusal->text) - 1, refusal->text);
}
