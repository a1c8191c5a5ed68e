/* SPDX-License-Identifier: MIT */
/* core/lifeline.c - what tells a process of this host that another one has ended. */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/comm.h"
#include "core/error.h"
#include "memory/node.h"

/* The same number everywhere; headers may be older than the kernel. */
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

static void take_lifelines(struct moeep_comm *comm, const int *pipes, const int *processes)
{
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		struct moeep_peer *peer = &comm->peers[rank];

		if (peer->transport == MOEEP_TRANSPORT_SHM) {
			peer->lifeline = pipes[peer->exchange];
			peer->process = processes[peer->exchange];
			continue;
		}
		/* Of a thread of this process, or of another "host" of this machine. */
		if (peer->exchange >= 0 && pipes[peer->exchange] >= 0) {
			close(pipes[peer->exchange]);
		}
		if (peer->exchange >= 0 && processes[peer->exchange] >= 0) {
			close(processes[peer->exchange]);
		}
	}
}

int moeep_comm_share_lifelines(struct moeep_comm *comm)
{
	int ends[2] = {-1, -1};
	int process = -1;
	int *fds = NULL;
	int rc = MOEEP_OK;

	if (!comm->local) {
		return MOEEP_OK;
	}
	fds = malloc(2 * (size_t)comm->exchanging * sizeof(*fds));
	if (!fds) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d descriptors", comm->exchanging);
	} else if (pipe2(ends, O_CLOEXEC) != 0) {
		rc = moeep_fail_errno("pipe2");
	}
	rc = moeep_comm_agree(comm, rc);
	if (rc == MOEEP_OK) {
		uint32_t timeout_ms = moeep_comm_fds_timeout(comm);
		int *processes = fds + comm->exchanging;

		process = (int)syscall(SYS_pidfd_open, getpid(), 0);
		rc = moeep_node_exchange(comm->local, ends[0], fds, timeout_ms);
		if (rc == MOEEP_OK) {
			/* If that fails, all of them are -1. */
			rc = moeep_node_exchange(comm->local, process, processes, timeout_ms);
			take_lifelines(comm, fds, processes);
		}
	}
	if (ends[0] >= 0) {
		close(ends[0]);
	}
	if (process >= 0) {
		close(process);
	}
	comm->lifeline = ends[1];
	free(fds);
	return rc;
}
