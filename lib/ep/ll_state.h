/* SPDX-License-Identifier: MIT */
/* ep/ll_state.h - which low-latency phases may come next; the same for every backend. */
#ifndef MOEEP_EP_LL_STATE_H
#define MOEEP_EP_LL_STATE_H

#include "ep/buffer.h"

#define MOEEP_LL_SEND 1
#define MOEEP_LL_RECV 2

/* The phases, an OR of the above, that a call has. */
int moeep_ll_phases(int32_t phase);

/*
 * May these phases be called? Asked before any of them does anything: a SEND cannot be taken back.
 * The order is that of calls, and holds for a captured stream as well.
 */
int moeep_ll_check_dispatch(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			    int phases);
int moeep_ll_check_combine(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
			   int phases);

/* A phase has been called: of a SEND the operation has its epoch from here on. */
void moeep_ll_note_dispatch_send(struct moeep_buffer *buffer, struct moeep_handle *handle,
				 const moeep_ll_dispatch_args_t *args);
void moeep_ll_note_dispatch_recv(struct moeep_buffer *buffer, struct moeep_handle *handle,
				 const moeep_ll_dispatch_args_t *args);
void moeep_ll_note_combine_send(struct moeep_buffer *buffer, struct moeep_handle *handle,
				const moeep_ll_combine_args_t *args);
void moeep_ll_note_combine_recv(struct moeep_buffer *buffer, struct moeep_handle *handle);

#endif
