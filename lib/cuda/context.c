/* SPDX-License-Identifier: MIT */
/*
 * cuda/context.c - a GPU of this process: its context, the kernels, pinned memory.
 *
 * Ranks that are threads of this process share it, and the last one that leaves frees it: to unload
 * kernels and to free pinned memory waits for the kernels that run, which may wait for ranks that
 * have not left.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "cuda/context.h"
#if MOEEP_HAVE_CUDA
#include "cuda/images.h"
#endif

static pthread_mutex_t contexts_lock = PTHREAD_MUTEX_INITIALIZER;
static struct moeep_cuda_context *contexts;

#if MOEEP_HAVE_CUDA
/* The first driver that captures a programmatic dependent launch into a graph. */
#define PDL_VERSION 12030

static const struct {
	const char *image;
	const char *function;
	int threads;
} kernel_table[MOEEP_CUDA_KERNELS] = {
	[MOEEP_CUDA_LAYOUT] = {"layout", "moeep_kernel_layout", MOEEP_DEV_LL_THREADS},
	[MOEEP_CUDA_HT_DISPATCH] = {"ht_dispatch", "moeep_kernel_ht_dispatch",
				    MOEEP_DEV_HT_THREADS},
	[MOEEP_CUDA_HT_EXPAND] = {"ht_expand", "moeep_kernel_ht_expand", MOEEP_DEV_SUM_THREADS},
	[MOEEP_CUDA_HT_COMBINE] = {"ht_combine", "moeep_kernel_ht_combine", MOEEP_DEV_HT_THREADS},
	[MOEEP_CUDA_LL_DISPATCH] = {"ll_dispatch", "moeep_kernel_ll_dispatch",
				    MOEEP_DEV_LL_THREADS},
	[MOEEP_CUDA_LL_COMBINE] = {"ll_combine", "moeep_kernel_ll_combine", MOEEP_DEV_LL_THREADS},
};
#endif

static int attribute(const struct moeep_cuda_context *cuda, CUdevice_attribute which)
{
	int value = 0;

	return cuda->cu->cuDeviceGetAttribute(&value, which, cuda->device) == CUDA_SUCCESS ? value
											   : 0;
}

/* The device that is asked for, else the current context's, else the first. */
static int choose_device(struct moeep_cuda_context *cuda, int device_plus_one)
{
	const struct moeep_cu *cu = cuda->cu;
	CUcontext current = NULL;
	int count = 0;
	CUresult result = cu->cuDeviceGetCount(&count);

	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "cuDeviceGetCount");
	}
	if (device_plus_one < 0 || device_plus_one > count) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "config.device_plus_one is %d; this process sees %d devices",
				  device_plus_one, count);
	}
	(void)cu->cuCtxGetCurrent(&current);
	if (current) {
		CUdevice device;

		result = cu->cuCtxGetDevice(&device);
		if (result != CUDA_SUCCESS) {
			return moeep_cu_fail(cu, result, "cuCtxGetDevice");
		}
		if (device_plus_one == 0 || device == device_plus_one - 1) {
			cuda->device = device;
			cuda->context = current;
		}
	}
	if (!cuda->context) {
		int ordinal = device_plus_one > 0 ? device_plus_one - 1 : 0;
		const char *call = "cuDeviceGet";

		result = cu->cuDeviceGet(&cuda->device, ordinal);
		if (result == CUDA_SUCCESS) {
			call = "cuDevicePrimaryCtxRetain";
			result = cu->cuDevicePrimaryCtxRetain(&cuda->context, cuda->device);
		}
		if (result != CUDA_SUCCESS) {
			cuda->context = NULL;
			return moeep_cu_fail(cu, result, "%s of device %d", call, ordinal);
		}
		cuda->primary = true;
	}
	return MOEEP_OK;
}

