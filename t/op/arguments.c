/* SPDX-License-Identifier: MIT */
/*
 * Wrong arguments: each gives its error, the detail names the argument and its value, nothing
 * crashes, and the objects stay usable. Arguments that differ between ranks: the same error on all.
 */
#include "config.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "t/op/ht.h"
#include "t/op/ll.h"

/* A field of an argument structure and a value that it must not have. */
struct wrong {
	const char *name;
	size_t offset;
	size_t bytes;
	int64_t value;
	int expect;
};

#define WRONG(type, field, value)                                                                  \
	{                                                                                          \
#field, offsetof(type, field), sizeof(((type *)0)->field), value,                  \
			MOEEP_ERR_INVALID                                                          \
	}

static void spoil(void *args, const struct wrong *wrong)
{
	memcpy((char *)args + wrong->offset, &wrong->value, wrong->bytes);
}

/* The detail of the last call. With number, that number has to be in it, too. */
static void named(int result, const struct wrong *wrong, const char *call)
{
	bool pointer = wrong->bytes == 8 && wrong->value == 0;
	char number[32], hex[32];
	const char *detail = moeep_error_detail();

	snprintf(number, sizeof(number), "%lld", (long long)wrong->value);
	snprintf(hex, sizeof(hex), "%llx", (unsigned long long)wrong->value);
	rank_check(result == wrong->expect, "%s, %s %s: %s (%s)", call, wrong->name, number,
		   moeep_strerror(result), detail);
	rank_check(strstr(detail, wrong->name) != NULL,
		   "%s, %s %s: the detail does not name it: %s", call, wrong->name, number, detail);
	rank_check(pointer || strstr(detail, number) || strstr(detail, hex),
		   "%s, %s %s: the detail does not have the value: %s", call, wrong->name, number,
		   detail);
}

#define DISPATCH(field, value) WRONG(moeep_dispatch_args_t, field, value)

/* On top of a call with 4 tokens of at most 8, 2 choices, 2 scales of at most 4, flat. */
static const struct wrong dispatch_wrong[] = {
	DISPATCH(flags, INT64_C(1) << 31),
	DISPATCH(dtype, 77),
	DISPATCH(dtype, -1),
	DISPATCH(dtype, MOEEP_UE8M0),
	DISPATCH(dtype, MOEEP_INT32),
	DISPATCH(dtype, MOEEP_FP32), /* wider than the buffer's */
	DISPATCH(num_tokens, -1),
	DISPATCH(num_tokens, 9),
	DISPATCH(num_tokens, INT64_MAX),
	DISPATCH(x, 0),
	DISPATCH(scale_count, -1),
	DISPATCH(scale_count, 0),
	DISPATCH(scale_count, 5),
	DISPATCH(scale_dtype, MOEEP_BF16),
	DISPATCH(scale_layout, 2),
	DISPATCH(scale_layout, -1),
	DISPATCH(scale_stride, 1),
	DISPATCH(scale_stride, -1),
	DISPATCH(topk, -1),
	DISPATCH(topk, 3),
	DISPATCH(topk_idx, 0),
	DISPATCH(topk_dtype, MOEEP_FP32),
	DISPATCH(row_layout, 3),
	DISPATCH(row_layout, -1),
	DISPATCH(expert_alignment, -1),
	DISPATCH(recv_scale_layout, 2),
	DISPATCH(recv_scale_stride, 1),
	DISPATCH(recv_scale_stride, -1),
	DISPATCH(capacity, -1),
};

#define COMBINE(field, value) WRONG(moeep_combine_args_t, field, value)

static const struct wrong combine_wrong[] = {
	COMBINE(flags, 2),  COMBINE(dtype, MOEEP_FP8_E4M3),
	COMBINE(dtype, -1), COMBINE(dtype, MOEEP_FP32), /* wider than the buffer's */
	COMBINE(x, 0),
};

#define LL_DISPATCH(field, value) WRONG(moeep_ll_dispatch_args_t, field, value)

