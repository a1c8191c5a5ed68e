/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/ranks.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "t/device.h"
#include "t/nodes.h"
#include "t/tap.h"

#define DEFAULT_LIMIT_S	   100
#define DEFAULT_TIMEOUT_MS 20000
/* A rank that has ended leaves at once, or not at all because its body gave up. */
#define LEAVE_MS 2000
/* After a comm was aborted because of the limit, for the ranks to notice. */
#define GRACE_S 15

/* What a rank has to say. In shared memory: the rank may be a process. */
struct slot {
	atomic_int ended;
	int failures;
	size_t used;
	char text[4096];
};

struct run {
	const struct ranks_config *config;
	ranks_body_fn body;
	void *arg;
	int num_comms;
	moeep_unique_id_t id[RANKS_MAX_COMMS];
	struct slot *slot; /* [num_ranks] */
	/* Of thread ranks, so that they can be aborted from outside. */
	pthread_mutex_t lock;
	pthread_cond_t ended;
	int running;
	moeep_comm_t *comm[RANKS_MAX][RANKS_MAX_COMMS];
};

struct worker {
	struct run *run;
	int rank;
	pthread_t thread;
	pid_t pid;
};

static _Thread_local struct slot *my_slot;
static _Thread_local moeep_comm_t *const *my_comms;
static _Thread_local moeep_event_t *my_event;

void ranks_begin(void)
{
	nodes_begin();
	if (device_mode() != DEVICE_NONE) {
		const char *reason;
		int count = device_count(&reason);

		tap_require_all("cuda", count > 0, "%s", reason);
	}
}

bool ranks_forked(bool processes)
{
	enum device_mode mode = device_mode();

	return mode == DEVICE_NONE ? processes : mode == DEVICE_PROCESSES;
}

moeep_comm_t *ranks_comm(int index)
{
	return my_comms[index];
}

moeep_event_t *ranks_event(void)
{
	return my_event;
}

void *ranks_share(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED) {
		tap_bail("mmap of %zu shared bytes: %s", bytes, strerror(errno));
	}
	return memory;
}

void ranks_unshare(void *memory, size_t bytes)
{
	munmap(memory, bytes);
}

void rank_fail(const char *fmt, ...)
{
	char text[512];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (!my_slot) {
		ok(false, "%s", text);
		return;
	}
	my_slot->failures++;
	/* The first ones tell what is wrong; later ones tend to follow from them. */
	if (my_slot->used + strlen(text) + 2 <= sizeof(my_slot->text)) {
		my_slot->used +=
			(size_t)snprintf(my_slot->text + my_slot->used,
					 sizeof(my_slot->text) - my_slot->used, "%s\n", text);
	}
}

bool rank_result(int got, int want, const char *call, const char *file, int line)
{
	if (got == want) {
		return true;
	}
	rank_fail("%s:%d: %.160s: got %d (%s), expected %d (%s)%s%s", file, line, call, got,
		  moeep_strerror(got), want, moeep_strerror(want), got != MOEEP_OK ? ": " : "",
		  got != MOEEP_OK ? moeep_error_detail() : "");
	return false;
}

static void rank_main(struct run *run, int rank)
{
	const struct ranks_config *config = run->config;
	moeep_comm_t **comm = run->comm[rank];
	moeep_comm_config_t comm_config = {
		.size = sizeof(comm_config),
		.timeout_ms = config->timeout_ms ? config->timeout_ms : DEFAULT_TIMEOUT_MS,
		.host_id = config->host_ids ? config->host_ids[rank] : NULL,
	};
	char host[NODES_HOST_BYTES];
	bool failed = false;

	if (!config->host_ids) {
		comm_config.host_id = nodes_host(rank, config->num_ranks, host);
	}

	my_slot = &run->slot[rank];
	my_comms = comm;
	if (device_mode() != DEVICE_NONE && !rank_ok(device_begin(rank))) {
		failed = true;
		goto out;
	}
	device_config(rank, &comm_config);
	for (int i = 0; i < run->num_comms; i++) {
		moeep_comm_t *made = NULL;

		comm_config.id = &run->id[i];
		failed = !rank_ok(moeep_comm_create(rank, config->num_ranks, &comm_config, &made));
		pthread_mutex_lock(&run->lock);
		comm[i] = made;
		pthread_mutex_unlock(&run->lock);
		if (failed) {
			goto out;
		}
	}
	if (device_mode() != DEVICE_NONE && !rank_ok(moeep_event_create(comm[0], 0, &my_event))) {
		failed = true;
		goto out;
	}
	if (run->body(rank, comm[0], run->arg) != 0) {
		failed = true;
		if (my_slot->failures == 0) {
			rank_fail("the body failed without a word");
		}
		for (int i = 0; i < run->num_comms; i++) {
			moeep_comm_abort(comm[i], "a rank's test failed");
		}
	}
out:
	rank_ok(moeep_event_destroy(my_event));
	my_event = NULL;
	for (int i = 0; i < run->num_comms; i++) {
		moeep_comm_t *made = comm[i];
		int result;

		/* From here on nobody aborts it from outside. */
		pthread_mutex_lock(&run->lock);
		comm[i] = NULL;
		pthread_mutex_unlock(&run->lock);
		result = moeep_comm_destroy(made);
		/* A body that gave up leaves its objects behind. */
		if (!failed) {
			rank_result(result, MOEEP_OK, "moeep_comm_destroy", __FILE__, __LINE__);
		}
	}
	atomic_store(&my_slot->ended, 1);
	my_slot = NULL;
}

