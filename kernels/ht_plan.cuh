/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_plan.cuh - the plan of an HT operation, which block 0 makes when all entries are there, while
 * the others wait for it; and what it writes for the caller when they do not.
 */
#ifndef MOEEP_KERNELS_HT_PLAN_CUH
#define MOEEP_KERNELS_HT_PLAN_CUH

#include "ht_place.cuh"

/* The first thing in which a rank's call differs from another's, where it may not. */
DEV void check_agreement(const struct route &r, struct moeep_dev_plan *plan)
{
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_entry *a = head_of(r, 0);
	const struct moeep_dev_entry *giver = a;
	uint32_t agreed = r.combine ? ~MOEEP_DEV_GIVEN_X : ~0u;

	for (int rank = c.num_ranks - 1; rank >= 0; rank--) {
		if (head_of(r, rank)->num_tokens > 0) {
			giver = head_of(r, rank);
		}
	}
	plan->given = giver->given;
	plan->scale_count = giver->scale_count;
	plan->scale_dtype = giver->scale_dtype;
	plan->code = MOEEP_OK;
	plan->result = moeep_dev_result{MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0};
	for (int rank = 0; r.combine && rank < c.num_ranks; rank++) {
		const struct moeep_dev_entry *b = head_of(r, rank);

		if (b->num_tokens > 0 && !(b->given & MOEEP_DEV_GIVEN_X)) {
			plan->code = MOEEP_ERR_INVALID;
			plan->result = moeep_dev_result{MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_NO_X,
							rank, b->num_tokens, -1};
			return;
		}
	}
	for (int rank = 0; rank < c.num_ranks; rank++) {
		const struct moeep_dev_entry *b = head_of(r, rank);
		const struct moeep_dev_entry *g = b->num_tokens > 0 ? b : giver;
		const int64_t fields[][2] = {
			{a->op, b->op},
			{a->flags, b->flags},
			{(int64_t)a->route, (int64_t)b->route},
			{a->dtype, b->dtype},
			{a->topk, b->topk},
			{a->row_layout, b->row_layout},
			{giver->scale_count, g->scale_count},
			{giver->scale_dtype, g->scale_dtype},
			{giver->given & agreed, g->given & agreed},
		};

		for (int i = 0; i < (int)(sizeof(fields) / sizeof(fields[0])); i++) {
			if (fields[i][0] != fields[i][1]) {
				plan->code = MOEEP_ERR_MISMATCH;
				plan->result = moeep_dev_result{MOEEP_ERR_MISMATCH,
								MOEEP_DEV_DETAIL_FIELD, i, rank,
								fields[i][1]};
				return;
			}
		}
	}
}

/* By one thread: may the operation go on? */
DEV void begin_plan(const struct route &r)
{
	const struct moeep_dev_route &route = r.route;
	struct moeep_dev_plan *plan = r.plan;
	/* On their way while entries are compared. */
	bool valid = route.state->valid != 0;
	bool overflow = route.state->overflow != 0;
	bool weighted = route.state->weighted != 0;

	plan->epoch = r.epoch;
	plan->topk = r.p.entry.topk;
	plan->move = 0;
	check_agreement(r, plan);
	if (plan->code != MOEEP_OK) {
		return;
	}
	if ((r.combine || r.cached) && !valid) {
		plan->code = MOEEP_ERR_STATE;
		plan->result = moeep_dev_result{MOEEP_ERR_STATE, MOEEP_DEV_DETAIL_NO_ROUTE, 0, 0, 0};
	} else if (r.combine && overflow) {
		plan->code = MOEEP_ERR_CAPACITY;
		plan->result = moeep_dev_result{MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_OVERFLOW, 0, 0, 0};
	} else if (r.combine && r.p.weighted && !weighted) {
		plan->code = MOEEP_ERR_INVALID;
		plan->result = moeep_dev_result{MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_WEIGHTS, 0, 0, 0};
	} else if (r.combine) {
		plan->move = 1;
	} else {
		r.route.state->weighted = (plan->given & MOEEP_DEV_GIVEN_WEIGHTS) != 0;
	}
}

/*
 * All that the other blocks need. run: this rank's tokens for each rank. True if counts are known, for
 * finish_plan().
 */
