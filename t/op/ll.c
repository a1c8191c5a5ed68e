/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/op/ll.h"

#include <string.h>

static int combine_dtype(const struct ll_case *c)
{
	return c->combine_dtype ? c->combine_dtype : MOEEP_BF16;
}

static unsigned int memory_kinds(const struct ll_case *c)
{
	unsigned int any = 0;

	for (int r = 0; r < c->spec.num_ranks; r++) {
		any |= 1u << c->rank[r].memory;
	}
	return any;
}

static int64_t slot_capacity(const struct ll_case *c)
{
	return c->ll_capacity ? c->ll_capacity : c->spec.num_ranks * c->most;
}

static size_t x_bytes(const struct ll_case *c, int rank)
{
	return (size_t)(c->local_experts[rank] * c->combine_capacity[rank] * c->spec.hidden) *
	       oracle_dtype_size(combine_dtype(c));
}

static void make_rank(struct ll_case *c, int rank)
{
	const struct ll_rank *own = &c->rank[rank];
	uint64_t seed = util_hash(c->spec.x_seed, (uint64_t)rank, 31);
	enum payload payload = c->spec.payload == PAYLOAD_BITS ? PAYLOAD_NUMBERS : c->spec.payload;
	size_t element = oracle_dtype_size(combine_dtype(c));
	int64_t tokens = c->spec.tokens[rank];
	int first;

	oracle_experts(&c->in.group, rank, &first, &c->local_experts[rank]);
	c->capacity[rank] = own->capacity ? own->capacity : c->spec.num_ranks * c->most;
	c->combine_capacity[rank] =
		own->combine_capacity ? own->combine_capacity : c->capacity[rank];
	if (own->memory == OP_SLOT) {
		c->combine_capacity[rank] = slot_capacity(c);
	}
	c->x[rank] = util_alloc(x_bytes(c, rank));
	util_fill(c->x[rank], combine_dtype(c), c->local_experts[rank] * c->combine_capacity[rank],
		  c->spec.hidden, payload, seed);
	c->bias_rows[rank] = util_alloc((size_t)(tokens * c->spec.hidden) * element);
	util_fill(c->bias_rows[rank], combine_dtype(c), tokens, c->spec.hidden, payload,
		  util_hash(seed, 0, 32));
}

void ll_case_make(struct ll_case *c)
{
	op_inputs_make(&c->in, &c->spec);
	c->most = c->max_tokens ? c->max_tokens : op_tokens_most(&c->spec);
	c->most = c->most > 0 ? c->most : 1;
	for (int r = 0; r < c->spec.num_ranks; r++) {
		make_rank(c, r);
	}
}

void ll_case_free(struct ll_case *c)
{
	for (int r = 0; r < c->spec.num_ranks; r++) {
		util_free(c->x[r]);
		util_free(c->bias_rows[r]);
	}
	op_inputs_free(&c->in);
}

static void *copy_of(const void *from, size_t bytes)
{
	void *copy = util_alloc(bytes);

	memcpy(copy, from, bytes);
	return copy;
}

