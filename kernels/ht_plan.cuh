/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_plan.cuh - the plan of an HT operation, which every block makes for itself when all entries are
 * there, and the begin of the operation around it.
 */
#ifndef MOEEP_KERNELS_HT_PLAN_CUH
#define MOEEP_KERNELS_HT_PLAN_CUH

#include "ht_finish.cuh"

/* What the state of the handle's routing was; read before entries are there. */
struct known {
	bool valid;
	bool overflow;
	bool weighted;
};

/* What a rank has of a field in which calls differ, for a message. */
DEV int64_t field_of(const struct route &r, const struct moeep_dev_entry *e, int field)
{
	uint32_t agreed = r.combine ? ~MOEEP_DEV_GIVEN_X : ~0u;
	const int64_t value[FIELDS] = {e->op,	      e->flags,	      (int64_t)e->route,
				       e->dtype,      e->topk,	      e->row_layout,
				       e->scale_count, e->scale_dtype, e->given & agreed};

	return value[field];
}

/*
 * By one thread, if not all is as it should be: why. Apart, since it hardly ever runs; and r by value, as
 * it would lie in memory otherwise, from which all that is known of the operation would be fetched.
 */
__device__ __noinline__ struct moeep_dev_result
find_fault(struct route r, const struct moeep_dev_entry *giver, const struct verdict &verdict,
	   struct known known)
{
	int rank = verdict.differs;

	if (verdict.no_x < INT32_MAX) {
		return {MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_NO_X, verdict.no_x,
			head_of(r, verdict.no_x)->num_tokens, -1};
	}
	if (rank < INT32_MAX) {
		int field = 0;

		/* Of an entry that is being written nothing holds for long. */
#pragma unroll 1
		while (field < FIELDS - 1 &&
		       differs(r, head_of(r, 0), giver, head_of(r, rank), field) == 0) {
			field++;
		}
		return {MOEEP_ERR_MISMATCH, MOEEP_DEV_DETAIL_FIELD, field, rank,
			field_of(r, head_of(r, rank), field)};
	}
	if ((r.combine || r.cached) && !known.valid) {
		return {MOEEP_ERR_STATE, MOEEP_DEV_DETAIL_NO_ROUTE, 0, 0, 0};
	}
	if (r.combine && known.overflow) {
		return {MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_OVERFLOW, 0, 0, 0};
	}
	if (r.combine && r.p.weighted && !known.weighted) {
		return {MOEEP_ERR_INVALID, MOEEP_DEV_DETAIL_WEIGHTS, 0, 0, 0};
	}
	if (verdict.handle < INT32_MAX) {
		return {MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_HANDLE, verdict.handle,
			r.ends.total[verdict.handle], head_of(r, verdict.handle)->max_recv};
	}
	return {MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0};
}

/* By one thread, what the verdict on all ranks comes to. */
DEV void make_plan(const struct route &r, const struct moeep_dev_entry *giver,
		   const struct verdict &verdict, const struct known &known)
{
	struct moeep_dev_plan *plan = r.plan;
	bool fault = verdict.no_x < INT32_MAX || verdict.differs < INT32_MAX ||
		     verdict.handle < INT32_MAX || ((r.combine || r.cached) && !known.valid) ||
		     (r.combine && (known.overflow || (r.p.weighted && !known.weighted)));

	plan->epoch = r.epoch;
	plan->topk = r.p.entry.topk;
	plan->given = giver->given;
	plan->scale_count = giver->scale_count;
	plan->scale_dtype = giver->scale_dtype;
	plan->result = {MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0};
	if (fault) {
		plan->result = find_fault(r, giver, verdict, known);
	}
	plan->code = plan->result.code;
	plan->move = plan->code == MOEEP_OK &&
		     (r.combine || !(r.p.entry.flags & MOEEP_DISPATCH_COUNTS_ONLY));
	if (plan->move && verdict.rows < INT32_MAX) {
		/* The operation completes, without the rows that do not fit. */
		plan->result = {MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_ROWS, verdict.rows,
				r.ends.needed[verdict.rows], head_of(r, verdict.rows)->capacity};
	}
}

