/* SPDX-License-Identifier: MIT */
/* memory/window.c - shared memory of one rank that others map. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/error.h"
#include "memory/window.h"

/* References of all windows, and the windows that this process made. */
static pthread_mutex_t window_lock = PTHREAD_MUTEX_INITIALIZER;
static struct moeep_window *window_list;
static uint64_t last_number;

static struct moeep_window *window_new(size_t bytes)
{
	struct moeep_window *window = calloc(1, sizeof(*window));

	if (window) {
		window->bytes = bytes;
		window->fd = -1;
		window->refs = 1;
	}
	return window;
}

static void window_enlist(struct moeep_window *window)
{
	pthread_mutex_lock(&window_lock);
	window->number = ++last_number;
	window->next = window_list;
	window_list = window;
	pthread_mutex_unlock(&window_lock);
}

struct moeep_window *moeep_window_find(uint64_t number)
{
	struct moeep_window *window;

	pthread_mutex_lock(&window_lock);
	for (window = window_list; window && window->number != number; window = window->next) {
	}
	if (window) {
		window->refs++;
	}
	pthread_mutex_unlock(&window_lock);
	return window;
}

struct moeep_window *moeep_window_ref(struct moeep_window *window)
{
	pthread_mutex_lock(&window_lock);
	if (window) {
		window->refs++;
	}
	pthread_mutex_unlock(&window_lock);
	return window;
}

/* True if that was the last reference; it can then not be found any more. */
static bool window_put(struct moeep_window *window)
{
	bool last;

	pthread_mutex_lock(&window_lock);
	last = --window->refs == 0;
	for (struct moeep_window **link = &window_list; last && *link; link = &(*link)->next) {
		if (*link == window) {
			*link = window->next;
			break;
		}
	}
	pthread_mutex_unlock(&window_lock);
	return last;
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
	window_enlist(window);
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

int moeep_window_add(void *base, size_t bytes, void (*release)(struct moeep_window *window),
		     void *owner, bool own, struct moeep_window **window_out)
{
	struct moeep_window *window = window_new(bytes);

	if (!window) {
		struct moeep_window lost = {.base = base, .bytes = bytes, .owner = owner};

		if (release) {
			release(&lost);
		}
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a window's description");
	}
	window->base = base;
	window->release = release;
	window->owner = owner;
	if (own) {
		window_enlist(window);
	}
	*window_out = window;
	return MOEEP_OK;
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

void moeep_window_close_fd(struct moeep_window *window)
{
	if (window->fd >= 0) {
		close(window->fd);
		window->fd = -1;
	}
}

void moeep_window_unref(struct moeep_window *window)
{
	/* The lock orders everybody's accesses before the end. */
	if (!window || !window_put(window)) {
		return;
	}
	moeep_window_close_fd(window);
	if (window->release) {
		window->release(window);
	} else if (window->base) {
		munmap(window->base, window->bytes);
	}
	free(window);
}
