/* SPDX-License-Identifier: MIT */
/*
 * tools/routing.h - which token chooses which experts, with which weights, for every rank and
 * variant.
 *
 * The rows that follow from it are rows.h's.
 */
#ifndef MOEEP_TOOLS_ROUTING_H
#define MOEEP_TOOLS_ROUTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "routing_source.h"

/* The numbers of a routing. */
struct routing_shape {
	int ranks;
	int topk;
	int experts;
	int variants;	/* different routings, used in turn */
	int64_t tokens; /* of a rank, the most */
	double masked;	/* share of the choices that become -1 */
	bool uneven;	/* ranks have different numbers of tokens, and one has none */
	uint64_t seed;
};

struct routing {
	struct routing_shape shape;
	int64_t *tokens; /* [variants, ranks] */
	int32_t *choice; /* [variants, ranks, tokens, topk] */
	float *weight;	 /* the same */
	int32_t *owner;	 /* [experts] the rank that holds it */
	int32_t *first;	 /* [ranks + 1] its first expert */
};

int routing_make(const struct routing_source *source, const struct routing_shape *shape,
		 struct routing *routing, char *error, size_t error_size);
void routing_free(struct routing *routing);

static inline int64_t routing_tokens(const struct routing *r, int variant, int rank)
{
	return r->tokens[(int64_t)variant * r->shape.ranks + rank];
}

/* Index of a token's first choice in choice and weight. */
static inline int64_t routing_at(const struct routing *r, int variant, int rank, int64_t token)
{
	return (((int64_t)variant * r->shape.ranks + rank) * r->shape.tokens + token) *
	       r->shape.topk;
}

static inline int routing_local_experts(const struct routing *r, int rank)
{
	return r->first[rank + 1] - r->first[rank];
}

/* A stream of well-mixed numbers: one for each (seed, index). */
uint64_t routing_mix(uint64_t seed, uint64_t index);

#endif
