/* SPDX-License-Identifier: MIT */
/* bootstrap/callbacks.c - exchanges over the caller's functions. */
#include "config.h"

#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bootstrap/ops.h"
#include "bootstrap/socket.h"
#include "core/error.h"

/* Tests without a pause, then with pauses that grow. */
#define SPIN_TESTS   200
#define SLEEP_MIN_NS 50000
#define SLEEP_MAX_NS 2000000
/* How long the end waits for an exchange that was given up. */
#define ABANDONED_MS 100

#define ANNOUNCE_MAGIC UINT64_C(0x6d6f6565702d6578)

/*
 * Goes ahead of every exchange. The caller's function has no way to say that sizes differ, and may
 * well write past the end if they do.
 */
struct announcement {
	uint64_t magic;
	uint64_t round;
	uint64_t bytes;
	int32_t rank;
	int32_t num_ranks;
};
static_assert(sizeof(struct announcement) == 32, "exchanged between processes");

/*
 * The bytes of an exchange in progress are our own copy: one that is given up may still be
 * writing when our caller's memory has long been used for something else.
 */
struct exchange {
	void *request;
	unsigned char *send;
	unsigned char *recv;
};

struct callbacks {
	struct moeep_boot base;
	moeep_bootstrap_t user;
	uint64_t round;
	bool broken;
	struct exchange abandoned;
	struct announcement *announcements; /* one of each rank */
};

static void exchange_free(struct exchange *exchange)
{
	free(exchange->send);
	free(exchange->recv);
	memset(exchange, 0, sizeof(*exchange));
}

static void exchange_release(struct callbacks *own, struct exchange *exchange)
{
	if (exchange->request && own->user.release) {
		own->user.release(own->user.context, exchange->request);
	}
	exchange_free(exchange);
}

/* Until the request is complete: 0, 1 if the deadline passed, or what test() said was wrong. */
static int exchange_wait(struct callbacks *own, void *request, int64_t deadline)
{
	struct timespec pause = {.tv_nsec = SLEEP_MIN_NS};

	for (unsigned tests = 0;; tests++) {
		int rc = own->user.test(own->user.context, request);

		if (rc <= 0) {
			return rc;
		}
		if (deadline != MOEEP_SOCKET_NO_DEADLINE && moeep_socket_now() >= deadline) {
			return 1;
		}
		if (tests < SPIN_TESTS) {
			sched_yield();
			continue;
		}
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < SLEEP_MAX_NS) {
			pause.tv_nsec =
				2 * pause.tv_nsec < SLEEP_MAX_NS ? 2 * pause.tv_nsec : SLEEP_MAX_NS;
		}
	}
}

/* One call of the caller's function. bytes is not 0. */
static int exchange_run(struct callbacks *own, const void *send, void *recv, size_t bytes,
			int64_t deadline)
{
	size_t all = bytes * (size_t)own->base.num_ranks;
	struct exchange exchange = {.send = malloc(bytes), .recv = calloc(1, all)};
	int rc;

	if (!exchange.send || !exchange.recv) {
		exchange_free(&exchange);
		/* The others have begun: this cannot be made good. */
		own->broken = true;
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory to exchange %zu bytes", all);
	}
	memcpy(exchange.send, send, bytes);
	rc = own->user.allgather(own->user.context, exchange.send, exchange.recv, bytes,
				 &exchange.request);
	if (rc < 0) {
		exchange_free(&exchange);
		own->broken = true;
		return moeep_fail(MOEEP_ERR_RENDEZVOUS,
				  "bootstrap->allgather of %zu bytes returned %d", bytes, rc);
	}
	if (exchange.request && !own->user.test) {
		/* It may be in progress, and nobody can say when it ends: the copies stay. */
		own->broken = true;
		return moeep_fail(
			MOEEP_ERR_RENDEZVOUS,
			"bootstrap->allgather gave a request, but bootstrap->test is NULL");
	}
	rc = exchange.request ? exchange_wait(own, exchange.request, deadline) : 0;
	if (rc > 0) {
		own->broken = true;
		own->abandoned = exchange;
		return moeep_fail(
			MOEEP_ERR_TIMEOUT,
			"bootstrap->allgather of %zu bytes is not complete: some rank has "
			"not called it",
			bytes);
	}
	if (rc < 0) {
		exchange_release(own, &exchange);
		own->broken = true;
		return moeep_fail(MOEEP_ERR_RENDEZVOUS,
				  "bootstrap->test of an allgather of %zu bytes returned %d", bytes,
				  rc);
	}
	memcpy(recv, exchange.recv, all);
	exchange_release(own, &exchange);
	return MOEEP_OK;
}

