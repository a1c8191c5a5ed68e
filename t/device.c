/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "t/device.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/device.h"
#include "t/tap.h"
#include "t/util.h"

#define DEVICES_MAX 64
#define ARENA_MIB   512 /* the random cases take most, 200 */
#define REASON_MAX  300

/* A device that ranks of this process use. */
struct device {
	CUcontext context;
	/* For copies of all ranks: each stream more is one that shares a queue with kernels. */
	CUstream stream;
};

static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t arena_once = PTHREAD_ONCE_INIT;
static struct arena *arena;
static const struct moeep_cu *driver; /* once it is loaded and the arena pinned */
static struct device devices[DEVICES_MAX];
static int num_devices;
static _Thread_local const struct device *my_device;

enum device_mode device_mode(void)
{
	const char *text = getenv("MOEEP_TEST_CUDA");

	if (!text || *text == '\0') {
		return DEVICE_NONE;
	}
	if (strcmp(text, "threads") == 0) {
		return DEVICE_THREADS;
	}
	if (strcmp(text, "processes") == 0) {
		return DEVICE_PROCESSES;
	}
	tap_bail("MOEEP_TEST_CUDA is \"%s\", and has to be threads or processes", text);
}

struct answer {
	int count;
	char reason[REASON_MAX];
};

static bool feature_enabled(struct answer *answer)
{
	moeep_feature_info_t info = {.size = sizeof(info)};

	for (unsigned int i = 0; moeep_feature_query(i, &info) == MOEEP_OK; i++) {
		if (strcmp(info.name, "cuda") == 0) {
			snprintf(answer->reason, sizeof(answer->reason), "%s", info.reason);
			return info.enabled;
		}
	}
	return false;
}

static void count_devices(struct answer *answer)
{
	const struct moeep_cu *cu;
	CUresult result;

	if (!feature_enabled(answer)) {
		return;
	}
	if (moeep_cu_load(&cu) == MOEEP_OK) {
		result = cu->cuDeviceGetCount(&answer->count);
		if (result == CUDA_SUCCESS && answer->count > 0) {
			return;
		}
		answer->count = 0;
		moeep_cu_fail(cu, result, "cuDeviceGetCount");
	}
	snprintf(answer->reason, sizeof(answer->reason), "%s", moeep_error_detail());
}

/* A child answers, which may start the driver and may crash in it. */
static void ask(struct answer *answer)
{
	int fd[2], status;
	pid_t pid;

	if (pipe(fd) != 0) {
		tap_bail("pipe: %s", strerror(errno));
	}
	pid = fork();
	if (pid < 0) {
		tap_bail("fork: %s", strerror(errno));
	}
	if (pid == 0) {
		close(fd[0]);
		alarm(60);
		count_devices(answer);
		_exit(write(fd[1], answer, sizeof(*answer)) != (ssize_t)sizeof(*answer));
	}
	close(fd[1]);
	if (read(fd[0], answer, sizeof(*answer)) != (ssize_t)sizeof(*answer)) {
		answer->count = 0;
		snprintf(answer->reason, sizeof(answer->reason),
			 "the process that counted devices ended without an answer");
	}
	close(fd[0]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
	}
}

int device_count(const char **reason)
{
	static struct answer answer;
	static bool asked;

	pthread_mutex_lock(&device_lock);
	if (!asked) {
		ask(&answer);
		asked = true;
	}
	pthread_mutex_unlock(&device_lock);
	if (reason) {
		*reason = answer.reason;
	}
	return answer.count;
}

static void arena_open(void)
{
	size_t mib = (size_t)util_env("MOEEP_TEST_ARENA", ARENA_MIB);

	/*
	 * With the default of 8 the copies of threads may queue up behind a kernel that waits.
	 * Under MPS the processes of a device have fewer together than 8 times 32.
	 */
	if (device_mode() != DEVICE_PROCESSES) {
		setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
	}
	arena = arena_make(mib << 20);
	if (!arena) {
		tap_bail("no arena of %zu MiB: %s", mib, strerror(errno));
	}
}

