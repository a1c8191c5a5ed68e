/* SPDX-License-Identifier: MIT */
/*
 * cuda/driver.c - opens the CUDA driver when a rank asks for it, and says why it cannot be used.
 *
 * Symbols are looked up by their exact names, not through cuGetProcAddress(), which would answer
 * with newer behaviour as the version passed grows; and so that NULL is the legacy default stream.
 */
#include "config.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/error.h"
#include "core/settings.h"
#include "cuda/driver.h"

#define TEXT_BYTES 400

#define MAJOR(version) ((version) / 1000)
#define MINOR(version) ((version) % 1000 / 10)

struct call {
	const char *symbol;
	size_t offset; /* of the member in struct moeep_cu */
};

#define CALL_ROW(name, symbol, parameters) {#symbol, offsetof(struct moeep_cu, name)},
static const struct call calls[] = {MOEEP_CU_CALLS(CALL_ROW)};
#undef CALL_ROW

#define NUM_CALLS (sizeof(calls) / sizeof(calls[0]))

/* Under the lock, but for reads of version_found. */
static pthread_mutex_t load_lock = PTHREAD_MUTEX_INITIALIZER;
static struct moeep_cu loaded;
static pid_t loaded_by; /* 0: not yet */
static atomic_int version_found;

/* POSIX lets a function's address pass through void *, ISO C only as bytes. */
static void call_set(struct moeep_cu *cu, const struct call *call, void *address)
{
	memcpy((unsigned char *)cu + call->offset, &address, sizeof(address));
}

static int check_version(const char *path, void *library)
{
	CUresult (*get_version)(int *version);
	void *address = dlsym(library, "cuDriverGetVersion");
	CUresult result;
	int version = 0;

	if (!address) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "%s is not a CUDA driver: it has no cuDriverGetVersion", path);
	}
	memcpy(&get_version, &address, sizeof(address));
	result = get_version(&version);
	if (result == CUDA_ERROR_STUB_LIBRARY) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "%s is a stub to link with, not a CUDA driver", path);
	}
	if (result != CUDA_SUCCESS) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED, "%s: cuDriverGetVersion: CUDA error %d",
				  path, (int)result);
	}
	version_found = version;
	if (version < MOEEP_CU_VERSION_NEEDED) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "the CUDA driver (%s) is for CUDA %d.%d; %d.%d or later is "
				  "needed",
				  path, MAJOR(version), MINOR(version),
				  MAJOR(MOEEP_CU_VERSION_NEEDED), MINOR(MOEEP_CU_VERSION_NEEDED));
	}
	return MOEEP_OK;
}

static int find_calls(const char *path, void *library, struct moeep_cu *cu)
{
	for (size_t i = 0; i < NUM_CALLS; i++) {
		void *address = dlsym(library, calls[i].symbol);

		if (!address) {
			return moeep_fail(MOEEP_ERR_UNSUPPORTED,
					  "the CUDA driver (%s, for CUDA %d.%d) has no %s", path,
					  MAJOR(version_found), MINOR(version_found),
					  calls[i].symbol);
		}
		call_set(cu, &calls[i], address);
	}
	return MOEEP_OK;
}

/* A driver that was opened stays open even if it is of no use: closing one is not safe. */
static int load(struct moeep_cu *cu)
{
	struct moeep_settings settings;
	void *library;
	CUresult result;
	int rc;

	version_found = 0;
	rc = moeep_settings_load(NULL, &settings);
	if (rc != MOEEP_OK) {
		return rc;
	}
	library = dlopen(settings.cuda_driver, RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		const char *cause = dlerror();

		return moeep_fail(MOEEP_ERR_UNSUPPORTED, "no CUDA driver: %s",
				  cause ? cause : settings.cuda_driver);
	}
	rc = check_version(settings.cuda_driver, library);
	if (rc == MOEEP_OK) {
		rc = find_calls(settings.cuda_driver, library, cu);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cu->cuInit(0);
	return result == CUDA_SUCCESS ? MOEEP_OK : moeep_cu_fail(cu, result, "cuInit");
}

int moeep_cu_load(const struct moeep_cu **cu)
{
	struct moeep_cu own;
	int rc = MOEEP_OK;

	pthread_mutex_lock(&load_lock);
	if (loaded_by == 0) {
		rc = load(&own);
		if (rc == MOEEP_OK) {
			loaded = own;
			loaded_by = getpid();
		}
	} else if (loaded_by != getpid()) {
		rc = moeep_fail(MOEEP_ERR_UNSUPPORTED,
				"process %d was forked from process %d after that one started the "
				"CUDA driver, which does not work in such a child; start it anew "
				"(exec) or fork before",
				(int)getpid(), (int)loaded_by);
	}
	if (rc == MOEEP_OK) {
		*cu = &loaded;
	}
	pthread_mutex_unlock(&load_lock);
	return rc;
}

void moeep_cu_versions(int *found, int *needed)
{
	if (found) {
		*found = version_found;
	}
	if (needed) {
		*needed = MOEEP_CU_VERSION_NEEDED;
	}
}

static int result_code(CUresult result)
{
	switch (result) {
	case CUDA_ERROR_OUT_OF_MEMORY:
		return MOEEP_ERR_NOMEM;
	case CUDA_ERROR_STUB_LIBRARY:
	case CUDA_ERROR_NO_DEVICE:
	case CUDA_ERROR_INVALID_IMAGE:
	case CUDA_ERROR_NO_BINARY_FOR_GPU:
	case CUDA_ERROR_PEER_ACCESS_UNSUPPORTED:
	case CUDA_ERROR_INVALID_PTX:
	case CUDA_ERROR_JIT_COMPILER_NOT_FOUND:
	case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
	case CUDA_ERROR_JIT_COMPILATION_DISABLED:
	case CUDA_ERROR_NOT_SUPPORTED:
	case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
	case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
		return MOEEP_ERR_UNSUPPORTED;
	default:
		return MOEEP_ERR_SYSTEM;
	}
}

int moeep_cu_fail(const struct moeep_cu *cu, CUresult result, const char *what, ...)
{
	char text[TEXT_BYTES];
	const char *name = NULL;
	const char *cause = NULL;
	va_list args;

	va_start(args, what);
	vsnprintf(text, sizeof(text), what, args);
	va_end(args);
	if (cu->cuGetErrorName(result, &name) != CUDA_SUCCESS || !name) {
		return moeep_fail(result_code(result), "%s: CUDA error %d", text, (int)result);
	}
	if (cu->cuGetErrorString(result, &cause) != CUDA_SUCCESS || !cause) {
		return moeep_fail(result_code(result), "%s: %s", text, name);
	}
	return moeep_fail(result_code(result), "%s: %s: %s", text, name, cause);
}
