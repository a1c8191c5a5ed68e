/* SPDX-License-Identifier: MIT */
/*
 * bootstrap/client.h - a rank's side of a rendezvous: joining it (join.c), and the exchanges after
 * that (client.c).
 */
#ifndef MOEEP_BOOTSTRAP_CLIENT_H
#define MOEEP_BOOTSTRAP_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "bootstrap/ops.h"
#include "bootstrap/socket.h"
#include "bootstrap/wire.h"

struct moeep_client {
	struct moeep_boot base;
	char address[MOEEP_SOCKET_TEXT];
	_Atomic int lost;	   /* set once, under the lock; read without it */
	pthread_mutex_t send_lock; /* of sending; taken inside of lock, if that is taken */
	bool mid_message;	   /* under it: a message was sent in part, nothing can follow */
	/* Of everything below. An exchange holds it to its end. */
	pthread_mutex_t lock;
	int fd;
	int host_rank;		     /* the rank whose end ends the hub, or -1 */
	uint64_t round;		     /* the next exchange */
	int result;		     /* why there can be no further exchange, or MOEEP_OK */
	bool hub_ended;		     /* nothing more comes */
	struct moeep_boot_news news; /* that told result; its rank is -1: none did */
	bool silent;		     /* the hub does not answer: it may be stopped */
	char text[256];		     /* detail of result */
	/* What is coming in, whole or in part. */
	size_t done;
	struct moeep_boot_header header;
	union {
		struct moeep_boot_hello hello;
		struct moeep_boot_welcome welcome;
		struct moeep_boot_joined joined;
		struct moeep_boot_gathered gathered;
		struct moeep_boot_failure failure;
	} body;
};

extern const struct moeep_boot_ops moeep_client_ops;

/*
 * The next message, without the bytes after a GATHERED. What has come when the deadline passes is
 * kept for the next call. A MOEEP_SOCKET_ result; EPROTO if these are not the words of a hub.
 */
int moeep_client_receive(struct moeep_client *client, int64_t deadline);

/* After a failed receive: there can be no further exchange. */
void moeep_client_ended(struct moeep_client *client, int rc);

/*
 * A message that may come at any time. Returns the failure's result if it ended the exchange
 * in progress, else MOEEP_OK.
 */
int moeep_client_notice(struct moeep_client *client);

/* Why there can be no further exchange, with its detail. */
int moeep_client_fail(const struct moeep_client *client);

/* Until when the hub, which keeps the time, is waited for. */
int64_t moeep_client_grace(int64_t deadline);

/* Without a good-bye. */
void moeep_client_free(struct moeep_client *client);

#endif
