/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_dispatch.cu - an HT dispatch: its routing, and its rows on their way.
 *
 * In a block that sends, a few warps move rows: each reads the rows of its channels' tokens once and
 * stores them to every rank they go to, at their final place or in the rank's window. The other warps
 * send what goes with the rows, and write out what has come with others'. Blocks that do not send
 * copy rows from this rank's window to its output while later ones still arrive.
 */
#include "ht_move_copy.cuh"
#include "ht_move_records.cuh"
#include "ht_move_send.cuh"
#include "ht_plan.cuh"

/*
 * By all blocks when the plan is made; stages: for each mover, then their barriers. False: the comm has
 * failed.
 */
DEV bool move_rows(const struct moeep_ht_dispatch_params &p, char *stages)
{
	__shared__ struct landed landed;
	__shared__ struct claims claims;
	const struct moeep_dev_context &c = p.c;
	struct part part = part_of(p.senders);
	bool ok = true;

	landed_init(&landed);
	if (WARP >= FIRST_RECORDER) {
		ok = records(p);
	} else if (WARP == REPORTER) {
#if HAVE_BULK
		if (p.bulk && part.sends && c.num_ranks <= 32) {
			report_landed(p, &landed, &claims);
		}
#endif
	} else {
		struct ring r = {0, 0, 0, 0};

#if HAVE_BULK
		if (p.bulk) {
			r = ring_of(stages, MOVERS, (uint32_t)p.piece, p.stages);
		}
#endif
		if (part.sends) {
			send_rows(p, r, &landed, &claims);
		} else {
			ok = copy_channels(p, part.index * MOVERS + WARP,
					   ((int)gridDim.x - p.senders) * MOVERS, r);
		}
	}
	if (ok && p.senders == (int)gridDim.x) {
		ok = wait_all_rows(p);
	}
	return ok;
}

/* shared: of the routing, then of the movers. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_MOVE_THREADS, 1)
	moeep_kernel_ht_dispatch(const __grid_constant__ struct moeep_ht_dispatch_params p)
{
	DYNAMIC_SHARED(char, shared, 128);
	const struct moeep_dev_context &c = p.c;
	bool ok;

	if (!kernel_begin(c)) {
		return;
	}
	ok = route_begin(c, p.route, p.plan, p.ends, p.begin, (int *)shared);
	if (ok && p.plan->move) {
		ok = move_rows(p, shared);
	}
	if (end_blocks(c, ok) && threadIdx.x == 0) {
		end_operation(c, *p.plan);
		if (p.last) {
			finish_plan_result(c, *p.plan);
		}
	}
}
