/* SPDX-License-Identifier: MIT */
/* tools/info_check_nics.c - findings about RDMA devices. */
#include <config.h>

#include <string.h>

#include "info_check.h"

/*
 * An RDMA MTU of 4096 needs room for its headers in the netdev's: 96 bytes, as the kernel's
 * iboe_get_mtu() counts them.
 */
#define ROCE_MTU (4096 + 96)

static void check_access(const struct info_nic *nic, struct info_findings *findings)
{
	static const char why[] = "no process can use it";

	if (!nic->uverbs[0]) {
		info_found(findings, INFO_ERROR, why, "modprobe ib_uverbs",
			   "%s has no uverbs device", nic->name);
	} else if (nic->access && !machine_is(nic->access, "yes")) {
		info_found(findings, INFO_ERROR, "this process cannot use it",
			   "docker run --device /dev/infiniband; else the group of the file",
			   "/dev/infiniband/%s of %s: %s", nic->uverbs, nic->name, nic->access);
	}
}

static void check_link(const struct info_nic *nic, struct info_findings *findings)
{
	static const char why[] = "rows to other hosts take longer";
	const struct pci_device *pci = &nic->pci;
	char mend[64];

	info_check_lanes(nic->name, pci, why, findings);
	if (pci->speed > 0 && pci->speed < pci->max_speed) {
		snprintf(mend, sizeof(mend), "seat it anew; lspci -vv -s %s", pci->address);
		info_found(findings, INFO_WARNING, why, mend, "%s has PCI at %g of %g GT/s",
			   nic->name, pci->speed, pci->max_speed);
	}
}

static void check_roce(const struct info_nic *nic, const struct info_port *port,
		       struct info_findings *findings)
{
	char mend[MACHINE_NAME + 64];

	if (!port->roce_v2) {
		snprintf(mend, sizeof(mend), "give %s an address, and set it up",
			 port->netdev[0] ? port->netdev : "its network device");
		info_found(findings, INFO_ERROR, "it reaches no other subnet, or none at all", mend,
			   "%s port %d has no GID of RoCE v2", nic->name, port->number);
	}
	if (port->netdev[0] && port->mtu > 0 && port->mtu < ROCE_MTU) {
		snprintf(mend, sizeof(mend), "ip link set %s mtu 9000, and the switches' ports",
			 port->netdev);
		info_found(findings, INFO_WARNING, "RDMA takes packets of less than 4096 bytes",
			   mend, "%s of %s port %d has an MTU of %d", port->netdev, nic->name,
			   port->number, port->mtu);
	}
}

static void check_port(const struct info_nic *nic, const struct info_port *port,
		       struct info_findings *findings)
{
	static const char why[] = "nothing is sent through it";
	char mend[MACHINE_NAME + 64];

	if (strcmp(port->state, "ACTIVE") == 0) {
		if (port->ethernet) {
			check_roce(nic, port, findings);
		}
		return;
	}
	if (!port->ethernet &&
	    (strcmp(port->state, "INIT") == 0 || strcmp(port->state, "ARMED") == 0)) {
		info_found(findings, INFO_ERROR, why,
			   "systemctl start opensm, on one host of the fabric",
			   "%s port %d is %s: it waits for a subnet manager", nic->name,
			   port->number, port->state);
		return;
	}
	if (port->ethernet && port->netdev[0]) {
		snprintf(mend, sizeof(mend), "ip link set %s up; else see its cable", port->netdev);
	} else {
		snprintf(mend, sizeof(mend), "see its cable; ibstat %s", nic->name);
	}
	/* Many machines have ports that are not for use. */
	info_found(findings, INFO_WARNING, why, mend, "%s port %d is %s (%s)", nic->name,
		   port->number, port->state[0] ? port->state : "in no known state",
		   port->physical[0] ? port->physical : "unknown");
}

static bool has(const struct info_nics *nics, const struct pci_device *pci)
{
	for (int i = 0; i < nics->count; i++) {
		if (strcmp(nics->nic[i].pci.address, pci->address) == 0) {
			return true;
		}
	}
	return false;
}

/* Cards that could do RDMA, and have no device for it. */
static void check_cards(const struct machine *machine, const struct info_nics *nics,
			struct info_findings *findings)
{
	static struct pci_device devices[PCI_MAX_DEVICES];
	int count = pci_devices_take(machine, PCI_VENDOR_MELLANOX, PCI_CLASS_NETWORK, devices);

	for (int i = 0; i < count; i++) {
		const char *address = devices[i].address;
		const char *driver =
			machine_get(machine, "/sys/bus/pci/devices/%s/driver@", address);

		/* One that is given to a guest is not the host's. */
		if (has(nics, &devices[i]) || (driver && strstr(driver, "vfio"))) {
			continue;
		}
		info_found(findings, INFO_ERROR, "nothing is sent through it",
			   driver ? "modprobe mlx5_ib" : "modprobe mlx5_core",
			   "the NIC at %s has no RDMA device", address);
	}
}

/* Whether this process may lock as much memory as it likes. */
static void check_lock(const struct machine *machine, struct info_findings *findings)
{
	int64_t limit = machine_number(machine, -1, "host/locked_memory_bytes");
	char bytes[HUMAN_TEXT];

	if (limit < 0 || machine_number(machine, 0, "host/may_lock_memory") != 0) {
		return;
	}
	info_found(findings, INFO_ERROR,
		   "memory that RDMA devices use is locked, and buffers are larger",
		   "ulimit -l unlimited; for all: memlock in /etc/security/limits.conf, "
		   "LimitMEMLOCK=infinity in services, docker run --ulimit memlock=-1",
		   "this process may lock %s of memory", human_bytes((uint64_t)limit, bytes));
}

void info_check_nics(const struct machine *machine, const struct info_nics *nics,
		     struct info_findings *findings)
{
	for (int i = 0; i < nics->count; i++) {
		const struct info_nic *nic = &nics->nic[i];

		check_access(nic, findings);
		check_link(nic, findings);
		for (int p = 0; p < nic->num_ports; p++) {
			check_port(nic, &nic->ports[p], findings);
		}
	}
	check_cards(machine, nics, findings);
	if (nics->count > 0) {
		check_lock(machine, findings);
	}
}
