/* SPDX-License-Identifier: MIT */
/* The processes of a case: started, struck from outside, waited for, compared. */
#include "config.h"

#include "t/fault/fault.h"
#include "t/nodes.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "t/tap.h"

/* A case that takes longer hangs. */
#define LIMIT_MS 30000
/* From the first strike to the second rank's death. */
#define SECOND_MS 200

struct member {
	struct fault_rank rank;
	pthread_t thread;
};

struct process {
	pid_t pid; /* 0: reaped */
	int status;
	bool stopped;
};

static struct fault_shared *shared;

const struct fault_shared *fault_last(void)
{
	return shared;
}

int fault_num_ranks(const struct fault_case *fault)
{
	return fault->num_ranks ? fault->num_ranks : 3;
}

uint32_t fault_timeout(const struct fault_case *fault)
{
	uint32_t ms = fault->timeout_ms ? fault->timeout_ms : FAULT_TIMEOUT_MS;

	return ms * (uint32_t)fault_slowness();
}

static bool by_threads(const struct fault_case *fault)
{
	for (int rank = 0; rank < fault_num_ranks(fault); rank++) {
		if (fault->process[rank] != 0) {
			return true;
		}
	}
	return false;
}

static int process_of(const struct fault_case *fault, int rank)
{
	return by_threads(fault) ? fault->process[rank] : rank;
}

bool fault_survives(const struct fault_case *fault, int rank)
{
	if (fault->fate == FATE_ABORTS) {
		return true;
	}
	if (fault->fate == FATE_DIES &&
	    process_of(fault, rank) == process_of(fault, fault->victim)) {
		return false;
	}
	return rank != fault->victim && rank != fault->second_plus_one - 1;
}

static void *rank_thread(void *arg)
{
	struct member *member = arg;

	fault_rank_run(&member->rank);
	return NULL;
}

static void await(atomic_int *flag)
{
	while (!atomic_load(flag)) {
		fault_sleep_ms(1);
	}
}

static void host_rendezvous(struct fault_rank *r)
{
	fault_ok(r, moeep_rendezvous_create(
			    &(moeep_rendezvous_config_t){.size = sizeof(moeep_rendezvous_config_t),
							 .timeout_ms = 2000},
			    &r->hosted, &shared->id[0]));
	atomic_store(&shared->go_hosted, 1);
}

/* All ranks of one process. */
static void run_process(const struct fault_case *fault, int process)
{
	struct member members[FAULT_RANKS_MAX];
	int fds = fault_count_fds();
	int maps = fault_count_maps();
	int count = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(2 * LIMIT_MS / 1000);
	await(&shared->go);
	memset(members, 0, sizeof(members));
	for (int rank = 0; rank < fault_num_ranks(fault); rank++) {
		if (process_of(fault, rank) == process) {
			members[count++].rank = (struct fault_rank){
				.fault = fault,
				.shared = shared,
				.slot = &shared->slot[rank],
				.rank = rank,
				.num_ranks = fault_num_ranks(fault),
				.victim = rank == fault->victim,
			};
		}
	}
	if (fault->hosted && process_of(fault, 0) == process) {
		host_rendezvous(&members[0].rank);
	} else if (fault->hosted) {
		await(&shared->go_hosted);
	}
	if (count == 1) {
		fault_rank_run(&members[0].rank);
	} else {
		for (int i = 0; i < count; i++) {
			pthread_create(&members[i].thread, NULL, rank_thread, &members[i]);
		}
		for (int i = 0; i < count; i++) {
			pthread_join(members[i].thread, NULL);
		}
	}
	fault_check(&members[0].rank, fault_count_fds() == fds, "%d descriptors, %d before",
		    fault_count_fds(), fds);
	fault_check(&members[0].rank, fault_count_maps() == maps, "%d mappings, %d before",
		    fault_count_maps(), maps);
	exit(0);
}

static bool survivors_ended(const struct fault_case *fault, const struct process *processes)
{
	for (int rank = 0; rank < fault_num_ranks(fault); rank++) {
		if (fault_survives(fault, rank) && !atomic_load(&shared->slot[rank].finished) &&
		    processes[process_of(fault, rank)].pid) {
			return false;
		}
	}
	return true;
}

/* True if it has ended. */
static bool reap(struct process *process)
{
	int status;

	if (!process->pid || waitpid(process->pid, &status, WNOHANG | WUNTRACED) != process->pid) {
		return false;
	}
	if (WIFSTOPPED(status)) {
		process->stopped = true;
		return false;
	}
	process->status = status;
	process->pid = 0;
	return true;
}

