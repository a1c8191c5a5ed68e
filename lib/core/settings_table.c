/* SPDX-License-Identifier: MIT */
/*
 * core/settings_table.c - the table of settings. It alone drives parsing, moeep_setting_query() and
 * the texts; the defaults are parsed like any other value.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/error.h"
#include "core/log.h"
#include "core/settings_table.h"

static const struct moeep_setting_word timeout_words[] = {
	{"0", MOEEP_TIMEOUT_NONE},
	{"none", MOEEP_TIMEOUT_NONE},
	{NULL, 0},
};

static const struct moeep_setting_word spin_words[] = {
	{"auto", MOEEP_SPIN_AUTO},
	{NULL, 0},
};

static const struct moeep_setting_word log_words[] = {
	{"none", MOEEP_LOG_NONE}, {"error", MOEEP_LOG_ERROR}, {"warn", MOEEP_LOG_WARN},
	{"info", MOEEP_LOG_INFO}, {"debug", MOEEP_LOG_DEBUG}, {NULL, 0},
};

static const struct moeep_setting_word backend_words[] = {
	{"auto", MOEEP_BACKEND_AUTO},
	{"host", MOEEP_BACKEND_HOST},
	{"cuda", MOEEP_BACKEND_CUDA},
	{NULL, 0},
};

static const struct moeep_setting_word hybrid_words[] = {
	{"auto", MOEEP_HYBRID_AUTO},
	{"off", MOEEP_HYBRID_OFF},
	{NULL, 0},
};

static const struct moeep_setting_word network_words[] = {
	{"auto", MOEEP_NETWORK_AUTO},
	{"verbs", MOEEP_NETWORK_VERBS},
	{"emulated", MOEEP_NETWORK_EMULATED},
	{NULL, 0},
};

static const struct moeep_setting_word proxies_words[] = {
	{"auto", 0},
	{NULL, 0},
};

static const struct moeep_setting_word default_words[] = {
	{"0", 0},
	{NULL, 0},
};

#define OFFSET(field)  offsetof(struct moeep_settings, field)
#define LONGEST(field) (sizeof(((struct moeep_settings *)0)->field) - 1)

const struct moeep_setting moeep_setting_table[] = {
	{"MOEEP_BACKEND", "", "auto", "memory that operations work on: auto, host or cuda",
	 backend_words, 0, 0, OFFSET(backend), MOEEP_KIND_WORD},
	{"MOEEP_TIMEOUT", "ms", "30000", "limit of every wait for a peer; 0 is none", timeout_words,
	 1, UINT32_MAX - 1, OFFSET(timeout_ms), MOEEP_KIND_U32},
	{"MOEEP_SPIN", "us", "auto",
	 "time that a wait spins before it sleeps; auto goes by processors per rank", spin_words, 0,
	 60000000, OFFSET(spin_us), MOEEP_KIND_U32},
	{"MOEEP_LOG", "", "warn", "log lines: none, error, warn, info or debug", log_words, 0, 0,
	 OFFSET(log_level), MOEEP_KIND_WORD},
	{"MOEEP_HOST_ID", "", "", "ranks with equal texts are on one host; empty: found out", NULL,
	 0, LONGEST(host_id), OFFSET(host_id), MOEEP_KIND_TEXT},
	{"MOEEP_INTERFACE", "", "",
	 "address or network interface that a rendezvous listens on; empty: loopback", NULL, 0,
	 LONGEST(interface), OFFSET(interface), MOEEP_KIND_TEXT},
	{"MOEEP_HT_CHUNK_BYTES", "bytes", "0",
	 "host backend: size of the chunks that rows are handed over in; 0: the buffer's",
	 default_words, 16, UINT64_C(1) << 30, OFFSET(ht_chunk_bytes), MOEEP_KIND_U64},
	{"MOEEP_HT_CHUNKS", "", "0",
	 "host backend: chunks of the ring between two ranks; 0: the buffer's", default_words, 2,
	 1024, OFFSET(ht_chunks), MOEEP_KIND_INT},
	{"MOEEP_CUDA_DRIVER", "", "libcuda.so.1",
	 "file of the CUDA driver; one without a / is searched for as libraries are", NULL, 0,
	 LONGEST(cuda_driver), OFFSET(cuda_driver), MOEEP_KIND_TEXT},
	{"MOEEP_CUDA_PDL", "", "1",
	 "kernels may begin while the one before them in the stream ends; 0: they do not", NULL, 0,
	 1, OFFSET(cuda_pdl), MOEEP_KIND_INT},
	{"MOEEP_HYBRID", "", "auto",
	 "ranks of one host share memory: auto; each counts as a host of its own: off",
	 hybrid_words, 0, 0, OFFSET(hybrid), MOEEP_KIND_WORD},
	{"MOEEP_TRANSPORT", "", "auto",
	 "how hosts reach each other: auto, verbs (RDMA) or emulated (all on one machine)",
	 network_words, 0, 0, OFFSET(transport), MOEEP_KIND_WORD},
	{"MOEEP_NUM_PROXIES", "", "auto", "threads of each rank that hand requests to the network",
	 proxies_words, 1, 64, OFFSET(num_proxies), MOEEP_KIND_INT},
	{"MOEEP_EMULATED_NIC", "", "",
	 "the emulated network: latency=US,jitter=US,bandwidth=MB/s,fail=N,rank=R,seed=N", NULL, 0,
	 LONGEST(emulated_nic), OFFSET(emulated_nic), MOEEP_KIND_TEXT},
	{"MOEEP_ID", "", "",
	 "id of the rendezvous where ranks meet, if the program names none; a secret", NULL, 0,
	 LONGEST(id), OFFSET(id), MOEEP_KIND_SECRET},
	{"MOEEP_ID_FILE", "", "",
	 "file of mode 0600 with that id, which is waited for; MOEEP_ID goes first", NULL, 0,
	 LONGEST(id_file), OFFSET(id_file), MOEEP_KIND_TEXT},
	{"MOEEP_LOG_FILE", "", "", "file that log lines go to; %r in its name is the rank", NULL, 0,
	 LONGEST(log_file), OFFSET(log_file), MOEEP_KIND_TEXT},
	{"MOEEP_SITE_FILE", "", MOEEP_SYSCONFDIR "/moeep.conf",
	 "file of settings for all programs of this machine; none: no file", NULL, 0,
	 LONGEST(site_file), OFFSET(site_file), MOEEP_KIND_TEXT},
};

static_assert(sizeof(moeep_setting_table) / sizeof(moeep_setting_table[0]) == MOEEP_NUM_SETTINGS,
	      "one source each");

const struct moeep_setting *moeep_setting_at(size_t offset)
{
	const struct moeep_setting *setting = moeep_setting_table;

	while (setting->offset != offset) {
		setting++;
	}
	return setting;
}

static int parse_number(const char *text, uint64_t *value)
{
	char *end;

	/* strtoull() itself takes blanks and a sign. */
	if (text[0] < '0' || text[0] > '9') {
		return -1;
	}
	errno = 0;
	*value = strtoull(text, &end, 10);
	return errno != 0 || *end != '\0' ? -1 : 0;
}

