/* SPDX-License-Identifier: MIT */
/* memory/window.c - shared memory of one rank that others map. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/error.h"
#include "memory/window.h"

static struct moeep_window *window_new(size_t bytes)
{
	struct moeep_window *window = calloc(1, sizeof(*window));

	if (window) {
		window->bytes = bytes;
		window->fd = -1;
		atomic_init(&window->refs, 1);
	}
	return window;
}

static int window_mmap(struct moeep_window *window, int fd)
{
	void *base = mmap(NULL, window->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (base == MAP_FAILED) {
		return moeep_fail_errno("mmap of a shared window of %zu bytes", window->bytes);
	}
	/* Advice only: fewer TLB misses where the system gives huge pages to shared memory. */
	(void)madvise(base, window->bytes, MADV_HUGEPAGE);
	window->base = base;
	return MOEEP_OK;
}

/* Give the file its pages now. */
static int window_reserve(int fd, size_t bytes)
{
	int rc;

	do {
		rc = posix_fallocate(fd, 0, (off_t)bytes);
	} while (rc == EINTR);
	if (rc != 0) {
		errno = rc;
		return moeep_fail_errno("reserving a shared window of %zu bytes", bytes);
	}
	return MOEEP_OK;
}

int moeep_window_create(const char *name, size_t bytes, struct moeep_window **window_out)
{
	struct moeep_window *window = window_new(bytes);
	int rc;

	if (!window) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a window's description");
	}
	if (bytes > 0) {
		window->fd = memfd_create(name, MFD_CLOEXEC);
		if (window->fd < 0) {
			rc = moeep_fail_errno("memfd_create");
			goto free_window;
		}
		if (ftruncate(window->fd, (off_t)bytes) != 0) {
			rc = moeep_fail_errno("sizing a shared window to %zu bytes", bytes);
			goto close_fd;
		}
		rc = window_mmap(window, window->fd);
		if (rc != MOEEP_OK) {
			goto close_fd;
		}
		rc = window_reserve(window->fd, bytes);
		if (rc != MOEEP_OK) {
			goto unmap;
		}
	}
	*window_out = window;
	return MOEEP_OK;

unmap:
	munmap(window->base, bytes);
close_fd:
	close(window->fd);
free_window:
	free(window);
	return rc;
}

int moeep_window_map(int fd, size_t bytes, struct moeep_window **window_out)
{
	struct moeep_window *window = window_new(bytes);
	int rc = MOEEP_OK;

	if (!window) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a window's description");
	}
	if (bytes > 0) {
		rc = window_mmap(window, fd);
	}
	if (rc != MOEEP_OK) {
		free(window);
		return rc;
	}
	*window_out = window;
	return MOEEP_OK;
}

struct moeep_window *moeep_window_ref(struct moeep_window *window)
{
	atomic_fetch_add_explicit(&window->refs, 1, memory_order_relaxed);
	return window;
}

void moeep_window_close_fd(struct moeep_window *window)
{
	if (window->fd >= 0) {
		close(window->fd);
		window->fd = -1;
	}
}

void moeep_window_unref(struct moeep_window *window)
{
	/* Acquire and release: the last one to let go sees everybody's accesses done. */
	if (!window || atomic_fetch_sub_explicit(&window->refs, 1, memory_order_acq_rel) != 1) {
		return;
	}
	moeep_window_close_fd(window);
	if (window->base) {
		munmap(window->base, window->bytes);
	}
	free(window);
}
