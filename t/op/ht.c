/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/op/ht.h"

#include <stddef.h>
#include <string.h>

static const char *const output_names[HT_OUTPUTS] = {
	"recv_x",
	"recv_scales",
	"recv_topk_idx",
	"recv_topk_weights",
	"recv_src_token",
	"recv_src_rank",
	"recv_expert",
	"num_recv",
	"recv_per_expert",
	"recv_per_expert_padded",
	"recv_expert_offsets",
};

static const size_t output_fields[HT_OUTPUTS] = {
	offsetof(moeep_dispatch_args_t, recv_x),
	offsetof(moeep_dispatch_args_t, recv_scales),
	offsetof(moeep_dispatch_args_t, recv_topk_idx),
	offsetof(moeep_dispatch_args_t, recv_topk_weights),
	offsetof(moeep_dispatch_args_t, recv_src_token),
	offsetof(moeep_dispatch_args_t, recv_src_rank),
	offsetof(moeep_dispatch_args_t, recv_expert),
	offsetof(moeep_dispatch_args_t, num_recv),
	offsetof(moeep_dispatch_args_t, recv_per_expert),
	offsetof(moeep_dispatch_args_t, recv_per_expert_padded),
	offsetof(moeep_dispatch_args_t, recv_expert_offsets),
};

static void set_output(moeep_dispatch_args_t *args, int output, void *pointer)
{
	memcpy((char *)args + output_fields[output], &pointer, sizeof(pointer));
}

static int alignment_of(const struct ht_case *c, int rank)
{
	return c->rank[rank].alignment ? c->rank[rank].alignment : 1;
}

static bool expert_major(const struct ht_case *c)
{
	return c->row_layout == MOEEP_ROWS_EXPERT_MAJOR;
}

static int combine_dtype(const struct ht_case *c)
{
	return c->combine_dtype ? c->combine_dtype : MOEEP_BF16;
}

static unsigned int memory_kinds(const struct ht_case *c)
{
	unsigned int any = 0;

	for (int r = 0; r < c->spec.num_ranks; r++) {
		any |= 1u << c->rank[r].memory;
	}
	return any;
}

static void make_rank(struct ht_case *c, int rank)
{
	struct oracle_expert_side *side = &c->side[rank];
	uint64_t seed = util_hash(c->spec.x_seed, (uint64_t)rank, 21);
	int64_t tokens = c->spec.tokens[rank], rows, each = expert_major(c) ? 1 : c->spec.topk;
	enum payload payload = c->spec.payload == PAYLOAD_BITS ? PAYLOAD_NUMBERS : c->spec.payload;
	size_t element = oracle_dtype_size(combine_dtype(c));
	size_t row_bytes = (size_t)c->spec.hidden * element;
	void *x, *bias;

	oracle_route(&c->in.group, rank, c->row_layout, alignment_of(c, rank), &side->rows);
	rows = side->rows.count;
	x = util_alloc((size_t)rows * row_bytes);
	util_fill(x, combine_dtype(c), rows, c->spec.hidden, payload, seed);
	/* Nobody may read padding: let it be NaN. */
	for (int64_t i = 0; i < rows; i++) {
		if (side->rows.row[i].src_rank < 0) {
			memset((char *)x + (size_t)i * row_bytes, 0xff, row_bytes);
		}
	}
	side->x = x;
	if (c->send_weights) {
		float *weights = util_alloc((size_t)(rows * each) * sizeof(float));

		util_fill(weights, MOEEP_FP32, rows, each, PAYLOAD_BITS, util_hash(seed, 0, 22));
		side->weights = weights;
	}
	bias = util_alloc((size_t)tokens * row_bytes);
	util_fill(bias, combine_dtype(c), tokens, c->spec.hidden, payload, util_hash(seed, 0, 23));
	c->bias_rows[rank] = bias;

	c->capacity[rank] = c->rank[rank].capacity;
	if (c->capacity[rank] == 0) {
		c->capacity[rank] = rows;
	} else if (c->capacity[rank] == HT_NO_ROWS) {
		c->capacity[rank] = 0;
	}
	c->fits &= rows <= c->capacity[rank];
}

