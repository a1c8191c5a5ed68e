/* SPDX-License-Identifier: MIT */
/*
 * Groups in which one rank is struck in the middle of something, and what the others notice.
 *
 * Each rank is a process, or a thread of one that holds several. All run the case's act(), whose
 * last call is the one that fails; the victim's act() contains fault_strike(), or a trap that does
 * the same when the library touches a certain page. Then the harness demands of every survivor:
 *
 *	- the error that the case wants, in time, with the same report on all of them;
 *	- the same error at once from every later call;
 *	- that destroying everything is quick, and leaves no descriptor and no mapping;
 *	- that the survivors can make a new comm and move rows over it.
 *
 * A victim that comes back has to get the same error, and to end in order.
 */
#ifndef T_FAULT_FAULT_H
#define T_FAULT_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <moeep/moeep.h>

#define FAULT_RANKS_MAX 4
/* A flag of an epoch, as reports show it. */
#define FAULT_WORD(epoch) ((uint64_t)(epoch) << 24)

enum fault_fate {
	FATE_DIES = 1, /* by SIGKILL */
	FATE_STOPS,    /* by SIGSTOP; continued when the others have ended */
	FATE_LATE,     /* comes when the others have given up */
	FATE_LEAVES,   /* destroys its comm */
	FATE_ABORTS    /* calls moeep_comm_abort(): all ranks are to notice, and itself */
};

/* What the survivors must get; 0 and NULL stand for what follows from the fate. */
struct fault_want {
	int result;
	bool any_result; /* any failure will do */
	int operation;
	int peer_plus_one; /* -1: any */
	uint64_t epoch;	   /* 0: any */
	uint64_t expected; /* 0: anything that seen has not reached */
	uint64_t seen;	   /* counts if expected is given */
	const char *text;  /* in the detail of the failed call */
};

struct fault_rank;

struct fault_case {
	const char *name;
	enum fault_fate fate;
	int num_ranks; /* default 3 */
	int victim;
	int process[FAULT_RANKS_MAX]; /* ranks with equal numbers are threads of one process; all
					 zero: a process each */
	uint32_t timeout_ms;	      /* default FAULT_TIMEOUT_MS */
	int second_plus_one; /* another rank: killed from outside a while after the strike */
	bool bare;	     /* act() makes the comm by itself, if it comes to that */
	bool hosted;	     /* rank 0 hosts the rendezvous; else the harness does */
	bool harmless;	     /* nobody gets an error */
	bool unreported;     /* the report cannot be complete, but is the same for all */
	bool unaware;	     /* the victim does not come to its call */
	uint32_t destroy_ms; /* limit of destruction; default FAULT_DESTROY_MS */
	int arg;	     /* for act() */
	int (*prepare)(struct fault_rank *r); /* before the clock starts; 0 or a result */
	int (*act)(struct fault_rank *r);     /* the result of its last call */
	struct fault_want want;
};

#define FAULT_TIMEOUT_MS 500
#define FAULT_DESTROY_MS 900
/* What the time-out may be exceeded by, and what a death may take to be noticed. */
#define FAULT_SLACK_MS 1000

/* What a rank tells the harness, in memory that all processes share. */
struct fault_slot {
	_Atomic uint64_t struck_ns;
	atomic_int given_up; /* its call has failed */
	atomic_int finished; /* it holds nothing any more */
	atomic_int ready;
	int result;
	int64_t call_ms;   /* duration of the failed call */
	int64_t notice_ms; /* from the strike, or the later call, to its return */
	int64_t destroy_ms;
	moeep_error_report_t report;
	int failures;
	size_t used;
	char text[3000];
};

struct fault_shared {
	moeep_unique_id_t id[2]; /* of the group, and of the survivors' later one */
	atomic_int go;
	atomic_int go_hosted;
	atomic_int points; /* counted by a run without a strike */
	struct fault_slot slot[FAULT_RANKS_MAX];
};

