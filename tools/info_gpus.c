/* SPDX-License-Identifier: MIT */
/* tools/info_gpus.c - asking the driver, and the library, about the GPUs of this machine. */
#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
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

void info_gpus_look(struct info_gpus *gpus)
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

static void text_field(const char *name, const char *value)
{
	printf("  %-16s", name);
	print_text(stdout, value);
	putchar('\n');
}

/* "NVLink" only where one GPU's atomics reach the other natively: PCIe has none. */
static const char *link_name(const struct info_link *link)
{
	return !link->access ? "none" : link->atomics ? "NVLink" : "PCIe";
}

static void text_links(const struct info_gpus *gpus)
{
	char name[16];

	printf("  %-16s", "peers reached by");
	for (int j = 0; j < gpus->count; j++) {
		snprintf(name, sizeof(name), "GPU %d", j);
		printf(" %-10s", name);
	}
	putchar('\n');
	for (int i = 0; i < gpus->count; i++) {
		snprintf(name, sizeof(name), "GPU %d", i);
		printf("  %16s", name);
		for (int j = 0; j < gpus->count; j++) {
			const struct info_link *link = &gpus->link[i][j];

			if (i == j) {
				snprintf(name, sizeof(name), "itself");
			} else if (link->access) {
				snprintf(name, sizeof(name), "%s, %d", link_name(link), link->rank);
			} else {
				snprintf(name, sizeof(name), "none");
			}
			printf(" %-10s", name);
		}
		putchar('\n');
	}
}

/* Which architectures this build has code for; configure's words. */
static void text_kernels(void)
{
	moeep_feature_info_t info = {.size = sizeof(info)};
	char line[300];

	for (unsigned i = 0; moeep_feature_query(i, &info) == 0; i++) {
		if (!strcmp(info.name, "cuda")) {
			snprintf(line, sizeof(line), "%s%.250s",
				 info.enabled ? "" : "none: ", info.reason);
			text_field("kernels", line);
		}
	}
}

void info_gpus_text(const struct info_gpus *gpus)
{
	char line[700], name[16], bytes[HUMAN_TEXT];

	printf("\nGPUs\n");
	if (gpus->found) {
		snprintf(line, sizeof(line), "for CUDA %d.%d; %d.%d or later is needed",
			 gpus->found / 1000, gpus->found % 1000 / 10, gpus->needed / 1000,
			 gpus->needed % 1000 / 10);
	} else {
		snprintf(line, sizeof(line), "none; one for CUDA %d.%d or later is needed",
			 gpus->needed / 1000, gpus->needed % 1000 / 10);
	}
	text_field("driver", line);
	text_kernels();
	if (gpus->why[0]) {
		snprintf(line, sizeof(line), "none: %s", gpus->why);
		text_field("usable", line);
		return;
	}
	for (int i = 0; i < gpus->count; i++) {
		const struct info_gpu *gpu = &gpus->gpu[i];

		snprintf(name, sizeof(name), "GPU %d", i);
		snprintf(line, sizeof(line), "%s, compute capability %d.%d, %d SMs, %s, PCI %s",
			 gpu->name, gpu->major, gpu->minor, gpu->sms,
			 human_bytes(gpu->bytes, bytes), gpu->pci);
		text_field(name, line);
		snprintf(line, sizeof(line), "usable by moeep: %s%s",
			 gpu->usable ? "yes" : "no: ", gpu->usable ? "" : gpu->why);
		text_field("", line);
	}
	if (gpus->count > 1) {
		text_links(gpus);
	}
	snprintf(line, sizeof(line), "%s%s",
		 gpus->passed ? "passed between processes: yes, it was tried"
			      : "passed between processes: no: ",
		 gpus->passed ? "" : gpus->not_passed);
	text_field("device memory", line);
}

static void json_links(struct json *json, const struct info_gpus *gpus)
{
	json_array(json, "peers");
	for (int i = 0; i < gpus->count * gpus->count; i++) {
		int from = i / gpus->count, to = i % gpus->count;
		const struct info_link *link = &gpus->link[from][to];

		if (from == to) {
			continue;
		}
		json_object(json, NULL);
		json_int(json, "from", from);
		json_int(json, "to", to);
		json_string(json, "link", link_name(link));
		json_bool(json, "access", link->access);
		json_bool(json, "native_atomics", link->atomics);
		json_int(json, "performance_rank", link->rank);
		json_close(json);
	}
	json_close(json);
}

void info_gpus_json(struct json *json, const struct info_gpus *gpus)
{
	json_object(json, "gpus");
	json_int(json, "driver_version", gpus->found);
	json_int(json, "driver_version_needed", gpus->needed);
	json_string(json, "not_usable_because", gpus->why[0] ? gpus->why : NULL);
	json_array(json, "devices");
	for (int i = 0; i < gpus->count; i++) {
		const struct info_gpu *gpu = &gpus->gpu[i];

		json_object(json, NULL);
		json_string(json, "name", gpu->name);
		json_string(json, "pci", gpu->pci);
		json_int(json, "compute_capability_major", gpu->major);
		json_int(json, "compute_capability_minor", gpu->minor);
		json_int(json, "sms", gpu->sms);
		json_uint(json, "memory_bytes", gpu->bytes);
		json_bool(json, "usable", gpu->usable);
		json_string(json, "not_usable_because", gpu->usable ? NULL : gpu->why);
		json_close(json);
	}
	json_close(json);
	json_links(json, gpus);
	json_bool(json, "memory_passed_between_processes", gpus->passed);
	json_string(json, "memory_not_passed_because", gpus->passed ? NULL : gpus->not_passed);
	json_close(json);
}