void ht_case_make(struct ht_case *c)
{
	op_inputs_make(&c->in, &c->spec);
	c->fits = true;
	for (int r = 0; r < c->spec.num_ranks; r++) {
		make_rank(c, r);
	}
}

void ht_case_free(struct ht_case *c)
{
	for (int r = 0; r < c->spec.num_ranks; r++) {
		oracle_rows_free(&c->side[r].rows);
		util_free(c->side[r].x);
		util_free(c->side[r].weights);
		util_free(c->bias_rows[r]);
		c->side[r] = (struct oracle_expert_side){.x = NULL};
		c->bias_rows[r] = NULL;
	}
	op_inputs_free(&c->in);
}

/* Whether the output exists for the case; its shape. */
static bool output_shape(const struct ht_case *c, int rank, uint32_t flags, int output,
			 int64_t *rows, int64_t *elements, int *dtype)
{
	const struct ht_rank *own = &c->rank[rank];
	const struct oracle_group *group = &c->in.group;
	int local_experts = c->side[rank].rows.local_experts;
	int64_t capacity = c->capacity[rank];

	*elements = 1;
	*dtype = MOEEP_INT32;
	*rows = capacity;
	if ((flags & MOEEP_DISPATCH_COUNTS_ONLY) && output < HT_NUM_RECV) {
		return false;
	}
	switch (output) {
	case HT_X:
		*elements = group->hidden;
		*dtype = group->dtype;
		return true;
	case HT_SCALES:
		*dtype = MOEEP_INT8;
		*rows = (int64_t)oracle_scales_bytes(group->scale_dtype, own->recv_scale_layout,
						     capacity, group->scale_count,
						     own->recv_scale_stride);
		return group->scale_count > 0;
	case HT_TOPK:
		*elements = group->topk;
		*dtype = own->topk_dtype ? own->topk_dtype : MOEEP_INT64;
		return !expert_major(c);
	case HT_WEIGHTS:
		*elements = expert_major(c) ? 1 : group->topk;
		*dtype = MOEEP_FP32;
		return c->spec.weights;
	case HT_EXPERT:
		return expert_major(c);
	case HT_NUM_RECV:
		*rows = 1;
		*dtype = MOEEP_INT64;
		return true;
	case HT_PER_EXPERT:
	case HT_PADDED:
		*rows = local_experts;
		return true;
	case HT_OFFSETS:
		*rows = local_experts + 1;
		return true;
	default:
		return true;
	}
}

static void dispatch_args(struct ht_dispatch *d, uint32_t flags)
{
	const struct oracle_group *group = &d->c->in.group;
	const struct oracle_input *input = &d->c->in.input[d->rank];
	const struct ht_rank *own = &d->c->rank[d->rank];

	d->args = (moeep_dispatch_args_t){
		.size = sizeof(d->args),
		.flags = flags | own->flags,
		.dtype = d->c->spec.dtype,
		.num_tokens = input->num_tokens,
		.x = input->x,
		.scales = d->scales,
		.scale_count = group->scale_count,
		.scale_dtype = d->c->spec.scale_dtype,
		.scale_layout = own->scale_layout,
		.scale_stride = own->scale_stride,
		.topk = group->topk,
		.topk_idx = d->topk,
		.topk_weights = input->weights,
		.topk_dtype = own->topk_dtype,
		.row_layout = d->c->row_layout,
		.expert_alignment = own->alignment,
		.recv_scale_layout = own->recv_scale_layout,
		.recv_scale_stride = own->recv_scale_stride,
		.capacity = d->c->capacity[d->rank],
	};
	if (flags & MOEEP_DISPATCH_COUNTS_ONLY) {
		d->args.x = NULL;
		d->args.scales = NULL;
		d->args.scale_count = 0;
		d->args.capacity = 0;
	}
	if (flags & MOEEP_DISPATCH_CACHED) {
		/* All of these are the handle's. */
		d->args.num_tokens = 0;
		d->args.topk = 0;
		d->args.row_layout = 0;
		d->args.expert_alignment = 0;
		d->args.topk_idx = NULL;
	}
}

