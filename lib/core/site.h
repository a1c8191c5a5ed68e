/* SPDX-License-Identifier: MIT */
/* core/site.h - the file in which an administrator sets what holds for all programs of a machine.
 */
#ifndef MOEEP_CORE_SITE_H
#define MOEEP_CORE_SITE_H

/* Takes one setting of the file; its result ends the reading if it is not MOEEP_OK. */
typedef int (*moeep_site_fn)(void *context, int line, const char *name, const char *value);

/*
 * Lines of NAME = VALUE; blanks around both, empty lines and lines that begin with # do not count.
 * A file that is not there is an empty one. MOEEP_ERR_INVALID, with file and line, if it is not
 * such a file.
 */
int moeep_site_read(const char *path, moeep_site_fn take, void *context);

#endif
