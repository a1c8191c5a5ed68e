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
#include "cuda/window.h"
#include "memory/node.h"

struct verdict {
	int32_t result;
	char detail[252];
};
static_assert(sizeof(struct verdict) == 256, "exchanged between processes");

uint32_t moeep_comm_fds_timeout(const struct moeep_comm *comm)
{
	uint32_t ms = comm->settings.timeout_ms;

	return ms == MOEEP_TIMEOUT_NONE ? ms : ms - ms / 4;
}

/* What is left of the time-out when such a wait has failed. */
static uint32_t rest_timeout(const struct moeep_comm *comm)
{
	uint32_t ms = comm->settings.timeout_ms;

	return ms == MOEEP_TIMEOUT_NONE ? ms : ms / 4 + 1;
}

static bool is_out_of_step(int result)
{
	return result == MOEEP_ERR_TIMEOUT || result == MOEEP_ERR_PEER_LOST ||
	       result == MOEEP_ERR_RENDEZVOUS;
}

/* After such a failure, whose detail is set. A comm that is not complete is given up anyway. */
static int out_of_step(struct moeep_comm *comm, int result)
{
	struct moeep_cause cause = {
		.result = result,
		.operation = comm->collective,
		.rank = comm->rank,
		.peer = -1,
		.epoch = comm->collective_epoch,
		/* A peer that is past this exchange has given its part. */
		.expected = moeep_flag_word(comm->collective_epoch, comm->collective_step + 1),
	};
	bool left = false;
	int lost;
	int rc;

	if (comm->collective == MOEEP_OP_COMM_CREATE) {
		return result;
	}
	snprintf(cause.message, sizeof(cause.message), "%s", moeep_error_detail());
	rc = moeep_comm_check(comm);
	if (rc != MOEEP_OK) {
		return rc;
	}
	lost = moeep_comm_find_lost(comm, -1, &left);
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		uint64_t seen = moeep_flag_get(&comm->peers[rank].control->collective);

		if (rank == lost ||
		    (lost < 0 && cause.peer < 0 && !moeep_flag_reached(seen, cause.expected - 1))) {
			cause.peer = rank;
			cause.seen = seen;
		}
	}
	return moeep_comm_raise(comm, &cause);
}

static int gather(struct moeep_comm *comm, const void *mine, void *all, size_t bytes,
		  uint32_t timeout_ms)
{
	char detail[256];
	int rc;

	if (comm->collective != MOEEP_OP_COMM_CREATE) {
		comm->collective_step++;
		/* Pairs with out_of_step() of peers: where this rank is. */
		moeep_comm_note(comm, &moeep_comm_control(comm)->collective,
				moeep_flag_word(comm->collective_epoch, comm->collective_step));
	}
	rc = moeep_boot_allgather(comm->boot, mine, all, bytes, timeout_ms);
	snprintf(detail, sizeof(detail), "%s", rc != MOEEP_OK ? moeep_error_detail() : "");
	if (rc != MOEEP_OK && comm->net && comm->collective != MOEEP_OP_COMM_CREATE) {
		/* What failed it may be a failure that was told. */
		moeep_comm_hear(comm);
		if (moeep_comm_check(comm) != MOEEP_OK) {
			return moeep_comm_check(comm);
		}
		(void)moeep_fail(rc, "%s", detail);
	}
	return is_out_of_step(rc) ? out_of_step(comm, rc) : rc;
}

int moeep_comm_gather(struct moeep_comm *comm, const void *mine, void *all, size_t bytes)
{
	return gather(comm, mine, all, bytes, comm->settings.timeout_ms);
}

struct enter_wait {
	const struct moeep_comm *comm;
	uint64_t expected;
	int next; /* ranks before it have come */
};