static int check_device(struct moeep_cuda_context *cuda)
{
	CUresult result;
	int major = 0;

	(void)cuda->cu->cuDeviceGetName(cuda->name, sizeof(cuda->name), cuda->device);
	(void)cuda->cu->cuDeviceGetUuid(&cuda->uuid, cuda->device);
	result = cuda->cu->cuDeviceGetAttribute(
		&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, cuda->device);
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cuda->cu, result, "cuDeviceGetAttribute of device %d",
				     cuda->device);
	}
	cuda->capability =
		major * 10 + attribute(cuda, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
	cuda->sms = attribute(cuda, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
	cuda->max_shared = attribute(cuda, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
	if (cuda->capability < 80) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "device %d (%s) has compute capability %d.%d; 8.0 is needed",
				  cuda->device, cuda->name, cuda->capability / 10,
				  cuda->capability % 10);
	}
	if (attribute(cuda, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING) == 0 ||
	    attribute(cuda, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 0 ||
	    attribute(cuda, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED) == 0) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "device %d (%s) cannot pass memory between processes by "
				  "descriptor, or has no unified addressing",
				  cuda->device, cuda->name);
	}
	cuda->bulk = cuda->capability >= 90;
	return MOEEP_OK;
}

/* A kernel without arguments ends at once. */
static CUresult launch_nothing(const struct moeep_cuda_context *cuda, int id, int shared,
			       CUstream stream)
{
	static const char nothing[4096]; /* room for any kernel's arguments */
	void *arguments[] = {(void *)(uintptr_t)nothing};

	return cuda->cu->cuLaunchKernel(cuda->kernels[id].function, 1, 1, 1,
					(unsigned)cuda->kernels[id].threads, 1, 1, (unsigned)shared,
					stream, arguments, NULL);
}

CUresult moeep_cuda_stream_create(const struct moeep_cuda_context *context, CUstream *stream)
{
	const struct moeep_cu *cu = context->cu;
	CUresult result = cu->cuStreamCreate(stream, CU_STREAM_NON_BLOCKING);

	if (result != CUDA_SUCCESS) {
		*stream = NULL;
		return result;
	}
	result = launch_nothing(context, MOEEP_CUDA_LAYOUT, 0, *stream);
	if (result == CUDA_SUCCESS) {
		result = cu->cuStreamSynchronize(*stream);
	}
	if (result != CUDA_SUCCESS) {
		(void)cu->cuStreamDestroy(*stream);
		*stream = NULL;
	}
	return result;
}

#if MOEEP_HAVE_CUDA
static int load_kernel(struct moeep_cuda_context *cuda, int id, CUstream stream)
{
	struct moeep_cuda_kernel *kernel = &cuda->kernels[id];
	const struct moeep_image *image = moeep_image_find(kernel_table[id].image);
	const struct moeep_cu *cu = cuda->cu;
	const char *call = "cuModuleLoadData";
	CUresult result = cu->cuModuleLoadData(&kernel->module, image->start);

	if (result == CUDA_SUCCESS) {
		call = "cuModuleGetFunction";
		result = cu->cuModuleGetFunction(&kernel->function, kernel->module,
						 kernel_table[id].function);
	}
	if (result == CUDA_SUCCESS) {
		call = "cuFuncGetAttribute";
		result = cu->cuFuncGetAttribute(&kernel->static_shared,
						CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
						kernel->function);
	}
	if (result == CUDA_SUCCESS) {
		int architecture = 0;

		/* A build for older devices runs on this one, too, without the copy engine. */
		result = cu->cuFuncGetAttribute(&architecture, CU_FUNC_ATTRIBUTE_PTX_VERSION,
						kernel->function);
		cuda->bulk = cuda->bulk && architecture >= 90;
	}
	if (result == CUDA_SUCCESS) {
		call = "cuFuncSetAttribute";
		result = cu->cuFuncSetAttribute(kernel->function,
						CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
						cuda->max_shared - kernel->static_shared);
	}
	kernel->threads = kernel_table[id].threads;
	/*
	 * The first launch may wait until the device is idle, for the kernel to be loaded and local
	 * memory to grow: so it is here, where no rank waits for another.
	 */
	if (result == CUDA_SUCCESS) {
		call = "cuLaunchKernel";
		result = launch_nothing(cuda, id, cuda->max_shared - kernel->static_shared, stream);
	}
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "%s of %s for device %d (%s, sm_%d)", call,
				     kernel_table[id].function, cuda->device, cuda->name,
				     cuda->capability);
	}
	return MOEEP_OK;
}
#endif

