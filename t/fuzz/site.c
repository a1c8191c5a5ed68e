/* SPDX-License-Identifier: MIT */
/* Fuzz target: the site's file of settings. */
#define _GNU_SOURCE
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/settings.h"
#include "t/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	moeep_setting_info_t info = {.size = sizeof(info)};
	struct moeep_settings settings;
	char path[64];

	if (fd < 0) {
		fd = memfd_create("moeep.conf", MFD_CLOEXEC);
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		setenv("MOEEP_SITE_FILE", path, 1);
	}
	if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) {
		return 0;
	}
	(void)moeep_settings_load(NULL, &settings);
	for (unsigned int i = 0; moeep_setting_query(NULL, i, &info) == MOEEP_OK; i++) {
	}
	return 0;
}
