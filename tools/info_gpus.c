/* SPDX-License-Identifier: MIT */
/* tools/info_gpus.c - asking the driver, and the library, about the GPUs of this machine. */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <moeep/moeep.h>

#include "cuda_driver.h"
#include "info_gpus.h"
#include "info_pass.h"

static int attribute(const struct moeep_cu *cu, CUdevice device, CUdevice_attribute which)
{
	int value = 0;

	return cu->cuDeviceGetAttribute(&value, which, device) == CUDA_SUCCESS ? value : 0;
}

static int peer_attribute(const struct moeep_cu *cu, CUdevice device, CUdevice peer,
			  CUdevice_P2PAttribute which)
{
	int value = 0;

	return cu->cuDeviceGetP2PAttribute(&value, which, device, peer) == CUDA_SUCCESS ? value : 0;
}

static void look_at_gpu(struct info_gpu *gpu, const struct moeep_cu *cu, int ordinal)
{
	size_t bytes = 0;
	CUdevice device;
	CUresult result = cu->cuDeviceGet(&device, ordinal);

	if (result != CUDA_SUCCESS) {
		(void)moeep_cu_fail(cu, result, "cuDeviceGet");
		snprintf(gpu->why, sizeof(gpu->why), "%.230s", tool_cu_detail());
		return;
	}
	(void)cu->cuDeviceGetName(gpu->name, (int)sizeof(gpu->name), device);
	(void)cu->cuDeviceGetPCIBusId(gpu->pci, (int)sizeof(gpu->pci), device);
	gpu->major = attribute(cu, device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
	gpu->minor = attribute(cu, device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
	gpu->sms = attribute(cu, device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
	gpu->bytes = cu->cuDeviceTotalMem(&bytes, device) == CUDA_SUCCESS ? bytes : 0;
	gpu->dma_buf = attribute(cu, device, CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED) != 0;
	gpu->usable = tool_cu_try_library(ordinal, gpu->why, sizeof(gpu->why));
}

static void look_at_links(struct info_gpus *gpus, const struct moeep_cu *cu)
{
	for (int i = 0; i < gpus->count; i++) {
		for (int j = 0; j < gpus->count; j++) {
			struct info_link *link = &gpus->link[i][j];
			CUdevice device, peer;
			int can = 0;

			if (i == j || cu->cuDeviceGet(&device, i) != CUDA_SUCCESS ||
			    cu->cuDeviceGet(&peer, j) != CUDA_SUCCESS ||
			    cu->cuDeviceCanAccessPeer(&can, device, peer) != CUDA_SUCCESS) {
				continue;
			}
			link->access = can != 0;
			link->atomics =
				peer_attribute(cu, device, peer,
					       CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED) !=
				0;
			link->rank = peer_attribute(cu, device, peer,
						    CU_DEVICE_P2P_ATTRIBUTE_PERFORMANCE_RANK);
		}
	}
}

/* In a process of its own. */
static void look(struct info_gpus *gpus, const struct info_pass *pass)
{
	const struct moeep_cu *cu;
	CUcontext context;
	CUdevice device;
	int rc = moeep_cu_load(&cu);

	moeep_cu_versions(&gpus->found, &gpus->needed);
	if (rc) {
		snprintf(gpus->why, sizeof(gpus->why), "%.290s", tool_cu_detail());
		return;
	}
	if (cu->cuDeviceGetCount(&gpus->count) != CUDA_SUCCESS || gpus->count == 0) {
		gpus->count = 0;
		snprintf(gpus->why, sizeof(gpus->why), "the driver has no device");
		return;
	}
	gpus->count = gpus->count < INFO_MAX_GPUS ? gpus->count : INFO_MAX_GPUS;
	for (int i = 0; i < gpus->count; i++) {
		look_at_gpu(&gpus->gpu[i], cu, i);
	}
	look_at_links(gpus, cu);
	if (cu->cuDeviceGet(&device, 0) == CUDA_SUCCESS &&
	    cu->cuDevicePrimaryCtxRetain(&context, device) == CUDA_SUCCESS &&
	    cu->cuCtxSetCurrent(context) == CUDA_SUCCESS) {
		info_pass_give(pass, cu, device);
	}
}

/* One end of the socket pair each; ends with its task. */
static pid_t start(struct info_gpus *shared, const int sockets[2], bool giver)
{
	struct info_pass pass = {
		.socket = sockets[giver],
		.why = shared->not_passed,
		.why_size = sizeof(shared->not_passed),
	};
	pid_t pid = fork();

	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(sockets[!giver]);
		if (giver) {
			look(shared, &pass);
		} else {
			info_pass_take(&pass);
		}
		_exit(0);
	}
	return pid;
}

/* Wait for a process; false, with the cause, if it did not end by itself. */
static bool ended(pid_t pid, char *why, size_t why_size)
{
	int status = 0;

	if (pid < 0) {
		snprintf(why, why_size, "fork: %s", strerror(errno));
		return false;
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
	}
	if (WIFSIGNALED(status)) {
		snprintf(why, why_size, "the process that looked was killed by signal %d (%s)",
			 WTERMSIG(status), strsignal(WTERMSIG(status)));
		return false;
	}
	return true;
}

static void look_at_all(struct info_gpus *gpus)
{
	struct info_gpus *shared;
	pid_t giver, taker;
	int sockets[2];

	memset(gpus, 0, sizeof(*gpus));
	moeep_cu_versions(NULL, &gpus->needed);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED) {
		snprintf(gpus->why, sizeof(gpus->why), "mmap: %s", strerror(errno));
		return;
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets)) {
		snprintf(gpus->why, sizeof(gpus->why), "socketpair: %s", strerror(errno));
		goto out;
	}
	snprintf(shared->not_passed, sizeof(shared->not_passed), "it was not tried");
	fflush(NULL);
	giver = start(shared, sockets, true);
	taker = start(shared, sockets, false);
	close(sockets[0]);
	close(sockets[1]);
	if (!ended(giver, shared->why, sizeof(shared->why))) {
		shared->count = 0;
	}
	(void)ended(taker, shared->not_passed, sizeof(shared->not_passed));
	shared->needed = gpus->needed;
	shared->passed = shared->not_passed[0] == '\0';
	*gpus = *shared;
out:
	munmap(shared, sizeof(*shared));
}

