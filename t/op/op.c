/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/op/op.h"

#include <stdio.h>
#include <string.h>

#include "t/device.h"

const int op_sizes[] = {1, 2, 3, 4, 5, 7, 8, 16};
const int op_num_sizes = COUNT_OF(op_sizes);

bool op_use_size(int num_ranks)
{
	return !tap_quick() || num_ranks <= 3 || num_ranks == 8;
}

static void route_token(const struct op_spec *spec, int target, struct rng *rng, int64_t *choices)
{
	int num_experts = spec->num_experts, topk = spec->topk;
	bool whole_row = rng_chance(rng, 20);

	for (int k = 0; k < topk; k++) {
		int64_t expert = rng_range(rng, 0, num_experts - 1);
		bool distinct = spec->routing == ROUTE_DISTINCT || spec->routing == ROUTE_MASKED;

		for (int i = 0; distinct && k < num_experts && i < k; i++) {
			if (choices[i] == expert) {
				expert = (expert + 1) % num_experts;
				i = -1;
			}
		}
		choices[k] = expert;
	}
	for (int k = 0; k < topk; k++) {
		switch (spec->routing) {
		case ROUTE_MASKED:
			if (whole_row || rng_chance(rng, 30)) {
				choices[k] = -1;
			}
			break;
		case ROUTE_NONE:
			choices[k] = -1;
			break;
		case ROUTE_ONE:
			choices[k] = k == 0 ? target : -1;
			break;
		case ROUTE_SAME:
			choices[k] = target;
			break;
		case ROUTE_LAST_RANK:
			choices[k] = num_experts - 1 -
				     k % ((num_experts + spec->num_ranks - 1) / spec->num_ranks);
			break;
		default:
			break;
		}
	}
}

static void input_make(struct oracle_input *input, const struct oracle_group *group,
		       const struct op_spec *spec, int rank)
{
	size_t tokens = (size_t)spec->tokens[rank], choices = tokens * (size_t)spec->topk;
	struct rng rng = {util_hash(spec->seed, (uint64_t)rank, 11)};
	size_t element = oracle_dtype_size(group->dtype);
	size_t scale_size = oracle_dtype_size(group->scale_dtype);
	int64_t *topk = util_alloc(choices * sizeof(int64_t));
	void *x = util_alloc(tokens * (size_t)spec->hidden * element);

	input->num_tokens = spec->tokens[rank];
	for (size_t t = 0; t < tokens; t++) {
		route_token(spec, (int)(spec->seed % (uint64_t)spec->num_experts), &rng,
			    topk + t * (size_t)spec->topk);
	}
	input->topk = topk;
	if (spec->weights) {
		float *weights = util_alloc(choices * sizeof(float));

		util_fill(weights, MOEEP_FP32, spec->tokens[rank], spec->topk, PAYLOAD_NUMBERS,
			  util_hash(spec->seed + spec->w_seed, (uint64_t)rank, 12));
		input->weights = weights;
	}
	util_fill(x, group->dtype, spec->tokens[rank], spec->hidden, spec->payload,
		  util_hash(spec->x_seed, (uint64_t)rank, 13));
	input->x = x;
	if (spec->scale_count > 0) {
		void *scales = util_alloc(tokens * (size_t)spec->scale_count * scale_size);

		util_fill(scales, group->scale_dtype, spec->tokens[rank], spec->scale_count,
			  PAYLOAD_BITS, util_hash(spec->x_seed, (uint64_t)rank, 14));
		input->scales = scales;
	}
}

