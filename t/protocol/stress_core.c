/* SPDX-License-Identifier: MIT */
/* The barrier, and how a failure reaches every rank. */
#include "config.h"

#include "t/protocol/stress.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Much more than it takes to notice, much less than the time-out. */
#define NOTICE_MS 1000
/* For waits that must end before it. */
#define SHORT_TIMEOUT_MS 3000

/* What the ranks of one run know of each other, outside of the library. */
struct board {
	const struct stress *s;
	bool collective;
	uint64_t round[RANKS_MAX]; /* not atomic: the barrier has to order it */
	atomic_int come;
	char message[RANKS_MAX][160];
};

static struct board *board_new(const struct stress *s)
{
	struct board *board = ranks_share(sizeof(*board));

	board->s = s;
	return board;
}

static void board_free(struct board *board)
{
	ranks_unshare(board, sizeof(*board));
}

static int barrier_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct board *board = arg;
	const struct stress *s = board->s;
	struct rng rng = stress_rng(s, rank);

	for (int round = 0; round < 2 * s->rounds; round++) {
		stress_pause(s, &rng, rank, round);
		board->round[rank] = (uint64_t)round;
		RANK_TRY(moeep_comm_barrier(comm));
		stress_pause(s, &rng, rank, round + 1);
		for (int peer = 0; peer < s->num_ranks; peer++) {
			if (!rank_check(board->round[peer] == (uint64_t)round,
					"round %d: rank %d is in round %llu", round, peer,
					(unsigned long long)board->round[peer])) {
				return -1;
			}
		}
		RANK_TRY(moeep_comm_barrier(comm));
	}
	return 0;
}

void stress_barrier(const struct stress *s)
{
	struct board *board = board_new(s);

	stress_run(s, barrier_body, board);
	board_free(board);
}

/*
 * Rank 0 aborts while the others sleep; they must not sleep on until their time-out. It stays until
 * they have noticed, for that it has left would end their waits, too.
 */
static int abort_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct board *board = arg;
	uint64_t begin, ms;
	void *memory;

	RANK_TRY(moeep_comm_barrier(comm));
	begin = stress_now_ns();
	if (rank == 0) {
		stress_sleep_us(5000);
		rank_ok(moeep_comm_abort(comm, "enough"));
		while (atomic_load(&board->come) < board->s->num_ranks - 1 &&
		       stress_now_ns() < begin + 2 * NOTICE_MS * 1000000ull) {
			stress_sleep_us(100);
		}
		return 0;
	}
	rank_is(board->collective ? moeep_mem_alloc(comm, 64, 0, &memory)
				  : moeep_comm_barrier(comm),
		MOEEP_ERR_ABORTED);
	atomic_fetch_add(&board->come, 1);
	ms = (stress_now_ns() - begin) / 1000000;
	rank_check(ms < NOTICE_MS, "it took %llu ms to notice the abort", (unsigned long long)ms);
	return 0;
}

static void abort_run(const struct stress *s, bool collective)
{
	struct ranks_config config = {.num_ranks = s->num_ranks,
				      .processes = s->processes,
				      .timeout_ms = SHORT_TIMEOUT_MS};
	struct board *board = board_new(s);

	board->collective = collective;
	ranks_run(&config, abort_body, board, "%s", s->name);
	board_free(board);
}

void stress_abort(const struct stress *s)
{
	abort_run(s, false);
}

/* The same in a call that goes on with exchanges that hear nothing of an abort. */
void stress_abort_collective(const struct stress *s)
{
	abort_run(s, true);
}

/* Whoever sees that there is a failure sees all of its report. */
static int report_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct board *board = arg;
	moeep_error_report_t report = {.size = sizeof(report)};
	uint64_t limit;

	stress_meet(&board->come, board->s->num_ranks);
	if (rank == 0) {
		stress_sleep_us(2000);
		rank_ok(moeep_comm_abort(comm, "the reason, all of it"));
		return 0;
	}
	limit = stress_now_ns() + NOTICE_MS * 1000000ull;
	while (moeep_comm_async_error(comm, &report) == MOEEP_OK && stress_now_ns() < limit) {
	}
	rank_check(report.result == MOEEP_ERR_ABORTED && report.rank == 0 &&
			   strcmp(report.message, "the reason, all of it") == 0,
		   "the report is %d, rank %d, \"%s\"", report.result, report.rank, report.message);
	return 0;
}

void stress_report(const struct stress *s)
{
	struct board *board = board_new(s);

	stress_run(s, report_body, board);
	board_free(board);
}

