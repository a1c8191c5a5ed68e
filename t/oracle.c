/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/oracle.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "t/tap.h"
#include "t/util.h"

_Static_assert(FLT_EVAL_METHOD == 0, "a product or a sum of floats has to be rounded to a float");

/* Formats. */

/* Numbers of a format: sign, exponent, mantissa. */
struct format {
	int bytes;
	int mantissa;
	int exponent;
	int bias;
	bool infinities; /* else the largest exponent is an ordinary one, all ones apart: NaN */
};

static const struct format *format_of(int dtype)
{
	static const struct format bf16 = { 2, 7, 8, 127, true };
	static const struct format fp16 = { 2, 10, 5, 15, true };
	static const struct format fp32 = { 4, 23, 8, 127, true };
	static const struct format e4m3 = { 1, 3, 4, 7, false };
	static const struct format e5m2 = { 1, 2, 5, 15, true };

	switch (dtype) {
	case MOEEP_BF16:
		return &bf16;
	case MOEEP_FP16:
		return &fp16;
	case MOEEP_FP32:
		return &fp32;
	case MOEEP_FP8_E4M3:
		return &e4m3;
	case MOEEP_FP8_E5M2:
		return &e5m2;
	default:
		return NULL;
	}
}

size_t oracle_dtype_size(int dtype)
{
	switch (dtype) {
	case MOEEP_BF16:
	case MOEEP_FP16:
		return 2;
	case MOEEP_FP32:
	case MOEEP_INT32:
		return 4;
	case MOEEP_FP8_E4M3:
	case MOEEP_FP8_E5M2:
	case MOEEP_INT8:
	case MOEEP_UE8M0:
		return 1;
	case MOEEP_INT64:
		return 8;
	default:
		return 0;
	}
}

static uint32_t load_bits(const struct format *f, const void *element)
{
	uint32_t bits = 0;

	memcpy(&bits, element, (size_t)f->bytes);
	return bits;
}

static bool bits_are_nan(const struct format *f, uint32_t bits)
{
	uint32_t mantissa = bits & ((1u << f->mantissa) - 1);
	uint32_t exponent = bits >> f->mantissa & ((1u << f->exponent) - 1);

	if (exponent != (1u << f->exponent) - 1) {
		return false;
	}
	return f->infinities ? mantissa != 0 : mantissa == (1u << f->mantissa) - 1;
}

bool oracle_is_nan(int dtype, const void *element)
{
	const struct format *f = format_of(dtype);

	return f && bits_are_nan(f, load_bits(f, element));
}

/* For dtypes that have values. */
static const struct format *number_format(int dtype)
{
	const struct format *f = format_of(dtype);

	if (!f) {
		tap_bail("dtype %d has no numbers", dtype);
	}
	return f;
}

float oracle_load(int dtype, const void *row, int64_t index)
{
	const struct format *f = number_format(dtype);
	uint32_t bits = load_bits(f, (const unsigned char *)row + index * f->bytes);
	uint32_t mantissa = bits & ((1u << f->mantissa) - 1);
	uint32_t exponent = bits >> f->mantissa & ((1u << f->exponent) - 1);
	bool negative = bits >> (f->mantissa + f->exponent) & 1;
	double value;

	if (bits_are_nan(f, bits)) {
		value = (double)NAN;
	} else if (f->infinities && exponent == (1u << f->exponent) - 1) {
		value = (double)INFINITY;
	} else if (exponent == 0) {
		value = ldexp((double)mantissa, 1 - f->bias - f->mantissa);
	} else {
		value = ldexp((double)(mantissa + (1u << f->mantissa)),
			      (int)exponent - f->bias - f->mantissa);
	}
	return (float)copysign(value, negative ? -1.0 : 1.0);
}

