/* SPDX-License-Identifier: MIT */
/*
 * memory/node.h - file descriptors between the processes of one host.
 *
 * The lowest rank of the host collects them over Unix sockets (abstract names: nothing is
 * left in the file system) and gives them to all. The connections stay open for the comm's life.
 */
#ifndef MOEEP_MEMORY_NODE_H
#define MOEEP_MEMORY_NODE_H

#include <stdint.h>

struct moeep_boot;
struct moeep_node;

/* What one rank of the host is to the exchange. */
struct moeep_node_member {
	int rank;
	const char *socket_name;
};

/*
 * First half: the leader, members[0], opens its socket. It must have been called there before any
 * moeep_node_join(). `self` indexes members, ascending by rank, which must outlive neither call.
 * While it waits it looks at boot, so that the end of a rank that is not connected yet is noticed.
 */
int moeep_node_listen(const struct moeep_node_member *members, int count, int self,
		      struct moeep_boot *boot, struct moeep_node **node);
/* Second half: connect, each side proving by a nonce that both mean the same group. */
int moeep_node_join(struct moeep_node *node, uint32_t timeout_ms);

/* Gather one descriptor of every member, or none of one that gives -1: fds[count] are new ones or
 * -1. Collective. */
int moeep_node_exchange(struct moeep_node *node, int fd, int *fds, uint32_t timeout_ms);

/* NULL is a no-op. */
void moeep_node_close(struct moeep_node *node);

#endif
