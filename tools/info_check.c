/* SPDX-License-Identifier: MIT */
/* tools/info_check.c - findings about a host and its GPUs, and how findings are told. */
#include <config.h>

#include <stdarg.h>
#include <string.h>

#include <moeep/moeep.h>

#include "info_check.h"
#include "info_host.h"

void info_found(struct info_findings *findings, enum info_level level, const char *why,
		const char *mend, const char *what, ...)
{
	struct info_finding *finding = &findings->finding[findings->count];
	va_list args;

	if (findings->count == INFO_MAX_FINDINGS) {
		return;
	}
	findings->count++;
	finding->level = level;
	va_start(args, what);
	vsnprintf(finding->what, sizeof(finding->what), what, args);
	va_end(args);
	snprintf(finding->why, sizeof(finding->why), "%s", why);
	snprintf(finding->mend, sizeof(finding->mend), "%s", mend);
}

void info_check_lanes(const char *name, const struct pci_device *pci, const char *why,
		      struct info_findings *findings)
{
	char mend[64];

	if (pci->width > 0 && pci->width < pci->max_width) {
		snprintf(mend, sizeof(mend), "seat it anew; lspci -vv -s %s", pci->address);
		info_found(findings, INFO_WARNING, why, mend, "%s has %d of %d lanes of PCI", name,
			   pci->width, pci->max_width);
	}
}

static void check_host(const struct machine *machine, struct info_findings *findings)
{
	const char *memfd = machine_get(machine, "host/anonymous_shared_memory");

	if (memfd && !machine_is(memfd, "yes")) {
		info_found(findings, INFO_ERROR, "ranks of a host share memory through it",
			   "allow memfd_create in the container's seccomp profile",
			   "anonymous shared memory cannot be had: %s", memfd);
	}
	if (machine_is(machine_get(machine, "/proc/sys/kernel/numa_balancing"), "1") &&
	    info_host_numa_nodes(machine) > 1) {
		info_found(findings, INFO_WARNING,
			   "the kernel takes pages away from time to time to see who uses them",
			   "sysctl -w kernel.numa_balancing=0", "automatic NUMA balancing is on");
	}
}

/* Why the driver has no GPU, where PCI has some. */
static void check_driver(const struct machine *machine, const struct info_gpus *gpus,
			 const struct info_reach *reach, struct info_findings *findings)
{
	static const char why[] = "no rank can use a GPU";
	bool module = machine_get(machine, "/sys/module/nvidia/loaded") != NULL;
	char versions[96];

	if (reach->gpus == 0 || gpus->count > 0) {
		return;
	}
	if (!gpus->found && !module) {
		info_found(findings, INFO_ERROR, why,
			   "modprobe nvidia (where that is not found: install NVIDIA's driver)",
			   "%d NVIDIA GPU%s on PCI, and the kernel's module nvidia is not loaded",
			   reach->gpus, reach->gpus == 1 ? "" : "s");
	} else if (!gpus->found) {
		info_found(findings, INFO_ERROR, why,
			   "install libcuda1; in a container: docker run --gpus all",
			   "%d NVIDIA GPU%s on PCI, and no libcuda.so.1: %s", reach->gpus,
			   reach->gpus == 1 ? "" : "s", gpus->why);
	} else if (gpus->found < gpus->needed) {
		info_found(findings, INFO_ERROR, why, "install a newer driver of NVIDIA",
			   "the driver is %s",
			   info_gpus_versions(gpus, versions, sizeof(versions)));
	} else if (strstr(gpus->why, "SYSTEM_NOT_READY")) {
		info_found(findings, INFO_ERROR, why, "systemctl start nvidia-fabricmanager",
			   "the GPUs wait for their NVSwitches to be set up: %s", gpus->why);
	} else {
		info_found(findings, INFO_ERROR, why, "dmesg | grep -i nvrm", "%s", gpus->why);
	}
}

/* Pairs that do not reach each other, as one finding. */
static void check_peers(const struct info_gpus *gpus, struct info_findings *findings)
{
	int pairs = 0, one = 0, two = 0;
	char more[48] = "";

	for (int i = 0; i < gpus->count; i++) {
		for (int j = i + 1; j < gpus->count; j++) {
			if (gpus->link[i][j].access && gpus->link[j][i].access) {
				continue;
			}
			if (pairs++ == 0) {
				one = i;
				two = j;
			}
		}
	}
	if (pairs > 1) {
		snprintf(more, sizeof(more), " (and %d more pairs)", pairs - 1);
	}
	if (pairs > 0) {
		info_found(findings, INFO_ERROR, "a group with ranks on both is refused",
			   "nvidia-smi topo -p2p r shows the driver's cause",
			   "GPU %d and GPU %d do not reach each other's memory%s", one, two, more);
	}
}

