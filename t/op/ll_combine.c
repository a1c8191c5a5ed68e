/* SPDX-License-Identifier: MIT */
/* Low-latency combine: weighted partial sums at the experts' rank, then over ranks. */
#include "config.h"

#include "t/op/ll.h"

static void check(int num_ranks, bool processes, int variant)
{
	static const int dtypes[] = {MOEEP_BF16, MOEEP_FP32, MOEEP_FP16};
	static const enum op_memory memories[] = {OP_ORDINARY, OP_SLOT, OP_SYMMETRIC};
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 3 * num_ranks - 1,
				.topk = 6,
				.hidden = 80,
				.weights = variant != 4,
				.routing = variant % 2 ? ROUTE_MASKED : ROUTE_DISTINCT,
				.payload = variant == 2 ? PAYLOAD_SPECIAL : PAYLOAD_NUMBERS,
				.seed = op_seed() + (uint64_t)(17 * num_ranks + variant),
			},
		.combine_dtype = dtypes[variant % 3],
		.partial_dtype = variant == 1 || variant == 2 ? MOEEP_FP32 : 0,
		.unweighted = variant == 3,
		.bias = variant % 3 != 1,
		.slots = 2,
		.ll_capacity = 6 * 8 * num_ranks,
	};

	op_tokens_vary(&c.spec, 8);
	for (int r = 0; r < num_ranks; r++) {
		/* The kinds of memory, mixed between the ranks of a call. */
		c.rank[r].memory = memories[(r + variant) % COUNT_OF(memories)];
		/* Enough for tokens that name an expert in all six places. */
		c.rank[r].capacity = 6 * 8 * num_ranks;
		c.rank[r].combine_capacity = r % 2 ? 6 * 8 * num_ranks + 3 : 0;
	}
	ll_check(&c, processes, "combine");
}

/* A slot of less than the largest capacity. */
static void slots(int num_ranks, bool processes, int num_slots)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 2 * num_ranks,
				.topk = 2,
				.hidden = 64,
				.weights = true,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed(),
			},
		.max_tokens = 16,
		.ll_capacity = 5 * num_ranks,
		.slots = num_slots,
		.bias = true,
	};

	op_tokens_vary(&c.spec, 5);
	for (int r = 0; r < num_ranks; r++) {
		c.rank[r].memory = OP_SLOT;
		c.rank[r].capacity = 5 * num_ranks;
	}
	ll_check(&c, processes, "combine slots");
}

/* One dispatch, many combines of it, with slots in turn. */
static int many_body(int rank, moeep_comm_t *comm, void *arg)
{
	struct ll_case c = *(const struct ll_case *)arg;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	void *address[2] = {NULL, NULL};

	c.in.group.input = ((const struct ll_case *)arg)->in.input;
	RANK_DO(ll_open(&c, comm, &buffer, &handle));
	RANK_DO(ll_dispatch(&c, rank, comm, buffer, handle, false));
	for (int i = 0; i < 40; i++) {
		struct ll_combine d;
		void *slot;

		c.unweighted = i % 5 == 4;
		c.bias = (i + rank) % 3 == 0;
		RANK_DO(ll_combine_begin(&d, &c, rank, comm, buffer, i % 2));
		RANK_TRY(moeep_ll_combine_slot(buffer, i % 2, &slot, NULL));
		rank_check(!address[i % 2] || address[i % 2] == slot, "the slot's address changed");
		address[i % 2] = slot;
		ll_combine_end(&d, op_ll_combine(buffer, handle, &d.args, NULL));
	}
	rank_check(address[0] != address[1], "two slots have the same address");
	return ll_close(buffer, handle);
}

static void many(int num_ranks, bool processes)
{
	struct ll_case c = {
		.spec =
			{
				.num_ranks = num_ranks,
				.num_experts = 7,
				.topk = 3,
				.hidden = 32,
				.weights = true,
				.payload = PAYLOAD_NUMBERS,
				.seed = op_seed(),
			},
		.slots = 2,
	};

	op_tokens_vary(&c.spec, 6);
	for (int r = 0; r < num_ranks; r++) {
		c.rank[r].memory = OP_SLOT;
	}
	ll_case_make(&c);
	ranks_run(&(struct ranks_config){.num_ranks = num_ranks, .processes = processes}, many_body,
		  &c, "many combines of one dispatch");
	ll_case_free(&c);
}

int main(void)
{
	ranks_begin();
	for (int i = 0; i < op_num_sizes; i++) {
		int num_ranks = op_sizes[i];

		for (int variant = 0; variant < 5 && op_use_size(num_ranks); variant++) {
			/* Large groups: half of the combinations, they cost most. */
			if (num_ranks < 8 || variant % 2 == 0) {
				check(num_ranks, false, variant);
			}
			if (num_ranks < 8 || variant % 2 == 1) {
				check(num_ranks, true, variant);
			}
		}
	}
	slots(3, false, 1);
	slots(2, true, 2);
	slots(4, true, 1);
	many(3, false);
	many(4, true);
	return tap_done();
}
