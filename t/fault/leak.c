/* SPDX-License-Identifier: MIT */
/* Cycles of creation and destruction leave no descriptor, no mapping, and nothing in files. */
#include "config.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "memory/window.h"
#include "t/fault/fault.h"
#include "t/tap.h"

#define CYCLES 10

struct cycle {
	moeep_unique_id_t id;
	struct fault_case fault;
	struct fault_shared shared;
	int num_ranks;
	int fail_at; /* 0: nowhere */
	int results[FAULT_RANKS_MAX];
	struct fault_rank ranks[FAULT_RANKS_MAX];
};

/* Mappings of ours that are not anonymous memory files. */
static int count_named(const char *what, const char *but)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[4600];
	int count = 0;

	while (maps && fgets(line, sizeof(line), maps)) {
		count += strstr(line, what) && (!but || !strstr(line, but));
	}
	if (maps) {
		fclose(maps);
	}
	return count;
}

static int count_fds_to(const char *what)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;
	int count = 0;

	while (dir && (entry = readdir(dir))) {
		char path[300];
		char target[300];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%s", entry->d_name);
		n = readlink(path, target, sizeof(target) - 1);
		target[n > 0 ? n : 0] = '\0';
		count += strstr(target, what) != NULL;
	}
	if (dir) {
		closedir(dir);
	}
	return count;
}

enum failures {
	NO_FAILURE,
	ABSENT_RANK,	 /* the last one does not join */
	OTHER_COUNT,	 /* the last one has another number of ranks */
	OTHER_BUFFER,	 /* its buffer is another */
	NO_REGISTRATION, /* a bad argument in a collective call */
	LATE_RANK,	 /* it does not come to the barrier */
	NUM_FAILURES
};

static const char *const failure_names[] = {
	"no failure",	  "an absent rank",	"another number of ranks",
	"another buffer", "a bad registration", "a rank that does not come",
};

static int run_rank(struct cycle *cycle, struct fault_rank *r)
{
	bool last = r->rank == r->num_ranks - 1;
	bool fails = last && r->rank > 0;
	moeep_buffer_config_t other = {.size = sizeof(other), .num_experts = 64, .hidden = 64};
	moeep_buffer_t *buffer = NULL;
	int rc;

	if (cycle->fail_at == ABSENT_RANK && fails) {
		return MOEEP_ERR_TIMEOUT;
	}
	rc = fault_join(r, 0, r->rank,
			r->num_ranks + (cycle->fail_at == OTHER_COUNT && fails ? 1 : 0),
			cycle->fail_at ? 200 : 20000);
	if (rc == MOEEP_OK && cycle->fail_at == OTHER_BUFFER && fails) {
		rc = moeep_buffer_create(r->comm, &other, &buffer);
	} else if (rc == MOEEP_OK) {
		rc = fault_make(r);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_mem_alloc(r->comm, 300000, 0, &r->symmetric);
	}
	if (rc == MOEEP_OK && cycle->fail_at == NO_REGISTRATION) {
		return moeep_mem_register(r->comm, fails ? NULL : r->x, 4096, 0);
	}
	rc = rc == MOEEP_OK ? moeep_mem_register(r->comm, r->x, 4096, 0) : rc;
	rc = rc == MOEEP_OK ? fault_dispatch(r, NULL) : rc;
	rc = rc == MOEEP_OK ? fault_combine(r, r->received, NULL) : rc;
	if (cycle->fail_at == LATE_RANK && fails) {
		return MOEEP_ERR_TIMEOUT;
	}
	rc = rc == MOEEP_OK ? moeep_comm_barrier(r->comm) : rc;
	if (rc == MOEEP_OK) {
		rc = moeep_mem_deregister(r->comm, r->x);
	}
	return rc;
}

struct thread_arg {
	struct cycle *cycle;
	struct fault_rank *rank;
};

static void *thread_main(void *arg)
{
	const struct thread_arg *thread = arg;

	thread->cycle->results[thread->rank->rank] = run_rank(thread->cycle, thread->rank);
	return NULL;
}

/* While all of it is there, only memory files of ours are mapped, and no descriptor leads to one.
 */
static void check_alive(int named_before)
{
	is_int(count_named("moeep", "/memfd:moeep"), named_before,
	       "all shared memory is in anonymous files");
	is_int(count_fds_to("memfd:moeep"), 0, "no descriptor of it is kept");
}

