/* SPDX-License-Identifier: MIT */
/* tools/info_reach.c - GPUs and RDMA devices as a matrix. */
#include <config.h>

#include <string.h>

#include "info_reach.h"

static struct info_place *add(struct info_reach *reach)
{
	return reach->count < INFO_MAX_PLACES ? &reach->place[reach->count++] : NULL;
}

static bool has(const struct info_reach *reach, const struct pci_device *pci)
{
	for (int i = 0; i < reach->count; i++) {
		if (strcmp(reach->place[i].pci.address, pci->address) == 0) {
			return true;
		}
	}
	return false;
}

/* GPUs that PCI has and the driver does not. */
static void add_unknown(const struct machine *machine, struct info_reach *reach)
{
	static struct pci_device devices[PCI_MAX_DEVICES];
	int count = pci_devices_take(machine, PCI_VENDOR_NVIDIA, PCI_CLASS_DISPLAY, devices);

	for (int i = 0; i < count && reach->gpus < 2 * INFO_MAX_GPUS; i++) {
		const char *address = devices[i].address;
		struct info_place *place = has(reach, &devices[i]) ? NULL : add(reach);

		if (place) {
			*place = (struct info_place){.pci = devices[i], .is_gpu = true, .gpu = -1};
			snprintf(place->label, sizeof(place->label), "%.12s",
				 address + (strncmp(address, "0000:", 5) == 0 ? 5 : 0));
			reach->gpus++;
			reach->gpus_unknown++;
		}
	}
}

void info_reach_take(const struct machine *machine, const struct info_gpus *gpus,
		     const struct info_nics *nics, struct info_reach *reach)
{
	memset(reach, 0, sizeof(*reach));
	for (int i = 0; i < gpus->count; i++) {
		struct info_place *place = &reach->place[reach->count++];

		place->is_gpu = true;
		place->gpu = i;
		pci_device_take(machine, gpus->gpu[i].pci, &place->pci);
		snprintf(place->label, sizeof(place->label), "GPU %d", i);
		reach->gpus++;
	}
	add_unknown(machine, reach);
	for (int i = 0; i < nics->count; i++) {
		struct info_place *place = nics->nic[i].pci.known ? add(reach) : NULL;

		if (place) {
			place->gpu = -1;
			place->pci = nics->nic[i].pci;
			memcpy(place->label, nics->nic[i].name, sizeof(place->label));
		}
	}
}

/* Two GPUs of the driver are joined by NVLink, or as PCI has it, or not at all. */
static const char *cell(const struct info_gpus *gpus, const struct info_place *one,
			const struct info_place *two)
{
	const struct info_link *link;

	if (one->gpu >= 0 && two->gpu >= 0 && one != two) {
		link = &gpus->link[one->gpu][two->gpu];
		if (!link->access || link->atomics) {
			return link->access ? "NVLink" : "none";
		}
	}
	return one == two ? "X" : pci_distance_name(pci_distance_get(&one->pci, &two->pci));
}

/* Of a GPU the RDMA devices that are nearest. */
static void text_nearest(const struct info_reach *reach, const struct info_place *place)
{
	enum pci_distance distance[INFO_MAX_PLACES], least = PCI_DISTANCES;

	for (int i = reach->gpus; i < reach->count; i++) {
		distance[i] = pci_distance_get(&place->pci, &reach->place[i].pci);
		least = distance[i] < least ? distance[i] : least;
	}
	for (int i = reach->gpus; i < reach->count; i++) {
		if (distance[i] == least) {
			printf(" %s", reach->place[i].label);
		}
	}
}

/* A line for each GPU: what RDMA devices are to each other is of no use. */
void info_reach_text(const struct info_reach *reach, const struct info_gpus *gpus)
{
	bool nics = reach->gpus < reach->count;
	int width = 6;

	if (reach->gpus == 0 || reach->count < 2) {
		return;
	}
	for (int i = 0; i < reach->count; i++) {
		int length = (int)strlen(reach->place[i].label);

		width = length > width ? length : width;
	}
	printf("\nDistances\n  %-*s", width, "");
	for (int i = 0; i < reach->count; i++) {
		printf(" %-*s", width, reach->place[i].label);
	}
	printf(" NUMA%s\n", nics ? " nearest" : "");
	for (int i = 0; i < reach->gpus; i++) {
		const struct info_place *place = &reach->place[i];

		printf("  %-*s", width, place->label);
		for (int j = 0; j < reach->count; j++) {
			printf(" %-*s", width, cell(gpus, place, &reach->place[j]));
		}
		if (place->pci.numa < 0) {
			printf(" %*s", nics ? -4 : 0, "-");
		} else {
			printf(" %*d", nics ? -4 : 0, place->pci.numa);
		}
		text_nearest(reach, place);
		putchar('\n');
	}
	printf("  NVLink; by PCI: PIX one bridge or switch, PXB several, PHB a host bridge,\n"
	       "  NODE host bridges of a NUMA node, SYS the link between nodes; none: not at "
	       "all\n");
}

void info_reach_json(struct json *json, const struct info_reach *reach,
		     const struct info_gpus *gpus)
{
	json_array(json, "distances");
	for (int i = 0; i < reach->count; i++) {
		for (int j = i + 1; j < reach->count; j++) {
			json_object(json, NULL);
			json_string(json, "from", reach->place[i].label);
			json_string(json, "to", reach->place[j].label);
			json_string(json, "distance",
				    cell(gpus, &reach->place[i], &reach->place[j]));
			json_close(json);
		}
	}
	json_close(json);
}
