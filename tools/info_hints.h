/* SPDX-License-Identifier: MIT */
/*
 * tools/info_hints.h - moeep-info --hints: the memory that a configuration takes on each rank.
 *
 * The defaults of the configuration are moeep-info.c's, which documents them.
 */
#ifndef MOEEP_TOOLS_INFO_HINTS_H
#define MOEEP_TOOLS_INFO_HINTS_H

#include <stdint.h>

#include <moeep/moeep.h>

#include "output.h"

/* A configuration whose memory is asked for. */
struct info_hints {
	int64_t ranks;
	int64_t hidden;
	int64_t experts;
	int64_t topk;
	int64_t ht_tokens;
	int64_t ll_tokens;
	int dtype;
	moeep_size_hint_t ht;
	moeep_size_hint_t ll;
	int result; /* of asking */
	char detail[256];
};

/* Take "NAME=VALUE,...". 0, or -1 with a message on standard error. */
int info_hints_read(struct info_hints *h, const char *list);

/* Ask the library; what it refuses is in result and detail. */
void info_hints_ask(struct info_hints *h);

void info_hints_text(const struct info_hints *h);
void info_hints_json(struct json *json, const struct info_hints *h);

#endif
