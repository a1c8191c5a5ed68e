/* SPDX-License-Identifier: MIT */
/*
 * Runs a function on every rank of a group, each in a thread or a process of its own, and makes one
 * TAP check of it.
 *
 *	static int body(int rank, moeep_comm_t *comm, void *arg)
 *	{
 *		RANK_TRY(moeep_comm_barrier(comm));
 *		rank_check(value == 7, "value is %d", value);
 *		return 0;
 *	}
 *
 *	ranks_run(&(struct ranks_config){ .num_ranks = 4 }, body, NULL, "barrier");
 *
 * What the ranks find wrong is collected and printed below the check. A group that does not come
 * to an end fails, too: its processes are killed, and with threads, which cannot be, the program
 * gives up.
 */
#ifndef T_RANKS_H
#define T_RANKS_H

#include <moeep/moeep.h>
#include <stdbool.h>
#include <stddef.h>

#define RANKS_MAX	64
#define RANKS_MAX_COMMS 2

/* 0 from a body is success. Other values count as a failure and abort the comms of the rank. */
typedef int (*ranks_body_fn)(int rank, moeep_comm_t *comm, void *arg);

struct ranks_config {
	int num_ranks;
	bool processes;		     /* fork each rank; else threads; see ranks_forked() */
	int num_comms;		     /* of the same ranks; default 1 */
	uint32_t timeout_ms;	     /* of the comms; default 20000 */
	unsigned int limit_s;	     /* for the whole run; default 100 */
	const char *const *host_ids; /* [num_ranks] or NULL */
};

#define ranks_run(config, body, arg, ...)                                                          \
	ranks_run_at(__FILE__, __LINE__, config, body, arg, __VA_ARGS__)
bool ranks_run_at(const char *file, int line, const struct ranks_config *config, ranks_body_fn body,
		  void *arg, const char *fmt, ...) __attribute__((format(printf, 6, 7)));

/* First in a program: ends it where MOEEP_TEST_CUDA (t/device.h) asks for what is not there. */
void ranks_begin(void);

/* What a run does that asks for processes or for threads: MOEEP_TEST_CUDA decides if it is set. */
bool ranks_forked(bool processes);

/* In a body: the comm of that number; number 0 is the body's argument. */
moeep_comm_t *ranks_comm(int index);

/* In a body, with MOEEP_TEST_CUDA: an event of comm 0, for calls that are waited for at once. */
moeep_event_t *ranks_event(void);

/* Memory that the processes of a run share, zeroed. For what one rank tells another. */
void *ranks_share(size_t bytes);
void ranks_unshare(void *memory, size_t bytes);

/* In a body: note a failure and go on. Outside of one: a failed TAP check. */
void rank_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define rank_check(cond, ...) ((cond) ? true : (rank_fail(__VA_ARGS__), false))

/* Whether a call gave the wanted result; if not, a failure with the call and the detail. */
bool rank_result(int got, int want, const char *call, const char *file, int line);
#define rank_is(call, want) rank_result(call, want, #call, __FILE__, __LINE__)
#define rank_ok(call)	    rank_is(call, MOEEP_OK)

/* For calls without which the rest of a body makes no sense. */
#define RANK_TRY(call)                                                                             \
	do {                                                                                       \
		if (!rank_ok(call)) {                                                              \
			return -1;                                                                 \
		}                                                                                  \
	} while (0)

/* The same for functions of the tests that return 0 and have noted their failures themselves. */
#define RANK_DO(call)                                                                              \
	do {                                                                                       \
		if ((call) != 0) {                                                                 \
			return -1;                                                                 \
		}                                                                                  \
	} while (0)

#endif /* T_RANKS_H */
