/* SPDX-License-Identifier: MIT */
/* core/wait.c - bounded waits for flags of peers, and the doorbell that ends their sleep. */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/comm.h"
#include "core/error.h"
#include "core/wait.h"
#include "net/net.h"

/* A sleeper looks this often whether a peer died: a dead process rings no doorbell. */
#define SLEEP_SLICE_NS 20000000u
/* Polls between two looks at the clock and the abort word. */
#define POLLS_PER_CHECK 64

uint64_t moeep_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("isb" ::: "memory");
#endif
}

/* Not the private futex operations: sleeper and waker may be different processes. */
static void futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t ns)
{
	struct timespec limit = {.tv_sec = (time_t)(ns / 1000000000u),
				 .tv_nsec = (long)(ns % 1000000000u)};

	(void)syscall(SYS_futex, word, FUTEX_WAIT, value, &limit, NULL, 0);
}

void moeep_wait_ring(struct moeep_control *control)
{
	/*
	 * Sequentially consistent on both words, as in sleep_on(): either we see the sleeper and
	 * wake it, or it sees the new seq (or, before it sleeps, the flag that we published).
	 */
	atomic_fetch_add_explicit(&control->seq, 1, memory_order_seq_cst);
	if (atomic_load_explicit(&control->sleepers, memory_order_seq_cst) != 0) {
		(void)syscall(SYS_futex, &control->seq, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	}
}

void moeep_wait_wake(struct moeep_comm *comm, int peer)
{
	/* The network wakes the others, or they look by themselves. */
	if (comm->peers[peer].mirror < 0) {
		moeep_wait_ring(comm->peers[peer].control);
	}
}

void moeep_wait_wake_all(struct moeep_comm *comm)
{
	for (int peer = 0; peer < comm->num_ranks; peer++) {
		if (peer != comm->rank) {
			moeep_wait_wake(comm, peer);
		}
	}
}

void moeep_wait_begin(struct moeep_wait *wait, struct moeep_comm *comm, moeep_op_t op,
		      uint64_t epoch)
{
	wait->comm = comm;
	wait->op = op;
	wait->epoch = epoch;
	wait->refused = NULL;
	wait->deadline_ns = UINT64_MAX;
	if (comm->settings.timeout_ms != MOEEP_TIMEOUT_NONE) {
		wait->deadline_ns = moeep_now_ns() + (uint64_t)comm->settings.timeout_ms * 1000000u;
	}
}

static bool aborted(const struct moeep_control *control)
{
	return atomic_load_explicit(&control->abort_state, memory_order_acquire) !=
	       MOEEP_ABORT_NONE;
}

/* Sleep until the doorbell rings after `ready` was false, at most a slice. True if ready. */
static bool sleep_on(struct moeep_control *control, moeep_ready_fn ready, void *arg,
		     struct moeep_pending *pending, uint64_t slice_ns)
{
	uint32_t seq = atomic_load_explicit(&control->seq, memory_order_seq_cst);
	bool done;

	/* Pairs with moeep_wait_wake(). */
	atomic_fetch_add_explicit(&control->sleepers, 1, memory_order_seq_cst);
	done = ready(arg, pending);
	if (!done && !aborted(control)) {
		futex_wait(&control->seq, seq, slice_ns);
	}
	atomic_fetch_sub_explicit(&control->sleepers, 1, memory_order_seq_cst);
	return done;
}

void moeep_wait_doorbell(struct moeep_comm *comm, moeep_ready_fn ready, void *arg, uint64_t ns)
{
	struct moeep_pending pending = {.peer = -1};

	(void)sleep_on(moeep_comm_control(comm), ready, arg, &pending, ns);
}

static struct moeep_cause cause_of(const struct moeep_wait *wait,
				   const struct moeep_pending *pending, int result)
{
	return (struct moeep_cause){
		.result = result,
		.operation = wait->op,
		.rank = wait->comm->rank,
		.peer = pending->peer,
		.epoch = wait->epoch,
		.expected = pending->expected,
		.seen = pending->seen,
	};
}

static int raise_pending(const struct moeep_wait *wait, const struct moeep_pending *pending,
			 int result, const char *how)
{
	struct moeep_cause cause = cause_of(wait, pending, result);

	snprintf(cause.message, sizeof(cause.message), "rank %d waited for %s of rank %d, which %s",
		 cause.rank, pending->what, pending->peer, how);
	return moeep_comm_raise(wait->comm, &cause);
}

/* A rank has died that this one does not wait for just now. */
static int raise_other(const struct moeep_wait *wait, const struct moeep_pending *pending, int lost)
{
	struct moeep_cause cause = cause_of(wait, pending, MOEEP_ERR_PEER_LOST);

	cause.peer = lost;
	snprintf(cause.message, sizeof(cause.message),
		 "rank %d waited for %s of rank %d when it found rank %d gone: its process ended",
		 cause.rank, pending->what, pending->peer, lost);
	return moeep_comm_raise(wait->comm, &cause);
}

/* After a slice of sleep: has a peer refused the call, is a needed one gone, the time run out? */
static int check_bounds(const struct moeep_wait *wait, const struct moeep_pending *pending,
			moeep_ready_fn ready, void *arg)
{
	struct moeep_pending latest = *pending;
	struct moeep_cause cause = cause_of(wait, pending, MOEEP_OK);
	uint64_t now = moeep_now_ns();
	bool left = false;
	int lost;

	moeep_comm_hear(wait->comm);
	if (aborted(moeep_comm_control(wait->comm))) {
		return moeep_comm_check(wait->comm);
	}
	if (wait->refused && pending->peer >= 0 &&
	    wait->refused(wait->buffer, pending->peer, &cause)) {
		return ready(arg, &latest) ? MOEEP_OK : moeep_comm_raise(wait->comm, &cause);
	}
	lost = moeep_comm_find_lost(wait->comm, pending->peer, &left);
	if (lost >= 0) {
		/* What it published before it went still counts. */
		if (ready(arg, &latest)) {
			return MOEEP_OK;
		}
		if (latest.peer == lost) {
			return raise_pending(wait, &latest, MOEEP_ERR_PEER_LOST,
					     left ? "has left the group"
						  : "is gone: its process ended");
		}
		if (!left) {
			return raise_other(wait, &latest, lost);
		}
	}
	if (now >= wait->deadline_ns) {
		latest.blame = true;
		if (ready(arg, &latest)) {
			return MOEEP_OK;
		}
		return raise_pending(wait, &latest, MOEEP_ERR_TIMEOUT, "did not come in time");
	}
	return MOEEP_OK;
}

int moeep_wait_until(const struct moeep_wait *wait, moeep_ready_fn ready, void *arg)
{
	struct moeep_comm *comm = wait->comm;
	struct moeep_control *control = moeep_comm_control(comm);
	struct moeep_pending pending = {.peer = -1, .what = "an answer"};
	uint64_t checked;
	uint64_t spin_until;
	int rc;

	if (ready(arg, &pending)) {
		return MOEEP_OK;
	}
	spin_until = moeep_now_ns() + (uint64_t)comm->settings.spin_us * 1000u;
	do {
		for (int i = 0; i < POLLS_PER_CHECK; i++) {
			if (ready(arg, &pending)) {
				return MOEEP_OK;
			}
			cpu_relax();
		}
		if (aborted(control)) {
			return moeep_comm_check(comm);
		}
	} while (moeep_now_ns() < spin_until);

	/* A doorbell that rings all the time must not put the checks off. */
	checked = moeep_now_ns();
	for (;;) {
		uint64_t now = moeep_now_ns();
		uint64_t slice = comm->net && moeep_net_poll_ns(comm->net) != 0
					 ? moeep_net_poll_ns(comm->net)
					 : SLEEP_SLICE_NS;

		if (wait->deadline_ns <= now) {
			slice = 1;
		} else if (wait->deadline_ns - now < slice) {
			slice = wait->deadline_ns - now;
		}
		if (sleep_on(control, ready, arg, &pending, slice) || ready(arg, &pending)) {
			return MOEEP_OK;
		}
		if (aborted(control)) {
			return moeep_comm_check(comm);
		}
		now = moeep_now_ns();
		if (now >= wait->deadline_ns || now - checked >= SLEEP_SLICE_NS) {
			checked = now;
			rc = check_bounds(wait, &pending, ready, arg);
			if (rc != MOEEP_OK) {
				return rc;
			}
		}
	}
}