int ht_dispatch_begin(struct ht_dispatch *d, const struct ht_case *c, int rank, moeep_comm_t *comm,
		      uint32_t flags)
{
	const struct ht_rank *own = &c->rank[rank];
	moeep_dispatch_args_t want;

	*d = (struct ht_dispatch){.c = c, .rank = rank, .comm = comm};
	d->topk = op_topk_as(&c->in, rank, own->topk_dtype ? own->topk_dtype : MOEEP_INT64);
	if (c->spec.scale_count > 0) {
		d->scales = op_scales_as(&c->in, rank, own->scale_layout, own->scale_stride);
	}
	dispatch_args(d, flags);
	want = d->args;
	want.capacity = c->capacity[rank];
	want.row_layout = c->row_layout;
	want.expert_alignment = alignment_of(c, rank);
	want.topk_dtype = own->topk_dtype ? own->topk_dtype : MOEEP_INT64;
	for (int i = 0; i < HT_OUTPUTS; i++) {
		enum op_memory kind = i == HT_X ? own->memory : OP_ORDINARY;
		unsigned int any = i == HT_X ? memory_kinds(c) : 0;
		int64_t rows, elements;
		int dtype;

		if (!output_shape(c, rank, flags, i, &rows, &elements, &dtype)) {
			continue;
		}
		/* A rank that wants no rows still takes part in making memory for them. */
		RANK_DO(op_output_make(&d->output[i], output_names[i], rows, elements, dtype, comm,
				       kind, any));
		if (!(own->leave & 1u << i)) {
			set_output(&d->args, i, d->output[i].at);
			set_output(&want, i, d->output[i].want);
		}
	}
	oracle_dispatch(&c->in.group, rank, &want);
	d->expect = c->fits || (flags & MOEEP_DISPATCH_COUNTS_ONLY) ? MOEEP_OK : MOEEP_ERR_CAPACITY;
	return 0;
}

void ht_dispatch_end(struct ht_dispatch *d, int result)
{
	rank_result(result, d->expect, "moeep_dispatch", __FILE__, __LINE__);
	for (int i = 0; i < HT_OUTPUTS; i++) {
		op_output_end(&d->output[i], d->comm);
	}
	util_free(d->topk);
	util_free(d->scales);
}

int ht_combine_begin(struct ht_combine *d, const struct ht_case *c, int rank, moeep_comm_t *comm)
{
	const struct oracle_expert_side *side = &c->side[rank];
	int64_t tokens = c->spec.tokens[rank];
	size_t x_bytes =
		(size_t)(side->rows.count * c->spec.hidden) * oracle_dtype_size(combine_dtype(c));
	moeep_combine_args_t want;

	*d = (struct ht_combine){
		.comm = comm,
		.expect = c->fits ? MOEEP_OK : MOEEP_ERR_CAPACITY,
		.args =
			{
				.size = sizeof(d->args),
				.flags = c->weighted ? MOEEP_COMBINE_WEIGHTED : 0,
				.dtype = c->combine_dtype,
				.topk_weights = side->weights,
				.bias = c->bias ? c->bias_rows[rank] : NULL,
			},
	};
	RANK_DO(op_block_make(&d->x, comm, c->rank[rank].memory, memory_kinds(c), x_bytes + 64));
	memcpy(d->x.host, side->x, x_bytes);
	RANK_DO(op_block_push(&d->x));
	RANK_DO(op_output_make(&d->out, "out", tokens, c->spec.hidden, combine_dtype(c), comm,
			       OP_ORDINARY, 0));
	d->out.any_nan = true;
	d->args.x = d->x.memory;
	d->args.out = d->out.at;
	want = d->args;
	want.dtype = combine_dtype(c);
	want.out = d->out.want;
	if (c->send_weights) {
		RANK_DO(op_output_make(&d->out_weights, "out_topk_weights", tokens, c->spec.topk,
				       MOEEP_FP32, comm, OP_ORDINARY, 0));
		d->args.out_topk_weights = d->out_weights.at;
		want.out_topk_weights = (void *)d->out_weights.want;
	}
	if (c->fits) {
		oracle_combine(&c->in.group, c->side, rank, c->row_layout, c->partial_dtype, &want);
	}
	return 0;
}

