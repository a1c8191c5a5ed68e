/* SPDX-License-Identifier: MIT */
/* core/log.c - log lines of a comm: to the caller's function, else to standard error. */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/log.h"

#define LINE_BYTES 1024

static const char *level_text(int level)
{
	switch (level) {
	case MOEEP_LOG_ERROR:
		return "error: ";
	case MOEEP_LOG_WARN:
		return "warning: ";
	case MOEEP_LOG_DEBUG:
		return "debug: ";
	default:
		return "";
	}
}

void moeep_log(const struct moeep_log *log, int level, const char *format, ...)
{
	int saved_errno = errno;
	char line[LINE_BYTES];
	size_t used = 0;
	va_list args;
	int n;

	if (!log || level <= MOEEP_LOG_NONE || level > log->level) {
		return;
	}
	/* The caller's function gets the level as a number, so only our own lines have it as text.
	 */
	if (log->rank >= 0) {
		n = snprintf(line, sizeof(line), "moeep[%d]: %s", log->rank,
			     log->fn ? "" : level_text(level));
	} else {
		n = snprintf(line, sizeof(line), "moeep: %s", log->fn ? "" : level_text(level));
	}
	if (n > 0) {
		used = (size_t)n;
	}
	/* One byte is kept back for the newline. */
	va_start(args, format);
	n = vsnprintf(line + used, sizeof(line) - used - 1, format, args);
	va_end(args);
	if (n < 0) {
		line[used] = '\0';
	}
	used = strlen(line);
	if (log->fn) {
		log->fn(log->context, level, line);
	} else {
		/* One write, so that the lines of several ranks do not mix. */
		line[used] = '\n';
		if (write(STDERR_FILENO, line, used + 1) < 0) {
			/* There is nowhere left to say so. */
		}
	}
	errno = saved_errno;
}
