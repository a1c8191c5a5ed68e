/* SPDX-License-Identifier: MIT */
/* core/hear.c - what the control windows of several nodes tell each other. */
#include "config.h"

#include "core/comm.h"
#include "net/net.h"

/* A last message has this long to get out of a group that has failed. */
#define FAREWELL_MS 1000

void moeep_comm_publish(struct moeep_comm *comm, moeep_flag_t *flag, uint64_t word)
{
	moeep_comm_note(comm, flag, word);
	moeep_wait_wake_all(comm);
}

void moeep_comm_note(struct moeep_comm *comm, moeep_flag_t *flag, uint64_t word)
{
	uint64_t before = atomic_load_explicit(flag, memory_order_relaxed);
	uint64_t offset = (uint64_t)((char *)flag - (char *)moeep_comm_control(comm));

	moeep_flag_publish(flag, word);
	for (int node = 0; comm->net && node < comm->num_nodes; node++) {
		const struct moeep_gate *gate = &comm->gates[node];

		if (gate->rank >= 0) {
			moeep_net_signal(comm->net, node, 0,
					 (uint64_t)(1 + gate->mirror) *
							 sizeof(struct moeep_control) +
						 offset,
					 word, word - before);
		}
	}
}

struct part_wait {
	const struct moeep_comm *comm;
	int next;
};

static bool all_left(void *arg, struct moeep_pending *pending)
{
	struct part_wait *w = arg;

	for (; w->next < w->comm->num_ranks; w->next++) {
		if (moeep_flag_get(&w->comm->peers[w->next].control->left) == 0) {
			pending->peer = w->next;
			pending->expected = 1;
			pending->seen = 0;
			pending->what = "moeep_comm_destroy()";
			return false;
		}
	}
	return true;
}

void moeep_comm_part(struct moeep_comm *comm)
{
	struct part_wait arg = {.comm = comm};
	struct moeep_wait wait;

	if (moeep_comm_check(comm) == MOEEP_OK) {
		moeep_comm_publish(comm, &moeep_comm_control(comm)->left, 1);
		moeep_wait_begin(&wait, comm, MOEEP_OP_NONE, 0);
		(void)moeep_wait_until(&wait, all_left, &arg);
	}
	if (moeep_comm_check(comm) != MOEEP_OK) {
		/* That it leaves is said on this node only: others might take it for the cause. */
		moeep_flag_publish(&moeep_comm_control(comm)->left, 1);
		moeep_wait_wake_all(comm);
		moeep_net_tell_cause(comm->net);
	}
	(void)moeep_net_flush(comm->net, FAREWELL_MS);
}
