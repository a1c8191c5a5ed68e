/* SPDX-License-Identifier: MIT */
/* The fake CUDA driver: modules, functions and launches. */
#include "config.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "t/cuda/fake.h"

/* The kernels are built for this capability and later ones. */
#define OLDEST_CAPABILITY 80
#define MAX_FUNCTIONS	  64

struct CUfunc_st {
	char name[64];
};

struct CUmod_st {
	int num_functions;
	struct CUfunc_st functions[MAX_FUNCTIONS];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static CUresult module_load(const char *function, CUmodule *module, const void *image)
{
	struct CUmod_st *own;

	FAKE_TRY(fake_enter_context(function, "module"));
	if (!image) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	if (fake_env("FAKE_CUDA_CAPABILITY", 90) < OLDEST_CAPABILITY) {
		return CUDA_ERROR_NO_BINARY_FOR_GPU;
	}
	own = calloc(1, sizeof(*own));
	if (!own) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	fake_count(1);
	*module = own;
	return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image)
{
	return module_load("cuModuleLoadData", module, image);
}

CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int num_options,
			    CUjit_option *options, void **values)
{
	if (num_options > 0 && (!options || !values)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return module_load("cuModuleLoadDataEx", module, image);
}

CUresult cuModuleUnload(CUmodule module)
{
	FAKE_TRY(fake_enter_context("cuModuleUnload", NULL));
	if (!module) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	fake_count(-1);
	free(module);
	return CUDA_SUCCESS;
}

/* There is every function that is asked for. */
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
	CUresult result = CUDA_ERROR_NOT_FOUND;
	int i = 0;

	FAKE_TRY(fake_enter_context("cuModuleGetFunction", NULL));
	pthread_mutex_lock(&lock);
	while (i < module->num_functions && strcmp(module->functions[i].name, name) != 0) {
		i++;
	}
	if (i < MAX_FUNCTIONS && strlen(name) < sizeof(module->functions[i].name)) {
		strcpy(module->functions[i].name, name);
		module->num_functions += i == module->num_functions;
		*function = &module->functions[i];
		result = CUDA_SUCCESS;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function)
{
	FAKE_TRY(fake_enter_context("cuFuncGetAttribute", NULL));
	if (!function) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	switch (attribute) {
	case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
		*value = 1024;
		break;
	case CU_FUNC_ATTRIBUTE_NUM_REGS:
		*value = 32;
		break;
	case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
		*value = fake_env("FAKE_CUDA_CAPABILITY", 90);
		break;
	case CU_FUNC_ATTRIBUTE_PTX_VERSION:
		*value = fake_env("FAKE_CUDA_PTX", fake_env("FAKE_CUDA_CAPABILITY", 90));
		break;
	case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
		*value = 48 << 10;
		break;
	default:
		*value = 0;
		break;
	}
	return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value)
{
	FAKE_TRY(fake_enter_context("cuFuncSetAttribute", NULL));
	if (!function) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && value > 227 << 10) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *num_blocks, CUfunction function,
						     int block_size, size_t shared_bytes)
{
	FAKE_TRY(fake_enter_context("cuOccupancyMaxActiveBlocksPerMultiprocessor", NULL));
	if (!function || block_size < 1 || block_size > 1024) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	*num_blocks = 2048 / block_size;
	if (shared_bytes > 0 && (size_t)*num_blocks > ((size_t)228 << 10) / shared_bytes) {
		*num_blocks = (int)(((size_t)228 << 10) / shared_bytes);
	}
	if (*num_blocks > fake_env("FAKE_CUDA_RESIDENT", 32)) {
		*num_blocks = fake_env("FAKE_CUDA_RESIDENT", 32);
	}
	return CUDA_SUCCESS;
}

static CUresult launch(const char *name, CUfunction function, const unsigned int grid[3],
		       const unsigned int block[3], size_t shared_bytes, CUstream stream,
		       void **params)
{
	FAKE_TRY(fake_enter_context(name, NULL));
	if (!function || !fake_stream_valid(stream)) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	for (int i = 0; i < 3; i++) {
		if (grid[i] == 0 || block[i] == 0) {
			return CUDA_ERROR_INVALID_VALUE;
		}
	}
	if ((unsigned long long)block[0] * block[1] * block[2] > 1024) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return fake_launch(function->name, grid, block, shared_bytes, stream, params);
}

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
			unsigned int grid_z, unsigned int block_x, unsigned int block_y,
			unsigned int block_z, unsigned int shared_bytes, CUstream stream,
			void **params, void **extra)
{
	const unsigned int grid[3] = {grid_x, grid_y, grid_z};
	const unsigned int block[3] = {block_x, block_y, block_z};

	if (params && extra) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	return launch("cuLaunchKernel", function, grid, block, shared_bytes, stream, params);
}

/* One that a test builds without. */
#ifndef FAKE_INCOMPLETE
/*
 * What begins before the kernel in front of it has ended has to wait by itself, as no code for
 * older devices does; and older drivers do not take it into a graph.
 */
static CUresult look_at_attributes(const CUlaunchConfig *config)
{
	for (unsigned int i = 0; i < config->numAttrs; i++) {
		if (config->attrs[i].id != CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION) {
			return CUDA_ERROR_INVALID_VALUE;
		}
		if (fake_env("FAKE_CUDA_PTX", 90) < 90 ||
		    fake_env("FAKE_CUDA_VERSION", 12040) < 12030) {
			return CUDA_ERROR_NOT_SUPPORTED;
		}
	}
	return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params,
			  void **extra)
{
	const unsigned int grid[3] = {config->gridDimX, config->gridDimY, config->gridDimZ};
	const unsigned int block[3] = {config->blockDimX, config->blockDimY, config->blockDimZ};

	if ((params && extra) || (config->numAttrs > 0 && !config->attrs)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	FAKE_TRY(look_at_attributes(config));
	return launch("cuLaunchKernelEx", function, grid, block, config->sharedMemBytes,
		      config->hStream, params);
}
#endif
