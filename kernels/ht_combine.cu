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

/* By the last block: the others need not wait for this rank; does this rank have to wait for them? */
DEV bool end_reading(const struct moeep_ht_combine_params &p)
{
	const struct moeep_dev_context &c = p.c;
	uint64_t word = flag_word(p.plan->epoch, 0);

	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		if (p.ends.channels[rank] == 0) {
			/* Pairs with the wait below. What was read comes before it. */
			store_release(flag_at(c, rank, c.window.ht_read_flag, c.rank), word);
		}
	}
	/* What x holds is the caller's again when the operation ends. */
	return !p.in_place ||
	       block_wait_all(c, c.window.ht_read_flag, word, MOEEP_DEV_READ, NULL);
}

/*
 * By all blocks when the plan is made; shared: the movers' stages and their barriers, or the table of a
 * block that sums. False: the comm has failed.
 */
DEV bool combine_rows(const struct moeep_ht_combine_params &p, char *shared)
{
	__shared__ struct landed landed;
	__shared__ struct claims claims;
	bool ok = true;

	if (p.senders == 0 && blockIdx.x == 0 && threadIdx.x == 0) {
		publish_records(p.c, p.plan->epoch);
	}
	landed_init(&landed);
	if (!part_of(p.senders).sends) {
		ok = sum_rows(p, shared);
	} else if (WARP >= FIRST_RECORDER) {
		send_records(p);
	} else if (!p.in_place) {
		send_rows(p, shared, &landed, &claims);
	}
	return ok;
}

/* shared: of the routing, then of the rows. */
extern "C" __global__ void __launch_bounds__(MOEEP_DEV_COMBINE_THREADS, 1)
	moeep_kernel_ht_combine(const __grid_constant__ struct moeep_ht_combine_params p)
{
	DYNAMIC_SHARED(char, shared, 128);
	const struct moeep_dev_context &c = p.c;
	bool ok;

	if (!kernel_begin(c)) {
		return;
	}
	ok = route_begin(c, p.route, p.plan, p.ends, p.begin, (int *)shared);
	if (ok && p.plan->move) {
		ok = combine_rows(p, shared);
	}
	if (!end_blocks(c, ok)) {
		return;
	}
	if (threadIdx.x == 0) {
		end_operation(c, *p.plan);
	}
	if (p.plan->move && !end_reading(p)) {
		if (threadIdx.x == 0) {
			put_dead(c);
		}
	} else if (threadIdx.x == 0) {
		finish_plan_result(c, *p.plan);
	}
}
