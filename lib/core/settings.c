/* SPDX-License-Identifier: MIT */
/* core/settings.c - what settings are in force: from defaults, the site's file, a configuration,
 * the environment. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/comm.h"
#include "core/error.h"
#include "core/settings.h"
#include "core/settings_table.h"
#include "core/site.h"

#define OFFSET(field) offsetof(struct moeep_settings, field)

/* The variable's text, or NULL. An empty variable counts as unset. */
static const char *setting_environment(const struct moeep_setting *setting)
{
	const char *text = getenv(setting->name);

	return text && text[0] ? text : NULL;
}

/* Which file is read, where a setting of it goes, and whether that is the only one that counts. */
struct site {
	struct moeep_settings *settings;
	const struct moeep_setting *only; /* NULL: all */
};

static int site_setting(void *context, int line, const char *name, const char *value)
{
	const struct site *site = context;
	const char *path = site->settings->site_file;
	char detail[200];
	size_t i = 0;

	while (i < MOEEP_NUM_SETTINGS && strcmp(moeep_setting_table[i].name, name) != 0) {
		i++;
	}
	if (i == MOEEP_NUM_SETTINGS) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s:%d: there is no setting %.40s", path, line,
				  name);
	}
	if (moeep_setting_table[i].kind == MOEEP_KIND_SECRET ||
	    moeep_setting_table[i].offset == OFFSET(site_file)) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s:%d: %s is not taken from this file", path,
				  line, name);
	}
	if (site->only && site->only != &moeep_setting_table[i]) {
		return MOEEP_OK;
	}
	if (moeep_setting_set(&moeep_setting_table[i], value, site->settings)) {
		snprintf(detail, sizeof(detail), "%s", moeep_error_detail());
		return moeep_fail(MOEEP_ERR_INVALID, "%s:%d: %s", path, line, detail);
	}
	site->settings->sources[i] = MOEEP_SOURCE_SITE;
	return MOEEP_OK;
}

/* settings->site_file is as the environment has it. */
static int site_load(struct moeep_settings *settings, const struct moeep_setting *only)
{
	struct site site = {settings, only};

	return strcasecmp(settings->site_file, "none") == 0
		       ? MOEEP_OK
		       : moeep_site_read(settings->site_file, site_setting, &site);
}

static int environment_load(const struct moeep_setting *setting, struct moeep_settings *settings)
{
	const char *text = setting_environment(setting);
	int rc;

	if (!text) {
		return MOEEP_OK;
	}
	rc = moeep_setting_set(setting, text, settings);
	settings->sources[setting - moeep_setting_table] = MOEEP_SOURCE_ENVIRONMENT;
	return rc;
}

/* The field comes from the caller's structure. */
static void source_set(struct moeep_settings *settings, size_t offset)
{
	settings->sources[moeep_setting_at(offset) - moeep_setting_table] = MOEEP_SOURCE_CONFIG;
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
	for (size_t i = 0; i < MOEEP_NUM_SETTINGS; i++) {
		rc = moeep_setting_set(&moeep_setting_table[i],
				       moeep_setting_table[i].default_value, &own);
		if (rc) {
			return rc;
		}
	}
	rc = environment_load(moeep_setting_at(OFFSET(site_file)), &own);
	if (rc == MOEEP_OK) {
		rc = site_load(&own, NULL);
	}
	if (rc == MOEEP_OK && config) {
		rc = settings_config(config, &own);
	}
	for (size_t i = 0; i < MOEEP_NUM_SETTINGS && rc == MOEEP_OK; i++) {
		rc = environment_load(&moeep_setting_table[i], &own);
	}
	if (rc) {
		return rc;
	}
	*settings = own;
	return MOEEP_OK;
}

/* Without a configuration. What is not valid is listed all the same: this is where somebody looks
 * for the cause. */
static void query_alone(const struct moeep_setting *setting, moeep_setting_info_t *info)
{
	const struct moeep_setting *names_file = moeep_setting_at(OFFSET(site_file));
	const char *text = setting_environment(setting);
	struct moeep_settings settings;
	int rc;

	memset(&settings, 0, sizeof(settings));
	(void)moeep_setting_set(setting, setting->default_value, &settings);
	(void)moeep_setting_set(names_file, names_file->default_value, &settings);
	(void)environment_load(names_file, &settings);
	/* A bad line of another setting is told by whoever creates a comm, and does not hide this
	 * one. */
	(void)site_load(&settings, setting);
	rc = environment_load(setting, &settings);
	info->source = settings.sources[setting - moeep_setting_table];
	if (rc) {
		snprintf(info->value, sizeof(info->value), "%.80s (not valid)",
			 moeep_setting_shown(setting, text));
		return;
	}
	moeep_setting_text(setting, &settings, info->value, sizeof(info->value));
}

int moeep_setting_query(const struct moeep_comm *comm, unsigned index, moeep_setting_info_t *info)
{
	moeep_setting_info_t own = {.size = sizeof(own)};
	const struct moeep_setting *setting;

	if (index >= MOEEP_NUM_SETTINGS) {
		return moeep_fail(MOEEP_ERR_INVALID, "index is %u; there are %zu settings", index,
				  MOEEP_NUM_SETTINGS);
	}
	setting = &moeep_setting_table[index];
	own.name = setting->name;
	own.unit = setting->unit;
	own.default_value = setting->default_value;
	own.description = setting->description;
	if (comm) {
		own.source = comm->settings.sources[index];
		moeep_setting_text(setting, &comm->settings, own.value, sizeof(own.value));
	} else {
		query_alone(setting, &own);
	}
	return moeep_struct_out("info", info, &own, sizeof(own));
}
