/* SPDX-License-Identifier: MIT */
/*
 * ll_decode.c - the expert layer of a decode step, with its phases apart.
 *
 * A rank works on two micro-batches in turn. While the rows of one are on their way, it computes
 * for the other: SEND hands the rows over and returns, RECV waits for those of the peers. Rows go
 * out in FP8 with a scale for every 128 elements; the experts write their results to the buffer's
 * combine slots, from where the peers read them in place.
 *
 * Ranks are processes that the program forks. The unique id reaches them through a pipe.
 *
 *	cc ll_decode.c $(pkg-config --cflags --libs moeep) -lm && ./a.out
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <moeep/moeep.h>

enum {
	RANKS = 3,
	EXPERTS = 8,
	LOCAL = 3, /* the most experts of a rank */
	TOPK = 3,
	HIDDEN = 256,
	SCALES = HIDDEN / 128,
	TOKENS = 12, /* of a rank in a micro-batch */
	CAPACITY = RANKS * TOKENS,
	STEPS = 5
};

struct batch {
	_Alignas(16) uint16_t x[TOKENS][HIDDEN]; /* BF16 */
	_Alignas(16) uint16_t out[TOKENS][HIDDEN];
	int64_t topk_idx[TOKENS][TOPK];
	float topk_weights[TOKENS][TOPK];

	_Alignas(16) uint8_t recv_x[LOCAL][CAPACITY][HIDDEN]; /* E4M3 */
	float recv_scales[LOCAL][CAPACITY][SCALES];
	int32_t recv_count[LOCAL];
	uint16_t *y; /* the combine slot: [LOCAL][CAPACITY][HIDDEN] */
	moeep_handle_t *handle;
};

static struct batch batches[2];
static moeep_comm_t *comm;
static moeep_buffer_t *buffer;
static int first_expert, local_experts;

/* On failure the peers are told, so that they do not wait for this rank. */
static void check(int result, const char *what)
{
	if (result != MOEEP_OK) {
		fprintf(stderr, "%s: %s: %s\n", what, moeep_strerror(result), moeep_error_detail());
		if (comm) {
			moeep_comm_abort(comm, what);
		}
		exit(1);
	}
}

static float from_bf16(uint16_t bits)
{
	uint32_t u = (uint32_t)bits << 16;
	float value;

	memcpy(&value, &u, sizeof(value));
	return value;
}

static uint16_t to_bf16(float value)
{
	uint32_t u;

	memcpy(&u, &value, sizeof(u));
	return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16); /* to nearest even */
}

static float from_e4m3(uint8_t bits)
{
	int exponent = (bits >> 3) & 15;
	int mantissa = bits & 7;
	float value = exponent ? ldexpf((float)(8 + mantissa), exponent - 10)
			       : ldexpf((float)mantissa, -9);

	return bits & 0x80 ? -value : value;
}

/* Stands for attention: new tokens, and what the gate says of them. */
static void attention(struct batch *b, int rank, int step)
{
	for (int t = 0; t < TOKENS; t++) {
		for (int h = 0; h < HIDDEN; h++) {
			b->x[t][h] = to_bf16(sinf((float)(rank + 3 * step + 7 * t + h)));
		}
		for (int k = 0; k < TOPK; k++) {
			b->topk_idx[t][k] = (5 * rank + step + t + 3 * k) % EXPERTS;
			b->topk_weights[t][k] = 0.5f / (float)(1 + k);
		}
		if (t % 4 == 3) {
			b->topk_idx[t][TOPK - 1] = -1; /* a choice that is masked */
		}
	}
}

static void dispatch(struct batch *b, int phase)
{
	moeep_ll_dispatch_args_t args = {.size = sizeof(args), .phase = phase};

	if (phase == MOEEP_PHASE_SEND) {
		args.quant = MOEEP_QUANT_FP8;
		args.num_tokens = TOKENS;
		args.x = b->x;
		args.topk_idx = b->topk_idx;
		args.topk_weights = &b->topk_weights[0][0];
	} else {
		args.capacity = CAPACITY;
		args.recv_x = b->recv_x;
		args.recv_scales = b->recv_scales;
		args.recv_count = b->recv_count;
	}
	check(moeep_ll_dispatch(buffer, b->handle, &args, NULL), "ll_dispatch");
}

static void combine(struct batch *b, int phase)
{
	moeep_ll_combine_args_t args = {.size = sizeof(args), .phase = phase};

	if (phase == MOEEP_PHASE_SEND) {
		args.capacity = CAPACITY;
		args.x = b->y;
	} else {
		args.out = b->out;
	}
	check(moeep_ll_combine(buffer, b->handle, &args, NULL), "ll_combine");
}

