/* SPDX-License-Identifier: MIT */
/* The site's file of settings: what it may hold, what goes before it, and what is said of a bad
 * one. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/log.h"
#include "core/settings.h"
#include "t/tap.h"

static char path[] = "/tmp/moeep-site.XXXXXX";

static void write_file(const char *text)
{
	FILE *file = fopen(path, "w");

	if (!file || fputs(text, file) < 0 || fclose(file) != 0) {
		tap_bail("%s: %s", path, strerror(errno));
	}
}

static int load(const moeep_comm_config_t *config, struct moeep_settings *settings)
{
	memset(settings, 0x55, sizeof(*settings));
	return moeep_settings_load(config, settings);
}

static void test_values(void)
{
	moeep_comm_config_t config = {.size = sizeof(config), .timeout_ms = 700};
	struct moeep_settings settings;

	write_file("# for all programs here\n"
		   "\n"
		   "MOEEP_TIMEOUT=500\n"
		   "  MOEEP_SPIN = 30\t\n"
		   "\t# indented\n"
		   "MOEEP_LOG = Debug\r\n"
		   "MOEEP_INTERFACE =\n"
		   "MOEEP_HOST_ID = a name = with more");
	is_int(load(NULL, &settings), MOEEP_OK, "a file");
	is_u64(settings.timeout_ms, 500, "sets a number");
	is_u64(settings.spin_us, 30, "with blanks around");
	is_int(settings.log_level, MOEEP_LOG_DEBUG, "a word, in a line of another system");
	is_str(settings.interface, "", "nothing");
	is_str(settings.host_id, "a name = with more", "and a text, without a newline at its end");
	is_int(settings.backend, MOEEP_BACKEND_AUTO, "what is not there stays the default");
	is_int(load(&config, &settings), MOEEP_OK, "a configuration");
	is_u64(settings.timeout_ms, 700, "goes before the file");
	setenv("MOEEP_TIMEOUT", "900", 1);
	is_int(load(&config, &settings), MOEEP_OK, "the environment");
	is_u64(settings.timeout_ms, 900, "before both");
	unsetenv("MOEEP_TIMEOUT");
	write_file("MOEEP_TIMEOUT=500\nMOEEP_TIMEOUT=600\n");
	is_int(load(NULL, &settings), MOEEP_OK, "two lines for one setting");
	is_u64(settings.timeout_ms, 600, "the last one counts");
}

/* As somebody looks for where a value comes from. */
static void test_query(void)
{
	moeep_setting_info_t info = {.size = sizeof(info)};

	write_file("MOEEP_SPIN=no number\nMOEEP_TIMEOUT=500\n");
	for (unsigned int i = 0; moeep_setting_query(NULL, i, &info) == MOEEP_OK; i++) {
		if (strcmp(info.name, "MOEEP_TIMEOUT") == 0) {
			is_str(info.value, "500", "a setting of the file is told");
			is_int(info.source, MOEEP_SOURCE_SITE, "with its source");
		} else if (strcmp(info.name, "MOEEP_SITE_FILE") == 0) {
			is_str(info.value, path, "and which file it is");
			is_int(info.source, MOEEP_SOURCE_ENVIRONMENT, "as the environment says");
		} else if (strcmp(info.name, "MOEEP_LOG") == 0) {
			is_int(info.source, MOEEP_SOURCE_DEFAULT, "others are defaults");
		}
	}
}

static void refused(const char *text, const char *part, const char *what)
{
	struct moeep_settings settings;
	char place[64];

	write_file(text);
	is_int(load(NULL, &settings), MOEEP_ERR_INVALID, "%s", what);
	snprintf(place, sizeof(place), "%s:2: ", path);
	ok(strncmp(moeep_error_detail(), place, strlen(place)) == 0 &&
		   strstr(moeep_error_detail(), part),
	   "detail: %s", moeep_error_detail());
}

static void test_bad(void)
{
	struct moeep_settings settings;
	char text[2048] = "\n";

	refused("\nMOEEP_TIMOUT=500\n", "no setting MOEEP_TIMOUT", "a name that is none");
	refused("\nMOEEP_TIMEOUT=soon\n", "MOEEP_TIMEOUT is \"soon\"", "a value that is none");
	refused("\nMOEEP_TIMEOUT 500\n", "\"MOEEP_TIMEOUT 500\" is not NAME = VALUE", "no sign");
	refused("\n=500\n", "there is no setting ", "no name");
	refused("\nMOEEP_ID=0123\n", "MOEEP_ID is not taken", "a secret");
	refused("\nMOEEP_SITE_FILE=/etc/other\n", "not taken from this file", "another file");
	memset(text + 1, 'x', sizeof(text) - 2);
	refused(text, "a line of more than", "a long line");
	(void)unlink(path);
	is_int(load(NULL, &settings), MOEEP_OK, "no file is no fault");
	is_u64(settings.timeout_ms, 30000, "all are defaults");
	mkdir(path, 0700);
	ok(load(NULL, &settings) < 0 && strstr(moeep_error_detail(), path), "a folder: %s",
	   moeep_error_detail());
	rmdir(path);
	setenv("MOEEP_SITE_FILE", "none", 1);
	is_int(load(NULL, &settings), MOEEP_OK, "\"none\" is no file");
	unsetenv("MOEEP_SITE_FILE");
}

int main(void)
{
	int fd = mkstemp(path);

	if (fd < 0) {
		tap_bail("mkstemp: %s", strerror(errno));
	}
	close(fd);
	setenv("MOEEP_SITE_FILE", path, 1);
	test_values();
	test_query();
	test_bad();
	return tap_done();
}
