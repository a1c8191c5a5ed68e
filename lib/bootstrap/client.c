/* SPDX-License-Identifier: MIT */
/* bootstrap/client.c - a rank's side of a rendezvous. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bootstrap/ops.h"
#include "bootstrap/socket.h"
#include "bootstrap/unique_id.h"
#include "core/error.h"

/*
 * The hub keeps the time, because it knows whom to name. A rank gives up by itself only if the hub
 * has not spoken this long after the time.
 */
#define GRACE_MS 500
/* An id is made after its port was opened, so nobody there means that the rendezvous has gone. */
#define REFUSED_MS   2000
#define RETRY_MIN_MS 10
#define RETRY_MAX_MS 200
#define GOODBYE_MS   300

struct client {
	struct moeep_boot base;
	char address[MOEEP_SOCKET_TEXT];
	_Atomic int lost; /* set once, under the lock; read without it */
	/* Of everything below. An exchange holds it to its end. */
	pthread_mutex_t lock;
	int fd;
	int host_rank;	  /* the rank whose end ends the hub, or -1 */
	uint64_t round;	  /* the next exchange */
	int result;	  /* why there can be no further exchange, or MOEEP_OK */
	bool hub_ended;	  /* nothing more comes */
	bool mid_message; /* a message was sent in part: nothing can follow */
	bool silent;	  /* the hub does not answer: it may be stopped */
	char text[256];	  /* detail of result */
	/* What is coming in, whole or in part. */
	size_t done;
	struct moeep_boot_header header;
	union {
		struct moeep_boot_hello hello;
		struct moeep_boot_joined joined;
		struct moeep_boot_gathered gathered;
		struct moeep_boot_failure failure;
	} body;
};

