/* SPDX-License-Identifier: MIT */
/* bootstrap/ops.h - the ways to exchange, behind boot.h. */
#ifndef MOEEP_BOOTSTRAP_OPS_H
#define MOEEP_BOOTSTRAP_OPS_H

#include <stdbool.h>

#include <moeep/moeep.h>

#include "bootstrap/boot.h"
#include "bootstrap/wire.h"

struct moeep_boot_ops {
	int (*allgather)(struct moeep_boot *boot, const void *send, void *recv, size_t bytes,
			 uint32_t timeout_ms);
	int (*lost)(struct moeep_boot *boot);
	/* May be NULL: it has no way to tell. */
	void (*tell)(struct moeep_boot *boot, const struct moeep_boot_news *news);
	bool (*heard)(struct moeep_boot *boot, struct moeep_boot_news *news);
	void (*close)(struct moeep_boot *boot);
};

/* Starts the structure of each way. */
struct moeep_boot {
	const struct moeep_boot_ops *ops;
	int rank;
	int num_ranks;
};

/* client.c: over a rendezvous */
int moeep_boot_open_client(const moeep_unique_id_t *id, int rank, int num_ranks,
			   uint32_t timeout_ms, struct moeep_boot **boot);

/* callbacks.c: over the caller's functions */
int moeep_boot_open_callbacks(const moeep_bootstrap_t *bootstrap, int rank, int num_ranks,
			      uint32_t timeout_ms, struct moeep_boot **boot);

/* Which process this is. What cannot be found out stays zero. */
void moeep_boot_process_get(struct moeep_boot_process *process);

#endif
