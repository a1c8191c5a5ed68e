/* SPDX-License-Identifier: MIT */
/*
 * tools/routing.h - which token chooses which experts, and what follows from it: the rows that each
 * rank receives, in the order that the API promises.
 */
#ifndef MOEEP_TOOLS_ROUTING_H
#define MOEEP_TOOLS_ROUTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "npy.h"

enum routing_kind { ROUTING_UNIFORM, ROUTING_ZIPF, ROUTING_FILE };

/* Where choices come from: "uniform", "zipf:EXPONENT", "INDICES.npy" or "INDICES.npy,WEIGHTS.npy"
 */
struct routing_source {
	enum routing_kind kind;
	double exponent;
	struct npy indices; /* [tokens, K] */
	struct npy weights; /* the same shape; no data: made up */
	int64_t largest;    /* expert that the file names */
};

/* 0, or -1 with a text in error. routing_source_free() what it gave. */
int routing_source_open(const char *text, struct routing_source *source, char *error,
			size_t error_size);
void routing_source_free(struct routing_source *source);

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

/* How a dispatch arranges what it receives. */
enum rows_layout {
	ROWS_FLAT,     /* one row a token */
	ROWS_GROUPED,  /* one row a choice, by expert; groups start at multiples of `step` */
	ROWS_CAPACITY, /* one row a choice; `step` rows for each expert */
};

struct routing_row {
	int64_t position;
	int32_t source; /* rank */
	int32_t token;	/* there */
	int32_t choice; /* position in the top-k, -1 if flat */
	int32_t expert; /* local, -1 if flat */
};

/* What one rank receives. */
struct routing_rows {
	int64_t count; /* rows, padding not included */
	int64_t total; /* up to the last group's end, padding included */
	int experts;
	struct routing_row *row;  /* [count], ascending by position */
	int64_t *expert_count;	  /* [experts] choices on each local expert */
	int64_t *expert_position; /* [experts + 1] first row of each, unless flat */
};

int routing_rows_make(const struct routing *routing, int variant, int rank, enum rows_layout layout,
		      int64_t step, struct routing_rows *rows);
void routing_rows_free(struct routing_rows *rows);

/* Sums over one variant. */
struct routing_sums {
	int64_t pairs;	      /* (token, rank) with a choice there */
	int64_t pairs_away;   /* those where the rank is not the token's own */
	int64_t choices;      /* that are not masked */
	int64_t most_rows;    /* largest `total` of a rank in the given layout */
	int64_t most_choices; /* on one expert */
};

int routing_sum(const struct routing *routing, int variant, enum rows_layout layout, int64_t step,
		struct routing_sums *sums);

/* A stream of well-mixed numbers: one for each (seed, index). */
uint64_t routing_mix(uint64_t seed, uint64_t index);

#endif