static const struct wrong ll_dispatch_wrong[] = {
	LL_DISPATCH(phase, 3),
	LL_DISPATCH(phase, -1),
	LL_DISPATCH(flags, 1),
	LL_DISPATCH(dtype, MOEEP_FP32),
	LL_DISPATCH(dtype, MOEEP_FP8_E4M3),
	LL_DISPATCH(quant, 4),
	LL_DISPATCH(quant, -1),
	LL_DISPATCH(topk, -1),
	LL_DISPATCH(topk, 3),
	LL_DISPATCH(topk_dtype, MOEEP_FP32),
	LL_DISPATCH(num_tokens, -1),
	LL_DISPATCH(num_tokens, 9),
	LL_DISPATCH(x, 0),
	LL_DISPATCH(topk_idx, 0),
	LL_DISPATCH(row_layout, 3),
	LL_DISPATCH(recv_scale_layout, 2),
	LL_DISPATCH(recv_scale_stride, 1),
	LL_DISPATCH(capacity, -1),
};

#define LL_COMBINE(field, value) WRONG(moeep_ll_combine_args_t, field, value)

static const struct wrong ll_combine_wrong[] = {
	LL_COMBINE(phase, 3),
	LL_COMBINE(flags, 2),
	LL_COMBINE(dtype, MOEEP_INT8),
	LL_COMBINE(dtype, MOEEP_FP32),
	LL_COMBINE(reserved0, 1),
	LL_COMBINE(capacity, -1),
	LL_COMBINE(x, 0),
	LL_COMBINE(out, 0),
};

#define CONFIG(field, value) WRONG(moeep_buffer_config_t, field, value)

static const struct wrong config_wrong[] = {
	CONFIG(modes, 4),
	CONFIG(num_experts, 0),
	CONFIG(num_experts, -1),
	CONFIG(num_experts, 65537),
	CONFIG(max_topk, -1),
	CONFIG(max_topk, 65),
	CONFIG(dtype, MOEEP_INT64),
	CONFIG(dtype, -1),
	CONFIG(hidden, 0),
	CONFIG(hidden, -16),
	CONFIG(hidden, 7),
	CONFIG(ht_max_tokens, -1),
	CONFIG(ht_max_tokens, INT64_C(1) << 24),
	CONFIG(ll_max_tokens, -1),
	CONFIG(ll_max_tokens, 65536),
	CONFIG(ll_capacity, -1),
	CONFIG(max_scales, -1),
	CONFIG(partial_dtype, MOEEP_INT8),
	CONFIG(ll_combine_slots, 3),
	CONFIG(ll_combine_slots, -1),
	CONFIG(num_sms, -1),
	CONFIG(ht_chunk_bytes, -1),
	CONFIG(ht_chunks, 1),
	CONFIG(ht_chunks, -1),
	CONFIG(reserved0, 1),
	CONFIG(initial_epoch, INT64_C(1) << 40),
};

struct cases {
	struct ht_case ht;
	struct ll_case ll;
};

