/* SPDX-License-Identifier: MIT */
/* tools/rows.c - the rows that a routing leads to, in the order that the API promises. */
#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "rows.h"

/* Whether an earlier choice of the token has the same owner: flat rows count it once. */
static bool seen_before(const struct routing *r, const int32_t *choice, int k, int rank)
{
	while (--k >= 0) {
		if (choice[k] >= 0 && r->owner[choice[k]] == rank) {
			return true;
		}
	}
	return false;
}

typedef void (*row_fn)(void *context, const struct routing_row *row);

/* Every row that `rank` receives, by (source rank, token, position in the top-k). */
static void each_row(const struct routing *r, int variant, int rank, bool flat, row_fn fn,
		     void *context)
{
	for (int source = 0; source < r->shape.ranks; source++) {
		for (int64_t t = 0; t < routing_tokens(r, variant, source); t++) {
			const int32_t *choice = r->choice + routing_at(r, variant, source, t);

			for (int k = 0; k < r->shape.topk; k++) {
				struct routing_row row = {0, source, (int32_t)t, k, 0};

				if (choice[k] < 0 || r->owner[choice[k]] != rank) {
					continue;
				}
				row.expert = choice[k] - r->first[rank];
				if (flat && seen_before(r, choice, k, rank)) {
					row.choice = -1;
				}
				fn(context, &row);
			}
		}
	}
}

static void row_count(void *context, const struct routing_row *row)
{
	struct routing_rows *rows = context;

	rows->expert_count[row->expert]++;
	rows->count++;
}

/* In flat order; a choice of -1 marks one that has its row already. */
static void row_add_flat(void *context, const struct routing_row *row)
{
	struct routing_rows *rows = context;

	if (row->choice >= 0) {
		struct routing_row own = {rows->total, row->source, row->token, -1, -1};

		rows->row[rows->total++] = own;
	}
}

/* By expert: expert_position is the next free place of each. */
static void row_add_grouped(void *context, const struct routing_row *row)
{
	struct routing_rows *rows = context;
	int64_t at = rows->expert_position[row->expert]++;

	rows->row[at] = *row;
}

int routing_rows_make(const struct routing *routing, int variant, int rank, enum rows_layout layout,
		      int64_t step, struct routing_rows *rows)
{
	struct routing_rows own = {.experts = routing_local_experts(routing, rank)};
	int64_t index = 0, position = 0;

	own.expert_count = calloc((size_t)own.experts + 1, sizeof(*own.expert_count));
	own.expert_position = calloc((size_t)own.experts + 1, sizeof(*own.expert_position));
	if (!own.expert_count || !own.expert_position) {
		goto err;
	}
	each_row(routing, variant, rank, layout == ROWS_FLAT, row_count, &own);
	own.row = calloc((size_t)own.count + 1, sizeof(*own.row));
	if (!own.row) {
		goto err;
	}
	if (layout == ROWS_FLAT) {
		each_row(routing, variant, rank, true, row_add_flat, &own);
		own.count = own.total;
		*rows = own;
		return 0;
	}
	for (int e = 0; e < own.experts; e++) {
		own.expert_position[e] = index;
		index += own.expert_count[e];
	}
	each_row(routing, variant, rank, false, row_add_grouped, &own);
	index = 0;
	for (int e = 0; e < own.experts; e++) {
		own.expert_position[e] = position;
		for (int64_t i = 0; i < own.expert_count[e]; i++) {
			own.row[index++].position = position + i;
		}
		position += layout == ROWS_CAPACITY
				    ? step
				    : (own.expert_count[e] + step - 1) / step * step;
	}
	own.expert_position[own.experts] = position;
	own.total = position;
	*rows = own;
	return 0;

err:
	routing_rows_free(&own);
	return -1;
}

void routing_rows_free(struct routing_rows *rows)
{
	free(rows->row);
	free(rows->expert_count);
	free(rows->expert_position);
	memset(rows, 0, sizeof(*rows));
}

int routing_sum(const struct routing *routing, int variant, enum rows_layout layout, int64_t step,
		struct routing_sums *sums)
{
	struct routing_sums own = {0};

	for (int rank = 0; rank < routing->shape.ranks; rank++) {
		struct routing_rows rows;

		if (routing_rows_make(routing, variant, rank, layout, step, &rows)) {
			return -1;
		}
		for (int e = 0; e < rows.experts; e++) {
			own.choices += rows.expert_count[e];
			own.most_choices = rows.expert_count[e] > own.most_choices
						   ? rows.expert_count[e]
						   : own.most_choices;
		}
		own.most_rows = rows.total > own.most_rows ? rows.total : own.most_rows;
		routing_rows_free(&rows);
	}
	for (int source = 0; source < routing->shape.ranks; source++) {
		for (int64_t t = 0; t < routing_tokens(routing, variant, source); t++) {
			const int32_t *choice =
				routing->choice + routing_at(routing, variant, source, t);

			for (int k = 0; k < routing->shape.topk; k++) {
				int rank = choice[k] < 0 ? -1 : routing->owner[choice[k]];

				if (rank >= 0 && !seen_before(routing, choice, k, rank)) {
					own.pairs++;
					own.pairs_away += rank != source;
				}
			}
		}
	}
	*sums = own;
	return 0;
}
