/* SPDX-License-Identifier: MIT */
/*
 * A rank's rounds: the calls of both lanes are queued in turn, with delays on some ranks, and then
 * everything that they wrote is looked at.
 */
#include "config.h"

#include "t/cuda/stress.h"

#include <string.h>
#include <time.h>

#include "t/cuda/try.h"
#include "t/device.h"

/* HT, and two of LL that may be between SEND and RECV at once. */
#define UNITS 3
/* Most calls of a lane in a round. */
#define CALLS	 14
#define UNSET	 4711
#define MOST_SMS 16

/* A dispatch and its combine. */
struct unit {
	struct stress_draw draw;
	struct stress_plan *plan;
	moeep_handle_t *handle;
	uint16_t *recv; /* rows, one more than can come */
	uint16_t *out[STRESS_PASSES];
	float *out_values[STRESS_PASSES];
	float *recv_weights;
	int32_t *src_token;
	int32_t *src_rank;
	int32_t *count;
	int64_t *num_recv;
	bool direct;   /* into the lane's symmetric block */
	bool in_place; /* x of its combines is in the lane's symmetric answers */
	int passes;    /* combines that this round has for it */
};

enum call { DISPATCH, COMBINE };

struct step {
	int unit;
	enum call call;
	int phase;
	int pass;
};

struct lane {
	moeep_comm_t *comm;
	moeep_buffer_t *buffer;
	moeep_event_t *event;
	moeep_stream_t stream;
	CUstream own; /* or NULL */
	struct op_block block;
	struct op_block answers; /* [STRESS_PASSES] of most_rows() */
	struct unit units[UNITS];
	struct step steps[CALLS];
	int num_steps;
	int32_t *status; /* [CALLS] */
};

struct run {
	const struct stress *s;
	const struct moeep_cu *cu; /* NULL: host backend */
	int rank;
	int num_lanes;
	int most_sms;
	int round;
	long operations; /* of this rank, so far */
	struct rng rng;
	struct lane lanes[STRESS_LANES];
	struct stress_load load;
};

static void nap_us(int64_t us)
{
	nanosleep(&(struct timespec){.tv_nsec = (long)us * 1000}, NULL);
}

/* In a thread of the driver's. */
static void nap_on_stream(void *us)
{
	nap_us((int64_t)(intptr_t)us);
}

static size_t row_bytes(const struct stress *s)
{
	return (size_t)s->hidden * sizeof(uint16_t);
}

/* Rows of an output. */
static int64_t room(const struct stress *s, int unit)
{
	int64_t rows = stress_capacity(s);

	return unit == 0 ? rows : rows * STRESS_EXPERTS;
}

static int unit_open(const struct stress *s, struct unit *u, int index, moeep_buffer_t *buffer)
{
	size_t rows = (size_t)room(s, index) + 1;

	u->plan = util_alloc(sizeof(*u->plan));
	u->recv = util_alloc(rows * row_bytes(s));
	for (int pass = 0; pass < STRESS_PASSES; pass++) {
		u->out[pass] = util_alloc((size_t)(s->max_tokens + 1) * row_bytes(s));
		u->out_values[pass] =
			util_alloc((size_t)s->max_tokens * STRESS_TOPK * sizeof(float));
	}
	u->recv_weights = util_alloc(rows * sizeof(float));
	u->src_token = util_alloc(rows * sizeof(int32_t));
	u->src_rank = util_alloc(rows * sizeof(int32_t));
	u->count = util_alloc(STRESS_EXPERTS * sizeof(int32_t));
	u->num_recv = util_alloc(sizeof(int64_t));
	RANK_TRY(moeep_handle_create(buffer, NULL, &u->handle));
	return 0;
}

static void unit_close(struct unit *u)
{
	rank_ok(moeep_handle_destroy(u->handle));
	util_free(u->plan);
	util_free(u->recv);
	for (int pass = 0; pass < STRESS_PASSES; pass++) {
		util_free(u->out[pass]);
		util_free(u->out_values[pass]);
	}
	util_free(u->recv_weights);
	util_free(u->src_token);
	util_free(u->src_rank);
	util_free(u->count);
	util_free(u->num_recv);
}

/* Flat rows that a rank can get. */
static int64_t most_rows(const struct stress *s)
{
	return (int64_t)s->num_ranks * s->max_tokens;
}

