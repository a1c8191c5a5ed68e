/* SPDX-License-Identifier: MIT */
/* tools/info_pci.c - devices of PCI, and their distances. */
#include <config.h>

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "info_pci.h"

#define DEVICES "/sys/bus/pci/devices"

/* "00000000:1B:00.0" -> "0000:1b:00.0" */
static void write_address(char address[PCI_ADDRESS], const char *text)
{
	size_t length = strlen(text), size = 0;

	/* Domains of more than four digits are those of no bus that is numbered here. */
	if (length == 16 && strncmp(text, "0000", 4) == 0) {
		text += 4;
	}
	while (*text && size + 1 < PCI_ADDRESS) {
		address[size++] = (char)tolower((unsigned char)*text++);
	}
	address[size] = '\0';
}

/* Of ".../devices/pci0000:15/0000:15:01.0/0000:1b:00.0" what is behind "devices". */
static void read_path(struct pci_device *device, const char *link)
{
	const char *at = link ? strstr(link, "/pci") : NULL;

	while (at && *at == '/' && device->depth < PCI_DEPTH) {
		size_t size = strcspn(++at, "/");

		if (size == 0 || size >= PCI_ADDRESS) {
			break;
		}
		memcpy(device->path[device->depth], at, size);
		device->path[device->depth++][size] = '\0';
		at += size;
	}
}

/* "32.0 GT/s PCIe" */
static double read_speed(const char *text)
{
	return text ? strtod(text, NULL) : 0;
}

void pci_device_take(const struct machine *machine, const char *address, struct pci_device *device)
{
	const char *at = device->address;

	*device = (struct pci_device){.numa = -1};
	write_address(device->address, address);
	read_path(device, machine_get(machine, DEVICES "/%s@", at));
	device->known = device->depth > 0;
	device->numa = (int)machine_number(machine, -1, DEVICES "/%s/numa_node", at);
	device->class = (unsigned int)machine_number(machine, 0, DEVICES "/%s/class", at);
	device->vendor = (unsigned int)machine_number(machine, 0, DEVICES "/%s/vendor", at);
	device->speed = read_speed(machine_get(machine, DEVICES "/%s/current_link_speed", at));
	device->max_speed = read_speed(machine_get(machine, DEVICES "/%s/max_link_speed", at));
	device->width = (int)machine_number(machine, 0, DEVICES "/%s/current_link_width", at);
	device->max_width = (int)machine_number(machine, 0, DEVICES "/%s/max_link_width", at);
}

int pci_devices_take(const struct machine *machine, unsigned int vendor, unsigned int class,
		     struct pci_device devices[PCI_MAX_DEVICES])
{
	static char names[PCI_MAX_DEVICES][MACHINE_NAME];
	int all = machine_names(machine, DEVICES, names, PCI_MAX_DEVICES), count = 0;

	for (int i = 0; i < all; i++) {
		struct pci_device *device = &devices[count];

		pci_device_take(machine, names[i], device);
		count += device->vendor == vendor && device->class >> 16 == class;
	}
	return count;
}

/* Function 1 of 0000:29:00 is in the same place as function 0. */
static bool same_place(const char *one, const char *two)
{
	size_t dot = strcspn(one, ".");

	return one[dot] == '.' && strncmp(one, two, dot + 1) == 0;
}

enum pci_distance pci_distance_get(const struct pci_device *one, const struct pci_device *two)
{
	int common = 0, below_one, below_two;

	if (strcmp(one->address, two->address) == 0) {
		return PCI_SELF;
	}
	while (common < one->depth && common < two->depth &&
	       strcmp(one->path[common], two->path[common]) == 0) {
		common++;
	}
	if (common == 0) {
		/* A machine that does not say has one node, or hides what it has. */
		return one->numa == two->numa ? PCI_NODE : PCI_SYS;
	}
	below_one = one->depth - common;
	below_two = two->depth - common;
	if (common == 1 && !same_place(one->address, two->address)) {
		return PCI_PHB;
	}
	/* A switch has one bridge up, and one down to each device. */
	return below_one <= 2 && below_two <= 2 ? PCI_PIX : PCI_PXB;
}

const char *pci_distance_name(enum pci_distance distance)
{
	static const char *const names[PCI_DISTANCES] = {
		[PCI_SELF] = "X",  [PCI_PIX] = "PIX",	[PCI_PXB] = "PXB",
		[PCI_PHB] = "PHB", [PCI_NODE] = "NODE", [PCI_SYS] = "SYS",
	};

	return names[distance];
}
