/* SPDX-License-Identifier: MIT */
/* Settings from defaults, configuration and environment, and how they are told. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/comm.h"
#include "core/error.h"
#include "core/log.h"
#include "core/settings.h"
#include "t/tap.h"

static const char *const variables[] = {
	"MOEEP_BACKEND",
	"MOEEP_TIMEOUT",
	"MOEEP_SPIN",
	"MOEEP_LOG",
	"MOEEP_HOST_ID",
	"MOEEP_INTERFACE",
	"MOEEP_HT_CHUNK_BYTES",
	"MOEEP_HT_CHUNKS",
	"MOEEP_CUDA_DRIVER",
	"MOEEP_CUDA_PDL",
	"MOEEP_HYBRID",
	"MOEEP_TRANSPORT",
	"MOEEP_NUM_PROXIES",
	"MOEEP_EMULATED_NIC",
	"MOEEP_ID",
	"MOEEP_ID_FILE",
	"MOEEP_LOG_FILE",
	"MOEEP_SITE_FILE",
};

#define NUM_VARIABLES (sizeof(variables) / sizeof(variables[0]))

static void clear(void)
{
	for (size_t i = 0; i < NUM_VARIABLES; i++) {
		unsetenv(variables[i]);
	}
	/* What a machine has in its own is no matter here. */
	setenv("MOEEP_SITE_FILE", "none", 1);
}

static const char *text_of(const struct moeep_comm *comm, const char *name, int *source)
{
	static moeep_setting_info_t info;

	for (unsigned i = 0;; i++) {
		info.size = sizeof(info);
		if (moeep_setting_query(comm, i, &info)) {
			*source = -1;
			return "(no such setting)";
		}
		if (strcmp(info.name, name) == 0) {
			*source = info.source;
			return info.value;
		}
	}
}

static void test_defaults(void)
{
	struct moeep_settings settings;

	memset(&settings, 0xff, sizeof(settings));
	is_int(moeep_settings_load(NULL, &settings), MOEEP_OK, "defaults");
	is_u64(settings.timeout_ms, 30000, "time-out");
	is_u64(settings.spin_us, MOEEP_SPIN_AUTO, "spin");
	is_int(settings.log_level, MOEEP_LOG_WARN, "log level");
	is_int(settings.backend, MOEEP_BACKEND_AUTO, "backend");
	is_u64(settings.ht_chunk_bytes, 0, "chunk size");
	is_int(settings.ht_chunks, 0, "chunks");
	is_str(settings.host_id, "", "host id");
	is_str(settings.interface, "", "interface");
	is_int(settings.cuda_pdl, 1, "programmatic dependent launch");
	is_str(settings.cuda_driver, "libcuda.so.1", "CUDA driver");
}

static void test_config(void)
{
	moeep_comm_config_t config = {.size = sizeof(config)};
	struct moeep_comm comm = {.rank = 0};
	struct moeep_settings *settings = &comm.settings;
	char long_id[80];
	int source;

	is_int(moeep_settings_load(&config, settings), MOEEP_OK, "a configuration of zeros");
	is_u64(settings->timeout_ms, 30000, "means defaults");
	config.timeout_ms = 1234;
	config.backend = MOEEP_BACKEND_HOST;
	config.host_id = "left";
	is_int(moeep_settings_load(&config, settings), MOEEP_OK, "a configuration");
	is_u64(settings->timeout_ms, 1234, "its time-out");
	is_int(settings->backend, MOEEP_BACKEND_HOST, "its backend");
	is_str(settings->host_id, "left", "its host id");
	is_str(text_of(&comm, "MOEEP_TIMEOUT", &source), "1234", "a comm tells it");
	is_int(source, MOEEP_SOURCE_CONFIG, "and where it comes from");
	is_str(text_of(&comm, "MOEEP_BACKEND", &source), "host", "the backend too");
	is_int(source, MOEEP_SOURCE_CONFIG, "and where it comes from");
	is_str(text_of(&comm, "MOEEP_HOST_ID", &source), "left", "the host id too");
	is_int(source, MOEEP_SOURCE_CONFIG, "and where it comes from");
	is_str(text_of(&comm, "MOEEP_LOG", &source), "warn", "what it does not set");
	is_int(source, MOEEP_SOURCE_DEFAULT, "is a default");
	config.timeout_ms = MOEEP_TIMEOUT_NONE;
	is_int(moeep_settings_load(&config, settings), MOEEP_OK, "no time-out");
	is_u64(settings->timeout_ms, MOEEP_TIMEOUT_NONE, "is kept");
	is_str(text_of(&comm, "MOEEP_TIMEOUT", &source), "0", "and is told as the variable has it");

	memset(settings, 0x55, sizeof(*settings));
	config.backend = 3;
	is_int(moeep_settings_load(&config, settings), MOEEP_ERR_INVALID, "an unknown backend");
	ok(strstr(moeep_error_detail(), "backend is 3"), "is named: %s", moeep_error_detail());
	is_u64(settings->timeout_ms, 0x55555555, "and nothing is set");
	config.backend = -1;
	is_int(moeep_settings_load(&config, settings), MOEEP_ERR_INVALID, "a negative one");
	config.backend = 0;
	memset(long_id, 'h', sizeof(long_id));
	long_id[63] = '\0';
	config.host_id = long_id;
	is_int(moeep_settings_load(&config, settings), MOEEP_OK, "a host id of 63 bytes");
	long_id[63] = 'h';
	long_id[64] = '\0';
	is_int(moeep_settings_load(&config, settings), MOEEP_ERR_INVALID, "one of 64");
	ok(strstr(moeep_error_detail(), "64"), "is named: %s", moeep_error_detail());
	config.size = 2;
	is_int(moeep_settings_load(&config, settings), MOEEP_ERR_INVALID, "a wrong size");
}