static int lane_open(struct run *r, struct lane *lane, int index)
{
	const struct stress *s = r->s;
	enum op_memory kind = op_can_register(false) ? OP_REGISTERED : OP_SYMMETRIC;
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.num_experts = STRESS_EXPERTS * s->num_ranks,
		.max_topk = STRESS_TOPK,
		.hidden = s->hidden,
		.ht_max_tokens = s->max_tokens,
		.ll_max_tokens = s->max_tokens,
		/* Epochs wrap on the way. */
		.initial_epoch = (UINT64_C(1) << 40) - 25,
	};

	lane->comm = ranks_comm(index);
	lane->stream = MOEEP_STREAM_BUFFER;
	lane->status = util_alloc(CALLS * sizeof(*lane->status));
	RANK_TRY(moeep_buffer_create(lane->comm, &config, &lane->buffer));
	RANK_TRY(moeep_event_create(lane->comm, 0, &lane->event));
	RANK_DO(op_block_make(&lane->block, lane->comm, kind, 1u << kind,
			      (size_t)(most_rows(s) + 1) * row_bytes(s)));
	RANK_DO(op_block_make(&lane->answers, lane->comm, kind, 1u << kind,
			      STRESS_PASSES * (size_t)most_rows(s) * row_bytes(s)));
	for (int i = 0; i < UNITS; i++) {
		RANK_DO(unit_open(s, &lane->units[i], i, lane->buffer));
	}
	if (r->cu && index > 0) {
		RANK_TRY(device_stream(lane->comm, &lane->own));
		lane->stream = lane->own;
	}
	return 0;
}

static int lane_close(struct run *r, struct lane *lane)
{
	for (int i = 0; i < UNITS; i++) {
		unit_close(&lane->units[i]);
	}
	op_block_free(&lane->answers, lane->comm);
	op_block_free(&lane->block, lane->comm);
	RANK_TRY(moeep_event_destroy(lane->event));
	RANK_TRY(moeep_buffer_destroy(lane->buffer));
	util_free(lane->status);
	if (lane->own) {
		TRY_CU(r->cu, cuStreamDestroy(lane->own));
	}
	return 0;
}

static void add(struct lane *lane, int unit, enum call call, int phase, int pass)
{
	lane->steps[lane->num_steps++] = (struct step){unit, call, phase, pass};
	if (call == COMBINE) {
		lane->units[unit].passes = pass + 1;
	}
}

/* Both phases, in one call or in two as each rank likes it. */
static void add_both(struct run *r, struct lane *lane, enum call call)
{
	if (rng_chance(&r->rng, 50)) {
		add(lane, 1, call, MOEEP_PHASE_BOTH, 0);
	} else {
		add(lane, 1, call, MOEEP_PHASE_SEND, 0);
		add(lane, 1, call, MOEEP_PHASE_RECV, 0);
	}
}

/* Two in flight: a third needs the credit of the first. */
static void add_pair(struct lane *lane, enum call call, int pass)
{
	for (int i = 0; i < 4; i++) {
		add(lane, 1 + i % 2, call, i < 2 ? MOEEP_PHASE_SEND : MOEEP_PHASE_RECV, pass);
	}
}

static void add_high(struct lane *lane, int passes)
{
	add(lane, 0, DISPATCH, 0, 0);
	for (int pass = 0; pass < passes; pass++) {
		add(lane, 0, COMBINE, 0, pass);
	}
}

/*
 * The round's calls, in an order that is the same on all ranks. A combine waits for what the next
 * dispatch would wait for, and the other way round: some rounds have one kind only, or one twice.
 */
