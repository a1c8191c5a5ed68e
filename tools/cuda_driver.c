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

static void log_nothing(void *context, int level, const char *line)
{
	(void)context;
	(void)level;
	(void)line;
}

bool tool_cu_try_library(int ordinal, char *why, size_t why_size)
{
	moeep_comm_config_t config = {
		.size = sizeof(config),
		.backend = MOEEP_BACKEND_CUDA,
		.device_plus_one = ordinal + 1,
		.log = log_nothing,
	};
	moeep_comm_info_t info = {.size = sizeof(info)};
	moeep_comm_t *comm = NULL;
	bool can = false;
	int rc;

	rc = moeep_comm_create(0, 1, &config, &comm);
	if (rc) {
		snprintf(why, why_size, "%s",
			 moeep_error_detail()[0] ? moeep_error_detail() : moeep_strerror(rc));
		return false;
	}
	if (moeep_comm_query(comm, &info) == 0 && info.backend == MOEEP_BACKEND_CUDA) {
		can = true;
	} else {
		snprintf(why, why_size, "MOEEP_BACKEND keeps the library on the host");
	}
	(void)moeep_comm_destroy(comm);
	return can;
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
