/* SPDX-License-Identifier: MIT */
/*
 * bootstrap/boot.h - the exchange between the ranks of a comm, over the rendezvous or over the
 * caller's functions. All calls but moeep_boot_lost() are collective and made by one thread.
 */
#ifndef MOEEP_BOOTSTRAP_BOOT_H
#define MOEEP_BOOTSTRAP_BOOT_H

#include <stdbool.h>

#include <moeep/moeep.h>

struct moeep_boot;

/* Join as `rank` of `num_ranks`. config names the id or the functions, or neither for a single
 * rank. */
int moeep_boot_open(const moeep_comm_config_t *config, int rank, int num_ranks, uint32_t timeout_ms,
		    struct moeep_boot **boot);

/*
 * Gather `bytes` bytes of every rank into recv[num_ranks][bytes]. Fails on every rank within the
 * time-out if one rank has gone, has not come, or gives another size; the detail says which rank.
 */
int moeep_boot_allgather(struct moeep_boot *boot, const void *send, void *recv, size_t bytes,
			 uint32_t timeout_ms);

/*
 * A rank known to be lost by the state of the control connection, or that an exchange has waited
 * for in vain; or -1. Never blocks. A rank that left by moeep_boot_close() is not lost.
 */
int moeep_boot_lost(struct moeep_boot *boot);

/* What a rank told all others. */
struct moeep_boot_news {
	int result;
	int rank; /* who told it */
	int operation;
	int peer;
	uint64_t epoch;
	uint64_t expected;
	uint64_t seen;
	char text[208];
};

/*
 * Tell all ranks that the group has failed, past whatever else joins them, and hear of it. Any
 * thread; tell may wait a little, heard never does. Nothing comes of it over the caller's
 * functions.
 */
void moeep_boot_tell(struct moeep_boot *boot, const struct moeep_boot_news *news);
bool moeep_boot_heard(struct moeep_boot *boot, struct moeep_boot_news *news);

/* Say good-bye and free. NULL is a no-op. */
void moeep_boot_close(struct moeep_boot *boot);

#endif
