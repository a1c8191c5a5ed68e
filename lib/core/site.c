/* SPDX-License-Identifier: MIT */
/* core/site.c - reads the site's file of settings. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <moeep/moeep.h>

#include "core/error.h"
#include "core/site.h"

#define LINE_BYTES 512
#define BLANKS	   " \t\r\n"

/* Without the blanks at its end. */
static void cut(char *text)
{
	size_t length = strlen(text);

	while (length > 0 && strchr(BLANKS, text[length - 1])) {
		text[--length] = '\0';
	}
}

/* One line; the text is written to. */
static int read_line(const char *path, int line, char *text, moeep_site_fn take, void *context)
{
	char *name = text + strspn(text, BLANKS);
	char *value;

	if (!strchr(text, '\n') && strlen(text) == LINE_BYTES - 1) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s:%d: a line of more than %d bytes", path,
				  line, LINE_BYTES - 2);
	}
	if (name[0] == '\0' || name[0] == '#') {
		return MOEEP_OK;
	}
	value = strchr(name, '=');
	if (!value) {
		cut(name);
		return moeep_fail(MOEEP_ERR_INVALID, "%s:%d: \"%.40s\" is not NAME = VALUE", path,
				  line, name);
	}
	*value++ = '\0';
	value += strspn(value, BLANKS);
	cut(name);
	cut(value);
	return take(context, line, name, value);
}

int moeep_site_read(const char *path, moeep_site_fn take, void *context)
{
	char text[LINE_BYTES];
	FILE *file = fopen(path, "re");
	int rc = MOEEP_OK;

	if (!file) {
		/* ENOTDIR: a part of the path is no folder, so neither is the file there. */
		return errno == ENOENT || errno == ENOTDIR
			       ? MOEEP_OK
			       : moeep_fail_errno("open the settings in %s", path);
	}
	for (int line = 1; rc == MOEEP_OK && fgets(text, sizeof(text), file); line++) {
		rc = read_line(path, line, text, take, context);
	}
	if (rc == MOEEP_OK && ferror(file)) {
		rc = moeep_fail_errno("read the settings in %s", path);
	}
	fclose(file);
	return rc;
}
