/* SPDX-License-Identifier: MIT */
/*
 * core/settings.c - the table of settings. It alone drives parsing, moeep_setting_query() and the
 * texts; the defaults are parsed like any other value.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/settings.h"

enum kind {
	KIND_WORD, /* one of the words, stored as int */
	KIND_INT,
	KIND_U32,
	KIND_U64,
	KIND_TEXT,  /* char[max + 1] */
	KIND_SECRET /* the same, but never shown */
};

/* A value with a name. The first one of a value is the one that is printed. */
struct word {
	const char *text;
	uint64_t value;
};

struct setting {
	const char *name;
	const char *unit;
	const char *default_value;
	const char *description;
	const struct word *words; /* ends with a NULL text; may be NULL */
	uint64_t min;		  /* of numbers, words apart */
	uint64_t max;		  /* of numbers; the longest text, in bytes */
	size_t offset;
	enum kind kind;
};

static const struct word timeout_words[] = {
	{"0", MOEEP_TIMEOUT_NONE},
	{"none", MOEEP_TIMEOUT_NONE},
	{NULL, 0},
};

static const struct word spin_words[] = {
	{"auto", MOEEP_SPIN_AUTO},
	{NULL, 0},
};

static const struct word log_words[] = {
	{"none", MOEEP_LOG_NONE}, {"error", MOEEP_LOG_ERROR}, {"warn", MOEEP_LOG_WARN},
	{"info", MOEEP_LOG_INFO}, {"debug", MOEEP_LOG_DEBUG}, {NULL, 0},
};

static const struct word backend_words[] = {
	{"auto", MOEEP_BACKEND_AUTO},
	{"host", MOEEP_BACKEND_HOST},
	{"cuda", MOEEP_BACKEND_CUDA},
	{NULL, 0},
};

static const struct word default_words[] = {
	{"0", 0},
	{NULL, 0},
};

#define OFFSET(field)  offsetof(struct moeep_settings, field)
#define LONGEST(field) (sizeof(((struct moeep_settings *)0)->field) - 1)

static const struct setting settings_table[] = {
	{"MOEEP_BACKEND", "", "auto", "memory that operations work on: auto, host or cuda",
	 backend_words, 0, 0, OFFSET(backend), KIND_WORD},
	{"MOEEP_TIMEOUT", "ms", "30000", "limit of every wait for a peer; 0 is none", timeout_words,
	 1, UINT32_MAX - 1, OFFSET(timeout_ms), KIND_U32},
	{"MOEEP_SPIN", "us", "auto",
	 "time that a wait spins before it sleeps; auto goes by processors per rank", spin_words, 0,
	 60000000, OFFSET(spin_us), KIND_U32},
	{"MOEEP_LOG", "", "warn", "log lines: none, error, warn, info or debug", log_words, 0, 0,
	 OFFSET(log_level), KIND_WORD},
	{"MOEEP_HOST_ID", "", "", "ranks with equal texts are on one host; empty: found out", NULL,
	 0, LONGEST(host_id), OFFSET(host_id), KIND_TEXT},
	{"MOEEP_INTERFACE", "", "",
	 "address or network interface that a rendezvous listens on; empty: loopback", NULL, 0,
	 LONGEST(interface), OFFSET(interface), KIND_TEXT},
	{"MOEEP_HT_CHUNK_BYTES", "bytes", "0",
	 "host backend: size of the chunks that rows are handed over in; 0: the buffer's",
	 default_words, 16, UINT64_C(1) << 30, OFFSET(ht_chunk_bytes), KIND_U64},
	{"MOEEP_HT_CHUNKS", "", "0",
	 "host backend: chunks of the ring between two ranks; 0: the buffer's", default_words, 2,
	 1024, OFFSET(ht_chunks), KIND_INT},
	{"MOEEP_CUDA_DRIVER", "", "libcuda.so.1",
	 "file of the CUDA driver; one without a / is searched for as libraries are", NULL, 0,
	 LONGEST(cuda_driver), OFFSET(cuda_driver), KIND_TEXT},
	{"MOEEP_CUDA_PDL", "", "1",
	 "kernels may begin while the one before them in the stream ends; 0: they do not", NULL, 0,
	 1, OFFSET(cuda_pdl), KIND_INT},
	{"MOEEP_ID", "", "",
	 "id of the rendezvous where ranks meet, if the program names none; a secret", NULL, 0,
	 LONGEST(id), OFFSET(id), KIND_SECRET},
	{"MOEEP_ID_FILE", "", "",
	 "file of mode 0600 with that id, which is waited for; MOEEP_ID goes first", NULL, 0,
	 LONGEST(id_file), OFFSET(id_file), KIND_TEXT},
};

#define NUM_SETTINGS (sizeof(settings_table) / sizeof(settings_table[0]))
static_assert(sizeof(((struct moeep_settings *)0)->sources) == NUM_SETTINGS, "one source each");

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

static bool is_text(const struct setting *setting)
{
	return setting->kind == KIND_TEXT || setting->kind == KIND_SECRET;
}

/* A value as it may be shown. */
static const char *shown(const struct setting *setting, const char *text)
{
	return setting->kind == KIND_SECRET && text[0] ? "(set)" : text;
}

