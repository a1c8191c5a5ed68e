/* SPDX-License-Identifier: MIT */
/* tools/info_reach.h - what GPUs and RDMA devices of a machine are to each other. */
#ifndef MOEEP_TOOLS_INFO_REACH_H
#define MOEEP_TOOLS_INFO_REACH_H

#include "info_gpus.h"
#include "info_machine.h"
#include "info_nics.h"
#include "info_pci.h"
#include "output.h"

#define INFO_MAX_PLACES (2 * INFO_MAX_GPUS + INFO_MAX_NICS)

struct info_place {
	char label[MACHINE_NAME];
	struct pci_device pci;
	bool is_gpu;
	int gpu; /* the driver's number, -1: it does not know it */
};

/* GPUs of the driver, GPUs that are on PCI alone, RDMA devices on PCI. */
struct info_reach {
	int count;
	int gpus;	  /* of them */
	int gpus_unknown; /* of these, to the driver */
	struct info_place place[INFO_MAX_PLACES];
};

void info_reach_take(const struct machine *machine, const struct info_gpus *gpus,
		     const struct info_nics *nics, struct info_reach *reach);

void info_reach_text(const struct info_reach *reach, const struct info_gpus *gpus);
void info_reach_json(struct json *json, const struct info_reach *reach,
		     const struct info_gpus *gpus);

#endif
