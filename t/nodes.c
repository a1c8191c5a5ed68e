/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/nodes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "t/tap.h"

/* The node of a rank, as MOEEP_TEST_NODES deals them; numbers may have gaps. */
static int dealt_node(const char *text, int rank, int num_ranks)
{
	const char *number = strchr(text, ' ');
	int n = number ? atoi(number) : 0, node = 0;

	if (n < 1) {
		tap_bail("MOEEP_TEST_NODES is \"%s\"", text);
	}
	if (!strncmp(text, "block ", 6)) {
		return rank * n / num_ranks;
	}
	if (!strncmp(text, "cyclic ", 7)) {
		return rank % n;
	}
	/* Ranks past the end of the list are of its last node. */
	while (rank >= n && strchr(number, ',')) {
		rank -= n;
		number = strchr(number, ',') + 1;
		n = atoi(number);
		node++;
	}
	return node;
}

int nodes_deal(int num_ranks, int *nodes)
{
	const char *text = getenv("MOEEP_TEST_NODES");
	int count = 0;

	for (int rank = 0; rank < num_ranks; rank++) {
		nodes[rank] = count;
		for (int before = 0; before < rank && text; before++) {
			if (dealt_node(text, before, num_ranks) ==
			    dealt_node(text, rank, num_ranks)) {
				nodes[rank] = nodes[before];
			}
		}
		if (!text) {
			nodes[rank] = 0;
		}
		count += nodes[rank] == count;
	}
	return count;
}

void nodes_begin(void)
{
	if (getenv("MOEEP_TEST_NODES")) {
		setenv("MOEEP_TRANSPORT", "emulated", 1);
	}
}

const char *nodes_host(int rank, int num_ranks, char text[NODES_HOST_BYTES])
{
	int nodes[NODES_RANKS_MAX];

	if (nodes_deal(num_ranks, nodes) == 1) {
		return NULL;
	}
	snprintf(text, NODES_HOST_BYTES, "host %d", nodes[rank]);
	return text;
}
