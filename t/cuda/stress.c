/* SPDX-License-Identifier: MIT */
/*
 *	stress.t [RANKS TOKENS HIDDEN [load]]
 *
 * Long random runs of all operations on devices; stress.h has what they are made of. Without
 * arguments all groups below, with them one. MOEEP_TEST_ROUNDS is how many rounds, MOEEP_TEST_SEED
 * what they are; with an empty MOEEP_TEST_CUDA the same runs on the host backend.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "t/cuda/stress.h"
#include "t/device.h"

#define ROUNDS 300
/* Processes take turns on a device, which makes every wait cost milliseconds, unless they are under
 * MPS. */
#define PROCESS_RANKS 4
#define PROCESS_PART  15
/* A device has 32 queues; streams that share one must not wait for each other. */
#define LANE_RANKS 4
/* Of the shortest round, for the limit of a run. */
#define ROUNDS_A_SECOND 20

static const struct {
	int num_ranks;
	int max_tokens;
	int hidden;
	bool load;
	int part; /* of the rounds */
} groups[] = {
	{2, 16, 64, false, 1},	{3, 16, 64, true, 1},	{4, 16, 64, false, 1},
	{2, 96, 520, true, 4},	{4, 96, 520, false, 4}, {8, 16, 64, false, 1},
	{5, 40, 1048, true, 4}, {16, 16, 64, false, 2},
};

static bool take_turns(void)
{
	return device_mode() == DEVICE_PROCESSES && util_env("WITH_MPS", 0) == 0;
}

static void run(struct stress s)
{
	struct ranks_config config = {.num_ranks = s.num_ranks, .num_comms = 1};

	if (take_turns()) {
		s.rounds = s.rounds / PROCESS_PART + 1;
	}
	if (s.num_ranks <= LANE_RANKS) {
		config.num_comms = STRESS_LANES;
	}
	config.limit_s = 100 + (unsigned int)(s.rounds / ROUNDS_A_SECOND);
	if (s.load && !stress_load_exists()) {
		tap_diag("this build has no kernel for the load");
		s.load = false;
	}
	stress_pools_make(&s);
	ranks_run(&config, stress_body, &s, "%d rounds, %d tokens, hidden %d%s, seed %llu",
		  s.rounds, s.max_tokens, s.hidden, s.load ? ", beside a load" : "",
		  (unsigned long long)s.seed);
	stress_pools_free(&s);
}

int main(int argc, char **argv)
{
	struct stress s = {
		.rounds = (int)util_env("MOEEP_TEST_ROUNDS", tap_quick() ? ROUNDS / 5 : ROUNDS),
	};

	setenv("MOEEP_TEST_CUDA", "threads", 0);
	setenv("MOEEP_TEST_ARENA", "256", 0);
	ranks_begin();
	s.seed = op_seed();
	if (argc > 3) {
		s.num_ranks = atoi(argv[1]);
		s.max_tokens = atoi(argv[2]);
		s.hidden = atoi(argv[3]);
		s.load = argc > 4 && strcmp(argv[4], "load") == 0;
		if (s.num_ranks < 1 || s.num_ranks > STRESS_RANKS || s.max_tokens < 1 ||
		    s.max_tokens > STRESS_TOKENS || s.hidden < 8 || s.hidden > STRESS_HIDDEN) {
			tap_bail("%d ranks, %d tokens, hidden %d; at most %d, %d, 2048",
				 s.num_ranks, s.max_tokens, s.hidden, STRESS_RANKS, STRESS_TOKENS);
		}
		run(s);
	}
	for (int i = 0; argc <= 3 && i < COUNT_OF(groups); i++) {
		struct stress one = s;

		one.num_ranks = groups[i].num_ranks;
		one.max_tokens = groups[i].max_tokens;
		one.hidden = groups[i].hidden;
		one.load = groups[i].load;
		one.rounds = s.rounds / groups[i].part;
		if (take_turns() && one.num_ranks > PROCESS_RANKS) {
			continue;
		}
		run(one);
	}
	return tap_done();
}
