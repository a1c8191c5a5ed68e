/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_finish.cuh - what block 0 writes when an HT operation has begun and rows move already: the
 * routing that the handle keeps, and counts for the caller.
 */
#ifndef MOEEP_KERNELS_HT_FINISH_CUH
#define MOEEP_KERNELS_HT_FINISH_CUH

#include "ht_place.cuh"

/* Exclusive sums over the routers' threads; *total gets the sum. */
DEV int64_t group_scan(const struct group &g, int64_t value, int64_t *total)
{
	__shared__ int64_t sums[ROUTER_WARPS];
	int64_t inclusive = value;
	int64_t before = 0;
	int64_t all = 0;

	for (int d = 1; d < 32; d *= 2) {
		int64_t other = __shfl_up_sync(FULL, inclusive, d);

		inclusive += LANE >= d ? other : 0;
	}
	group_sync(g);
	if (LANE == 31) {
		sums[g.thread / 32] = inclusive;
	}
	group_sync(g);
	for (int w = 0; w < ROUTER_WARPS; w++) {
		before += w < g.thread / 32 ? sums[w] : 0;
		all += sums[w];
	}
	*total = all;
	return before + inclusive - value;
}

/* What comes from each rank and goes to it. */
DEV void keep_ranks(const struct route &r, const struct group &g)
{
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_route &route = r.route;

	for (int rank = g.thread; rank < c.num_ranks; rank += g.threads) {
		route.needed[rank] = r.ends.needed[rank];
		route.send_count[rank] = counts_of(c, r.epoch, c.rank)[rank];
		route.send_base[rank] = r.ends.base[rank];
		route.recv_count[rank] = r.ends.count[rank];
		route.recv_base[rank] = r.ends.first[rank];
	}
	if (g.thread == 0) {
		int64_t total = r.ends.first[c.num_ranks];

		route.recv_base[c.num_ranks] = (int32_t)total;
		route.state->num_records = total;
		route.state->num_rows = total;
		route.state->epoch = r.epoch;
	}
}

/* Choices of this rank's experts, and where their groups begin. */
DEV void keep_experts(const struct route &r, const struct group &g)
{
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_route &route = r.route;
	int64_t alignment = r.p.entry.alignment;
	int64_t total = 0;

	for (int begin = 0; begin < c.local_experts; begin += g.threads) {
		int e = begin + g.thread;
		int64_t count = 0;
		int64_t all;
		int64_t before;

		for (int from = 0; e < c.local_experts && from < c.num_ranks; from++) {
			count += counts_of(c, r.epoch, from)[c.num_ranks + c.first_expert + e];
		}
		before = group_scan(g, align_up(count, alignment), &all);
		if (e < c.local_experts) {
			route.expert_count[e] = (int32_t)count;
			route.expert_offset[e] = (int32_t)(total + before);
		}
		total += all;
	}
	if (g.thread == 0) {
		route.expert_offset[c.local_experts] = (int32_t)total;
		if (expands(r)) {
			route.state->num_rows = total;
		}
	}
}

/* What the caller asked for, and what moeep_handle_query() reads. */
DEV void write_counts(const struct route &r, const struct group &g)
{
	const struct moeep_ht_route_args &p = r.p;
	const struct moeep_dev_context &c = r.c;
	const struct moeep_dev_route &route = r.route;

	for (int rank = g.thread; !r.cached && rank < c.num_ranks; rank += g.threads) {
		route.host_send[rank] = route.send_count[rank];
		route.host_recv[rank] = route.recv_count[rank];
	}
	for (int e = g.thread; e <= c.local_experts; e += g.threads) {
		int32_t offset = route.expert_offset[e];

		if (!r.cached) {
			route.host_offsets[e] = offset;
		}
		if (p.recv_expert_offsets) {
			p.recv_expert_offsets[e] = offset;
		}
		if (e == c.local_experts) {
			break;
		}
		if (!r.cached) {
			route.host_experts[e] = route.expert_count[e];
		}
		if (p.recv_per_expert) {
			p.recv_per_expert[e] = route.expert_count[e];
		}
		if (p.recv_per_expert_padded) {
			p.recv_per_expert_padded[e] = route.expert_offset[e + 1] - offset;
		}
	}
	if (g.thread == 0) {
		if (p.num_recv) {
			*p.num_recv = route.state->num_rows;
		}
		route.host_rows[0] = route.state->num_rows;
		route.host_rows[1] = (int64_t)(r.cached ? route.state->epoch : r.epoch);
	}
}

/* What the state of the handle's routing is from now on. */
DEV void keep_state(const struct route &r)
{
	const struct moeep_dev_plan *plan = r.plan;
	struct moeep_dev_route_state *state = r.route.state;

	if (plan->code == MOEEP_OK || plan->code == MOEEP_ERR_CAPACITY) {
		state->weighted = (plan->given & MOEEP_DEV_GIVEN_WEIGHTS) != 0;
		state->valid = r.cached || plan->code == MOEEP_OK;
	}
	if (plan->move) {
		state->overflow = plan->result.code != MOEEP_OK;
	}
}

/* By some threads of block 0. global: the plan for kernels behind this one. */
DEV void finish_plan(const struct route &r, const struct group &g, struct moeep_dev_plan *global)
{
	const struct moeep_dev_plan *plan = r.plan;
	/* A dispatch whose tokens do not fit a handle has its counts. */
	bool counts = !r.combine && (plan->code == MOEEP_OK || plan->code == MOEEP_ERR_CAPACITY);

	for (int i = g.thread; !r.combine && i < (int)(sizeof(*plan) / 16); i += g.threads) {
		((uint4 *)global)[i] = ((const uint4 *)plan)[i];
	}
	if (counts && g.thread == 0) {
		keep_state(r);
	}
	if (counts && !r.cached) {
		keep_ranks(r, g);
		keep_experts(r, g);
	}
	if (counts) {
		group_sync(g);
		write_counts(r, g);
	}
	if (plan->move && r.combine) {
		count_traffic(r.c, g, MOEEP_DEV_COMBINE_ROWS, r.route.send_count, r.p.row_bytes);
	} else if (plan->move) {
		uint64_t scales = (uint64_t)plan->scale_count *
				  (plan->scale_dtype == MOEEP_UE8M0 ? 1 : 4);

		count_traffic(r.c, g, MOEEP_DEV_DISPATCH_ROWS, r.route.recv_count,
			      r.p.row_bytes +
				      (plan->given & MOEEP_DEV_GIVEN_SCALES ? (scales + 15) / 16 * 16 : 0));
	}
}

#endif
