/* SPDX-License-Identifier: MIT */
/*
 *	scarce.t [RANK N]
 *
 * What the system gives is refused to one rank of two, at the n-th time that the library asks for
 *it, for each n: memory, descriptors, mappings, threads. The rank gets an error or does without;
 *its peer does not wait for ever; nobody crashes, and what was had is given back. The linker puts
 *the functions below in place of the C library's (--wrap), for the library's calls and those of
 *this file.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <moeep/moeep.h>

#include "t/fault/fault.h"
#include "t/fault/whole.h"
#include "t/tap.h"

#define RANKS	   2
#define MOST_N	   2000
#define TIMEOUT_MS 1500
/* A run that takes longer hangs. */
#define LIMIT_S 30

static atomic_long asked;
static long refuse_at = -1;
static const char *volatile refused;

/* Is this the one? Not in a process where nothing is refused. */
static bool refuse(const char *what)
{
	if (refuse_at < 0 || atomic_fetch_add(&asked, 1) != refuse_at) {
		return false;
	}
	refused = what;
	return true;
}

#define WRAP(type, name, parameters, arguments, failed, error)                                     \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		if (refuse(#name)) {                                                               \
			errno = error;                                                             \
			return failed;                                                             \
		}                                                                                  \
		return __real_##name arguments;                                                    \
	}

WRAP(void *, malloc, (size_t size), (size), NULL, ENOMEM)
WRAP(void *, calloc, (size_t count, size_t size), (count, size), NULL, ENOMEM)
WRAP(void *, realloc, (void *old, size_t size), (old, size), NULL, ENOMEM)
WRAP(void *, mmap, (void *at, size_t size, int prot, int flags, int fd, off_t offset),
     (at, size, prot, flags, fd, offset), MAP_FAILED, ENOMEM)
WRAP(int, memfd_create, (const char *name, unsigned int flags), (name, flags), -1, EMFILE)
WRAP(int, ftruncate, (int fd, off_t size), (fd, size), -1, ENOSPC)
/* It returns the error. */
WRAP(int, posix_fallocate, (int fd, off_t offset, off_t size), (fd, offset, size), ENOSPC, ENOSPC)
WRAP(int, socket, (int family, int type, int protocol), (family, type, protocol), -1, EMFILE)
WRAP(int, accept4, (int fd, struct sockaddr *address, socklen_t *length, int flags),
     (fd, address, length, flags), -1, EMFILE)
WRAP(int, pipe2, (int fds[2], int flags), (fds, flags), -1, EMFILE)
WRAP(int, eventfd, (unsigned int value, int flags), (value, flags), -1, EMFILE)
WRAP(FILE *, fopen, (const char *path, const char *mode), (path, mode), NULL, EMFILE)
WRAP(int, pthread_create,
     (pthread_t * thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument),
     (thread, attributes, start, argument), EAGAIN, EAGAIN)

/* The leak sanitizer's, where it is linked: not 0 if memory is lost. */
int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

struct shared {
	moeep_unique_id_t id;
	atomic_int ready;
	int result[RANKS];
	int leaked[RANKS];
	long asked[RANKS];
	char refused[RANKS][32];
	char detail[RANKS][200];
};

static void run_rank(struct shared *s, int rank, long n)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = TIMEOUT_MS};
	moeep_rendezvous_t *rendezvous = NULL;
	int fds = fault_count_fds();

	alarm(LIMIT_S);
	refuse_at = n;
	if (rank == 0) {
		s->result[0] = moeep_rendezvous_create(&config, &rendezvous, &s->id);
		atomic_store(&s->ready, s->result[0] == MOEEP_OK ? 1 : -1);
	} else {
		while (atomic_load(&s->ready) == 0) {
			(void)usleep(100);
		}
	}
	if (atomic_load(&s->ready) == 1) {
		s->result[rank] = whole_use(rank, RANKS, &s->id, TIMEOUT_MS);
	}
	snprintf(s->detail[rank], sizeof(s->detail[rank]), "%s", moeep_error_detail());
	(void)moeep_rendezvous_destroy(rendezvous);
	refuse_at = -1;
	s->leaked[rank] = fault_count_fds() - fds;
	s->asked[rank] = atomic_load(&asked);
	snprintf(s->refused[rank], sizeof(s->refused[rank]), "%s", refused ? refused : "nothing");
}

/* The n-th time is refused to a rank. 1: it did not come to that; 0: all is well; -1: not. */
static int try_refusal(struct shared *s, int victim, long n)
{
	pid_t children[RANKS];
	int bad = 0;

	memset(s, 0, sizeof(*s));
	for (int rank = 0; rank < RANKS; rank++) {
		s->result[rank] = 1;
		children[rank] = fork();
		if (children[rank] == 0) {
			run_rank(s, rank, rank == victim ? n : -1);
			_exit(__lsan_do_recoverable_leak_check &&
			      __lsan_do_recoverable_leak_check() != 0);
		}
	}
	for (int rank = 0; rank < RANKS; rank++) {
		int status = 0;

		(void)waitpid(children[rank], &status, 0);
		if (status != 0) {
			tap_diag("rank %d, refused %s as number %ld to rank %d: status 0x%x%s",
				 rank, s->refused[victim], n, victim, status,
				 WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? ", it hangs"
										    : "");
			bad++;
		} else if (s->leaked[rank] != 0) {
			tap_diag(
				"rank %d, refused %s as number %ld to rank %d: %d descriptors left",
				rank, s->refused[victim], n, victim, s->leaked[rank]);
			bad++;
		}
	}
	if (!bad && s->asked[victim] > n && s->result[victim] < 0 && !s->detail[victim][0]) {
		tap_diag("refused %s as number %ld to rank %d: no detail", s->refused[victim], n,
			 victim);
		bad++;
	}
	return bad ? -1 : s->asked[victim] <= n;
}

int main(int argc, char **argv)
{
	struct shared *s =
		mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (s == MAP_FAILED) {
		tap_bail("mmap: %s", strerror(errno));
	}
	setenv("MOEEP_LOG", "none", 1);
	setenv("MOEEP_SITE_FILE", "none", 1);
	if (argc > 2) {
		is_int(try_refusal(s, atoi(argv[1]), atol(argv[2])), 0, "number %s of rank %s",
		       argv[2], argv[1]);
		for (int rank = 0; rank < RANKS; rank++) {
			tap_diag("rank %d: refused %s, result %d: %s", rank, s->refused[rank],
				 s->result[rank], s->detail[rank]);
		}
		return tap_done();
	}
	for (int victim = 0; victim < RANKS; victim++) {
		int bad = 0, errors = 0, rc = 0;
		long n = 0;

		/* Short: each third one. */
		for (; n < MOST_N && rc <= 0; n += tap_quick() ? 3 : 1) {
			rc = try_refusal(s, victim, n);
			bad += rc < 0;
			errors += rc == 0 && s->result[victim] < 0;
		}
		ok(n > 20 && n < MOST_N, "rank %d asks so often: %ld", victim, s->asked[victim]);
		is_int(bad, 0, "refusals to rank %d that do harm", victim);
		ok(errors > 10, "%d of them are errors, with a detail", errors);
	}
	munmap(s, sizeof(*s));
	return tap_done();
}
