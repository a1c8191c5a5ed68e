/* SPDX-License-Identifier: MIT */
/*
 *	fault.t [WORD...]
 *
 * The groups and their scenes; the parent of their processes. With words, only the scenes whose
 *names have all of them, with thread ranks where that can be.
 */
#include "config.h"

#include "t/cuda/fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "t/device.h"
#include "t/ranks.h"
#include "t/tap.h"

/* A group that takes longer hangs. */
#define LIMIT_S 150

static const struct fault_scene scenes[] = {
	{"a rank comes late to dispatch", FATE_LATE, CALL_DISPATCH, FIELD_NONE, 2, false},
	{"a rank comes late to combine", FATE_LATE, CALL_COMBINE, FIELD_NONE, 1, false},
	{"a rank comes late to LL SEND", FATE_LATE, CALL_LL_RECV, FIELD_NONE, 0, false},
	{"a rank comes late to LL RECV", FATE_LATE, CALL_LL_SEND, FIELD_NONE, 2, false},
	{"a rank comes late to LL combine", FATE_LATE, CALL_LL_CRECV, FIELD_NONE, 1, false},
	{"abort while dispatch spins", FATE_ABORTS, CALL_DISPATCH, FIELD_NONE, 0, false},
	{"abort while combine spins", FATE_ABORTS, CALL_COMBINE, FIELD_NONE, 1, false},
	{"abort while LL dispatch spins", FATE_ABORTS, CALL_LL_DISPATCH, FIELD_NONE, 2, false},
	{"abort while LL combine spins", FATE_ABORTS, CALL_LL_COMBINE, FIELD_NONE, 0, false},
	{"abort while replays of graphs are queued", FATE_ABORTS_GRAPH, CALL_DISPATCH, FIELD_NONE,
	 1, false},
	{"a rank is refused its dispatch", FATE_REFUSED, CALL_DISPATCH, FIELD_FLAGS, 1, false},
	{"a rank is refused its combine", FATE_REFUSED, CALL_COMBINE, FIELD_FLAGS, 2, false},
	{"a rank is refused its LL dispatch", FATE_REFUSED, CALL_LL_DISPATCH, FIELD_FLAGS, 0,
	 false},
	{"a rank is refused its LL combine", FATE_REFUSED, CALL_LL_COMBINE, FIELD_FLAGS, 1, false},
	{"all ranks are refused, one is late", FATE_ALL_REFUSED, CALL_DISPATCH, FIELD_FLAGS, 2,
	 false},
	{"all ranks are refused LL, one is late", FATE_ALL_REFUSED, CALL_LL_DISPATCH, FIELD_FLAGS,
	 0, false},
	{"more SMs than there are", FATE_ASKS, CALL_DISPATCH, FIELD_NONE, 0, false},
};

static const struct fault_scene disagreements[] = {
	{"dispatch with another dtype", FATE_DIFFERS, CALL_DISPATCH, FIELD_DTYPE, 1, false},
	{"dispatch with another topk", FATE_DIFFERS, CALL_DISPATCH, FIELD_TOPK, 2, false},
	{"combine with another dtype", FATE_DIFFERS, CALL_COMBINE, FIELD_DTYPE, 0, false},
	{"LL dispatch with another dtype", FATE_DIFFERS, CALL_LL_DISPATCH, FIELD_DTYPE, 2, false},
	{"LL dispatch with another quant", FATE_DIFFERS, CALL_LL_DISPATCH, FIELD_QUANT, 0, false},
	{"LL dispatch with another topk", FATE_DIFFERS, CALL_LL_DISPATCH, FIELD_TOPK, 1, false},
	{"LL combine with another dtype", FATE_DIFFERS, CALL_LL_COMBINE, FIELD_DTYPE, 1, false},
};

static const struct fault_scene stops[] = {
	{"a rank is stopped before dispatch", FATE_STOPPED, CALL_DISPATCH, FIELD_NONE, 1, false},
	{"a rank is stopped before combine", FATE_STOPPED, CALL_COMBINE, FIELD_NONE, 0, false},
	{"a rank is stopped before LL SEND", FATE_STOPPED, CALL_LL_RECV, FIELD_NONE, 2, false},
	{"a rank is stopped before LL RECV", FATE_STOPPED, CALL_LL_SEND, FIELD_NONE, 0, false},
};