/* The bits of |value|, rounded to nearest even. */
static uint32_t round_bits(const struct format *f, double value)
{
	uint32_t all = (1u << f->exponent) - 1;
	uint32_t largest = f->infinities ? (all << f->mantissa) - 1 :
					   (all << f->mantissa) + (1u << f->mantissa) - 2;
	int exponent;
	double units;

	if (isinf(value)) {
		return f->infinities ? all << f->mantissa : largest;
	}
	if (value == 0) {
		return 0;
	}
	exponent = ilogb(value);
	if (exponent < 1 - f->bias) {
		exponent = 1 - f->bias; /* subnormal: the distance between numbers stays the same */
	}
	/* How many distances between two neighbours it is: exact, then rounded. */
	units = rint(ldexp(value, f->mantissa - exponent));
	/*
	 * As integers, the bits of the format's numbers are consecutive, across exponents, too: so
	 * a mantissa that is rounded up to the next power of two needs no care.
	 */
	units += ldexp((double)(exponent + f->bias - 1), f->mantissa);
	if (units > (double)largest) {
		return f->infinities ? all << f->mantissa : largest;
	}
	return (uint32_t)units;
}

void oracle_store(int dtype, void *row, int64_t index, float value)
{
	const struct format *f = number_format(dtype);
	uint32_t bits;

	if (isnan(value)) {
		bits = (1u << (f->mantissa + f->exponent)) - 1;
		if (f->infinities) {
			/* The quiet bit alone. */
			bits = ((1u << f->exponent) - 1) << f->mantissa | 1u << (f->mantissa - 1);
		}
	} else {
		bits = round_bits(f, fabs((double)value));
	}
	bits |= (uint32_t)(signbit(value) != 0) << (f->mantissa + f->exponent);
	memcpy((unsigned char *)row + index * f->bytes, &bits, (size_t)f->bytes);
}

/* Routing. */

void oracle_experts(const struct oracle_group *group, int rank, int *first, int *count)
{
	int next = 0;

	*first = *count = 0;
	for (int r = 0; r <= rank; r++) {
		*first = next;
		*count = group->num_experts / group->num_ranks;
		if (r < group->num_experts % group->num_ranks) {
			*count += 1;
		}
		next += *count;
	}
}

static int64_t choice(const struct oracle_group *group, int rank, int64_t token, int k)
{
	return group->input[rank].topk[token * group->topk + k];
}

/* The local expert of a choice at `rank`, -1 if the choice is elsewhere or none. */
static int local_expert(const struct oracle_group *group, int rank, int64_t expert)
{
	int first, count;

	oracle_experts(group, rank, &first, &count);
	return expert >= first && expert < first + count ? (int)expert - first : -1;
}

static bool token_goes_to(const struct oracle_group *group, int src, int64_t token, int rank)
{
	for (int k = 0; k < group->topk; k++) {
		if (local_expert(group, rank, choice(group, src, token, k)) >= 0) {
			return true;
		}
	}
	return false;
}

static void add_row(struct oracle_rows *rows, int src_rank, int64_t src_token, int expert, int k)
{
	rows->row[rows->count++] = (struct oracle_row){ src_rank, src_token, expert, k };
}

static void route_flat(const struct oracle_group *group, int rank, struct oracle_rows *rows)
{
	for (int src = 0; src < group->num_ranks; src++) {
		for (int64_t t = 0; t < group->input[src].num_tokens; t++) {
			if (token_goes_to(group, src, t, rank)) {
				add_row(rows, src, t, -1, -1);
			}
		}
	}
}

static void route_expert(const struct oracle_group *group, int rank, int expert,
			 struct oracle_rows *rows)
{
	for (int src = 0; src < group->num_ranks; src++) {
		for (int64_t t = 0; t < group->input[src].num_tokens; t++) {
			for (int k = 0; k < group->topk; k++) {
				if (local_expert(group, rank, choice(group, src, t, k)) == expert) {
					add_row(rows, src, t, expert, k);
				}
			}
		}
	}
}

static int64_t round_up(int64_t value, int64_t multiple)
{
	return (value + multiple - 1) / multiple * multiple;
}

void oracle_route(const struct oracle_group *group, int rank, int row_layout, int alignment,
		  struct oracle_rows *rows)
{
	int first, count;
	int64_t most;

