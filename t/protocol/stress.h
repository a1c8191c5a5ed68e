/* SPDX-License-Identifier: MIT */
/*
 * Programs that lean on the protocol's waits: ranks that come late, rings that wrap at every other
 * token, payloads that no two epochs have in common. Each is a function that makes its own checks;
 * t/protocol/mutants.t runs them by name on libraries with a wait missing.
 */
#ifndef T_PROTOCOL_STRESS_H
#define T_PROTOCOL_STRESS_H

#include <moeep/moeep.h>
#include <stdbool.h>
#include <stdint.h>

#include "t/ranks.h"
#include "t/tap.h"
#include "t/util.h"

/* At most so many. */
#define STRESS_RANKS 8

struct stress {
	const char *name;
	int num_ranks;
	bool processes;
	int rounds;
	uint64_t seed;
};

/* Run the body on the ranks of `s`, with `s` as its argument or another that holds it. */
bool stress_run(const struct stress *s, ranks_body_fn body, void *arg);

/*
 * At the end of a body's rounds, with their result: the peers are through, too, or know that they
 * need not go on; then what the body has made can go.
 */
int stress_end(int failed, moeep_comm_t *comm);

/* A hash of the seed and the numbers; rounds that differ give data that differ. */
uint64_t stress_mix(const struct stress *s, uint64_t round, uint64_t a, uint64_t b);

/* A number for a token. */
static inline uint64_t stress_token(int src, int token)
{
	return (uint64_t)src << 16 | (uint64_t)token;
}

/* Random numbers of one rank. */
struct rng stress_rng(const struct stress *s, int rank);

/*
 * Before a call: nothing, or a short sleep. The rank whose turn it is in this round sleeps for
 * longer, until its peers all sleep in a wait for it: then it has a head start on them.
 */
void stress_pause(const struct stress *s, struct rng *rng, int rank, int round);
void stress_sleep_us(uint64_t us);
uint64_t stress_now_ns(void);

/* Wait until as many have come, by a word in shared memory instead of the library. */
void stress_meet(_Atomic int *come, int wanted);

/* Which rank is late in a round. */
int stress_late(const struct stress *s, int round);

/* stress_core.c */
void stress_barrier(const struct stress *s);
void stress_abort(const struct stress *s);
void stress_abort_collective(const struct stress *s);
void stress_report(const struct stress *s);
void stress_first(const struct stress *s);
void stress_leave(const struct stress *s);
void stress_depart(const struct stress *s);
void stress_lost(const struct stress *s);

/* stress_ht.c */
void stress_ht_rows(const struct stress *s);
void stress_ht_direct(const struct stress *s);
void stress_ht_combine(const struct stress *s);
void stress_ht_experts(const struct stress *s);

/* stress_ll.c */
void stress_ll_rows(const struct stress *s);
void stress_ll_combine(const struct stress *s);
void stress_ll_direct(const struct stress *s);

/* stress_wake.c */
void stress_wake_barrier(const struct stress *s);
void stress_wake_collective(const struct stress *s);
void stress_wake_enter(const struct stress *s);
void stress_wake_rows(const struct stress *s);
void stress_wake_room(const struct stress *s);
void stress_wake_partial(const struct stress *s);
void stress_wake_partial_room(const struct stress *s);
void stress_wake_readers(const struct stress *s);
void stress_wake_ll(const struct stress *s);

/* stress_stream.c */
void stress_stream_push(const struct stress *s);
void stress_stream_partial(const struct stress *s);

#endif /* T_PROTOCOL_STRESS_H */