/* Each the only fault of its group. */
static const struct fault_scene deaths[] = {
	{"a rank is killed before dispatch", FATE_KILLED, CALL_DISPATCH, FIELD_NONE, 1, false},
	{"a rank is killed before combine", FATE_KILLED, CALL_COMBINE, FIELD_NONE, 0, false},
	{"a rank is killed before LL SEND", FATE_KILLED, CALL_LL_RECV, FIELD_NONE, 2, false},
	{"a rank is killed before LL RECV", FATE_KILLED, CALL_LL_SEND, FIELD_NONE, 1, false},
	{"a rank is killed while its dispatch spins", FATE_KILLED_BUSY, CALL_DISPATCH, FIELD_NONE,
	 0, true},
	{"a rank is killed while its LL dispatch spins", FATE_KILLED_BUSY, CALL_LL_DISPATCH,
	 FIELD_NONE, 1, true},
};

static const struct fault_scene last = {
	"the same ranks once more", FATE_NONE, CALL_DISPATCH, FIELD_NONE, 0, false,
};

static void run_rank(const struct fault_group *group, int number)
{
	struct fault_rank *r = calloc(1, sizeof(*r));

	r->group = group;
	r->number = number;
	fault_rank_run(r);
	free(r);
}

static void await_go(const struct fault_group *group)
{
	while (!atomic_load(&group->shared->go)) {
		fault_sleep_ms(1);
	}
}

struct member {
	const struct fault_group *group;
	int number;
	pthread_t thread;
};

static void *rank_thread(void *arg)
{
	struct member *member = arg;

	run_rank(member->group, member->number);
	return NULL;
}

/* A rank, or all of them: only children use CUDA. */
static pid_t start(const struct fault_group *group, int number)
{
	struct member members[FAULT_RANKS];
	pid_t parent = getpid(), pid = fork();

	if (pid < 0) {
		tap_bail("fork: %s", strerror(errno));
	}
	if (pid > 0) {
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) {
		_exit(1);
	}
	alarm(LIMIT_S);
	await_go(group);
	if (!group->threads) {
		run_rank(group, number);
		exit(0);
	}
	for (int i = 0; i < group->num_ranks; i++) {
		members[i] = (struct member){.group = group, .number = i};
		if (pthread_create(&members[i].thread, NULL, rank_thread, &members[i]) != 0) {
			_exit(1);
		}
	}
	for (int i = 0; i < group->num_ranks; i++) {
		pthread_join(members[i].thread, NULL);
	}
	exit(0);
}

/* Has everybody else destroyed what they had in the scene in which this rank was stopped? */
static bool may_resume(const struct fault_group *group, int number)
{
	for (int scene = 0; scene < group->num_scenes; scene++) {
		struct fault_slot *slots = group->shared->slot[scene];
		bool ended = true;

		if (!atomic_load(&slots[number].struck_ns) ||
		    atomic_load(&slots[number].finished)) {
			continue;
		}
		for (int i = 0; i < group->num_ranks; i++) {
			ended = ended && (i == number || atomic_load(&slots[i].finished));
		}
		return ended;
	}
	return true;
}

/* Until all processes have ended; their statuses. */
static void watch(const struct fault_group *group, pid_t *pid, int *status)
{
	bool stopped[FAULT_RANKS] = {false};
	int count = group->threads ? 1 : group->num_ranks;
	int left = count;

	while (left > 0) {
		for (int i = 0; i < count; i++) {
			if (pid[i] && waitpid(pid[i], &status[i], WNOHANG | WUNTRACED) == pid[i]) {
				stopped[i] = WIFSTOPPED(status[i]);
				if (!stopped[i]) {
					pid[i] = 0;
					left--;
				}
			}
			if (stopped[i] && may_resume(group, i)) {
				stopped[i] = false;
				kill(pid[i], SIGCONT);
			}
		}
		fault_sleep_ms(1);
	}
}

static bool is_killed(const struct fault_group *group, int number)
{
	return fault_is_dead(group, group->num_scenes, number);
}

/* One check for each scene, and one for how the processes ended. */
static void tell(const struct fault_group *group, const int *status)
{
	int count = group->threads ? 1 : group->num_ranks;
	bool ended = true;

	for (int scene = 0; scene < group->num_scenes; scene++) {
		struct fault_slot *slots = group->shared->slot[scene];
		int failures = 0;

		for (int i = 0; i < group->num_ranks; i++) {
			bool killed = fault_is_dead(group, scene + 1, i);

			if (!killed && !slots[i].finished) {
				tap_diag("rank %d did not come to the end of the scene", i);
				failures++;
			}
			failures += slots[i].failures;
		}
		ok(failures == 0, "%s (%d %s)", group->scenes[scene]->name, group->num_ranks,
		   group->threads ? "threads" : "processes");
		for (int i = 0; i < group->num_ranks; i++) {
			if (slots[i].call_ms || slots[i].notice_ms) {
				tap_diag("rank %d: ms to fail %d, after the strike %d, to destroy "
					 "%d",
					 i, slots[i].call_ms, slots[i].notice_ms,
					 slots[i].destroy_ms);
			}
			if (slots[i].failures) {
				tap_diag("rank %d: %d failures\n%s", i, slots[i].failures,
					 slots[i].text);
			}
		}
	}
	for (int i = 0; i < count; i++) {
		bool good = is_killed(group, i)
				    ? WIFSIGNALED(status[i]) && WTERMSIG(status[i]) == SIGKILL
				    : WIFEXITED(status[i]) && WEXITSTATUS(status[i]) == 0;

		if (!good) {
			tap_diag("process %d: status 0x%x", i, (unsigned)status[i]);
			ended = false;
		}
	}
	ok(ended, "the processes end in order");
}

