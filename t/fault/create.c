/* SPDX-License-Identifier: MIT */
/*
 * Faults while the ranks make their comm: one is struck before it joins, and before each thing that
 * it then sends or makes. The library's calls of the C library end up in the functions below,
 * which count them.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "t/fault/fault.h"
#include "t/tap.h"

/* Where the victim is struck: before that call from now; 0: nowhere. A hub's thread does not count.
 */
static _Thread_local struct fault_rank *victim;
static int strike_at;
static int points;

static void point(void)
{
	if (victim && ++points == strike_at) {
		(void)fault_strike(victim);
	}
}

ssize_t send(int fd, const void *data, size_t bytes, int flags)
{
	point();
	return syscall(SYS_sendto, fd, data, bytes, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
	point();
	return syscall(SYS_sendmsg, fd, message, flags);
}

int memfd_create(const char *name, unsigned int flags)
{
	point();
	return (int)syscall(SYS_memfd_create, name, flags);
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
	point();
	return (int)syscall(SYS_connect, fd, address, length);
}

static int create(struct fault_rank *r)
{
	int rc;

	if (r->victim) {
		victim = r;
		points = 0;
		strike_at = r->fault->arg;
	}
	fault_clock(r);
	rc = fault_join(r, 0, r->rank, r->num_ranks, fault_timeout(r->fault));
	if (r->victim) {
		victim = NULL;
		atomic_store(&r->shared->points, points);
	}
	return rc;
}

/* On a comm that is there. */
static int create_buffer(struct fault_rank *r)
{
	int rc;

	if (r->victim) {
		victim = r;
		points = 0;
		strike_at = r->fault->arg;
	}
	fault_clock(r);
	rc = fault_make(r);
	if (r->victim) {
		victim = NULL;
		atomic_store(&r->shared->points, points);
	}
	return rc;
}

static int join_late(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	fault_clock(r);
	return fault_join(r, 0, r->rank, r->num_ranks, fault_timeout(r->fault));
}

/* Before its first words it is a stranger, whom nobody can miss but by the time-out. */
#define STRANGER_POINTS 2
/* Until all have joined, nobody knows which rank a rendezvous belongs to. */
#define JOINING_POINTS 4

static void sweep(int rank, bool hosted, bool threads, enum fault_fate fate, int step)
{
	char name[100];
	char text[20];
	struct fault_case fault = {.name = name,
				   .fate = FATE_ABORTS,
				   .victim = rank,
				   .bare = true,
				   .hosted = hosted,
				   .harmless = true,
				   .act = create};
	int num_points;

	step *= tap_quick() ? 4 : 1;
	if (threads) {
		/* Two that share memory by numbers, whatever the other one has given up. */
		fault.num_ranks = 4;
		fault.process[1] = 1;
		fault.process[2] = fault.process[3] = 2;
	}

	snprintf(name, sizeof(name), "creation, counting the calls of rank %d", rank);
	fault_run(&fault);
	num_points = fault_last()->points;
	ok(num_points > 12, "%d calls", num_points);
	fault.harmless = false;
	fault.fate = fate;
	snprintf(text, sizeof(text), "rank %d", rank);
	for (int at = 1; at <= num_points; at += step) {
		snprintf(name, sizeof(name), "creation: rank %d %s at call %d of %d", rank,
			 fate == FATE_DIES ? "dies" : "is stopped", at, num_points);
		fault.arg = at;
		/* Long, where a death must not take that long. */
		fault.timeout_ms = fate == FATE_STOPS || at <= JOINING_POINTS ? 300 : 3000;
		fault.want.result = at <= STRANGER_POINTS && !hosted ? MOEEP_ERR_TIMEOUT : 0;
		fault.want.any_result = at <= JOINING_POINTS && hosted;
		fault.want.text = fault.want.any_result ? NULL : text;
		fault_run(&fault);
	}
}

/* All ranks have begun the call; the victim is struck in the exchanges that follow. */
static void sweep_buffer(int rank, enum fault_fate fate, int step)
{
	char name[100];
	struct fault_case fault = {.name = name,
				   .fate = FATE_ABORTS,
				   .victim = rank,
				   .harmless = true,
				   .act = create_buffer,
				   .want = {.operation = MOEEP_OP_BUFFER_CREATE, .epoch = 1}};
	int num_points;

	step *= tap_quick() ? 4 : 1;
	snprintf(name, sizeof(name), "buffer_create, counting the calls of rank %d", rank);
	fault_run(&fault);
	num_points = fault_last()->points;
	ok(num_points > 8, "%d calls", num_points);
	fault.harmless = false;
	fault.fate = fate;
	for (int at = 1; at <= num_points; at += step) {
		snprintf(name, sizeof(name), "buffer_create: rank %d %s at call %d of %d", rank,
			 fate == FATE_DIES ? "dies" : "is stopped", at, num_points);
		fault.arg = at;
		fault_run(&fault);
	}
}

/* An exchange over shared memory, as a framework has one: it cannot tell who died. */
#define EXCHANGE_BYTES 4096

struct exchange {
	_Atomic unsigned round[FAULT_RANKS_MAX];
	unsigned char data[2][FAULT_RANKS_MAX][EXCHANGE_BYTES];
};

struct exchanger {
	struct exchange *exchange;
	int rank;
	int num_ranks;
	unsigned round;
	size_t bytes;
	unsigned char *recv;
};

static struct exchange *exchange;

static int exchange_begin(void *context, const void *send_bytes, void *recv, size_t bytes,
			  void **request)
{
	struct exchanger *own = context;

	own->round++;
	own->recv = recv;
	own->bytes = bytes;
	if (bytes > EXCHANGE_BYTES) {
		return -1;
	}
	memcpy(own->exchange->data[own->round % 2][own->rank], send_bytes, bytes);
	atomic_store(&own->exchange->round[own->rank], own->round);
	*request = own;
	return 0;
}

static int exchange_test(void *context, void *request)
{
	struct exchanger *own = context;

	(void)request;
	for (int rank = 0; rank < own->num_ranks; rank++) {
		if (atomic_load(&own->exchange->round[rank]) < own->round) {
			return 1;
		}
	}
	for (int rank = 0; rank < own->num_ranks; rank++) {
		memcpy(own->recv + (size_t)rank * own->bytes,
		       own->exchange->data[own->round % 2][rank], own->bytes);
	}
	return 0;
}

static int join_exchange(struct fault_rank *r, struct exchanger *own)
{
	moeep_bootstrap_t bootstrap = {.size = sizeof(bootstrap),
				       .context = own,
				       .allgather = exchange_begin,
				       .test = exchange_test};
	moeep_comm_config_t config = {.size = sizeof(config),
				      .bootstrap = &bootstrap,
				      .backend = MOEEP_BACKEND_HOST,
				      .timeout_ms = fault_timeout(r->fault)};

	*own = (struct exchanger){.exchange = exchange, .rank = r->rank, .num_ranks = r->num_ranks};
	return moeep_comm_create(r->rank, r->num_ranks, &config, &r->comm);
}

/* No rendezvous: that a rank is gone is seen by its lifeline alone. */
static int barrier_after_exchange(struct fault_rank *r)
{
	static struct exchanger own;
	int rc = join_exchange(r, &own);

	if (rc == MOEEP_OK) {
		rc = moeep_comm_barrier(r->comm);
	}
	if (!fault_ok(r, rc) || (r->victim && fault_strike(r))) {
		return rc;
	}
	fault_clock(r);
	return moeep_comm_barrier(r->comm);
}

/* It becomes another program, which the others can do without. */
static int barrier_after_exec(struct fault_rank *r)
{
	static struct exchanger own;
	int rc = join_exchange(r, &own);

	if (fault_ok(r, rc) && r->victim) {
		atomic_store(&r->slot->struck_ns, fault_now_ns());
		execl("/bin/sh", "sh", "-c", "sleep 1; kill -KILL $$", (char *)NULL);
	}
	fault_clock(r);
	return moeep_comm_barrier(r->comm);
}

/* A rank with a child of its own, a loader of data: that one lives on, with all descriptors. */
static int barrier_with_child(struct fault_rank *r)
{
	if (r->victim) {
		if (fork() == 0) {
			for (int i = 0; i < 1500 && (!r->shared->slot[0].finished ||
						     !r->shared->slot[1].finished);
			     i++) {
				fault_sleep_ms(2);
			}
			_exit(0);
		}
		fault_strike(r);
	}
	return moeep_comm_barrier(r->comm);
}

static int barrier(struct fault_rank *r)
{
	if (r->victim && fault_strike(r)) {
		return MOEEP_OK;
	}
	return moeep_comm_barrier(r->comm);
}

static void after_creation(void)
{
	struct fault_case fault = {.act = barrier, .want = {.operation = MOEEP_OP_BARRIER}};

	fault.name = "rank 0, the host of the rendezvous, dies";
	fault.hosted = true;
	fault.fate = FATE_DIES;
	fault_run(&fault);
	fault.name = "rank 0, the host of the rendezvous, is stopped";
	fault.fate = FATE_STOPS;
	/* The good-bye has no answer. */
	fault.destroy_ms = 1500;
	fault_run(&fault);
	fault.name = "rank 2, a guest, dies";
	fault.destroy_ms = 0;
	fault.fate = FATE_DIES;
	fault.victim = 2;
	fault_run(&fault);

	fault.hosted = false;
	fault.bare = true;
	fault.act = barrier_after_exchange;
	for (int fate = FATE_DIES; fate <= FATE_LEAVES; fate++) {
		static const char *const fates[] = {"", "dies", "is stopped", "is late", "leaves"};
		char name[100];

		snprintf(name, sizeof(name), "without a rendezvous, rank 1 %s", fates[fate]);
		memset(exchange, 0, sizeof(*exchange));
		fault.name = name;
		fault.fate = fate;
		fault.victim = 1;
		fault_run(&fault);
	}
	memset(exchange, 0, sizeof(*exchange));
	fault.act = barrier_after_exec;
	fault.name = "without a rendezvous, rank 1 becomes another program";
	fault.fate = FATE_DIES;
	fault_run(&fault);
	fault.bare = false;
	fault.act = barrier_with_child;
	fault.name = "rank 2 dies and leaves a child of its own";
	fault.fate = FATE_DIES;
	fault.victim = 2;
	fault_run(&fault);
}

int main(void)
{
	struct fault_case absent = {.name = "creation: rank 1 joins too late",
				    .fate = FATE_LATE,
				    .victim = 1,
				    .bare = true,
				    .act = join_late,
				    .want = {.text = "rank 1"}};

	exchange = mmap(NULL, sizeof(*exchange), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			-1, 0);
	if (exchange == MAP_FAILED) {
		tap_bail("mmap failed");
	}
	fault_begin();
	fault_run(&absent);
	sweep(1, false, false, FATE_DIES, 1);
	sweep(0, false, false, FATE_DIES, 1);
	sweep(2, false, false, FATE_STOPS, 3);
	sweep(0, false, true, FATE_DIES, 2);
	sweep(0, true, false, FATE_DIES, 3);
	sweep(0, true, false, FATE_STOPS, 7);
	sweep_buffer(2, FATE_DIES, 1);
	sweep_buffer(1, FATE_STOPS, 4);
	sweep_buffer(0, FATE_STOPS, 5);
	after_creation();
	return fault_end();
}
