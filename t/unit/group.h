/* SPDX-License-Identifier: MIT */
/* Ranks as threads, and connections that are driven by hand, for tests of the bootstrap. */
#ifndef T_UNIT_GROUP_H
#define T_UNIT_GROUP_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <moeep/moeep.h>

#include "bootstrap/boot.h"

/* What a rank does once it has joined; its result becomes the member's. */
struct member;
typedef int (*member_fn)(struct member *member, struct moeep_boot *boot);

struct member {
	/* Set by the caller. */
	const moeep_unique_id_t *id;
	const moeep_bootstrap_t *bootstrap;
	int rank;
	int num_ranks;
	uint32_t timeout_ms;
	member_fn fn; /* NULL: nothing */
	void *arg;
	/* The outcome. */
	int open_rc; /* of moeep_boot_open() */
	int rc;	     /* of fn, else open_rc */
	char detail[600];
	int64_t open_ms; /* how long it took to join */
	int64_t ms;	 /* in all, good-bye included */
	pthread_t thread;
};

/* Join, run fn, leave: in this thread, or in one of its own until member_wait(). */
void member_run(struct member *member);
void member_start(struct member *member);
void member_wait(struct member *member);

/* Run a whole group; members[num_ranks] is filled in, and arg goes to each. */
void group_run(struct member *members, const moeep_unique_id_t *id, int num_ranks,
	       uint32_t timeout_ms, member_fn fn, void *arg);
/* How many of them have this result. */
int group_count(const struct member *members, int num_ranks, int rc);

/* Gather bytes that depend on all of these, and compare. 0, the error, or 1 if they differ. */
int exchange_check(struct moeep_boot *boot, int rank, int num_ranks, size_t bytes, unsigned round,
		   uint32_t timeout_ms);

/* A plain connection to the rendezvous; -1 on failure. */
int raw_connect(const moeep_unique_id_t *id);
/* The same, and join as a rank: HELLO and WELCOME are read, and JOIN is sent. */
int raw_join(const moeep_unique_id_t *id, int rank, int num_ranks);
/* Read `bytes` bytes, waiting at most 10 s; false at the end of the file as well. */
bool raw_read(int fd, void *data, size_t bytes);
bool raw_write(int fd, const void *data, size_t bytes);
/* True if the other side closes the connection within the time. */
bool raw_closed(int fd, int timeout_ms);

int64_t now_ms(void);
void sleep_ms(int ms);
/* Sanitizers make everything slower by about this. */
int slowness(void);

#endif
