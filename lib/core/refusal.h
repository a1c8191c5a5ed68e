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

/* The call of that number is refused, with this result and the thread's moeep_error_detail(). */
void moeep_refusal_write(struct moeep_refusal *own, uint64_t number, int result);

/* One kind of calls of a rank: its refusal, and a flag of the last one that it has made. */
struct moeep_refusal_side {
	const struct moeep_refusal *refusal;
	const moeep_flag_t *made;
};

/*
 * Was a peer refused a call that it has not made since, and that this rank has made, and was not
 * refused as often?
 */
bool moeep_refusal_is_new(const struct moeep_refusal_side *own,
			  const struct moeep_refusal_side *peer);

/* As the cause of the group's failure. */
void moeep_refusal_explain(const struct moeep_refusal *refusal, int peer,
			   struct moeep_cause *cause);

#endif
