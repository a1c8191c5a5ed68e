/* SPDX-License-Identifier: MIT */
/* core/log.c - log lines of a comm: to a file, the caller's function, or standard error. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
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

/* The name with the rank in place of each %r. False: too long. */
static bool put_rank(const char *path, int rank, char *name, size_t size)
{
	size_t used = 0;

	while (*path && used < size) {
		bool here = path[0] == '%' && path[1] == 'r';
		int n = here ? snprintf(name + used, size - used, "%d", rank)
			     : snprintf(name + used, size - used, "%c", *path);

		used += (size_t)n;
		path += here ? 2 : 1;
	}
	return used < size;
}

int moeep_log_open(struct moeep_log *log, const char *path)
{
	char name[PATH_MAX] = "";

	if (!path[0]) {
		return MOEEP_OK;
	}
	if (!put_rank(path, log->rank, name, sizeof(name))) {
		return moeep_fail(MOEEP_ERR_INVALID, "MOEEP_LOG_FILE is too long a name");
	}
	log->fd = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0644);
	return log->fd >= 0 ? MOEEP_OK
			    : moeep_fail(MOEEP_ERR_INVALID,
					 "MOEEP_LOG_FILE is \"%.80s\", which cannot be written: %s",
					 path, strerror(errno));
}

void moeep_log_close(struct moeep_log *log)
{
	if (log->fd >= 0) {
		close(log->fd);
	}
	log->fd = -1;
}

void moeep_log(const struct moeep_log *log, int level, const char *format, ...)
{
	int saved_errno = errno;
	bool own;
	char line[LINE_BYTES];
	size_t used = 0;
	va_list args;
	int n;

	if (!log || level <= MOEEP_LOG_NONE || level > log->level) {
		return;
	}
	own = log->fd >= 0 || !log->fn;
	/* The caller's function gets the level as a number, so only our own lines have it as text.
	 */
	if (log->rank >= 0) {
		n = snprintf(line, sizeof(line), "moeep[%d]: %s", log->rank,
			     own ? level_text(level) : "");
	} else {
		n = snprintf(line, sizeof(line), "moeep: %s", own ? level_text(level) : "");
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
	if (!own) {
		log->fn(log->context, level, line);
	} else {
		/* One write, so that the lines of several ranks do not mix. */
		line[used] = '\n';
		if (write(log->fd >= 0 ? log->fd : STDERR_FILENO, line, used + 1) < 0) {
			/* There is nowhere left to say so. */
		}
	}
	errno = saved_errno;
}
