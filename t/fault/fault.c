/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/fault/fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
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

void fault_fail(struct fault_rank *r, const char *fmt, ...)
{
	struct fault_slot *slot = r->slot;
	char text[400];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	slot->failures++;
	if (slot->used + strlen(text) + 2 <= sizeof(slot->text)) {
		slot->used += (size_t)snprintf(slot->text + slot->used,
					       sizeof(slot->text) - slot->used, "%s\n", text);
	}
}

bool fault_is(struct fault_rank *r, int got, int want, const char *call)
{
	return fault_check(r, got == want, "%s: %d (%s), not %d: %s", call, got,
			   moeep_strerror(got), want, moeep_error_detail());
}

void fault_clock(struct fault_rank *r)
{
	r->call_ns = fault_now_ns();
}

/* Until a word of that slot is set, at most 20 s. */
static bool await_word(struct fault_rank *r, int rank, bool (*set)(struct fault_slot *))
{
	for (int i = 0; i < 20000 * fault_slowness(); i++) {
		if (set(&r->shared->slot[rank])) {
			return true;
		}
		fault_sleep_ms(1);
	}
	fault_fail(r, "rank %d does not come so far", rank);
	return false;
}

static bool is_ready(struct fault_slot *slot)
{
	return atomic_load(&slot->ready) != 0;
}

static bool is_struck(struct fault_slot *slot)
{
	return atomic_load(&slot->struck_ns) != 0;
}

static bool has_given_up(struct fault_slot *slot)
{
	return atomic_load(&slot->given_up) != 0;
}

void fault_ready(struct fault_rank *r)
{
	atomic_store(&r->slot->ready, 1);
}

void fault_await_ready(struct fault_rank *r)
{
	for (int rank = 0; rank < r->num_ranks; rank++) {
		if (rank != r->rank && fault_survives(r->fault, rank)) {
			await_word(r, rank, is_ready);
		}
	}
}

void fault_await_struck(struct fault_rank *r)
{
	await_word(r, r->fault->victim, is_struck);
	/* It was noted before it happened. */
	fault_sleep_ms(30);
}

bool fault_wait_given_up(struct fault_rank *r, int rank)
{
	return await_word(r, rank, has_given_up);
}

bool fault_strike(struct fault_rank *r)
{
	atomic_store(&r->slot->struck_ns, fault_now_ns());
	switch (r->fault->fate) {
	case FATE_DIES:
		kill(getpid(), SIGKILL);
		break;
	case FATE_STOPS:
		kill(getpid(), SIGSTOP);
		break;
	case FATE_LATE:
		for (int rank = 0; rank < r->num_ranks; rank++) {
			if (fault_survives(r->fault, rank)) {
				fault_wait_given_up(r, rank);
			}
		}
		break;
	case FATE_LEAVES:
		fault_free(r);
		return true;
	case FATE_ABORTS:
		break;
	}
	return false;
}

/* What the survivors' result and text follow from. */
static struct fault_want resolve(const struct fault_case *fault)
{
	struct fault_want want = fault->want;

	if (want.result == 0) {
		switch (fault->fate) {
		case FATE_DIES:
		case FATE_LEAVES:
			want.result = MOEEP_ERR_PEER_LOST;
			break;
		case FATE_STOPS:
		case FATE_LATE:
			want.result = MOEEP_ERR_TIMEOUT;
			break;
		case FATE_ABORTS:
			want.result = MOEEP_ERR_ABORTED;
			break;
		}
	}
	if (want.peer_plus_one == 0 && fault->fate != FATE_ABORTS) {
		want.peer_plus_one = fault->victim + 1;
	}
	if (!want.text && fault->fate == FATE_LEAVES) {
		want.text = "has left the group";
	}
	return want;
}

static void check_report(struct fault_rank *r, const struct fault_want *want)
{
	moeep_error_report_t *report = &r->slot->report;
	int64_t missing;

	report->size = sizeof(*report);
	fault_check(r, moeep_comm_async_error(r->comm, report) == want->result,
		    "async_error is not the call's result");
	if (r->fault->unreported) {
		return;
	}
	missing = (int64_t)(report->expected - report->seen);
	fault_check(r, report->result == want->result, "report.result is %d", report->result);
	fault_check(r, report->operation == want->operation, "report.operation is %s, not %s",
		    moeep_op_name(report->operation), moeep_op_name(want->operation));
	fault_check(r, want->peer_plus_one < 0 || report->peer == want->peer_plus_one - 1,
		    "report.peer is %d, not %d", report->peer, want->peer_plus_one - 1);
	fault_check(r, want->epoch == 0 || report->epoch == want->epoch,
		    "report.epoch is %llu, not %llu", (unsigned long long)report->epoch,
		    (unsigned long long)want->epoch);
	if (want->result != MOEEP_ERR_ABORTED) {
		fault_check(r, report->epoch > 0 && missing > 0,
			    "report.epoch is %llu, expected 0x%llx, seen 0x%llx",
			    (unsigned long long)report->epoch, (unsigned long long)report->expected,
			    (unsigned long long)report->seen);
		fault_check(r, fault_survives(r->fault, report->rank), "report.rank is %d",
			    report->rank);
	}
	if (want->expected) {
		fault_check(r, report->expected == want->expected && report->seen == want->seen,
			    "expected is 0x%llx, not 0x%llx; seen is 0x%llx, not 0x%llx",
			    (unsigned long long)report->expected,
			    (unsigned long long)want->expected, (unsigned long long)report->seen,
			    (unsigned long long)want->seen);
	}
}