/* What the setting takes, for the detail. */
static void describe(const struct setting *setting, char *text, size_t size)
{
	size_t used = 0;
	int n;

	text[0] = '\0';
	if (is_text(setting)) {
		snprintf(text, size, "at most %" PRIu64 " bytes", setting->max);
		return;
	}
	for (const struct word *word = setting->words; word && word->text; word++) {
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

static int setting_number(const struct setting *setting, const char *text, uint64_t *value)
{
	for (const struct word *word = setting->words; word && word->text; word++) {
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

static int setting_set(const struct setting *setting, const char *text,
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
	case KIND_WORD:
	case KIND_INT:
		*(int *)(void *)field = (int)value;
		break;
	case KIND_U32:
		*(uint32_t *)(void *)field = (uint32_t)value;
		break;
	case KIND_U64:
		*(uint64_t *)(void *)field = value;
		break;
	case KIND_TEXT:
	case KIND_SECRET:
		break;
	}
	return MOEEP_OK;

err_value:
	describe(setting, takes, sizeof(takes));
	return moeep_fail(MOEEP_ERR_INVALID, "%s is \"%.80s\"; it takes %s", setting->name,
			  shown(setting, text), takes);
}

static void setting_text(const struct setting *setting, const struct moeep_settings *settings,
			 char *text, size_t size)
{
	const unsigned char *field = (const unsigned char *)settings + setting->offset;
	uint64_t value = 0;

	switch (setting->kind) {
	case KIND_TEXT:
	case KIND_SECRET:
		snprintf(text, size, "%s", shown(setting, (const char *)field));
		return;
	case KIND_WORD:
	case KIND_INT:
		value = (uint64_t) * (const int *)(const void *)field;
		break;
	case KIND_U32:
		value = *(const uint32_t *)(const void *)field;
		break;
	case KIND_U64:
		value = *(const uint64_t *)(const void *)field;
		break;
	}
	for (const struct word *word = setting->words; word && word->text; word++) {
		if (value == word->value) {
			snprintf(text, size, "%s", word->text);
			return;
		}
	}
	snprintf(text, size, "%" PRIu64, value);
}

/* The variable's text, or NULL. An empty variable counts as unset. */
static const char *setting_environment(const struct setting *setting)
{
	const char *text = getenv(setting->name);

	return text && text[0] ? text : NULL;
}

/* The field comes from the caller's structure. */
static void source_set(struct moeep_settings *settings, size_t offset)
{
	for (size_t i = 0; i < NUM_SETTINGS; i++) {
		if (settings_table[i].offset == offset) {
			settings->sources[i] = MOEEP_SOURCE_CONFIG;
		}
	}
}

static int settings_config(const moeep_comm_config_t *config, struct moeep_settings *settings)
{
	moeep_comm_config_t own;
	int rc;

	rc = moeep_struct_in("config", config, &own, sizeof(own));
	if (rc) {
		return rc;
	}
	if (own.timeout_ms != 0) {
		settings->timeout_ms = own.timeout_ms;
		source_set(settings, OFFSET(timeout_ms));
	}
	if (own.backend < MOEEP_BACKEND_AUTO || own.backend > MOEEP_BACKEND_CUDA) {
		return moeep_fail(MOEEP_ERR_INVALID, "config->backend is %d", (int)own.backend);
	}
	if (own.backend != MOEEP_BACKEND_AUTO) {
		settings->backend = own.backend;
		source_set(settings, OFFSET(backend));
	}
	if (own.host_id) {
		size_t length = strlen(own.host_id);

		if (length >= sizeof(settings->host_id)) {
			return moeep_fail(MOEEP_ERR_INVALID,
					  "config->host_id has %zu bytes; at most %zu are taken",
					  length, sizeof(settings->host_id) - 1);
		}
		memcpy(settings->host_id, own.host_id, length + 1);
		source_set(settings, OFFSET(host_id));
	}
	return MOEEP_OK;
}

int moeep_settings_load(const moeep_comm_config_t *config, struct moeep_settings *settings)
{
	struct moeep_settings own;
	int rc;

	memset(&own, 0, sizeof(own));
	for (size_t i = 0; i < NUM_SETTINGS; i++) {
		rc = setting_set(&settings_table[i], settings_table[i].default_value, &own);
		if (rc) {
			return rc;
		}
	}
	if (config) {
		rc = settings_config(config, &own);
		if (rc) {
			return rc;
		}
	}
	for (size_t i = 0; i < NUM_SETTINGS; i++) {
		const char *text = setting_environment(&settings_table[i]);

		if (!text) {
			continue;
		}
		rc = setting_set(&settings_table[i], text, &own);
		if (rc) {
			return rc;
		}
		own.sources[i] = MOEEP_SOURCE_ENVIRONMENT;
	}
	*settings = own;
	return MOEEP_OK;
}

/* From defaults and the environment alone. */
static void query_environment(const struct setting *setting, moeep_setting_info_t *info)
{
	struct moeep_settings settings;
	const char *text = setting_environment(setting);

	info->source = text ? MOEEP_SOURCE_ENVIRONMENT : MOEEP_SOURCE_DEFAULT;
	memset(&settings, 0, sizeof(settings));
	if (setting_set(setting, text ? text : setting->default_value, &settings)) {
		/* Listed all the same: this is where somebody looks for the cause. */
		snprintf(info->value, sizeof(info->value), "%.80s (not valid)",
			 shown(setting, text));
		return;
	}
	setting_text(setting, &settings, info->value, sizeof(info->value));
}

int moeep_setting_query(const struct moeep_comm *comm, unsigned index, moeep_setting_info_t *info)
{
	moeep_setting_info_t own = {.size = sizeof(own)};
	const struct setting *setting;

	if (index >= NUM_SETTINGS) {
		return moeep_fail(MOEEP_ERR_INVALID, "index is %u; there are %zu settings", index,
				  NUM_SETTINGS);
	}
	setting = &settings_table[index];
	own.name = setting->name;
	own.unit = setting->unit;
	own.default_value = setting->default_value;
	own.description = setting->description;
	if (comm) {
		own.source = comm->settings.sources[index];
		setting_text(setting, &comm->settings, own.value, sizeof(own.value));
	} else {
		query_environment(setting, &own);
	}
	return moeep_struct_out("info", info, &own, sizeof(own));
}
