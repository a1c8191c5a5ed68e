/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/oracle.h"

#include <float.h>

#include "t/util.h"

_Static_assert(FLT_EVAL_METHOD == 0, "a product or a sum of floats has to be rounded to a float");

/* Rounded as on its way in rows of that type. */
static float through(int dtype, float value)
{
	unsigned char element[4];

	oracle_store(dtype, element, 0, value);
	return oracle_load(dtype, element, 0);
}

/* A sum that may have no term yet: the first term is taken over as it is, -0 included. */
struct sum {
	bool any;
	float value;
};

static void sum_add(struct sum *sum, float term)
{
	sum->value = sum->any ? sum->value + term : term;
	sum->any = true;
}

/* One rank's call, and where the rows of the token in work are. */
struct combine {
	const struct oracle_group *group;
	const struct oracle_expert_side *side;
	int rank;
	bool expert_major;
	int partial_dtype;
	int num_nodes;
	const moeep_combine_args_t *want;
	int64_t token;
	int count;	/* rows that a rank may have of a token: K if expert-major, else 1 */
	int64_t *where; /* [R][count] row number at the rank, -1: none */
};

static int node_of(const struct oracle_group *group, int rank)
{
	return group->node ? group->node[rank] : 0;
}

/* What `from` sends for element h. */
static struct sum rank_sum(const struct combine *c, int from, int64_t h)
{
	const int64_t *where = c->where + (int64_t)from * c->count;
	struct sum sum = {false, 0};

	for (int i = 0; i < c->count; i++) {
		float term;

		if (where[i] < 0) {
			continue;
		}
		term = oracle_load(c->want->dtype, c->side[from].x,
				   where[i] * c->group->hidden + h);
		if (c->want->flags & MOEEP_COMBINE_WEIGHTED) {
			const float *weights = c->group->input[c->rank].weights;

			term = term * weights[c->token * c->group->topk + i];
		}
		sum_add(&sum, term);
	}
	if (sum.any && c->expert_major) {
		sum.value = through(c->partial_dtype, sum.value);
	}
	return sum;
}

static void combine_element(const struct combine *c, int64_t h)
{
	const struct oracle_group *group = c->group;
	int64_t at = c->token * group->hidden + h;
	struct sum total = {false, 0};

	for (int n = 0; n < c->num_nodes; n++) {
		struct sum node = {false, 0};

		for (int r = 0; r < group->num_ranks; r++) {
			if (node_of(group, r) == n) {
				struct sum part = rank_sum(c, r, h);

				if (part.any) {
					sum_add(&node, part.value);
				}
			}
		}
		if (!node.any) {
			continue;
		}
		if (node_of(group, c->rank) != n) {
			node.value = through(c->partial_dtype, node.value);
		}
		sum_add(&total, node.value);
	}
	if (c->want->bias) {
		sum_add(&total, oracle_load(c->want->dtype, c->want->bias, at));
	}
	oracle_store(c->want->dtype, c->want->out, at, total.value);
}

static void find_rows(struct combine *c)
{
	for (int r = 0; r < c->group->num_ranks; r++) {
		const struct oracle_rows *rows = &c->side[r].rows;
		int64_t *where = c->where + (int64_t)r * c->count;

		for (int i = 0; i < c->count; i++) {
			where[i] = -1;
		}
		for (int64_t at = 0; at < rows->count; at++) {
			const struct oracle_row *row = &rows->row[at];

			if (row->src_rank == c->rank && row->src_token == c->token) {
				where[c->expert_major ? row->k : 0] = at;
			}
		}
	}
}

static void combine_weights(const struct combine *c)
{
	int topk = c->group->topk;

	for (int k = 0; k < topk; k++) {
		int64_t expert = oracle_choice(c->group, c->rank, c->token, k);
		float value = 0;

		for (int r = 0; r < c->group->num_ranks; r++) {
			const int64_t *where = c->where + (int64_t)r * c->count;

			if (oracle_local_expert(c->group, r, expert) < 0) {
				continue;
			}
			value = c->expert_major ? c->side[r].weights[where[k]]
						: c->side[r].weights[where[0] * topk + k];
		}
		c->want->out_topk_weights[c->token * topk + k] = value;
	}
}

