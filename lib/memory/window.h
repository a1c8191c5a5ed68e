/* SPDX-License-Identifier: MIT */
/*
 * memory/window.h - shared memory of one rank that others map.
 *
 * A window is an anonymous memory file: nothing of it is in the file system, and the kernel keeps
 * it for as long as somebody maps it, so a rank that is stopped and wakes up after its peers have
 * gone writes into memory that still exists. Within a process a window is one mapping with a
 * reference count, so that thread ranks see the same addresses.
 */
#ifndef MOEEP_MEMORY_WINDOW_H
#define MOEEP_MEMORY_WINDOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct moeep_window {
	void *base;   /* NULL if bytes is 0 */
	size_t bytes; /* as asked for; the mapping is whole pages */
	int fd;	      /* -1 once nobody needs it any more */
	int refs;
	uint64_t number; /* in this process, never used again; of a mapped one 0 */
	void (*release)(struct moeep_window *window); /* unmaps it; NULL: munmap() */
	void *owner;				      /* for release */
	struct moeep_window *next;
};

/* Make a zeroed window, its memory reserved, so that a full machine is an error here and not a
 * SIGBUS later. */
int moeep_window_create(const char *name, size_t bytes, struct moeep_window **window);

/*
 * A window of memory that the caller has mapped. `release` unmaps it in the end, and does so now if
 * this fails. own: this process made it, so that moeep_window_find() finds it.
 */
int moeep_window_add(void *base, size_t bytes, void (*release)(struct moeep_window *window),
		     void *owner, bool own, struct moeep_window **window);

/* Map a window of another process from its descriptor, which stays the caller's. */
int moeep_window_map(int fd, size_t bytes, struct moeep_window **window);

/*
 * A reference to a window that this process made, or NULL if nobody holds it any more. Thread ranks
 * tell each other numbers, since a pointer may outlive what it points to.
 */
struct moeep_window *moeep_window_find(uint64_t number);
/* One more reference; gives the window. NULL stays NULL. */
struct moeep_window *moeep_window_ref(struct moeep_window *window);
/* NULL is a no-op. */
void moeep_window_unref(struct moeep_window *window);

/* The descriptor is only for passing on; the mapping does not need it. */
void moeep_window_close_fd(struct moeep_window *window);

#endif
