/* SPDX-License-Identifier: MIT */
/* memory/region.c - symmetric memory: allocation, registration, and finding it again. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/window.h"
#include "memory/region.h"

/*
 * Numbered by the order of the collective calls, so the number means the same on all ranks. A freed
 * region goes from the list of the rank that freed it; peers keep their mapping until they free
 * their own part.
 */
struct moeep_region {
	struct moeep_region *next;
	uint32_t id;
	bool registered;	       /* the caller's memory */
	struct moeep_window **windows; /* [num_ranks]; NULL if registered */
	void **opened;		       /* [num_ranks] what peers share by CUDA IPC */
	char **bases;		       /* [num_ranks] */
	size_t *bytes;		       /* [num_ranks] */
};

static void region_free(struct moeep_comm *comm, struct moeep_region *region)
{
	if (comm->cuda && region->id != 0) {
		(void)moeep_cuda_region_set(comm, region->id, NULL);
	}
	for (int rank = 0; region->windows && rank < comm->num_ranks; rank++) {
		moeep_window_unref(region->windows[rank]);
	}
	for (int rank = 0; comm->cuda && region->opened && rank < comm->num_ranks; rank++) {
		moeep_cuda_share_close(comm->cuda, region->opened[rank]);
	}
	free(region->opened);
	free(region->windows);
	free(region->bases);
	free(region->bytes);
	free(region);
}

static struct moeep_region *region_new(struct moeep_comm *comm)
{
	struct moeep_region *region = calloc(1, sizeof(*region));
	size_t n = (size_t)comm->num_ranks;

	if (!region) {
		return NULL;
	}
	region->windows = calloc(n, sizeof(*region->windows));
	region->opened = calloc(n, sizeof(*region->opened));
	region->bases = calloc(n, sizeof(*region->bases));
	region->bytes = calloc(n, sizeof(*region->bytes));
	if (!region->windows || !region->opened || !region->bases || !region->bytes) {
		region_free(comm, region);
		return NULL;
	}
	return region;
}

/* Collective order gives the number. Takes the region over, also if it fails. */
static int region_add(struct moeep_comm *comm, struct moeep_region *region)
{
	int rc = MOEEP_OK;

	region->id = ++comm->next_region;
	if (comm->cuda) {
		rc = moeep_comm_agree(comm, moeep_cuda_region_set(comm, region->id, region->bases));
	}
	if (rc != MOEEP_OK) {
		region_free(comm, region);
		return rc;
	}
	pthread_mutex_lock(&comm->lock);
	region->next = comm->regions;
	comm->regions = region;
	pthread_mutex_unlock(&comm->lock);
	return MOEEP_OK;
}

static struct moeep_region *region_remove(struct moeep_comm *comm, const void *base,
					  bool registered)
{
	struct moeep_region *region;

	pthread_mutex_lock(&comm->lock);
	for (struct moeep_region **link = &comm->regions; (region = *link); link = &region->next) {
		if (region->bases[comm->rank] == base && region->registered == registered) {
			*link = region->next;
			break;
		}
	}
	pthread_mutex_unlock(&comm->lock);
	return region;
}

void moeep_region_free_all(struct moeep_comm *comm)
{
	while (comm->regions) {
		struct moeep_region *region = comm->regions;

		comm->regions = region->next;
		region_free(comm, region);
	}
}

uint64_t moeep_region_bytes(struct moeep_comm *comm)
{
	uint64_t bytes = 0;

	pthread_mutex_lock(&comm->lock);
	for (struct moeep_region *region = comm->regions; region; region = region->next) {
		bytes += region->registered ? 0 : region->bytes[comm->rank];
	}
	pthread_mutex_unlock(&comm->lock);
	return bytes;
}

struct moeep_place moeep_region_find(struct moeep_comm *comm, const void *ptr, size_t bytes)
{
	uint64_t room;

	return moeep_region_find_room(comm, ptr, bytes, &room);
}

struct moeep_place moeep_region_find_room(struct moeep_comm *comm, const void *ptr, size_t bytes,
					  uint64_t *room)
{
	struct moeep_place place = {0};
	const char *at = ptr;

	*room = 0;
	if (!ptr || bytes == 0) {
		return place;
	}
	pthread_mutex_lock(&comm->lock);
	for (struct moeep_region *region = comm->regions; region; region = region->next) {
		const char *base = region->bases[comm->rank];
		size_t size = region->bytes[comm->rank];

		if (base && at >= base && bytes <= size && (size_t)(at - base) <= size - bytes) {
			place.region = region->id;
			place.offset = (uint64_t)(at - base);
			*room = size - place.offset;
			break;
		}
	}
	pthread_mutex_unlock(&comm->lock);
	return place;
}

void *moeep_region_address(struct moeep_comm *comm, int peer, const struct moeep_place *place,
			   size_t bytes)
{
	void *address = NULL;

	pthread_mutex_lock(&comm->lock);
	for (struct moeep_region *region = comm->regions; region; region = region->next) {
		if (region->id == place->region && place->offset <= region->bytes[peer] &&
		    bytes <= region->bytes[peer] - place->offset) {
			address = region->bases[peer] + place->offset;
			break;
		}
	}
	pthread_mutex_unlock(&comm->lock);
	return address;
}

static int check_memory_call(const moeep_comm_t *comm, uint32_t flags)
{
	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	if (flags != 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "flags is 0x%x; none are known", flags);
	}
	return moeep_comm_check(comm);
}