static void put_gpu(struct machine *machine, const struct info_gpus *gpus, int i)
{
	const struct info_gpu *gpu = &gpus->gpu[i];

	/* In the names all GPUs are of the driver's count, which may be less than PCI's. */
	machine_put(machine, gpu->pci, "driver/gpu/%d/pci", i);
	machine_put(machine, gpu->name, "driver/gpu/%d/name", i);
	machine_put(machine, gpu->usable ? "yes" : gpu->why, "driver/gpu/%d/usable", i);
	machine_put(machine, gpu->dma_buf ? "1" : "0", "driver/gpu/%d/dma_buf", i);
	machine_put_number(machine, gpu->major, "driver/gpu/%d/capability_major", i);
	machine_put_number(machine, gpu->minor, "driver/gpu/%d/capability_minor", i);
	machine_put_number(machine, gpu->sms, "driver/gpu/%d/sms", i);
	machine_put_number(machine, (int64_t)gpu->bytes, "driver/gpu/%d/bytes", i);
	for (int j = 0; j < gpus->count; j++) {
		const struct info_link *link = &gpus->link[i][j];

		if (i != j) {
			machine_put(machine,
				    !link->access   ? "none"
				    : link->atomics ? "nvlink"
						    : "pcie",
				    "driver/gpu/%d/peer/%d", i, j);
		}
		if (i != j && link->access) {
			machine_put_number(machine, link->rank, "driver/gpu/%d/peer_rank/%d", i, j);
		}
	}
}

void info_gpus_look(struct machine *machine)
{
	struct info_gpus *gpus = calloc(1, sizeof(*gpus));

	if (!gpus) {
		machine->failed = true;
		return;
	}
	look_at_all(gpus);
	if (gpus->found) {
		machine_put_number(machine, gpus->found, "driver/version");
	}
	if (gpus->why[0]) {
		machine_put(machine, gpus->why, "driver/not_usable");
	} else {
		machine_put(machine, gpus->passed ? "yes" : gpus->not_passed,
			    "driver/memory_passed");
	}
	for (int i = 0; i < gpus->count; i++) {
		put_gpu(machine, gpus, i);
	}
	free(gpus);
}