static void *thread_main(void *arg)
{
	struct worker *worker = arg;
	struct run *run = worker->run;

	rank_main(run, worker->rank);
	pthread_mutex_lock(&run->lock);
	run->running--;
	pthread_cond_signal(&run->ended);
	pthread_mutex_unlock(&run->lock);
	return NULL;
}

static void deadline_in(struct timespec *deadline, unsigned int seconds)
{
	clock_gettime(CLOCK_MONOTONIC, deadline);
	deadline->tv_sec += seconds;
}

static bool wait_threads(struct run *run, unsigned int seconds)
{
	struct timespec deadline;
	bool done;

	deadline_in(&deadline, seconds);
	pthread_mutex_lock(&run->lock);
	while (run->running > 0 &&
	       pthread_cond_timedwait(&run->ended, &run->lock, &deadline) != ETIMEDOUT) {
	}
	done = run->running == 0;
	pthread_mutex_unlock(&run->lock);
	return done;
}

/* Returns false if the limit struck. */
static bool run_threads(struct run *run, struct worker *workers, unsigned int limit)
{
	int num_ranks = run->config->num_ranks;
	bool in_time;

	run->running = num_ranks;
	for (int i = 0; i < num_ranks; i++) {
		int error = pthread_create(&workers[i].thread, NULL, thread_main, &workers[i]);

		if (error) {
			tap_bail("pthread_create: %s", strerror(error));
		}
	}
	in_time = wait_threads(run, limit);
	if (!in_time) {
		pthread_mutex_lock(&run->lock);
		for (int i = 0; i < num_ranks; i++) {
			for (int j = 0; j < run->num_comms; j++) {
				if (run->comm[i][j]) {
					moeep_comm_abort(run->comm[i][j], "the test's time limit");
				}
			}
		}
		pthread_mutex_unlock(&run->lock);
		if (!wait_threads(run, GRACE_S)) {
			for (int i = 0; i < num_ranks; i++) {
				if (!atomic_load(&run->slot[i].ended)) {
					tap_diag("rank %d hangs; so far: %s", i, run->slot[i].text);
				}
			}
			tap_bail("ranks hang and do not react to moeep_comm_abort()");
		}
	}
	for (int i = 0; i < num_ranks; i++) {
		pthread_join(workers[i].thread, NULL);
	}
	return in_time;
}

/*
 * Children are forked before the rendezvous exists, while the process has one thread; the ids
 * reach them through a pipe. A message is shorter than PIPE_BUF, so each child reads a whole one.
 */
static pid_t start_process(struct run *run, int rank, const int *pipe_fd, unsigned int limit)
{
	pid_t parent = getpid(), pid = fork();

	if (pid != 0) {
		return pid;
	}
	close(pipe_fd[1]);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent) {
		_exit(1);
	}
	alarm(limit + GRACE_S);
	my_slot = &run->slot[rank];
	if (read(pipe_fd[0], run->id, sizeof(run->id)) != (ssize_t)sizeof(run->id)) {
		_exit(1);
	}
	close(pipe_fd[0]);
	rank_main(run, rank);
	exit(0);
}

static void note(struct slot *slot, const char *text)
{
	slot->failures++;
	if (slot->used + strlen(text) + 2 <= sizeof(slot->text)) {
		slot->used += (size_t)snprintf(slot->text + slot->used,
					       sizeof(slot->text) - slot->used, "%s\n", text);
	}
}

static void reap(struct run *run, struct worker *worker, int status)
{
	struct slot *slot = &run->slot[worker->rank];
	char text[64];

	worker->pid = 0;
	if (WIFSIGNALED(status)) {
		snprintf(text, sizeof(text), "ended by signal %d (%s)", WTERMSIG(status),
			 strsignal(WTERMSIG(status)));
		note(slot, text);
	} else if (WEXITSTATUS(status) != 0 || !atomic_load(&slot->ended)) {
		snprintf(text, sizeof(text), "ended with status %d", WEXITSTATUS(status));
		note(slot, text);
	}
}

