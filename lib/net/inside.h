/* SPDX-License-Identifier: MIT */
/* net/inside.h - the inside of a net, for its proxies and the kinds of network. */
#ifndef MOEEP_NET_INSIDE_H
#define MOEEP_NET_INSIDE_H

#include <pthread.h>

#include "core/comm.h"
#include "net/fifo.h"
#include "net/net.h"

/* Requests of a queue. */
#define MOEEP_NET_QUEUE 512

/* How far a channel is with telling the group's failure. */
enum moeep_telling { MOEEP_TELL_NOTHING, MOEEP_TELL_CAUSE, MOEEP_TELL_STATE, MOEEP_TOLD };

struct moeep_channel {
	struct moeep_net *net;
	int node;
	int rank; /* the gate */
	struct moeep_fifo fifo;
	void *way; /* of the network */
	/* Written by the proxy. */
	_Atomic uint64_t posted;	    /* requests handed to the network, or given up */
	_Atomic int telling;		    /* enum moeep_telling */
	_Alignas(64) _Atomic uint64_t done; /* requests complete, or given up */
	_Atomic uint64_t requests;
	_Atomic uint64_t bytes;
	_Atomic bool broken; /* it failed: requests are dropped */
};

struct moeep_proxy {
	struct moeep_net *net;
	int index;
	pthread_t thread;
	bool running;
	_Alignas(64) _Atomic uint32_t bell; /* rung for each request */
	_Atomic uint32_t sleeping;
	_Atomic bool stop;
};

/* A window as the network sees it. */
struct moeep_net_window {
	struct moeep_window *mine;
	struct moeep_window **windows; /* [num_ranks] a reference each, or NULL */
	void *way;		       /* of the network */
	bool ended;		       /* by this rank */
};

/* A kind of network. */
struct moeep_network_ops {
	const char *name;
	uint64_t poll_ns;
	/* This rank's part of what gates are told; collective calls may be made. */
	int (*open)(struct moeep_net *net);
	void (*close)(struct moeep_net *net);
	int (*add_window)(struct moeep_net *net, struct moeep_net_window *window, int result);
	void (*remove_window)(struct moeep_net *net, struct moeep_net_window *window);
	/* Of the channel's proxy. Hand over a request: false if there is no room just now. */
	bool (*post)(struct moeep_channel *channel, const struct moeep_request *request);
	/* Let things go on; returns how many requests became complete, or a negative result with
	 * its detail. */
	int (*poll)(struct moeep_channel *channel);
};

struct moeep_net {
	struct moeep_comm *comm;
	const struct moeep_network_ops *ops;
	void *state; /* of the network */
	char name[64];
	struct moeep_channel *channels; /* [num_nodes]; own node: unused */
	struct moeep_proxy *proxies;	/* [num_proxies] */
	int num_proxies;
	_Atomic bool telling;		   /* the group has failed here first: tell the gates */
	struct moeep_net_window **windows; /* [num_windows]; NULL: gone */
	uint32_t num_windows;
};

extern const struct moeep_network_ops moeep_emulated_ops;

/* proxy.c */
int moeep_proxies_start(struct moeep_net *net);
void moeep_proxies_stop(struct moeep_net *net);
void moeep_proxy_ring(struct moeep_proxy *proxy);

static inline struct moeep_proxy *moeep_channel_proxy(struct moeep_net *net, int node)
{
	return &net->proxies[node % net->num_proxies];
}

/* This rank's part of a window, at an offset. */
static inline char *moeep_net_local(struct moeep_net *net, uint32_t window, uint64_t offset)
{
	return (char *)net->windows[window]->mine->base + offset;
}

#endif
