/* SPDX-License-Identifier: MIT */
/*
 * net/net.h - requests to ranks of other nodes: puts and signals on windows that both sides know.
 *
 * A comm with several nodes has one. Each gate of this rank (core/nodes.h) has a channel: a queue
 * of requests, and a way to that rank which keeps their order. Threads of the comm, the proxies,
 * take requests from the queues and hand them to the network; each channel belongs to one of them.
 */
#ifndef MOEEP_NET_NET_H
#define MOEEP_NET_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct moeep_comm;
struct moeep_net;
struct moeep_window;

/*
 * Open ways to all gates and from all ranks that this one is a gate of. Collective, and agreed.
 * Needs the transports; the windows are opened after it.
 */
int moeep_net_open(struct moeep_comm *comm);

/* Start the proxies. Once the window with the number 0, that of the control words, is there. */
int moeep_net_start(struct moeep_net *net);

/* Stop the proxies and close all ways. The comm's windows must outlive it. NULL is a no-op. */
void moeep_net_close(struct moeep_net *net);

/*
 * Make windows known to the network under a number, the same on all ranks. mine: this rank's;
 * windows: those of all ranks as moeep_comm_share() gave them. The net keeps references until all
 * ranks have ended the window, since peers may still write to it. Collective, and agreed.
 */
int moeep_net_add_window(struct moeep_comm *comm, struct moeep_window **windows, uint32_t *number);

/* This rank will not use it any more. Local. */
void moeep_net_end_window(struct moeep_net *net, uint32_t number);

/*
 * Queue a request to the gate of a node; offsets count from the start of each side's window. It is
 * ordered behind those that the caller queued to that node before. The memory at `local` must stay
 * as it is until the peer has said that it has seen what followed. Blocks only while the queue is
 * full, and then no longer than the comm is sound.
 */
void moeep_net_put(struct moeep_net *net, int node, uint32_t window, uint64_t local,
		   uint64_t remote, uint64_t bytes);
void moeep_net_signal(struct moeep_net *net, int node, uint32_t window, uint64_t remote,
		      uint64_t value, uint64_t delta);

/* Tell the other nodes of the failure that stands in this rank's control window. Never blocks. */
void moeep_net_tell_cause(struct moeep_net *net);

/* Wait until all that was queued so far is complete, at most that long; false if it is not. */
bool moeep_net_flush(struct moeep_net *net, uint32_t timeout_ms);

/* How often waits for words that the network writes have to look, in ns; 0: the doorbell rings. */
uint64_t moeep_net_poll_ns(const struct moeep_net *net);

/* What went to the gate of a node since the comm was created. */
struct moeep_net_count {
	uint64_t requests;
	uint64_t bytes;
};

struct moeep_net_count moeep_net_counted(const struct moeep_net *net, int node);

/* "emulated", or the device. */
const char *moeep_net_name(const struct moeep_net *net);

#endif
