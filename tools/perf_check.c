/* SPDX-License-Identifier: MIT */
/* tools/perf_check.c - what every operation must have made of the rows. */
#include <config.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "payload.h"
#include "perf_check.h"

static bool is_flat(const struct check *c, bool ht)
{
	return ht && c->options->row_layout == MOEEP_ROWS_FLAT;
}

static void wrong(const struct check *c, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void wrong(const struct check *c, const char *format, ...)
{
	va_list args;
	size_t used;

	if (c->result->wrong++ > 0) {
		return;
	}
	used = (size_t)snprintf(c->result->first, sizeof(c->result->first), "rank %d: ", c->rank);
	va_start(args, format);
	vsnprintf(c->result->first + used, sizeof(c->result->first) - used, format, args);
	va_end(args);
}

static void check_value(const struct check *c, int64_t got, int64_t expected, const char *what,
			int64_t index)
{
	c->result->values++;
	if (got != expected) {
		wrong(c, "%s[%" PRId64 "] is %" PRId64 ", expected %" PRId64, what, index, got,
		      expected);
	}
}

static void check_float(const struct check *c, float got, float expected, const char *what,
			int64_t index)
{
	c->result->values++;
	if (float_bits(got) != float_bits(expected)) {
		wrong(c, "%s[%" PRId64 "] is %.9g, expected %.9g", what, index, (double)got,
		      (double)expected);
	}
}

static void check_row(const struct check *c, const void *got, const void *expected, int64_t count,
		      size_t size, const char *what, int64_t index, const struct routing_row *from)
{
	const unsigned char *a = got, *b = expected;

	c->result->values += (uint64_t)count;
	if (!memcmp(a, b, (size_t)count * size)) {
		return;
	}
	for (int64_t h = 0; h < count; h++) {
		uint32_t x = 0, y = 0;

		memcpy(&x, a + (size_t)h * size, size);
		memcpy(&y, b + (size_t)h * size, size);
		if (x != y) {
			wrong(c,
			      "%s[%" PRId64 "] element %" PRId64
			      " is 0x%0*x, expected 0x%0*x (token "
			      "%d of rank %d)",
			      what, index, h, (int)size * 2, x, (int)size * 2, y, (int)from->token,
			      (int)from->source);
		}
	}
}

static int64_t index_at(const void *array, int dtype, int64_t i)
{
	return dtype == MOEEP_INT32 ? ((const int32_t *)array)[i] : ((const int64_t *)array)[i];
}

int64_t check_scale_offset(int dtype, int layout, int64_t rows, int64_t count, int64_t row,
			   int64_t s)
{
	int64_t stride = (rows + 3) / 4 * 4;

	if (dtype == MOEEP_UE8M0) {
		return layout == MOEEP_SCALES_ROW_MAJOR ? row * count + s
							: (s / 4 * stride + row) * 4 + s % 4;
	}
	return 4 * (layout == MOEEP_SCALES_ROW_MAJOR ? row * count + s : s * stride + row);
}

static void check_scales(const struct check *c, const unsigned char *scales, int dtype,
			 int64_t capacity, const float *expected, const struct routing_row *row,
			 int64_t at)
{
	int32_t count = perf_scale_count(c->options);

	for (int32_t s = 0; s < count; s++) {
		const unsigned char *got =
			scales +
			check_scale_offset(dtype, c->options->scale_layout, capacity, count, at, s);
		float value;

		if (dtype == MOEEP_UE8M0) {
			value = bits_float((uint32_t)*got << 23);
		} else {
			memcpy(&value, got, sizeof(value));
		}
		c->result->values++;
		if (float_bits(value) != float_bits(expected[s])) {
			wrong(c,
			      "scale %d of row %" PRId64
			      " is %.9g, expected %.9g (token %d of rank "
			      "%d)",
			      (int)s, row->position, (double)value, (double)expected[s],
			      (int)row->token, (int)row->source);
		}
	}
}

/* The choices of one row: local experts and weights. */
static void check_choices(const struct check *c, const struct routing_row *row,
			  const moeep_dispatch_args_t *args)
{
	const struct routing *r = c->routing;
	int64_t from = routing_at(r, c->variant, row->source, row->token);
	int topk = r->shape.topk;

	if (row->choice >= 0) {
		check_value(c, args->recv_expert[row->position], row->expert, "recv_expert",
			    row->position);
		check_float(c, args->recv_topk_weights[row->position],
			    r->weight[from + row->choice], "recv_topk_weights", row->position);
		return;
	}
	for (int k = 0; k < topk; k++) {
		int32_t expert = r->choice[from + k];
		bool here = expert >= 0 && r->owner[expert] == c->rank;
		int64_t at = row->position * topk + k;

		check_value(c, index_at(args->recv_topk_idx, args->topk_dtype, at),
			    here ? expert - r->first[c->rank] : -1, "recv_topk_idx", at);
		check_float(c, args->recv_topk_weights[at], here ? r->weight[from + k] : 0.0f,
			    "recv_topk_weights", at);
	}
}

static void check_ht_counts(const struct check *c, const struct routing_rows *rows,
			    const moeep_dispatch_args_t *args)
{
	int64_t step = c->options->alignment, offset = 0;

	check_value(c, *args->num_recv, rows->total, "num_recv", 0);
	for (int e = 0; e < rows->experts; e++) {
		int64_t padded = (rows->expert_count[e] + step - 1) / step * step;

		check_value(c, args->recv_per_expert[e], rows->expert_count[e], "recv_per_expert",
			    e);
		check_value(c, args->recv_per_expert_padded[e], padded, "recv_per_expert_padded",
			    e);
		check_value(c, args->recv_expert_offsets[e], offset, "recv_expert_offsets", e);
		offset += padded;
	}
	check_value(c, args->recv_expert_offsets[rows->experts], offset, "recv_expert_offsets",
		    rows->experts);
}

int check_ht_dispatch(const struct check *check, const struct routing_rows *rows,
		      const moeep_dispatch_args_t *args)
{
	const struct perf_options *o = check->options;
	size_t size = moeep_dtype_size(o->dtype);
	int64_t row_bytes = perf_row_bytes(o, o->dtype), next = 0;
	unsigned char *expected = malloc((size_t)row_bytes);
	float *scales = malloc((size_t)perf_scale_count(o) * sizeof(*scales));

	if (!expected || !scales) {
		free(expected);
		free(scales);
		return -1;
	}
	check_ht_counts(check, rows, args);
	for (int64_t i = 0; i < rows->count; i++) {
		const struct routing_row *row = &rows->row[i];

		for (; next < row->position; next++) {
			check_value(check, args->recv_src_token[next], -1, "padding recv_src_token",
				    next);
			check_value(check, args->recv_src_rank[next], -1, "padding recv_src_rank",
				    next);
		}
		next = row->position + 1;
		check_value(check, args->recv_src_token[row->position], row->token,
			    "recv_src_token", row->position);
		check_value(check, args->recv_src_rank[row->position], row->source, "recv_src_rank",
			    row->position);
		check_choices(check, row, args);
		payload_dispatch(o, true, check->copy, row->source, row->token, expected);
		check_row(check, (const unsigned char *)args->recv_x + row->position * row_bytes,
			  expected, o->hidden, size, "row", row->position, row);
		if (args->recv_scales) {
			payload_scales(o, check->copy, row->source, row->token, scales);
			check_scales(check, args->recv_scales, MOEEP_FP32, args->capacity, scales,
				     row, row->position);
		}
	}
	free(expected);
	free(scales);
	return 0;
}

static void check_ll_counts(const struct check *c, const struct routing_rows *rows,
			    const moeep_ll_dispatch_args_t *args)
{
	int ranks = c->routing->shape.ranks;
	int64_t i = 0;

	for (int e = 0; e < rows->experts; e++) {
		int64_t first = i;

		check_value(c, args->recv_count[e], rows->expert_count[e], "recv_count", e);
		for (int source = 0; source < ranks; source++) {
			int64_t start = i - first, got = args->recv_range[e * ranks + source];

			while (i < rows->count && rows->row[i].expert == e &&
			       rows->row[i].source == source) {
				i++;
			}
			/* Where nothing came from the first row says nothing. */
			check_value(c, got & 0xffffffff, i - first - start, "recv_range count",
				    e * ranks + source);
			if (i - first > start) {
				check_value(c, got >> 32, start, "recv_range first row",
					    e * ranks + source);
			}
		}
	}
}

int check_ll_dispatch(const struct check *check, const struct routing_rows *rows,
		      const moeep_ll_dispatch_args_t *args)
{
	const struct perf_options *o = check->options;
	bool cast = o->quant != MOEEP_QUANT_NONE;
	int dtype = cast ? MOEEP_FP8_E4M3 : o->dtype;
	int scale_dtype = o->quant == MOEEP_QUANT_FP8_UE8M0 ? MOEEP_UE8M0 : MOEEP_FP32;
	int64_t row_bytes = perf_row_bytes(o, dtype);
	int64_t scales_bytes = (int64_t)moeep_scales_bytes(scale_dtype, o->scale_layout,
							   args->capacity, perf_scale_count(o), 0);
	unsigned char *sent = malloc((size_t)perf_row_bytes(o, o->dtype));
	unsigned char *expected = malloc((size_t)perf_row_bytes(o, o->dtype));
	float *values = malloc(((size_t)o->hidden + (size_t)perf_scale_count(o)) * sizeof(*values));
	int rc = -1;

	if (!sent || !expected || !values) {
		goto out;
	}
	check_ll_counts(check, rows, args);
	for (int64_t i = 0; i < rows->count; i++) {
		const struct routing_row *row = &rows->row[i];
		int64_t at = row->position - row->expert * args->capacity;

		check_value(check, args->recv_src_token[row->position], row->token,
			    "recv_src_token", row->position);
		payload_dispatch(o, false, check->copy, row->source, row->token,
				 cast ? sent : expected);
		if (cast) {
			payload_to_float(sent, o->dtype, o->hidden, values);
			payload_quantise(o, values, expected, values + o->hidden);
			check_scales(check,
				     (const unsigned char *)args->recv_scales +
					     row->expert * scales_bytes,
				     scale_dtype, args->capacity, values + o->hidden, row, at);
		}
		check_row(check, (const unsigned char *)args->recv_x + row->position * row_bytes,
			  expected, o->hidden, moeep_dtype_size(dtype), "row", row->position, row);
	}
	rc = 0;
out:
	free(sent);
	free(expected);
	free(values);
	return rc;
}

/* Add a node's sum to that of the nodes before it, if it has one; `rank` is of the node. */
static bool add_node(const struct check *c, int rank, bool node_any, bool any, float *node,
		     float *sum)
{
	const struct perf_options *o = c->options;
	int partial_dtype = o->partial_dtype ? o->partial_dtype : o->combine_dtype;

	if (!node_any) {
		return any;
	}
	for (int64_t h = 0; h < o->hidden; h++) {
		if (perf_node(o, rank) != perf_node(o, c->rank)) {
			float travels;

			payload_from_float(&node[h], partial_dtype, 1, &travels);
			payload_to_float(&travels, partial_dtype, 1, &node[h]);
		}
		sum[h] = any ? sum[h] + node[h] : node[h];
	}
	return true;
}

/*
 * The sum that a token must come to; scratch has room for three rows of floats and one of elements.
 */
static void combine_token(const struct check *c, bool ht, int64_t token, float *sum, float *scratch)
{
	const struct perf_options *o = c->options;
	const struct routing *r = c->routing;
	int64_t from = routing_at(r, c->variant, c->rank, token), hidden = o->hidden;
	int partial_dtype = o->partial_dtype ? o->partial_dtype : o->combine_dtype;
	float *partial = scratch, *value = scratch + hidden;
	void *row = scratch + 2 * hidden;
	float *node = scratch + 3 * hidden;
	bool flat = is_flat(c, ht), any = false, node_any = false;

	for (int64_t h = 0; h < hidden; h++) {
		sum[h] = 0;
	}
	for (int rank = 0; rank < r->shape.ranks; rank++) {
		bool started = false;

		/* HT sums each node first; what travels to another node is rounded. */
		if (ht && rank > 0 && perf_node(o, rank) != perf_node(o, rank - 1)) {
			any = add_node(c, rank - 1, node_any, any, node, sum);
			node_any = false;
		}

		for (int k = 0; k < r->shape.topk; k++) {
			int32_t expert = r->choice[from + k];

			if (expert < 0 || r->owner[expert] != rank || (flat && started)) {
				continue;
			}
			payload_combine(o, flat, flat ? rank : k, c->rank, token, row);
			payload_to_float(row, o->combine_dtype, hidden, value);
			for (int64_t h = 0; !flat && h < hidden; h++) {
				value[h] *= r->weight[from + k];
			}
			for (int64_t h = 0; h < hidden; h++) {
				partial[h] = started ? partial[h] + value[h] : value[h];
			}
			started = true;
		}
		if (!started) {
			continue;
		}
		if (!flat) {
			payload_from_float(partial, partial_dtype, hidden, row);
			payload_to_float(row, partial_dtype, hidden, partial);
		}
		for (int64_t h = 0; h < hidden; h++) {
			node[h] = node_any ? node[h] + partial[h] : partial[h];
		}
		node_any = true;
	}
	(void)add_node(c, r->shape.ranks - 1, node_any, any, node, sum);
}

int check_combine(const struct check *check, bool ht, const void *out)
{
	const struct perf_options *o = check->options;
	int64_t row_bytes = perf_row_bytes(o, o->combine_dtype);
	float *scratch = malloc((size_t)o->hidden * 6 * sizeof(*scratch));

	if (!scratch) {
		return -1;
	}
	for (int64_t t = 0; t < routing_tokens(check->routing, check->variant, check->rank); t++) {
		struct routing_row row = {t, check->rank, (int32_t)t, -1, -1};
		float *sum = scratch + o->hidden * 4;
		void *expected = scratch + o->hidden * 5;

		combine_token(check, ht, t, sum, scratch);
		payload_from_float(sum, o->combine_dtype, o->hidden, expected);
		check_row(check, (const unsigned char *)out + t * row_bytes, expected, o->hidden,
			  moeep_dtype_size(o->combine_dtype), "out", t, &row);
	}
	free(scratch);
	return 0;
}