static bool is_text(const struct moeep_setting *setting)
{
	return setting->kind == MOEEP_KIND_TEXT || setting->kind == MOEEP_KIND_SECRET;
}

/* A value as it may be shown. */
const char *moeep_setting_shown(const struct moeep_setting *setting, const char *text)
{
	return setting->kind == MOEEP_KIND_SECRET && text[0] ? "(set)" : text;
}

/* What the setting takes, for the detail. */
static void describe(const struct moeep_setting *setting, char *text, size_t size)
{
	size_t used = 0;
	int n;

	text[0] = '\0';
	if (is_text(setting)) {
		snprintf(text, size, "at most %" PRIu64 " bytes", setting->max);
		return;
	}
	for (const struct moeep_setting_word *word = setting->words; word && word->text; word++) {
		n = snprintf(text + used, size - used, "%s%s", used ? ", " : "", word->text);
		if (n < 0 || (size_t)n >= size - used) {
			return;
		}
		used += (size_t)n;
	}
	if (setting->max > 0) {
		snprintf(text + used, size - used, "%sa whole number from %" PRIu64 " to %" PRIu64,
			 used ? ", or " : "", setting->min, setting->max);
	}
}

static int setting_number(const struct moeep_setting *setting, const char *text, uint64_t *value)
{
	for (const struct moeep_setting_word *word = setting->words; word && word->text; word++) {
		if (!strcasecmp(text, word->text)) {
			*value = word->value;
			return 0;
		}
	}
	if (setting->max == 0 || parse_number(text, value)) {
		return -1;
	}
	return *value < setting->min || *value > setting->max ? -1 : 0;
}

int moeep_setting_set(const struct moeep_setting *setting, const char *text,
		      struct moeep_settings *settings)
{
	unsigned char *field = (unsigned char *)settings + setting->offset;
	uint64_t value = 0;
	char takes[160];

	if (is_text(setting)) {
		size_t length = strlen(text);

		if (length > setting->max) {
			goto err_value;
		}
		memcpy(field, text, length + 1);
		return MOEEP_OK;
	}
	if (setting_number(setting, text, &value)) {
		goto err_value;
	}
	switch (setting->kind) {
	case MOEEP_KIND_WORD:
	case MOEEP_KIND_INT:
		*(int *)(void *)field = (int)value;
		break;
	case MOEEP_KIND_U32:
		*(uint32_t *)(void *)field = (uint32_t)value;
		break;
	case MOEEP_KIND_U64:
		*(uint64_t *)(void *)field = value;
		break;
	case MOEEP_KIND_TEXT:
	case MOEEP_KIND_SECRET:
		break;
	}
	return MOEEP_OK;

err_value:
	describe(setting, takes, sizeof(takes));
	return moeep_fail(MOEEP_ERR_INVALID, "%s is \"%.80s\"; it takes %s", setting->name,
			  moeep_setting_shown(setting, text), takes);
}

void moeep_setting_text(const struct moeep_setting *setting, const struct moeep_settings *settings,
			char *text, size_t size)
{
	const unsigned char *field = (const unsigned char *)settings + setting->offset;
	uint64_t value = 0;

	switch (setting->kind) {
	case MOEEP_KIND_TEXT:
	case MOEEP_KIND_SECRET:
		snprintf(text, size, "%s", moeep_setting_shown(setting, (const char *)field));
		return;
	case MOEEP_KIND_WORD:
	case MOEEP_KIND_INT:
		value = (uint64_t) * (const int *)(const void *)field;
		break;
	case MOEEP_KIND_U32:
		value = *(const uint32_t *)(const void *)field;
		break;
	case MOEEP_KIND_U64:
		value = *(const uint64_t *)(const void *)field;
		break;
	}
	for (const struct moeep_setting_word *word = setting->words; word && word->text; word++) {
		if (value == word->value) {
			snprintf(text, size, "%s", word->text);
			return;
		}
	}
	snprintf(text, size, "%" PRIu64, value);
}
