/* SPDX-License-Identifier: MIT */
/* topology/host.h - which host and process a rank is. */
#ifndef MOEEP_TOPOLOGY_HOST_H
#define MOEEP_TOPOLOGY_HOST_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

struct moeep_settings;

#define MOEEP_WIRE_VERSION 2u

/* Exchanged between ranks at creation; fixed widths, no padding. */
struct moeep_identity {
	uint32_t wire_version;
	int32_t backend;
	int32_t has_cuda;   /* it can use a GPU, and may */
	int32_t hybrid_off; /* MOEEP_HYBRID=off */
	int32_t transport;  /* MOEEP_TRANSPORT */
	int32_t reserved;
	int64_t pid;
	uint64_t pid_namespace; /* inode of it; 0 if unknown */
	uint64_t net_namespace; /* likewise */
	char host_id[64];	/* equal: same host */
	char machine[40];   /* kernel's boot id: equal on all "hosts" of one machine; "" unknown */
	char host_name[64]; /* for people */
	char socket_name[32]; /* abstract Unix socket where this rank would collect descriptors */
};
static_assert(sizeof(struct moeep_identity) == 248, "exchanged between processes");

/* Host: MOEEP_HOST_ID or the kernel's boot id. Names that two machines can share do not count. */
int moeep_identity_get(const struct moeep_settings *settings, struct moeep_identity *identity);

/* Bytes of the largest cache that a processor here reaches, or a usual size if that is unknown. */
uint64_t moeep_host_cache_bytes(void);

bool moeep_identity_same_machine(const struct moeep_identity *a, const struct moeep_identity *b);
bool moeep_identity_same_process(const struct moeep_identity *a, const struct moeep_identity *b);

#endif
