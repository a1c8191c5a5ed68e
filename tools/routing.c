/* SPDX-License-Identifier: MIT */
/* tools/routing.c - choices of experts, made up or from a file. */
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