static int ht_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ht_case *c = &((const struct cases *)arg)->ht;
	struct wrong far = DISPATCH(topk_idx, 9), range = far, odd = DISPATCH(recv_x, 1);
	moeep_buffer_t *buffer;
	moeep_handle_t *handle, *unused;
	moeep_dispatch_args_t args;
	moeep_combine_args_t combine;
	struct ht_dispatch d;
	struct ht_combine m;

	RANK_DO(ht_open(c, comm, &buffer, &handle));
	RANK_TRY(moeep_handle_create(buffer, NULL, &unused));
	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, 0));
	for (int i = 0; i < COUNT_OF(dispatch_wrong); i++) {
		args = d.args;
		spoil(&args, &dispatch_wrong[i]);
		named(op_dispatch(buffer, handle, &args, NULL), &dispatch_wrong[i], "dispatch");
	}
	args = d.args;
	args.flags = MOEEP_DISPATCH_CACHED | MOEEP_DISPATCH_COUNTS_ONLY;
	rank_is(op_dispatch(buffer, handle, &args, NULL), MOEEP_ERR_INVALID);
	args = d.args;
	args.recv_x = (char *)args.recv_x + 8;
	odd.value = 0; /* an address, in whatever form */
	named(op_dispatch(buffer, handle, &args, NULL), &odd, "dispatch, not aligned");
	((int64_t *)d.topk)[5] = 9;
	named(op_dispatch(buffer, handle, &d.args, NULL), &far, "dispatch, no such expert");
	((int64_t *)d.topk)[5] = range.value = -2;
	named(op_dispatch(buffer, handle, &d.args, NULL), &range, "dispatch, no such expert");
	((int64_t *)d.topk)[5] = c->in.input[rank].topk[5];
	rank_is(op_dispatch(NULL, handle, &d.args, NULL), MOEEP_ERR_INVALID);
	rank_is(op_dispatch(buffer, NULL, &d.args, NULL), MOEEP_ERR_INVALID);
	rank_is(op_dispatch(buffer, handle, NULL, NULL), MOEEP_ERR_INVALID);
	args = d.args;
	args.size = 4;
	rank_is(op_dispatch(buffer, handle, &args, NULL), MOEEP_ERR_INVALID);

	/* Cached: what is given must be the handle's, and there must be a dispatch. */
	args = d.args;
	args.flags = MOEEP_DISPATCH_CACHED;
	rank_is(op_dispatch(buffer, unused, &args, NULL), MOEEP_ERR_STATE);
	RANK_DO(ht_combine_begin(&m, c, rank, comm));
	rank_is(op_combine(buffer, unused, &m.args, NULL), MOEEP_ERR_STATE);

	/* After all that a call works, and leaves nothing of the wrong ones. */
	ht_dispatch_end(&d, op_dispatch(buffer, handle, &d.args, NULL));
	RANK_DO(ht_dispatch_begin(&d, c, rank, comm, MOEEP_DISPATCH_CACHED));
	for (int i = 0; i < 4; i++) {
		static const struct wrong cached_wrong[] = {
			DISPATCH(num_tokens, 3),
			DISPATCH(topk, 1),
			DISPATCH(row_layout, MOEEP_ROWS_EXPERT_MAJOR),
			DISPATCH(expert_alignment, 2),
		};

		args = d.args;
		spoil(&args, &cached_wrong[i]);
		named(op_dispatch(buffer, handle, &args, NULL), &cached_wrong[i], "cached");
	}
	ht_dispatch_end(&d, op_dispatch(buffer, handle, &d.args, NULL));
	for (int i = 0; i < COUNT_OF(combine_wrong); i++) {
		combine = m.args;
		spoil(&combine, &combine_wrong[i]);
		named(op_combine(buffer, handle, &combine, NULL), &combine_wrong[i], "combine");
	}
	combine = m.args;
	combine.flags = MOEEP_COMBINE_WEIGHTED; /* flat rows have no weight of their own */
	rank_is(op_combine(buffer, handle, &combine, NULL), MOEEP_ERR_INVALID);
	combine = m.args;
	combine.out = (char *)combine.out + 8;
	rank_is(op_combine(buffer, handle, &combine, NULL), MOEEP_ERR_INVALID);
	rank_is(op_combine(NULL, handle, &m.args, NULL), MOEEP_ERR_INVALID);
	rank_is(op_combine(buffer, NULL, &m.args, NULL), MOEEP_ERR_INVALID);
	rank_is(op_combine(buffer, handle, NULL, NULL), MOEEP_ERR_INVALID);
	ht_combine_end(&m, op_combine(buffer, handle, &m.args, NULL));
	rank_is(moeep_comm_async_error(comm, NULL), MOEEP_OK);
	RANK_TRY(moeep_handle_destroy(unused));
	return ht_close(buffer, handle);
}