	oracle_experts(group, rank, &first, &count);
	most = (int64_t)count * alignment;
	for (int src = 0; src < group->num_ranks; src++) {
		most += group->input[src].num_tokens * group->topk;
	}
	*rows = (struct oracle_rows){
		.row = util_alloc((size_t)most * sizeof(struct oracle_row)),
		.local_experts = count,
		.per_expert = util_alloc((size_t)count * sizeof(int64_t)),
		.padded = util_alloc((size_t)count * sizeof(int64_t)),
		.offsets = util_alloc((size_t)(count + 1) * sizeof(int64_t)),
	};
	for (int src = 0; src < group->num_ranks; src++) {
		for (int64_t i = 0; i < group->input[src].num_tokens * group->topk; i++) {
			int expert = local_expert(group, rank, group->input[src].topk[i]);

			if (expert >= 0) {
				rows->per_expert[expert]++;
			}
		}
	}
	for (int e = 0; e < count; e++) {
		rows->padded[e] = round_up(rows->per_expert[e], alignment);
		rows->offsets[e + 1] = rows->offsets[e] + rows->padded[e];
	}
	if (row_layout != MOEEP_ROWS_EXPERT_MAJOR) {
		route_flat(group, rank, rows);
		return;
	}
	for (int e = 0; e < count; e++) {
		route_expert(group, rank, e, rows);
		while (rows->count < rows->offsets[e + 1]) {
			add_row(rows, -1, -1, e, -1);
		}
	}
}

void oracle_rows_free(struct oracle_rows *rows)
{
	free(rows->row);
	free(rows->per_expert);
	free(rows->padded);
	free(rows->offsets);
	*rows = (struct oracle_rows){ .count = 0 };
}

void oracle_layout(const struct oracle_group *group, int rank, const moeep_layout_args_t *want)
{
	int64_t num_tokens = group->input[rank].num_tokens;

	for (int e = 0; want->tokens_per_expert && e < group->num_experts; e++) {
		want->tokens_per_expert[e] = 0;
		for (int64_t i = 0; i < num_tokens * group->topk; i++) {
			want->tokens_per_expert[e] += group->input[rank].topk[i] == e;
		}
	}
	for (int r = 0; r < group->num_ranks; r++) {
		int32_t count = 0;

		for (int64_t t = 0; t < num_tokens; t++) {
			bool goes = token_goes_to(group, rank, t, r);

			count += goes;
			if (want->token_in_rank) {
				want->token_in_rank[t * group->num_ranks + r] = goes;
			}
		}
		if (want->tokens_per_rank) {
			want->tokens_per_rank[r] = count;
		}
	}
	/* Nodes are numbered without gaps, so the number of ranks is enough. */
	for (int n = 0; want->tokens_per_node && n < group->num_ranks; n++) {
		bool exists = false;
		int32_t count = 0;

		for (int64_t t = 0; t < num_tokens; t++) {
			bool goes = false;

			for (int r = 0; r < group->num_ranks; r++) {
				goes |= (group->node ? group->node[r] : 0) == n &&
					token_goes_to(group, rank, t, r);
			}
			count += goes;
		}
		for (int r = 0; r < group->num_ranks; r++) {
			exists |= (group->node ? group->node[r] : 0) == n;
		}
		if (exists) {
			want->tokens_per_node[n] = count;
		}
	}
}

/* Dispatch. */

int64_t oracle_scale_stride(int layout, int64_t rows, int scale_count)
{
	return layout == MOEEP_SCALES_COLUMN_MAJOR ? round_up(rows, 4) : scale_count;
}

size_t oracle_scales_bytes(int scale_dtype, int layout, int64_t rows, int scale_count,
			   int64_t stride)
{
	if (stride == 0) {
		stride = oracle_scale_stride(layout, rows, scale_count);
	}
	if (layout == MOEEP_SCALES_ROW_MAJOR) {
		return (size_t)(rows * stride) * oracle_dtype_size(scale_dtype);
	}
	if (scale_dtype == MOEEP_UE8M0) {
		scale_count = (scale_count + 3) / 4;
	}
	return (size_t)(scale_count * stride) * 4;
}

