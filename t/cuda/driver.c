/* SPDX-License-Identifier: MIT */
/* Opening the CUDA driver: what is said of one that is not there or of no use, and the table. */
#include "config.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "cuda/driver.h"
#include "t/cuda/child.h"
#include "t/tap.h"

#define FAKE	    "MOEEP_CUDA_DRIVER=" FAKE_DRIVER
#define NUM_THREADS 8
/* The fake's allocation granularity. */
#define PAGE ((size_t)2 << 20)

enum { FOUND, NEEDED };

static void load_once(struct child *child)
{
	const struct moeep_cu *cu = NULL;

	child->rc = moeep_cu_load(&cu);
	moeep_cu_versions(&child->values[FOUND], &child->values[NEEDED]);
	if (child->rc != MOEEP_OK && cu) {
		child->rc = 1000; /* set although it failed */
	}
}

struct cause {
	const char *what;
	const char *environment[3];
	int rc;
	const char *texts[3]; /* in the detail */
	int found;
};

static const struct cause causes[] = {
	{"no such file",
	 {"MOEEP_CUDA_DRIVER=/nonexistent/libcuda.so.1"},
	 MOEEP_ERR_UNSUPPORTED,
	 {"no CUDA driver", "/nonexistent/libcuda.so.1"},
	 0},
	{"no such library",
	 {"MOEEP_CUDA_DRIVER=libcuda-of-nobody.so.1"},
	 MOEEP_ERR_UNSUPPORTED,
	 {"no CUDA driver", "libcuda-of-nobody.so.1"},
	 0},
	{"a file that is no library",
	 {"MOEEP_CUDA_DRIVER=/dev/null"},
	 MOEEP_ERR_UNSUPPORTED,
	 {"no CUDA driver", "/dev/null"},
	 0},
	{"a library that is no driver",
	 {"MOEEP_CUDA_DRIVER=libc.so.6"},
	 MOEEP_ERR_UNSUPPORTED,
	 {"libc.so.6 is not a CUDA driver", "cuDriverGetVersion"},
	 0},
	{"a stub",
	 {FAKE, "FAKE_CUDA_FAIL=cuDriverGetVersion:34"},
	 MOEEP_ERR_UNSUPPORTED,
	 {FAKE_DRIVER " is a stub"},
	 0},
	{"a driver that does not answer",
	 {FAKE, "FAKE_CUDA_FAIL=cuDriverGetVersion:999"},
	 MOEEP_ERR_UNSUPPORTED,
	 {FAKE_DRIVER ": cuDriverGetVersion: CUDA error 999"},
	 0},
	{"an old driver",
	 {FAKE, "FAKE_CUDA_VERSION=11080"},
	 MOEEP_ERR_UNSUPPORTED,
	 {FAKE_DRIVER, "for CUDA 11.8", "12.0 or later is needed"},
	 11080},
	{"a driver that lacks a function",
	 {"MOEEP_CUDA_DRIVER=" FAKE_INCOMPLETE},
	 MOEEP_ERR_UNSUPPORTED,
	 {FAKE_INCOMPLETE, "12.4", "has no cuLaunchKernelEx"},
	 12040},
	{"no device",
	 {FAKE, "FAKE_CUDA_DEVICES=0"},
	 MOEEP_ERR_UNSUPPORTED,
	 {"cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected"},
	 12040},
	{"a driver that does not fit the kernel's",
	 {FAKE, "FAKE_CUDA_FAIL=cuInit:803"},
	 MOEEP_ERR_UNSUPPORTED,
	 {"cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: "},
	 12040},
	{"a system that is not ready",
	 {FAKE, "FAKE_CUDA_FAIL=cuInit:802"},
	 MOEEP_ERR_SYSTEM,
	 {"cuInit: CUDA_ERROR_SYSTEM_NOT_READY: system not yet initialized"},
	 12040},
	{"an error that nobody knows",
	 {FAKE, "FAKE_CUDA_FAIL=cuInit:12345"},
	 MOEEP_ERR_SYSTEM,
	 {"cuInit: CUDA error 12345"},
	 12040},
	{"a setting that is not valid",
	 {FAKE, "MOEEP_TIMEOUT=soon"},
	 MOEEP_ERR_INVALID,
	 {"MOEEP_TIMEOUT"},
	 0},
};

