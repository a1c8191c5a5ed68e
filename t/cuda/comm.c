/* SPDX-License-Identifier: MIT */
/*
 * Comms on the fake CUDA driver: whatever fails, on one rank or on all, every rank is told and
 * nothing is left over.
 */
#include "config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <moeep/moeep.h>

#include "cuda/driver_calls.h"
#include "t/cuda/child.h"
#include "t/fault/fault.h"
#include "t/tap.h"

#define FAKE	  "MOEEP_CUDA_DRIVER=" FAKE_DRIVER
#define NUM_RANKS 3
#define LOG_BYTES 4000
/* More allocations than creating a comm makes. */
#define MAX_ALLOCATIONS 100

struct rank {
	int rank;
	int rc;
	int destroyed; /* the result of that */
	int backend;
	int device;
	int live; /* with processes */
	char detail[CHILD_DETAIL_BYTES];
	char log[LOG_BYTES];
	pthread_t thread;
};

/* What the ranks of a run do. The memory is shared by all processes. */
static struct group {
	moeep_unique_id_t id;
	int backend;
	bool processes;
	const char *odd_driver; /* of rank 1, if it is not like the others'; with processes */
	struct rank ranks[NUM_RANKS];
} * group;

static void note_log(void *context, int level, const char *line)
{
	struct rank *rank = context;
	size_t used = strlen(rank->log);

	(void)level;
	snprintf(rank->log + used, sizeof(rank->log) - used, "%s\n", line);
}

static void *run_rank(void *arg)
{
	struct rank *rank = arg;
	moeep_comm_config_t config = {.size = sizeof(config),
				      .id = &group->id,
				      .backend = group->backend,
				      .timeout_ms = 20000,
				      .log = note_log,
				      .log_context = rank};
	moeep_comm_info_t info = {.size = sizeof(info)};
	moeep_comm_t *comm = NULL;

	rank->rc = moeep_comm_create(rank->rank, NUM_RANKS, &config, &comm);
	snprintf(rank->detail, sizeof(rank->detail), "%s", moeep_error_detail());
	if (rank->rc == MOEEP_OK) {
		moeep_comm_query(comm, &info);
		rank->backend = info.backend;
		rank->device = info.device;
		rank->destroyed = moeep_comm_destroy(comm);
	}
	return NULL;
}

static void run_process(struct rank *rank)
{
	int before = fault_count_fds();

	alarm(60);
	if (group->odd_driver && rank->rank == 1) {
		setenv("MOEEP_CUDA_DRIVER", group->odd_driver, 1);
	}
	run_rank(rank);
	rank->live = child_live();
	_exit(fault_count_fds() == before ? 0 : 2);
}

/* In a child: run the group. rc is the number of ranks whose process left files open or died. */
static void run_group(struct child *child)
{
	moeep_rendezvous_t *rendezvous;
	pid_t pids[NUM_RANKS];
	int before = fault_count_fds();

	if (moeep_rendezvous_create(NULL, &rendezvous, &group->id) != MOEEP_OK) {
		child->rc = -1;
		return;
	}
	for (int i = 0; i < NUM_RANKS; i++) {
		struct rank *rank = &group->ranks[i];

		rank->rank = i;
		if (!group->processes) {
			child->rc += pthread_create(&rank->thread, NULL, run_rank, rank) != 0;
			continue;
		}
		pids[i] = fork();
		if (pids[i] == 0) {
			run_process(rank);
		}
	}
	for (int i = 0; i < NUM_RANKS; i++) {
		int status = 0;

		if (group->processes) {
			waitpid(pids[i], &status, 0);
		} else {
			pthread_join(group->ranks[i].thread, NULL);
		}
		child->rc += status != 0;
	}
	moeep_rendezvous_destroy(rendezvous);
	child->rc += fault_count_fds() != before;
}

/* False if it did not end as it should whatever the ranks' results: in time, and with nothing left.
 */