struct fault_rank {
	const struct fault_case *fault;
	struct fault_shared *shared;
	struct fault_slot *slot;
	int rank;
	int num_ranks;
	bool victim;
	uint64_t call_ns;
	moeep_rendezvous_t *hosted;
	moeep_comm_t *comm;
	/* fault_make() and what follows. */
	moeep_buffer_t *buffer;
	moeep_handle_t *handle[3];
	moeep_event_t *event;
	unsigned char *x;	 /* [FAULT_TOKENS, FAULT_HIDDEN] */
	unsigned char *received; /* room for any output */
	unsigned char *out;
	void *symmetric;
	int64_t *topk_idx;
	int32_t *src_rank;
	int32_t *src_token;
	int32_t *count;
	int64_t num_recv;
	int64_t ht_tokens; /* FAULT_TOKENS, unless a case changes it */
	int64_t ll_tokens; /* FAULT_LL_TOKENS, the same */
};

/* One TAP check. */
bool fault_run(const struct fault_case *fault);
/* The shared memory of the last run. */
const struct fault_shared *fault_last(void);

/* Around all cases of a program: nothing may be left in /dev/shm or /tmp. */
void fault_begin(void);
int fault_end(void);

/* All that a rank does in a case. */
void fault_rank_run(struct fault_rank *r);

/* In a rank: note a failure and go on. */
void fault_fail(struct fault_rank *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define fault_check(r, cond, ...) ((cond) ? true : (fault_fail(r, __VA_ARGS__), false))
#define fault_ok(r, call)	  fault_is(r, call, MOEEP_OK, #call)
bool fault_is(struct fault_rank *r, int got, int want, const char *call);

/* The failing call begins now; before it begins, it is taken to be act(). */
void fault_clock(struct fault_rank *r);
/* In the victim. True if it must not go on. */
bool fault_strike(struct fault_rank *r);
/* The page of [memory] at `offset`, both multiples of the page size, strikes when it is touched. */
void fault_trap(struct fault_rank *r, unsigned char *memory, size_t offset);
/*
 * The victim waits until all survivors are ready, or the survivors until it has been struck: where
 * else a death could come so early that it is noticed in another call than the one that is meant.
 */
void fault_ready(struct fault_rank *r);
void fault_await_ready(struct fault_rank *r);
void fault_await_struck(struct fault_rank *r);
/* Has rank `rank` noticed the failure, waiting for it at most 20 s? */
bool fault_wait_given_up(struct fault_rank *r, int rank);
bool fault_survives(const struct fault_case *fault, int rank);
int fault_num_ranks(const struct fault_case *fault);
uint32_t fault_timeout(const struct fault_case *fault);
/* Sanitizers make everything slower by about this. */
int fault_slowness(void);
uint64_t fault_now_ns(void);
void fault_sleep_ms(int ms);
/* Descriptors of this process, and its mappings that have moeep in their name. */
int fault_count_fds(void);
int fault_count_maps(void);

/* work.c: what ranks do. Each returns the result of the library's call. */

#define FAULT_HIDDEN	256
#define FAULT_ROW_BYTES 512
#define FAULT_TOKENS	64 /* of an HT call */
#define FAULT_LL_TOKENS 16

int fault_join(struct fault_rank *r, int which, int rank, int num_ranks, uint32_t timeout_ms);
/* Buffer, handles and memory. */
int fault_make(struct fault_rank *r);
/* The same, then a dispatch and a combine of each family that succeed. */
int fault_make_and_use(struct fault_rank *r);
int fault_dispatch(struct fault_rank *r, const moeep_launch_t *launch);
int fault_combine(struct fault_rank *r, const void *x, const moeep_launch_t *launch);
int fault_ll_dispatch(struct fault_rank *r, int handle, int phase, const moeep_launch_t *launch);
int fault_ll_combine(struct fault_rank *r, int handle, int phase, const void *x,
		     const moeep_launch_t *launch);
/* Every call on the comm gives `result` at once. */
void fault_sticky(struct fault_rank *r, int result);
/* Destroy all there is, in order. */
void fault_free(struct fault_rank *r);
/* The survivors meet again and move rows. */
void fault_again(struct fault_rank *r);

#endif /* T_FAULT_FAULT_H */