static int make_outputs(struct ll_dispatch *d, moeep_ll_dispatch_args_t *want)
{
	const struct ll_case *c = d->c;
	const struct ll_rank *own = &c->rank[d->rank];
	int64_t experts = c->local_experts[d->rank], capacity = c->capacity[d->rank];
	int scale_count = (int)((c->spec.hidden + 127) / 128);
	int x_dtype = c->quant ? MOEEP_FP8_E4M3 : c->in.group.dtype;
	int scale_dtype = c->quant == MOEEP_QUANT_FP8_UE8M0 ? MOEEP_UE8M0 : MOEEP_FP32;
	size_t scales = oracle_scales_bytes(scale_dtype, own->recv_scale_layout, capacity,
					    scale_count, own->recv_scale_stride);
	struct op_output *out = d->output;

	RANK_DO(op_output_make(&out[LL_X], "recv_x", experts * capacity, c->spec.hidden, x_dtype,
			       NULL, OP_ORDINARY, 0));
	/* An infinity's quotient is a NaN whose sign is the machine's. */
	out[LL_X].any_nan =
		c->quant && (c->spec.payload == PAYLOAD_SPECIAL || c->spec.payload == PAYLOAD_BITS);
	RANK_DO(op_output_make(&out[LL_SCALES], "recv_scales", experts, (int64_t)scales, MOEEP_INT8,
			       NULL, OP_ORDINARY, 0));
	RANK_DO(op_output_make(&out[LL_COUNT], "recv_count", experts, 1, MOEEP_INT32, NULL,
			       OP_ORDINARY, 0));
	RANK_DO(op_output_make(&out[LL_SRC_TOKEN], "recv_src_token", experts, capacity, MOEEP_INT32,
			       NULL, OP_ORDINARY, 0));
	RANK_DO(op_output_make(&out[LL_RANGE], "recv_range", experts, c->spec.num_ranks,
			       MOEEP_INT64, NULL, OP_ORDINARY, 0));
	d->args.recv_x = out[LL_X].at;
	d->args.recv_scales = c->quant ? out[LL_SCALES].at : NULL;
	d->args.recv_count = out[LL_COUNT].at;
	d->args.recv_src_token = out[LL_SRC_TOKEN].at;
	d->args.recv_range = out[LL_RANGE].at;
	*want = d->args;
	want->recv_x = out[LL_X].want;
	want->recv_scales = c->quant ? out[LL_SCALES].want : NULL;
	want->recv_count = (void *)out[LL_COUNT].want;
	want->recv_src_token = (void *)out[LL_SRC_TOKEN].want;
	want->recv_range = (void *)out[LL_RANGE].want;
	return 0;
}

static void leave_outputs(moeep_ll_dispatch_args_t *args, unsigned int leave)
{
	args->recv_x = leave & 1u << LL_X ? NULL : args->recv_x;
	args->recv_scales = leave & 1u << LL_SCALES ? NULL : args->recv_scales;
	args->recv_count = leave & 1u << LL_COUNT ? NULL : args->recv_count;
	args->recv_src_token = leave & 1u << LL_SRC_TOKEN ? NULL : args->recv_src_token;
	args->recv_range = leave & 1u << LL_RANGE ? NULL : args->recv_range;
}

int ll_dispatch_begin(struct ll_dispatch *d, const struct ll_case *c, int rank)
{
	const struct oracle_group *group = &c->in.group;
	const struct oracle_input *input = &c->in.input[rank];
	const struct ll_rank *own = &c->rank[rank];
	size_t choices = (size_t)(input->num_tokens * group->topk);
	moeep_ll_dispatch_args_t want;

	*d = (struct ll_dispatch){.c = c, .rank = rank};
	d->x = copy_of(input->x, (size_t)(input->num_tokens * group->hidden) *
					 oracle_dtype_size(group->dtype));
	d->topk = op_topk_as(&c->in, rank, own->topk_dtype ? own->topk_dtype : MOEEP_INT64);
	if (input->weights) {
		d->weights = copy_of(input->weights, choices * sizeof(float));
	}
	d->args = (moeep_ll_dispatch_args_t){
		.size = sizeof(d->args),
		.dtype = c->spec.dtype,
		.quant = c->quant,
		.topk = group->topk,
		.topk_dtype = own->topk_dtype,
		.num_tokens = input->num_tokens,
		.x = d->x,
		.topk_idx = d->topk,
		.topk_weights = d->weights,
		.recv_scale_layout = own->recv_scale_layout,
		.recv_scale_stride = own->recv_scale_stride,
		.capacity = own->capacity,
	};
	RANK_DO(make_outputs(d, &want));
	leave_outputs(&d->args, own->leave);
	leave_outputs(&want, own->leave);
	want.capacity = c->capacity[rank];
	d->expect = oracle_ll_dispatch(group, rank, &want) ? MOEEP_OK : MOEEP_ERR_CAPACITY;
	return 0;
}