/* All ranks fail at once: one failure is the first, and all report that one, now and later. */
static int first_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct board *board = arg;
	moeep_error_report_t report = {.size = sizeof(report)};
	char reason[32];

	snprintf(reason, sizeof(reason), "reason %d", rank);
	stress_meet(&board->come, board->s->num_ranks);
	rank_ok(moeep_comm_abort(comm, reason));
	rank_is(moeep_comm_async_error(comm, &report), MOEEP_ERR_ABORTED);
	memcpy(board->message[rank], report.message, sizeof(report.message));
	stress_meet(&board->come, 2 * board->s->num_ranks);
	rank_is(moeep_comm_async_error(comm, &report), MOEEP_ERR_ABORTED);
	for (int peer = 0; peer < board->s->num_ranks; peer++) {
		rank_check(strcmp(board->message[peer], report.message) == 0,
			   "\"%s\" here, \"%s\" on rank %d", report.message, board->message[peer],
			   peer);
	}
	return 0;
}

void stress_first(const struct stress *s)
{
	struct board *board = board_new(s);

	stress_run(s, first_body, board);
	board_free(board);
}

/* A rank that leaves is not waited for. */
static int leave_body(int rank, moeep_comm_t *comm, void *arg)
{
	(void)arg;
	RANK_TRY(moeep_comm_barrier(comm));
	if (rank == 1) {
		rank_is(moeep_comm_barrier(comm), MOEEP_ERR_PEER_LOST);
	}
	return 0;
}

void stress_leave(const struct stress *s)
{
	struct ranks_config config = {.num_ranks = s->num_ranks,
				      .processes = s->processes,
				      .timeout_ms = SHORT_TIMEOUT_MS};

	ranks_run(&config, leave_body, NULL, "%s", s->name);
}

/*
 * What a rank published before it left counts: rank 1 looks after its first slice of sleep, 20 ms,
 * who has left, and rank 0 comes and leaves about then.
 */
static int depart_body(int rank, moeep_comm_t *comm, void *arg)
{
	(void)arg;
	RANK_TRY(moeep_comm_barrier(comm));
	if (rank == 0) {
		stress_sleep_us(30000);
	}
	RANK_TRY(moeep_comm_barrier(comm));
	return 0;
}

void stress_depart(const struct stress *s)
{
	stress_run(s, depart_body, NULL);
}

/* An exchange in shared memory: no connection tells of a death, the library has to look itself. */
#define GATHER_BYTES 4096

struct gather {
	atomic_uint arrived;
	unsigned char data[2][GATHER_BYTES];
};

struct gather_rank {
	struct gather *gather;
	int rank;
};

static void gather_arrive(struct gather *gather)
{
	unsigned int mine = atomic_fetch_add(&gather->arrived, 1);

	while (atomic_load(&gather->arrived) < 2 * (mine / 2 + 1)) {
		stress_sleep_us(50);
	}
}

static int gather_all(void *context, const void *send, void *recv, size_t bytes, void **request)
{
	struct gather_rank *mine = context;

	*request = NULL;
	if (bytes > GATHER_BYTES) {
		return -1;
	}
	memcpy(mine->gather->data[mine->rank], send, bytes);
	gather_arrive(mine->gather);
	for (int peer = 0; peer < 2; peer++) {
		memcpy((char *)recv + (size_t)peer * bytes, mine->gather->data[peer], bytes);
	}
	gather_arrive(mine->gather);
	return 0;
}

static moeep_comm_t *lost_join(struct gather *gather, int rank)
{
	struct gather_rank mine = {.gather = gather, .rank = rank};
	moeep_bootstrap_t bootstrap = {
		.size = sizeof(bootstrap), .context = &mine, .allgather = gather_all};
	moeep_comm_config_t config = {.size = sizeof(config),
				      .bootstrap = &bootstrap,
				      .backend = MOEEP_BACKEND_HOST,
				      .timeout_ms = SHORT_TIMEOUT_MS};
	moeep_comm_t *comm = NULL;

	if (moeep_comm_create(rank, 2, &config, &comm) != MOEEP_OK ||
	    moeep_comm_barrier(comm) != MOEEP_OK) {
		tap_diag("rank %d cannot join: %s", rank, moeep_error_detail());
		return NULL;
	}
	return comm;
}

/* A process ends without a word. Its peer must know that, and not only that it is late. */
void stress_lost(const struct stress *s)
{
	struct gather *gather = ranks_share(sizeof(*gather));
	moeep_comm_t *comm;
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		(void)lost_join(gather, 1);
		raise(SIGKILL);
	}
	if (pid < 0) {
		tap_bail("fork failed");
	}
	comm = lost_join(gather, 0);
	if (ok(comm != NULL, "%s: two processes meet", s->name)) {
		is_int(moeep_comm_barrier(comm), MOEEP_ERR_PEER_LOST,
		       "%s: the end of one is noticed", s->name);
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	is_int(moeep_comm_destroy(comm), MOEEP_OK, "%s: the comm is destroyed", s->name);
	ranks_unshare(gather, sizeof(*gather));
}
