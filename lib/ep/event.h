/* SPDX-License-Identifier: MIT */
/* ep/event.h - events inside the library. */
#ifndef MOEEP_EP_EVENT_H
#define MOEEP_EP_EVENT_H

#include <moeep/moeep.h>

struct moeep_comm;

/* Make it pending; MOEEP_ERR_STATE if it already is. */
int moeep_event_begin(struct moeep_event *event);

/* Complete it with a result; the calling thread's detail goes with a failure. */
void moeep_event_complete(struct moeep_event *event, int result);

/* Wait for it without a limit but the comm's failure. */
int moeep_event_await(struct moeep_event *event, const struct moeep_comm *comm);

#endif