static void client_break(struct client *client, int result, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* No further exchange. The first cause is kept. */
static void client_break(struct client *client, int result, const char *format, ...)
{
	va_list args;

	if (client->result) {
		return;
	}
	client->result = result;
	va_start(args, format);
	vsnprintf(client->text, sizeof(client->text), format, args);
	va_end(args);
}

static void client_lose(struct client *client, int rank)
{
	int none = -1;

	/* Readers use the number alone. */
	atomic_compare_exchange_strong_explicit(&client->lost, &none, rank, memory_order_acq_rel,
						memory_order_acquire);
}

static int client_fail(const struct client *client)
{
	return moeep_fail(client->result, "%s", client->text);
}

static uint64_t body_bytes(int type)
{
	switch (type) {
	case MOEEP_BOOT_HELLO:
		return sizeof(struct moeep_boot_hello);
	case MOEEP_BOOT_JOINED:
		return sizeof(struct moeep_boot_joined);
	case MOEEP_BOOT_GATHERED:
		return sizeof(struct moeep_boot_gathered);
	case MOEEP_BOOT_FAILURE:
		return sizeof(struct moeep_boot_failure);
	}
	return 0;
}

static bool header_valid(const struct moeep_boot_header *header)
{
	uint64_t bytes = body_bytes(header->type);

	if (header->magic != MOEEP_BOOT_MAGIC || header->version != MOEEP_BOOT_VERSION ||
	    bytes == 0) {
		return false;
	}
	/* Only this one is followed by more. */
	return header->type == MOEEP_BOOT_GATHERED ? header->length >= bytes
						   : header->length == bytes;
}

/*
 * The next message, without the bytes after a GATHERED. What has come when the deadline passes is
 * kept for the next call. A MOEEP_SOCKET_ result; EPROTO if these are not the words of a hub.
 */
static int client_receive(struct client *client, int64_t deadline)
{
	const size_t head = sizeof(client->header);
	size_t body_done;
	int rc;

	if (client->done < head) {
		rc = moeep_socket_recv(client->fd, &client->header, head, &client->done, deadline);
		if (rc) {
			return rc;
		}
	}
	if (!header_valid(&client->header)) {
		errno = EPROTO;
		return MOEEP_SOCKET_ENDED;
	}
	body_done = client->done - head;
	rc = moeep_socket_recv(client->fd, &client->body, body_bytes(client->header.type),
			       &body_done, deadline);
	client->done = head + body_done;
	if (rc == MOEEP_SOCKET_DONE) {
		client->done = 0;
	}
	return rc;
}

/* After a failed receive. */
static void client_ended(struct client *client, int rc)
{
	client->silent = rc == MOEEP_SOCKET_LATE;
	if (rc == MOEEP_SOCKET_LATE && client->host_rank >= 0) {
		client_break(client, MOEEP_ERR_TIMEOUT,
			     "the rendezvous at %s, in the process of rank %d, does not answer",
			     client->address, client->host_rank);
		return;
	}
	if (rc == MOEEP_SOCKET_LATE) {
		client_break(client, MOEEP_ERR_TIMEOUT, "the rendezvous at %s does not answer",
			     client->address);
		return;
	}
	if (errno == EPROTO) {
		client_break(client, MOEEP_ERR_RENDEZVOUS,
			     "what answers at %s is not a rendezvous of this release",
			     client->address);
		return;
	}
	client->hub_ended = true;
	if (client->host_rank >= 0 && client->host_rank != client->base.rank) {
		client_break(client, MOEEP_ERR_PEER_LOST,
			     "rank %d is lost: the rendezvous in its process, at %s, ended",
			     client->host_rank, client->address);
		client_lose(client, client->host_rank);
		return;
	}
	client_break(client, MOEEP_ERR_PEER_LOST, "the rendezvous at %s ended", client->address);
}

/*
 * A message that may come at any time. Returns the failure's result if it ended the exchange
 * in progress, else MOEEP_OK.
 */
static int client_notice(struct client *client)
{
	struct moeep_boot_failure *failure = &client->body.failure;

	if (client->header.type == MOEEP_BOOT_JOINED) {
		client->host_rank = client->body.joined.host_rank;
		return MOEEP_OK;
	}
	if (client->header.type != MOEEP_BOOT_FAILURE) {
		client_break(client, MOEEP_ERR_RENDEZVOUS, "unexpected message %u of %s",
			     client->header.type, client->address);
		return client_fail(client);
	}
	failure->text[sizeof(failure->text) - 1] = '\0';
	if (failure->result >= 0) {
		failure->result = MOEEP_ERR_RENDEZVOUS;
	}
	if (failure->round != 0) {
		/* Only this exchange failed; the next one may succeed. */
		client->round++;
		return moeep_fail(failure->result, "%s", failure->text);
	}
	client_break(client, failure->result, "%s", failure->text);
	if (failure->lost >= 0 && failure->lost < client->base.num_ranks) {
		client_lose(client, failure->lost);
	}
	return client_fail(client);
}

static int64_t with_grace(int64_t deadline)
{
	return deadline == MOEEP_SOCKET_NO_DEADLINE ? deadline : deadline + GRACE_MS;
}

static int send_gather(struct client *client, const void *send, size_t bytes, int64_t deadline)
{
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_gather gather;
	} head = {
		.header = {.magic = MOEEP_BOOT_MAGIC,
			   .version = MOEEP_BOOT_VERSION,
			   .type = MOEEP_BOOT_GATHER,
			   .length = sizeof(head.gather) + bytes},
		.gather = {.round = client->round,
			   .bytes = bytes,
			   .timeout_ms = moeep_socket_timeout_ms(deadline)},
	};
	size_t done = 0;
	int rc;

	client->mid_message = true;
	rc = moeep_socket_send(client->fd, &head, sizeof(head), &done, with_grace(deadline));
	if (rc) {
		return rc;
	}
	done = 0;
	rc = moeep_socket_send(client->fd, send, bytes, &done, with_grace(deadline));
	if (rc) {
		return rc;
	}
	client->mid_message = false;
	return MOEEP_SOCKET_DONE;
}

/* The bytes of all ranks follow. */
static int receive_gathered(struct client *client, void *recv, size_t bytes, int64_t deadline)
{
	const struct moeep_boot_gathered *gathered = &client->body.gathered;
	size_t all = bytes * (size_t)client->base.num_ranks;
	size_t done = 0;
	int rc;

	if (gathered->round != client->round || gathered->bytes != bytes ||
	    client->header.length != sizeof(*gathered) + all) {
		client_break(client, MOEEP_ERR_RENDEZVOUS,
			     "the rendezvous at %s answers exchange %llu with %llu",
			     client->address, (unsigned long long)client->round,
			     (unsigned long long)gathered->round);
		return client_fail(client);
	}
	rc = moeep_socket_recv(client->fd, recv, all, &done, deadline);
	if (rc) {
		client_ended(client, rc);
		return client_fail(client);
	}
	client->round++;
	return MOEEP_OK;
}

