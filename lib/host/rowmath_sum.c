/* SPDX-License-Identifier: MIT */
/*
 * host/rowmath_sum.c - the sum of rows, for one instruction set.
 *
 * All rows are read side by side, a pair of vectors of each at a time, and the sums stay in
 * registers. The processor then fetches from all rows at once; sums that took row after row through
 * blocks in the first-level cache were slower, see docs/performance.md.
 */
#include "config.h"

#include <math.h>

#include "ep/geometry.h"
#include "host/rowmath.h"
#include "host/rowmath_vector.h"

#define MAX_TERMS (MOEEP_MAX_TOPK + 1) /* a bias is the last term */
/*
 * Elements that are prefetched before they are used. Rows take turns, and each is only a few pages
 * long, so the processor's own prefetching starts anew all the time: docs/performance.md.
 */
#define AHEAD 1024

/* What the inner loops read: found once for a row. */
struct plan {
	int64_t from; /* elements [from, to), a multiple of PAIR */
	int64_t to;
	int num_terms;
	int num_groups;
	int32_t group_dtype;
	int32_t out_dtype;
	bool stream;
	bool flat; /* no group is rounded, and adding term by term is adding group by group */
	char *out;
	const char *rows[MAX_TERMS];
	uintptr_t ahead[MAX_TERMS]; /* what to prefetch while a row is read at 0 */
	float weights[MAX_TERMS];   /* 1 changes no value */
	int32_t dtypes[MAX_TERMS];
	int ends[MAX_TERMS]; /* the term after each group */
	bool rounds[MAX_TERMS];
	bool nested;		   /* groups of a node are summed before they are added */
	bool node_ends[MAX_TERMS]; /* of groups */
};

MOEEP_INLINE struct moeep_pair add(struct moeep_pair a, struct moeep_pair b)
{
	a.even = a.even + b.even;
	a.odd = a.odd + b.odd;
	return a;
}

/* dtype is that of all rows, or 0: each has its own, and FP32 rows are split as the others are. */
MOEEP_INLINE struct moeep_pair term_at(const struct plan *plan, int t, int64_t at, int32_t dtype)
{
	int32_t own = dtype != 0 ? dtype : plan->dtypes[t];
	int64_t offset = at * (own == MOEEP_FP32 ? 4 : 2);
	struct moeep_pair p = load_pair(plan->rows[t] + offset, own, dtype == 0);

	__builtin_prefetch((const void *)(plan->ahead[t] + (uintptr_t)offset));
	if (own == MOEEP_FP32) {
		__builtin_prefetch(
			(const void *)(plan->ahead[t] + (uintptr_t)offset + VECTOR_BYTES));
	}
	p.even = p.even * plan->weights[t];
	p.odd = p.odd * plan->weights[t];
	return p;
}

MOEEP_INLINE void put_at(const struct plan *plan, int64_t at, struct moeep_pair p, int32_t dtype)
{
	int32_t own = dtype != 0 ? dtype : plan->out_dtype;

	store_pair(plan->out + at * (own == MOEEP_FP32 ? 4 : 2), p, own, dtype == 0,
		   dtype != MOEEP_BF16, plan->stream);
}

/* With a constant number of terms all of them stay in registers. */
MOEEP_INLINE void sum_flat(const struct plan *plan, int terms, int32_t dtype)
{
	for (int64_t at = plan->from; at < plan->to; at += PAIR) {
		/* A first term is taken as it is: adding it to zero would lose the sign of -0. */
		struct moeep_pair total = term_at(plan, 0, at, dtype);

		for (int t = 1; t < terms; t++) {
			total = add(total, term_at(plan, t, at, dtype));
		}
		put_at(plan, at, total, dtype);
	}
}