static void test_causes(void)
{
	for (size_t i = 0; i < sizeof(causes) / sizeof(causes[0]); i++) {
		const struct cause *cause = &causes[i];
		const struct child *child = child_run(load_once, cause->environment);
		bool told = true;

		for (size_t text = 0; text < 3 && cause->texts[text]; text++) {
			told &= strstr(child->detail, cause->texts[text]) != NULL;
		}
		ok(child->ended && child->rc == cause->rc, "%s: result %d", cause->what, child->rc);
		ok(told, "is told: %s", child->detail);
		is_int(child->values[FOUND], cause->found, "the version that was found");
		is_int(child->values[NEEDED], 12000, "the version that is needed");
	}
}

static void load_twice(struct child *child)
{
	const struct moeep_cu *first = NULL;
	const struct moeep_cu *second = NULL;
	int null_members = 0;

	setenv("MOEEP_CUDA_DRIVER", "/nonexistent", 1);
	child->values[2] = moeep_cu_load(&first);
	setenv("MOEEP_CUDA_DRIVER", FAKE_DRIVER, 1);
	child->rc = moeep_cu_load(&first);
	setenv("MOEEP_CUDA_DRIVER", "/nonexistent", 1);
	child->values[3] = moeep_cu_load(&second);
	child->values[4] = first != NULL && first == second;
	for (size_t at = 0; first && at < sizeof(*first); at += sizeof(void *)) {
		void *member;

		memcpy(&member, (const unsigned char *)first + at, sizeof(member));
		null_members += member == NULL;
	}
	child->values[5] = null_members;
	moeep_cu_versions(&child->values[FOUND], NULL);
	moeep_cu_versions(NULL, &child->values[NEEDED]);
}

/* A driver that is not there any more was not found. */
static void lose_driver(struct child *child)
{
	const struct moeep_cu *cu = NULL;

	child->rc = moeep_cu_load(&cu);
	moeep_cu_versions(&child->values[0], NULL);
	setenv("MOEEP_CUDA_DRIVER", "/nonexistent", 1);
	child->values[2] = moeep_cu_load(&cu);
	moeep_cu_versions(&child->values[1], NULL);
}

static void test_versions(void)
{
	static const char *const old[] = {FAKE, "FAKE_CUDA_VERSION=11080", NULL};
	const struct child *child = child_run(lose_driver, old);

	is_int(child->values[0], 11080, "the version of a driver that is too old");
	is_int(child->values[2], MOEEP_ERR_UNSUPPORTED, "then there is none");
	is_int(child->values[1], 0, "and no version");
}

static void test_success(void)
{
	static const char *const none[] = {NULL};
	const struct child *child = child_run(load_twice, none);

	is_int(child->values[2], MOEEP_ERR_UNSUPPORTED, "without a driver");
	is_int(child->rc, MOEEP_OK, "a later call finds one");
	is_int(child->values[3], MOEEP_OK, "which is kept");
	ok(child->values[4], "and answers the same table");
	is_int(child->values[5], 0, "no function in it is NULL");
	is_int(child->values[FOUND], 12040, "its version");
	is_int(child->live, 0, "nothing was made in it");
}

static void *load_thread(void *answer)
{
	const struct moeep_cu *cu = NULL;

	if (moeep_cu_load(&cu) == MOEEP_OK) {
		*(const struct moeep_cu **)answer = cu;
	}
	return NULL;
}

static void load_in_threads(struct child *child)
{
	const struct moeep_cu *tables[NUM_THREADS] = {NULL};
	pthread_t threads[NUM_THREADS];
	int different = 0;

	for (int i = 0; i < NUM_THREADS; i++) {
		if (pthread_create(&threads[i], NULL, load_thread, &tables[i]) != 0) {
			abort();
		}
	}
	for (int i = 0; i < NUM_THREADS; i++) {
		pthread_join(threads[i], NULL);
		different += tables[i] == NULL || tables[i] != tables[0];
	}
	child->rc = different;
}

