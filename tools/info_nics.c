/* SPDX-License-Identifier: MIT */
/* tools/info_nics.c - RDMA devices: from the machine's facts, as text and as JSON. */
#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "info_nics.h"

#define RDMA	 "/sys/class/infiniband"
#define MAX_GIDS 256

/* What does not fit is cut. */
static void copy(char *to, size_t size, const char *from)
{
	size_t length = from ? strnlen(from, size - 1) : 0;

	if (length > 0) {
		memcpy(to, from, length);
	}
	to[length] = '\0';
}

/* Of "4: ACTIVE" the word. */
static void copy_word(char *to, size_t size, const char *from)
{
	const char *space = from ? strchr(from, ' ') : NULL;

	copy(to, size, space ? space + 1 : from);
}

static void take_gids(const struct machine *machine, const char *name, struct info_port *port)
{
	static char gids[MAX_GIDS][MACHINE_NAME];
	char directory[160];
	int count;

	snprintf(directory, sizeof(directory), RDMA "/%s/ports/%d/gids", name, port->number);
	count = machine_names(machine, directory, gids, MAX_GIDS);
	for (int i = 0; i < count; i++) {
		const char *gid = machine_get(machine, "%s/%s", directory, gids[i]);
		const char *type = machine_get(machine, RDMA "/%s/ports/%d/gid_attrs/types/%s",
					       name, port->number, gids[i]);

		/* Of an empty place all is zero, behind the prefix at most. */
		if (!gid || !gid[strspn(gid, "0:")] || strstr(gid, ":0000:0000:0000:0000")) {
			continue;
		}
		port->gids++;
		port->roce_v2 = port->roce_v2 || (type && strstr(type, "v2"));
	}
}

static void take_port(const struct machine *machine, const char *name, const char *number,
		      struct info_port *port)
{
	const char *rate = machine_get(machine, RDMA "/%s/ports/%s/rate", name, number);
	const char *layer = machine_get(machine, RDMA "/%s/ports/%s/link_layer", name, number);

	port->number = atoi(number);
	copy_word(port->state, sizeof(port->state),
		  machine_get(machine, RDMA "/%s/ports/%s/state", name, number));
	copy_word(port->physical, sizeof(port->physical),
		  machine_get(machine, RDMA "/%s/ports/%s/phys_state", name, number));
	port->rate = rate ? strtod(rate, NULL) : 0;
	port->ethernet = machine_is(layer, "Ethernet");
	copy(port->netdev, sizeof(port->netdev),
	     machine_get(machine, RDMA "/%s/ports/%s/gid_attrs/ndevs/0", name, number));
	if (port->netdev[0]) {
		port->mtu = (int)machine_number(machine, 0, "/sys/class/net/%s/mtu", port->netdev);
	}
	take_gids(machine, name, port);
}

/* The last part of a link's text. */
static const char *last_part(const char *link)
{
	const char *slash = link ? strrchr(link, '/') : NULL;

	return slash ? slash + 1 : "";
}

static void take_nic(const struct machine *machine, struct info_nic *nic)
{
	char names[INFO_NIC_PORTS][MACHINE_NAME], directory[128];

	copy(nic->firmware, sizeof(nic->firmware),
	     machine_get(machine, RDMA "/%s/fw_ver", nic->name));
	copy(nic->board, sizeof(nic->board), machine_get(machine, RDMA "/%s/board_id", nic->name));
	pci_device_take(machine, last_part(machine_get(machine, RDMA "/%s/device@", nic->name)),
			&nic->pci);
	snprintf(directory, sizeof(directory), RDMA "/%s/ports", nic->name);
	nic->num_ports = machine_names(machine, directory, names, INFO_NIC_PORTS);
	for (int i = 0; i < nic->num_ports; i++) {
		take_port(machine, nic->name, names[i], &nic->ports[i]);
	}
}

static void take_uverbs(const struct machine *machine, struct info_nics *nics)
{
	static char names[INFO_MAX_NICS][MACHINE_NAME];
	int count = machine_names(machine, "/sys/class/infiniband_verbs", names, INFO_MAX_NICS);

	for (int i = 0; i < count; i++) {
		const char *of =
			machine_get(machine, "/sys/class/infiniband_verbs/%s/ibdev", names[i]);

		for (int n = 0; of && n < nics->count; n++) {
			if (strcmp(nics->nic[n].name, of) == 0) {
				copy(nics->nic[n].uverbs, sizeof(nics->nic[n].uverbs), names[i]);
				nics->nic[n].access =
					machine_get(machine, "/dev/infiniband/%s", names[i]);
			}
		}
	}
}

