/* SPDX-License-Identifier: MIT */
/*
 * About each second system call that may be is interrupted by a signal, and sockets give and take a
 * few bytes at a time: all goes on as if nothing were. The linker puts the functions below in place
 * of the C library's (--wrap).
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "t/fault/whole.h"
#include "t/tap.h"

#define RUNS	   20
#define TIMEOUT_MS 20000
#define LIMIT_S	   120

static atomic_int armed;
static atomic_ulong calls, interruptions, parts;

/* About each second time: two calls in a loop are not to take turns for ever. */
static bool interrupt(void)
{
	if (!armed || (atomic_fetch_add(&calls, 1) * 0x9e3779b97f4a7c15u >> 40) % 2 == 0) {
		return false;
	}
	atomic_fetch_add(&interruptions, 1);
	errno = EINTR;
	return true;
}

/* A few of so many bytes. */
static size_t part(size_t bytes)
{
	size_t few = 1 + (atomic_load(&calls) * 7) % 61;

	if (!armed || bytes <= few) {
		return bytes;
	}
	atomic_fetch_add(&parts, 1);
	return few;
}

#define WRAP(type, name, parameters, arguments)                                                    \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		return interrupt() ? -1 : __real_##name arguments;                                 \
	}

WRAP(ssize_t, send, (int fd, const void *data, size_t bytes, int flags),
     (fd, data, part(bytes), flags))
WRAP(ssize_t, recv, (int fd, void *data, size_t bytes, int flags), (fd, data, part(bytes), flags))
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))
WRAP(int, poll, (struct pollfd * fds, nfds_t count, int timeout), (fds, count, timeout))
WRAP(int, accept4, (int fd, struct sockaddr *address, socklen_t *length, int flags),
     (fd, address, length, flags))

int __real_posix_fallocate(int fd, off_t offset, off_t size);
int __wrap_posix_fallocate(int fd, off_t offset, off_t size);
int __wrap_posix_fallocate(int fd, off_t offset, off_t size)
{
	return interrupt() ? EINTR : __real_posix_fallocate(fd, offset, size);
}

struct shared {
	moeep_unique_id_t id;
	atomic_int ready;
	int failed[WHOLE_RANKS];
	int result[WHOLE_RANKS];
	unsigned long interruptions[WHOLE_RANKS];
	unsigned long parts[WHOLE_RANKS];
	char detail[WHOLE_RANKS][200];
};

static void nothing(int sig)
{
	(void)sig;
}

/* A signal each half millisecond, which ends whatever waits. */
static void start_signals(void)
{
	struct sigaction action = {.sa_handler = nothing};
	struct itimerval often = {{0, 500}, {0, 500}};

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
}

static void run_rank(struct shared *s, int rank)
{
	start_signals();
	armed = 1;
	for (int run = 0; run < RUNS; run++) {
		moeep_rendezvous_t *rendezvous = NULL;
		int rc = MOEEP_OK;

		if (rank == 0) {
			rc = moeep_rendezvous_create(NULL, &rendezvous, &s->id);
			atomic_store(&s->ready, run + 1);
		}
		while (atomic_load(&s->ready) <= run) {
			(void)usleep(100);
		}
		if (rc == MOEEP_OK) {
			rc = whole_use(rank, WHOLE_RANKS, &s->id, TIMEOUT_MS);
		}
		if (rc != MOEEP_OK) {
			s->failed[rank]++;
			s->result[rank] = rc;
			snprintf(s->detail[rank], sizeof(s->detail[rank]), "%s",
				 moeep_error_detail());
		}
		(void)moeep_rendezvous_destroy(rendezvous);
	}
	armed = 0;
	s->interruptions[rank] = atomic_load(&interruptions);
	s->parts[rank] = atomic_load(&parts);
}

int main(void)
{
	struct shared *s =
		mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t children[WHOLE_RANKS];

	if (s == MAP_FAILED) {
		tap_bail("mmap: %s", strerror(errno));
	}
	setenv("MOEEP_LOG", "none", 1);
	setenv("MOEEP_SITE_FILE", "none", 1);
	for (int rank = 0; rank < WHOLE_RANKS; rank++) {
		children[rank] = fork();
		if (children[rank] == 0) {
			run_rank(s, rank);
			_exit(0);
		}
	}
	for (int waited = 0; waited < LIMIT_S * 10; waited++) {
		bool over = true;

		for (int rank = 0; rank < WHOLE_RANKS; rank++) {
			int status = 0;

			if (children[rank] > 0 && waitpid(children[rank], &status, WNOHANG) > 0) {
				is_int(status, 0, "rank %d ends", rank);
				children[rank] = 0;
			}
			over = over && children[rank] == 0;
		}
		if (over) {
			break;
		}
		(void)usleep(100000);
	}
	for (int rank = 0; rank < WHOLE_RANKS; rank++) {
		if (children[rank] > 0) {
			ok(0, "rank %d ends within %d s", rank, LIMIT_S);
			(void)kill(children[rank], SIGKILL);
			(void)waitpid(children[rank], NULL, 0);
		}
		is_int(s->failed[rank], 0, "rank %d: runs of %d that fail", rank, RUNS) ||
			(tap_diag("the last: %d: %s", s->result[rank], s->detail[rank]), 0);
		ok(s->interruptions[rank] > RUNS, "its calls were interrupted: %lu times",
		   s->interruptions[rank]);
		ok(s->parts[rank] > RUNS, "and what they moved was cut: %lu times", s->parts[rank]);
	}
	munmap(s, sizeof(*s));
	return tap_done();
}