void oracle_combine(const struct oracle_group *group, const struct oracle_expert_side *side,
		    int rank, int row_layout, int partial_dtype, const moeep_combine_args_t *want)
{
	struct combine c = {
		.group = group,
		.side = side,
		.rank = rank,
		.expert_major = row_layout == MOEEP_ROWS_EXPERT_MAJOR,
		.partial_dtype = partial_dtype ? partial_dtype : want->dtype,
		.num_nodes = 1,
		.want = want,
	};

	c.count = c.expert_major ? group->topk : 1;
	c.where = util_alloc((size_t)group->num_ranks * (size_t)c.count * sizeof(*c.where));
	for (int r = 0; r < group->num_ranks; r++) {
		if (node_of(group, r) >= c.num_nodes) {
			c.num_nodes = node_of(group, r) + 1;
		}
	}
	for (c.token = 0; c.token < group->input[rank].num_tokens; c.token++) {
		find_rows(&c);
		for (int64_t h = 0; want->out && h < group->hidden; h++) {
			combine_element(&c, h);
		}
		if (want->out_topk_weights) {
			combine_weights(&c);
		}
	}
	util_free(c.where);
}

/* Low latency. */

/* Where the row of a choice is at rank r: [L, capacity] flattened; -1 if it was lost. */
static int64_t ll_find(const struct oracle_rows *rows, int rank, int64_t token, int k,
		       int64_t capacity, int64_t dispatch_capacity)
{
	for (int64_t at = 0; at < rows->count; at++) {
		const struct oracle_row *row = &rows->row[at];
		int64_t slot = at - rows->offsets[row->expert];

		if (row->src_rank == rank && row->src_token == token && row->k == k) {
			return slot < dispatch_capacity ? row->expert * capacity + slot : -1;
		}
	}
	return -1;
}

struct ll_combine {
	const struct oracle_group *group;
	const void *const *x;
	int rank;
	bool weighted;
	int partial_dtype;
	const moeep_ll_combine_args_t *want;
	int64_t token;
	int64_t *where; /* [R, K] */
};

static void ll_combine_element(const struct ll_combine *c, int64_t h)
{
	const struct oracle_group *group = c->group;
	int64_t out = c->token * group->hidden + h;
	struct sum total = {false, 0};

	for (int r = 0; r < group->num_ranks; r++) {
		struct sum part = {false, 0};

		for (int k = 0; k < group->topk; k++) {
			int64_t at = c->where[r * group->topk + k];
			float term;

			if (at < 0) {
				continue;
			}
			term = oracle_load(c->want->dtype, c->x[r], at * group->hidden + h);
			if (c->weighted) {
				const float *weights = group->input[c->rank].weights;

				term = term * weights[c->token * group->topk + k];
			}
			sum_add(&part, term);
		}
		if (part.any) {
			sum_add(&total, through(c->partial_dtype, part.value));
		}
	}
	if (c->want->bias) {
		sum_add(&total, oracle_load(c->want->dtype, c->want->bias, out));
	}
	oracle_store(c->want->dtype, c->want->out, out, total.value);
}

bool oracle_ll_combine(const struct oracle_group *group, const void *const *x,
		       const int64_t *capacity, const int64_t *dispatch_capacity, int rank,
		       int partial_dtype, const moeep_ll_combine_args_t *want)
{
	const struct oracle_input *input = &group->input[rank];
	int num_ranks = group->num_ranks, topk = group->topk;
	struct oracle_rows *rows = util_alloc((size_t)num_ranks * sizeof(*rows));
	struct ll_combine c = {
		.group = group,
		.x = x,
		.rank = rank,
		.weighted = input->weights && !(want->flags & MOEEP_LL_COMBINE_UNWEIGHTED),
		.partial_dtype = partial_dtype ? partial_dtype : want->dtype,
		.want = want,
		.where = util_alloc((size_t)num_ranks * (size_t)topk * sizeof(int64_t)),
	};
	bool complete = true;

	for (int r = 0; r < num_ranks; r++) {
		oracle_route(group, r, MOEEP_ROWS_EXPERT_MAJOR, 1, &rows[r]);
	}
	for (c.token = 0; c.token < input->num_tokens; c.token++) {
		for (int i = 0; i < num_ranks * topk; i++) {
			int r = i / topk, k = i % topk;

			c.where[i] = -1;
			if (oracle_local_expert(group, r, oracle_choice(group, rank, c.token, k)) >=
			    0) {
				c.where[i] = ll_find(&rows[r], rank, c.token, k, capacity[r],
						     dispatch_capacity[r]);
				complete &= c.where[i] >= 0;
			}
		}
		for (int64_t h = 0; h < group->hidden; h++) {
			ll_combine_element(&c, h);
		}
	}
	for (int r = 0; r < num_ranks; r++) {
		oracle_rows_free(&rows[r]);
	}
	util_free(c.where);
	util_free(rows);
	return complete;
}
