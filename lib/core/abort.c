/* SPDX-License-Identifier: MIT */
/* core/abort.c - the group's first failure: raising it, reading it, finding peers that are gone. */
#include "config.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "bootstrap/boot.h"
#include "core/comm.h"
#include "core/error.h"
#include "net/net.h"

/* How long to wait for the report of another rank that is writing it; it may have died there. */
#define WRITING_LIMIT_NS 100000000u

static bool abort_claim(struct moeep_control *control)
{
	uint32_t none = MOEEP_ABORT_NONE;

	return atomic_compare_exchange_strong_explicit(&control->abort_state, &none,
						       MOEEP_ABORT_WRITING, memory_order_acq_rel,
						       memory_order_acquire);
}

/* Put the cause into a rank's window, unless one is there. */
static bool abort_set(struct moeep_control *control, const struct moeep_cause *cause)
{
	if (!abort_claim(control)) {
		return false;
	}
	control->cause = *cause;
	/* Pairs with the acquire in abort_get(). */
	atomic_store_explicit(&control->abort_state, MOEEP_ABORT_SET, memory_order_release);
	return true;
}

/* True if there is a cause. One that never becomes complete is replaced by a general one. */
static bool abort_get(const struct moeep_control *control_const, struct moeep_cause *cause)
{
	struct moeep_control *control = (struct moeep_control *)control_const;
	uint64_t limit = 0;
	uint32_t state;

	for (;;) {
		state = atomic_load_explicit(&control->abort_state, memory_order_acquire);
		if (state == MOEEP_ABORT_NONE) {
			return false;
		}
		if (state == MOEEP_ABORT_SET) {
			*cause = control->cause;
			return true;
		}
		if (limit == 0) {
			limit = moeep_now_ns() + WRITING_LIMIT_NS;
		} else if (moeep_now_ns() > limit) {
			memset(cause, 0, sizeof(*cause));
			cause->result = MOEEP_ERR_PEER_LOST;
			cause->rank = cause->peer = -1;
			snprintf(cause->message, sizeof(cause->message),
				 "a rank ended while it reported a failure");
			return true;
		}
	}
}

int moeep_comm_check(const struct moeep_comm *comm)
{
	struct moeep_cause cause;

	moeep_comm_adopt((struct moeep_comm *)comm);
	if (!abort_get(moeep_comm_control(comm), &cause)) {
		return MOEEP_OK;
	}
	return moeep_fail(cause.result,
			  "%s (%s, epoch %llu, peer %d, expected 0x%llx, seen 0x%llx)",
			  cause.message, moeep_op_name((moeep_op_t)cause.operation),
			  (unsigned long long)cause.epoch, cause.peer,
			  (unsigned long long)cause.expected, (unsigned long long)cause.seen);
}

/* To all ranks of this node; *cause becomes the one that was first. */
static void spread(struct moeep_comm *comm, struct moeep_cause *cause)
{
	int node = comm->peers[comm->rank].node;
	/* The lowest rank's window decides which failure was first, so that all report the same. */
	struct moeep_control *arbiter = comm->peers[moeep_comm_member(comm, node, 0)].control;

	if (!abort_set(arbiter, cause)) {
		(void)abort_get(arbiter, cause);
	}
	for (int i = 0; i < comm->local_ranks; i++) {
		int peer = moeep_comm_member(comm, node, i);

		(void)abort_set(comm->peers[peer].control, cause);
		moeep_wait_wake(comm, peer);
	}
}

void moeep_comm_adopt(struct moeep_comm *comm)
{
	for (int rank = 0; comm->net && rank < comm->num_ranks; rank++) {
		struct moeep_control *control = comm->peers[rank].control;
		struct moeep_cause cause;

		/* The network writes the cause before the state, and never "writing". */
		if (comm->peers[rank].mirror >= 0 && abort_get(control, &cause)) {
			spread(comm, &cause);
			return;
		}
	}
}

