/* SPDX-License-Identifier: MIT */
/*
 * tools/info_pci.h - devices of PCI as /sys shows them, and how far two of them are from each
 * other.
 */
#ifndef MOEEP_TOOLS_INFO_PCI_H
#define MOEEP_TOOLS_INFO_PCI_H

#include <stdbool.h>

#include "info_machine.h"

#define PCI_DEPTH   16
#define PCI_ADDRESS 16 /* "0000:1b:00.0", and the end */

struct pci_device {
	char address[PCI_ADDRESS];
	bool known; /* the rest is */
	/* From the host bridge, "pci0000:15", to the device. */
	char path[PCI_DEPTH][PCI_ADDRESS];
	int depth;
	int numa; /* -1: the machine does not say */
	unsigned int class;
	unsigned int vendor;
	double speed, max_speed; /* GT/s of a lane; 0: unknown */
	int width, max_width;	 /* lanes */
};

/* As nvidia-smi topo -m calls them. */
enum pci_distance {
	PCI_SELF,
	PCI_PIX,  /* by one bridge or switch at most */
	PCI_PXB,  /* by several, without the processor */
	PCI_PHB,  /* by one host bridge of a processor */
	PCI_NODE, /* by several of the same NUMA node */
	PCI_SYS,  /* by the link between NUMA nodes */
	PCI_DISTANCES
};

#define PCI_VENDOR_NVIDIA   0x10de
#define PCI_VENDOR_MELLANOX 0x15b3
#define PCI_CLASS_NETWORK   0x02
#define PCI_CLASS_DISPLAY   0x03
#define PCI_MAX_DEVICES	    256

/* Those of a vendor and class that the machine has; at most PCI_MAX_DEVICES. Returns how many. */
int pci_devices_take(const struct machine *machine, unsigned int vendor, unsigned int class,
		     struct pci_device devices[PCI_MAX_DEVICES]);

/* The address may be in capitals, or with eight digits of a domain, as CUDA gives it. */
void pci_device_take(const struct machine *machine, const char *address, struct pci_device *device);

enum pci_distance pci_distance_get(const struct pci_device *one, const struct pci_device *two);

const char *pci_distance_name(enum pci_distance distance);

#endif
