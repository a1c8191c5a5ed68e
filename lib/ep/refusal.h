/* SPDX-License-Identifier: MIT */
/*
 * ep/refusal.h - a call that one rank's library refuses, while its peers make it and wait.
 *
 * The rank says so in its window, by kind and epoch of the call, with the cause. A peer that waits
 * for it, has made that call, and was not refused it as often itself, ends the group with that
 * cause. A call that all ranks are refused has changed nothing, and the group goes on; so does one
 * whose rank makes the call before a peer has looked.
 */
#ifndef MOEEP_EP_REFUSAL_H
#define MOEEP_EP_REFUSAL_H

#include "core/wait.h"
#include "ep/buffer.h"

/* The epoch that the rank's next call of this kind has. */
uint64_t moeep_refusal_epoch(const struct moeep_buffer *buffer, enum moeep_refusable kind);

/* That call is refused with this result and the thread's moeep_error_detail(). */
void moeep_refusal_post(struct moeep_buffer *buffer, enum moeep_refusable kind, int result);

/* In this wait, too, refusals of the rank that is waited for are looked for. */
void moeep_refusal_watch(struct moeep_wait *wait, const struct moeep_buffer *buffer);

#endif