struct arena *device_arena(void)
{
	pthread_once(&arena_once, arena_open);
	return arena;
}

/* With the context of some device: all contexts may then use the arena, at its own address. */
static int pin_arena(const struct moeep_cu *cu)
{
	CUdeviceptr there = 0;
	CUresult result;
	size_t bytes;
	void *start;

	arena_region(device_arena(), &start, &bytes);
	result = cu->cuMemHostRegister(start, bytes,
				       CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "cuMemHostRegister of an arena of %zu bytes",
				     bytes);
	}
	result = cu->cuMemHostGetDevicePointer(&there, start, 0);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "cuMemHostGetDevicePointer");
	}
	if (there != (CUdeviceptr)(uintptr_t)start) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "the device sees the arena at 0x%llx, not at its address %p",
				  there, start);
	}
	return MOEEP_OK;
}

/* The device's context, which stays, and its stream. */
static int open_device(const struct moeep_cu *cu, int number)
{
	struct device *device = &devices[number];
	CUcontext context;
	CUdevice handle;
	CUresult result;

	if (device->context) {
		return MOEEP_OK;
	}
	result = cu->cuDeviceGet(&handle, number);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "cuDeviceGet of device %d", number);
	}
	result = cu->cuDevicePrimaryCtxRetain(&context, handle);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "cuDevicePrimaryCtxRetain of device %d", number);
	}
	result = cu->cuCtxSetCurrent(context);
	if (result == CUDA_SUCCESS) {
		result = cu->cuStreamCreate(&device->stream, CU_STREAM_NON_BLOCKING);
	}
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "the copies' stream of device %d", number);
	}
	device->context = context;
	return MOEEP_OK;
}

static int begin_locked(int rank)
{
	const struct moeep_cu *cu = driver;
	CUresult result;
	int number, rc;

	if (!cu) {
		rc = moeep_cu_load(&cu);
		if (rc != MOEEP_OK) {
			return rc;
		}
		result = cu->cuDeviceGetCount(&num_devices);
		if (result != CUDA_SUCCESS || num_devices == 0) {
			return moeep_cu_fail(cu, result, "cuDeviceGetCount");
		}
		num_devices = num_devices < DEVICES_MAX ? num_devices : DEVICES_MAX;
	}
	number = rank % num_devices;
	rc = open_device(cu, number);
	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cu->cuCtxSetCurrent(devices[number].context);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "cuCtxSetCurrent");
	}
	if (!driver) {
		rc = pin_arena(cu);
		if (rc != MOEEP_OK) {
			return rc;
		}
		driver = cu;
	}
	my_device = &devices[number];
	return MOEEP_OK;
}

int device_begin(int rank)
{
	int rc;

	pthread_mutex_lock(&device_lock);
	rc = begin_locked(rank);
	pthread_mutex_unlock(&device_lock);
	return rc;
}

void device_config(int rank, moeep_comm_config_t *config)
{
	config->backend = MOEEP_BACKEND_HOST;
	if (device_mode() != DEVICE_NONE) {
		config->backend = MOEEP_BACKEND_CUDA;
		config->device_plus_one = rank % num_devices + 1;
	}
}

int device_stream(const moeep_comm_t *comm, CUstream *stream)
{
	CUresult result = moeep_cuda_stream_create(comm->cuda->context, stream);

	return result == CUDA_SUCCESS ? MOEEP_OK : moeep_cu_fail(driver, result, "a stream");
}

int device_copy(void *to, const void *from, size_t bytes)
{
	CUresult result;

	if (bytes == 0) {
		return MOEEP_OK;
	}
	if (device_mode() == DEVICE_NONE) {
		memcpy(to, from, bytes);
		return MOEEP_OK;
	}
	result = driver->cuMemcpyAsync((CUdeviceptr)(uintptr_t)to, (CUdeviceptr)(uintptr_t)from,
				       bytes, my_device->stream);
	if (result == CUDA_SUCCESS) {
		result = driver->cuStreamSynchronize(my_device->stream);
	}
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(driver, result, "a copy of %zu bytes from %p to %p", bytes,
				     from, to);
	}
	return MOEEP_OK;
}
