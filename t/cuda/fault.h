/* SPDX-License-Identifier: MIT */
/*
 * Faults on GPUs: ranks that are late, stopped, killed, aborted, or that disagree, while kernels of
 * the others spin.
 *
 * A group of ranks, each a process (or all of them threads of one), plays scenes one after the
 * other. A scene begins with a new comm over which rows are moved and checked, so each scene shows
 * that what the one before it left behind does no harm; a last one without a fault ends the group.
 * The parent keeps off CUDA, as it forks.
 *
 * With an empty MOEEP_TEST_CUDA the same runs on the host backend, as far as that has the same
 * faults: the test of the test where there is no device.
 */
#ifndef T_CUDA_FAULT_H
#define T_CUDA_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <moeep/moeep.h>

#include "cuda/driver.h"

#define FAULT_RANKS   3
#define FAULT_SCENES  20 /* of a group, the last one included */
#define FAULT_TOKENS  12
#define FAULT_HIDDEN  64
#define FAULT_EXPERTS 2 /* of each rank */

/* Of scenes that end by it; of the others, long enough not to matter. */
#define FAULT_TIMEOUT_MS 1500
#define FAULT_LONG_MS	 20000
/* What the time-out may be exceeded by; what an abort and a death may take to be noticed. */
#define FAULT_SLACK_MS 1000
#define FAULT_ABORT_MS 1000
#define FAULT_LOST_MS  2000
/* Every call takes less than this once the comm has failed. */
#define FAULT_AT_ONCE_MS 300
/* No rank waits longer for another to get somewhere. */
#define FAULT_PATIENCE_MS 40000

enum fault_fate {
	FATE_NONE,
	FATE_LATE,	   /* calls when the others have given up */
	FATE_STOPPED,	   /* by SIGSTOP; goes on when the others have destroyed everything */
	FATE_KILLED,	   /* by SIGKILL, before its call */
	FATE_KILLED_BUSY,  /* the same while its own kernels spin, as another rank does not come */
	FATE_ABORTS,	   /* its other thread calls moeep_comm_abort() while kernels spin */
	FATE_ABORTS_GRAPH, /* the same with graphs that are queued to be replayed */
	FATE_ASKS,	   /* no victim: more blocks than can be resident */
	FATE_DIFFERS,	   /* passes something else than the others */
	FATE_REFUSED,	   /* passes what its library refuses */
	FATE_ALL_REFUSED   /* the same on all ranks, and the victim is late with the right call */
};

/* The call that fails. */
enum fault_call {
	CALL_DISPATCH,
	CALL_COMBINE,
	CALL_LL_DISPATCH, /* both phases */
	CALL_LL_COMBINE,
	CALL_LL_SEND, /* the third SEND while the victim has received none */
	CALL_LL_RECV,
	CALL_LL_CSEND,
	CALL_LL_CRECV
};

enum fault_field { FIELD_NONE, FIELD_DTYPE, FIELD_TOPK, FIELD_QUANT, FIELD_FLAGS };

struct fault_scene {
	const char *name;
	enum fault_fate fate;
	enum fault_call call;
	enum fault_field field; /* FATE_DIFFERS */
	int victim;		/* modulo the number of ranks */
	bool three;		/* only with three ranks */
};

/* What a rank tells the parent of a scene. */
struct fault_slot {
	_Atomic uint64_t struck_ns;
	atomic_int in_call;  /* its kernels are queued */
	atomic_int given_up; /* its call has failed */
	atomic_int finished; /* it holds nothing of the scene any more */
	int call_ms;	     /* of the call that failed */
	int notice_ms;	     /* from the strike */
	int destroy_ms;
	int failures;
	size_t used;
	char text[2000];
};

struct fault_shared {
	moeep_unique_id_t id[FAULT_SCENES];
	atomic_int go;
	atomic_int met[FAULT_SCENES];
	struct fault_slot slot[FAULT_SCENES][FAULT_RANKS];
};

struct fault_group {
	const struct fault_scene *scenes[FAULT_SCENES];
	int num_scenes;
	int num_ranks;
	bool threads;
	struct fault_shared *shared;
};

