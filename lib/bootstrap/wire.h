/* SPDX-License-Identifier: MIT */
/*
 * bootstrap/wire.h - what a unique id holds, and the messages between the ranks and the rendezvous.
 *
 * A connection goes so:
 *
 *	hub  -> rank	HELLO	at once, with a nonce
 *	rank -> hub	JOIN	with a nonce, and the proof that it knows the secret
 *	hub  -> rank	WELCOME	with the proof that the hub knows it, too
 *	hub  -> rank	JOINED	once all ranks are in; FAILURE if that cannot be
 *	rank -> hub	GATHER	one exchange: the rank's bytes
 *	hub  -> rank	GATHERED the bytes of all ranks
 *	rank -> hub	TELL	the group has failed: a FAILURE for all ranks
 *	rank -> hub	BYE	it leaves; the hub closes the connection
 *
 * The hub may send a FAILURE between any two of its messages. Integers are little-endian.
 */
#ifndef MOEEP_BOOTSTRAP_WIRE_H
#define MOEEP_BOOTSTRAP_WIRE_H

#include <assert.h>
#include <stdint.h>

#define MOEEP_BOOT_VERSION   2
#define MOEEP_BOOT_MAX_RANKS 4096
/* Most bytes that a rank may give to one exchange. */
#define MOEEP_BOOT_MAX_BYTES	(UINT64_C(64) << 20)
#define MOEEP_BOOT_SECRET_BYTES 32
#define MOEEP_BOOT_NONCE_BYTES	32
#define MOEEP_BOOT_PROOF_BYTES	32

/* Own numbers: AF_INET6 is not the same everywhere. */
#define MOEEP_BOOT_IPV4 4
#define MOEEP_BOOT_IPV6 6

#define MOEEP_BOOT_ID_MAGIC "moeep-id"

/* The contents of moeep_unique_id_t. */
struct moeep_boot_id {
	unsigned char magic[8];
	uint16_t version;
	uint16_t family;
	uint16_t port; /* host byte order */
	uint16_t reserved0;
	unsigned char address[16]; /* network byte order; of IPv4 the first four */
	unsigned char secret[MOEEP_BOOT_SECRET_BYTES];
	unsigned char reserved1[56];
	uint64_t check; /* over all before it: finds ids that were cut or mistyped */
};
static_assert(sizeof(struct moeep_boot_id) == 128, "fills moeep_unique_id_t");

#define MOEEP_BOOT_MAGIC UINT32_C(0x5045454d) /* "MEEP" */

enum {
	MOEEP_BOOT_HELLO = 1,
	MOEEP_BOOT_JOIN = 2,
	MOEEP_BOOT_JOINED = 3,
	MOEEP_BOOT_GATHER = 4,
	MOEEP_BOOT_GATHERED = 5,
	MOEEP_BOOT_FAILURE = 6,
	MOEEP_BOOT_BYE = 7,
	MOEEP_BOOT_WELCOME = 8,
	MOEEP_BOOT_TELL = 9 /* struct moeep_boot_failure */
};

/* Starts every message. */
struct moeep_boot_header {
	uint32_t magic;
	uint16_t version;
	uint16_t type;
	uint64_t length; /* bytes that follow */
};
static_assert(sizeof(struct moeep_boot_header) == 16, "on the wire");

/* A process, so that a rank can tell whether the hub is in its own. */
struct moeep_boot_process {
	uint64_t pid;
	uint64_t pid_namespace; /* inode; 0: not known */
	char boot_id[40];	/* of the host's kernel; "": not known */
};
static_assert(sizeof(struct moeep_boot_process) == 56, "on the wire");

struct moeep_boot_hello {
	unsigned char nonce[MOEEP_BOOT_NONCE_BYTES]; /* of this connection */
	struct moeep_boot_process process;
	uint32_t auth; /* how the hub wants the secret proved */
	uint32_t reserved0;
};
static_assert(sizeof(struct moeep_boot_hello) == 96, "on the wire");

/* Ways to prove the secret; see proof.h. */
#define MOEEP_BOOT_AUTH_SECRET 1 /* proof is the secret; the hub proves nothing */
#define MOEEP_BOOT_AUTH_HMAC   2

struct moeep_boot_join {
	int32_t rank;
	int32_t num_ranks;
	uint32_t timeout_ms; /* what is left of the rank's limit */
	uint32_t hosts;	     /* 1: the hub is in this rank's process */
	uint32_t auth;
	uint32_t reserved0;
	unsigned char nonce[MOEEP_BOOT_NONCE_BYTES];
	unsigned char proof[MOEEP_BOOT_PROOF_BYTES];
	uint64_t reserved1;
};
static_assert(sizeof(struct moeep_boot_join) == 96, "on the wire");

struct moeep_boot_welcome {
	unsigned char proof[MOEEP_BOOT_PROOF_BYTES];
};
static_assert(sizeof(struct moeep_boot_welcome) == 32, "on the wire");

struct moeep_boot_joined {
	int32_t host_rank; /* lowest rank in the hub's process, -1: none */
	int32_t num_ranks;
};
static_assert(sizeof(struct moeep_boot_joined) == 8, "on the wire");

/* Followed by `bytes` bytes. */
struct moeep_boot_gather {
	uint64_t round; /* counts from 1 */
	uint64_t bytes;
	uint32_t timeout_ms;
	uint32_t reserved0;
};
static_assert(sizeof(struct moeep_boot_gather) == 24, "on the wire");

/* Followed by num_ranks times `bytes` bytes, ordered by rank. */
struct moeep_boot_gathered {
	uint64_t round;
	uint64_t bytes;
};
static_assert(sizeof(struct moeep_boot_gathered) == 16, "on the wire");

struct moeep_boot_failure {
	uint64_t round; /* the exchange that failed; 0: the whole group, for good */
	int32_t result;
	int32_t lost; /* rank whose connection ended, or the first that did not come; or -1;
			 told by a rank: -2 - rank */
	/* Told by a rank: of its cause; else 0. */
	int32_t operation;
	int32_t peer;
	uint64_t epoch;
	uint64_t expected;
	uint64_t seen;
	char text[208];
};
static_assert(sizeof(struct moeep_boot_failure) == 256, "on the wire");

#endif
