/* SPDX-License-Identifier: MIT */
/* tools/perf_ranks.c - ranks as processes or threads: starting them, watching over them. */
#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "output.h"
#include "perf_lines.h"
#include "perf_ranks.h"

/* How often the parent looks at its ranks. */
#define LOOK_NS 10000000L

/* After the first failure: how long the other ranks have to say what they saw, or to end. */
#define GRACE_LOOKS 100

static volatile sig_atomic_t stop_signal;

static void on_signal(int number)
{
	stop_signal = number;
}

void perf_ranks_catch_signals(void)
{
	struct sigaction action = {.sa_handler = on_signal};

	(void)sigaction(SIGINT, &action, NULL);
	(void)sigaction(SIGTERM, &action, NULL);
}

int perf_ranks_signal(void)
{
	return stop_signal;
}

/* One line on standard error, rewritten; an empty one at the end. */
static void progress(const struct perf_run *run, bool end)
{
	static time_t last;
	static bool shown;
	const struct perf_shared *shared = run->shared;
	const struct perf_case *c;
	time_t now = time(NULL);

	if (!run->options->progress) {
		return;
	}
	if (end) {
		if (shown) {
			fprintf(stderr, "\r\033[K");
		}
		return;
	}
	if (now == last) {
		return;
	}
	last = now;
	shown = true;
	c = &run->cases[atomic_load_explicit(&shared->case_now, memory_order_relaxed)];
	fprintf(stderr, "\r%s, rows in memory: %s, call %lld of %lld\033[K", perf_case_name(c),
		perf_memory_name(c->memory),
		(long long)atomic_load_explicit(&shared->calls_done, memory_order_relaxed),
		(long long)atomic_load_explicit(&shared->calls_to_do, memory_order_relaxed));
}

static void look_later(void)
{
	struct timespec ts = {0, LOOK_NS};

	(void)nanosleep(&ts, NULL);
}

/* Tell which rank failed first, and how. */
static void report_failure(const struct perf_run *run)
{
	int failed = atomic_load(&run->shared->failed);

	if (failed > 0) {
		fprintf(stderr, "moeep-perf: rank %d: ", failed - 1);
		print_text(stderr, run->shared->error[failed - 1]);
		fputs("\n", stderr);
	}
}

/* Of the ranks, and of their twins with the host backend. */
struct meeting {
	moeep_rendezvous_t *ranks;
	moeep_rendezvous_t *twins;
};

static int rendezvous_open(moeep_rendezvous_t **rendezvous, moeep_unique_id_t *id)
{
	/* A group that failed has nothing to wait for at its end. */
	moeep_rendezvous_config_t config = {
		.size = sizeof(config),
		.address = "127.0.0.1",
		.timeout_ms = 2000,
	};
	int rc;

	rc = moeep_rendezvous_create(&config, rendezvous, id);
	if (rc) {
		fprintf(stderr, "moeep-perf: moeep_rendezvous_create: %s\n",
			moeep_error_detail()[0] ? moeep_error_detail() : moeep_strerror(rc));
		return -1;
	}
	return 0;
}

/* meeting_close() it, whatever the result. */
static int meeting_open(struct perf_run *run, struct meeting *meeting)
{
	if (rendezvous_open(&meeting->ranks, &run->shared->id)) {
		return -1;
	}
	return run->options->compare_host ? rendezvous_open(&meeting->twins, &run->shared->twin_id)
					  : 0;
}

static void meeting_close(struct meeting *meeting)
{
	(void)moeep_rendezvous_destroy(meeting->twins);
	(void)moeep_rendezvous_destroy(meeting->ranks);
}

struct thread_rank {
	struct perf_run *run;
	int rank;
	pthread_t thread;
};

static void *thread_main(void *argument)
{
	struct thread_rank *t = argument;

	(void)perf_run_rank(t->run, t->rank);
	atomic_fetch_add(&t->run->shared->finished, 1);
	return NULL;
}

/* Ranks as threads: they watch over each other, as a lost one takes the process with it. */
static int run_threads(struct perf_run *run)
{
	int ranks = run->options->ranks, started = 0, rc = 0;
	struct thread_rank *threads = calloc((size_t)ranks, sizeof(*threads));
	struct meeting meeting = {NULL, NULL};

	if (!threads) {
		fprintf(stderr, "moeep-perf: no memory for %d ranks\n", ranks);
		return -1;
	}
	if (meeting_open(run, &meeting)) {
		meeting_close(&meeting);
		free(threads);
		return -1;
	}
	for (; started < ranks; started++) {
		threads[started].run = run;
		threads[started].rank = started;
		rc = pthread_create(&threads[started].thread, NULL, thread_main, &threads[started]);
		if (rc) {
			/* The ranks that run wait for this one no longer than the time-out. */
			fprintf(stderr, "moeep-perf: thread %d: %s\n", started, strerror(rc));
			break;
		}
	}
	while (atomic_load(&run->shared->finished) < started) {
		progress(run, false);
		look_later();
	}
	for (int i = 0; i < started; i++) {
		pthread_join(threads[i].thread, NULL);
	}
	free(threads);
	meeting_close(&meeting);
	progress(run, true);
	if (rc == 0 && atomic_load(&run->shared->failed)) {
		report_failure(run);
		rc = -1;
	}
	return rc ? -1 : 0;
}