static void load_and_fork(struct child *child)
{
	const struct moeep_cu *cu;
	int status = -1;
	pid_t pid;

	child->rc = moeep_cu_load(&cu);
	pid = fork();
	if (pid == 0) {
		child->values[2] = moeep_cu_load(&cu);
		_exit(strstr(moeep_error_detail(), "forked") == NULL);
	}
	waitpid(pid, &status, 0);
	child->values[3] = status;
	child->values[4] = moeep_cu_load(&cu);
}

static void test_processes(void)
{
	static const char *const fake[] = {FAKE, NULL};
	const struct child *child;

	is_int(child_run(load_in_threads, fake)->rc, 0, "threads that load at once get one table");
	child = child_run(load_and_fork, fake);
	is_int(child->rc, MOEEP_OK, "loaded before a fork");
	is_int(child->values[2], MOEEP_ERR_UNSUPPORTED, "is refused in the child");
	is_int(child->values[3], 0, "which is told why");
	is_int(child->values[4], MOEEP_OK, "and goes on in the parent");
}

static void fail_texts(struct child *child)
{
	static const struct {
		CUresult result;
		int rc;
		const char *text;
	} cases[] = {
		{CUDA_ERROR_OUT_OF_MEMORY, MOEEP_ERR_NOMEM,
		 "cuMemCreate of 2097152 bytes: CUDA_ERROR_OUT_OF_MEMORY: out of memory"},
		{CUDA_ERROR_NO_BINARY_FOR_GPU, MOEEP_ERR_UNSUPPORTED,
		 "cuMemCreate of 2097152 bytes: CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is "
		 "available for execution on the device"},
		{CUDA_ERROR_UNSUPPORTED_PTX_VERSION, MOEEP_ERR_UNSUPPORTED, NULL},
		{CUDA_ERROR_NOT_SUPPORTED, MOEEP_ERR_UNSUPPORTED, NULL},
		{CUDA_ERROR_INVALID_VALUE, MOEEP_ERR_SYSTEM, NULL},
		{(CUresult)77, MOEEP_ERR_SYSTEM, "cuMemCreate of 2097152 bytes: CUDA error 77"},
	};
	const struct moeep_cu *cu;

	child->rc = moeep_cu_load(&cu);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]) && child->rc == MOEEP_OK; i++) {
		int rc = moeep_cu_fail(cu, cases[i].result, "cuMemCreate of %zu bytes", PAGE);

		child->values[0] += rc == cases[i].rc;
		child->values[1] +=
			!cases[i].text || strcmp(moeep_error_detail(), cases[i].text) == 0;
	}
}

static void test_fail(void)
{
	static const char *const fake[] = {FAKE, NULL};
	const struct child *child = child_run(fail_texts, fake);

	is_int(child->rc, MOEEP_OK, "loaded");
	is_int(child->values[0], 6, "results are mapped");
	is_int(child->values[1], 6, "details have call, name and cause");
}

