/* SPDX-License-Identifier: MIT */
/* core/query.c - what a comm tells of itself and its peers; the barrier. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/device.h"
#include "memory/region.h"
#include "net/net.h"

int moeep_comm_query(const moeep_comm_t *comm_const, moeep_comm_info_t *info)
{
	struct moeep_comm *comm = (struct moeep_comm *)comm_const;
	moeep_comm_info_t own = {.size = sizeof(own)};
	const struct moeep_peer *self;

	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	self = &comm->peers[comm->rank];
	own.rank = comm->rank;
	own.num_ranks = comm->num_ranks;
	own.node = self->node;
	own.num_nodes = comm->num_nodes;
	own.local_rank = self->local_rank;
	own.local_ranks = comm->local_ranks;
	own.root_rank = comm->rank;
	for (int rank = comm->num_ranks - 1; rank >= 0; rank--) {
		if (comm->peers[rank].local_rank == self->local_rank) {
			own.root_rank = rank;
		}
	}
	own.backend = comm->settings.backend;
	own.device = comm->cuda ? comm->cuda->context->device : -1;
	own.timeout_ms = comm->settings.timeout_ms;
	own.control_bytes = comm->peers[comm->rank].control_window->bytes;
	own.symmetric_bytes = moeep_region_bytes(comm);
	pthread_mutex_lock(&comm->lock);
	own.num_buffers = comm->num_buffers;
	pthread_mutex_unlock(&comm->lock);
	return moeep_struct_out("info", info, &own, sizeof(own));
}

int moeep_comm_query_peer(const moeep_comm_t *comm, int rank, moeep_peer_info_t *info)
{
	moeep_peer_info_t own = {.size = sizeof(own)};
	const struct moeep_peer *peer;

	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	if (rank < 0 || rank >= comm->num_ranks) {
		return moeep_fail(MOEEP_ERR_INVALID, "peer is %d, not 0 to %d", rank,
				  comm->num_ranks - 1);
	}
	peer = &comm->peers[rank];
	own.rank = rank;
	own.node = peer->node;
	own.local_rank = peer->local_rank;
	own.transport = peer->transport;
	own.pid = peer->id.pid;
	if (comm->net && comm->gates[peer->node].rank == rank) {
		struct moeep_net_count count = moeep_net_counted(comm->net, peer->node);

		own.network_requests = count.requests;
		own.network_bytes = count.bytes;
	}
	memcpy(own.host, peer->id.host_name, sizeof(own.host));
	switch (peer->transport) {
	case MOEEP_TRANSPORT_SELF:
		snprintf(own.reason, sizeof(own.reason), "this rank");
		break;
	case MOEEP_TRANSPORT_PROCESS:
		snprintf(own.reason, sizeof(own.reason), "a thread of this process");
		break;
	case MOEEP_TRANSPORT_CUDA:
		snprintf(own.reason, sizeof(own.reason),
			 "same host (id %.40s), another process: its device memory is mapped here",
			 peer->id.host_id);
		break;
	case MOEEP_TRANSPORT_PROXY:
		snprintf(own.reason, sizeof(own.reason),
			 "another host (id %.40s), by the network \"%.40s\"; rank %d there hears "
			 "this one",
			 peer->id.host_id, moeep_net_name(comm->net), comm->gates[peer->node].rank);
		break;
	default:
		snprintf(own.reason, sizeof(own.reason),
			 "same host (id %.40s), another process: its ordinary memory is not "
			 "reachable",
			 peer->id.host_id);
		break;
	}
	return moeep_struct_out("info", info, &own, sizeof(own));
}

struct barrier_wait {
	struct moeep_comm *comm;
	uint64_t expected;
	int next; /* ranks before it have come */
};

static bool barrier_ready(void *arg, struct moeep_pending *pending)
{
	struct barrier_wait *b = arg;

	for (; b->next < b->comm->num_ranks; b->next++) {
		uint64_t seen = moeep_flag_get(&b->comm->peers[b->next].control->barrier);

		if (!moeep_flag_reached(seen, b->expected)) {
			pending->peer = b->next;
			pending->expected = b->expected;
			pending->seen = seen;
			pending->what = "the barrier call";
			return false;
		}
	}
	return true;
}

int moeep_comm_barrier(moeep_comm_t *comm)
{
	struct barrier_wait arg = {.comm = comm};
	struct moeep_wait wait;
	int rc;

	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	rc = moeep_comm_check(comm);
	if (rc != MOEEP_OK) {
		return rc;
	}
	comm->barrier_epoch++;
	arg.expected = moeep_flag_word(comm->barrier_epoch, 0);
	moeep_wait_begin(&wait, comm, MOEEP_OP_BARRIER, comm->barrier_epoch);
	/* Pairs with barrier_ready() of every peer. */
	moeep_comm_publish(comm, &moeep_comm_control(comm)->barrier, arg.expected);
	return moeep_wait_until(&wait, barrier_ready, &arg);
}
