/* SPDX-License-Identifier: MIT */
/* tools/info_hints.c - memory of a configuration: options, the question, text and JSON. */
#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "info_hints.h"

static int read_hint(struct info_hints *h, const char *key, const char *value)
{
	static const int dtypes[] = {MOEEP_BF16,     MOEEP_FP16,     MOEEP_FP32,
				     MOEEP_FP8_E4M3, MOEEP_FP8_E5M2, MOEEP_INT8};
	const struct {
		const char *name;
		int64_t *field;
		int64_t min, max;
	} numbers[] = {
		{"ranks", &h->ranks, 1, 4096},
		{"hidden", &h->hidden, 1, INT64_C(1) << 32},
		{"experts", &h->experts, 1, 65536},
		{"topk", &h->topk, 1, 64},
		{"ht-tokens", &h->ht_tokens, 1, (1 << 24) - 1},
		{"ll-tokens", &h->ll_tokens, 1, 65535},
	};

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (strcmp(key, numbers[i].name) != 0) {
			continue;
		}
		if (parse_int(value, numbers[i].min, numbers[i].max, numbers[i].field)) {
			fprintf(stderr,
				"moeep-info: --hints %s=\"%.40s\": it takes a whole number from "
				"%" PRId64 " to %" PRId64 "\n",
				key, value, numbers[i].min, numbers[i].max);
			return -1;
		}
		return 0;
	}
	if (!strcmp(key, "dtype")) {
		for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
			if (!strcmp(value, moeep_dtype_name(dtypes[i]))) {
				h->dtype = dtypes[i];
				return 0;
			}
		}
		fprintf(stderr,
			"moeep-info: --hints dtype=\"%.40s\": it takes bf16, fp16, fp32, fp8_e4m3, "
			"fp8_e5m2, int8\n",
			value);
		return -1;
	}
	fprintf(stderr,
		"moeep-info: --hints \"%.40s\": it knows ranks, hidden, experts, topk, "
		"ht-tokens, ll-tokens, dtype\n",
		key);
	return -1;
}

int info_hints_read(struct info_hints *h, const char *list)
{
	char *own = strdup(list), *rest = own, *item;
	int rc = 0;

	if (!own) {
		fprintf(stderr, "moeep-info: no memory\n");
		return -1;
	}
	while (rc == 0 && (item = strsep(&rest, ","))) {
		char *value = strchr(item, '=');

		if (!value) {
			fprintf(stderr, "moeep-info: --hints \"%.40s\": NAME=VALUE is needed\n",
				item);
			rc = -1;
			break;
		}
		*value++ = '\0';
		rc = read_hint(h, item, value);
	}
	free(own);
	return rc;
}

/* The two families apart, as buffers of their own. */
void info_hints_ask(struct info_hints *h)
{
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.num_experts = (int32_t)h->experts,
		.max_topk = (int32_t)h->topk,
		.dtype = h->dtype,
		.hidden = h->hidden,
		.ht_max_tokens = h->ht_tokens,
		.ll_max_tokens = h->ll_tokens,
	};

	h->ht.size = sizeof(h->ht);
	h->ll.size = sizeof(h->ll);
	config.modes = MOEEP_MODE_HT;
	h->result = moeep_buffer_size_hint(NULL, 0, (int)h->ranks, &config, &h->ht);
	if (h->result == 0) {
		config.modes = MOEEP_MODE_LL;
		h->result = moeep_buffer_size_hint(NULL, 0, (int)h->ranks, &config, &h->ll);
	}
	if (h->result) {
		const char *detail = moeep_error_detail();

		snprintf(h->detail, sizeof(h->detail), "%s",
			 detail[0] ? detail : moeep_strerror(h->result));
	}
}

static void text_hint(const char *name, const moeep_size_hint_t *hint)
{
	char a[HUMAN_TEXT], b[HUMAN_TEXT], c[HUMAN_TEXT];

	printf("  %-16sshared %s, private %s, each handle %s\n", name,
	       human_bytes(hint->window_bytes, a), human_bytes(hint->private_bytes, b),
	       human_bytes(hint->handle_bytes, c));
}

void info_hints_text(const struct info_hints *h)
{
	printf("\nMemory of a buffer on each rank: %" PRId64 " ranks on one host, hidden %" PRId64
	       ", top-%" PRId64 " of %" PRId64 ", %s\n",
	       h->ranks, h->hidden, h->topk, h->experts, moeep_dtype_name(h->dtype));
	if (h->result) {
		printf("  not possible: %s\n", h->detail);
		return;
	}
	printf("  HT, up to %" PRId64 " tokens a rank; LL, up to %" PRId64 "\n", h->ht_tokens,
	       h->ll_tokens);
	text_hint("HT", &h->ht);
	text_hint("LL", &h->ll);
}

static void json_hint(struct json *json, const char *name, const moeep_size_hint_t *hint)
{
	json_object(json, name);
	json_uint(json, "window_bytes", hint->window_bytes);
	json_uint(json, "control_bytes", hint->control_bytes);
	json_uint(json, "operation_bytes", hint->ht_bytes + hint->ll_bytes);
	json_uint(json, "slot_bytes", hint->slot_bytes);
	json_uint(json, "private_bytes", hint->private_bytes);
	json_uint(json, "handle_bytes", hint->handle_bytes);
	json_close(json);
}

void info_hints_json(struct json *json, const struct info_hints *h)
{
	json_object(json, "hints");
	json_int(json, "ranks", h->ranks);
	json_int(json, "hidden", h->hidden);
	json_int(json, "experts", h->experts);
	json_int(json, "topk", h->topk);
	json_int(json, "ht_tokens", h->ht_tokens);
	json_int(json, "ll_tokens", h->ll_tokens);
	json_string(json, "dtype", moeep_dtype_name(h->dtype));
	if (h->result) {
		json_string(json, "error", h->detail);
	} else {
		json_hint(json, "ht", &h->ht);
		json_hint(json, "ll", &h->ll);
	}
	json_close(json);
}
