/* SPDX-License-Identifier: MIT */
/* tools/info_nics.h - moeep-info's facts about RDMA devices, as /sys shows them. */
#ifndef MOEEP_TOOLS_INFO_NICS_H
#define MOEEP_TOOLS_INFO_NICS_H

#include <stdbool.h>

#include "info_machine.h"
#include "info_pci.h"
#include "output.h"

#define INFO_MAX_NICS  64
#define INFO_NIC_PORTS 4

struct info_port {
	int number;
	char state[24];		   /* "ACTIVE" */
	char physical[24];	   /* "LinkUp" */
	double rate;		   /* Gbit/s */
	bool ethernet;		   /* RoCE; else InfiniBand */
	char netdev[MACHINE_NAME]; /* of RoCE; "": none */
	int mtu;		   /* its, 0: unknown */
	int gids;		   /* that are not zero */
	bool roce_v2;		   /* one of them is for it */
};

struct info_nic {
	char name[MACHINE_NAME];
	char firmware[32];
	char board[48];
	struct pci_device pci;	   /* not known: a device of software */
	char uverbs[MACHINE_NAME]; /* "": none */
	const char *access;	   /* to it: "yes" or why not; NULL: not known */
	int num_ports;
	struct info_port ports[INFO_NIC_PORTS];
};

struct info_nics {
	int count;
	struct info_nic nic[INFO_MAX_NICS];
};

/* What they point to is the machine's. */
void info_nics_take(const struct machine *machine, struct info_nics *nics);
void info_nics_text(const struct info_nics *nics);
void info_nics_json(struct json *json, const struct info_nics *nics);

#endif