#if MOEEP_HAVE_CUDA
static int load_kernels(struct moeep_cuda_context *context)
{
	const struct moeep_cu *cu = context->cu;
	CUstream stream;
	CUresult result = cu->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
	int rc = MOEEP_OK;

	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cu, result, "cuStreamCreate");
	}
	for (int id = 0; id < MOEEP_CUDA_KERNELS && rc == MOEEP_OK; id++) {
		rc = load_kernel(context, id, stream);
	}
	result = cu->cuStreamSynchronize(stream);
	if (rc == MOEEP_OK && result != CUDA_SUCCESS) {
		rc = moeep_cu_fail(cu, result,
				   "cuStreamSynchronize after a first launch of kernels");
	}
	(void)cu->cuStreamDestroy(stream);
	return rc;
}
#endif

static int context_load(struct moeep_cuda_context *context)
{
	CUcontext previous;
	int rc = MOEEP_OK;
	CUresult result = context->cu->cuCtxPushCurrent(context->context);

	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(context->cu, result, "cuCtxPushCurrent");
	}
#if MOEEP_HAVE_CUDA
	int version;

	rc = load_kernels(context);
	moeep_cu_versions(&version, NULL);
	context->dependent = context->bulk && version >= PDL_VERSION;
#endif
	(void)context->cu->cuCtxPopCurrent(&previous);
	return rc;
}

static void context_free(struct moeep_cuda_context *context)
{
	const struct moeep_cu *cu = context->cu;
	CUcontext previous;

	if (context->context && cu->cuCtxPushCurrent(context->context) == CUDA_SUCCESS) {
		for (int id = 0; id < MOEEP_CUDA_KERNELS; id++) {
			if (context->kernels[id].module) {
				(void)cu->cuModuleUnload(context->kernels[id].module);
			}
		}
		moeep_pinned_fini(&context->pinned, cu);
		(void)cu->cuCtxPopCurrent(&previous);
	}
	if (context->primary) {
		(void)cu->cuDevicePrimaryCtxRelease(context->device);
	}
	free(context);
}

int moeep_cuda_context_get(int device_plus_one, struct moeep_cuda_context **context_out)
{
	struct moeep_cuda_context *context = calloc(1, sizeof(*context));
	struct moeep_cuda_context *found;
	int rc;

	if (!context) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a device's description");
	}
	moeep_pinned_init(&context->pinned);
	context->refs = 1;
	rc = moeep_cu_load(&context->cu);
	if (rc != MOEEP_OK) {
		free(context);
		return rc;
	}
	pthread_mutex_lock(&contexts_lock);
	rc = choose_device(context, device_plus_one);
	for (found = contexts; rc == MOEEP_OK && found && found->context != context->context;
	     found = found->next) {
	}
	if (rc == MOEEP_OK && found) {
		found->refs++;
		context_free(context);
		context = found;
	} else if (rc == MOEEP_OK) {
		rc = check_device(context);
		if (rc == MOEEP_OK) {
			rc = context_load(context);
		}
		if (rc == MOEEP_OK) {
			context->next = contexts;
			contexts = context;
		}
	}
	if (rc != MOEEP_OK) {
		context_free(context);
	}
	pthread_mutex_unlock(&contexts_lock);
	if (rc == MOEEP_OK) {
		*context_out = context;
	}
	return rc;
}

void moeep_cuda_context_put(struct moeep_cuda_context *context)
{
	if (!context) {
		return;
	}
	pthread_mutex_lock(&contexts_lock);
	if (--context->refs == 0) {
		struct moeep_cuda_context **link = &contexts;

		while (*link != context) {
			link = &(*link)->next;
		}
		*link = context->next;
		context_free(context);
	}
	pthread_mutex_unlock(&contexts_lock);
}