static int ll_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct ll_case *c = &((const struct cases *)arg)->ll;
	struct wrong far = LL_DISPATCH(topk_idx, 9);
	moeep_buffer_t *buffer;
	moeep_handle_t *handle, *unused;
	struct ll_dispatch d;
	struct ll_combine m;
	void *slot;

	RANK_DO(ll_open(c, comm, &buffer, &handle));
	RANK_TRY(moeep_handle_create(buffer, NULL, &unused));
	RANK_DO(ll_dispatch_begin(&d, c, rank));
	for (int i = 0; i < COUNT_OF(ll_dispatch_wrong); i++) {
		moeep_ll_dispatch_args_t args = d.args;

		spoil(&args, &ll_dispatch_wrong[i]);
		named(op_ll_dispatch(buffer, handle, &args, NULL), &ll_dispatch_wrong[i],
		      "ll_dispatch");
	}
	d.args.row_layout = MOEEP_ROWS_FLAT;
	rank_is(op_ll_dispatch(buffer, handle, &d.args, NULL), MOEEP_ERR_UNSUPPORTED);
	d.args.row_layout = 0;
	((int64_t *)d.topk)[5] = 9;
	named(op_ll_dispatch(buffer, handle, &d.args, NULL), &far, "ll_dispatch");
	((int64_t *)d.topk)[5] = c->in.input[rank].topk[5];
	rank_is(op_ll_dispatch(NULL, handle, &d.args, NULL), MOEEP_ERR_INVALID);
	rank_is(op_ll_dispatch(buffer, NULL, &d.args, NULL), MOEEP_ERR_INVALID);
	rank_is(op_ll_dispatch(buffer, handle, NULL, NULL), MOEEP_ERR_INVALID);
	RANK_DO(ll_combine_begin(&m, c, rank, comm, buffer, 0));
	rank_is(op_ll_combine(buffer, unused, &m.args, NULL), MOEEP_ERR_STATE);
	ll_dispatch_end(&d, op_ll_dispatch(buffer, handle, &d.args, NULL));
	for (int i = 0; i < COUNT_OF(ll_combine_wrong); i++) {
		moeep_ll_combine_args_t args = m.args;

		spoil(&args, &ll_combine_wrong[i]);
		named(op_ll_combine(buffer, handle, &args, NULL), &ll_combine_wrong[i],
		      "ll_combine");
	}
	rank_is(op_ll_combine(NULL, handle, &m.args, NULL), MOEEP_ERR_INVALID);
	rank_is(op_ll_combine(buffer, handle, NULL, NULL), MOEEP_ERR_INVALID);
	ll_combine_end(&m, op_ll_combine(buffer, handle, &m.args, NULL));
	rank_is(moeep_ll_combine_slot(buffer, 1, &slot, NULL), MOEEP_ERR_INVALID);
	rank_is(moeep_ll_combine_slot(buffer, -1, &slot, NULL), MOEEP_ERR_INVALID);
	rank_is(moeep_comm_async_error(comm, NULL), MOEEP_OK);
	RANK_TRY(moeep_handle_destroy(unused));
	return ll_close(buffer, handle);
}

/* Families that a buffer or a handle does not serve; handles of another buffer or operation. */
static int kinds_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct cases *c = arg;
	moeep_buffer_t *ht, *ll, *both;
	moeep_handle_t *ht_handle, *ll_handle, *both_handle;
	moeep_buffer_config_t config;
	struct ht_dispatch d;
	struct ht_combine m;
	struct ll_dispatch l;
	struct ll_combine n;

	RANK_DO(ht_open(&c->ht, comm, &ht, &ht_handle));
	RANK_DO(ll_open(&c->ll, comm, &ll, &ll_handle));
	ht_config(&c->ht, &config);
	config.modes = 0;
	config.ll_max_tokens = c->ll.most;
	RANK_TRY(moeep_buffer_create(comm, &config, &both));
	RANK_TRY(moeep_handle_create(both, NULL, &both_handle));
	RANK_DO(ht_dispatch_begin(&d, &c->ht, rank, comm, 0));
	RANK_DO(ht_combine_begin(&m, &c->ht, rank, comm));
	RANK_DO(ll_dispatch_begin(&l, &c->ll, rank));
	RANK_DO(ll_combine_begin(&n, &c->ll, rank, comm, ll, 0));
	rank_check(op_dispatch(ll, ll_handle, &d.args, NULL) != MOEEP_OK, "HT on an LL buffer");
	rank_check(op_ll_dispatch(ht, ht_handle, &l.args, NULL) != MOEEP_OK, "LL on an HT buffer");
	rank_is(op_dispatch(ht, both_handle, &d.args, NULL), MOEEP_ERR_INVALID);
	rank_is(op_ll_dispatch(ll, both_handle, &l.args, NULL), MOEEP_ERR_INVALID);
	/* A handle's last dispatch decides which combine it is for. */
	RANK_TRY(op_dispatch(both, both_handle, &d.args, NULL));
	rank_is(op_ll_combine(both, both_handle, &n.args, NULL), MOEEP_ERR_STATE);
	ht_combine_end(&m, op_combine(both, both_handle, &m.args, NULL));
	RANK_TRY(op_ll_dispatch(both, both_handle, &l.args, NULL));
	RANK_DO(ht_combine_begin(&m, &c->ht, rank, comm));
	rank_is(op_combine(both, both_handle, &m.args, NULL), MOEEP_ERR_STATE);
	ll_combine_end(&n, op_ll_combine(both, both_handle, &n.args, NULL));
	ht_dispatch_end(&d, MOEEP_OK);
	ll_dispatch_end(&l, MOEEP_OK);
	/* Nothing was written by the one that was refused. */
	util_poison(m.out.want, m.out.got.bytes);
	util_poison(m.out_weights.want, m.out_weights.got.bytes);
	ht_combine_end(&m, MOEEP_OK);
	RANK_DO(ht_close(both, both_handle));
	RANK_DO(ht_close(ht, ht_handle));
	return ll_close(ll, ll_handle);
}