void ht_combine_end(struct ht_combine *d, int result)
{
	rank_result(result, d->expect, "moeep_combine", __FILE__, __LINE__);
	op_output_end(&d->out, d->comm);
	op_output_end(&d->out_weights, d->comm);
	op_block_free(&d->x, d->comm);
}

int ht_dispatch(const struct ht_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
		moeep_handle_t *handle, uint32_t flags)
{
	struct ht_dispatch d;

	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, flags));
	ht_dispatch_end(&d, op_dispatch(buffer, handle, &d.args, NULL));
	return moeep_comm_async_error(comm, NULL) == MOEEP_OK ? 0 : -1;
}

int ht_combine(const struct ht_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
	       moeep_handle_t *handle)
{
	struct ht_combine d;

	RANK_DO(ht_combine_begin(&d, c, rank, comm));
	ht_combine_end(&d, op_combine(buffer, handle, &d.args, NULL));
	return moeep_comm_async_error(comm, NULL) == MOEEP_OK ? 0 : -1;
}

int ht_combine_refused(const struct ht_case *c, int rank, moeep_comm_t *comm,
		       moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	struct ht_combine d;

	RANK_DO(ht_combine_begin(&d, c, rank, comm));
	d.expect = MOEEP_ERR_STATE;
	util_poison(d.out.want, d.out.got.bytes);
	util_poison(d.out_weights.want, d.out_weights.got.bytes);
	ht_combine_end(&d, op_combine(buffer, handle, &d.args, NULL));
	return 0;
}

int ht_refused(const struct ht_case *c, int rank, moeep_comm_t *comm, moeep_buffer_t *buffer,
	       moeep_handle_t *handle)
{
	struct ht_dispatch d;

	RANK_DO(ht_combine_refused(c, rank, comm, buffer, handle));
	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, MOEEP_DISPATCH_CACHED));
	d.expect = MOEEP_ERR_STATE;
	for (int i = 0; i < HT_OUTPUTS; i++) {
		util_poison(d.output[i].want, d.output[i].got.bytes);
	}
	ht_dispatch_end(&d, op_dispatch(buffer, handle, &d.args, NULL));
	return 0;
}

static void query_ranks(const struct ht_case *c, int rank, const moeep_handle_info_t *info)
{
	int32_t sent[OP_RANKS];
	moeep_layout_args_t layout = {.tokens_per_rank = sent};

	for (int r = 0; r < c->spec.num_ranks; r++) {
		oracle_layout(&c->in.group, r, &layout);
		rank_check(info->recv_per_rank[r] == sent[rank],
			   "recv_per_rank[%d]: expected %d, got %lld", r, sent[rank],
			   (long long)info->recv_per_rank[r]);
	}
	oracle_layout(&c->in.group, rank, &layout);
	for (int r = 0; r < c->spec.num_ranks; r++) {
		rank_check(info->send_per_rank[r] == sent[r],
			   "send_per_rank[%d]: expected %d, got %lld", r, sent[r],
			   (long long)info->send_per_rank[r]);
	}
}