void op_inputs_make(struct op_inputs *inputs, const struct op_spec *spec)
{
	*inputs = (struct op_inputs){
		.group =
			{
				.num_ranks = spec->num_ranks,
				.num_experts = spec->num_experts,
				.topk = spec->topk,
				.hidden = spec->hidden,
				.dtype = spec->dtype ? spec->dtype : MOEEP_BF16,
				.scale_dtype = spec->scale_dtype ? spec->scale_dtype : MOEEP_FP32,
				.scale_count = spec->scale_count,
			},
	};
	inputs->group.input = inputs->input;
	nodes_deal(spec->num_ranks, inputs->nodes);
	inputs->group.node = inputs->nodes;
	for (int r = 0; r < spec->num_ranks; r++) {
		input_make(&inputs->input[r], &inputs->group, spec, r);
	}
}

void op_inputs_free(struct op_inputs *inputs)
{
	for (int r = 0; r < OP_RANKS; r++) {
		struct oracle_input *input = &inputs->input[r];

		util_free(input->topk);
		util_free(input->weights);
		util_free(input->x);
		util_free(input->scales);
		*input = (struct oracle_input){.num_tokens = 0};
	}
}

void op_tokens(struct op_spec *spec, int64_t tokens)
{
	for (int r = 0; r < spec->num_ranks; r++) {
		spec->tokens[r] = tokens;
	}
}

void op_tokens_vary(struct op_spec *spec, int64_t most)
{
	struct rng rng = {util_hash(spec->seed, 15, 15)};

	for (int r = 0; r < spec->num_ranks; r++) {
		spec->tokens[r] = rng_range(&rng, 0, most);
	}
	spec->tokens[rng_range(&rng, 0, spec->num_ranks - 1)] = most;
	if (spec->num_ranks > 2) {
		spec->tokens[rng_range(&rng, 0, spec->num_ranks - 1)] = 0;
	}
}

int64_t op_tokens_most(const struct op_spec *spec)
{
	int64_t most = 0;

	for (int r = 0; r < spec->num_ranks; r++) {
		most = spec->tokens[r] > most ? spec->tokens[r] : most;
	}
	return most;
}

void *op_topk_as(const struct op_inputs *inputs, int rank, int dtype)
{
	const struct oracle_input *input = &inputs->input[rank];
	size_t count = (size_t)(input->num_tokens * inputs->group.topk);
	void *array = util_alloc(count * oracle_dtype_size(dtype));

	for (size_t i = 0; i < count; i++) {
		if (dtype == MOEEP_INT32) {
			((int32_t *)array)[i] = (int32_t)input->topk[i];
		} else {
			((int64_t *)array)[i] = input->topk[i];
		}
	}
	return array;
}

void *op_scales_as(const struct op_inputs *inputs, int rank, int layout, int64_t stride)
{
	const struct oracle_group *group = &inputs->group;
	const struct oracle_input *input = &inputs->input[rank];
	size_t size = oracle_dtype_size(group->scale_dtype);
	void *array = util_alloc(oracle_scales_bytes(group->scale_dtype, layout, input->num_tokens,
						     group->scale_count, stride));

	if (stride == 0) {
		stride = oracle_scale_stride(layout, input->num_tokens, group->scale_count);
	}
	for (int64_t t = 0; t < input->num_tokens; t++) {
		for (int s = 0; s < group->scale_count; s++) {
			oracle_put_scale(array, group->scale_dtype, layout, stride, t, s,
					 input->scales +
						 (size_t)(t * group->scale_count + s) * size);
		}
	}
	return array;
}

void op_block_place(struct op_block *block, void *memory, size_t bytes)
{
	block->memory = memory;
	block->host = memory;
	block->bytes = bytes;
	if (memory && device_mode() != DEVICE_NONE) {
		block->host = util_alloc(bytes);
	}
}