static int config_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct cases *c = arg;
	struct {
		moeep_buffer_config_t config;
		uint64_t tail;
	} longer = {.tail = 0};
	moeep_buffer_config_t good, config;
	moeep_buffer_t *buffer = NULL;
	moeep_handle_t *handle;
	moeep_handle_config_t limits = {.size = sizeof(limits), .modes = MOEEP_MODE_LL};
	int first, count;

	(void)rank;
	ht_config(&c->ht, &good);
	for (int i = 0; i < COUNT_OF(config_wrong); i++) {
		config = good;
		config.modes = 0;
		spoil(&config, &config_wrong[i]);
		named(moeep_buffer_create(comm, &config, &buffer), &config_wrong[i], "buffer");
		rank_check(buffer == NULL, "an output was set on failure");
	}
	rank_is(moeep_buffer_create(comm, NULL, &buffer), MOEEP_ERR_INVALID);
	rank_is(moeep_buffer_create(comm, &good, NULL), MOEEP_ERR_INVALID);
	longer.config = good;
	longer.config.size = sizeof(longer);
	longer.tail = 1;
	rank_is(moeep_buffer_create(comm, &longer.config, &buffer), MOEEP_ERR_INVALID);
	longer.tail = 0;
	RANK_TRY(moeep_buffer_create(comm, &longer.config, &buffer));
	rank_is(moeep_handle_create(buffer, &limits, &handle), MOEEP_ERR_INVALID);
	limits.modes = 0;
	limits.max_tokens = -1;
	rank_is(moeep_handle_create(buffer, &limits, &handle), MOEEP_ERR_INVALID);
	RANK_TRY(moeep_buffer_destroy(buffer));
	rank_is(moeep_handle_destroy(NULL), MOEEP_OK);
	rank_is(moeep_buffer_destroy(NULL), MOEEP_OK);
	rank_is(moeep_expert_range(8, 0, 0, &first, &count), MOEEP_ERR_INVALID);
	rank_is(moeep_expert_range(8, 2, 2, &first, &count), MOEEP_ERR_INVALID);
	rank_is(moeep_expert_range(0, 2, 0, &first, &count), MOEEP_ERR_INVALID);
	rank_is(moeep_comm_async_error(comm, NULL), MOEEP_OK);
	return 0;
}