int moeep_mem_alloc(moeep_comm_t *comm, size_t bytes, uint32_t flags, void **ptr)
{
	struct moeep_region *region;
	struct moeep_window *mine = NULL;
	void *own;
	int rc = check_memory_call(comm, flags);

	if (rc != MOEEP_OK) {
		return rc;
	}
	if (!ptr) {
		return moeep_fail(MOEEP_ERR_INVALID, "ptr is NULL");
	}
	rc = moeep_comm_enter(comm, MOEEP_OP_MEMORY);
	if (rc != MOEEP_OK) {
		return rc;
	}
	region = region_new(comm);
	if (!region) {
		return moeep_comm_agree(comm,
					moeep_fail(MOEEP_ERR_NOMEM, "no memory for a region"));
	}
	rc = comm->cuda ? moeep_cuda_window_create(comm->cuda, bytes, &mine)
			: moeep_window_create("moeep-symmetric", bytes, &mine);
	rc = moeep_comm_share(comm, rc, mine, region->windows);
	moeep_window_unref(mine);
	if (rc != MOEEP_OK) {
		region_free(comm, region);
		return rc;
	}
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		region->bases[rank] = region->windows[rank]->base;
		region->bytes[rank] = region->windows[rank]->bytes;
	}
	own = region->bases[comm->rank];
	rc = region_add(comm, region);
	if (rc == MOEEP_OK) {
		*ptr = own;
	}
	return rc;
}

int moeep_mem_free(moeep_comm_t *comm, void *ptr)
{
	struct moeep_region *region;

	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	if (!ptr) {
		return MOEEP_OK;
	}
	region = region_remove(comm, ptr, false);
	if (!region) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "ptr %p is not from moeep_mem_alloc() of this comm", ptr);
	}
	region_free(comm, region);
	return MOEEP_OK;
}

/* Can this rank's memory be shared with every peer, and how? */
static int share_memory(struct moeep_comm *comm, void *ptr, size_t bytes,
			struct moeep_cuda_share *share)
{
	int other = -1;

	if (!ptr || bytes == 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "ptr is %p, bytes is %zu", ptr, bytes);
	}
	for (int rank = 0; rank < comm->num_ranks && other < 0; rank++) {
		moeep_transport_t transport = comm->peers[rank].transport;

		other = transport == MOEEP_TRANSPORT_SHM || transport == MOEEP_TRANSPORT_CUDA ? rank
											      : -1;
	}
	if (comm->cuda) {
		int rc = moeep_cuda_enter(comm->cuda);

		if (rc == MOEEP_OK) {
			rc = moeep_cuda_share_make(comm->cuda, ptr, bytes, other >= 0, share);
			moeep_cuda_leave(comm->cuda);
		}
		return rc;
	}
	if (other >= 0) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "ordinary memory at %p cannot be shared with rank %d, which is "
				  "another process; use moeep_mem_alloc()",
				  ptr, other);
	}
	*share = (struct moeep_cuda_share){.pointer = (uint64_t)(uintptr_t)ptr, .bytes = bytes};
	return MOEEP_OK;
}

static int open_shares(struct moeep_comm *comm, const struct moeep_cuda_share *all,
		       struct moeep_region *region)
{
	int rc = comm->cuda ? moeep_cuda_enter(comm->cuda) : MOEEP_OK;

	if (rc != MOEEP_OK) {
		return rc;
	}
	for (int rank = 0; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		region->bytes[rank] = all[rank].bytes;
		region->bases[rank] = (char *)(uintptr_t)all[rank].pointer;
		if (comm->peers[rank].transport == MOEEP_TRANSPORT_CUDA) {
			rc = moeep_cuda_share_open(comm->cuda, &all[rank], &region->opened[rank],
						   &region->bases[rank]);
		}
	}
	if (comm->cuda) {
		moeep_cuda_leave(comm->cuda);
	}
	return rc;
}

int moeep_mem_register(moeep_comm_t *comm, void *ptr, size_t bytes, uint32_t flags)
{
	struct moeep_cuda_share mine = {0};
	struct moeep_cuda_share *all;
	struct moeep_region *region;
	int rc = check_memory_call(comm, flags);

	if (rc == MOEEP_OK) {
		rc = moeep_comm_enter(comm, MOEEP_OP_MEMORY);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = share_memory(comm, ptr, bytes, &mine);
	region = region_new(comm);
	all = calloc((size_t)comm->num_ranks, sizeof(*all));
	if (rc == MOEEP_OK && (!region || !all)) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for a region");
	}
	rc = moeep_comm_agree(comm, rc);
	if (rc == MOEEP_OK) {
		rc = moeep_comm_gather(comm, &mine, all, sizeof(mine));
	}
	if (rc == MOEEP_OK && comm->cuda) {
		rc = moeep_comm_agree(comm, open_shares(comm, all, region));
	} else if (rc == MOEEP_OK) {
		rc = open_shares(comm, all, region);
	}
	free(all);
	if (rc == MOEEP_OK) {
		region->registered = true;
		return region_add(comm, region);
	}
	if (region) {
		region_free(comm, region);
	}
	return rc;
}

int moeep_mem_deregister(moeep_comm_t *comm, void *ptr)
{
	struct moeep_region *region;

	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	if (!ptr) {
		return MOEEP_OK;
	}
	region = region_remove(comm, ptr, true);
	if (!region) {
		return moeep_fail(MOEEP_ERR_INVALID, "ptr %p is not registered with this comm",
				  ptr);
	}
	region_free(comm, region);
	return MOEEP_OK;
}

int moeep_mem_is_symmetric(const moeep_comm_t *comm, const void *ptr, size_t bytes)
{
	if (!comm) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	return moeep_region_find((struct moeep_comm *)comm, ptr, bytes).region != 0;
}
