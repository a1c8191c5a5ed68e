/* SPDX-License-Identifier: MIT */
/* tools/routing_source.c - reading where choices of experts come from, files included. */
#include <config.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "routing_source.h"

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
