/* SPDX-License-Identifier: MIT */
/*
 * What a rank's own program does to its process: children by fork(), which have copies of all
 * descriptors and mappings, and a limit of locked memory.
 */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "t/fault/fault.h"
#include "t/tap.h"

/* Longer than any case, so that a child of a rank that died is still there. */
#define CHILD_S 20

static int use(struct fault_rank *r)
{
	int rc = fault_dispatch(r, NULL);

	return rc == MOEEP_OK ? fault_combine(r, r->received, NULL) : rc;
}

enum end { BY_EXIT, BY_RETURN_OF_EXEC, BY_SIGNAL };

/* Children of every rank, one after the other; the group goes on. */
static int children_end(struct fault_rank *r)
{
	for (int how = BY_EXIT; how <= BY_SIGNAL; how++) {
		pid_t child = fork();
		int status = -1, rc;

		if (child == 0) {
			switch (how) {
			case BY_EXIT:
				_exit(0);
			case BY_RETURN_OF_EXEC:
				execl("/bin/sh", "sh", "-c", "exit 0", (char *)NULL);
				_exit(1);
			default:
				raise(SIGKILL);
			}
		}
		fault_check(r, child > 0 && waitpid(child, &status, 0) == child, "a child: %s",
			    strerror(errno));
		fault_check(r, how == BY_SIGNAL ? WIFSIGNALED(status) : status == 0,
			    "child %d ended with status 0x%x", how, (unsigned int)status);
		rc = use(r);
		if (rc != MOEEP_OK) {
			return rc;
		}
	}
	if (r->victim) {
		fault_strike(r);
	}
	return MOEEP_OK;
}

/* A rank dies and leaves a child, which has the other ends of all that its peers look at. */
static int child_stays(struct fault_rank *r)
{
	if (r->victim) {
		pid_t child = fork();

		if (child == 0) {
			/*
			 * The harness waits for who has its output, and the rendezvous for who has
			 * its connection, which moeep(7) warns of.
			 */
			for (int fd = 0; fd < 1024; fd++) {
				struct stat is;

				if (fd < 3 || (fstat(fd, &is) == 0 && S_ISSOCK(is.st_mode))) {
					close(fd);
				}
			}
			sleep(CHILD_S);
			_exit(0);
		}
		r->shared->points = child;
		if (fault_strike(r)) {
			return MOEEP_OK;
		}
	}
	return use(r);
}

/* No rank may lock any memory; the superuser gives up the right to, as it has no limit. */
static int no_lock(struct fault_rank *r)
{
	const struct rlimit none = {0, 0};
	int rc;

	fault_check(r, setrlimit(RLIMIT_MEMLOCK, &none) == 0, "setrlimit: %s", strerror(errno));
	if (geteuid() == 0) {
		fault_check(r, setresuid(65534, 65534, 65534) == 0, "setresuid: %s",
			    strerror(errno));
	}
	rc = fault_make_and_use(r);
	if (rc == MOEEP_OK) {
		rc = moeep_mem_alloc(r->comm, 1 << 20, 0, &r->symmetric);
	}
	return rc == MOEEP_OK ? use(r) : rc;
}

static int strike(struct fault_rank *r)
{
	if (r->victim) {
		fault_strike(r);
	}
	return MOEEP_OK;
}

int main(void)
{
	static const struct fault_case cases[] = {
		{
			.name = "children of ranks end in different ways",
			.fate = FATE_LEAVES,
			.victim = 1,
			.harmless = true,
			.prepare = fault_make_and_use,
			.act = children_end,
		},
		{
			.name = "rank 1 dies, and a child of it lives",
			.fate = FATE_DIES,
			.victim = 1,
			.prepare = fault_make_and_use,
			.act = child_stays,
			.want = {.operation = MOEEP_OP_DISPATCH, .epoch = 3},
		},
		{
			.name = "no memory may be locked",
			.fate = FATE_LEAVES,
			.victim = 2,
			.harmless = true,
			.prepare = no_lock,
			.act = strike,
		},
	};

	fault_begin();
	for (int i = 0; i < (int)(sizeof(cases) / sizeof(cases[0])); i++) {
		fault_run(&cases[i]);
		/* The one that was left. */
		if (cases[i].act == child_stays && fault_last()->points > 1) {
			ok(kill(fault_last()->points, SIGKILL) == 0, "its child was there");
		}
	}
	return fault_end();
}
