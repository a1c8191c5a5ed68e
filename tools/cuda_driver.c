/* SPDX-License-Identifier: MIT */
/* tools/cuda_driver.c - lib/cuda/driver.c, and what it needs of the library. */
#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cuda_driver.h"

#include "core/error.h"
#include "core/settings.h"

static _Thread_local char detail[512];

const char *tool_cu_detail(void)
{
	return detail;
}

int moeep_fail(int result, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(detail, sizeof(detail), format, args);
	va_end(args);
	return result;
}

/* The driver's file is all that is asked for. */
int moeep_settings_load(const moeep_comm_config_t *config, struct moeep_settings *settings)
{
	moeep_setting_info_t info = {.size = sizeof(info)};

	(void)config;
	memset(settings, 0, sizeof(*settings));
	for (unsigned i = 0; moeep_setting_query(NULL, i, &info) == 0; i++) {
		if (!strcmp(info.name, "MOEEP_CUDA_DRIVER")) {
			snprintf(settings->cuda_driver, sizeof(settings->cuda_driver), "%s",
				 info.value);
		}
	}
	return MOEEP_OK;
}

#include "cuda/driver.c"