static void run_cycle(struct cycle *cycle, bool first)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = 2000};
	int named = count_named("moeep", "/memfd:moeep");
	pthread_t threads[FAULT_RANKS_MAX];
	struct thread_arg args[FAULT_RANKS_MAX];
	moeep_rendezvous_t *rendezvous;

	if (moeep_rendezvous_create(&config, &rendezvous, &cycle->shared.id[0]) != MOEEP_OK) {
		tap_bail("moeep_rendezvous_create: %s", moeep_error_detail());
	}
	for (int rank = 0; rank < cycle->num_ranks; rank++) {
		cycle->ranks[rank] = (struct fault_rank){.fault = &cycle->fault,
							 .shared = &cycle->shared,
							 .slot = &cycle->shared.slot[rank],
							 .rank = rank,
							 .num_ranks = cycle->num_ranks};
		args[rank] = (struct thread_arg){cycle, &cycle->ranks[rank]};
		pthread_create(&threads[rank], NULL, thread_main, &args[rank]);
	}
	for (int rank = 0; rank < cycle->num_ranks; rank++) {
		pthread_join(threads[rank], NULL);
	}
	if (first && cycle->fail_at == NO_FAILURE) {
		check_alive(named);
	}
	for (int rank = 0; rank < cycle->num_ranks; rank++) {
		fault_free(&cycle->ranks[rank]);
	}
	moeep_rendezvous_destroy(rendezvous);
}

static void cycles(int num_ranks, int fail_at)
{
	static struct cycle cycle;
	int fds = 0;
	int maps = 0;
	int wrong = 0;

	for (int i = 0; i <= (fail_at ? 2 : CYCLES); i++) {
		memset(&cycle, 0, sizeof(cycle));
		cycle.num_ranks = num_ranks;
		cycle.fail_at = fail_at;
		fds = fault_count_fds();
		maps = fault_count_maps();
		run_cycle(&cycle, i == 0);
		wrong += fds != fault_count_fds() || maps != fault_count_maps();
		for (int rank = 0; rank < num_ranks; rank++) {
			bool failed = cycle.results[rank] != MOEEP_OK;

			if (failed != (fail_at != NO_FAILURE) || cycle.shared.slot[rank].failures) {
				tap_diag("rank %d: %d\n%s", rank, cycle.results[rank],
					 cycle.shared.slot[rank].text);
				wrong++;
			}
		}
	}
	ok(wrong == 0, "%d threads, %s: %d descriptors, %d mappings each time", num_ranks,
	   failure_names[fail_at], fds, maps);
}

static int use(struct fault_rank *r)
{
	return fault_make_and_use(r);
}

/* A thread rank that finds the number of one that has given up. */
static void test_window_numbers(void)
{
	struct moeep_window *window = NULL;
	struct moeep_window *later = NULL;
	uint64_t number;

	if (!ok(moeep_window_create("moeep-test", 100, &window) == MOEEP_OK, "a window")) {
		return;
	}
	number = window->number;
	ok(moeep_window_find(number) == window, "is found by its number");
	moeep_window_unref(window);
	ok(moeep_window_find(number) == window, "as long as somebody holds it");
	moeep_window_unref(window);
	moeep_window_unref(window);
	ok(moeep_window_find(number) == NULL, "and then no more");
	ok(moeep_window_create("moeep-test", 100, &later) == MOEEP_OK && later->number != number &&
		   moeep_window_find(number) == NULL,
	   "not even if its place is used again");
	moeep_window_unref(later);
}

int main(void)
{
	struct fault_case processes = {.name = "processes",
				       .fate = FATE_ABORTS,
				       .harmless = true,
				       .timeout_ms = 20000,
				       .act = use};

	fault_begin();
	test_window_numbers();
	cycles(1, NO_FAILURE);
	cycles(3, NO_FAILURE);
	for (int fail_at = NO_FAILURE + 1; fail_at < NUM_FAILURES; fail_at++) {
		cycles(3, fail_at);
	}
	/* Each process looks at itself. */
	fault_run(&processes);
	processes.num_ranks = 4;
	processes.process[2] = processes.process[3] = 1;
	fault_run(&processes);
	return fault_end();
}