int op_block_make(struct op_block *block, moeep_comm_t *comm, enum op_memory kind, unsigned int any,
		  size_t bytes)
{
	*block = (struct op_block){.kind = kind};
	if (kind == OP_ORDINARY || kind == OP_REGISTERED) {
		block->memory = block->host = util_alloc(bytes);
		block->bytes = bytes;
	}
	if (any & 1u << OP_SYMMETRIC) {
		void *memory = NULL;

		RANK_TRY(moeep_mem_alloc(comm, kind == OP_SYMMETRIC ? bytes : 0, 0, &memory));
		if (kind == OP_SYMMETRIC) {
			op_block_place(block, memory, bytes);
		} else {
			rank_check(memory == NULL, "moeep_mem_alloc of 0 bytes gave %p", memory);
		}
	}
	if (any & 1u << OP_REGISTERED) {
		/* Who has nothing to register takes part with memory that stays unused. */
		block->registered = kind == OP_REGISTERED ? block->memory : util_alloc(64);
		RANK_TRY(moeep_mem_register(comm, block->registered,
					    kind == OP_REGISTERED ? bytes : 64, 0));
	}
	return 0;
}

void op_block_free(struct op_block *block, moeep_comm_t *comm)
{
	if (block->registered) {
		rank_ok(moeep_mem_deregister(comm, block->registered));
		if (block->registered != block->memory) {
			util_free(block->registered);
		}
		block->registered = NULL;
	}
	if (block->host != block->memory) {
		util_free(block->host);
	}
	if (block->kind == OP_SYMMETRIC) {
		rank_ok(moeep_mem_free(comm, block->memory));
	} else if (block->kind != OP_SLOT) {
		util_free(block->memory);
	}
	block->memory = block->host = NULL;
}

int op_block_push(const struct op_block *block)
{
	if (block->host != block->memory) {
		RANK_TRY(device_copy(block->memory, block->host, block->bytes));
	}
	return 0;
}

int op_block_pull(const struct op_block *block)
{
	if (block->host != block->memory) {
		RANK_TRY(device_copy(block->host, block->memory, block->bytes));
	}
	return 0;
}

int op_ready(moeep_comm_t *comm)
{
	if (device_mode() != DEVICE_NONE) {
		RANK_TRY(moeep_comm_barrier(comm));
	}
	return 0;
}

bool op_can_register(bool processes)
{
	return !ranks_forked(processes);
}

int op_output_make(struct op_output *output, const char *name, int64_t rows, int64_t elements,
		   int dtype, moeep_comm_t *comm, enum op_memory kind, unsigned int any)
{
	size_t bytes = (size_t)rows * (size_t)elements * oracle_dtype_size(dtype);

	*output = (struct op_output){
		.name = name,
		.rows = rows,
		.elements = elements,
		.dtype = dtype,
	};
	RANK_DO(op_block_make(&output->block, comm, kind, any, guard_space(bytes)));
	guard_place(&output->got, output->block.host, bytes);
	output->at =
		(unsigned char *)output->block.memory + (output->got.data - output->block.host);
	output->want = util_alloc(bytes);
	util_poison(output->want, bytes);
	return op_block_push(&output->block);
}

void op_output_end(struct op_output *output, moeep_comm_t *comm)
{
	if (!output->name) {
		return;
	}
	/* If that fails it is noted, and what was to be overwritten differs. */
	(void)op_block_pull(&output->block);
	util_same(output->name, output->got.data, output->want, output->rows, output->elements,
		  output->dtype, output->any_nan);
	guard_check(&output->got, output->name);
	util_free(output->want);
	op_block_free(&output->block, comm);
	output->name = NULL;
}

const char *op_spec_name(const struct op_spec *spec)
{
	static _Thread_local char text[160];
	static const char *const routing[ROUTE_KINDS] = {"distinct", "any",  "masked",	 "none",
							 "one",	     "same", "last rank"};

	snprintf(text, sizeof(text), "%s hidden %lld, %d experts, top %d, to %s%s, seed %llu",
		 moeep_dtype_name(spec->dtype ? spec->dtype : MOEEP_BF16), (long long)spec->hidden,
		 spec->num_experts, spec->topk, routing[spec->routing],
		 spec->weights ? ", weights" : "", (unsigned long long)spec->seed);
	return text;
}

uint64_t op_seed(void)
{
	return util_env("MOEEP_TEST_SEED", 20260731);
}