static void test_environment(void)
{
	moeep_comm_config_t config = {
		.size = sizeof(config), .timeout_ms = 1234, .backend = 2, .host_id = "left"};
	struct moeep_settings settings;
	int source;

	setenv("MOEEP_TIMEOUT", "500", 1);
	setenv("MOEEP_SPIN", "25", 1);
	setenv("MOEEP_LOG", "DEBUG", 1);
	setenv("MOEEP_BACKEND", "host", 1);
	setenv("MOEEP_HT_CHUNK_BYTES", "65536", 1);
	setenv("MOEEP_HT_CHUNKS", "4", 1);
	setenv("MOEEP_HOST_ID", "right", 1);
	setenv("MOEEP_INTERFACE", "eth0", 1);
	setenv("MOEEP_CUDA_DRIVER", "/opt/libcuda.so", 1);
	setenv("MOEEP_CUDA_PDL", "0", 1);
	is_int(moeep_settings_load(&config, &settings), MOEEP_OK, "the environment");
	is_u64(settings.timeout_ms, 500, "overrides the time-out");
	is_u64(settings.spin_us, 25, "spin");
	is_int(settings.log_level, MOEEP_LOG_DEBUG, "log level, in capitals");
	is_int(settings.backend, MOEEP_BACKEND_HOST, "backend");
	is_u64(settings.ht_chunk_bytes, 65536, "chunk size");
	is_int(settings.ht_chunks, 4, "chunks");
	is_str(settings.host_id, "right", "host id");
	is_int(settings.cuda_pdl, 0, "programmatic dependent launch");
	is_str(settings.interface, "eth0", "interface");
	is_str(settings.cuda_driver, "/opt/libcuda.so", "CUDA driver");
	is_str(text_of(NULL, "MOEEP_LOG", &source), "debug", "a query tells it");
	is_int(source, MOEEP_SOURCE_ENVIRONMENT, "and where it comes from");
	is_str(text_of(NULL, "MOEEP_HT_CHUNK_BYTES", &source), "65536", "numbers too");
	clear();

	setenv("MOEEP_TIMEOUT", "0", 1);
	setenv("MOEEP_SPIN", "auto", 1);
	is_int(moeep_settings_load(&config, &settings), MOEEP_OK, "special values");
	is_u64(settings.timeout_ms, MOEEP_TIMEOUT_NONE, "0 is no time-out");
	is_u64(settings.spin_us, MOEEP_SPIN_AUTO, "auto");
	setenv("MOEEP_SPIN", "0", 1);
	is_int(moeep_settings_load(NULL, &settings), MOEEP_OK, "no spinning");
	is_u64(settings.spin_us, 0, "is 0");
	setenv("MOEEP_TIMEOUT", "none", 1);
	is_int(moeep_settings_load(NULL, &settings), MOEEP_OK, "time-out none");
	is_u64(settings.timeout_ms, MOEEP_TIMEOUT_NONE, "is the same");
	setenv("MOEEP_TIMEOUT", "", 1);
	is_int(moeep_settings_load(NULL, &settings), MOEEP_OK, "an empty variable");
	is_u64(settings.timeout_ms, 30000, "counts as unset");
	is_str(text_of(NULL, "MOEEP_TIMEOUT", &source), "30000", "for a query too");
	is_int(source, MOEEP_SOURCE_DEFAULT, "the source is the default");
	clear();
}

