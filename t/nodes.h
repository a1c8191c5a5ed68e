/* SPDX-License-Identifier: MIT */
/*
 * MOEEP_TEST_NODES makes several hosts of this one, joined by the emulated network: "block 2" and
 * "cyclic 2" deal ranks to so many nodes, "sizes 1,2,5" has nodes of that many ranks.
 */
#ifndef T_NODES_H
#define T_NODES_H

#define NODES_RANKS_MAX	 64
#define NODES_HOST_BYTES 32

/* First in a program, before threads. */
void nodes_begin(void);

/* The number of each rank's node, by their lowest ranks; all 0 on one host. How many nodes. */
int nodes_deal(int num_ranks, int *nodes);

/* What a rank's config has as its host_id: text, or NULL on one host. */
const char *nodes_host(int rank, int num_ranks, char text[NODES_HOST_BYTES]);

#endif /* T_NODES_H */