/* Expert e multiplies by e + 1. */
static void experts(struct batch *b)
{
	for (int e = 0; e < local_experts; e++) {
		for (int i = 0; i < b->recv_count[e]; i++) {
			uint16_t *y = b->y + ((size_t)e * CAPACITY + (size_t)i) * HIDDEN;

			for (int h = 0; h < HIDDEN; h++) {
				float x = from_e4m3(b->recv_x[e][i][h]) *
					  b->recv_scales[e][i][h / 128];

				y[h] = to_bf16(x * (float)(first_expert + e + 1));
			}
		}
	}
}

/* E4M3 has four significant bits, so that rounding to it changes a value by 1/16 at most. */
static int wrong(const struct batch *b)
{
	int count = 0;

	for (int t = 0; t < TOKENS; t++) {
		float factor = 0;

		for (int k = 0; k < TOPK; k++) {
			if (b->topk_idx[t][k] >= 0) {
				factor += b->topk_weights[t][k] * (float)(b->topk_idx[t][k] + 1);
			}
		}
		for (int h = 0; h < HIDDEN; h++) {
			float expected = from_bf16(b->x[t][h]) * factor;
			float difference = fabsf(from_bf16(b->out[t][h]) - expected);

			count += !(difference <= 0.08f * fabsf(expected) + 0.001f);
		}
	}
	return count;
}

static int run_rank(int rank, const moeep_unique_id_t *id)
{
	/* Left open, it would be a GPU where there is one; these arrays are the host's. */
	moeep_comm_config_t comm_config = {
		.size = sizeof(comm_config),
		.id = id,
		.backend = MOEEP_BACKEND_HOST,
	};
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.modes = MOEEP_MODE_LL,
		.num_experts = EXPERTS,
		.max_topk = TOPK,
		.hidden = HIDDEN,
		.ll_max_tokens = TOKENS,
		.ll_combine_slots = 2,
	};
	int errors = 0;

	check(moeep_comm_create(rank, RANKS, &comm_config, &comm), "comm");
	check(moeep_buffer_create(comm, &config, &buffer), "buffer");
	check(moeep_expert_range(EXPERTS, RANKS, rank, &first_expert, &local_experts), "experts");
	for (int i = 0; i < 2; i++) {
		size_t bytes;
		void *slot;

		check(moeep_handle_create(buffer, NULL, &batches[i].handle), "handle");
		check(moeep_ll_combine_slot(buffer, i, &slot, &bytes), "slot");
		batches[i].y = slot;
	}

	/* All ranks call the phases in the same order. At most two are between SEND and RECV. */
	for (int step = 0; step < STEPS; step++) {
		attention(&batches[0], rank, 2 * step);
		dispatch(&batches[0], MOEEP_PHASE_SEND);
		attention(&batches[1], rank, 2 * step + 1);
		dispatch(&batches[1], MOEEP_PHASE_SEND);

		dispatch(&batches[0], MOEEP_PHASE_RECV);
		experts(&batches[0]);
		combine(&batches[0], MOEEP_PHASE_SEND);
		dispatch(&batches[1], MOEEP_PHASE_RECV);
		experts(&batches[1]);
		combine(&batches[1], MOEEP_PHASE_SEND);

		combine(&batches[0], MOEEP_PHASE_RECV);
		errors += wrong(&batches[0]);
		combine(&batches[1], MOEEP_PHASE_RECV);
		errors += wrong(&batches[1]);
	}

	check(moeep_handle_destroy(batches[0].handle), "handle's end");
	check(moeep_handle_destroy(batches[1].handle), "handle's end");
	check(moeep_buffer_destroy(buffer), "buffer's end");
	check(moeep_comm_destroy(comm), "comm's end");
	printf("rank %d: %d micro-batches of %d tokens: %s\n", rank, 2 * STEPS, TOKENS,
	       errors ? "WRONG" : "good");
	return errors ? 1 : 0;
}

int main(void)
{
	moeep_rendezvous_t *rendezvous;
	moeep_unique_id_t id;
	int pipes[2];
	int failed = 0;

	if (pipe(pipes) != 0) {
		perror("pipe");
		return 1;
	}
	for (int rank = 0; rank < RANKS; rank++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("fork");
			return 1;
		}
		if (pid == 0) {
			close(pipes[1]);
			if (read(pipes[0], &id, sizeof(id)) != (ssize_t)sizeof(id)) {
				return 1;
			}
			return run_rank(rank, &id);
		}
	}
	check(moeep_rendezvous_create(NULL, &rendezvous, &id), "rendezvous");
	for (int rank = 0; rank < RANKS; rank++) {
		if (write(pipes[1], &id, sizeof(id)) != (ssize_t)sizeof(id)) {
			perror("write");
			return 1;
		}
	}
	for (int rank = 0; rank < RANKS; rank++) {
		int status;

		failed |= wait(&status) < 0 || status != 0;
	}
	check(moeep_rendezvous_destroy(rendezvous), "rendezvous' end");
	return failed;
}