static void check_gpus(const struct info_gpus *gpus, const struct info_reach *reach,
		       struct info_findings *findings)
{
	for (int i = 0; i < gpus->count; i++) {
		if (!gpus->gpu[i].usable) {
			info_found(findings, INFO_ERROR, "no rank can use it",
				   "leave it out with CUDA_VISIBLE_DEVICES",
				   "GPU %d (%s) is not usable: %s", i, gpus->gpu[i].name,
				   gpus->gpu[i].why);
		}
	}
	for (int i = 0; i < reach->gpus; i++) {
		info_check_lanes(reach->place[i].label, &reach->place[i].pci,
				 "what goes over PCI takes longer", findings);
	}
	if (gpus->count > 0 && reach->gpus_unknown > 0) {
		info_found(findings, INFO_WARNING, "no rank of this process can use the rest",
			   "see CUDA_VISIBLE_DEVICES and the container; dmesg | grep Xid",
			   "the driver has %d of the %d NVIDIA GPUs on PCI", gpus->count,
			   reach->gpus);
	}
	check_peers(gpus, findings);
	if (gpus->count > 0 && !gpus->passed) {
		info_found(findings, INFO_ERROR, "ranks have to be threads of one process",
			   "try without the container, and with a newer driver",
			   "device memory cannot be passed between processes: %s",
			   gpus->not_passed);
	}
}

/* Of the IOMMU group of a device, whether it translates: "DMA", "DMA-FQ". */
static bool translates(const struct machine *machine, const struct pci_device *pci)
{
	const char *link =
		machine_get(machine, "/sys/bus/pci/devices/%s/iommu_group@", pci->address);
	const char *slash = link ? strrchr(link, '/') : NULL;
	const char *type =
		slash ? machine_get(machine, "/sys/kernel/iommu_groups%s/type", slash) : NULL;

	return type && strncmp(type, "DMA", 3) == 0;
}

/* From NICs to memory of GPUs. */
static void check_direct(const struct machine *machine, const struct info_gpus *gpus,
			 const struct info_reach *reach, struct info_findings *findings)
{
	bool module = machine_get(machine, "/sys/module/nvidia_peermem/loaded") ||
		      machine_get(machine, "/sys/module/nv_peer_mem/loaded");
	bool gpu_behind = false, nic_behind = false, dma_buf = true;

	if (gpus->count == 0 || reach->gpus == reach->count) {
		return;
	}
	for (int i = 0; i < gpus->count; i++) {
		dma_buf = dma_buf && gpus->gpu[i].dma_buf;
	}
	if (!module && !dma_buf) {
		info_found(findings, INFO_ERROR, "rows for other hosts cannot leave from GPUs",
			   "modprobe nvidia-peermem, or install the open kernel modules",
			   "RDMA devices cannot reach memory of GPUs: neither dma-buf nor "
			   "nvidia_peermem");
	}
	for (int i = 0; i < reach->count; i++) {
		bool behind = translates(machine, &reach->place[i].pci);

		gpu_behind = gpu_behind || (behind && reach->place[i].is_gpu);
		nic_behind = nic_behind || (behind && !reach->place[i].is_gpu);
	}
	if (gpu_behind && nic_behind) {
		info_found(findings, INFO_WARNING,
			   "what NICs read from GPUs goes by the processor, which is slower",
			   machine_is(machine_get(machine, "host/machine"), "aarch64")
				   ? "start the kernel with iommu.passthrough=1"
				   : "start the kernel with iommu=pt",
			   "the IOMMU translates addresses of GPUs and RDMA devices");
	}
}

void info_check_machine(const struct machine *machine, const struct info_gpus *gpus,
			const struct info_nics *nics, const struct info_reach *reach,
			struct info_findings *findings)
{
	check_host(machine, findings);
	check_driver(machine, gpus, reach, findings);
	check_gpus(gpus, reach, findings);
	info_check_nics(machine, nics, findings);
	check_direct(machine, gpus, reach, findings);
}

void info_check_here(const struct info_reach *reach, struct info_findings *findings)
{
	moeep_feature_info_t feature = {.size = sizeof(feature)};
	moeep_setting_info_t setting = {.size = sizeof(setting)};

	for (unsigned i = 0; moeep_feature_query(i, &feature) == 0; i++) {
		if (machine_is(feature.name, "cuda") && !feature.enabled && reach->gpus > 0) {
			info_found(findings, INFO_ERROR, "no rank can use a GPU",
				   "install a moeep that was built with CUDA",
				   "this build has no CUDA backend: %s", feature.reason);
		}
	}
	for (unsigned i = 0; moeep_setting_query(NULL, i, &setting) == 0; i++) {
		char mend[96];

		if (strstr(setting.value, "(not valid)")) {
			snprintf(mend, sizeof(mend), "unset %s, or see moeep_env(7)", setting.name);
			info_found(findings, INFO_ERROR, "every group is refused", mend, "%s: %s",
				   setting.name, setting.value);
		}
	}
}

void info_check_text(const struct info_findings *findings)
{
	for (int i = 0; i < findings->count; i++) {
		const struct info_finding *finding = &findings->finding[i];

		printf("%s: ", finding->level == INFO_ERROR ? "error" : "warning");
		print_text(stdout, finding->what);
		printf("; %s; mend: ", finding->why);
		print_text(stdout, finding->mend);
		putchar('\n');
	}
}

void info_check_json(struct json *json, const struct info_findings *findings)
{
	json_array(json, "findings");
	for (int i = 0; i < findings->count; i++) {
		const struct info_finding *finding = &findings->finding[i];

		json_object(json, NULL);
		json_string(json, "level", finding->level == INFO_ERROR ? "error" : "warning");
		json_string(json, "what", finding->what);
		json_string(json, "why", finding->why);
		json_string(json, "mend", finding->mend);
		json_close(json);
	}
	json_close(json);
}
