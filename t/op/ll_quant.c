/* SPDX-License-Identifier: MIT */
/* Low-latency dispatch with the cast to FP8: values and scales bit for bit by the formula. */
#include "config.h"

#include <math.h>

#include "t/op/ll.h"

static void check(int num_ranks, bool processes, int quant, int64_t hidden, enum payload payload)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 2 * num_ranks + 1,
				.topk = 3,
				.hidden = hidden,
				.dtype = hidden % 3 ? MOEEP_BF16 : MOEEP_FP16,
				.weights = true,
				.payload = payload,
				.seed = op_seed() + (uint64_t)hidden,
			},
		.quant = quant,
	};

	op_tokens_vary(&c.spec, hidden > 1024 ? 4 : 10);
	for (int r = 0; r < num_ranks; r++) {
		int64_t scales = (hidden + 127) / 128;

		c.rank[r].recv_scale_layout = r % 2;
		if (r % 3 == 2) {
			/* Not dense: what lies between stays as it was. */
			c.rank[r].capacity = 11 * num_ranks;
			c.rank[r].recv_scale_stride = r % 2 ? 11 * num_ranks + 5 : scales + 3;
		}
	}
	ll_check(&c, processes, "quantized");
}

/*
 * Every BF16 or FP16 bit pattern, and groups of every magnitude: a row holds consecutive patterns,
 * so all of a group have about the same exponent, or is one of their neighbours alone.
 */
static void fill_patterns(struct ll_case *c, uint32_t step)
{
	for (int r = 0; r < c->spec.num_ranks; r++) {
		uint16_t *x = (uint16_t *)(uintptr_t)c->in.input[r].x;
		int64_t count = c->spec.tokens[r] * c->spec.hidden;

		for (int64_t i = 0; i < count; i++) {
			x[i] = (uint16_t)((r * count + i) * step);
		}
	}
}

static int patterns_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ll_case *c = arg;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;

	RANK_DO(ll_open(c, comm, &buffer, &handle));
	RANK_DO(ll_dispatch(c, rank, comm, buffer, handle, rank % 2));
	return ll_close(buffer, handle);
}

static void patterns(int quant, int dtype, uint32_t step)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = 2,
				.num_experts = 2,
				.topk = 1,
				.hidden = 1024,
				.dtype = dtype,
				.payload = PAYLOAD_SPECIAL, /* infinities are among the patterns */
				.seed = op_seed(),
			},
		.quant = quant,
	};

	op_tokens(&c.spec, 32);
	ll_case_make(&c);
	fill_patterns(&c, step);
	ranks_run(&(struct ranks_config){.num_ranks = 2}, patterns_body, &c,
		  "all %s patterns by steps of %u, quant %d", moeep_dtype_name(dtype), step, quant);
	ll_case_free(&c);
}

/* That the result means what the header says: x is about q times scale. */
static int meaning_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ll_case *c = arg;
	int64_t hidden = c->spec.hidden, scales = (hidden + 127) / 128, bad = 0;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ll_dispatch d;

	RANK_DO(ll_open(c, comm, &buffer, &handle));
	RANK_DO(ll_dispatch_begin(&d, c, rank));
	RANK_TRY(op_ll_dispatch(buffer, handle, &d.args, NULL));
	for (int64_t row = 0; row < d.args.recv_count[0]; row++) {
		int64_t from = rank == 0 ? row : 0; /* one rank: all rows are its own, in order */
		const float *scale = (const float *)d.args.recv_scales + row * scales;

		for (int64_t h = 0; h < hidden; h++) {
			float x = oracle_load(MOEEP_BF16, c->in.input[0].x, from * hidden + h);
			float q = oracle_load(MOEEP_FP8_E4M3, d.args.recv_x, row * hidden + h);
			float back = q * scale[h / 128];

			/* Three bits of mantissa; near zero the distance between subnormals. */
			bad += fabsf(back - x) > fabsf(x) / 16 + scale[h / 128] * 0x1p-10f * 1.001f;
		}
	}
	rank_check(bad == 0, "%lld elements are far from what was sent", (long long)bad);
	ll_dispatch_end(&d, MOEEP_OK);
	return ll_close(buffer, handle);
}

static void meaning(int quant)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = 1,
				.num_experts = 1,
				.topk = 1,
				.hidden = 640,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed(),
			},
		.quant = quant,
	};

	op_tokens(&c.spec, 16);
	ll_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = 1}, meaning_body, &c,
		  "values times scale are the row again, quant %d", quant);
	ll_case_free(&c);
}

int main(void)
{
	static const int quants[] = {MOEEP_QUANT_FP8, MOEEP_QUANT_FP8_POW2, MOEEP_QUANT_FP8_UE8M0};
	/* One group, a last group of 16, several words of UE8M0, a real row. */
	static const int64_t hiddens[] = {16, 128, 144, 384, 1040, 7168};

	ranks_begin();
	for (int i = 0; i < COUNT_OF(quants); i++) {
		for (int j = 0; j < COUNT_OF(hiddens); j++) {
			if (tap_quick() && j % 2) {
				continue;
			}
			check(2 + j % 3, (i + j) % 2, quants[i], hiddens[j], PAYLOAD_NUMBERS);
			check(3, (i + j) % 2 == 0, quants[i], hiddens[j], PAYLOAD_NAN);
			check(2 + i, j % 2, quants[i], hiddens[j], PAYLOAD_SPECIAL);
		}
		patterns(quants[i], MOEEP_BF16, 1);
		patterns(quants[i], MOEEP_BF16, 129);
		patterns(quants[i], MOEEP_FP16, 1);
		patterns(quants[i], MOEEP_FP16, 129);
		check(8, i % 2, quants[i], 256, PAYLOAD_NUMBERS);
		check(1, i % 2, quants[i], 256, PAYLOAD_NAN);
	}
	meaning(MOEEP_QUANT_FP8);
	meaning(MOEEP_QUANT_FP8_POW2);
	return tap_done();
}