static void scales(void)
{
	is_u64(moeep_scales_bytes(MOEEP_FP32, MOEEP_SCALES_ROW_MAJOR, 3, 5, 0), 60, "row-major");
	is_u64(moeep_scales_bytes(MOEEP_FP32, MOEEP_SCALES_ROW_MAJOR, 3, 5, 7), 84, "with stride");
	is_u64(moeep_scales_bytes(MOEEP_UE8M0, MOEEP_SCALES_ROW_MAJOR, 3, 5, 0), 15, "of bytes");
	is_u64(moeep_scales_bytes(MOEEP_FP32, MOEEP_SCALES_COLUMN_MAJOR, 5, 3, 0), 96, "columns");
	is_u64(moeep_scales_bytes(MOEEP_UE8M0, MOEEP_SCALES_COLUMN_MAJOR, 5, 5, 0), 64, "words");
	is_u64(moeep_scales_bytes(MOEEP_BF16, 0, 3, 5, 0), 0, "no scale dtype");
	is_u64(moeep_scales_bytes(MOEEP_FP32, 2, 3, 5, 0), 0, "no layout");
	is_u64(moeep_scales_bytes(MOEEP_FP32, 0, -1, 5, 0), 0, "negative rows");
	is_u64(moeep_scales_bytes(MOEEP_FP32, 0, 3, -5, 0), 0, "negative count");
	is_u64(moeep_scales_bytes(MOEEP_FP32, 0, 3, 5, 4), 0, "stride less than a row");
	is_u64(moeep_scales_bytes(MOEEP_FP32, 1, 5, 3, 4), 0, "stride less than a column");
	is_u64(moeep_scales_bytes(MOEEP_FP32, 0, INT64_MAX / 2, 5, 0), 0, "too large");
}

/* Two ranks that do not agree, in a group of their own each time. */
struct mismatch {
	const char *what;
	const char *named; /* part of the detail */
	bool combine;
	size_t offset;
	size_t bytes;
	int64_t value; /* on rank 1 */
};

#define DIFFERS(field, named, value)                                                               \
	{                                                                                          \
#field, named, false, offsetof(moeep_dispatch_args_t, field),                      \
			sizeof(((moeep_dispatch_args_t *)0)->field), value                         \
	}
#define COMBINE_DIFFERS(field, named, value)                                                       \
	{                                                                                          \
#field, named, true, offsetof(moeep_combine_args_t, field),                        \
			sizeof(((moeep_combine_args_t *)0)->field), value                          \
	}

static const struct mismatch mismatches[] = {
	DIFFERS(dtype, "dtype", MOEEP_FP16),
	DIFFERS(topk, "topk", 1),
	DIFFERS(row_layout, "row_layout", MOEEP_ROWS_EXPERT_MAJOR),
	DIFFERS(scale_count, "scale_count", 1),
	DIFFERS(scale_dtype, "scale_dtype", MOEEP_UE8M0),
	DIFFERS(flags, "flags", MOEEP_DISPATCH_COUNTS_ONLY),
	DIFFERS(topk_weights, "weights", 0),
	DIFFERS(scales, "scale", 0),
	COMBINE_DIFFERS(dtype, "dtype", MOEEP_FP16),
	COMBINE_DIFFERS(topk_weights, "weights", 0),
};

struct mismatch_run {
	const struct ht_case *c;
	const struct mismatch *m;
};

static int mismatch_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct mismatch_run *run = arg;
	const struct mismatch *m = run->m;
	moeep_buffer_t *buffer;
	moeep_handle_t *handle;
	struct ht_dispatch d;
	struct ht_combine combine;
	int result;

	RANK_DO(ht_open(run->c, comm, &buffer, &handle));
	RANK_DO(ht_dispatch_begin(&d, run->c, rank, comm, 0));
	RANK_DO(ht_combine_begin(&combine, run->c, rank, comm));
	/* Outputs that depend on what is to differ are left out. */
	d.args.recv_scales = NULL;
	d.args.recv_topk_weights = NULL;
	d.args.recv_topk_idx = NULL;
	if (m->combine) {
		RANK_TRY(op_dispatch(buffer, handle, &d.args, NULL));
		combine.args.out_topk_weights = NULL;
		if (rank == 1) {
			memcpy((char *)&combine.args + m->offset, &m->value, m->bytes);
		}
		result = op_combine(buffer, handle, &combine.args, NULL);
	} else {
		if (rank == 1) {
			memcpy((char *)&d.args + m->offset, &m->value, m->bytes);
		}
		if (d.args.scales == NULL) {
			d.args.scale_count = 0;
		}
		result = op_dispatch(buffer, handle, &d.args, NULL);
	}
	rank_result(result, MOEEP_ERR_MISMATCH, m->what, __FILE__, __LINE__);
	rank_check(strstr(moeep_error_detail(), m->named) != NULL,
		   "%s: the detail does not name it: %s", m->what, moeep_error_detail());
	for (int i = 0; i < HT_OUTPUTS; i++) {
		op_block_free(&d.output[i].block, comm);
		util_free(d.output[i].want);
	}
	util_free(d.topk);
	util_free(d.scales);
	op_block_free(&combine.x, comm);
	op_block_free(&combine.out.block, comm);
	util_free(combine.out.want);
	op_block_free(&combine.out_weights.block, comm);
	util_free(combine.out_weights.want);
	return ht_close(buffer, handle);
}

