/* SPDX-License-Identifier: MIT */
/* core/log.h - log lines of a comm: to a file, the caller's function, or standard error. */
#ifndef MOEEP_CORE_LOG_H
#define MOEEP_CORE_LOG_H

#include <moeep/moeep.h>

enum {
	MOEEP_LOG_NONE = 0,
	MOEEP_LOG_ERROR = 1,
	MOEEP_LOG_WARN = 2,
	MOEEP_LOG_INFO = 3,
	MOEEP_LOG_DEBUG = 4
};

struct moeep_log {
	moeep_log_fn fn; /* NULL: standard error */
	void *context;
	int fd;	   /* -1: to fn, or standard error */
	int level; /* lines above it are dropped */
	int rank;  /* prefix "moeep[rank]: " */
};

/*
 * Lines go to this file instead, each behind what is there; %r in its name is the rank. "": to
 * where they went. MOEEP_ERR_INVALID if it cannot be opened.
 */
int moeep_log_open(struct moeep_log *log, const char *path);
void moeep_log_close(struct moeep_log *log);

void moeep_log(const struct moeep_log *log, int level, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#endif