static void choose_steps(struct run *r, struct lane *lane, int index)
{
	uint64_t hash = util_hash(r->s->seed, (uint64_t)r->round, 1000 + (uint64_t)index);

	lane->num_steps = 0;
	for (int i = 0; i < UNITS; i++) {
		lane->units[i].passes = 0;
	}
	switch (hash % 6) {
	case 0:
		add_high(lane, 1);
		add_both(r, lane, DISPATCH);
		add_both(r, lane, COMBINE);
		break;
	case 1:
		/* Work between the phases. */
		add(lane, 1, DISPATCH, MOEEP_PHASE_SEND, 0);
		add(lane, 0, DISPATCH, 0, 0);
		add(lane, 1, DISPATCH, MOEEP_PHASE_RECV, 0);
		add(lane, 1, COMBINE, MOEEP_PHASE_SEND, 0);
		add(lane, 0, COMBINE, 0, 0);
		add(lane, 1, COMBINE, MOEEP_PHASE_RECV, 0);
		break;
	case 2:
		add_pair(lane, DISPATCH, 0);
		add_pair(lane, COMBINE, 0);
		add_high(lane, 1);
		break;
	case 3:
		add_pair(lane, DISPATCH, 0);
		add_pair(lane, COMBINE, 0);
		add_pair(lane, COMBINE, 1);
		break;
	case 4:
		add_pair(lane, DISPATCH, 0);
		break;
	default:
		add_high(lane, (int)(hash >> 32) % (STRESS_PASSES + 1));
	}
}

static bool has_unit(const struct lane *lane, int unit)
{
	for (int i = 0; i < lane->num_steps; i++) {
		if (lane->steps[i].unit == unit) {
			return true;
		}
	}
	return false;
}

/* Where the rows of a unit arrive. */
static uint16_t *rows_of(const struct lane *lane, const struct unit *u, bool host)
{
	if (u->direct) {
		return host ? (uint16_t *)(void *)lane->block.host : lane->block.memory;
	}
	return u->recv;
}

/* What will be written, and the row behind it. */
static int poison(struct run *r, struct lane *lane, struct unit *u)
{
	const struct stress_plan *plan = u->plan;
	uint16_t *rows = rows_of(lane, u, true);

	for (int i = 0; i < plan->num_rows; i++) {
		int64_t row = plan->rows[i].row;

		memset(rows + row * r->s->hidden, 0xff, row_bytes(r->s));
		u->src_token[row] = u->src_rank[row] = -7;
		u->recv_weights[row] = -7;
	}
	if (u->draw.kind != STRESS_LL) {
		memset(rows + (int64_t)plan->num_rows * r->s->hidden, 0xff, row_bytes(r->s));
	}
	for (int pass = 0; pass < u->passes; pass++) {
		size_t tokens = (size_t)u->draw.tokens[r->rank];

		memset(u->out[pass], 0xff, (tokens + 1) * row_bytes(r->s));
		memset(u->out_values[pass], 0xff,
		       tokens * (size_t)u->draw.topk * sizeof(*u->out_values[pass]));
	}
	for (int e = 0; e < STRESS_EXPERTS; e++) {
		u->count[e] = -7;
	}
	*u->num_recv = -7;
	return u->direct ? op_block_push(&lane->block) : 0;
}

/* Where x of a combine in place is, at the lane's answers. */
static size_t answers_at(const struct stress *s, int pass)
{
	return (size_t)pass * (size_t)most_rows(s) * row_bytes(s);
}

static int bring_answers(struct run *r, struct lane *lane, const struct unit *u)
{
	for (int pass = 0; pass < u->passes; pass++) {
		memcpy(lane->answers.host + answers_at(r->s, pass),
		       stress_answers(r->s, &u->draw, r->rank, pass),
		       (size_t)u->plan->num_rows * row_bytes(r->s));
	}
	return op_block_push(&lane->answers);
}

/* x is the caller's again when the combine has ended: it writes there at once, in stream order. */
static int spoil_answers(struct run *r, const struct lane *lane, const struct unit *u, int pass)
{
	CUdeviceptr at = (CUdeviceptr)(uintptr_t)lane->answers.memory + answers_at(r->s, pass);
	size_t bytes = (size_t)u->plan->num_rows * row_bytes(r->s);

	if (u->in_place && lane->own && bytes > 0) {
		TRY_CU(r->cu, cuMemsetD8Async(at, 0xff, bytes, lane->own));
	}
	return 0;
}

