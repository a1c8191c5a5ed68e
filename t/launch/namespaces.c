/* SPDX-License-Identifier: MIT */
/*
 * Ranks in namespaces of their own, as in containers of one machine: what they need not share is
 * found out by the library, and what they must share is named if it is missing.
 */
#define _GNU_SOURCE
#include "config.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <moeep/moeep.h>

#include "t/tap.h"

#define RANKS	   3
#define MOST_BYTES 65536

/* Where ranks meet that cannot reach each other otherwise. */
struct meeting {
	atomic_int come[2]; /* by the round's parity, ever */
	unsigned char bytes[2][RANKS][MOST_BYTES];
	int result[RANKS];
	int isolated; /* errno of a namespace that cannot be had */
	char detail[RANKS][512];
	int num_nodes[RANKS];
	int local_ranks[RANKS];
};

struct rank {
	struct meeting *meeting;
	int rank;
	int round;
	size_t bytes;
	void *recv;
};

static int gather(void *context, const void *send, void *recv, size_t bytes, void **request)
{
	struct rank *r = context;

	if (bytes > MOST_BYTES) {
		return -1;
	}
	memcpy(r->meeting->bytes[r->round % 2][r->rank], send, bytes);
	atomic_fetch_add(&r->meeting->come[r->round % 2], 1);
	r->bytes = bytes;
	r->recv = recv;
	*request = r;
	return 0;
}

/* Nobody writes a slot again before all have read it: that takes the round between. */
static int test(void *context, void *request)
{
	struct rank *r = context;

	(void)request;
	if (atomic_load(&r->meeting->come[r->round % 2]) < RANKS * (r->round / 2 + 1)) {
		return 1;
	}
	for (int rank = 0; rank < RANKS; rank++) {
		memcpy((char *)r->recv + (size_t)rank * r->bytes,
		       r->meeting->bytes[r->round % 2][rank], r->bytes);
	}
	r->round++;
	return 0;
}

static void run_rank(struct meeting *meeting, int rank)
{
	struct rank own = {.meeting = meeting, .rank = rank};
	moeep_bootstrap_t bootstrap = {
		.size = sizeof(bootstrap), .context = &own, .allgather = gather, .test = test};
	moeep_comm_config_t config = {.size = sizeof(config),
				      .bootstrap = &bootstrap,
				      .backend = MOEEP_BACKEND_HOST,
				      .timeout_ms = 5000};
	moeep_comm_info_t info = {.size = sizeof(info)};
	moeep_comm_t *comm = NULL;
	int rc = moeep_comm_create(rank, RANKS, &config, &comm);

	if (rc == MOEEP_OK) {
		(void)moeep_comm_query(comm, &info);
		meeting->num_nodes[rank] = info.num_nodes;
		meeting->local_ranks[rank] = info.local_ranks;
		rc = moeep_comm_barrier(comm);
	}
	snprintf(meeting->detail[rank], sizeof(meeting->detail[rank]), "%s", moeep_error_detail());
	(void)moeep_comm_destroy(comm);
	meeting->result[rank] = rc;
}

/* In a process of its own, of which a new pid namespace needs one more. */
static void start_rank(struct meeting *meeting, int rank, int flags)
{
	if (fork() != 0) {
		return;
	}
	if (rank > 0 && flags) {
		if (unshare(flags | (geteuid() == 0 ? 0 : CLONE_NEWUSER)) != 0) {
			meeting->isolated = errno;
			_exit(0);
		}
		if (flags & CLONE_NEWUTS) {
			/* The same name as any other machine's. */
			if (sethostname("node", 4) != 0) {
				meeting->isolated = errno;
			}
		}
	}
	if (fork() == 0) {
		alarm(60);
		run_rank(meeting, rank);
		_exit(0);
	}
	(void)wait(NULL);
	_exit(0);
}

/* Ranks but the first get these namespaces. */
static struct meeting *run(int flags)
{
	struct meeting *meeting = mmap(NULL, sizeof(*meeting), PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (meeting == MAP_FAILED) {
		tap_bail("mmap: %s", strerror(errno));
	}
	for (int rank = 0; rank < RANKS; rank++) {
		meeting->result[rank] = 1;
	}
	for (int rank = 0; rank < RANKS; rank++) {
		start_rank(meeting, rank, flags);
	}
	while (wait(NULL) > 0) {
	}
	return meeting;
}

static void test_apart(const char *what, int flags)
{
	struct meeting *m = run(flags);

	if (tap_require("namespaces", m->isolated == 0, RANKS, "unshare: %s",
			strerror(m->isolated))) {
		for (int rank = 0; rank < RANKS; rank++) {
			ok(m->result[rank] == MOEEP_OK && m->num_nodes[rank] == 1 &&
				   m->local_ranks[rank] == RANKS,
			   "%s: rank %d meets the others on one host: %s", what, rank,
			   m->detail[rank]);
		}
	}
	munmap(m, sizeof(*m));
}

static void test_network(void)
{
	struct meeting *m = run(CLONE_NEWNET);

	if (tap_require("namespaces", m->isolated == 0, 2 * RANKS, "unshare: %s",
			strerror(m->isolated))) {
		for (int rank = 0; rank < RANKS; rank++) {
			is_int(m->result[rank], MOEEP_ERR_UNSUPPORTED,
			       "network namespaces apart: rank %d is refused", rank);
			ok(strstr(m->detail[rank], "network namespace"), "detail: %s",
			   m->detail[rank]);
		}
	}
	munmap(m, sizeof(*m));
}

int main(void)
{
	setenv("MOEEP_LOG", "none", 1);
	test_apart("none", 0);
	test_apart("host names apart", CLONE_NEWUTS);
	test_apart("pids apart", CLONE_NEWPID);
	test_apart("IPC and mounts apart", CLONE_NEWIPC | CLONE_NEWNS);
	test_apart("all of these", CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS);
	test_network();
	return tap_done();
}
