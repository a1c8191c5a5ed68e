/* SPDX-License-Identifier: MIT */
/*
 * tools/routing_source.h - where choices of experts come from: a distribution by name, or files,
 * which come from anywhere and are checked whole before anything is made of them.
 *
 * What is drawn from a source or read out of it for each token is routing.h's.
 */
#ifndef MOEEP_TOOLS_ROUTING_SOURCE_H
#define MOEEP_TOOLS_ROUTING_SOURCE_H

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

#endif
