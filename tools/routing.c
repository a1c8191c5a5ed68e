/* SPDX-License-Identifier: MIT */
/* tools/routing.c - choices of experts, made up or from a file, and the rows they lead to. */
#include <config.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moeep/moeep.h>

#include "routing.h"

/* The finaliser of splitmix64. */
uint64_t routing_mix(uint64_t seed, uint64_t index)
{
	uint64_t z = seed + (index + 1) * UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

struct stream {
	uint64_t seed;
	uint64_t index;
};

/* In [0, 1). */
static double stream_real(struct stream *s)
{
	return (double)(routing_mix(s->seed, s->index++) >> 11) * 0x1p-53;
}

static int64_t stream_below(struct stream *s, int64_t limit)
{
	return (int64_t)(routing_mix(s->seed, s->index++) % (uint64_t)limit);
}

static int open_file(const char *path, const char *what, struct npy *npy, char *error,
		     size_t error_size)
{
	char wrong[160];

	if (npy_read(path, npy, wrong, sizeof(wrong))) {
		snprintf(error, error_size, "%s \"%.200s\": %s", what, path, wrong);
		return -1;
	}
	if (npy->rows == 0 || npy->columns == 0) {
		snprintf(error, error_size, "%s \"%.200s\" has no elements", what, path);
		npy_free(npy);
		return -1;
	}
	return 0;
}

static int open_files(const char *text, struct routing_source *source, char *error,
		      size_t error_size)
{
	const char *comma = strstr(text, ".npy,");
	size_t length = comma ? (size_t)(comma - text) + 4 : strlen(text);
	char *path = strndup(text, length);
	int rc = -1;

	if (!path) {
		snprintf(error, error_size, "no memory for a path");
		return -1;
	}
	if (open_file(path, "routing file", &source->indices, error, error_size)) {
		goto out;
	}
	if (source->indices.type == NPY_FLOAT32) {
		snprintf(error, error_size,
			 "routing file \"%.200s\" holds float32; expert ids are int32 or int64",
			 path);
		goto out;
	}
	if (source->indices.columns > 64) {
		snprintf(
			error, error_size,
			"routing file \"%.200s\" has %lld choices a token; at most 64 are possible",
			path, (long long)source->indices.columns);
		goto out;
	}
	for (int64_t i = 0; i < source->indices.rows * source->indices.columns; i++) {
		int64_t expert = npy_integer(&source->indices, i);

		if (expert < -1 || expert > 65535) {
			snprintf(error, error_size,
				 "routing file \"%.200s\" has expert %lld in row %lld; experts "
				 "are 0 to 65535, or -1 for none",
				 path, (long long)expert, (long long)(i / source->indices.columns));
			goto out;
		}
		source->largest = expert > source->largest ? expert : source->largest;
	}
	if (!comma) {
		rc = 0;
		goto out;
	}
	if (open_file(comma + 5, "weights file", &source->weights, error, error_size)) {
		goto out;
	}
	if (source->weights.type != NPY_FLOAT32 || source->weights.rows != source->indices.rows ||
	    source->weights.columns != source->indices.columns) {
		snprintf(error, error_size,
			 "weights file \"%.200s\" is not float32 of the routing file's shape",
			 comma + 5);
		goto out;
	}
	for (int64_t i = 0; i < source->weights.rows * source->weights.columns; i++) {
		if (!isfinite(((const float *)source->weights.data)[i])) {
			snprintf(error, error_size,
				 "weights file \"%.200s\" has a value in row %lld that is not "
				 "finite",
				 comma + 5, (long long)(i / source->weights.columns));
			goto out;
		}
	}
	rc = 0;
out:
	free(path);
	return rc;
}

int routing_source_open(const char *text, struct routing_source *source, char *error,
			size_t error_size)
{
	size_t length = strlen(text);
	char *end;

	memset(source, 0, sizeof(*source));
	if (!strcmp(text, "uniform")) {
		source->kind = ROUTING_UNIFORM;
		return 0;
	}
	if (!strncmp(text, "zipf:", 5)) {
		source->kind = ROUTING_ZIPF;
		source->exponent = strtod(text + 5, &end);
		if (text[5] < '0' || text[5] > '9' || *end != '\0' || !(source->exponent > 0) ||
		    source->exponent > 10) {
			snprintf(error, error_size,
				 "the exponent of \"%.40s\" is not a number above 0 and up to 10",
				 text);
			return -1;
		}
		return 0;
	}
	if (length < 4 || strcmp(text + length - 4, ".npy") != 0) {
		snprintf(error, error_size,
			 "\"%.200s\" is not uniform, zipf:EXPONENT, FILE.npy or "
			 "FILE.npy,WEIGHTS.npy",
			 text);
		return -1;
	}
	source->kind = ROUTING_FILE;
	source->largest = -1;
	if (open_files(text, source, error, error_size)) {
		routing_source_free(source);
		return -1;
	}
	return 0;
}

void routing_source_free(struct routing_source *source)
{
	npy_free(&source->indices);
	npy_free(&source->weights);
}

/* Popularity of each expert; which ones are popular depends on the seed. */
static void popularity_make(const struct routing_source *source, const struct routing_shape *shape,
			    double *popularity)
{
	struct stream s = {routing_mix(shape->seed, 1), 0};

	for (int e = 0; e < shape->experts; e++) {
		popularity[e] = source->kind == ROUTING_ZIPF
					? pow((double)(e + 1), -source->exponent)
					: 1.0;
	}
	for (int e = shape->experts - 1; e > 0; e--) {
		int64_t other = stream_below(&s, e + 1);
		double held = popularity[e];

		popularity[e] = popularity[other];
		popularity[other] = held;
	}
}

/* One that was not chosen yet, as likely as it is popular. */
static int32_t draw(struct stream *s, const double *popularity, const double *running, int experts,
		    const int32_t *chosen, int count, double *scratch)
{
	double mass = 0;
	int32_t last = 0;

	/* Nearly always the first draw is a new one. */
	for (int attempt = 0; attempt < 8; attempt++) {
		double u = stream_real(s) * running[experts - 1];
		int low = 0, high = experts - 1, k = 0;

		while (low < high) {
			int middle = low + (high - low) / 2;

			if (running[middle] > u) {
				high = middle;
			} else {
				low = middle + 1;
			}
		}
		while (k < count && chosen[k] != low) {
			k++;
		}
		if (k == count) {
			return low;
		}
	}
	memcpy(scratch, popularity, (size_t)experts * sizeof(*scratch));
	for (int k = 0; k < count; k++) {
		scratch[chosen[k]] = 0;
	}
	for (int e = 0; e < experts; e++) {
		mass += scratch[e];
	}
	mass *= stream_real(s);
	for (int e = 0; e < experts; e++) {
		if (scratch[e] > 0) {
			last = e;
			mass -= scratch[e];
			if (mass < 0) {
				break;
			}
		}
	}
	return last;
}

static void token_make(struct routing *r, struct stream *s, const double *popularity,
		       const double *running, double *scratch, int64_t at)
{
	int topk = r->shape.topk;
	double sum = 0;

	for (int k = 0; k < topk; k++) {
		r->choice[at + k] =
			draw(s, popularity, running, r->shape.experts, r->choice + at, k, scratch);
	}
	for (int k = 0; k < topk; k++) {
		double weight = 0.05 + stream_real(s);

		r->weight[at + k] = (float)weight;
		sum += weight;
	}
	for (int k = 0; k < topk; k++) {
		r->weight[at + k] = (float)((double)r->weight[at + k] / sum);
	}
}

static void token_read(struct routing *r, const struct routing_source *source, int64_t row,
		       int64_t at)
{
	for (int k = 0; k < r->shape.topk; k++) {
		int64_t i = row * source->indices.columns + k;

		r->choice[at + k] = (int32_t)npy_integer(&source->indices, i);
		r->weight[at + k] = source->weights.data ? ((const float *)source->weights.data)[i]
							 : 1.0f / (float)(k + 2);
	}
}

/* The file's tokens in order, each rank and variant from a place of its own, again and again. */
static int64_t file_row(const struct routing *r, const struct routing_source *source, int variant,
			int rank, int64_t token)
{
	int64_t rows = source->indices.rows;
	int64_t parts = (int64_t)r->shape.ranks * r->shape.variants;
	int64_t part = (int64_t)rank * r->shape.variants + variant;

	return (part * rows / parts + token) % rows;
}

static int64_t count_make(const struct routing_shape *shape, int variant, int rank)
{
	uint64_t mixed = routing_mix(shape->seed ^ 0x756e6576656eU,
				     (uint64_t)variant * 4096 + (uint64_t)rank);

	/* One rank is full and the next one empty; which ones depends on the variant. */
	if (!shape->uneven || (rank + variant) % shape->ranks == 0) {
		return shape->tokens;
	}
	if ((rank + variant) % shape->ranks == 1) {
		return 0;
	}
	return (int64_t)(mixed % (uint64_t)(shape->tokens + 1));
}

static int routing_fill(struct routing *r, const struct routing_source *source)
{
	const struct routing_shape *shape = &r->shape;
	double *popularity = calloc((size_t)shape->experts * 3, sizeof(*popularity));
	double *running = popularity + shape->experts;
	double sum = 0;

	if (!popularity) {
		return -1;
	}
	popularity_make(source, shape, popularity);
	for (int e = 0; e < shape->experts; e++) {
		sum += popularity[e];
		running[e] = sum;
	}
	for (int v = 0; v < shape->variants; v++) {
		for (int rank = 0; rank < shape->ranks; rank++) {
			struct stream s = {routing_mix(shape->seed,
						       1000 + (uint64_t)v * 4096 + (uint64_t)rank),
					   0};

			r->tokens[v * shape->ranks + rank] = count_make(shape, v, rank);
			for (int64_t t = 0; t < routing_tokens(r, v, rank); t++) {
				int64_t at = routing_at(r, v, rank, t);

				if (source->kind == ROUTING_FILE) {
					token_read(r, source, file_row(r, source, v, rank, t), at);
				} else {
					token_make(r, &s, popularity, running,
						   running + shape->experts, at);
				}
				for (int k = 0; shape->masked > 0 && k < shape->topk; k++) {
					if (stream_real(&s) < shape->masked) {
						r->choice[at + k] = -1;
					}
				}
			}
		}
	}
	free(popularity);
	return 0;
}

int routing_make(const struct routing_source *source, const struct routing_shape *shape,
		 struct routing *routing, char *error, size_t error_size)
{
	struct routing own = {.shape = *shape};
	size_t choices = (size_t)shape->variants * (size_t)shape->ranks * (size_t)shape->tokens *
			 (size_t)shape->topk;

	if (source->kind == ROUTING_FILE && shape->topk > source->indices.columns) {
		snprintf(error, error_size, "the routing file has %lld choices a token, not %d",
			 (long long)source->indices.columns, shape->topk);
		return -1;
	}
	if (source->kind == ROUTING_FILE && source->largest >= shape->experts) {
		snprintf(error, error_size, "the routing file names expert %lld; there are %d",
			 (long long)source->largest, shape->experts);
		return -1;
	}
	own.tokens = calloc((size_t)shape->variants * (size_t)shape->ranks, sizeof(*own.tokens));
	own.choice = calloc(choices + 1, sizeof(*own.choice));
	own.weight = calloc(choices + 1, sizeof(*own.weight));
	own.owner = calloc((size_t)shape->experts, sizeof(*own.owner));
	own.first = calloc((size_t)shape->ranks + 1, sizeof(*own.first));
	if (!own.tokens || !own.choice || !own.weight || !own.owner || !own.first) {
		goto err_memory;
	}
	for (int rank = 0; rank < shape->ranks; rank++) {
		int first, count;

		if (moeep_expert_range(shape->experts, shape->ranks, rank, &first, &count)) {
			snprintf(error, error_size, "%s", moeep_error_detail());
			goto err_free;
		}
		for (int e = first; e < first + count; e++) {
			own.owner[e] = rank;
		}
		own.first[rank] = first;
		own.first[rank + 1] = first + count;
	}
	if (routing_fill(&own, source)) {
		goto err_memory;
	}
	*routing = own;
	return 0;

err_memory:
	snprintf(error, error_size, "no memory for the routing of %lld tokens a rank",
		 (long long)shape->tokens);
err_free:
	routing_free(&own);
	return -1;
}

void routing_free(struct routing *routing)
{
	free(routing->tokens);
	free(routing->choice);
	free(routing->weight);
	free(routing->owner);
	free(routing->first);
	memset(routing, 0, sizeof(*routing));
}

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
