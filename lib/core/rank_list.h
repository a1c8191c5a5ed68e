/* SPDX-License-Identifier: MIT */
/* core/rank_list.h - some of a group's ranks, as text. */
#ifndef MOEEP_CORE_RANK_LIST_H
#define MOEEP_CORE_RANK_LIST_H

#include <stdbool.h>
#include <stddef.h>

/* Is that rank one of them? */
typedef bool (*moeep_rank_chosen)(const void *context, int rank);

/* "rank 3" or "ranks 1, 3-7, ..."; returns how many they are. */
int moeep_list_ranks(int num_ranks, moeep_rank_chosen chosen, const void *context, char *text,
		     size_t size);

#endif
