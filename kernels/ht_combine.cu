/* SPDX-License-Identifier: MIT */
/*
 * kernels/ht_combine.cu - an HT combine: rows on their way, and their sums.
 *
 * A rank whose rows are in symmetric memory sends nothing: the ranks whose tokens they are of read them
 * there. Otherwise its blocks that send push them to those ranks' windows. The other blocks sum this
 * rank's tokens, as their rows arrive.
 */
#include "ht_combine_send.cuh"
#include "ht_combine_sum.cuh"
#include "ht_plan.cuh"

/*
 * By all blocks: when all have read, the ranks whose x they have read are told. Nothing is released, as
 * what has been read is summed already: that would wait until the sums are written.
 */
DEV void tell_read(const struct job &j)
{
	const struct moeep_dev_context &c = j.p.c;

	__syncthreads();
	if (threadIdx.x != 0 || !count_in(&c.state->ticket[MOEEP_DEV_TICKET_READ], gridDim.x)) {
		return;
	}
	for (int rank = 0; rank < c.num_ranks; rank++) {
		if (j.ends.channels[rank] == 0) {
			/* Pairs with the wait at the end. */
			store_relaxed(flag_at(c, rank, c.window.ht_read_flag, c.rank),
				      flag_word(j.plan.epoch, 0));
		}
	}
}

/* By all blocks when they have begun; shared: as below, what the rows need. False: the comm has failed. */
DEV bool combine_rows(const struct job &j, char *shared, const struct work &first,
		      struct landed *landed)
{
	const struct moeep_ht_combine_params &p = j.p;
	bool ok = true;

	if (p.senders == 0 && blockIdx.x == 0 && threadIdx.x == 0) {
		publish_records(p.c, j.plan.epoch);
	}
	if (!part_of(p.senders).sends) {
		ok = sum_rows(j, shared, first);
	} else if (WARP >= FIRST_RECORDER) {
		send_records(j);
	} else if (!p.in_place) {
		send_rows(j, shared, landed);
	}
	return ok;
}

/* shared: of the begin, then the movers' stages and their barriers, or the table of a block that sums. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_HT_THREADS, 1)
	moeep_kernel_ht_combine(const __grid_constant__ struct moeep_ht_combine_params p)
{
	DYNAMIC_SHARED(char, shared, 128);
	__shared__ __align__(16) struct moeep_dev_plan plan;
	__shared__ struct landed landed;
	const struct moeep_dev_context &c = p.c;
	const struct ends ends = ends_of(shared, c.num_ranks);
	const struct job j = {p, plan, ends};
	bool ok;

	landed_init(&landed);
	if (!part_of(p.senders).sends) {
		clear_table(shared + p.begin.shared, c.num_ranks);
	}
	if (!kernel_begin(c)) {
		return;
	}
	const struct work first = first_work(j);

	ok = route_begin(c, p.route, p.begin, true, &plan, p.plan, ends);
	if (ok && plan.move) {
		ok = combine_rows(j, shared + p.begin.shared, first, &landed);
		tell_read(j);
	}
	if (!end_blocks(c, ok, p.alone || !p.in_place)) {
		return;
	}
	if (threadIdx.x == 0) {
		end_operation(c, plan);
	}
	/* What x holds is the caller's again when the operation ends. */
	if (plan.move && p.in_place &&
	    !block_wait_all(c, c.window.ht_read_flag, flag_word(plan.epoch, 0), MOEEP_DEV_READ)) {
		if (threadIdx.x == 0) {
			put_dead(c);
		}
	} else if (threadIdx.x == 0) {
		finish_plan_result(c, plan);
	}
}