static void test_bad_values(void)
{
	static const struct {
		const char *name;
		const char *value;
	} bad[] = {
		{"MOEEP_TIMEOUT", "abc"},
		{"MOEEP_TIMEOUT", "-1"},
		{"MOEEP_TIMEOUT", "1.5"},
		{"MOEEP_TIMEOUT", " 5"},
		{"MOEEP_TIMEOUT", "5s"},
		{"MOEEP_TIMEOUT", "4294967295"},
		{"MOEEP_TIMEOUT", "99999999999999999999999"},
		{"MOEEP_SPIN", "60000001"},
		{"MOEEP_LOG", "loud"},
		{"MOEEP_LOG", "3"},
		{"MOEEP_BACKEND", "rocm"},
		{"MOEEP_HT_CHUNK_BYTES", "64K"},
		{"MOEEP_HT_CHUNK_BYTES", "1"},
		{"MOEEP_HT_CHUNKS", "1"},
		{"MOEEP_HT_CHUNKS", "100000"},
		{"MOEEP_HOST_ID",
		 "0123456789012345678901234567890123456789012345678901234567890123"},
	};
	struct moeep_settings settings = {.timeout_ms = 42};
	const char *text;
	int source;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		setenv(bad[i].name, bad[i].value, 1);
		is_int(moeep_settings_load(NULL, &settings), MOEEP_ERR_INVALID, "%s=%s",
		       bad[i].name, bad[i].value);
		ok(strstr(moeep_error_detail(), bad[i].name) &&
			   strstr(moeep_error_detail(), bad[i].value),
		   "is named: %s", moeep_error_detail());
		text = text_of(NULL, bad[i].name, &source);
		ok(source == MOEEP_SOURCE_ENVIRONMENT && strstr(text, bad[i].value) &&
			   strstr(text, "not valid"),
		   "a query still lists it: %s", text);
		clear();
	}
	is_u64(settings.timeout_ms, 42, "nothing is set on failure");
}

/* Texts have different limits. */
static void test_long_text(void)
{
	struct moeep_settings settings;
	char path[129];

	memset(path, 'p', sizeof(path));
	path[127] = '\0';
	setenv("MOEEP_CUDA_DRIVER", path, 1);
	is_int(moeep_settings_load(NULL, &settings), MOEEP_OK, "a path of 127 bytes");
	is_str(settings.cuda_driver, path, "is taken whole");
	path[127] = 'p';
	path[128] = '\0';
	setenv("MOEEP_CUDA_DRIVER", path, 1);
	is_int(moeep_settings_load(NULL, &settings), MOEEP_ERR_INVALID, "one of 128 bytes");
	ok(strstr(moeep_error_detail(), "MOEEP_CUDA_DRIVER") &&
		   strstr(moeep_error_detail(), "at most 127 bytes"),
	   "is named: %s", moeep_error_detail());
	clear();
}

static void test_query(void)
{
	moeep_setting_info_t info;
	unsigned count = 0;
	int bad = 0;
	int rc;

	for (;; count++) {
		memset(&info, 0xff, sizeof(info));
		info.size = sizeof(info);
		rc = moeep_setting_query(NULL, count, &info);
		if (rc) {
			break;
		}
		/* It is set to none here. */
		if (strcmp(info.name, "MOEEP_SITE_FILE") == 0) {
			bad += strcmp(info.value, "none") != 0;
			continue;
		}
		bad += count < NUM_VARIABLES && strcmp(info.name, variables[count]) != 0;
		bad += !info.unit || !info.description[0] || info.source != MOEEP_SOURCE_DEFAULT;
		bad += strcmp(info.value, info.default_value) != 0;
		bad += strncmp(info.name, "MOEEP_", 6) != 0 || info.reserved0 != 0;
	}
	is_int(rc, MOEEP_ERR_INVALID, "the index past the last");
	is_u64(count, NUM_VARIABLES, "all settings are listed");
	is_int(bad, 0, "with name, unit, description and default");
	is_int(moeep_setting_query(NULL, 0, NULL), MOEEP_ERR_INVALID, "info is NULL");
	is_int(moeep_setting_query(NULL, UINT32_MAX, &info), MOEEP_ERR_INVALID, "index far out");
}

int main(void)
{
	clear();
	test_defaults();
	test_config();
	test_environment();
	test_bad_values();
	test_long_text();
	test_query();
	return tap_done();
}
