/* SPDX-License-Identifier: MIT */
/* tools/perf_blocks.c - memory of one rank: of this tool, of the library, on the host, on a GPU. */
#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "perf_rank.h"

static int pages_make(struct rank *r, size_t bytes, void **pages)
{
	char why[80];

	*pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (*pages == MAP_FAILED) {
		*pages = NULL;
		snprintf(why, sizeof(why), "%zu bytes: %s", bytes, strerror(errno));
		return rank_fail(r, "memory", why);
	}
	return 0;
}

/* What of the host shows the block's contents. */
static int host_make(struct rank *r, struct block *b)
{
	if (!r->device) {
		b->host = b->base;
		return 0;
	}
	return pages_make(r, b->bytes, &b->host);
}

int rank_block_make(struct rank *r, int index, uint64_t bytes, enum block_kind kind)
{
	struct block *b = &r->block[index];
	int rc;

	*b = (struct block){.bytes = (size_t)(bytes ? bytes : 1), .kind = kind};
	if (kind == BLOCK_SYMMETRIC) {
		rc = moeep_mem_alloc(r->comm, b->bytes, 0, &b->base);
		if (rc) {
			b->base = NULL;
			return rank_fail_call(r, "moeep_mem_alloc", rc);
		}
	} else if (r->device ? device_alloc(r->device, b->bytes, &b->base)
			     : pages_make(r, b->bytes, &b->base)) {
		b->base = NULL;
		return r->device ? rank_fail(r, "GPU", device_error(r->device)) : 1;
	}
	return host_make(r, b);
}

int rank_block_borrow(struct rank *r, int index, void *base, uint64_t bytes)
{
	struct block *b = &r->block[index];

	*b = (struct block){.base = base, .bytes = (size_t)bytes, .kind = BLOCK_BORROWED};
	return host_make(r, b);
}

void rank_block_drop_host(struct rank *r, int index)
{
	struct block *b = &r->block[index];

	if (b->host && b->host != b->base) {
		munmap(b->host, b->bytes);
		b->host = NULL;
	}
}

void rank_block_free(struct rank *r, int index)
{
	struct block *b = &r->block[index];

	rank_block_drop_host(r, index);
	if (b->base && b->kind == BLOCK_SYMMETRIC) {
		(void)moeep_mem_free(r->comm, b->base);
	} else if (b->base && b->kind == BLOCK_ORDINARY && r->device) {
		device_free(r->device, b->base);
	} else if (b->base && b->kind == BLOCK_ORDINARY) {
		munmap(b->base, b->bytes);
	}
	*b = (struct block){.base = NULL};
}

int rank_block_upload(struct rank *r, int index)
{
	struct block *b = &r->block[index];

	if (r->device && device_upload(r->device, b->base, b->host, b->bytes)) {
		return rank_fail(r, "GPU", device_error(r->device));
	}
	return 0;
}

int rank_block_download(struct rank *r, int index)
{
	struct block *b = &r->block[index];

	if (r->device && device_download(r->device, b->host, b->base, b->bytes)) {
		return rank_fail(r, "GPU", device_error(r->device));
	}
	return 0;
}

int rank_block_fill(struct rank *r, int index, int byte)
{
	struct block *b = &r->block[index];

	if (!r->device) {
		memset(b->base, byte, b->bytes);
		return 0;
	}
	return device_fill(r->device, b->base, byte, b->bytes)
		       ? rank_fail(r, "GPU", device_error(r->device))
		       : 0;
}