void oracle_put_scale(void *scales, int scale_dtype, int layout, int64_t stride, int64_t row,
		      int index, const uint8_t *value)
{
	uint8_t *out = scales;

	if (layout == MOEEP_SCALES_ROW_MAJOR) {
		size_t size = oracle_dtype_size(scale_dtype);

		memcpy(out + (size_t)(row * stride + index) * size, value, size);
	} else if (scale_dtype == MOEEP_FP32) {
		memcpy(out + (index * stride + row) * 4, value, 4);
	} else {
		uint8_t *word = out + (index / 4 * stride + row) * 4;

		/* In ascending order of index: what follows in the word is zero or still to come. */
		word[index % 4] = *value;
		for (int i = index % 4 + 1; i < 4; i++) {
			word[i] = 0;
		}
	}
}

static void put_index(void *out, int dtype, int64_t at, int64_t value)
{
	if (dtype == MOEEP_INT32) {
		((int32_t *)out)[at] = (int32_t)value;
	} else {
		((int64_t *)out)[at] = value;
	}
}

static void put_counts(const struct oracle_rows *rows, const moeep_dispatch_args_t *want)
{
	if (want->num_recv) {
		*want->num_recv = rows->count;
	}
	for (int e = 0; e < rows->local_experts; e++) {
		if (want->recv_per_expert) {
			want->recv_per_expert[e] = (int32_t)rows->per_expert[e];
		}
		if (want->recv_per_expert_padded) {
			want->recv_per_expert_padded[e] = (int32_t)rows->padded[e];
		}
	}
	for (int e = 0; e <= rows->local_experts; e++) {
		if (want->recv_expert_offsets) {
			want->recv_expert_offsets[e] = (int32_t)rows->offsets[e];
		}
	}
}

static void put_row_data(const struct oracle_group *group, const struct oracle_row *row, int64_t at,
			 const moeep_dispatch_args_t *want)
{
	static const uint8_t zeros[4] = { 0 };
	size_t row_bytes = (size_t)group->hidden * oracle_dtype_size(group->dtype);
	size_t scale_size = oracle_dtype_size(group->scale_dtype);
	const struct oracle_input *input = row->src_rank < 0 ? NULL : &group->input[row->src_rank];
	int64_t stride = want->recv_scale_stride;

	if (stride == 0) {
		stride = oracle_scale_stride(want->recv_scale_layout, want->capacity,
					     group->scale_count);
	}
	if (!input && !(want->flags & MOEEP_DISPATCH_ZERO_PADDING)) {
		return;
	}
	if (want->recv_x) {
		unsigned char *out = (unsigned char *)want->recv_x + (size_t)at * row_bytes;

		memset(out, 0, row_bytes);
		if (input) {
			memcpy(out,
			       (const unsigned char *)input->x +
				       (size_t)row->src_token * row_bytes,
			       row_bytes);
		}
	}
	for (int s = 0; want->recv_scales && s < group->scale_count; s++) {
		const uint8_t *value = zeros;

		if (input) {
			value = input->scales +
				(size_t)(row->src_token * group->scale_count + s) * scale_size;
		}
		oracle_put_scale(want->recv_scales, group->scale_dtype, want->recv_scale_layout,
				 stride, at, s, value);
	}
}

static void put_row_topk(const struct oracle_group *group, int rank, const struct oracle_row *row,
			 int64_t at, const moeep_dispatch_args_t *want)
{
	const float *weights = row->src_rank < 0 ? NULL : group->input[row->src_rank].weights;

	if (want->row_layout == MOEEP_ROWS_EXPERT_MAJOR) {
		if (want->recv_topk_weights) {
			want->recv_topk_weights[at] =
				weights ? weights[row->src_token * group->topk + row->k] : 0;
		}
		return;
	}
	for (int k = 0; k < group->topk; k++) {
		int expert = local_expert(group, rank, choice(group, row->src_rank,
							      row->src_token, k));

		if (want->recv_topk_idx) {
			put_index(want->recv_topk_idx, want->topk_dtype, at * group->topk + k,
				  expert);
		}
		if (want->recv_topk_weights) {
			want->recv_topk_weights[at * group->topk + k] =
				expert >= 0 ? weights[row->src_token * group->topk + k] : 0;
		}
	}
}