static void run(struct fault_group *group)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = 2000};
	moeep_rendezvous_t *rendezvous[FAULT_SCENES] = {NULL};
	pid_t pid[FAULT_RANKS] = {0};
	int status[FAULT_RANKS] = {0};

	group->scenes[group->num_scenes++] = &last;
	group->shared = ranks_share(sizeof(*group->shared));
	if (device_mode() != DEVICE_NONE) {
		device_arena(); /* before the first fork */
	}
	for (int i = 0; i < (group->threads ? 1 : group->num_ranks); i++) {
		pid[i] = start(group, i);
	}
	/* It has threads, so it comes after the forks. */
	for (int i = 0; i < group->num_scenes; i++) {
		if (moeep_rendezvous_create(&config, &rendezvous[i], &group->shared->id[i]) !=
		    MOEEP_OK) {
			tap_bail("moeep_rendezvous_create: %s", moeep_error_detail());
		}
	}
	atomic_store(&group->shared->go, 1);
	watch(group, pid, status);
	tell(group, status);
	for (int i = 0; i < group->num_scenes; i++) {
		if (moeep_rendezvous_destroy(rendezvous[i]) != MOEEP_OK) {
			tap_diag("moeep_rendezvous_destroy: %s", moeep_error_detail());
		}
	}
	if (device_mode() != DEVICE_NONE) {
		arena_reap(device_arena());
	}
	ranks_unshare(group->shared, sizeof(*group->shared));
}

static void add(struct fault_group *group, const struct fault_scene *list, int count)
{
	for (int i = 0; i < count; i++) {
		bool device_only = list[i].fate == FATE_ASKS || list[i].fate == FATE_ABORTS_GRAPH;

		if ((device_only && device_mode() == DEVICE_NONE) ||
		    (list[i].three && group->num_ranks < 3)) {
			continue;
		}
		group->scenes[group->num_scenes++] = &list[i];
	}
}

#define COUNT(list) ((int)(sizeof(list) / sizeof((list)[0])))

/* Scenes of a list together, or each as the only one of its group. */
static void run_list(int num_ranks, bool threads, const struct fault_scene *list, int count,
		     bool apart)
{
	for (int i = 0; i < (apart ? count : 1); i++) {
		struct fault_group group = {.num_ranks = num_ranks, .threads = threads};

		add(&group, list + i, apart ? 1 : count);
		if (group.num_scenes > 0) {
			run(&group);
		}
	}
}

static void run_words(const struct fault_scene *list, int count, bool threads, char **words)
{
	for (int i = 0; i < count; i++) {
		bool all = true;

		for (char **word = words; *word; word++) {
			all = all && strstr(list[i].name, *word);
		}
		if (all) {
			run_list(FAULT_RANKS, threads, &list[i], 1, false);
		}
	}
}

int main(int argc, char **argv)
{
	setenv("MOEEP_TEST_CUDA", "processes", 0);
	/* Little memory is used, and every process pins it. */
	setenv("MOEEP_TEST_ARENA", "16", 0);
	/* Failures that are asked for are not worth a line. */
	setenv("MOEEP_LOG", "none", 0);
	unsetenv("MOEEP_TIMEOUT");
	signal(SIGPIPE, SIG_IGN);
	ranks_begin();
	if (argc > 1) {
		run_words(scenes, COUNT(scenes), true, argv + 1);
		run_words(disagreements, COUNT(disagreements), true, argv + 1);
		run_words(stops, COUNT(stops), false, argv + 1);
		run_words(deaths, COUNT(deaths), false, argv + 1);
		return tap_done();
	}
	for (int num_ranks = FAULT_RANKS; num_ranks >= (tap_quick() ? FAULT_RANKS : 2);
	     num_ranks--) {
		run_list(num_ranks, false, scenes, COUNT(scenes), false);
		run_list(num_ranks, false, disagreements, COUNT(disagreements), false);
		run_list(num_ranks, false, stops, COUNT(stops), false);
		run_list(num_ranks, false, deaths, COUNT(deaths), true);
		run_list(num_ranks, true, scenes, COUNT(scenes), false);
		run_list(num_ranks, true, disagreements, COUNT(disagreements), false);
	}
	return tap_done();
}