void moeep_comm_hear(struct moeep_comm *comm)
{
	struct moeep_cause cause = {0};
	struct moeep_boot_news news;

	moeep_comm_adopt(comm);
	if (comm->net && moeep_boot_heard(comm->boot, &news)) {
		cause.result = news.result;
		cause.operation = news.operation;
		cause.rank = news.rank;
		cause.peer = news.peer;
		cause.epoch = news.epoch;
		cause.expected = news.expected;
		cause.seen = news.seen;
		snprintf(cause.message, sizeof(cause.message), "%.159s", news.text);
		spread(comm, &cause);
	}
}

/* Over the rendezvous. The rank that noticed it is the one that tells. */
static void tell(struct moeep_comm *comm, const struct moeep_cause *cause)
{
	struct moeep_boot_news news = {
		.result = cause->result,
		.operation = cause->operation,
		.peer = cause->peer,
		.epoch = cause->epoch,
		.expected = cause->expected,
		.seen = cause->seen,
	};

	if (cause->rank == comm->rank) {
		snprintf(news.text, sizeof(news.text), "%s", cause->message);
		moeep_boot_tell(comm->boot, &news);
	}
}

int moeep_comm_raise(struct moeep_comm *comm, const struct moeep_cause *cause)
{
	struct moeep_cause first = *cause;

	spread(comm, &first);
	if (comm->net) {
		moeep_net_tell_cause(comm->net);
		/* Where that way is what failed, there is the rendezvous. */
		tell(comm, &first);
	}
	moeep_log(&comm->log, MOEEP_LOG_ERROR, "%s: %s", moeep_strerror(first.result),
		  first.message);
	return moeep_comm_check(comm);
}

int moeep_comm_find_lost(struct moeep_comm *comm, int waited_for, bool *left)
{
	int lost = -1;

	for (int i = 0; i < comm->num_ranks; i++) {
		/* The one that is waited for first: it is the better report. */
		int peer = waited_for < 0 ? i : (i + waited_for) % comm->num_ranks;
		struct moeep_peer *p = &comm->peers[peer];
		struct pollfd ends[2] = {{.fd = p->lifeline, .events = POLLIN},
					 {.fd = p->process, .events = POLLIN}};

		if (peer == comm->rank) {
			continue;
		}
		if (atomic_load_explicit(&p->control->left, memory_order_acquire) != 0) {
			if (peer == waited_for) {
				*left = true;
				return peer;
			}
			continue;
		}
		if (p->lifeline >= 0 && poll(ends, 2, 0) > 0) {
			/* It may have left in order since we looked. */
			*left = atomic_load_explicit(&p->control->left, memory_order_acquire) != 0;
			if (!*left || peer == waited_for) {
				return peer;
			}
		}
	}
	*left = false;
	lost = moeep_boot_lost(comm->boot);
	if (lost >= 0 &&
	    atomic_load_explicit(&comm->peers[lost].control->left, memory_order_acquire) != 0) {
		/* Its good-bye got lost with the rendezvous. */
		return -1;
	}
	return lost;
}

int moeep_comm_abort(moeep_comm_t *comm, const char *reason)
{
	struct moeep_cause cause = {.result = MOEEP_ERR_ABORTED, .peer = -1};

	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	cause.rank = comm->rank;
	snprintf(cause.message, sizeof(cause.message), "%s",
		 reason ? reason : "moeep_comm_abort() was called");
	(void)moeep_comm_raise(comm, &cause);
	return MOEEP_OK;
}

int moeep_comm_async_error(const moeep_comm_t *comm, moeep_error_report_t *report)
{
	struct moeep_cause cause = {.peer = -1, .rank = -1};
	moeep_error_report_t own = {.size = sizeof(own)};

	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	moeep_comm_adopt((struct moeep_comm *)comm);
	(void)abort_get(moeep_comm_control(comm), &cause);
	own.result = cause.result;
	own.operation = cause.operation;
	own.rank = cause.rank;
	own.peer = cause.peer;
	own.epoch = cause.epoch;
	own.expected = cause.expected;
	own.seen = cause.seen;
	memcpy(own.message, cause.message, sizeof(own.message));
	if (report) {
		int rc = moeep_struct_out("report", report, &own, sizeof(own));

		if (rc != MOEEP_OK) {
			return rc;
		}
	}
	return cause.result;
}