static void fill_tail(const struct oracle_group *group, int64_t from,
		      const moeep_dispatch_args_t *want)
{
	int wide = want->row_layout == MOEEP_ROWS_EXPERT_MAJOR ? 1 : group->topk;

	for (int64_t at = from; at < want->capacity; at++) {
		for (int k = 0; k < wide; k++) {
			if (want->recv_topk_idx) {
				put_index(want->recv_topk_idx, want->topk_dtype, at * wide + k, -1);
			}
			if (want->recv_topk_weights) {
				want->recv_topk_weights[at * wide + k] = 0;
			}
		}
		if (want->recv_src_token) {
			want->recv_src_token[at] = -1;
		}
		if (want->recv_src_rank) {
			want->recv_src_rank[at] = -1;
		}
		if (want->recv_expert) {
			want->recv_expert[at] = -1;
		}
	}
}

void oracle_dispatch(const struct oracle_group *group, int rank, const moeep_dispatch_args_t *want)
{
	bool expert_major = want->row_layout == MOEEP_ROWS_EXPERT_MAJOR;
	struct oracle_rows rows;
	int64_t count;

	oracle_route(group, rank, want->row_layout, want->expert_alignment, &rows);
	put_counts(&rows, want);
	if (want->flags & MOEEP_DISPATCH_COUNTS_ONLY) {
		goto out;
	}
	count = rows.count;
	if (count > want->capacity) {
		count = expert_major ? 0 : want->capacity;
	}
	for (int64_t at = 0; at < count; at++) {
		const struct oracle_row *row = &rows.row[at];

		put_row_data(group, row, at, want);
		put_row_topk(group, rank, row, at, want);
		if (want->recv_src_token) {
			want->recv_src_token[at] = (int32_t)row->src_token;
		}
		if (want->recv_src_rank) {
			want->recv_src_rank[at] = row->src_rank;
		}
		if (want->recv_expert) {
			want->recv_expert[at] = row->src_rank < 0 ? -1 : row->expert;
		}
	}
	if (want->flags & MOEEP_DISPATCH_FILL_TAIL) {
		fill_tail(group, rows.count, want);
	}
out:
	oracle_rows_free(&rows);
}

