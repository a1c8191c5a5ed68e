/* SPDX-License-Identifier: MIT */
/* core/rank_list.c - some of a group's ranks, as text. */
#include "config.h"

#include <stdio.h>

#include "core/rank_list.h"

int moeep_list_ranks(int num_ranks, moeep_rank_chosen chosen, const void *context, char *text,
		     size_t size)
{
	const char *separator = " ";
	size_t used;
	int count = 0;

	for (int rank = 0; rank < num_ranks; rank++) {
		count += chosen(context, rank);
	}
	used = (size_t)snprintf(text, size, count == 1 ? "rank" : "ranks");
	for (int first = 0; first < num_ranks; first++) {
		int last = first;

		if (!chosen(context, first)) {
			continue;
		}
		while (last + 1 < num_ranks && chosen(context, last + 1)) {
			last++;
		}
		if (size - used < 24) {
			snprintf(text + used, size - used, ", ...");
			break;
		}
		used += (size_t)snprintf(text + used, size - used, "%s%d", separator, first);
		if (last > first) {
			used += (size_t)snprintf(text + used, size - used, "-%d", last);
		}
		separator = ", ";
		first = last;
	}
	return count;
}
