/* SPDX-License-Identifier: MIT */
/*
 * tools/rows.h - what follows from a routing: the rows that each rank has to receive, where they
 * have to lie, and how many of them there are.
 *
 * Computed from the API's text alone; what is in the rows is payload.h's.
 */
#ifndef MOEEP_TOOLS_ROWS_H
#define MOEEP_TOOLS_ROWS_H

#include <stdint.h>

#include "routing.h"

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

#endif