static bool run(int backend, bool processes, const char *const *environment)
{
	const struct child *child;
	bool sound;

	memset(group->ranks, 0, sizeof(group->ranks));
	group->backend = backend;
	group->processes = processes;
	child = child_run(run_group, environment);
	sound = child->ended && child->rc == 0 && child->live <= 0;
	for (int i = 0; i < NUM_RANKS; i++) {
		const struct rank *rank = &group->ranks[i];

		sound &= rank->destroyed == MOEEP_OK && rank->live <= 0;
		sound &= rank->rc == MOEEP_OK || rank->detail[0] != '\0';
		sound &= rank->rc == group->ranks[0].rc && rank->backend == group->ranks[0].backend;
	}
	if (!sound) {
		tap_diag("the child: ended %d, failures %d, alive %d", child->ended, child->rc,
			 child->live);
		for (int i = 0; i < NUM_RANKS; i++) {
			tap_diag("rank %d: %d, destroyed %d, alive %d, backend %d: %s", i,
				 group->ranks[i].rc, group->ranks[i].destroyed,
				 group->ranks[i].live, group->ranks[i].backend,
				 group->ranks[i].detail);
		}
	}
	return sound;
}

static int told(const char *text)
{
	int count = 0;

	for (int i = 0; i < NUM_RANKS; i++) {
		count += strstr(group->ranks[i].detail, text) != NULL;
	}
	return count;
}

struct cause {
	const char *what;
	const char *environment[4];
	int rc;
	const char *text; /* in the detail of all ranks, and in the log if AUTO takes the host */
};

static const struct cause causes[] = {
	{"no driver", {"MOEEP_CUDA_DRIVER=/nonexistent"}, MOEEP_ERR_UNSUPPORTED, "no CUDA driver"},
	{"an old driver",
	 {FAKE, "FAKE_CUDA_VERSION=11080"},
	 MOEEP_ERR_UNSUPPORTED,
	 "12.0 or later is needed"},
	{"a driver that lacks a function",
	 {"MOEEP_CUDA_DRIVER=" FAKE_INCOMPLETE},
	 MOEEP_ERR_UNSUPPORTED,
	 "cuLaunchKernelEx"},
	{"no device", {FAKE, "FAKE_CUDA_DEVICES=0"}, MOEEP_ERR_UNSUPPORTED, "CUDA_ERROR_NO_DEVICE"},
	{"a device without kernels", {FAKE, "FAKE_CUDA_CAPABILITY=70"}, MOEEP_ERR_UNSUPPORTED, ""},
};

#define NUM_CAUSES (sizeof(causes) / sizeof(causes[0]))

static void test_causes(void)
{
	for (size_t i = 0; i < NUM_CAUSES; i++) {
		const struct cause *cause = &causes[i];

		for (int processes = 0; processes < 2; processes++) {
			ok(run(MOEEP_BACKEND_CUDA, processes, cause->environment), "%s, %s",
			   cause->what, processes ? "processes" : "threads");
			is_int(group->ranks[0].rc, cause->rc, "fails");
			is_int(told(cause->text), NUM_RANKS, "all ranks are told: %s",
			       group->ranks[NUM_RANKS - 1].detail);
		}
	}
}

static void test_auto(void)
{
	for (size_t i = 0; i < NUM_CAUSES; i++) {
		const char *environment[5] = {"MOEEP_LOG=info"};
		const struct cause *cause = &causes[i];
		int logged = 0;

		memcpy(environment + 1, cause->environment, sizeof(cause->environment));
		ok(run(MOEEP_BACKEND_AUTO, false, environment), "auto with %s", cause->what);
		is_int(group->ranks[0].rc, MOEEP_OK, "succeeds: %s", group->ranks[0].detail);
		is_int(group->ranks[0].backend, MOEEP_BACKEND_HOST, "with the host backend");
		is_int(group->ranks[0].device, -1, "and no device");
		for (int rank = 0; rank < NUM_RANKS; rank++) {
			logged += strstr(group->ranks[rank].log, cause->text) != NULL;
		}
		ok(logged > 0, "the log has the cause: %s", group->ranks[0].log);
	}
}

static void test_odd_rank(void)
{
	static const char *const fake[] = {FAKE, NULL};

	group->odd_driver = "/nonexistent";
	ok(run(MOEEP_BACKEND_CUDA, true, fake), "one rank without a driver");
	is_int(group->ranks[0].rc, MOEEP_ERR_UNSUPPORTED, "all ranks fail");
	is_int(told("no CUDA driver"), NUM_RANKS, "and are told: %s", group->ranks[0].detail);
	is_int(told("rank 1"), NUM_RANKS, "and of which rank it is");
	ok(run(MOEEP_BACKEND_AUTO, true, fake), "the same with auto");
	group->odd_driver = NULL;
}