/* Combine. */

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
	struct sum sum = { false, 0 };

	for (int i = 0; i < c->count; i++) {
		float term;

		if (where[i] < 0) {
			continue;
		}
		term = oracle_load(c->want->dtype, c->side[from].x, where[i] * c->group->hidden + h);
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
	struct sum total = { false, 0 };

	for (int n = 0; n < c->num_nodes; n++) {
		struct sum node = { false, 0 };

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
		int64_t expert = choice(c->group, c->rank, c->token, k);
		float value = 0;

		for (int r = 0; r < c->group->num_ranks; r++) {
			const int64_t *where = c->where + (int64_t)r * c->count;

			if (local_expert(c->group, r, expert) < 0) {
				continue;
			}
			value = c->expert_major ? c->side[r].weights[where[k]] :
						  c->side[r].weights[where[0] * topk + k];
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
	free(c.where);
}

/* Low latency. */

/* The largest magnitude of a group: NaN does not count, and it is at least 1e-4. */
static float group_maximum(int dtype, const void *x, int64_t count)
{
	float a = 1e-4f;

	for (int64_t i = 0; i < count; i++) {
		float value = fabsf(oracle_load(dtype, x, i));

		if (value > a) {
			a = value;
		}
	}
	return a;
}

void oracle_quantize(int quant, int dtype, const void *x, int64_t count, uint8_t *q, uint8_t *scale)
{
	float a = group_maximum(dtype, x, count), multiplier, stored;

	if (quant == MOEEP_QUANT_FP8) {
		multiplier = 448.0f / a;
		stored = a * (1.0f / 448.0f);
	} else {
		int exponent = -149;

		stored = a * (1.0f / 448.0f);
		if (!isinf(stored)) {
			while (ldexpf(1.0f, exponent) < stored) {
				exponent++;
			}
			stored = ldexpf(1.0f, exponent);
		}
		multiplier = 1.0f / stored;
	}
	for (int64_t i = 0; i < count; i++) {
		float value = oracle_load(dtype, x, i), product = value * multiplier;

		/* The product of an infinity is a NaN whose sign the hardware picks. */
		if (isnan(product)) {
			product = copysignf(NAN, value);
		}
		oracle_store(MOEEP_FP8_E4M3, q, i, product);
	}
	if (quant == MOEEP_QUANT_FP8_UE8M0) {
		*scale = isinf(stored) ? 255 : (uint8_t)(ilogbf(stored) + 127);
	} else {
		memcpy(scale, &stored, sizeof(stored));
	}
}

static void ll_put_row(const struct oracle_group *group, const struct oracle_row *row, int64_t slot,
		       const moeep_ll_dispatch_args_t *want)
{
	const unsigned char *rows = group->input[row->src_rank].x;
	size_t row_bytes = (size_t)group->hidden * oracle_dtype_size(group->dtype);
	const unsigned char *x = rows + (size_t)row->src_token * row_bytes;
	int scale_dtype = want->quant == MOEEP_QUANT_FP8_UE8M0 ? MOEEP_UE8M0 : MOEEP_FP32;
	int scale_count = (int)((group->hidden + 127) / 128);
	int64_t at = (int64_t)row->expert * want->capacity + slot, stride = want->recv_scale_stride;
	unsigned char *scales = want->recv_scales;

	if (want->recv_src_token) {
		want->recv_src_token[at] = (int32_t)row->src_token;
	}
	if (want->quant == MOEEP_QUANT_NONE) {
		if (want->recv_x) {
			memcpy((unsigned char *)want->recv_x + (size_t)at * row_bytes, x,
			       row_bytes);
		}
		return;
	}
	if (stride == 0) {
		stride = oracle_scale_stride(want->recv_scale_layout, want->capacity, scale_count);
	}
	if (scales) {
		scales += (size_t)row->expert * oracle_scales_bytes(scale_dtype,
								     want->recv_scale_layout,
								     want->capacity, scale_count,
								     stride);
	}
	for (int s = 0; s < scale_count; s++) {
		int64_t start = (int64_t)s * 128, count = group->hidden - start;
		uint8_t q[128], scale[4];

		count = count > 128 ? 128 : count;
		oracle_quantize(want->quant, group->dtype,
				x + (size_t)start * oracle_dtype_size(group->dtype), count, q, scale);
		if (want->recv_x) {
			memcpy((unsigned char *)want->recv_x + at * group->hidden + start, q,
			       (size_t)count);
		}
		if (scales) {
			oracle_put_scale(scales, scale_dtype, want->recv_scale_layout, stride, slot,
					 s, scale);
		}
	}
}

bool oracle_ll_dispatch(const struct oracle_group *group, int rank,
			const moeep_ll_dispatch_args_t *want)
{
	struct oracle_rows rows;
	bool fits = true;

	oracle_route(group, rank, MOEEP_ROWS_EXPERT_MAJOR, 1, &rows);
	for (int e = 0; e < rows.local_experts; e++) {
		int64_t first = 0;

		if (want->recv_count) {
			want->recv_count[e] = (int32_t)rows.per_expert[e];
		}
		fits &= rows.per_expert[e] <= want->capacity;
		for (int r = 0; r < group->num_ranks; r++) {
			int64_t count = 0;

			for (int64_t at = rows.offsets[e]; at < rows.offsets[e + 1]; at++) {
				count += rows.row[at].src_rank == r;
			}
			if (want->recv_range) {
				want->recv_range[(int64_t)e * group->num_ranks + r] =
					first << 32 | count;
			}
			first += count;
		}
		for (int64_t at = rows.offsets[e]; at < rows.offsets[e + 1]; at++) {
			if (at - rows.offsets[e] < want->capacity) {
				ll_put_row(group, &rows.row[at], at - rows.offsets[e], want);
			}
		}
	}
	oracle_rows_free(&rows);
	return fits;
}

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
	struct sum total = { false, 0 };

	for (int r = 0; r < group->num_ranks; r++) {
		struct sum part = { false, 0 };

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
			if (local_expert(group, r, choice(group, rank, c.token, k)) >= 0) {
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
	free(c.where);
	free(rows);
	return complete;
}
