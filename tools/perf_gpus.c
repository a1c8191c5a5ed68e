/* SPDX-License-Identifier: MIT */
/* tools/perf_gpus.c - asking the driver for GPUs, and the library whether it can work on them. */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda_driver.h"
#include "output.h"
#include "perf_gpus.h"

static int look_at(struct perf_gpus *gpus, const struct moeep_cu *cu, int ordinal)
{
	struct perf_gpu *gpu = &gpus->gpu[ordinal];
	size_t total = 0, left = 0;
	CUcontext context;
	CUdevice device;
	CUresult result;

	result = cu->cuDeviceGet(&device, ordinal);
	if (result == CUDA_SUCCESS) {
		result = cu->cuDeviceGetName(gpu->name, (int)sizeof(gpu->name), device);
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuDeviceGetAttribute(&gpu->sms,
						  CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuDevicePrimaryCtxRetain(&context, device);
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuCtxSetCurrent(context);
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuMemGetInfo(&left, &total);
	}
	if (result != CUDA_SUCCESS) {
		(void)moeep_cu_fail(cu, result, "GPU %d", ordinal);
		snprintf(gpus->why, sizeof(gpus->why), "%s", tool_cu_detail());
		return -1;
	}
	gpu->total = total;
	gpu->free = left;
	return 0;
}

/* In the helper process. */
static void look(struct perf_gpus *gpus, int ranks)
{
	const struct moeep_cu *cu;
	int rc = moeep_cu_load(&cu);

	moeep_cu_versions(&gpus->version, NULL);
	if (rc || cu->cuDeviceGetCount(&gpus->count) != CUDA_SUCCESS) {
		gpus->count = 0;
		snprintf(gpus->why, sizeof(gpus->why), "%s",
			 rc ? tool_cu_detail() : "the driver does not count its devices");
		return;
	}
	if (gpus->count > PERF_MAX_GPUS) {
		gpus->count = PERF_MAX_GPUS;
	}
	if (ranks > 0 && gpus->count > ranks) {
		gpus->count = ranks;
	}
	for (int i = 0; i < gpus->count; i++) {
		char why[280];

		if (look_at(gpus, cu, i)) {
			return;
		}
		if (!tool_cu_try_library(i, why, sizeof(why))) {
			snprintf(gpus->why, sizeof(gpus->why), "GPU %d: %s", i, why);
			return;
		}
	}
	if (gpus->count == 0) {
		snprintf(gpus->why, sizeof(gpus->why), "the driver has no device");
		return;
	}
	gpus->usable = true;
}

/* False, with the reason, if the library cannot use GPUs whatever there is. */
static bool built_in(struct perf_gpus *gpus)
{
	moeep_feature_info_t info = {.size = sizeof(info)};

	for (unsigned i = 0; moeep_feature_query(i, &info) == 0; i++) {
		if (!strcmp(info.name, "cuda") && !info.enabled) {
			snprintf(gpus->why, sizeof(gpus->why), "this build of moeep: %s",
				 info.reason);
			return false;
		}
	}
	return true;
}

void perf_gpus_look(struct perf_gpus *gpus, int ranks)
{
	struct perf_gpus *shared;
	int status = 0;
	pid_t pid;

	memset(gpus, 0, sizeof(*gpus));
	if (!built_in(gpus)) {
		return;
	}
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED) {
		snprintf(gpus->why, sizeof(gpus->why), "mmap: %s", strerror(errno));
		return;
	}
	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		look(shared, ranks);
		_exit(0);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
	}
	*gpus = *shared;
	if (pid < 0) {
		snprintf(gpus->why, sizeof(gpus->why), "fork: %s", strerror(errno));
	} else if (!WIFEXITED(status)) {
		gpus->usable = false;
		snprintf(gpus->why, sizeof(gpus->why),
			 "the process that looked for GPUs was killed by signal %d (%s)",
			 WTERMSIG(status), strsignal(WTERMSIG(status)));
	}
	munmap(shared, sizeof(*shared));
}

/*
 * MOEEP_BACKEND is what --backend is by default. It is taken out of the environment, where it would
 * override what the ranks' comms are asked for. A value that is not valid stays, and fails there.
 */
static void take_setting(struct perf_options *options)
{
	moeep_setting_info_t info = {.size = sizeof(info)};
	int backend = MOEEP_BACKEND_AUTO;

	for (unsigned i = 0; moeep_setting_query(NULL, i, &info) == 0; i++) {
		if (!strcmp(info.name, "MOEEP_BACKEND")) {
			break;
		}
	}
	if (!strcmp(info.value, "host")) {
		backend = MOEEP_BACKEND_HOST;
	} else if (!strcmp(info.value, "cuda")) {
		backend = MOEEP_BACKEND_CUDA;
	} else if (strcmp(info.value, "auto") != 0) {
		return;
	}
	options->backend = options->backend < 0 ? backend : options->backend;
	(void)unsetenv("MOEEP_BACKEND");
}

int perf_gpus_choose(struct perf_options *options, struct perf_gpus *gpus)
{
	const char *needs = options->graph	    ? "--graph"
			    : options->sms	    ? "--sms"
			    : options->compare_host ? "--compare-host"
						    : NULL;

	memset(gpus, 0, sizeof(*gpus));
	take_setting(options);
	if (options->backend != MOEEP_BACKEND_HOST) {
		perf_gpus_look(gpus, options->ranks_given ? options->ranks : 0);
	} else {
		snprintf(gpus->why, sizeof(gpus->why), "the host backend was asked for");
	}
	if (!gpus->usable && (options->backend == MOEEP_BACKEND_CUDA || needs)) {
		fprintf(stderr,
			"moeep-perf: %s: no GPU can be used: ", needs ? needs : "--backend cuda");
		print_text(stderr, gpus->why);
		fputs("\n", stderr);
		return -1;
	}
	options->backend = gpus->usable ? MOEEP_BACKEND_CUDA : MOEEP_BACKEND_HOST;
	if (gpus->usable && !options->ranks_given) {
		options->ranks = gpus->count;
		options->ranks_given = true;
	}
	return 0;
}
