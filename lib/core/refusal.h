/* SPDX-License-Identifier: MIT */
/*
 * core/refusal.h - words by which a rank tells that its library has refused a call.
 *
 * A word is a flag: the number of the call, and how often it was refused. Its writer is the rank in
 * whose memory it lies.
 */
#ifndef MOEEP_CORE_REFUSAL_H
#define MOEEP_CORE_REFUSAL_H

#include <stdbool.h>

#include "core/wait.h"
#include "memory/control.h"

/* One kind of calls of a rank: its refusal, and a flag of the last one that it has made. */
struct moeep_refusal_side {
	struct moeep_refusal *refusal;
	moeep_flag_t *made;
};

/* The number of the next call. */
uint64_t moeep_refusal_next(const struct moeep_refusal_side *own);

/* That call is refused, with this result and the thread's moeep_error_detail(). */
void moeep_refusal_write(const struct moeep_refusal_side *own, int result);

/*
 * Of sides of all kinds: was a peer refused a call that it has not made since, and that this rank
 * has made, and was not refused as often? The cause of the group's failure, then.
 */
bool moeep_refusal_find(const struct moeep_refusal_side own[MOEEP_REFUSABLES],
			const struct moeep_refusal_side peers[MOEEP_REFUSABLES], int peer,
			struct moeep_cause *cause);

#endif
