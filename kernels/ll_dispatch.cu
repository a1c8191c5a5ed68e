/* SPDX-License-Identifier: MIT */
/*
 * kernels/ll_dispatch.cu - low-latency dispatch: SEND, RECV or both.
 */
#include "ll_count.cuh"
#include "ll_send.cuh"

/* Blocks that will receive have choices and this rank's own rows to send until the others' come. */
DEV void send_phase(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int *shared)
{
	const struct moeep_dev_context &c = p.c;
	struct crew senders = send_crew(p.senders);
	struct crew others = recv_crew(p.senders);

	if (others.index >= 0) {
		send_choices(p, epoch, choice_task(p, others),
			     p.hist ? p.hist : shared + 2 * c.num_ranks, shared);
	}
	send_rows(p, epoch, senders.index >= 0 ? senders : others,
		  p.senders == 0 ? ALL : senders.index >= 0 ? OTHERS : OWN);
}

/* The last block of those that receive counts. False, in all threads of the block: the comm has failed. */
DEV bool recv_phase(const struct moeep_ll_dispatch_params &p, uint64_t epoch, int *shared)
{
	const struct moeep_dev_context &c = p.c;
	struct crew crew = recv_crew(p.senders);
	struct told told = {shared, (uint32_t *)shared + c.num_ranks,
			    p.hist ? NULL : shared + 2 * c.num_ranks};
	bool ok = true;

	if (crew.index < 0) {
		return true;
	}
	__syncthreads();
	if (!take_headers(p, epoch, told)) {
		return false;
	}
	if (crew.index == crew.count - 1) {
		ok = __syncthreads_and(recv_counts(p, epoch, told));
	}
	if (ok && (crew.count == 1 || crew.index < crew.count - 1)) {
		crew.count -= crew.count > 1;
		ok = recv_rows(p, epoch, told, crew);
	}
	return __syncthreads_and(ok) != 0;
}

/* By the last block: all is sent, or has been received. */
DEV void finish(const struct moeep_ll_dispatch_params &p, uint64_t sent, uint64_t received)
{
	const struct moeep_dev_context &c = p.c;

	if (p.phases & PHASE_RECV) {
		/* Pairs with the wait for credit in ll_begin() of each rank. */
		block_publish(c, c.window.ll_received, flag_word(received, 0));
	}
	if (threadIdx.x != 0) {
		return;
	}
	if (p.phases & PHASE_SEND) {
		p.route.state->ll_epoch = sent;
		c.state->ll_epoch = sent;
	}
	if (!(p.phases & PHASE_RECV)) {
		finish_result(c, MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0);
		return;
	}
	c.state->ll_recv = received;
	/* Pairs with the fence in recv_counts(). */
	__threadfence();
	if (p.route.state->num_records > p.max_recv) {
		finish_result(c, MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_RECORDS,
			      p.route.state->num_records, p.max_recv, 0);
	} else if (p.route.state->overflow) {
		finish_result(c, MOEEP_ERR_CAPACITY, MOEEP_DEV_DETAIL_EXPERT,
			      p.route.state->ll_most, p.capacity, 0);
	} else {
		finish_result(c, MOEEP_OK, MOEEP_DEV_DETAIL_NONE, 0, 0, 0);
	}
}

/*
 * What moeep_handle_query() tells; by the blocks that have counted, when all is published: a release would
 * wait for these writes to reach the host.
 */
DEV void tell_host(const struct moeep_ll_dispatch_params &p, uint64_t epoch)
{
	const struct moeep_dev_context &c = p.c;
	const struct moeep_dev_route &route = p.route;
	bool sent = p.phases & PHASE_SEND && choice_task(p, recv_crew(p.senders)).tokens;
	bool received = p.phases & PHASE_RECV && blockIdx.x == gridDim.x - 1;

	for (int rank = (int)threadIdx.x; rank < c.num_ranks; rank += (int)blockDim.x) {
		if (sent) {
			route.host_send[rank] = route.send_count[rank];
		}
		if (received) {
			route.host_recv[rank] = route.recv_count[rank];
		}
	}
	for (int e = (int)threadIdx.x; received && e < c.local_experts; e += (int)blockDim.x) {
		route.host_experts[e] = route.expert_count[e];
	}
	if (threadIdx.x == 0 && received) {
		route.host_rows[0] = route.state->num_rows;
		route.host_rows[1] = (int64_t)epoch;
	}
}

extern "C" __global__ void __launch_bounds__(MOEEP_DEV_LL_THREADS, 1)
	moeep_kernel_ll_dispatch(const __grid_constant__ struct moeep_ll_dispatch_params p)
{
	DYNAMIC_SHARED(int, shared, 4);
	launch_wait();
	const struct moeep_dev_context &c = p.c;
	/* On their way while the kernel begins; without `shared` there is no state. */
	uint64_t sent = c.shared ? c.state->ll_epoch : 0;
	uint64_t received = c.shared ? c.state->ll_recv : 0;
	uint64_t send_epoch = (sent + 1) & EPOCH_MASK;
	uint64_t recv_epoch = (received + 1) & EPOCH_MASK;
	bool ok = true;

	if (!ll_begin(c, p.phases & PHASE_SEND, c.window.ll_received, send_epoch)) {
		return;
	}
	if (p.phases & PHASE_SEND) {
		send_phase(p, send_epoch, shared);
	}
	if (p.phases & PHASE_RECV) {
		ok = recv_phase(p, recv_epoch, shared);
	}
	if (ok && last_block(&c.state->ticket[MOEEP_DEV_TICKET_LL], gridDim.x)) {
		finish(p, send_epoch, recv_epoch);
	}
	if (ok) {
		tell_host(p, recv_epoch);
	}
	if (!ok && threadIdx.x == 0) {
		put_dead(c);
	}
}