void info_nics_take(const struct machine *machine, struct info_nics *nics)
{
	static char names[INFO_MAX_NICS][MACHINE_NAME];

	memset(nics, 0, sizeof(*nics));
	nics->count = machine_names(machine, RDMA, names, INFO_MAX_NICS);
	for (int i = 0; i < nics->count; i++) {
		copy(nics->nic[i].name, sizeof(nics->nic[i].name), names[i]);
		take_nic(machine, &nics->nic[i]);
	}
	take_uverbs(machine, nics);
}

static void text_port(const struct info_port *port)
{
	printf("  %-16sport %d %s (%s), %g Gbit/s, %s", "", port->number,
	       port->state[0] ? port->state : "unknown",
	       port->physical[0] ? port->physical : "unknown", port->rate,
	       port->ethernet ? "RoCE" : "InfiniBand");
	if (port->netdev[0]) {
		printf(", %s", port->netdev);
		if (port->mtu) {
			printf(" with MTU %d", port->mtu);
		}
	}
	printf(", %d GID%s%s\n", port->gids, port->gids == 1 ? "" : "s",
	       !port->ethernet ? ""
	       : port->roce_v2 ? ", RoCE v2"
			       : ", no RoCE v2");
}

void info_nics_text(const struct info_nics *nics)
{
	printf("\nRDMA devices\n");
	if (nics->count == 0) {
		printf("  none\n");
	}
	for (int i = 0; i < nics->count; i++) {
		const struct info_nic *nic = &nics->nic[i];

		printf("  %-16s", nic->name);
		if (nic->pci.known) {
			printf("PCI %s", nic->pci.address);
			if (nic->pci.numa >= 0) {
				printf(", NUMA node %d", nic->pci.numa);
			}
			if (nic->pci.width > 0) {
				printf(", %g GT/s x%d", nic->pci.speed, nic->pci.width);
			}
		} else {
			printf("no PCI device");
		}
		if (nic->firmware[0]) {
			printf(", firmware %s", nic->firmware);
		}
		printf(", %s", nic->uverbs[0] ? nic->uverbs : "no uverbs");
		if (nic->access && !machine_is(nic->access, "yes")) {
			printf(": %s", nic->access);
		}
		putchar('\n');
		for (int p = 0; p < nic->num_ports; p++) {
			text_port(&nic->ports[p]);
		}
	}
}

static void json_port(struct json *json, const struct info_port *port)
{
	json_object(json, NULL);
	json_int(json, "port", port->number);
	json_string(json, "state", port->state);
	json_string(json, "physical_state", port->physical);
	json_double(json, "gbit_per_s", port->rate);
	json_string(json, "link_layer", port->ethernet ? "Ethernet" : "InfiniBand");
	json_string(json, "netdev", port->netdev[0] ? port->netdev : NULL);
	json_int(json, "mtu", port->mtu);
	json_int(json, "gids", port->gids);
	json_bool(json, "roce_v2", port->roce_v2);
	json_close(json);
}

void info_nics_json(struct json *json, const struct info_nics *nics)
{
	json_array(json, "rdma_devices");
	for (int i = 0; i < nics->count; i++) {
		const struct info_nic *nic = &nics->nic[i];

		json_object(json, NULL);
		json_string(json, "name", nic->name);
		json_string(json, "pci", nic->pci.known ? nic->pci.address : NULL);
		json_int(json, "numa_node", nic->pci.numa);
		json_string(json, "firmware", nic->firmware);
		json_string(json, "board", nic->board);
		json_string(json, "uverbs", nic->uverbs[0] ? nic->uverbs : NULL);
		json_string(json, "uverbs_access", nic->access);
		json_array(json, "ports");
		for (int p = 0; p < nic->num_ports; p++) {
			json_port(json, &nic->ports[p]);
		}
		json_close(json);
		json_close(json);
	}
	json_close(json);
}