/* Look after the processes until all have ended; false if that took too long. */
static bool watch(const struct fault_case *fault, struct process *processes)
{
	uint64_t limit = fault_now_ns() + (uint64_t)LIMIT_MS * 1000000u;
	bool in_time = true;
	int left = 0;

	for (int i = 0; i < FAULT_RANKS_MAX; i++) {
		left += processes[i].pid != 0;
	}
	while (left > 0) {
		struct process *victim = &processes[process_of(fault, fault->victim)];
		uint64_t struck = atomic_load(&shared->slot[fault->victim].struck_ns);
		uint64_t now = fault_now_ns();

		for (int i = 0; i < FAULT_RANKS_MAX; i++) {
			left -= reap(&processes[i]);
		}
		if (fault->second_plus_one && struck && now - struck > SECOND_MS * 1000000u) {
			int second = fault->second_plus_one - 1;

			if (processes[process_of(fault, second)].pid &&
			    !atomic_load(&shared->slot[second].struck_ns)) {
				/* The later strike is the one that is noticed. */
				atomic_store(&shared->slot[second].struck_ns, now);
				atomic_store(&shared->slot[fault->victim].struck_ns, now);
				kill(processes[process_of(fault, second)].pid, SIGKILL);
			}
		}
		if (victim->pid && victim->stopped && survivors_ended(fault, processes)) {
			victim->stopped = false;
			kill(victim->pid, SIGCONT);
		}
		if (in_time && now > limit) {
			in_time = false;
			for (int i = 0; i < FAULT_RANKS_MAX; i++) {
				if (processes[i].pid) {
					kill(processes[i].pid, SIGKILL);
				}
			}
		}
		fault_sleep_ms(1);
	}
	return in_time;
}

static void open_rendezvous(moeep_rendezvous_t **rendezvous, moeep_unique_id_t *id)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = 2000};

	if (moeep_rendezvous_create(&config, rendezvous, id) != MOEEP_OK) {
		tap_bail("moeep_rendezvous_create: %s", moeep_error_detail());
	}
}

/* Returns how many things went wrong, and tells them. */
static int evaluate(const struct fault_case *fault, const struct process *processes)
{
	const moeep_error_report_t *first = NULL;
	int failures = 0;

	for (int rank = 0; rank < fault_num_ranks(fault); rank++) {
		const struct fault_slot *slot = &shared->slot[rank];
		int status = processes[process_of(fault, rank)].status;
		bool killed = (fault->fate == FATE_DIES &&
			       process_of(fault, rank) == process_of(fault, fault->victim)) ||
			      rank == fault->second_plus_one - 1;

		if (killed ? !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL
			   : !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
			tap_diag("rank %d: status 0x%x", rank, (unsigned)status);
			failures++;
		}
		if (slot->failures) {
			tap_diag("rank %d: %d failures\n%s", rank, slot->failures, slot->text);
			failures += slot->failures;
		}
		if (slot->report.size == 0) {
			continue;
		}
		if (first && memcmp(first, &slot->report, sizeof(*first)) != 0) {
			tap_diag("rank %d: its report is another: %s", rank, slot->report.message);
			failures++;
		}
		first = first ? first : &slot->report;
	}
	if (first && failures == 0) {
		tap_diag("%s; %s, rank %d, peer %d, epoch %llu, expected 0x%llx, seen 0x%llx",
			 first->message, moeep_op_name(first->operation), first->rank, first->peer,
			 (unsigned long long)first->epoch, (unsigned long long)first->expected,
			 (unsigned long long)first->seen);
	}
	return failures;
}

/* Returns the number of failed checks. */
static int run_once(const struct fault_case *fault)
{
	struct process processes[FAULT_RANKS_MAX] = {{0}};
	moeep_rendezvous_t *rendezvous[2] = {NULL};
	char times[256] = "";
	size_t used = 0;
	int failures = 0;

	if (!shared) {
		shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (shared == MAP_FAILED) {
			tap_bail("mmap: %s", strerror(errno));
		}
	}
	memset(shared, 0, sizeof(*shared));
	/* While this process has one thread. */
	for (int rank = 0; rank < fault_num_ranks(fault); rank++) {
		int process = process_of(fault, rank);

		if (processes[process].pid) {
			continue;
		}
		processes[process].pid = fork();
		if (processes[process].pid == 0) {
			run_process(fault, process);
		}
		if (processes[process].pid < 0) {
			tap_bail("fork: %s", strerror(errno));
		}
	}
	for (int i = fault->hosted; i < 2; i++) {
		open_rendezvous(&rendezvous[i], &shared->id[i]);
	}
	atomic_store(&shared->go, 1);
	if (!watch(fault, processes)) {
		tap_diag("not finished after %d ms", LIMIT_MS);
		failures++;
	}
	for (int i = 0; i < 2; i++) {
		if (moeep_rendezvous_destroy(rendezvous[i]) != MOEEP_OK) {
			tap_diag("moeep_rendezvous_destroy: %s", moeep_error_detail());
			failures++;
		}
	}
	failures += evaluate(fault, processes);
	for (int rank = 0; rank < fault_num_ranks(fault) && !fault->harmless; rank++) {
		const struct fault_slot *slot = &shared->slot[rank];

		if (slot->given_up) {
			used += (size_t)snprintf(times + used, sizeof(times) - used,
						 "%s rank %d %d (%d), %d", used ? ";" : "", rank,
						 (int)slot->call_ms, (int)slot->notice_ms,
						 (int)slot->destroy_ms);
		}
	}
	if (used) {
		tap_diag("ms to fail (after the strike), to destroy:%s", times);
	}
	return failures;
}

bool fault_run(const struct fault_case *fault)
{
	int failures;

	nodes_begin();
	failures = run_once(fault);
	return ok(failures == 0, "%s", fault->name);
}
