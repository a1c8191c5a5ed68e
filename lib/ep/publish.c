/* SPDX-License-Identifier: MIT */
/* ep/publish.c - how a rank tells others what its window says. */
#include "config.h"

#include "ep/publish.h"
#include "net/net.h"

static uint64_t offset_of(const struct moeep_buffer *buffer, const void *at)
{
	return (uint64_t)((const char *)at - buffer->bases[buffer->geo.rank]);
}

/* Where this rank's mirror begins in the window of its gate. */
static uint64_t mirror_of(const struct moeep_buffer *buffer, int node)
{
	return buffer->geo.mirrors +
	       (uint64_t)buffer->comm->gates[node].mirror * buffer->geo.mirror_bytes;
}

void moeep_send_to_place(const struct moeep_buffer *buffer, int node, const void *at,
			 uint64_t offset, uint64_t bytes)
{
	struct moeep_comm *comm = buffer->comm;

	if (comm->net && comm->gates[node].rank >= 0) {
		moeep_net_put(comm->net, node, buffer->net_window, offset_of(buffer, at),
			      mirror_of(buffer, node) + offset, bytes);
	}
}

void moeep_send_to_node(const struct moeep_buffer *buffer, int node, const void *at, uint64_t bytes)
{
	moeep_send_to_place(buffer, node, at, offset_of(buffer, at), bytes);
}

void moeep_send_to_nodes(const struct moeep_buffer *buffer, const void *at, uint64_t bytes)
{
	for (int node = 0; node < buffer->comm->num_nodes; node++) {
		moeep_send_to_node(buffer, node, at, bytes);
	}
}

/* To the node of one reader, or to all. */
static void signal_nodes(const struct moeep_buffer *buffer, const moeep_flag_t *flag,
			 uint64_t before, uint64_t word, int reader)
{
	struct moeep_comm *comm = buffer->comm;

	for (int node = 0; comm->net && node < comm->num_nodes; node++) {
		if (comm->gates[node].rank >= 0 &&
		    (reader == MOEEP_TO_ALL || comm->peers[reader].node == node)) {
			moeep_net_signal(comm->net, node, buffer->net_window,
					 mirror_of(buffer, node) + offset_of(buffer, flag), word,
					 word - before);
		}
	}
}

void moeep_publish(const struct moeep_buffer *buffer, moeep_flag_t *flag, uint64_t word, int reader)
{
	uint64_t before = atomic_load_explicit(flag, memory_order_relaxed);

	moeep_flag_publish(flag, word);
	signal_nodes(buffer, flag, before, word, reader);
}

void moeep_republish(const struct moeep_buffer *buffer, moeep_flag_t *flag, uint64_t before)
{
	uint64_t word = moeep_flag_get(flag);

	if (word != before) {
		signal_nodes(buffer, flag, before, word, MOEEP_TO_ALL);
	}
}