static bool run_processes(struct run *run, struct worker *workers, unsigned int limit)
{
	struct timespec now, deadline, pause = {.tv_nsec = 1000000};
	int left = run->config->num_ranks;
	bool in_time = true;

	deadline_in(&deadline, limit);
	while (left > 0) {
		for (int i = 0; i < run->config->num_ranks; i++) {
			int status;

			if (workers[i].pid &&
			    waitpid(workers[i].pid, &status, WNOHANG) == workers[i].pid) {
				reap(run, &workers[i], status);
				left--;
			}
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (in_time && now.tv_sec >= deadline.tv_sec) {
			in_time = false;
			for (int i = 0; i < run->config->num_ranks; i++) {
				if (workers[i].pid) {
					kill(workers[i].pid, SIGKILL);
				}
			}
		}
		nanosleep(&pause, NULL);
	}
	return in_time;
}

static void open_rendezvous(struct run *run, moeep_rendezvous_t **rendezvous)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = LEAVE_MS};

	for (int i = 0; i < run->num_comms; i++) {
		int result = moeep_rendezvous_create(&config, &rendezvous[i], &run->id[i]);

		if (result != MOEEP_OK) {
			tap_bail("moeep_rendezvous_create: %s: %s", moeep_strerror(result),
				 moeep_error_detail());
		}
	}
}

static bool run_all(struct run *run, unsigned int limit)
{
	struct worker workers[RANKS_MAX] = {0};
	moeep_rendezvous_t *rendezvous[RANKS_MAX_COMMS] = {NULL};
	int pipe_fd[2];
	bool in_time;

	for (int i = 0; i < run->config->num_ranks; i++) {
		workers[i] = (struct worker){.run = run, .rank = i};
	}
	if (!ranks_forked(run->config->processes)) {
		open_rendezvous(run, rendezvous);
		in_time = run_threads(run, workers, limit);
	} else {
		if (pipe(pipe_fd) != 0) {
			tap_bail("pipe: %s", strerror(errno));
		}
		for (int i = 0; i < run->config->num_ranks; i++) {
			workers[i].pid = start_process(run, i, pipe_fd, limit);
			if (workers[i].pid < 0) {
				tap_bail("fork: %s", strerror(errno));
			}
		}
		close(pipe_fd[0]);
		open_rendezvous(run, rendezvous);
		for (int i = 0; i < run->config->num_ranks; i++) {
			/* Cannot be short: less than PIPE_BUF. A child that died shows below. */
			if (write(pipe_fd[1], run->id, sizeof(run->id)) < 0) {
				tap_diag("write to a child: %s", strerror(errno));
			}
		}
		close(pipe_fd[1]);
		in_time = run_processes(run, workers, limit);
		if (device_mode() != DEVICE_NONE) {
			/* A body that gave up, or was killed, leaves its memory in use. */
			arena_reap(device_arena());
		}
	}
	for (int i = 0; i < run->num_comms; i++) {
		rank_ok(moeep_rendezvous_destroy(rendezvous[i]));
	}
	return in_time;
}

bool ranks_run_at(const char *file, int line, const struct ranks_config *config, ranks_body_fn body,
		  void *arg, const char *fmt, ...)
{
	unsigned int limit = config->limit_s ? config->limit_s : DEFAULT_LIMIT_S;
	size_t slot_bytes = (size_t)config->num_ranks * sizeof(struct slot);
	struct run run = {
		.config = config,
		.body = body,
		.arg = arg,
		.num_comms = config->num_comms ? config->num_comms : 1,
	};
	pthread_condattr_t attr;
	char name[256];
	va_list args;
	int failures = 0;
	bool in_time;

	va_start(args, fmt);
	vsnprintf(name, sizeof(name), fmt, args);
	va_end(args);
	if (device_mode() != DEVICE_NONE) {
		device_arena(); /* before the first fork */
	}
	run.slot = ranks_share(slot_bytes);
	pthread_mutex_init(&run.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&run.ended, &attr);
	pthread_condattr_destroy(&attr);
	signal(SIGPIPE, SIG_IGN);

	/* The last net, for a hang of the harness or of a rendezvous. */
	alarm(limit + 3 * GRACE_S);
	in_time = run_all(&run, limit);
	alarm(0);

	for (int i = 0; i < config->num_ranks; i++) {
		failures += run.slot[i].failures;
	}
	tap_ok(failures == 0 && in_time, file, line, "%s (%d %s)", name, config->num_ranks,
	       ranks_forked(config->processes) ? "processes" : "threads");
	if (!in_time) {
		tap_diag("not finished after %u s", limit);
	}
	for (int i = 0; i < config->num_ranks; i++) {
		char *rest = run.slot[i].text, *text_line;

		if (run.slot[i].failures > 0) {
			tap_diag("rank %d: %d failures", i, run.slot[i].failures);
		}
		while ((text_line = strtok_r(rest, "\n", &rest)) != NULL) {
			tap_diag("rank %d: %s", i, text_line);
		}
	}
	pthread_cond_destroy(&run.ended);
	pthread_mutex_destroy(&run.lock);
	ranks_unshare(run.slot, slot_bytes);
	return failures == 0 && in_time;
}
