/* SPDX-License-Identifier: MIT */
/* core/comm.h - the inside of a comm. */
#ifndef MOEEP_CORE_COMM_H
#define MOEEP_CORE_COMM_H

#include <pthread.h>
#include <stdbool.h>

#include <moeep/moeep.h>

#include "core/log.h"
#include "core/nodes.h"
#include "core/settings.h"
#include "core/wait.h"
#include "memory/control.h"
#include "memory/window.h"
#include "topology/host.h"

struct moeep_boot;
struct moeep_cuda;
struct moeep_net;
struct moeep_node;
struct moeep_region;

struct moeep_peer {
	struct moeep_identity id;
	int node;
	int local_rank;
	int host; /* in whose window it is read here: its own, or that of the gate that hears it */
	int mirror;   /* which one of that window's mirrors; -1: the window itself */
	int exchange; /* its number in the exchange of descriptors; -1: not in it */
	moeep_transport_t transport;
	int lifeline; /* read end of the peer's pipe, -1 within the process; end of file: it is gone
		       */
	int process;  /* its process, readable once that has ended; -1: not known */
	struct moeep_control *control; /* another node's: its mirror */
	struct moeep_window *control_window;
};

struct moeep_comm {
	int rank;
	int num_ranks;
	int num_nodes;
	int local_ranks;
	int most_local;		  /* ranks of the largest node */
	int *node_begin;	  /* [num_nodes + 1] see moeep_comm_member() */
	int *node_ranks;	  /* [num_ranks] */
	struct moeep_gate *gates; /* [num_nodes] */
	int num_mirrors;	  /* ranks of other nodes that this one's windows hold mirrors of */
	struct moeep_net *net;	  /* NULL: one node */
	bool emulated;		  /* the network is; all ranks are on one machine */
	uint64_t cache_share;	  /* bytes of cache for each rank of this host */
	struct moeep_settings settings;
	struct moeep_log log;
	struct moeep_boot *boot;
	struct moeep_cuda *cuda; /* NULL with the host backend */
	struct moeep_node
		*local; /* descriptor exchange, mostly between the processes of this host */
	int exchanging; /* ranks that take part in it */
	int lifeline;	/* write end of this rank's pipe, never written to */
	struct moeep_peer *peers; /* [num_ranks] */
	uint64_t barrier_epoch;

	/* The collective call that is under way, by one thread at a time. */
	moeep_op_t collective;
	uint64_t collective_epoch; /* calls begun */
	uint64_t collective_step;  /* exchanges begun in this one */
	uint64_t buffers_begun;	   /* the same on all ranks */

	pthread_mutex_t lock; /* regions and counters below */
	struct moeep_region *regions;
	uint32_t next_region;
	int num_buffers;
	int num_events;
};

static inline struct moeep_control *moeep_comm_control(const struct moeep_comm *comm)
{
	return comm->peers[comm->rank].control;
}

/* Set a flag of this rank's control window, here and in its mirrors; wake whoever waits for it. */
void moeep_comm_publish(struct moeep_comm *comm, moeep_flag_t *flag, uint64_t word);
/* One that is only looked at. */
void moeep_comm_note(struct moeep_comm *comm, moeep_flag_t *flag, uint64_t word);

/*
 * Several nodes: wait until every rank has left, since what they tell each other may pass through
 * this rank's memory. Bounded by the time-out, and not done in a group that has failed.
 */
void moeep_comm_part(struct moeep_comm *comm);

/*
 * Once identities are exchanged. All ranks compute the same: MOEEP_ERR_UNSUPPORTED on all if two
 * cannot reach each other.
 */
int moeep_comm_choose_transports(struct moeep_comm *comm);
void moeep_comm_log_transports(const struct moeep_comm *comm);

/*
 * Begin a collective call on a comm that exists: wait until every rank has. So one that does not
 * come is named like in any other wait, and moeep_comm_abort() ends it.
 */
int moeep_comm_enter(struct moeep_comm *comm, moeep_op_t op);

/*
 * Within a collective call: gather `bytes` bytes of every rank into all[num_ranks][bytes]. If ranks
 * are out of step afterwards, the group has failed.
 */
int moeep_comm_gather(struct moeep_comm *comm, const void *mine, void *all, size_t bytes);

/*
 * Limit of a wait for descriptors within a collective call. It leaves some of the time-out for the
 * agreement on the result, in which those who wait for this rank learn of it.
 */
uint32_t moeep_comm_fds_timeout(const struct moeep_comm *comm);

/*
 * Make one result of every rank's: MOEEP_OK if all succeeded, else on every rank the error of the
 * lowest rank that failed, its detail with the rank in front. Collective.
 */
int moeep_comm_agree(struct moeep_comm *comm, int result);

/*
 * Share windows, of host or of device memory as `mine` is: mine is this rank's;
 * windows[num_ranks] gets one reference to each rank's, its own included. Collective, and agreed:
 * all succeed or all fail. `result` is this rank's so far; if it is a failure mine may be NULL.
 */
int moeep_comm_share(struct moeep_comm *comm, int result, struct moeep_window *mine,
		     struct moeep_window **windows);

/*
 * Give each process on this host an end of a pipe that closes when this rank's process ends or
 * becomes another program, and the process itself as a descriptor: children that the rank has
 * forked keep the pipe open after its end. Kernels before 5.3 have the pipe only. Collective.
 */
int moeep_comm_share_lifelines(struct moeep_comm *comm);

/* MOEEP_OK, or the sticky error with its report as the detail. */
int moeep_comm_check(const struct moeep_comm *comm);

/* Record a failure for the whole group, unless there is one already; returns the group's error. */
int moeep_comm_raise(struct moeep_comm *comm, const struct moeep_cause *cause);

/* If a failure of another node's ranks has been heard, make it this node's. */
void moeep_comm_adopt(struct moeep_comm *comm);
/* The same, and of what was told over the rendezvous. Slow path of waits. */
void moeep_comm_hear(struct moeep_comm *comm);

/*
 * Look whether any peer is gone; one that has left in order counts only if it is waited for.
 * Returns the one that is waited for rather than another, and -1 for none. Slow path of waits.
 */
int moeep_comm_find_lost(struct moeep_comm *comm, int waited_for, bool *left);

#endif
