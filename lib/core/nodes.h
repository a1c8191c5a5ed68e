/* SPDX-License-Identifier: MIT */
/*
 * core/nodes.h - which ranks share a host, and by whom ranks of other hosts are heard.
 *
 * What a rank tells the ranks of another node it writes once, into the window of one of them, its
 * gate there: a copy of what its own window says, a mirror. All ranks of that node map the gate's
 * window, so they read the mirror as they would read the rank's window itself.
 */
#ifndef MOEEP_CORE_NODES_H
#define MOEEP_CORE_NODES_H

#include <stdbool.h>

struct moeep_comm;

/* A node, as this rank speaks to it. */
struct moeep_gate {
	int rank;   /* whose window holds this rank's mirror; -1: this rank's own node */
	int mirror; /* which one of that window's mirrors it is */
};

/* From the identities of all ranks, and so the same on all of them. */
int moeep_comm_assign_nodes(struct moeep_comm *comm);
void moeep_comm_free_nodes(struct moeep_comm *comm);

/* The rank of `node` that hears `rank`, which is of another node. */
int moeep_comm_gate_of(const struct moeep_comm *comm, int rank, int node);

/* Rank number `index` of a node, ascending, and how many it has. */
int moeep_comm_member(const struct moeep_comm *comm, int node, int index);
int moeep_comm_members(const struct moeep_comm *comm, int node);

bool moeep_comm_is_local(const struct moeep_comm *comm, int rank);

#endif
