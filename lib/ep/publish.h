/* SPDX-License-Identifier: MIT */
/*
 * ep/publish.h - how a rank tells others what its window says: those of its node read the window,
 * to the other nodes it is sent.
 */
#ifndef MOEEP_EP_PUBLISH_H
#define MOEEP_EP_PUBLISH_H

#include "ep/buffer.h"

/* In place of a rank. */
#define MOEEP_TO_ALL (-1)

/* Is a rank on another node, where it is read by a mirror? */
static inline bool moeep_is_remote(const struct moeep_buffer *buffer, int rank)
{
	return buffer->comm->peers[rank].mirror >= 0;
}

/* Send bytes of this rank's window, from `at`, to the mirror on a node; its own: nothing is done.
 */
void moeep_send_to_node(const struct moeep_buffer *buffer, int node, const void *at,
			uint64_t bytes);
/* To all other nodes. */
void moeep_send_to_nodes(const struct moeep_buffer *buffer, const void *at, uint64_t bytes);

/* Send bytes to another place of the mirror than that where they are in the window. */
void moeep_send_to_place(const struct moeep_buffer *buffer, int node, const void *at,
			 uint64_t offset, uint64_t bytes);

/*
 * Set a flag of this rank's window, for the rank that waits for it or MOEEP_TO_ALL, behind all that
 * was sent before. Ranks of this node are not woken by it.
 */
void moeep_publish(const struct moeep_buffer *buffer, moeep_flag_t *flag, uint64_t word,
		   int reader);

/* To all other nodes: a flag that has been set here already; it was `before`. */
void moeep_republish(const struct moeep_buffer *buffer, moeep_flag_t *flag, uint64_t before);

#endif