void ht_query(const struct ht_case *c, int rank, const moeep_handle_t *handle)
{
	const struct oracle_rows *rows = &c->side[rank].rows;
	int layout = expert_major(c) ? MOEEP_ROWS_EXPERT_MAJOR : MOEEP_ROWS_FLAT;
	moeep_handle_info_t info = {.size = sizeof(info)};

	if (!rank_ok(moeep_handle_query(handle, &info))) {
		return;
	}
	rank_check(info.operation == MOEEP_OP_DISPATCH, "operation is %d", info.operation);
	rank_check(info.row_layout == layout, "row_layout is %d", info.row_layout);
	rank_check(info.num_tokens == c->spec.tokens[rank], "num_tokens is %lld",
		   (long long)info.num_tokens);
	rank_check(info.num_recv == rows->count, "num_recv is %lld, expected %lld",
		   (long long)info.num_recv, (long long)rows->count);
	if (!rank_check(info.recv_per_rank && info.send_per_rank && info.recv_per_expert,
			"the counts are NULL") ||
	    !rank_check(!info.expert_offsets == !expert_major(c), "expert_offsets")) {
		return;
	}
	query_ranks(c, rank, &info);
	for (int e = 0; e < rows->local_experts; e++) {
		rank_check(info.recv_per_expert[e] == rows->per_expert[e],
			   "recv_per_expert[%d]: expected %lld, got %lld", e,
			   (long long)rows->per_expert[e], (long long)info.recv_per_expert[e]);
	}
	for (int e = 0; expert_major(c) && e <= rows->local_experts; e++) {
		rank_check(info.expert_offsets[e] == rows->offsets[e],
			   "expert_offsets[%d]: expected %lld, got %lld", e,
			   (long long)rows->offsets[e], (long long)info.expert_offsets[e]);
	}
}

void ht_config(const struct ht_case *c, moeep_buffer_config_t *config)
{
	int dtype = c->spec.dtype ? c->spec.dtype : MOEEP_BF16;
	int64_t most = c->max_tokens ? c->max_tokens : op_tokens_most(&c->spec);

	if (oracle_dtype_size(combine_dtype(c)) > oracle_dtype_size(dtype)) {
		dtype = combine_dtype(c);
	}
	*config = (moeep_buffer_config_t){
		.size = sizeof(*config),
		.modes = MOEEP_MODE_HT,
		.num_experts = c->spec.num_experts,
		.max_topk = c->max_topk ? c->max_topk : c->spec.topk,
		.dtype = dtype,
		.hidden = c->spec.hidden,
		.ht_max_tokens = most > 0 ? most : 1,
		.max_scales = c->spec.scale_count,
		.partial_dtype = c->partial_dtype,
		.ht_chunk_bytes = c->chunk_bytes,
		.ht_chunks = c->chunks,
		.initial_epoch = c->initial_epoch,
	};
}

int ht_open(const struct ht_case *c, moeep_comm_t *comm, moeep_buffer_t **buffer,
	    moeep_handle_t **handle)
{
	moeep_buffer_config_t config;

	ht_config(c, &config);
	RANK_TRY(moeep_buffer_create(comm, &config, buffer));
	RANK_TRY(moeep_handle_create(*buffer, NULL, handle));
	return op_ready(comm);
}

int ht_close(moeep_buffer_t *buffer, moeep_handle_t *handle)
{
	RANK_TRY(moeep_handle_destroy(handle));
	RANK_TRY(moeep_buffer_destroy(buffer));
	return 0;
}

static int check_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = arg;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, 0));
	ht_query(c, rank, handle);
	RANK_DO(ht_combine(c, rank, comm, buffer, handle));
	RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, MOEEP_DISPATCH_CACHED));
	RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, MOEEP_DISPATCH_COUNTS_ONLY));
	ht_query(c, rank, handle);
	RANK_DO(ht_combine_refused(c, rank, comm, buffer, handle));
	RANK_DO(ht_dispatch(c, rank, comm, buffer, handle, MOEEP_DISPATCH_CACHED));
	RANK_DO(ht_combine(c, rank, comm, buffer, handle));
	return ht_close(buffer, handle);
}

void ht_check(struct ht_case *c, bool processes, const char *what)
{
	ht_case_make(c);
	ranks_run(&(struct ranks_config){.num_ranks = c->spec.num_ranks, .processes = processes},
		  check_body, c, "%s: %s", what, op_spec_name(&c->spec));
	ht_case_free(c);
}