/* After act(): did it fail as it should, and in time? */
static void check_failure(struct fault_rank *r, int rc, uint64_t begun, const char *detail)
{
	struct fault_want want = resolve(r->fault);
	struct fault_slot *slot = r->slot;
	uint64_t struck = atomic_load(&r->shared->slot[r->fault->victim].struck_ns);
	uint64_t now = fault_now_ns();
	int64_t limit = fault_timeout(r->fault) + FAULT_SLACK_MS * fault_slowness();

	if (want.any_result || (r->victim && r->fault->bare)) {
		/* One that comes back to a group that was never complete hears what is left. */
		want.result = rc == MOEEP_OK ? want.result : rc;
		want.text = NULL;
	}
	slot->result = rc;
	slot->call_ms = (int64_t)(now - begun) / 1000000;
	slot->notice_ms = (int64_t)(now - (struck > begun ? struck : begun)) / 1000000;
	atomic_store(&slot->given_up, 1);
	fault_check(r, rc == want.result, "the call gave %d (%s), not %d: %s", rc,
		    moeep_strerror(rc), want.result, detail);
	fault_check(r, !want.text || strstr(detail, want.text), "detail without \"%s\": %s",
		    want.text ? want.text : "", detail);
	if (r->victim && r->fault->fate != FATE_ABORTS) {
		/* It was told meanwhile. */
		limit = FAULT_SLACK_MS * fault_slowness();
		slot->call_ms = slot->notice_ms = 0;
	} else if (want.result != MOEEP_ERR_TIMEOUT && !want.any_result) {
		limit = FAULT_SLACK_MS * fault_slowness();
		fault_check(r, slot->notice_ms < limit, "noticed after %d ms",
			    (int)slot->notice_ms);
	}
	fault_check(r, slot->call_ms <= limit, "the call took %d ms", (int)slot->call_ms);
	if (r->comm) {
		check_report(r, &want);
		fault_check(r, strstr(detail, slot->report.message) || want.result != rc,
			    "the detail is not the report's message: %s", detail);
		if (want.result == MOEEP_ERR_TIMEOUT && slot->report.rank == r->rank) {
			fault_check(r, slot->call_ms >= fault_timeout(r->fault) - 20,
				    "gave up after %d ms", (int)slot->call_ms);
		}
		fault_sticky(r, want.result);
	}
}

static void run_rank(struct fault_rank *r)
{
	const struct fault_case *fault = r->fault;
	uint64_t begun;
	char detail[600];
	int rc = MOEEP_OK;

	if (!fault->bare) {
		rc = fault_join(r, 0, r->rank, r->num_ranks, fault_timeout(fault));
	}
	if (rc == MOEEP_OK && fault->prepare) {
		rc = fault->prepare(r);
	}
	if (rc == MOEEP_OK && !fault->bare) {
		/* So that all begin together. */
		rc = moeep_comm_barrier(r->comm);
	}
	if (!fault_ok(r, rc)) {
		moeep_comm_abort(r->comm, "the preparation failed");
		fault_free(r);
		return;
	}
	fault_clock(r);
	rc = fault->act(r);
	snprintf(detail, sizeof(detail), "%s", moeep_error_detail());
	if (fault->harmless) {
		fault_is(r, rc, MOEEP_OK, "the call");
		fault_check(r, !r->comm || moeep_comm_async_error(r->comm, NULL) == MOEEP_OK,
			    "async_error is not 0");
	} else if (!(r->victim && (fault->fate == FATE_LEAVES || fault->unaware))) {
		check_failure(r, rc, r->call_ns, detail);
	}
	begun = fault_now_ns();
	fault_free(r);
	r->slot->destroy_ms = (int64_t)(fault_now_ns() - begun) / 1000000;
	fault_check(r,
		    r->slot->destroy_ms <=
			    (fault->destroy_ms ? fault->destroy_ms : FAULT_DESTROY_MS) *
				    fault_slowness(),
		    "destruction took %d ms", (int)r->slot->destroy_ms);
	if (fault_survives(fault, r->rank)) {
		fault_again(r);
	}
	fault_ok(r, moeep_rendezvous_destroy(r->hosted));
	atomic_store(&r->slot->finished, 1);
}

static void *rank_thread(void *arg)
{
	struct member *member = arg;

	run_rank(&member->rank);
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
	fault_ok(r, moeep_rendezvous_create(&(moeep_rendezvous_config_t){.size = sizeof(
							moeep_rendezvous_config_t),
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
		run_rank(&members[0].rank);
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
		uint64_t struck = atomic_load(&shared->slot[fault->victim].struck_ns);
		uint64_t now = fault_now_ns();

		for (int i = 0; i < FAULT_RANKS_MAX; i++) {
			if (processes[i].pid && waitpid(processes[i].pid, &processes[i].status,
							WNOHANG) == processes[i].pid) {
				processes[i].pid = 0;
				left--;
			}
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
		if (fault->fate == FATE_STOPS && struck && survivors_ended(fault, processes) &&
		    processes[process_of(fault, fault->victim)].pid) {
			kill(processes[process_of(fault, fault->victim)].pid, SIGCONT);
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
		bool killed = (fault->fate == FATE_DIES && process_of(fault, rank) ==
								  process_of(fault, fault->victim)) ||
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

bool fault_run(const struct fault_case *fault)
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
	return ok(failures == 0, "%s", fault->name);
}