/* A peer's memory is not what it should be, and others wait already: that is the end of the comm. */
DEV bool raise_lost(const struct route &r, const struct verdict &verdict)
{
	int rank = verdict.beyond;

	if (verdict.lost < INT32_MAX) {
		raise(r.c, MOEEP_ERR_STATE, verdict.lost, 6, r.epoch, 0, 0);
	} else if (rank < INT32_MAX) {
		raise(r.c, MOEEP_ERR_INVALID, rank, 7, r.epoch,
		      (uint64_t)(r.route.send_base[rank] + r.route.send_count[rank]),
		      (uint64_t)head_of(r, rank)->capacity);
	}
	return verdict.lost == INT32_MAX && rank == INT32_MAX;
}

/*
 * The plan from what is in the entries, into shared memory only. False: the comm has failed, if the entries
 * were there.
 */
DEV bool conclude(const struct route &r, const struct group &g, const struct reach &reach,
		  const struct known &known, bool certain)
{
	__shared__ struct verdict verdict;
	const struct moeep_dev_entry *giver;
	bool ok = true;

	if (g.thread == 0) {
		verdict = {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX};
	}
	read_entries(r, g);
	group_sync(g);
	if (expands(r) && !r.cached) {
		need_choices(r, g);
		group_sync(g);
	}
	giver = giver_of_all(r);
	judge_ranks(r, g, giver, reach, &verdict);
	group_sync(g);
	if (g.thread == 0) {
		make_plan(r, giver, verdict, known);
		ok = !certain || !r.plan->move || raise_lost(r, verdict);
	}
	return group_all(g, ok);
}

/*
 * The same once all entries are there. Before, it is done with what is there of an earlier operation, by
 * the same instructions, so that these and what else must be fetched are at hand when it counts. False:
 * the comm has failed.
 */
DEV bool conclude_entries(const struct route &r, const struct group &g)
{
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_route_state *state = r.route.state;
	struct reach reach = reach_of(r, g.thread, r.p.entry.place.slot);
	struct known known = {state->valid != 0, state->overflow != 0, state->weighted != 0};
	bool ok = true;

#pragma unroll 1
	for (int pass = 0; pass < 2 && ok; pass++) {
		if (pass > 0) {
			/* Pairs with the publication of each rank's entry. */
			ok = group_wait_all(c, g, c.window.ht_entry_flag, flag_word(r.epoch, 0),
					    MOEEP_DEV_CALL);
		}
		ok = ok && conclude(r, g, reach, known, pass > 0);
	}
	return ok;
}

/*
 * The routers' part: this rank's entry; of a dispatch positions, final when all entries are there. False: the
 * comm has failed.
 */
DEV bool route_tokens(const struct route &r, const struct group &g)
{
	const struct moeep_dev_context &c = r.c;

	if (r.combine && blockIdx.x > 0) {
		return true;
	}
	enter(r, g);
	if (r.combine) {
		return true;
	}
	if (!group_wait_all(c, g, c.window.ht_entry_flag, flag_word(r.epoch, 0), MOEEP_DEV_CALL)) {
		return false;
	}
	if (!r.cached) {
		final_positions(r, g);
	}
	group_sync(g);
	if (g.thread == 0 && arrive(&c.state->ticket[MOEEP_DEV_TICKET_PLANNED], gridDim.x)) {
		/* Pairs with the wait below. */
		store_release_device(&c.state->planned, r.epoch);
	}
	return true;
}

/*
 * The begin of an operation, by all blocks: the plan is in *plan, and what it comes to for each rank in
 * `ends`; of a dispatch all blocks have met behind their positions. combine: a constant, so that each kernel
 * has only what it needs. global: the plan for a kernel behind this one. False: the comm has failed.
 */
DEV bool route_begin(const struct moeep_dev_context &c, const struct moeep_dev_route &route,
		     const struct moeep_ht_route_args &p, bool combine, struct moeep_dev_plan *plan,
		     struct moeep_dev_plan *global, const struct ends &ends)
{
	__shared__ __align__(16) struct moeep_dev_entry heads[HEADS];
	struct route r = {c, route, p, plan, ends, heads, 0, combine, false, 0, 0};
	bool ok;

	r.epoch = (c.state->ht_epoch + 1) & EPOCH_MASK;
	make_route(&r);
	if (WARP < MOVERS) {
		ok = conclude_entries(r, concluders_here());
	} else {
		ok = route_tokens(r, routers_here());
	}
	if (ok && !r.combine && threadIdx.x == 0) {
		ok = wait_device(c, &c.state->planned, r.epoch);
	}
	ok = __syncthreads_and(ok) != 0;
	if (ok && blockIdx.x == 0 && WARP >= MOVERS) {
		finish_plan(r, routers_here(), global);
	}
	return ok;
}

#endif