int ll_dispatch_send(struct ll_dispatch *d, moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	const struct oracle_group *group = &d->c->in.group;
	int64_t tokens = d->args.num_tokens;
	moeep_ll_dispatch_args_t args = {
		.size = sizeof(args),
		.phase = MOEEP_PHASE_SEND,
		.dtype = d->args.dtype,
		.quant = d->args.quant,
		.topk = d->args.topk,
		.topk_dtype = d->args.topk_dtype,
		.num_tokens = tokens,
		.x = d->x,
		.topk_idx = d->topk,
		.topk_weights = d->weights,
	};

	RANK_TRY(op_ll_dispatch(buffer, handle, &args, NULL));
	/* They are free again; whoever still reads them is caught by this. */
	util_poison(d->x, (size_t)(tokens * group->hidden) * oracle_dtype_size(group->dtype));
	util_poison(d->topk, (size_t)(tokens * group->topk) * sizeof(int32_t));
	if (d->weights) {
		util_poison(d->weights, (size_t)(tokens * group->topk) * sizeof(float));
	}
	return 0;
}

int ll_dispatch_recv(struct ll_dispatch *d, moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	moeep_ll_dispatch_args_t args = {
		.size = sizeof(args),
		.phase = MOEEP_PHASE_RECV,
		.recv_scale_layout = d->args.recv_scale_layout,
		.recv_scale_stride = d->args.recv_scale_stride,
		.capacity = d->args.capacity,
		.recv_x = d->args.recv_x,
		.recv_scales = d->args.recv_scales,
		.recv_count = d->args.recv_count,
		.recv_src_token = d->args.recv_src_token,
		.recv_range = d->args.recv_range,
	};

	return op_ll_dispatch(buffer, handle, &args, NULL);
}

void ll_dispatch_end(struct ll_dispatch *d, int result)
{
	rank_result(result, d->expect, "moeep_ll_dispatch", __FILE__, __LINE__);
	for (int i = 0; i < LL_OUTPUTS; i++) {
		op_output_end(&d->output[i], NULL);
	}
	util_free(d->x);
	util_free(d->topk);
	util_free(d->weights);
}

int ll_combine_begin(struct ll_combine *d, const struct ll_case *c, int rank, moeep_comm_t *comm,
		     moeep_buffer_t *buffer, int slot)
{
	const struct ll_rank *own = &c->rank[rank];
	const void *x[OP_RANKS];
	moeep_ll_combine_args_t want;

	*d = (struct ll_combine){
		.comm = comm,
		.x_bytes = x_bytes(c, rank),
		.args =
			{
				.size = sizeof(d->args),
				.dtype = c->combine_dtype,
				.flags = c->unweighted ? MOEEP_LL_COMBINE_UNWEIGHTED : 0,
				.capacity = own->memory == OP_SLOT ? slot_capacity(c)
								   : own->combine_capacity,
				.bias = c->bias ? c->bias_rows[rank] : NULL,
			},
	};
	RANK_DO(op_block_make(&d->x, comm, own->memory, memory_kinds(c), d->x_bytes + 64));
	if (own->memory == OP_SLOT) {
		size_t bytes = 0;
		void *memory;

		RANK_TRY(moeep_ll_combine_slot(buffer, slot, &memory, &bytes));
		rank_check(bytes >= d->x_bytes, "the slot has %zu bytes, %zu are needed", bytes,
			   d->x_bytes);
		op_block_place(&d->x, memory, d->x_bytes);
	}
	memcpy(d->x.host, c->x[rank], d->x_bytes);
	RANK_DO(op_block_push(&d->x));
	RANK_DO(op_output_make(&d->out, "out", c->spec.tokens[rank], c->spec.hidden,
			       combine_dtype(c), comm, OP_ORDINARY, 0));
	d->out.any_nan = true;
	d->args.x = d->x.memory;
	d->args.out = d->out.at;
	want = d->args;
	want.dtype = combine_dtype(c);
	want.out = d->out.want;
	for (int r = 0; r < c->spec.num_ranks; r++) {
		x[r] = c->x[r];
	}
	d->expect = oracle_ll_combine(&c->in.group, x, c->combine_capacity, c->capacity, rank,
				      c->partial_dtype, &want)
			    ? MOEEP_OK
			    : MOEEP_ERR_CAPACITY;
	return 0;
}

int ll_combine_send(struct ll_combine *d, moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	moeep_ll_combine_args_t args = d->args;

	args.phase = MOEEP_PHASE_SEND;
	args.out = NULL;
	args.bias = NULL;
	RANK_TRY(op_ll_combine(buffer, handle, &args, NULL));
	if (d->x.kind == OP_ORDINARY) {
		util_poison(d->x.host, d->x_bytes);
	}
	return 0;
}