DEV bool make_plan(const struct route &r, const int *run, const int *base)
{
	__shared__ struct shortage shortage;
	struct moeep_dev_plan *plan = r.plan;
	struct reach reach = reach_of(r, (int)threadIdx.x);
	bool counts;

	if (threadIdx.x == 0) {
		shortage = {INT32_MAX, INT32_MAX};
		begin_plan(r);
	}
	__syncthreads();
	counts = plan->code == MOEEP_OK && !r.combine;
	__syncthreads();
	if (counts && !r.cached) {
		place_flat(r, run, base, &shortage);
		if (r.p.entry.row_layout == MOEEP_ROWS_EXPERT_MAJOR) {
			place_experts(r);
		}
	}
	if (counts) {
		check_room(r, &shortage);
		__syncthreads();
	}
	if (plan->move && r.combine) {
		find_sources(r, reach);
	} else if (plan->move) {
		find_destinations(r, reach);
	}
	return counts;
}

/* The rest, while the others are at work. */
DEV void finish_plan(const struct route &r, bool counts)
{
	const struct moeep_dev_plan *plan = r.plan;

	if (counts && !r.cached && r.p.entry.row_layout != MOEEP_ROWS_EXPERT_MAJOR) {
		place_experts(r);
	}
	if (counts) {
		write_counts(r);
	}
	if (plan->move && r.combine) {
		count_traffic(r.c, MOEEP_DEV_COMBINE_ROWS, r.route.send_count, r.p.row_bytes);
	} else if (plan->move) {
		uint64_t scales = (uint64_t)plan->scale_count *
				  (plan->scale_dtype == MOEEP_UE8M0 ? 1 : 4);

		count_traffic(r.c, MOEEP_DEV_DISPATCH_ROWS, r.route.recv_count,
			      r.p.row_bytes +
				      (plan->given & MOEEP_DEV_GIVEN_SCALES ? (scales + 15) / 16 * 16 : 0));
	}
}

/*
 * All blocks meet: positions are final and the plan is made. made: this block took part in that, as one of
 * `makers`. False: the comm has failed.
 */
DEV bool meet(const struct route &r, bool made, uint32_t makers)
{
	struct moeep_dev_state *state = r.c.state;
	bool ok = true;

#if HAVE_BULK
	/* What the engine will write to shared memory comes after what was there. */
	fence_engine_shared();
#endif
	__syncthreads();
	if (threadIdx.x == 0) {
		if (made && arrive(&state->ticket[MOEEP_DEV_TICKET_PLANNED], makers)) {
			/* Pairs with the wait below. */
			store_release_device(&state->planned, r.epoch);
		}
		/* That a peer's memory is not what it should be, block 0 has found and raised. */
		ok = wait_device(r.c, &state->planned, r.epoch) &&
		     load_relaxed32(&r.c.comm->dead) == 0;
	}
	return __syncthreads_and(ok) != 0;
}

/*
 * The begin of an operation, by all blocks. shared: [R] running totals, [R] bases, then the counters of
 * experts if they fit. False: the comm has failed.
 */
DEV bool route_begin(const struct moeep_dev_context &c, const struct moeep_dev_route &route,
		     struct moeep_dev_plan *plan, const struct moeep_dev_ends &ends,
		     const struct moeep_ht_route_args &p, int *shared)
{
	__shared__ __align__(16) struct moeep_dev_entry heads[HEADS];
	__shared__ __align__(16) struct moeep_dev_plan draft;
	struct route r = {c, route, &draft, ends, p, 0, p.entry.op == MOEEP_OP_COMBINE, false, 1, 1, 0, 0,
			  NULL};
	int *run = shared;
	int *base = shared + c.num_ranks;
	bool makes; /* takes part in the plan */
	bool counts = false;
	bool ok = true;

	r.epoch = (c.state->ht_epoch + 1) & EPOCH_MASK;
	r.cached = !r.combine && (p.entry.flags & MOEEP_DISPATCH_CACHED) != 0;
	makes = !r.combine || blockIdx.x == 0;
	if (makes) {
		enter(&r, run, base + c.num_ranks);
		ok = block_wait_all(c, c.window.ht_entry_flag, flag_word(r.epoch, 0),
				    MOEEP_DEV_CALL, NULL);
	}
	if (ok && !r.combine && !r.cached) {
		sum_bases(r, base);
		final_positions(r, base);
	}
	if (ok && blockIdx.x == 0) {
		read_heads(&r, heads, run);
		counts = make_plan(r, run, base);
		if (threadIdx.x < sizeof(draft) / 16) {
			((uint4 *)plan)[threadIdx.x] = ((const uint4 *)&draft)[threadIdx.x];
		}
	}
	ok = ok && meet(r, makes, r.combine ? 1 : gridDim.x);
	if (ok && blockIdx.x == 0) {
		finish_plan(r, counts);
	}
	return ok;
}

#endif
