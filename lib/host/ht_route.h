/* SPDX-License-Identifier: MIT */
/* host/ht_route.h - from a rank's choices, and everybody's counts, to positions. */
#ifndef MOEEP_HOST_HT_ROUTE_H
#define MOEEP_HOST_HT_ROUTE_H

#include "host/ht.h"

/*
 * Read [tokens, topk] choices into 32 bits and count them: tokens for each rank (each token once),
 * choices of each expert. A choice that is neither -1 nor an expert is MOEEP_ERR_INVALID.
 */
int moeep_route_read(const struct moeep_buffer *buffer, const void *topk_idx, int32_t topk_dtype,
		     int64_t tokens, int topk, int32_t *idx, int32_t *per_rank,
		     int32_t *per_expert);

/* One token's choices; they are added to per_expert unless it is NULL. */
int moeep_route_read_one(const struct moeep_buffer *buffer, const void *choices, int32_t topk_dtype,
			 int64_t token, int topk, int32_t *idx, int32_t *per_expert);

/* The distinct ranks that hold a token's choices, ascending; returns how many. ranks has room for
 * topk. */
int moeep_route_ranks(const struct moeep_buffer *buffer, const int32_t *idx, int topk, int *ranks);

/* How many tokens from `first` on, one behind the other and before `end`, have a choice on a node.
 */
int64_t moeep_route_node_run(const struct moeep_buffer *buffer, const int32_t *idx, int topk,
			     int64_t first, int64_t end, int node);

/* After moeep_ht_enter() of a new routing: fill in the handle's positions and what each rank needs.
 */
void moeep_route_place(const struct moeep_ht_op *op);

#endif