int ll_combine_recv(struct ll_combine *d, moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	moeep_ll_combine_args_t args = {
		.size = sizeof(args),
		.phase = MOEEP_PHASE_RECV,
		.dtype = d->args.dtype,
		.out = d->args.out,
		.bias = d->args.bias,
	};

	return op_ll_combine(buffer, handle, &args, NULL);
}

void ll_combine_end(struct ll_combine *d, int result)
{
	rank_result(result, d->expect, "moeep_ll_combine", __FILE__, __LINE__);
	op_output_end(&d->out, d->comm);
	op_block_free(&d->x, d->comm);
}

int ll_dispatch(const struct ll_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
		moeep_handle_t *handle, bool phases)
{
	struct ll_dispatch d;

	RANK_DO(ll_dispatch_begin(&d, c, rank));
	if (phases) {
		RANK_DO(ll_dispatch_send(&d, buffer, handle));
		ll_dispatch_end(&d, ll_dispatch_recv(&d, buffer, handle));
	} else {
		ll_dispatch_end(&d, op_ll_dispatch(buffer, handle, &d.args, NULL));
	}
	return moeep_comm_async_error(comm, NULL) == MOEEP_OK ? 0 : -1;
}

int ll_combine(const struct ll_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
	       moeep_handle_t *handle, bool phases)
{
	struct ll_combine d;

	RANK_DO(ll_combine_begin(&d, c, rank, comm, buffer, phases && c->slots > 1));
	if (phases) {
		RANK_DO(ll_combine_send(&d, buffer, handle));
		ll_combine_end(&d, ll_combine_recv(&d, buffer, handle));
	} else {
		ll_combine_end(&d, op_ll_combine(buffer, handle, &d.args, NULL));
	}
	return moeep_comm_async_error(comm, NULL) == MOEEP_OK ? 0 : -1;
}

void ll_config(const struct ll_case *c, moeep_buffer_config_t *config)
{
	int dtype = c->spec.dtype ? c->spec.dtype : MOEEP_BF16;

	if (oracle_dtype_size(combine_dtype(c)) > oracle_dtype_size(dtype)) {
		dtype = combine_dtype(c);
	}
	*config = (moeep_buffer_config_t){
		.size = sizeof(*config),
		.modes = MOEEP_MODE_LL,
		.num_experts = c->spec.num_experts,
		.max_topk = c->max_topk ? c->max_topk : c->spec.topk,
		.dtype = dtype,
		.hidden = c->spec.hidden,
		.ll_max_tokens = c->most,
		.ll_capacity = c->ll_capacity,
		.ll_combine_slots = c->slots,
		.partial_dtype = c->partial_dtype,
		.initial_epoch = c->initial_epoch,
	};
}

int ll_open(const struct ll_case *c, moeep_comm_t *comm, moeep_buffer_t **buffer,
	    moeep_handle_t **handle)
{
	moeep_buffer_config_t config;

	ll_config(c, &config);
	RANK_TRY(moeep_buffer_create(comm, &config, buffer));
	RANK_TRY(moeep_handle_create(*buffer, NULL, handle));
	return op_ready(comm);
}

int ll_close(moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	RANK_TRY(moeep_handle_destroy(handle));
	RANK_TRY(moeep_buffer_destroy(buffer));
	return 0;
}

static int check_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ll_case *c = arg;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;

	RANK_DO(ll_open(c, comm, &buffer, &handle));
	for (int phases = 0; phases < 2; phases++) {
		RANK_DO(ll_dispatch(c, rank, comm, buffer, handle, phases));
		RANK_DO(ll_combine(c, rank, comm, buffer, handle, phases));
	}
	return ll_close(buffer, handle);
}

void ll_check(struct ll_case *c, bool processes, const char *what)
{
	ll_case_make(c);
	ranks_run(&(struct ranks_config){.num_ranks = c->spec.num_ranks, .processes = processes},
		  check_body, c, "%s: quant %d, %s", what, c->quant, op_spec_name(&c->spec));
	ll_case_free(c);
}