static int prepare(struct run *r, struct lane *lane, int index)
{
	choose_steps(r, lane, index);
	for (int i = 0; i < UNITS; i++) {
		struct unit *u = &lane->units[i];
		uint64_t hash = util_hash(r->s->seed, (uint64_t)r->round,
					  2000 + (uint64_t)(index * UNITS + i));
		enum stress_kind high = hash % 3 ? STRESS_FLAT : STRESS_EXPERT;

		if (!has_unit(lane, i)) {
			continue;
		}
		stress_draw_make(r->s, i == 0 ? high : STRESS_LL, index, r->round, i, &u->draw);
		stress_plan_make(r->s, &u->draw, r->rank, u->plan);
		/* Ranks choose for themselves. */
		u->direct = u->draw.kind == STRESS_FLAT && rng_chance(&r->rng, 30);
		u->in_place = u->draw.kind == STRESS_FLAT && rng_chance(&r->rng, 50);
		RANK_DO(poison(r, lane, u));
		if (u->in_place) {
			RANK_DO(bring_answers(r, lane, u));
		}
	}
	return 0;
}

static int ht_call(struct run *r, struct lane *lane, struct unit *u, const struct step *step,
		   const moeep_launch_t *launch)
{
	const struct stress *s = r->s;
	const struct stress_draw *d = &u->draw;
	bool expert = d->kind == STRESS_EXPERT;
	moeep_dispatch_args_t dispatch = {
		.size = sizeof(dispatch),
		.num_tokens = d->tokens[r->rank],
		.x = stress_x(s, d, r->rank, 0),
		.topk = d->topk,
		.topk_idx = s->choices[r->rank] + d->choice_at[r->rank],
		.topk_weights = expert ? s->weights[r->rank] + d->choice_at[r->rank] : NULL,
		.row_layout = expert ? MOEEP_ROWS_EXPERT_MAJOR : MOEEP_ROWS_FLAT,
		.capacity = expert ? room(s, 0) : most_rows(s),
		.recv_x = rows_of(lane, u, false),
		.recv_topk_weights = expert ? u->recv_weights : NULL,
		.recv_src_token = u->src_token,
		.recv_src_rank = u->src_rank,
		.num_recv = u->num_recv,
	};
	moeep_combine_args_t combine = {
		.size = sizeof(combine),
		.flags = expert ? MOEEP_COMBINE_WEIGHTED : 0,
		.x = u->in_place ? (char *)lane->answers.memory + answers_at(s, step->pass)
				 : (const void *)stress_answers(s, d, r->rank, step->pass),
		.topk_weights = d->values ? stress_values(s, d, r->rank) : NULL,
		.out = u->out[step->pass],
		.out_topk_weights = d->values ? u->out_values[step->pass] : NULL,
	};

	return step->call == DISPATCH ? moeep_dispatch(lane->buffer, u->handle, &dispatch, launch)
				      : moeep_combine(lane->buffer, u->handle, &combine, launch);
}

static int ll_call(struct run *r, struct lane *lane, struct unit *u, const struct step *step,
		   const moeep_launch_t *launch)
{
	const struct stress *s = r->s;
	const struct stress_draw *d = &u->draw;
	moeep_ll_dispatch_args_t dispatch = {
		.size = sizeof(dispatch),
		.phase = step->phase,
		.num_tokens = d->tokens[r->rank],
		.x = stress_x(s, d, r->rank, 0),
		.topk = d->topk,
		.topk_idx = s->choices[r->rank] + d->choice_at[r->rank],
		.topk_weights = s->weights[r->rank] + d->choice_at[r->rank],
		.capacity = stress_capacity(s),
		.recv_x = u->recv,
		.recv_count = u->count,
		.recv_src_token = u->src_token,
	};
	moeep_ll_combine_args_t combine = {
		.size = sizeof(combine),
		.phase = step->phase,
		.x = stress_answers(s, d, r->rank, step->pass),
		.out = u->out[step->pass],
	};

	return step->call == DISPATCH
		       ? moeep_ll_dispatch(lane->buffer, u->handle, &dispatch, launch)
		       : moeep_ll_combine(lane->buffer, u->handle, &combine, launch);
}

/* On the host, or on the stream. */
static int delay(struct run *r, const struct lane *lane)
{
	int64_t us = rng_range(&r->rng, 1, 200);

	if (rng_chance(&r->rng, 10)) {
		nap_us(us);
	}
	if (r->cu && lane->own && rng_chance(&r->rng, 5)) {
		TRY_CU(r->cu, cuLaunchHostFunc(lane->own, nap_on_stream, (void *)(intptr_t)us));
	}
	return 0;
}