MOEEP_INLINE void sum_groups(const struct plan *plan, int32_t dtype, bool nested)
{
	for (int64_t at = plan->from; at < plan->to; at += PAIR) {
		struct moeep_pair total = {{0}, {0}}, node = {{0}, {0}};
		bool first_node = true, first_group = true;
		int t = 0;

		for (int g = 0; g < plan->num_groups; g++) {
			struct moeep_pair group = term_at(plan, t, at, dtype);

			for (t++; t < plan->ends[g]; t++) {
				group = add(group, term_at(plan, t, at, dtype));
			}
			if (plan->rounds[g]) {
				group = round_pair(group, dtype != 0 ? dtype : plan->group_dtype,
						   dtype != MOEEP_BF16);
			}
			if (!nested) {
				total = g == 0 ? group : add(total, group);
				continue;
			}
			node = first_group ? group : add(node, group);
			first_group = plan->node_ends[g];
			if (first_group) {
				total = first_node ? node : add(total, node);
				first_node = false;
			}
		}
		put_at(plan, at, total, dtype);
	}
}

MOEEP_INLINE void sum_until(const struct plan *plan, int32_t dtype)
{
	if (plan->nested) {
		sum_groups(plan, dtype, true);
		return;
	}
	if (!plan->flat) {
		sum_groups(plan, dtype, false);
		return;
	}
	switch (plan->num_terms) {
#define CASE(n)                                                                                    \
	case n:                                                                                    \
		sum_flat(plan, n, dtype);                                                          \
		break
		CASE(1);
		CASE(2);
		CASE(3);
		CASE(4);
		CASE(5);
		CASE(6);
		CASE(7);
		CASE(8);
#undef CASE
	default:
		sum_flat(plan, plan->num_terms, dtype);
	}
}

static void sum_planned(const struct plan *plan, int32_t dtype)
{
	switch (dtype) {
	case MOEEP_BF16:
		sum_until(plan, MOEEP_BF16);
		break;
	case MOEEP_FP16:
		sum_until(plan, MOEEP_FP16);
		break;
	case MOEEP_FP32:
		sum_until(plan, MOEEP_FP32);
		break;
	default:
		sum_groups(plan, 0, plan->nested);
	}
}

/* While element i of a row is read, element i + by of the same one of `rows` is prefetched. */
static void look_ahead(struct plan *plan, const char *const *rows, int64_t by)
{
	for (int t = 0; t < plan->num_terms; t++) {
		int64_t unit = plan->dtypes[t] == MOEEP_FP32 ? 4 : 2;

		plan->ahead[t] = (uintptr_t)rows[t] + (uintptr_t)(by * unit);
	}
}

/* The last elements, fewer than PAIR, by way of rows that are long enough. */
static void sum_tail(const struct plan *plan, int64_t from, int64_t hidden, int32_t dtype)
{
	char rows[MAX_TERMS][PAIR * 4] = {{0}};
	char out[PAIR * 4];
	struct plan tail = *plan;
	size_t unit = moeep_dtype_size(plan->out_dtype);
	size_t count = (size_t)(hidden - from);

	for (int t = 0; t < plan->num_terms; t++) {
		size_t size = moeep_dtype_size(plan->dtypes[t]);

		memcpy(rows[t], plan->rows[t] + (size_t)from * size, count * size);
		tail.rows[t] = rows[t];
	}
	tail.out = out;
	tail.stream = false;
	tail.from = 0;
	tail.to = PAIR;
	look_ahead(&tail, tail.rows, 0);
	sum_planned(&tail, dtype);
	memcpy(plan->out + (size_t)from * unit, out, count * unit);
}

static void add_term(struct plan *plan, const struct moeep_term *term)
{
	int t = plan->num_terms++;
	int first = plan->num_groups > 0 ? plan->ends[plan->num_groups - 1] : 0;
	int g = plan->num_groups;

	plan->rows[t] = term->row;
	plan->weights[t] = term->weighted ? term->weight : 1.0f;
	if (isnan(plan->weights[t])) {
		plan->weights[t] = NAN; /* no bits that a BF16 row cannot have: see bf16_round() */
	}
	plan->dtypes[t] = term->dtype;
	if (term->group_end) {
		/* A lone row of the dtype that it would be rounded to is what it is. */
		plan->rounds[g] = plan->group_dtype != 0 && plan->group_dtype != MOEEP_FP32 &&
				  (t > first || term->weighted || term->dtype != plan->group_dtype);
		plan->node_ends[g] = term->node_end;
		plan->ends[plan->num_groups++] = t + 1;
	}
}

