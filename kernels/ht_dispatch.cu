/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_dispatch.cu - an HT dispatch: its routing, and its rows on their way.
 *
 * In a block that sends, a few warps move rows: each reads the rows of its channels' tokens once and
 * stores them to every rank they go to, at their final place or in the rank's window. The other blocks send
 * what goes with the rows, write out what has come with others', and copy rows from this rank's window to its
 * output while later ones still arrive.
 */
#include "ht_move_copy.cuh"
#include "ht_move_records.cuh"
#include "ht_move_send.cuh"
#include "ht_plan.cuh"

/*
 * By all blocks when they have begun. m: a mover of a block that sends has loaded rows. False: the comm has
 * failed.
 */
DEV bool move_rows(const struct job &j, const struct ring &r, struct mover *m, struct landed *landed)
{
	const struct moeep_ht_dispatch_params &p = j.p;
	struct part part = part_of(p.senders);
	int receivers = (int)gridDim.x - p.senders;

	if (part.sends && WARP < MOVERS) {
		send_rows(j, r, m, landed);
	} else if (part.sends && WARP == REPORTER) {
		report_landed(j, landed);
	} else if (!part.sends && p.copies && WARP < MOVERS) {
		return copy_channels(j, part.index * MOVERS + WARP, receivers * MOVERS, r);
	} else if (!part.sends) {
		return records(j, part.index, receivers);
	}
	return true;
}

/* shared: of the begin, then for each mover stages, then their barriers. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_HT_THREADS, 1)
	moeep_kernel_ht_dispatch(const __grid_constant__ struct moeep_ht_dispatch_params p)
{
	DYNAMIC_SHARED(char, shared, 128);
	__shared__ __align__(16) struct moeep_dev_plan plan;
	__shared__ struct landed landed;
	const struct moeep_dev_context &c = p.c;
	const struct ends ends = ends_of(shared, c.num_ranks);
	struct ring r = {0, 0, 0, 0};
	struct mover m = mover_of(0);
	bool ok;

	clear_counters(c, ends);
	landed_init(&landed);
	if (!kernel_begin(c)) {
		return;
	}
	const struct job j = {p, plan, ends};
	const bool moves = WARP < MOVERS && part_of(p.senders).sends;

	if (moves) {
		m.claim = claim_ahead(&c.state->claimed_channels);
	}
#if HAVE_BULK
	if (p.bulk && WARP < MOVERS) {
		r = ring_of(shared + p.begin.shared, MOVERS, (uint32_t)p.piece, p.stages);
	}
	if (p.bulk && moves && !(p.call_flags & MOEEP_DISPATCH_COUNTS_ONLY)) {
		/* They are at hand when it is known where they go. */
		load_rows(j, &landed, r, &m);
	}
#endif
	ok = route_begin(c, p.route, p.begin, false, &plan, p.plan, ends);
	if (ok && plan.move) {
		ok = move_rows(j, r, &m, &landed);
	}
#if HAVE_BULK
	drop_rows(r, &m.storing, m.ahead);
#endif
	claim_end(m.claim);
	if (end_blocks(c, ok, true) && threadIdx.x == 0) {
		end_operation(c, plan);
		if (p.last) {
			finish_plan_result(c, plan);
		}
	}
}