static int start(struct run *r, struct lane *lane, int index)
{
	const struct step *step = &lane->steps[index];
	struct unit *u = &lane->units[step->unit];
	moeep_launch_t launch = {
		.size = sizeof(launch),
		.stream = lane->stream,
		.num_sms = r->cu ? (int32_t)rng_range(&r->rng, 2, r->most_sms) : 0,
		.status = &lane->status[index],
	};

	RANK_DO(delay(r, lane));
	lane->status[index] = UNSET;
	RANK_TRY(step->unit == 0 ? ht_call(r, lane, u, step, &launch)
				 : ll_call(r, lane, u, step, &launch));
	return step->call == COMBINE ? spoil_answers(r, lane, u, step->pass) : 0;
}

static int check_row(const struct run *r, const struct unit *u, const uint16_t *got,
		     const uint16_t *want, const char *what, int row)
{
	if (memcmp(got, want, row_bytes(r->s)) == 0) {
		return 0;
	}
	for (int h = 0; h < r->s->hidden; h++) {
		if (got[h] != want[h]) {
			rank_fail("round %d, %s %s, row %d: element %d is 0x%04x, not 0x%04x",
				  r->round,
				  u->draw.kind == STRESS_LL	? "LL"
				  : u->draw.kind == STRESS_FLAT ? "flat"
								: "expert-major",
				  what, row, h, got[h], want[h]);
			return -1;
		}
	}
	return -1;
}

static int check_dispatch(const struct run *r, struct lane *lane, struct unit *u)
{
	const struct stress_plan *plan = u->plan;
	const uint16_t *rows = rows_of(lane, u, true);
	bool low = u->draw.kind == STRESS_LL;

	if (!low && !rank_check(*u->num_recv == plan->num_rows, "round %d: %lld rows, not %d",
				r->round, (long long)*u->num_recv, plan->num_rows)) {
		return -1;
	}
	for (int e = 0; low && e < STRESS_EXPERTS; e++) {
		if (!rank_check(u->count[e] == plan->expert_rows[e],
				"round %d: expert %d has %d rows, not %d", r->round, e, u->count[e],
				plan->expert_rows[e])) {
			return -1;
		}
	}
	for (int i = 0; i < plan->num_rows; i++) {
		const struct stress_row *want = &plan->rows[i];
		bool expert = u->draw.kind == STRESS_EXPERT;

		if (!rank_check(u->src_token[want->row] == want->token &&
					(low || u->src_rank[want->row] == want->src),
				"round %d: row %d is token %d of rank %d, not %d of %d", r->round,
				want->row, u->src_token[want->row], u->src_rank[want->row],
				want->token, want->src) ||
		    !rank_check(!expert || u->recv_weights[want->row] == want->weight,
				"round %d: the weight of row %d is %g, not %g", r->round, want->row,
				(double)u->recv_weights[want->row], (double)want->weight)) {
			return -1;
		}
		RANK_DO(check_row(r, u, rows + (int64_t)want->row * r->s->hidden,
				  stress_x(r->s, &u->draw, want->src, want->token), "dispatch",
				  want->row));
	}
	if (!low && !rank_check(rows[(int64_t)plan->num_rows * r->s->hidden] == 0xffff,
				"round %d: the row behind the last was written", r->round)) {
		return -1;
	}
	return 0;
}

static int check_combine(const struct run *r, const struct unit *u, int pass)
{
	const struct stress_draw *d = &u->draw;
	int tokens = d->tokens[r->rank], at = 0;
	uint16_t want[STRESS_HIDDEN];
	float values[STRESS_TOPK];

	for (int token = 0; token < tokens; token++) {
		stress_sum(r->s, d, u->plan, token, pass, &at, want, values);
		RANK_DO(check_row(r, u, u->out[pass] + (int64_t)token * r->s->hidden, want,
				  "combine", token));
		for (int k = 0; d->values && k < d->topk; k++) {
			float got = u->out_values[pass][token * d->topk + k];

			if (!rank_check(got == values[k],
					"round %d: the value of choice %d of token %d is %g, not "
					"%g",
					r->round, k, token, (double)got, (double)values[k])) {
				return -1;
			}
		}
	}
	if (!rank_check(u->out[pass][(int64_t)tokens * r->s->hidden] == 0xffff,
			"round %d: the row behind the last sum was written", r->round)) {
		return -1;
	}
	return 0;
}

