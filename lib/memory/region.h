/* SPDX-License-Identifier: MIT */
/* memory/region.h - symmetric memory of a comm: where each rank's part of it is mapped here. */
#ifndef MOEEP_MEMORY_REGION_H
#define MOEEP_MEMORY_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct moeep_comm;

/* A place in symmetric memory, as it is told to peers. id 0: ordinary memory. */
struct moeep_place {
	uint32_t region;
	uint32_t reserved;
	uint64_t offset;
};

/* Where [ptr, ptr + bytes) of this rank lies; region 0 if it is not symmetric memory, or bytes is
 * 0. */
struct moeep_place moeep_region_find(struct moeep_comm *comm, const void *ptr, size_t bytes);

/* The same, and how many bytes there are from ptr to the end of that memory. */
struct moeep_place moeep_region_find_room(struct moeep_comm *comm, const void *ptr, size_t bytes,
					  uint64_t *room);

/* This rank's address of a peer's place, or NULL if this rank knows no such place of `bytes` bytes.
 */
void *moeep_region_address(struct moeep_comm *comm, int peer, const struct moeep_place *place,
			   size_t bytes);

/* Bytes of this rank's moeep_mem_alloc() memory. */
uint64_t moeep_region_bytes(struct moeep_comm *comm);

void moeep_region_free_all(struct moeep_comm *comm);

#endif