/* The fake itself: what later tests build on. */
static void fake_memory(struct child *child)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = 0},
	};
	CUmemAccessDesc access = {.location = prop.location,
				  .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
	CUmemGenericAllocationHandle handles[2];
	const struct moeep_cu *cu;
	CUdeviceptr places[2];
	CUcontext context;
	CUdeviceptr plain;
	unsigned int type = 0;
	uint64_t word = 0;
	int failed = 0;
	int fd = -1;

	child->rc = moeep_cu_load(&cu);
	if (child->rc != MOEEP_OK) {
		return;
	}
	child->values[0] = cu->cuMemAlloc(&plain, 64);
	failed += cu->cuDevicePrimaryCtxRetain(&context, 0) != CUDA_SUCCESS;
	failed += cu->cuCtxSetCurrent(context) != CUDA_SUCCESS;
	failed += cu->cuMemAlloc(&plain, 64) != CUDA_SUCCESS;
	child->values[1] = cu->cuMemCreate(&handles[0], PAGE + 1, &prop, 0);
	failed += cu->cuMemCreate(&handles[0], PAGE, &prop, 0) != CUDA_SUCCESS;
	failed += cu->cuMemExportToShareableHandle(
			  &fd, handles[0], CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0) != 0;
	failed += cu->cuMemImportFromShareableHandle(&handles[1], (void *)(intptr_t)fd,
						     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) !=
		  CUDA_SUCCESS;
	for (int i = 0; i < 2; i++) {
		failed += cu->cuMemAddressReserve(&places[i], PAGE, 0, 0, 0) != CUDA_SUCCESS;
		failed += cu->cuMemMap(places[i], PAGE, 0, handles[i], 0) != CUDA_SUCCESS;
		failed += cu->cuMemSetAccess(places[i], PAGE, &access, 1) != CUDA_SUCCESS;
		failed += cu->cuMemRelease(handles[i]) != CUDA_SUCCESS;
	}
	failed += cu->cuMemsetD8(places[0], 0x5a, PAGE) != CUDA_SUCCESS;
	failed += cu->cuMemcpyDtoH(&word, places[1] + PAGE - 8, 8) != CUDA_SUCCESS;
	child->values[2] = word == 0x5a5a5a5a5a5a5a5a;
	failed += cu->cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, places[1]) !=
		  CUDA_SUCCESS;
	child->values[3] = type == CU_MEMORYTYPE_DEVICE;
	child->values[4] = child_live();
	for (int i = 0; i < 2; i++) {
		failed += cu->cuMemUnmap(places[i], PAGE) != CUDA_SUCCESS;
		failed += cu->cuMemAddressFree(places[i], PAGE) != CUDA_SUCCESS;
	}
	failed += cu->cuMemFree(plain) != CUDA_SUCCESS;
	failed += cu->cuDevicePrimaryCtxRelease(0) != CUDA_SUCCESS;
	close(fd);
	child->values[5] = failed;
}

static void fake_third_fails(struct child *child)
{
	const struct moeep_cu *cu;
	CUcontext context;
	CUdeviceptr ptr = 0;

	child->rc = moeep_cu_load(&cu);
	if (child->rc == MOEEP_OK && cu->cuDevicePrimaryCtxRetain(&context, 0) == CUDA_SUCCESS &&
	    cu->cuCtxSetCurrent(context) == CUDA_SUCCESS) {
		for (int i = 0; i < 4; i++) {
			child->values[i] = cu->cuMemAlloc(&ptr, 64);
		}
	}
}

static void test_fake(void)
{
	static const char *const fake[] = {FAKE, NULL};
	static const char *const fail_third[] = {FAKE, "FAKE_CUDA_FAIL=alloc:2:3", NULL};
	const struct child *child = child_run(fake_memory, fake);

	ok(child->ended && child->rc == MOEEP_OK, "the fake is opened");
	is_int(child->values[0], CUDA_ERROR_INVALID_CONTEXT, "it wants a context");
	is_int(child->values[1], CUDA_ERROR_INVALID_VALUE, "it wants whole pages");
	is_int(child->values[2], 1, "two mappings have the same memory");
	is_int(child->values[3], 1, "which is a device's");
	/* A context, an allocation, and two handles, places and mappings. */
	is_int(child->values[4], 8, "it counts what is alive");
	is_int(child->values[5], 0, "calls succeed");
	is_int(child->live, 0, "nothing is left");

	child = child_run(fake_third_fails, fail_third);
	is_int(child->values[1], CUDA_SUCCESS, "the second allocation succeeds");
	is_int(child->values[2], CUDA_ERROR_OUT_OF_MEMORY, "the third fails if asked to");
	is_int(child->values[3], CUDA_SUCCESS, "the fourth does not");
	is_int(child->live, 4, "three are left, and the context");
}

int main(void)
{
	unsetenv("MOEEP_CUDA_DRIVER");
	tap_require_all("shared", child_have_fake(), "%s was not built here", FAKE_DRIVER);
	test_causes();
	test_versions();
	test_success();
	test_processes();
	test_fail();
	test_fake();
	return tap_done();
}