static int client_exchange(struct client *client, const void *send, void *recv, size_t bytes,
			   int64_t deadline)
{
	int rc;

	if (client->result) {
		return client_fail(client);
	}
	rc = send_gather(client, send, bytes, deadline);
	if (rc == MOEEP_SOCKET_LATE) {
		client_ended(client, rc);
		return client_fail(client);
	}
	/* If the hub has closed the connection, its reason may still be there to be read. */
	for (;;) {
		rc = client_receive(client, with_grace(deadline));
		if (rc) {
			client_ended(client, rc);
			return client_fail(client);
		}
		if (client->header.type == MOEEP_BOOT_GATHERED) {
			return receive_gathered(client, recv, bytes, with_grace(deadline));
		}
		rc = client_notice(client);
		if (rc) {
			return rc;
		}
	}
}

static int client_allgather(struct moeep_boot *boot, const void *send, void *recv, size_t bytes,
			    uint32_t timeout_ms)
{
	struct client *client = (struct client *)boot;
	int rc;

	pthread_mutex_lock(&client->lock);
	rc = client_exchange(client, send, recv, bytes, moeep_socket_deadline(timeout_ms));
	pthread_mutex_unlock(&client->lock);
	return rc;
}

static int client_lost(struct moeep_boot *boot)
{
	struct client *client = (struct client *)boot;

	/* If another thread is in an exchange, it is the one that reads. */
	if (atomic_load_explicit(&client->lost, memory_order_acquire) < 0 &&
	    pthread_mutex_trylock(&client->lock) == 0) {
		while (client->result == MOEEP_OK) {
			int rc = client_receive(client, 0);

			if (rc == MOEEP_SOCKET_LATE) {
				break;
			}
			if (rc) {
				client_ended(client, rc);
				break;
			}
			client_notice(client);
		}
		pthread_mutex_unlock(&client->lock);
	}
	return atomic_load_explicit(&client->lost, memory_order_acquire);
}

static void client_free(struct client *client)
{
	if (client->fd >= 0) {
		close(client->fd);
	}
	pthread_mutex_destroy(&client->lock);
	free(client);
}

static void client_close(struct moeep_boot *boot)
{
	struct client *client = (struct client *)boot;
	struct moeep_boot_header bye = {
		.magic = MOEEP_BOOT_MAGIC,
		.version = MOEEP_BOOT_VERSION,
		.type = MOEEP_BOOT_BYE,
	};
	int64_t deadline = moeep_socket_deadline(GOODBYE_MS);
	char scratch[4096];
	size_t done = 0;
	int rc = MOEEP_SOCKET_ENDED;

	if (!client->mid_message && !client->hub_ended) {
		rc = moeep_socket_send(client->fd, &bye, sizeof(bye), &done, deadline);
	}
	/*
	 * A socket that is closed with unread bytes resets the connection, and that could overtake
	 * the good-bye. So read until the hub, which has seen it, closes its end.
	 */
	while (rc == MOEEP_SOCKET_DONE && !client->silent) {
		done = 0;
		rc = moeep_socket_recv(client->fd, scratch, sizeof(scratch), &done, deadline);
	}
	client_free(client);
}

static void sleep_ms(int64_t ms)
{
	struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

	nanosleep(&time, NULL);
}

static bool worth_retrying(int error)
{
	switch (error) {
	case ECONNREFUSED:
	case ECONNRESET:
	case ECONNABORTED:
	case ETIMEDOUT:
	case EHOSTUNREACH:
	case EHOSTDOWN:
	case ENETUNREACH:
	case ENETDOWN:
	case EADDRNOTAVAIL:
	case EAGAIN:
		return true;
	}
	return false;
}

static int client_connect(struct client *client, const struct moeep_socket_address *address,
			  int64_t deadline)
{
	int64_t refused_until = 0;
	int64_t pause = RETRY_MIN_MS;

	for (;;) {
		int rc = moeep_socket_connect(address, deadline, &client->fd);
		int64_t left;

		if (rc == MOEEP_SOCKET_DONE) {
			return MOEEP_OK;
		}
		if (rc == MOEEP_SOCKET_LATE) {
			return moeep_fail(MOEEP_ERR_RENDEZVOUS,
					  "the rendezvous at %s cannot be reached within the "
					  "time-out",
					  client->address);
		}
		if (!worth_retrying(errno)) {
			return moeep_fail_errno("connect to the rendezvous at %s", client->address);
		}
		if (errno != ECONNREFUSED) {
			refused_until = 0;
		} else if (refused_until == 0) {
			refused_until = moeep_socket_now() + REFUSED_MS;
		}
		left = deadline == MOEEP_SOCKET_NO_DEADLINE ? INT64_MAX
							    : deadline - moeep_socket_now();
		if (left <= 0 || (refused_until != 0 && moeep_socket_now() >= refused_until)) {
			moeep_fail_errno("connect to the rendezvous at %s", client->address);
			return MOEEP_ERR_RENDEZVOUS;
		}
		sleep_ms(pause < left ? pause : left);
		pause = 2 * pause < RETRY_MAX_MS ? 2 * pause : RETRY_MAX_MS;
	}
}

