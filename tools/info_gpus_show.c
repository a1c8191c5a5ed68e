/* SPDX-License-Identifier: MIT */
/* tools/info_gpus_show.c - GPUs: from the machine's facts, as text and as JSON. */
#include <config.h>

#include <stdio.h>
#include <string.h>

#include <moeep/moeep.h>

#include "cuda_driver.h"
#include "info_gpus.h"

/* "NVLink" only where one GPU's atomics reach the other natively: PCIe has none. */
static const char *link_name(const struct info_link *link)
{
	return !link->access ? "none" : link->atomics ? "NVLink" : "PCIe";
}

static void take_gpu(const struct machine *machine, struct info_gpus *gpus, int i)
{
	struct info_gpu *gpu = &gpus->gpu[i];
	const char *usable = machine_get(machine, "driver/gpu/%d/usable", i);
	const char *name = machine_get(machine, "driver/gpu/%d/name", i);
	const char *pci = machine_get(machine, "driver/gpu/%d/pci", i);

	snprintf(gpu->name, sizeof(gpu->name), "%s", name ? name : "unknown");
	snprintf(gpu->pci, sizeof(gpu->pci), "%s", pci ? pci : "unknown");
	gpu->usable = machine_is(usable, "yes");
	snprintf(gpu->why, sizeof(gpu->why), "%s", usable ? usable : "unknown");
	gpu->dma_buf = machine_number(machine, 0, "driver/gpu/%d/dma_buf", i) != 0;
	gpu->major = (int)machine_number(machine, 0, "driver/gpu/%d/capability_major", i);
	gpu->minor = (int)machine_number(machine, 0, "driver/gpu/%d/capability_minor", i);
	gpu->sms = (int)machine_number(machine, 0, "driver/gpu/%d/sms", i);
	gpu->bytes = (uint64_t)machine_number(machine, 0, "driver/gpu/%d/bytes", i);
	for (int j = 0; j < gpus->count; j++) {
		struct info_link *link = &gpus->link[i][j];
		const char *peer = machine_get(machine, "driver/gpu/%d/peer/%d", i, j);

		link->access = peer && !machine_is(peer, "none");
		link->atomics = machine_is(peer, "nvlink");
		link->rank = (int)machine_number(machine, 0, "driver/gpu/%d/peer_rank/%d", i, j);
	}
}

void info_gpus_take(const struct machine *machine, struct info_gpus *gpus)
{
	static char names[INFO_MAX_GPUS][MACHINE_NAME];
	const char *why = machine_get(machine, "driver/not_usable");
	const char *passed = machine_get(machine, "driver/memory_passed");

	memset(gpus, 0, sizeof(*gpus));
	moeep_cu_versions(NULL, &gpus->needed);
	gpus->found = (int)machine_number(machine, 0, "driver/version");
	gpus->count = machine_names(machine, "driver/gpu", names, INFO_MAX_GPUS);
	if (gpus->count == 0) {
		snprintf(gpus->why, sizeof(gpus->why), "%s", why ? why : "none is known");
	}
	for (int i = 0; i < gpus->count; i++) {
		take_gpu(machine, gpus, i);
	}
	gpus->passed = machine_is(passed, "yes");
	snprintf(gpus->not_passed, sizeof(gpus->not_passed), "%s", passed ? passed : "unknown");
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
			print_field("kernels", line);
		}
	}
}

const char *info_gpus_versions(const struct info_gpus *gpus, char *text, size_t size)
{
	snprintf(text, size, "for CUDA %d.%d; %d.%d or later is needed", gpus->found / 1000,
		 gpus->found % 1000 / 10, gpus->needed / 1000, gpus->needed % 1000 / 10);
	return text;
}

void info_gpus_text(const struct info_gpus *gpus, bool here)
{
	char line[700], name[16], bytes[HUMAN_TEXT];

	printf("\nGPUs\n");
	if (gpus->found) {
		info_gpus_versions(gpus, line, sizeof(line));
	} else {
		snprintf(line, sizeof(line), "none; one for CUDA %d.%d or later is needed",
			 gpus->needed / 1000, gpus->needed % 1000 / 10);
	}
	print_field("driver", line);
	if (here) {
		text_kernels();
	}
	if (gpus->why[0]) {
		snprintf(line, sizeof(line), "none: %s", gpus->why);
		print_field("usable", line);
		return;
	}
	for (int i = 0; i < gpus->count; i++) {
		const struct info_gpu *gpu = &gpus->gpu[i];

		snprintf(name, sizeof(name), "GPU %d", i);
		snprintf(line, sizeof(line), "%s, compute capability %d.%d, %d SMs, %s, PCI %s",
			 gpu->name, gpu->major, gpu->minor, gpu->sms,
			 human_bytes(gpu->bytes, bytes), gpu->pci);
		print_field(name, line);
		snprintf(line, sizeof(line), "usable by moeep: %s%s",
			 gpu->usable ? "yes" : "no: ", gpu->usable ? "" : gpu->why);
		print_field("", line);
	}
	snprintf(line, sizeof(line), "%s%s",
		 gpus->passed ? "passed between processes: yes, it was tried"
			      : "passed between processes: no: ",
		 gpus->passed ? "" : gpus->not_passed);
	print_field("device memory", line);
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
		json_bool(json, "dma_buf", gpu->dma_buf);
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