/* One rank, and what it has in a scene. */
struct fault_rank {
	const struct fault_group *group;
	int number; /* in the group; the rank in a comm is another one after a death */
	int scene;
	int rank;
	int num_ranks;
	bool victim;
	const struct moeep_cu *cu; /* NULL with the host backend */
	moeep_comm_t *comm;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle[3]; /* HT, and two of LL */
	moeep_event_t *event;
	CUstream stream; /* of the scene's graph */
	CUgraph graph;
	CUgraphExec exec;
	/* Pinned, or the host's. */
	uint16_t *x;
	uint16_t *received;
	uint16_t *out;
	int64_t *topk_idx;
	int32_t *src_rank;
	int32_t *src_token;
	int32_t *count;
	int64_t *num_recv;
	int32_t *status;
	/* What the next call is to pass instead. */
	int32_t num_sms;
	enum fault_field field;
};

static inline const struct fault_scene *fault_scene(const struct fault_rank *r)
{
	return r->group->scenes[r->scene];
}

static inline struct fault_slot *fault_slot(const struct fault_rank *r, int number)
{
	return &r->group->shared->slot[r->scene][number];
}

/* fault_rank.c: all that a rank does; in a thread of its own, or as a process. */
void fault_rank_run(struct fault_rank *r);
/* Who is struck in a scene, and has a rank been killed before it? */
int fault_victim(const struct fault_group *group, int scene);
bool fault_is_dead(const struct fault_group *group, int scene, int number);
bool fault_kills(const struct fault_scene *scene);
uint64_t fault_now_ns(void);
int fault_ms_since(uint64_t ns);
void fault_sleep_ms(int ms);

/* Note a failure and go on. */
void fault_fail(struct fault_rank *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define fault_check(r, cond, ...) ((cond) ? true : (fault_fail(r, __VA_ARGS__), false))
#define fault_ok(r, call)	  fault_is(r, call, MOEEP_OK, #call)
bool fault_is(struct fault_rank *r, int got, int want, const char *call);

/* fault_act.c: its part in the scene, by the scene's fate. */
void fault_act(struct fault_rank *r);

/* fault_check.c. */

/* The rank that does not come while the victim's own kernels spin. */
int fault_absent(const struct fault_rank *r);
/* Until the others' calls have failed, or are queued; but two. */
void fault_await_given_up(struct fault_rank *r, int but, int or);
void fault_await_in_call(struct fault_rank *r, int but, int or);
/* The victim, by a signal or by 0. */
void fault_strike(struct fault_rank *r, int signal);
/* "rank 2" */
const char *fault_name_victim(const struct fault_rank *r, char *text, size_t size);
/* After the call that failed: as it should, and in time? */
void fault_check_failure(struct fault_rank *r, int rc, uint64_t begun, int want, const char *text,
			 int limit_ms);
/* What survivors of a late, stopped or killed rank get. */
void fault_check_survivor(struct fault_rank *r, int rc, uint64_t begun);

/* fault_work.c: objects and calls. */

/* Memory for all scenes. */
void fault_memory_make(struct fault_rank *r);
void fault_memory_free(struct fault_rank *r);
/* The scene's comm and what belongs to it. False with a failure noted. */
bool fault_open(struct fault_rank *r, uint32_t timeout_ms);
void fault_close(struct fault_rank *r);
/* Put the call on the stream: MOEEP_OK or why not. */
int fault_start(struct fault_rank *r, enum fault_call call, int handle,
		const moeep_launch_t *launch);
/* The same on the buffer's stream with the rank's event; fault_end() waits for it. */
int fault_begin(struct fault_rank *r, enum fault_call call, int handle);
int fault_end(struct fault_rank *r, int begun);
static inline int fault_do(struct fault_rank *r, enum fault_call call, int handle)
{
	return fault_end(r, fault_begin(r, call, handle));
}
/* Move rows by all operations and look at every element. False with failures noted. */
bool fault_verify(struct fault_rank *r);
/* The device still does what it is told: a copy there and back. */
void fault_check_device(struct fault_rank *r);

#endif /* T_CUDA_FAULT_H */
