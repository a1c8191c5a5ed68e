/* SPDX-License-Identifier: MIT */
/* core/nodes.c - which ranks share a host, and by whom ranks of other hosts are heard. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "core/comm.h"
#include "core/error.h"

/* MOEEP_HYBRID=off on any rank: nobody shares memory, each rank is a node of its own. */
static bool shares_memory(const struct moeep_comm *comm)
{
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		if (comm->peers[rank].id.hybrid_off) {
			return false;
		}
	}
	return true;
}

/* Nodes are numbered by their lowest ranks. */
static void number_nodes(struct moeep_comm *comm, bool shared)
{
	comm->num_nodes = 0;
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		struct moeep_peer *peer = &comm->peers[rank];

		peer->node = comm->num_nodes;
		peer->local_rank = 0;
		for (int before = 0; before < rank && shared; before++) {
			if (strcmp(peer->id.host_id, comm->peers[before].id.host_id) == 0) {
				peer->node = comm->peers[before].node;
				peer->local_rank++;
			}
		}
		comm->num_nodes += peer->node == comm->num_nodes;
	}
}

static void list_members(struct moeep_comm *comm)
{
	int at = 0;

	for (int node = 0; node < comm->num_nodes; node++) {
		comm->node_begin[node] = at;
		for (int rank = 0; rank < comm->num_ranks; rank++) {
			if (comm->peers[rank].node == node) {
				comm->node_ranks[at++] = rank;
			}
		}
		if (at - comm->node_begin[node] > comm->most_local) {
			comm->most_local = at - comm->node_begin[node];
		}
	}
	comm->node_begin[comm->num_nodes] = at;
}

int moeep_comm_member(const struct moeep_comm *comm, int node, int index)
{
	return comm->node_ranks[comm->node_begin[node] + index];
}

int moeep_comm_members(const struct moeep_comm *comm, int node)
{
	return comm->node_begin[node + 1] - comm->node_begin[node];
}

int moeep_comm_gate_of(const struct moeep_comm *comm, int rank, int node)
{
	/* The same number on its node, if that node has so many: its NIC is on the same rail. */
	return moeep_comm_member(comm, node,
				 comm->peers[rank].local_rank % moeep_comm_members(comm, node));
}

bool moeep_comm_is_local(const struct moeep_comm *comm, int rank)
{
	return comm->peers[rank].node == comm->peers[comm->rank].node;
}

/* How many lower ranks of other nodes are heard by the same gate. */
static int mirror_of(const struct moeep_comm *comm, int rank, int node)
{
	int gate = moeep_comm_gate_of(comm, rank, node);
	int count = 0;

	for (int before = 0; before < rank; before++) {
		count += comm->peers[before].node != node &&
			 moeep_comm_gate_of(comm, before, node) == gate;
	}
	return count;
}

int moeep_comm_assign_nodes(struct moeep_comm *comm)
{
	int own;

	number_nodes(comm, shares_memory(comm));
	own = comm->peers[comm->rank].node;
	comm->node_begin = calloc((size_t)comm->num_nodes + 1, sizeof(*comm->node_begin));
	comm->node_ranks = calloc((size_t)comm->num_ranks, sizeof(*comm->node_ranks));
	comm->gates = calloc((size_t)comm->num_nodes, sizeof(*comm->gates));
	if (!comm->node_begin || !comm->node_ranks || !comm->gates) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d nodes", comm->num_nodes);
	}
	list_members(comm);
	comm->local_ranks = moeep_comm_members(comm, own);
	for (int node = 0; node < comm->num_nodes; node++) {
		comm->gates[node].rank = -1;
		if (node != own) {
			comm->gates[node].rank = moeep_comm_gate_of(comm, comm->rank, node);
			comm->gates[node].mirror = mirror_of(comm, comm->rank, node);
		}
	}
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		struct moeep_peer *peer = &comm->peers[rank];

		peer->host = rank;
		peer->mirror = -1;
		if (peer->node != own) {
			peer->host = moeep_comm_gate_of(comm, rank, own);
			peer->mirror = mirror_of(comm, rank, own);
			comm->num_mirrors += peer->host == comm->rank;
		}
	}
	return MOEEP_OK;
}

void moeep_comm_free_nodes(struct moeep_comm *comm)
{
	free(comm->node_begin);
	free(comm->node_ranks);
	free(comm->gates);
}