/* What the ranks are about to do, seen by all of them alike. */
static int announcements_check(struct callbacks *own)
{
	const struct announcement *first = &own->announcements[0];

	for (int rank = 0; rank < own->base.num_ranks; rank++) {
		const struct announcement *one = &own->announcements[rank];

		if (one->magic != ANNOUNCE_MAGIC || one->rank != rank) {
			own->broken = true;
			return moeep_fail(MOEEP_ERR_RENDEZVOUS,
					  "bootstrap->allgather left the bytes of another rank, or "
					  "none, in the place of rank %d",
					  rank);
		}
		if (one->num_ranks != first->num_ranks) {
			own->broken = true;
			return moeep_fail(MOEEP_ERR_MISMATCH,
					  "num_ranks is %d on rank 0 and %d on rank %d",
					  first->num_ranks, one->num_ranks, rank);
		}
		if (one->round != first->round) {
			own->broken = true;
			return moeep_fail(MOEEP_ERR_MISMATCH,
					  "rank 0 is in its exchange %llu, rank %d in %llu",
					  (unsigned long long)first->round, rank,
					  (unsigned long long)one->round);
		}
		if (one->bytes != first->bytes) {
			return moeep_fail(MOEEP_ERR_MISMATCH,
					  "rank 0 gives %llu bytes to exchange %llu, rank %d %llu",
					  (unsigned long long)first->bytes,
					  (unsigned long long)first->round, rank,
					  (unsigned long long)one->bytes);
		}
	}
	return MOEEP_OK;
}

static int callbacks_allgather(struct moeep_boot *boot, const void *send, void *recv, size_t bytes,
			       uint32_t timeout_ms)
{
	struct callbacks *own = (struct callbacks *)boot;
	int64_t deadline = moeep_socket_deadline(timeout_ms);
	struct announcement mine = {
		.magic = ANNOUNCE_MAGIC,
		.round = own->round,
		.bytes = bytes,
		.rank = own->base.rank,
		.num_ranks = own->base.num_ranks,
	};
	int rc;

	if (own->broken) {
		return moeep_fail(MOEEP_ERR_RENDEZVOUS, "an earlier exchange failed");
	}
	rc = exchange_run(own, &mine, own->announcements, sizeof(mine), deadline);
	if (rc) {
		return rc;
	}
	own->round++;
	rc = announcements_check(own);
	if (rc || bytes == 0) {
		return rc;
	}
	return exchange_run(own, send, recv, bytes, deadline);
}

/* There is no connection of ours that could tell. */
static int callbacks_lost(struct moeep_boot *boot)
{
	(void)boot;
	return -1;
}

static void callbacks_close(struct moeep_boot *boot)
{
	struct callbacks *own = (struct callbacks *)boot;
	int64_t deadline = moeep_socket_deadline(ABANDONED_MS);

	/* If it is still in progress, its memory is left to it: somebody may yet write there. */
	if (own->abandoned.request && exchange_wait(own, own->abandoned.request, deadline) <= 0) {
		exchange_release(own, &own->abandoned);
	}
	free(own->announcements);
	free(own);
}

int moeep_boot_open_callbacks(const moeep_bootstrap_t *bootstrap, int rank, int num_ranks,
			      uint32_t timeout_ms, struct moeep_boot **boot)
{
	static const struct moeep_boot_ops ops = {
		.allgather = callbacks_allgather,
		.lost = callbacks_lost,
		.close = callbacks_close,
	};
	struct callbacks *own;
	int rc;

	own = calloc(1, sizeof(*own));
	if (!own) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for the bootstrap");
	}
	own->base.ops = &ops;
	own->base.rank = rank;
	own->base.num_ranks = num_ranks;
	own->round = 1;
	rc = moeep_struct_in("bootstrap", bootstrap, &own->user, sizeof(own->user));
	if (rc) {
		goto err_close;
	}
	if (!own->user.allgather) {
		rc = moeep_fail(MOEEP_ERR_INVALID, "bootstrap->allgather is NULL");
		goto err_close;
	}
	own->announcements = calloc((size_t)num_ranks, sizeof(*own->announcements));
	if (!own->announcements) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for the bootstrap");
		goto err_close;
	}
	/* An exchange of nothing: all ranks are there, in their places. */
	rc = callbacks_allgather(&own->base, NULL, NULL, 0, timeout_ms);
	if (rc) {
		goto err_close;
	}
	*boot = &own->base;
	return MOEEP_OK;

err_close:
	callbacks_close(&own->base);
	return rc;
}