/* Nodes matter where one that is not the first has several groups. */
static bool is_nested(const struct plan *plan)
{
	bool first_node = true, first_group = true;

	for (int g = 0; g < plan->num_groups; g++) {
		if (!first_node && !first_group) {
			return true;
		}
		first_group = plan->node_ends[g];
		first_node &= !plan->node_ends[g];
	}
	return false;
}

/* Everything of one dtype? */
static int32_t common_dtype(const struct plan *plan)
{
	int32_t dtype = plan->out_dtype;

	for (int t = 0; t < plan->num_terms; t++) {
		dtype = plan->dtypes[t] == plan->out_dtype ? dtype : 0;
	}
	for (int g = 0; g < plan->num_groups; g++) {
		dtype = plan->rounds[g] && plan->group_dtype != plan->out_dtype ? 0 : dtype;
	}
	return dtype;
}

static void make_plan(struct plan *plan, const struct moeep_sum *sum)
{
	/* Not all of it: the arrays are long, and only what is used of them is written. */
	plan->num_terms = 0;
	plan->num_groups = 0;
	plan->group_dtype = sum->group_dtype;
	plan->out_dtype = sum->out_dtype;
	plan->stream = sum->stream && (uintptr_t)sum->out % VECTOR_BYTES == 0;
	plan->flat = true;
	plan->out = sum->out;
	plan->from = 0;
	for (int t = 0; t < sum->num_terms; t++) {
		add_term(plan, &sum->terms[t]);
	}
	if (plan->num_groups == 1 && !sum->bias && plan->group_dtype == plan->out_dtype) {
		plan->rounds[0] = false; /* the end of it is the same rounding */
	}
	if (sum->bias) {
		struct moeep_term bias = {.row = sum->bias,
					  .dtype = sum->out_dtype,
					  .group_end = true,
					  .node_end = true};

		add_term(plan, &bias);
		plan->rounds[plan->num_groups - 1] = false;
	}
	plan->nested = is_nested(plan);
	for (int g = 0; g < plan->num_groups; g++) {
		plan->flat &=
			!plan->rounds[g] && (g == 0 || plan->ends[g] == plan->ends[g - 1] + 1);
	}
}

/* Elements before the last AHEAD of a row prefetch from the row, those from the next sum's rows. */
static void sum_whole(struct plan *plan, const struct moeep_sum *next, int64_t whole, int32_t dtype)
{
	const char *rows[MAX_TERMS];
	int64_t near = whole > AHEAD ? whole - AHEAD : 0;

	plan->to = near;
	look_ahead(plan, plan->rows, AHEAD);
	sum_planned(plan, dtype);
	for (int t = 0; t < plan->num_terms; t++) {
		rows[t] = next && t < next->num_terms ? next->terms[t].row : plan->rows[t];
	}
	plan->from = near;
	plan->to = whole;
	look_ahead(plan, rows, -near);
	sum_planned(plan, dtype);
}

void MOEEP_ROWMATH_NAME(moeep_rowmath_sum)(const struct moeep_sum *sum, int64_t hidden)
{
	int64_t whole = hidden / PAIR * PAIR;
	struct plan plan;
	int32_t dtype;

	make_plan(&plan, sum);
	if (plan.num_terms == 0) {
		memset(sum->out, 0, (size_t)hidden * moeep_dtype_size(sum->out_dtype));
		return;
	}
	dtype = common_dtype(&plan);
	sum_whole(&plan, sum->next, whole, dtype);
	if (whole < hidden) {
		sum_tail(&plan, whole, hidden, dtype);
	}
}
