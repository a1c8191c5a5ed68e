/* SPDX-License-Identifier: MIT */
/*
 *	stress.t [-p] [-r RANKS] [NAME...]
 *
 * Runs the named programs, in threads or (-p) in processes; without names all of them, in both.
 * MOEEP_TEST_SEED changes the data and the delays, MOEEP_TEST_ROUNDS the length.
 */
#include "config.h"

#include "t/protocol/stress.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Longer than it takes the other ranks to get from one call to the next and fall asleep there. */
#define LATE_US	   500
#define TIMEOUT_MS 10000

struct program {
	const char *name;
	void (*run)(const struct stress *s);
	int num_ranks; /* by default */
	bool fixed;    /* it needs that number */
	bool processes;
};

static const struct program programs[] = {
	{"barrier", stress_barrier, 3, false, true},
	{"abort", stress_abort, 3, false, true},
	{"abort_collective", stress_abort_collective, 3, false, true},
	{"report", stress_report, 3, false, true},
	{"first", stress_first, 3, false, true},
	{"leave", stress_leave, 2, true, true},
	{"depart", stress_depart, 2, true, true},
	{"lost", stress_lost, 2, true, false},
	{"ht_rows", stress_ht_rows, 3, false, true},
	{"ht_direct", stress_ht_direct, 3, false, true},
	{"ht_combine", stress_ht_combine, 3, false, true},
	{"ht_experts", stress_ht_experts, 3, false, true},
	{"ll_rows", stress_ll_rows, 3, false, true},
	{"ll_combine", stress_ll_combine, 3, false, true},
	{"ll_direct", stress_ll_direct, 3, false, true},
	{"stream_push", stress_stream_push, 2, true, false},
	{"stream_partial", stress_stream_partial, 2, true, false},
	{"wake_barrier", stress_wake_barrier, 2, true, false},
	{"wake_collective", stress_wake_collective, 2, true, false},
	{"wake_enter", stress_wake_enter, 2, true, false},
	{"wake_rows", stress_wake_rows, 2, true, false},
	{"wake_room", stress_wake_room, 2, true, false},
	{"wake_partial", stress_wake_partial, 2, true, false},
	{"wake_partial_room", stress_wake_partial_room, 2, true, false},
	{"wake_readers", stress_wake_readers, 2, true, false},
	{"wake_ll", stress_wake_ll, 2, true, false},
};

#define NUM_PROGRAMS ((int)(sizeof(programs) / sizeof(programs[0])))

bool stress_run(const struct stress *s, ranks_body_fn body, void *arg)
{
	struct ranks_config config = {
		.num_ranks = s->num_ranks,
		.processes = s->processes,
		.timeout_ms = TIMEOUT_MS,
	};

	return ranks_run(&config, body, arg, "%s, %d rounds, seed %llu", s->name, s->rounds,
			 (unsigned long long)s->seed);
}

int stress_end(int failed, moeep_comm_t *comm)
{
	if (failed) {
		moeep_comm_abort(comm, "a rank's test failed");
		return -1;
	}
	RANK_TRY(moeep_comm_barrier(comm));
	return 0;
}

uint64_t stress_mix(const struct stress *s, uint64_t round, uint64_t a, uint64_t b)
{
	return util_hash(util_hash(s->seed, round, 1), a, b);
}

struct rng stress_rng(const struct stress *s, int rank)
{
	return (struct rng){.state = util_hash(s->seed, (uint64_t)rank, 2)};
}

void stress_sleep_us(uint64_t us)
{
	struct timespec time = {.tv_sec = (time_t)(us / 1000000),
				.tv_nsec = (long)(us % 1000000) * 1000};

	nanosleep(&time, NULL);
}

uint64_t stress_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void stress_meet(_Atomic int *come, int wanted)
{
	atomic_fetch_add(come, 1);
	while (atomic_load(come) < wanted) {
		stress_sleep_us(100);
	}
}

int stress_late(const struct stress *s, int round)
{
	return (int)(stress_mix(s, (uint64_t)round, 3, 0) % (uint64_t)s->num_ranks);
}

void stress_pause(const struct stress *s, struct rng *rng, int rank, int round)
{
	if (rank == stress_late(s, round)) {
		stress_sleep_us(LATE_US);
	} else if (rng_chance(rng, 30)) {
		stress_sleep_us((uint64_t)rng_range(rng, 1, 200));
	}
}

static void run(const struct program *program, struct stress s)
{
	s.name = program->name;
	if (s.num_ranks == 0 || program->fixed) {
		s.num_ranks = program->num_ranks;
	}
	program->run(&s);
}

int main(int argc, char **argv)
{
	struct stress s = {
		.seed = util_env("MOEEP_TEST_SEED", 1),
		.rounds = (int)util_env("MOEEP_TEST_ROUNDS", tap_quick() ? 15 : 40),
	};
	int option;

	/* Ranks that spin follow a late one so closely that it has no head start. */
	setenv("MOEEP_SPIN", "0", 0);
	/* Failures that are asked for are not worth a line. */
	setenv("MOEEP_LOG", "none", 0);
	while ((option = getopt(argc, argv, "pr:")) != -1) {
		if (option == 'p') {
			s.processes = true;
		} else if (option == 'r') {
			s.num_ranks = atoi(optarg);
		} else {
			tap_bail("usage: %s [-p] [-r RANKS] [NAME...]", argv[0]);
		}
	}
	if (s.num_ranks < 0 || s.num_ranks > STRESS_RANKS) {
		tap_bail("%d ranks, expected 1 to %d", s.num_ranks, STRESS_RANKS);
	}
	for (int i = 0; optind == argc && i < NUM_PROGRAMS; i++) {
		run(&programs[i], s);
		if (programs[i].processes) {
			struct stress apart = s;

			apart.processes = true;
			run(&programs[i], apart);
		}
	}
	for (; optind < argc; optind++) {
		const struct program *found = NULL;

		for (int i = 0; i < NUM_PROGRAMS; i++) {
			if (strcmp(argv[optind], programs[i].name) == 0) {
				found = &programs[i];
			}
		}
		if (!found) {
			tap_bail("there is no program %s", argv[optind]);
		}
		run(found, s);
	}
	return tap_done();
}