static void test_success(void)
{
	static const char *const fake[] = {FAKE, NULL};

	for (int processes = 0; processes < 2; processes++) {
		const char *how = processes ? "processes" : "threads";

		ok(run(MOEEP_BACKEND_CUDA, processes, fake), "a comm of %s", how);
		is_int(group->ranks[0].rc, MOEEP_OK, "is made: %s", group->ranks[0].detail);
		is_int(group->ranks[0].backend, MOEEP_BACKEND_CUDA, "for CUDA");
		ok(run(MOEEP_BACKEND_AUTO, processes, fake), "auto, %s", how);
		is_int(group->ranks[0].backend, MOEEP_BACKEND_CUDA, "takes CUDA");
	}
}

/* Each allocation of the first rank that comes to it fails in turn. */
static void test_allocations(void)
{
	char fail[64];
	const char *const environment[] = {FAKE, fail, NULL};
	int failures = 0;
	int sound = 0;
	int runs = 0;

	for (int n = 1; n <= MAX_ALLOCATIONS; n++) {
		snprintf(fail, sizeof(fail), "FAKE_CUDA_FAIL=alloc:2:%d", n);
		runs++;
		sound += run(MOEEP_BACKEND_CUDA, false, environment);
		if (group->ranks[0].rc == MOEEP_OK) {
			break;
		}
		if (group->ranks[0].rc == MOEEP_ERR_NOMEM &&
		    told("CUDA_ERROR_OUT_OF_MEMORY") == NUM_RANKS) {
			failures++;
		} else {
			tap_diag("allocation %d: %d: %s", n, group->ranks[0].rc,
				 group->ranks[0].detail);
		}
	}
	is_int(group->ranks[0].rc, MOEEP_OK, "without a failure a comm is made");
	is_int(failures, runs - 1, "all ranks are told of each of %d failures", runs - 1);
	is_int(sound, runs, "nothing is left of them");
}

/* Whatever function fails, a comm is made without it or all ranks are told its name. */
static void test_functions(void)
{
#define NAME_ROW(name, symbol, parameters) #name,
	static const char *const names[] = {MOEEP_CU_CALLS(NAME_ROW)};
#undef NAME_ROW
	const int num_names = (int)(sizeof(names) / sizeof(names[0]));
	char fail[96];
	const char *const environment[] = {FAKE, fail, NULL};
	int failed = 0;
	int sound = 0;
	int untold = 0;

	for (int i = 0; i < num_names; i++) {
		/* Releasing what is held cannot fail usefully; the fake would count what is left.
		 */
		bool releases = strstr(names[i], "Release") || strstr(names[i], "Free") ||
				strstr(names[i], "Unmap") || strstr(names[i], "Destroy") ||
				strstr(names[i], "Unload") || strstr(names[i], "Unregister") ||
				strstr(names[i], "PopCurrent") || strstr(names[i], "Close");

		snprintf(fail, sizeof(fail), "FAKE_CUDA_FAIL=%s:999", names[i]);
		if (releases) {
			sound++;
			continue;
		}
		if (run(MOEEP_BACKEND_CUDA, false, environment)) {
			sound++;
		} else {
			tap_diag("with %s failing", names[i]);
		}
		if (group->ranks[0].rc != MOEEP_OK) {
			failed++;
			if (told(names[i]) != NUM_RANKS) {
				untold++;
				tap_diag("%s: %s", names[i], group->ranks[0].detail);
			}
		}
	}
	ok(failed >= 3, "%d functions matter for a comm", failed);
	is_int(untold, 0, "all ranks are told which one failed");
	is_int(sound, num_names, "nothing is left");
}

/* What the build lacks for CUDA, or NULL. */
static const char *missing_kernels(void)
{
	static moeep_feature_info_t info;

	for (unsigned i = 0;; i++) {
		info.size = sizeof(info);
		if (moeep_feature_query(i, &info) != MOEEP_OK) {
			return "there is no such feature";
		}
		if (strcmp(info.name, "cuda") == 0) {
			return info.enabled ? NULL : info.reason;
		}
	}
}

int main(void)
{
	const char *missing = missing_kernels();

	unsetenv("MOEEP_CUDA_DRIVER");
	/* Kernels are launched once when they are loaded. */
	setenv("FAKE_CUDA_LAUNCH", "1", 1);
	tap_require_all("shared", child_have_fake(), "%s was not built here", FAKE_DRIVER);
	tap_require_all("nvcc", !missing, "the build has no kernels: %s", missing ? missing : "");
	group = mmap(NULL, sizeof(*group), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (group == MAP_FAILED) {
		tap_bail("no memory for a group");
	}
	test_causes();
	test_auto();
	test_odd_rank();
	test_success();
	test_allocations();
	test_functions();
	return tap_done();
}