struct children {
	int count;
	int alive;
	pid_t pid[PERF_MAX_RANKS]; /* 0 once it was waited for */
	int first_lost;		   /* rank that ended by a signal or by itself, -1: none */
	int lost_status;
	pid_t lost_pid;
	bool failed;
};

static void children_kill(const struct children *c, int number)
{
	for (int rank = 0; rank < c->count; rank++) {
		if (c->pid[rank] > 0) {
			(void)kill(c->pid[rank], number);
		}
	}
}

/* Collect those that have ended. */
static void children_look(struct children *c)
{
	for (int rank = 0; rank < c->count; rank++) {
		int status;

		if (c->pid[rank] <= 0 || waitpid(c->pid[rank], &status, WNOHANG) != c->pid[rank]) {
			continue;
		}
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
			c->failed = true;
		}
		/* 1 is a rank that has reported what failed. */
		if ((WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) > 1)) &&
		    c->first_lost < 0) {
			c->first_lost = rank;
			c->lost_status = status;
			c->lost_pid = c->pid[rank];
		}
		c->pid[rank] = 0;
		c->alive--;
	}
}

/* End those that are left, by their ids; SIGKILL for those that do not take the hint. */
static void children_end(struct children *c)
{
	int lost = c->first_lost;

	children_kill(c, SIGTERM);
	for (int looks = 0; c->alive > 0; looks++) {
		if (looks == GRACE_LOOKS) {
			children_kill(c, SIGKILL);
		}
		look_later();
		children_look(c);
	}
	/* What ended by our own signal is not the cause. */
	if (lost < 0) {
		c->first_lost = -1;
	}
}

/*
 * A child's life: wait for the word that the rendezvous is open, then be a rank. The children are
 * there before it, because the thread that serves it must not be there when a process forks.
 */
static int child_main(struct perf_run *run, int rank, int gate)
{
	ssize_t n;
	char go;

	do {
		n = read(gate, &go, 1);
	} while (n < 0 && errno == EINTR);
	close(gate);
	if (n != 1) {
		return PERF_EXIT_FAILED;
	}
	return perf_run_rank(run, rank) ? PERF_EXIT_FAILED : PERF_EXIT_OK;
}

static void children_start(struct perf_run *run, struct children *c, const int gate[2])
{
	pid_t parent = getpid();

	*c = (struct children){.count = run->options->ranks, .first_lost = -1};
	/* What is still in a buffer would be written once for each process. */
	fflush(NULL);
	for (int rank = 0; rank < c->count; rank++) {
		pid_t pid = fork();

		if (pid < 0) {
			fprintf(stderr, "moeep-perf: fork: %s\n", strerror(errno));
			c->failed = true;
			return;
		}
		if (pid == 0) {
			(void)signal(SIGINT, SIG_DFL);
			(void)signal(SIGTERM, SIG_DFL);
			/* Never to outlive a parent that is killed. */
			(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() != parent) {
				_exit(PERF_EXIT_FAILED);
			}
			close(gate[1]);
			_exit(child_main(run, rank, gate[0]));
		}
		c->pid[rank] = pid;
		c->alive++;
	}
}

static void report_children(const struct perf_run *run, const struct children *c)
{
	if (stop_signal) {
		fprintf(stderr, "moeep-perf: stopped by signal %d (%s)\n", (int)stop_signal,
			strsignal(stop_signal));
	} else if (c->first_lost >= 0 && WIFSIGNALED(c->lost_status)) {
		fprintf(stderr, "moeep-perf: rank %d (process %d) was killed by signal %d (%s)\n",
			c->first_lost, (int)c->lost_pid, WTERMSIG(c->lost_status),
			strsignal(WTERMSIG(c->lost_status)));
	} else if (c->first_lost >= 0) {
		fprintf(stderr, "moeep-perf: rank %d (process %d) exited with status %d\n",
			c->first_lost, (int)c->lost_pid, WEXITSTATUS(c->lost_status));
	} else {
		report_failure(run);
	}
}

static int run_processes(struct perf_run *run)
{
	struct meeting meeting = {NULL, NULL};
	char go[PERF_MAX_RANKS] = {0};
	struct children c;
	int looks = 0;
	int gate[2];

	if (pipe(gate)) {
		fprintf(stderr, "moeep-perf: pipe: %s\n", strerror(errno));
		return -1;
	}
	children_start(run, &c, gate);
	if (!c.failed &&
	    (meeting_open(run, &meeting) || write(gate[1], go, (size_t)c.count) != c.count)) {
		c.failed = true;
	}
	/* Held open until now: a pipe that nobody reads would end this process. */
	close(gate[0]);
	close(gate[1]);
	while (c.alive > 0 && !c.failed && !stop_signal) {
		progress(run, false);
		look_later();
		children_look(&c);
	}
	/* The cause may come after its effects: a death after the complaints of peers. */
	while (c.alive > 0 && c.first_lost < 0 && !stop_signal && looks++ < GRACE_LOOKS) {
		look_later();
		children_look(&c);
	}
	if (c.alive > 0) {
		children_end(&c);
	}
	progress(run, true);
	if (c.failed) {
		report_children(run, &c);
	}
	meeting_close(&meeting);
	return c.failed ? -1 : 0;
}

int perf_ranks_run(struct perf_run *run)
{
	return run->options->threads ? run_threads(run) : run_processes(run);
}
