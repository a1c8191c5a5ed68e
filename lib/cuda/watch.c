/* SPDX-License-Identifier: MIT */
/*
 * cuda/watch.c - between kernels and the group: a failure that a kernel has found becomes the
 * comm's, and the comm's failure, or a peer's death, ends the waits of kernels.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/calls.h"
#include "cuda/device.h"

/* The watcher's doorbell rings when the group fails; a kernel or a dead peer does not ring it. */
#define SLICE_NS 5000000u
/* How long a peer's refused call is waited for. */
#define REFUSED_NS 50000000u

/* Taken when a comm fails, so one is enough. */
static pthread_mutex_t report_lock = PTHREAD_MUTEX_INITIALIZER;

static const char *what_text(int what)
{
	static const char *const texts[] = {
		[0] = "something",
		[MOEEP_DEV_CALL] = "the call",
		[MOEEP_DEV_ROWS] = "the rows",
		[MOEEP_DEV_RECORDS] = "the choices and weights",
		[MOEEP_DEV_CREDIT] = "the RECV of two epochs ago",
		[MOEEP_DEV_PARTIALS] = "the sums",
		[MOEEP_DEV_READ] = "the end of the combine",
	};

	return what > 0 && what <= MOEEP_DEV_READ ? texts[what] : texts[0];
}

static void describe(const struct moeep_comm *comm, struct moeep_cause *cause, int what)
{
	static const char *const fields[] = {"",     "dtype",	"quant",
					     "topk", "weights", "dtype, flags or handle"};

	if (cause->result == MOEEP_ERR_TIMEOUT) {
		snprintf(cause->message, sizeof(cause->message),
			 "rank %d waited for %s of rank %d, which did not come within %u ms",
			 cause->rank, what_text(what), cause->peer, comm->settings.timeout_ms);
	} else if (cause->result == MOEEP_ERR_MISMATCH) {
		snprintf(cause->message, sizeof(cause->message),
			 "the call of rank %d differs from that of rank %d in %s", cause->peer,
			 cause->rank, what > 0 && what <= 5 ? fields[what] : "something");
	} else if (cause->result == MOEEP_ERR_INVALID) {
		snprintf(cause->message, sizeof(cause->message),
			 "x of rank %d is in symmetric memory that ends after %llu rows, %llu are "
			 "to be read",
			 cause->peer, (unsigned long long)cause->seen,
			 (unsigned long long)cause->expected);
	} else {
		snprintf(cause->message, sizeof(cause->message),
			 "%s of rank %d is in symmetric memory that rank %d has freed",
			 cause->operation == MOEEP_OP_COMBINE ? "x" : "recv_x", cause->peer,
			 cause->rank);
	}
}

/* What a kernel has found, once; nobody goes on before it is the comm's failure. */
static void report(struct moeep_comm *comm)
{
	struct moeep_cuda *cuda = comm->cuda;
	volatile struct moeep_dev_shared *shared = cuda->shared;

	pthread_mutex_lock(&report_lock);
	if (!atomic_load(&cuda->reported)) {
		struct moeep_cause cause = {
			.result = shared->result,
			.operation = shared->operation,
			.rank = comm->rank,
			.peer = shared->peer,
			.epoch = shared->epoch,
			.expected = shared->expected,
			.seen = shared->seen,
		};

		describe(comm, &cause, shared->what);
		(void)moeep_comm_raise(comm, &cause);
		atomic_store(&cuda->reported, true);
	}
	pthread_mutex_unlock(&report_lock);
}

int moeep_cuda_check(struct moeep_comm *comm)
{
	volatile struct moeep_dev_shared *shared = comm->cuda->shared;

	if (shared->state == 1 && !atomic_load(&comm->cuda->reported)) {
		report(comm);
	}
	return moeep_comm_check(comm);
}

static bool has_failed(void *arg, struct moeep_pending *pending)
{
	struct moeep_comm *comm = arg;

	(void)pending;
	return atomic_load(&comm->cuda->stop) ||
	       atomic_load_explicit(&moeep_comm_control(comm)->abort_state, memory_order_acquire) ==
		       MOEEP_ABORT_SET;
}

/*
 * A peer may make the call again, and what is queued before it may end: not at once. Epoch and
 * operation are not known here.
 */
static void look_for_refused(struct moeep_comm *comm)
{
	struct moeep_cause cause = {.rank = comm->rank};
	uint64_t now = moeep_now_ns();

	if (!moeep_cuda_call_find(comm, &cause)) {
		comm->cuda->refused_since = 0;
	} else if (comm->cuda->refused_since == 0) {
		comm->cuda->refused_since = now;
	} else if (now - comm->cuda->refused_since >= REFUSED_NS) {
		(void)moeep_comm_raise(comm, &cause);
	}
}

static void look(struct moeep_comm *comm)
{
	struct moeep_cause cause = {.result = MOEEP_ERR_PEER_LOST, .rank = comm->rank};
	bool left = false;

	if (moeep_cuda_check(comm) == MOEEP_OK) {
		cause.peer = moeep_comm_find_lost(comm, -1, &left);
		if (cause.peer >= 0) {
			snprintf(cause.message, sizeof(cause.message),
				 "rank %d found rank %d gone: its process ended", cause.rank,
				 cause.peer);
			(void)moeep_comm_raise(comm, &cause);
		} else {
			look_for_refused(comm);
		}
	}
	if (has_failed(comm, NULL)) {
		int result = moeep_comm_check(comm);

		/* Read by every wait of a kernel. */
		((volatile struct moeep_dev_shared *)comm->cuda->shared)->abort = (uint32_t)-result;
	}
}

static void *watch(void *arg)
{
	struct moeep_comm *comm = arg;

	while (!atomic_load(&comm->cuda->stop)) {
		moeep_wait_doorbell(comm, has_failed, comm, SLICE_NS);
		if (!atomic_load(&comm->cuda->stop)) {
			look(comm);
		}
		if (comm->cuda->shared->abort != 0) {
			break;
		}
	}
	return NULL;
}

int moeep_cuda_watch(struct moeep_comm *comm)
{
	int error = pthread_create(&comm->cuda->watcher, NULL, watch, comm);

	if (error != 0) {
		return moeep_fail(MOEEP_ERR_SYSTEM, "pthread_create: %s", strerror(error));
	}
	comm->cuda->watching = true;
	return MOEEP_OK;
}

void moeep_cuda_unwatch(struct moeep_comm *comm)
{
	if (comm->cuda->watching) {
		atomic_store(&comm->cuda->stop, true);
		moeep_wait_wake(comm, comm->rank);
		pthread_join(comm->cuda->watcher, NULL);
		comm->cuda->watching = false;
	}
}
