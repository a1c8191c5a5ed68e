/* SPDX-License-Identifier: MIT */
/* core/transport.c - by which way a rank reaches each peer, and what the log says of it. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "core/comm.h"
#include "core/error.h"
#include "core/rank_list.h"

/* Rank 0 and this one are of different nodes: how can they reach each other? */
static int check_hosts(const struct moeep_comm *comm, int rank)
{
	const struct moeep_identity *a = &comm->peers[0].id, *b = &comm->peers[rank].id;

	if (a->transport != b->transport) {
		return moeep_fail(MOEEP_ERR_MISMATCH, "MOEEP_TRANSPORT differs on ranks 0 and %d",
				  rank);
	}
	if (comm->cuda) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "ranks 0 and %d are on different hosts (%s and %s); this release "
				  "joins the GPUs of one host only",
				  rank, a->host_name, b->host_name);
	}
	if (a->transport != MOEEP_NETWORK_EMULATED) {
		return moeep_fail(
			MOEEP_ERR_UNSUPPORTED,
			"ranks 0 and %d are on different hosts (%s and %s); this release has no "
			"RDMA transport yet (MOEEP_TRANSPORT=emulated joins \"hosts\" of one "
			"machine)",
			rank, a->host_name, b->host_name);
	}
	if (!moeep_identity_same_machine(a, b)) {
		return moeep_fail(
			MOEEP_ERR_UNSUPPORTED,
			"MOEEP_TRANSPORT is emulated, but ranks 0 and %d are on different "
			"machines (%s and %s)",
			rank, a->host_name, b->host_name);
	}
	return MOEEP_OK;
}

int moeep_comm_choose_transports(struct moeep_comm *comm)
{
	const struct moeep_peer *self = &comm->peers[comm->rank];
	int rc;

	comm->emulated = comm->num_nodes > 1;
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		struct moeep_peer *peer = &comm->peers[rank];

		if (peer->node != comm->peers[0].node) {
			rc = check_hosts(comm, rank);
			if (rc != MOEEP_OK) {
				return rc;
			}
		}
		if (moeep_identity_same_machine(&peer->id, &comm->peers[0].id) &&
		    peer->id.net_namespace != 0 && comm->peers[0].id.net_namespace != 0 &&
		    peer->id.net_namespace != comm->peers[0].id.net_namespace) {
			return moeep_fail(
				MOEEP_ERR_UNSUPPORTED,
				"ranks 0 and %d run on one machine but not in one network "
				"namespace, so they cannot pass memory to each other; containers "
				"share it by the host's network",
				rank);
		}
		if (!moeep_comm_is_local(comm, rank)) {
			peer->transport = MOEEP_TRANSPORT_PROXY;
		} else if (rank == comm->rank) {
			peer->transport = MOEEP_TRANSPORT_SELF;
		} else if (moeep_identity_same_process(&self->id, &peer->id)) {
			peer->transport = MOEEP_TRANSPORT_PROCESS;
		} else {
			peer->transport = comm->cuda ? MOEEP_TRANSPORT_CUDA : MOEEP_TRANSPORT_SHM;
		}
	}
	return MOEEP_OK;
}

/* Which peers are reached so? */
struct by {
	const struct moeep_comm *comm;
	moeep_transport_t transport;
};

static bool is_reached_by(const void *context, int rank)
{
	const struct by *by = context;

	return by->comm->peers[rank].transport == by->transport;
}

/* A line for each way that is taken: to whom, and why not by a better one. */
void moeep_comm_log_transports(const struct moeep_comm *comm)
{
	static const struct {
		moeep_transport_t transport;
		const char *cause;
	} ways[] = {
		{MOEEP_TRANSPORT_PROCESS, "by plain pointers: threads of this process"},
		{MOEEP_TRANSPORT_SHM, "by shared memory: other processes of this host, and not "
				      "by a GPU, as this is the host backend"},
		{MOEEP_TRANSPORT_PROXY, "by an emulated network: they count as other hosts"},
		{MOEEP_TRANSPORT_CUDA, "by mapped device memory: other processes of this host, "
				       "whose GPU this one reaches"},
	};
	char peers[160];

	moeep_log(&comm->log, MOEEP_LOG_INFO, "rank %d of %d, %d on this host, %s backend",
		  comm->rank, comm->num_ranks, comm->local_ranks,
		  comm->settings.backend == MOEEP_BACKEND_CUDA ? "CUDA" : "host");
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		const struct by by = {comm, ways[i].transport};

		if (moeep_list_ranks(comm->num_ranks, is_reached_by, &by, peers, sizeof(peers)) >
		    0) {
			moeep_log(&comm->log, MOEEP_LOG_INFO, "%s: %s", peers, ways[i].cause);
		}
	}
}