static int check(struct run *r, struct lane *lane)
{
	for (int i = 0; i < lane->num_steps; i++) {
		if (!rank_check(lane->status[i] == MOEEP_OK,
				"round %d: call %d of unit %d: %d (%s)", r->round, i,
				lane->steps[i].unit, lane->status[i],
				moeep_strerror(lane->status[i]))) {
			return -1;
		}
	}
	for (int i = 0; i < UNITS; i++) {
		struct unit *u = &lane->units[i];

		if (has_unit(lane, i)) {
			if (u->direct) {
				RANK_DO(op_block_pull(&lane->block));
			}
			RANK_DO(check_dispatch(r, lane, u));
			for (int pass = 0; pass < u->passes; pass++) {
				RANK_DO(check_combine(r, u, pass));
			}
		}
	}
	return 0;
}

static int play_round(struct run *r)
{
	for (int i = 0; i < r->num_lanes; i++) {
		RANK_DO(prepare(r, &r->lanes[i], i));
	}
	if (r->load.stream && rng_chance(&r->rng, 50)) {
		RANK_TRY(stress_load_push(&r->load, (uint64_t)rng_range(&r->rng, 5, 300) * 1000));
	}
	for (int step = 0; step < CALLS; step++) {
		for (int i = 0; i < r->num_lanes; i++) {
			if (step < r->lanes[i].num_steps) {
				RANK_DO(start(r, &r->lanes[i], step));
				r->operations += r->lanes[i].steps[step].phase != MOEEP_PHASE_SEND;
			}
		}
	}
	for (int i = 0; i < r->num_lanes; i++) {
		struct lane *lane = &r->lanes[i];

		RANK_TRY(moeep_event_record(lane->event, lane->buffer, lane->stream));
		RANK_TRY(moeep_event_wait(lane->event, MOEEP_TIMEOUT_NONE));
	}
	for (int i = 0; i < r->num_lanes; i++) {
		RANK_DO(check(r, &r->lanes[i]));
	}
	return 0;
}

/* So many that all calls of both lanes are resident, also beside the load. */
static int count_sms(struct run *r)
{
	CUdevice device;
	int sms = 0;

	RANK_TRY(moeep_cu_load(&r->cu));
	TRY_CU(r->cu, cuCtxGetDevice(&device));
	TRY_CU(r->cu, cuDeviceGetAttribute(&sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device));
	r->most_sms = sms * 3 / 4 / (r->num_lanes * r->s->num_ranks);
	r->most_sms = r->most_sms < 2 ? 2 : r->most_sms < MOST_SMS ? r->most_sms : MOST_SMS;
	return 0;
}

static int all_rounds(struct run *r)
{
	for (r->round = 0; r->round < r->s->rounds; r->round++) {
		RANK_DO(play_round(r));
	}
	if (r->rank == 0) {
		tap_diag("%ld operations of each rank", r->operations);
	}
	return 0;
}

int stress_body(int rank, moeep_comm_t *comm, void *stress)
{
	const struct stress *s = stress;
	struct run *r = util_alloc(sizeof(*r));

	r->s = s;
	r->rank = rank;
	r->num_lanes = ranks_comm(1) ? STRESS_LANES : 1;
	r->rng = (struct rng){util_hash(s->seed, (uint64_t)rank, 77)};
	if (device_mode() != DEVICE_NONE) {
		RANK_DO(count_sms(r));
	}
	for (int i = 0; i < r->num_lanes; i++) {
		RANK_DO(lane_open(r, &r->lanes[i], i));
	}
	/* One load a device is enough. */
	if (s->load && r->cu && rank == 0) {
		RANK_TRY(stress_load_open(&r->load, r->cu));
	}
	/* No rank allocates from here on. */
	RANK_TRY(moeep_comm_barrier(comm));
	RANK_DO(all_rounds(r));
	RANK_TRY(moeep_comm_barrier(comm));
	if (r->load.cu) {
		RANK_TRY(stress_load_close(&r->load));
	}
	for (int i = 0; i < r->num_lanes; i++) {
		RANK_DO(lane_close(r, &r->lanes[i]));
	}
	util_free(r);
	return 0;
}
