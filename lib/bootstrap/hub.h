/* SPDX-License-Identifier: MIT */
/*
 * bootstrap/hub.h - the serving side of a rendezvous. hub.c and conn.c move bytes, exchange.c
 * decides what they mean. All of it runs on the hub's own thread, moeep_hub_close() apart.
 */
#ifndef MOEEP_BOOTSTRAP_HUB_H
#define MOEEP_BOOTSTRAP_HUB_H

#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "bootstrap/wire.h"

/* Bytes that go to several ranks. Never changed once sent. */
struct moeep_hub_blob {
	size_t refs;
	size_t bytes;
	unsigned char data[];
};

/* A message on its way out. */
struct moeep_hub_message {
	struct moeep_hub_message *next;
	size_t head_bytes;
	size_t done; /* of head and blob together */
	struct moeep_hub_blob *blob;
	unsigned char head[sizeof(struct moeep_boot_header) + sizeof(struct moeep_boot_failure)];
};

enum moeep_hub_stage {
	MOEEP_HUB_HEADER,
	MOEEP_HUB_BODY, /* the message's structure */
	MOEEP_HUB_BLOB	/* the bytes after it */
};

struct moeep_hub_conn {
	int fd;
	int rank;	  /* -1: has not proved anything yet */
	bool dead;	  /* to be closed at the end of the turn */
	bool draining;	  /* to be closed once the messages are out; nothing is read any more */
	int64_t accepted; /* for those without a rank: limits their time */
	unsigned char nonce[MOEEP_BOOT_NONCE_BYTES];
	struct moeep_hub_message *out_first;
	struct moeep_hub_message **out_last;
	/* What is coming in. */
	enum moeep_hub_stage stage;
	size_t done; /* bytes of the stage */
	struct moeep_boot_header header;
	union {
		struct moeep_boot_join join;
		struct moeep_boot_gather gather;
		struct moeep_boot_failure told;
	} body;
	unsigned char *blob_into; /* NULL: read and forgotten */
};

enum moeep_hub_presence {
	MOEEP_HUB_ABSENT,
	MOEEP_HUB_HERE,
	MOEEP_HUB_GONE /* left or lost */
};

struct moeep_hub_rank {
	enum moeep_hub_presence presence;
	bool gathered; /* its bytes of the open round are in */
	bool hosts;    /* it runs in the hub's process */
	struct moeep_hub_conn *conn;
};

struct moeep_hub {
	int listen_fd;
	int event_fd; /* wakes the thread up */
	unsigned char secret[MOEEP_BOOT_SECRET_BYTES];
	struct moeep_boot_process process;
	_Atomic bool closing;
	int64_t closing_deadline; /* valid once closing */
	char remaining[160];	  /* ranks that had not left when the deadline passed, or "" */

	struct moeep_hub_conn **conns;
	struct pollfd *polls; /* room for conns and two more */
	size_t num_conns;
	size_t max_conns;
	int64_t accept_pause; /* no accept before this time */
	bool starved;	      /* there were no descriptors left for a connection */

	struct moeep_hub_rank *ranks; /* NULL before the first joined */
	int num_ranks;
	int joined;    /* ever */
	int here;      /* now */
	int host_rank; /* lowest one that hosts, or -1 */
	bool departed; /* one of them left */
	int64_t join_deadline;
	bool failed;
	struct moeep_boot_failure failure;

	uint64_t round; /* the open one, or the next */
	bool round_open;
	int round_first; /* who opened it, and with how many bytes */
	uint64_t round_bytes;
	int round_other; /* the first to give another number, or -1 */
	uint64_t round_other_bytes;
	int round_in;
	int64_t round_deadline;
	struct moeep_hub_blob *round_blob;
};

/* hub.c */

/* Before the thread starts. The hub is zero but for the file descriptors, secret and process. */
int moeep_hub_prepare(struct moeep_hub *hub);
/* Until the hub closes. */
void moeep_hub_run(struct moeep_hub *hub);
/* From another thread: return from moeep_hub_run() when all ranks have left or the time is up. */
void moeep_hub_close(struct moeep_hub *hub, int64_t deadline);
/* What hub.c allocated. */
void moeep_hub_release(struct moeep_hub *hub);

/* conn.c */

/*
 * Queue a message. If there is no memory for it, the connection is given up: its rank then knows at
 * least that something is wrong.
 */
void moeep_hub_send(struct moeep_hub_conn *conn, int type, const void *body, size_t body_bytes,
		    struct moeep_hub_blob *blob);
void moeep_hub_blob_put(struct moeep_hub_blob *blob);
/* As much as the socket takes. */
void moeep_hub_conn_write(struct moeep_hub_conn *conn);
/* What has come, up to a turn's limit; whole messages are acted on. */
void moeep_hub_conn_read(struct moeep_hub *hub, struct moeep_hub_conn *conn);
/* Closes the socket. */
void moeep_hub_conn_free(struct moeep_hub_conn *conn);

/* exchange.c */

/* A JOIN came in. */
void moeep_hub_join(struct moeep_hub *hub, struct moeep_hub_conn *conn);
/* A GATHER came in, its bytes not yet: sets blob_into. false: not worth keeping the connection. */
bool moeep_hub_gather(struct moeep_hub *hub, struct moeep_hub_conn *conn);
/* Its bytes are in. */
void moeep_hub_gathered(struct moeep_hub *hub, struct moeep_hub_conn *conn);
/* A BYE came in. */
void moeep_hub_leave(struct moeep_hub *hub, struct moeep_hub_conn *conn);
/* A TELL came in. */
void moeep_hub_told(struct moeep_hub *hub, const struct moeep_hub_conn *conn);
/* The connection of a rank ended without one. */
void moeep_hub_lose(struct moeep_hub *hub, int rank);
/* Fail what has taken too long; returns the time of the next deadline. */
int64_t moeep_hub_expire(struct moeep_hub *hub, int64_t now);
/* Tell all ranks that are still here that the hub closes. */
void moeep_hub_dismiss(struct moeep_hub *hub);

#endif
