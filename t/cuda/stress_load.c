/* SPDX-License-Identifier: MIT */
/* A kernel of the test's own that takes SMs away from the operations, like a GEMM beside them. */
#include "config.h"

#include "t/cuda/stress.h"

#include "core/error.h"

#define THREADS 1024
/* Of the SMs. */
#define PART 4

#if MOEEP_HAVE_CUDA
extern const unsigned char stress_load_image[] __attribute__((visibility("hidden")));

bool stress_load_exists(void)
{
	return true;
}

static CUresult open_kernel(struct stress_load *load)
{
	const struct moeep_cu *cu = load->cu;
	CUresult result = cu->cuModuleLoadData(&load->module, stress_load_image);

	if (result == CUDA_SUCCESS) {
		result = cu->cuModuleGetFunction(&load->function, load->module,
						 "stress_load_kernel");
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuFuncSetAttribute(load->function,
						CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
						(int)load->shared);
	}
	return result == CUDA_SUCCESS ? cu->cuStreamCreate(&load->stream, CU_STREAM_NON_BLOCKING)
				      : result;
}
#else
bool stress_load_exists(void)
{
	return false;
}

static CUresult open_kernel(struct stress_load *load)
{
	(void)load;
	return CUDA_ERROR_NOT_SUPPORTED;
}
#endif

int stress_load_open(struct stress_load *load, const struct moeep_cu *cu)
{
	CUdevice device;
	CUresult result = cu->cuCtxGetDevice(&device);
	int sms = 0, shared = 0;

	*load = (struct stress_load){.cu = cu};
	if (result == CUDA_SUCCESS) {
		result = cu->cuDeviceGetAttribute(&sms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
						  device);
	}
	if (result == CUDA_SUCCESS) {
		result = cu->cuDeviceGetAttribute(
			&shared, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device);
	}
	load->blocks = sms / PART > 0 ? sms / PART : 1;
	load->shared = (unsigned int)shared;
	if (result == CUDA_SUCCESS) {
		result = open_kernel(load);
	}
	return result == CUDA_SUCCESS ? MOEEP_OK : moeep_cu_fail(cu, result, "the load's kernel");
}

int stress_load_push(struct stress_load *load, uint64_t ns)
{
	void *parameters[] = {&ns};
	CUresult result = load->cu->cuStreamQuery(load->stream);

	if (result == CUDA_ERROR_NOT_READY) {
		return MOEEP_OK;
	}
	if (result == CUDA_SUCCESS) {
		result = load->cu->cuLaunchKernel(load->function, (unsigned int)load->blocks, 1, 1,
						  THREADS, 1, 1, load->shared, load->stream,
						  parameters, NULL);
	}
	return result == CUDA_SUCCESS ? MOEEP_OK
				      : moeep_cu_fail(load->cu, result, "launching the load");
}

int stress_load_close(struct stress_load *load)
{
	CUresult result = CUDA_SUCCESS;

	if (load->stream) {
		result = load->cu->cuStreamSynchronize(load->stream);
		(void)load->cu->cuStreamDestroy(load->stream);
	}
	if (load->module) {
		(void)load->cu->cuModuleUnload(load->module);
	}
	return result == CUDA_SUCCESS ? MOEEP_OK : moeep_cu_fail(load->cu, result, "the load");
}