static int config_mismatch_body(int rank, moeep_comm_t *comm, void *arg)
{
	const struct wrong *wrong = arg;
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.num_experts = 8,
		.hidden = 64,
		.ht_max_tokens = 16,
		.ll_max_tokens = 4,
	};
	moeep_buffer_t *buffer = NULL;
	int result;

	if (rank == 1) {
		spoil(&config, wrong);
	}
	result = moeep_buffer_create(comm, &config, &buffer);
	rank_result(result, MOEEP_ERR_MISMATCH, wrong->name, __FILE__, __LINE__);
	rank_check(strstr(moeep_error_detail(), wrong->name) != NULL,
		   "%s: the detail does not name it: %s", wrong->name, moeep_error_detail());
	return 0;
}

static void make(struct cases *c, int num_ranks)
{
	struct op_spec spec = {
		.num_ranks = num_ranks,
		.num_experts = 8,
		.topk = 2,
		.hidden = 256,
		.weights = true,
		.payload = PAYLOAD_NUMBERS,
		.seed = op_seed(),
	};

	op_tokens(&spec, 4);
	*c = (struct cases){
		.ht = {.spec = spec, .max_tokens = 8, .send_weights = true},
		.ll = {.spec = spec, .quant = MOEEP_QUANT_FP8, .max_tokens = 8, .slots = 1},
	};
	c->ht.spec.scale_count = 2;
	ht_case_make(&c->ht);
	ll_case_make(&c->ll);
}

int main(void)
{
	static const struct {
		ranks_body_fn body;
		const char *what;
	} tests[] = {
		{ht_body, "high-throughput calls"},
		{ll_body, "low-latency calls"},
		{kinds_body, "buffers and handles of the wrong kind"},
		{config_body, "configurations"},
	};
	static struct wrong config_differs[] = {
		CONFIG(num_experts, 16),
		CONFIG(hidden, 128),
		CONFIG(max_topk, 4),
		CONFIG(modes, MOEEP_MODE_HT),
		CONFIG(ht_max_tokens, 17),
		CONFIG(ll_max_tokens, 5),
		CONFIG(dtype, MOEEP_FP32),
		CONFIG(max_scales, 9),
		CONFIG(partial_dtype, MOEEP_FP32),
	};
	static struct cases c;

	ranks_begin();
	make(&c, 1);
	for (int i = 0; i < COUNT_OF(tests); i++) {
		/* In a process, so that a crash is a failure of one check. */
		ranks_run(&(struct ranks_config){.num_ranks = 1, .processes = true}, tests[i].body,
			  &c, "%s", tests[i].what);
	}
	ht_case_free(&c.ht);
	ll_case_free(&c.ll);
	scales();
	make(&c, 2);
	for (int i = 0; i < COUNT_OF(mismatches); i++) {
		struct mismatch_run run = {&c.ht, &mismatches[i]};

		ranks_run(&(struct ranks_config){.num_ranks = 2, .processes = i % 2}, mismatch_body,
			  &run, "ranks differ in %s", mismatches[i].what);
	}
	ht_case_free(&c.ht);
	ll_case_free(&c.ll);
	for (int i = 0; i < COUNT_OF(config_differs); i++) {
		ranks_run(&(struct ranks_config){.num_ranks = 2, .processes = i % 2},
			  config_mismatch_body, &config_differs[i], "buffers differ in %s",
			  config_differs[i].name);
	}
	return tap_done();
}