static int send_join(struct client *client, const unsigned char *secret, int64_t deadline)
{
	struct moeep_boot_process self;
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_join join;
	} message = {
		.header = {.magic = MOEEP_BOOT_MAGIC,
			   .version = MOEEP_BOOT_VERSION,
			   .type = MOEEP_BOOT_JOIN,
			   .length = sizeof(message.join)},
		.join = {.rank = client->base.rank,
			 .num_ranks = client->base.num_ranks,
			 .timeout_ms = moeep_socket_timeout_ms(deadline),
			 .auth = MOEEP_BOOT_AUTH_SECRET},
	};
	size_t done = 0;
	int rc;

	/* Without the names of host and namespace a process id proves nothing. */
	moeep_boot_process_get(&self);
	message.join.hosts = self.pid_namespace != 0 && self.boot_id[0] != '\0' &&
			     memcmp(&self, &client->body.hello.process, sizeof(self)) == 0;
	memcpy(message.join.proof, secret, sizeof(message.join.proof));
	rc = moeep_socket_send(client->fd, &message, sizeof(message), &done, deadline);
	explicit_bzero(message.join.proof, sizeof(message.join.proof));
	return rc;
}

/* From the hub's first word until all ranks have joined. */
static int client_join(struct client *client, const unsigned char *secret, int64_t deadline)
{
	int rc;

	rc = client_receive(client, deadline);
	if (rc == MOEEP_SOCKET_DONE && client->header.type != MOEEP_BOOT_HELLO) {
		errno = EPROTO;
		rc = MOEEP_SOCKET_ENDED;
	}
	if (rc == MOEEP_SOCKET_DONE) {
		rc = send_join(client, secret, deadline);
	}
	while (rc == MOEEP_SOCKET_DONE) {
		rc = client_receive(client, with_grace(deadline));
		if (rc) {
			break;
		}
		rc = client_notice(client);
		if (rc || client->header.type == MOEEP_BOOT_JOINED) {
			return rc;
		}
	}
	if (rc == MOEEP_SOCKET_ENDED && errno != EPROTO) {
		return moeep_fail(MOEEP_ERR_RENDEZVOUS,
				  "the rendezvous at %s closed the connection: it has ended, or it "
				  "is another than the id's",
				  client->address);
	}
	client_ended(client, rc);
	return client_fail(client);
}

int moeep_boot_open_client(const moeep_unique_id_t *id, int rank, int num_ranks,
			   uint32_t timeout_ms, struct moeep_boot **boot)
{
	static const struct moeep_boot_ops ops = {
		.allgather = client_allgather,
		.lost = client_lost,
		.close = client_close,
	};
	int64_t deadline = moeep_socket_deadline(timeout_ms);
	struct moeep_socket_address address;
	struct moeep_boot_id content;
	struct client *client;
	int rc;

	rc = moeep_unique_id_read(id, &content);
	if (rc) {
		return rc;
	}
	rc = moeep_socket_address_set(&address, content.family, content.address, content.port);
	if (rc) {
		goto out_wipe;
	}
	client = calloc(1, sizeof(*client));
	if (!client) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for the bootstrap");
		goto out_wipe;
	}
	client->base.ops = &ops;
	client->base.rank = rank;
	client->base.num_ranks = num_ranks;
	client->fd = -1;
	client->host_rank = -1;
	client->round = 1;
	atomic_init(&client->lost, -1);
	pthread_mutex_init(&client->lock, NULL);
	moeep_socket_address_text(&address, client->address);
	rc = client_connect(client, &address, deadline);
	if (rc) {
		goto err_free;
	}
	rc = client_join(client, content.secret, deadline);
	if (rc) {
		goto err_free;
	}
	*boot = &client->base;
	explicit_bzero(&content, sizeof(content));
	return MOEEP_OK;

err_free:
	client_free(client);
out_wipe:
	explicit_bzero(&content, sizeof(content));
	return rc;
}
