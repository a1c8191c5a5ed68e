/* SPDX-License-Identifier: MIT */
/* The fake CUDA driver: errors, devices and contexts. */
#include "config.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "t/cuda/fake.h"

#define MAX_DEVICES 8
#define MAX_PUSHED  8

struct CUctx_st {
	CUdevice device;
	int retained;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUctx_st contexts[MAX_DEVICES];
static atomic_int live;
static atomic_int started_by; /* process */
static atomic_int counted_calls;
static _Thread_local CUcontext current[MAX_PUSHED];
static _Thread_local int num_current;

int fake_cuda_live(void)
{
	return live;
}

void fake_count(int change)
{
	live += change;
}

int fake_env(const char *name, int otherwise)
{
	const char *text = getenv(name);

	return text && text[0] ? atoi(text) : otherwise;
}

/* FAKE_CUDA_FAIL */
static CUresult asked_to_fail(const char *function, const char *group)
{
	const char *text = getenv("FAKE_CUDA_FAIL");
	char name[64];
	int code;
	int call = 0;
	int fields = text ? sscanf(text, "%63[^:]:%d:%d", name, &code, &call) : 0;

	if (fields < 2 || (strcmp(name, function) != 0 && (!group || strcmp(name, group) != 0))) {
		return CUDA_SUCCESS;
	}
	if (fields == 3 && ++counted_calls != call) {
		return CUDA_SUCCESS;
	}
	return (CUresult)code;
}

CUresult fake_enter(const char *function, const char *group)
{
	/* As with a driver, a child that was forked later has none. */
	if (started_by != getpid()) {
		return CUDA_ERROR_NOT_INITIALIZED;
	}
	return asked_to_fail(function, group);
}

CUresult fake_enter_context(const char *function, const char *group)
{
	FAKE_TRY(fake_enter(function, group));
	return num_current > 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuInit(unsigned int flags)
{
	FAKE_TRY(asked_to_fail("cuInit", NULL));
	if (flags != 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (fake_env("FAKE_CUDA_DEVICES", 1) < 1) {
		return CUDA_ERROR_NO_DEVICE;
	}
	started_by = getpid();
	return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version)
{
	FAKE_TRY(asked_to_fail("cuDriverGetVersion", NULL));
	*version = fake_env("FAKE_CUDA_VERSION", 12040);
	return CUDA_SUCCESS;
}

static const struct {
	CUresult result;
	const char *name;
	const char *text;
} errors[] = {
	{CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
	{CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
	{CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
	{CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
	{CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
	{CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
	{CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
	{CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU",
	 "no kernel image is available for execution on the device"},
	{CUDA_ERROR_UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
	 "the provided PTX was compiled with an unsupported toolchain."},
	{CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
	{CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
	{CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
	{CUDA_ERROR_SYSTEM_NOT_READY, "CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"},
	{CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
	 "system has unsupported display driver / cuda driver combination"},
	{CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

#define NUM_ERRORS (sizeof(errors) / sizeof(errors[0]))

CUresult cuGetErrorName(CUresult error, const char **text)
{
	for (size_t i = 0; i < NUM_ERRORS; i++) {
		if (errors[i].result == error) {
			*text = errors[i].name;
			return CUDA_SUCCESS;
		}
	}
	*text = NULL;
	return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
	for (size_t i = 0; i < NUM_ERRORS; i++) {
		if (errors[i].result == error) {
			*text = errors[i].text;
			return CUDA_SUCCESS;
		}
	}
	*text = NULL;
	return CUDA_ERROR_INVALID_VALUE;
}

/* Devices. */

static int num_devices(void)
{
	int count = fake_env("FAKE_CUDA_DEVICES", 1);

	return count < MAX_DEVICES ? count : MAX_DEVICES;
}

static CUresult enter_device(const char *function, CUdevice device)
{
	FAKE_TRY(fake_enter(function, NULL));
	return device >= 0 && device < num_devices() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetCount(int *count)
{
	FAKE_TRY(fake_enter("cuDeviceGetCount", NULL));
	*count = num_devices();
	return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	FAKE_TRY(enter_device("cuDeviceGet", ordinal));
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device)
{
	FAKE_TRY(enter_device("cuDeviceGetName", device));
	snprintf(name, (size_t)size, "Fake device %d", device);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
	FAKE_TRY(enter_device("cuDeviceGetUuid", device));
	memset(uuid, 0xfa, sizeof(*uuid));
	uuid->bytes[15] = (char)device;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetPCIBusId(char *id, int size, CUdevice device)
{
	FAKE_TRY(enter_device("cuDeviceGetPCIBusId", device));
	snprintf(id, (size_t)size, "0000:%02X:00.0", device + 1);
	return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
	FAKE_TRY(enter_device("cuDeviceTotalMem", device));
	*bytes = (size_t)80 << 30;
	return CUDA_SUCCESS;
}

static int attribute_value(CUdevice_attribute attribute, CUdevice device)
{
	int capability = fake_env("FAKE_CUDA_CAPABILITY", 90);

	switch (attribute) {
	case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
		return 1024;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK:
		return 48 << 10;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
		return 227 << 10;
	case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
		return 228 << 10;
	case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
		return 32;
	case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
		return 1000000;
	case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
		return fake_env("FAKE_CUDA_SMS", 16);
	case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR:
		return 2048;
	case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
		return 50 << 20;
	case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
		return 3;
	case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID:
		return device + 1;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
		return capability / 10;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
		return capability % 10;
	case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
	case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
	case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
	case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
	case CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED:
	case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
	case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
	case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
	case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
	case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
		return 1;
	case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH:
		return capability >= 90;
	default:
		return 0;
	}
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device)
{
	const char *text = getenv("FAKE_CUDA_ATTRIBUTE");
	int asked;
	int answer;

	FAKE_TRY(enter_device("cuDeviceGetAttribute", device));
	*value = attribute_value(attribute, device);
	if (text && sscanf(text, "%d:%d", &asked, &answer) == 2 && asked == (int)attribute) {
		*value = answer;
	}
	return CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer)
{
	FAKE_TRY(enter_device("cuDeviceCanAccessPeer", device));
	FAKE_TRY(enter_device("cuDeviceCanAccessPeer", peer));
	*can = device != peer && fake_env("FAKE_CUDA_PEERS", 1);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetP2PAttribute(int *value, CUdevice_P2PAttribute attribute, CUdevice device,
				 CUdevice peer)
{
	FAKE_TRY(enter_device("cuDeviceGetP2PAttribute", device));
	FAKE_TRY(enter_device("cuDeviceGetP2PAttribute", peer));
	if (device == peer) {
		return CUDA_ERROR_INVALID_DEVICE;
	}
	*value = attribute != CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK &&
		 fake_env("FAKE_CUDA_PEERS", 1);
	return CUDA_SUCCESS;
}

/* Contexts: the primary ones alone. */

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	FAKE_TRY(enter_device("cuDevicePrimaryCtxRetain", device));
	pthread_mutex_lock(&lock);
	contexts[device].device = device;
	contexts[device].retained++;
	pthread_mutex_unlock(&lock);
	fake_count(1);
	*context = &contexts[device];
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	bool held;

	FAKE_TRY(enter_device("cuDevicePrimaryCtxRelease", device));
	pthread_mutex_lock(&lock);
	held = contexts[device].retained > 0;
	contexts[device].retained -= held;
	pthread_mutex_unlock(&lock);
	fake_count(-held);
	return held ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
	FAKE_TRY(fake_enter("cuCtxGetCurrent", NULL));
	*context = num_current > 0 ? current[num_current - 1] : NULL;
	return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
	FAKE_TRY(fake_enter("cuCtxSetCurrent", NULL));
	num_current -= num_current > 0;
	if (context) {
		current[num_current++] = context;
	}
	return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context)
{
	FAKE_TRY(fake_enter("cuCtxPushCurrent", NULL));
	if (!context || num_current == MAX_PUSHED) {
		return CUDA_ERROR_INVALID_CONTEXT;
	}
	current[num_current++] = context;
	return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context)
{
	FAKE_TRY(fake_enter_context("cuCtxPopCurrent", NULL));
	num_current--;
	if (context) {
		*context = current[num_current];
	}
	return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device)
{
	FAKE_TRY(fake_enter_context("cuCtxGetDevice", NULL));
	*device = current[num_current - 1]->device;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
	FAKE_TRY(fake_enter_context("cuCtxGetStreamPriorityRange", NULL));
	*least = 0;
	*greatest = -5;
	return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
	return fake_enter_context("cuCtxSynchronize", NULL);
}

CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned int flags)
{
	FAKE_TRY(fake_enter_context("cuCtxEnablePeerAccess", NULL));
	if (!peer || flags != 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return fake_env("FAKE_CUDA_PEERS", 1) ? CUDA_SUCCESS : CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
}

/* Of a thread, whatever its streams are. */
CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
	static _Thread_local CUstreamCaptureMode now = CU_STREAM_CAPTURE_MODE_GLOBAL;
	CUstreamCaptureMode before = now;

	FAKE_TRY(fake_enter("cuThreadExchangeStreamCaptureMode", NULL));
	now = *mode;
	*mode = before;
	return CUDA_SUCCESS;
}
