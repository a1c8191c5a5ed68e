/* SPDX-License-Identifier: MIT */
/* core/agree.c - collective results and shared windows: one rank's failure is everybody's. */
#include "config.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap/boot.h"
#include "core/comm.h"
#include "core/error.h"
#include "memory/node.h"

struct verdict {
	int32_t result;
	char detail[252];
};
static_assert(sizeof(struct verdict) == 256, "exchanged between processes");

int moeep_comm_agree(struct moeep_comm *comm, int result)
{
	struct verdict mine = {.result = result};
	struct verdict *all = calloc((size_t)comm->num_ranks, sizeof(*all));
	int rc;

	if (!all) {
		/* The others time out: with no memory for this there is no way to tell them. */
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for the results of %d ranks",
				  comm->num_ranks);
	}
	if (result != MOEEP_OK) {
		snprintf(mine.detail, sizeof(mine.detail), "%s", moeep_error_detail());
	}
	rc = moeep_boot_allgather(comm->boot, &mine, all, sizeof(mine), comm->settings.timeout_ms);
	for (int rank = 0; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		if (all[rank].result != MOEEP_OK) {
			all[rank].detail[sizeof(all[rank].detail) - 1] = '\0';
			rc = moeep_fail(all[rank].result, "rank %d: %s", rank, all[rank].detail);
		}
	}
	free(all);
	return rc;
}

/* What a rank tells of its window; the pointer is of use within its process. */
struct announcement {
	uint64_t pointer;
	uint64_t bytes;
};

/* This host's ranks in ascending order, as the exchange of descriptors counts them. */
static int take_windows(struct moeep_comm *comm, const struct announcement *all, int *fds,
			struct moeep_window **windows)
{
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		const struct moeep_peer *peer = &comm->peers[rank];
		int rc = MOEEP_OK;

		if (rank == comm->rank || peer->transport == MOEEP_TRANSPORT_PROCESS) {
			windows[rank] = moeep_window_ref(
				(struct moeep_window *)(uintptr_t)all[rank].pointer);
		} else if (all[rank].bytes > 0 && (!fds || fds[peer->local_rank] < 0)) {
			rc = moeep_fail(MOEEP_ERR_SYSTEM, "no descriptor came from rank %d", rank);
		} else {
			rc = moeep_window_map(fds ? fds[peer->local_rank] : -1, all[rank].bytes,
					      &windows[rank]);
		}
		if (rc != MOEEP_OK) {
			return rc;
		}
	}
	return MOEEP_OK;
}

int moeep_comm_share(struct moeep_comm *comm, int result, struct moeep_window *mine,
		     struct moeep_window **windows)
{
	struct announcement here = {0};
	struct announcement *all = calloc((size_t)comm->num_ranks, sizeof(*all));
	int *fds = NULL;
	int rc = moeep_comm_agree(comm, all ? result : MOEEP_ERR_NOMEM);

	memset(windows, 0, (size_t)comm->num_ranks * sizeof(*windows));
	if (rc != MOEEP_OK) {
		goto free_all;
	}
	here.pointer = (uint64_t)(uintptr_t)mine;
	here.bytes = mine->bytes;
	rc = moeep_boot_allgather(comm->boot, &here, all, sizeof(here), comm->settings.timeout_ms);
	if (rc == MOEEP_OK && comm->local) {
		fds = malloc((size_t)comm->local_ranks * sizeof(*fds));
		rc = fds ? moeep_node_exchange(comm->local, mine->fd, fds,
					       comm->settings.timeout_ms)
			 : moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d descriptors",
				      comm->local_ranks);
	}
	if (rc == MOEEP_OK) {
		rc = take_windows(comm, all, fds, windows);
	}
	for (int i = 0; fds && i < comm->local_ranks; i++) {
		if (fds[i] >= 0) {
			close(fds[i]);
		}
	}
	/* From here on everybody holds its references, so the owner may let go of its own. */
	rc = moeep_comm_agree(comm, rc);
	if (rc != MOEEP_OK) {
		for (int rank = 0; rank < comm->num_ranks; rank++) {
			moeep_window_unref(windows[rank]);
			windows[rank] = NULL;
		}
	} else {
		moeep_window_close_fd(mine);
	}
	free(fds);
free_all:
	free(all);
	return rc;
}