static bool enter_ready(void *arg, struct moeep_pending *pending)
{
	struct enter_wait *w = arg;

	for (; w->next < w->comm->num_ranks; w->next++) {
		uint64_t seen = moeep_flag_get(&w->comm->peers[w->next].control->collective);

		if (!moeep_flag_reached(seen, w->expected)) {
			pending->peer = w->next;
			pending->expected = w->expected;
			pending->seen = seen;
			pending->what = "the call";
			return false;
		}
	}
	return true;
}

int moeep_comm_enter(struct moeep_comm *comm, moeep_op_t op)
{
	struct enter_wait arg = {.comm = comm};
	struct moeep_wait wait;

	comm->collective = op;
	comm->collective_epoch++;
	comm->collective_step = 0;
	arg.expected = moeep_flag_word(comm->collective_epoch, 0);
	moeep_wait_begin(&wait, comm, op, comm->collective_epoch);
	/* Pairs with enter_ready() of every peer. */
	moeep_comm_publish(comm, &moeep_comm_control(comm)->collective, arg.expected);
	return moeep_wait_until(&wait, enter_ready, &arg);
}

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
	rc = gather(comm, &mine, all, sizeof(mine),
		    is_out_of_step(result) ? rest_timeout(comm) : comm->settings.timeout_ms);
	for (int rank = 0; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		if (all[rank].result != MOEEP_OK) {
			all[rank].detail[sizeof(all[rank].detail) - 1] = '\0';
			rc = moeep_fail(all[rank].result, "rank %d: %s", rank, all[rank].detail);
		}
	}
	free(all);
	return rc;
}

/* What a rank tells of its window; the number is of use within its process. */
struct announcement {
	uint64_t number;
	uint64_t bytes;
	uint64_t device; /* it is device memory */
};

static int map(struct moeep_comm *comm, int fd, const struct announcement *theirs,
	       struct moeep_window **window)
{
	return theirs->device ? moeep_cuda_window_map(comm->cuda, fd, theirs->bytes, window)
			      : moeep_window_map(fd, theirs->bytes, window);
}

/* As the exchange of descriptors counts ranks, in ascending order. */
static int take_windows(struct moeep_comm *comm, const struct announcement *all, int *fds,
			struct moeep_window **windows)
{
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		const struct moeep_peer *peer = &comm->peers[rank];
		int rc = MOEEP_OK;

		if (peer->exchange < 0) {
			windows[rank] = NULL;
		} else if (moeep_identity_same_process(&comm->peers[comm->rank].id, &peer->id)) {
			/* Another thread of this process may have given up meanwhile. */
			windows[rank] = moeep_window_find(all[rank].number);
			if (!windows[rank]) {
				rc = moeep_fail(MOEEP_ERR_PEER_LOST,
						"the memory of rank %d has gone already", rank);
			}
		} else if (all[rank].bytes > 0 && (!fds || fds[peer->exchange] < 0)) {
			rc = moeep_fail(MOEEP_ERR_SYSTEM, "no descriptor came from rank %d", rank);
		} else {
			rc = map(comm, fds ? fds[peer->exchange] : -1, &all[rank], &windows[rank]);
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
	here.number = mine->number;
	here.bytes = mine->bytes;
	here.device = mine->release != NULL;
	rc = moeep_comm_gather(comm, &here, all, sizeof(here));
	if (rc == MOEEP_OK && comm->local) {
		fds = malloc((size_t)comm->exchanging * sizeof(*fds));
		rc = fds ? moeep_node_exchange(comm->local, mine->fd, fds,
					       moeep_comm_fds_timeout(comm))
			 : moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d descriptors",
				      comm->exchanging);
	}
	if (rc == MOEEP_OK) {
		rc = take_windows(comm, all, fds, windows);
	}
	for (int i = 0; fds && i < comm->exchanging; i++) {
		if (fds[i] >= 0) {
			close(fds[i]);
		}
	}
	/* From here on everybody holds its references, so the owner may let go of its own. */
	rc = moeep_comm_agree(comm, rc);
	if (is_out_of_step(rc)) {
		/* Also if the ranks could agree on it: not all have got all descriptors. */
		rc = out_of_step(comm, rc);
	}
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
