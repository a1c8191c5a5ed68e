/* SPDX-License-Identifier: MIT */
/* bootstrap/boot.c - chooses the way to exchange; a single rank needs none. */
#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bootstrap/ops.h"
#include "core/error.h"

void moeep_boot_process_get(struct moeep_boot_process *process)
{
	struct stat info;
	ssize_t n;
	int fd;

	memset(process, 0, sizeof(*process));
	process->pid = (uint64_t)getpid();
	/* A process id means something within its namespace only, and a namespace's inode within
	   its host only. */
	if (stat("/proc/self/ns/pid", &info) == 0) {
		process->pid_namespace = (uint64_t)info.st_ino;
	}
	fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		return;
	}
	n = read(fd, process->boot_id, sizeof(process->boot_id) - 1);
	if (n < 0) {
		process->boot_id[0] = '\0';
	}
	close(fd);
}

static int single_allgather(struct moeep_boot *boot, const void *send, void *recv, size_t bytes,
			    uint32_t timeout_ms)
{
	(void)boot;
	(void)timeout_ms;
	if (bytes > 0) {
		memmove(recv, send, bytes);
	}
	return MOEEP_OK;
}

static int single_lost(struct moeep_boot *boot)
{
	(void)boot;
	return -1;
}

static void single_close(struct moeep_boot *boot)
{
	free(boot);
}

static int single_open(struct moeep_boot **boot)
{
	static const struct moeep_boot_ops ops = {
		.allgather = single_allgather,
		.lost = single_lost,
		.close = single_close,
	};
	struct moeep_boot *own;

	own = calloc(1, sizeof(*own));
	if (!own) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for the bootstrap");
	}
	own->ops = &ops;
	own->num_ranks = 1;
	*boot = own;
	return MOEEP_OK;
}

int moeep_boot_open(const moeep_comm_config_t *config, int rank, int num_ranks, uint32_t timeout_ms,
		    struct moeep_boot **boot)
{
	moeep_comm_config_t own = {.size = sizeof(own)};
	int rc;

	if (config) {
		rc = moeep_struct_in("config", config, &own, sizeof(own));
		if (rc) {
			return rc;
		}
	}
	if (num_ranks < 1 || num_ranks > MOEEP_BOOT_MAX_RANKS) {
		return moeep_fail(MOEEP_ERR_INVALID, "num_ranks is %d; it must be 1 to %d",
				  num_ranks, MOEEP_BOOT_MAX_RANKS);
	}
	if (rank < 0 || rank >= num_ranks) {
		return moeep_fail(MOEEP_ERR_INVALID, "rank is %d, but num_ranks is %d", rank,
				  num_ranks);
	}
	if (own.id && own.bootstrap) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "config->id and config->bootstrap are both given; one way to "
				  "meet is enough");
	}
	if (own.id) {
		return moeep_boot_open_client(own.id, rank, num_ranks, timeout_ms, boot);
	}
	if (own.bootstrap) {
		return moeep_boot_open_callbacks(own.bootstrap, rank, num_ranks, timeout_ms, boot);
	}
	if (num_ranks > 1) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "config->id and config->bootstrap are both NULL, and num_ranks "
				  "is %d",
				  num_ranks);
	}
	return single_open(boot);
}

int moeep_boot_allgather(struct moeep_boot *boot, const void *send, void *recv, size_t bytes,
			 uint32_t timeout_ms)
{
	if (bytes > MOEEP_BOOT_MAX_BYTES) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "%zu bytes to exchange; at most %llu a rank are taken", bytes,
				  (unsigned long long)MOEEP_BOOT_MAX_BYTES);
	}
	return boot->ops->allgather(boot, send, recv, bytes, timeout_ms);
}

int moeep_boot_lost(struct moeep_boot *boot)
{
	return boot->ops->lost(boot);
}

void moeep_boot_tell(struct moeep_boot *boot, const struct moeep_boot_news *news)
{
	if (boot->ops->tell) {
		boot->ops->tell(boot, news);
	}
}

bool moeep_boot_heard(struct moeep_boot *boot, struct moeep_boot_news *news)
{
	return boot->ops->heard && boot->ops->heard(boot, news);
}

void moeep_boot_close(struct moeep_boot *boot)
{
	if (boot) {
		boot->ops->close(boot);
	}
}
