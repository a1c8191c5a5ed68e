/* SPDX-License-Identifier: MIT */
/* core/settings_table.h - what each setting is: its names, what it takes, where it is kept. */
#ifndef MOEEP_CORE_SETTINGS_TABLE_H
#define MOEEP_CORE_SETTINGS_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "core/settings.h"

enum moeep_setting_kind {
	MOEEP_KIND_WORD, /* one of the words, stored as int */
	MOEEP_KIND_INT,
	MOEEP_KIND_U32,
	MOEEP_KIND_U64,
	MOEEP_KIND_TEXT,  /* char[max + 1] */
	MOEEP_KIND_SECRET /* the same, but never shown */
};

/* A value with a name. The first one of a value is the one that is printed. */
struct moeep_setting_word {
	const char *text;
	uint64_t value;
};

struct moeep_setting {
	const char *name;
	const char *unit;
	const char *default_value;
	const char *description;
	const struct moeep_setting_word *words; /* ends with a NULL text; may be NULL */
	uint64_t min;				/* of numbers, words apart */
	uint64_t max;				/* of numbers; the longest text, in bytes */
	size_t offset;
	enum moeep_setting_kind kind;
};

#define MOEEP_NUM_SETTINGS (sizeof(((struct moeep_settings *)0)->sources))

extern const struct moeep_setting moeep_setting_table[MOEEP_NUM_SETTINGS];

/* Whose field is at this offset. */
const struct moeep_setting *moeep_setting_at(size_t offset);
/* A value as it may be shown: not that of a secret. */
const char *moeep_setting_shown(const struct moeep_setting *setting, const char *text);
/* From text. MOEEP_ERR_INVALID, with the name and what it takes, if it takes no such thing. */
int moeep_setting_set(const struct moeep_setting *setting, const char *text,
		      struct moeep_settings *settings);
/* To text. */
void moeep_setting_text(const struct moeep_setting *setting, const struct moeep_settings *settings,
			char *text, size_t size);

#endif
