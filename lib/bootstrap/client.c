/* SPDX-License-Identifier: MIT */
/* bootstrap/client.c - a rank's exchanges over its rendezvous. */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap/client.h"
#include "core/error.h"

/*
 * The hub keeps the time, because it knows whom to name. A rank gives up by itself only if the hub
 * has not spoken this long after the time.
 */
#define GRACE_MS   500
#define GOODBYE_MS 300
#define TELL_MS	   200

static void client_break(struct moeep_client *client, int result, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* No further exchange. The first cause is kept. */
static void client_break(struct moeep_client *client, int result, const char *format, ...)
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

static void client_lose(struct moeep_client *client, int rank)
{
	int none = -1;

	/* Readers use the number alone. */
	atomic_compare_exchange_strong_explicit(&client->lost, &none, rank, memory_order_acq_rel,
						memory_order_acquire);
}

int moeep_client_fail(const struct moeep_client *client)
{
	return moeep_fail(client->result, "%s", client->text);
}

static uint64_t body_bytes(int type)
{
	switch (type) {
	case MOEEP_BOOT_HELLO:
		return sizeof(struct moeep_boot_hello);
	case MOEEP_BOOT_WELCOME:
		return sizeof(struct moeep_boot_welcome);
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

int moeep_client_receive(struct moeep_client *client, int64_t deadline)
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

void moeep_client_ended(struct moeep_client *client, int rc)
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

int moeep_client_notice(struct moeep_client *client)
{
	struct moeep_boot_failure *failure = &client->body.failure;

	if (client->header.type == MOEEP_BOOT_JOINED) {
		const struct moeep_boot_joined *joined = &client->body.joined;

		if (joined->host_rank < -1 || joined->host_rank >= client->base.num_ranks) {
			client_break(client, MOEEP_ERR_RENDEZVOUS,
				     "the rendezvous at %s speaks of rank %d", client->address,
				     joined->host_rank);
			return moeep_client_fail(client);
		}
		client->host_rank = joined->host_rank;
		return MOEEP_OK;
	}
	if (client->header.type != MOEEP_BOOT_FAILURE) {
		client_break(client, MOEEP_ERR_RENDEZVOUS, "unexpected message %u of %s",
			     client->header.type, client->address);
		return moeep_client_fail(client);
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
	if (failure->lost <= -2 && client->result == MOEEP_OK) {
		client->news = (struct moeep_boot_news){
			.result = failure->result,
			.rank = -2 - failure->lost,
			.operation = failure->operation,
			.peer = failure->peer,
			.epoch = failure->epoch,
			.expected = failure->expected,
			.seen = failure->seen,
		};
		memcpy(client->news.text, failure->text, sizeof(client->news.text));
	}
	client_break(client, failure->result, "%s", failure->text);
	if (failure->lost >= 0 && failure->lost < client->base.num_ranks) {
		client_lose(client, failure->lost);
	}
	return moeep_client_fail(client);
}

int64_t moeep_client_grace(int64_t deadline)
{
	return deadline == MOEEP_SOCKET_NO_DEADLINE ? deadline : deadline + GRACE_MS;
}

static int send_gather(struct moeep_client *client, const void *send, size_t bytes,
		       int64_t deadline)
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

	if (client->mid_message) {
		errno = EPIPE;
		return MOEEP_SOCKET_ENDED;
	}
	client->mid_message = true;
	rc = moeep_socket_send(client->fd, &head, sizeof(head), &done,
			       moeep_client_grace(deadline));
	if (rc) {
		return rc;
	}
	done = 0;
	rc = moeep_socket_send(client->fd, send, bytes, &done, moeep_client_grace(deadline));
	if (rc) {
		return rc;
	}
	client->mid_message = false;
	return MOEEP_SOCKET_DONE;
}

/* The bytes of all ranks follow. */
static int receive_gathered(struct moeep_client *client, void *recv, size_t bytes, int64_t deadline)
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
		return moeep_client_fail(client);
	}
	rc = moeep_socket_recv(client->fd, recv, all, &done, deadline);
	if (rc) {
		moeep_client_ended(client, rc);
		return moeep_client_fail(client);
	}
	client->round++;
	return MOEEP_OK;
}

static int client_exchange(struct moeep_client *client, const void *send, void *recv, size_t bytes,
			   int64_t deadline)
{
	int rc;

	if (client->result) {
		return moeep_client_fail(client);
	}
	pthread_mutex_lock(&client->send_lock);
	rc = send_gather(client, send, bytes, deadline);
	pthread_mutex_unlock(&client->send_lock);
	if (rc == MOEEP_SOCKET_LATE) {
		moeep_client_ended(client, rc);
		return moeep_client_fail(client);
	}
	/* If the hub has closed the connection, its reason may still be there to be read. */
	for (;;) {
		rc = moeep_client_receive(client, moeep_client_grace(deadline));
		if (rc) {
			moeep_client_ended(client, rc);
			return moeep_client_fail(client);
		}
		if (client->header.type == MOEEP_BOOT_GATHERED) {
			return receive_gathered(client, recv, bytes, moeep_client_grace(deadline));
		}
		rc = moeep_client_notice(client);
		if (rc) {
			return rc;
		}
	}
}

static void client_tell(struct moeep_boot *boot, const struct moeep_boot_news *news)
{
	struct moeep_client *client = (struct moeep_client *)boot;
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_failure failure;
	} message = {
		.header = {.magic = MOEEP_BOOT_MAGIC,
			   .version = MOEEP_BOOT_VERSION,
			   .type = MOEEP_BOOT_TELL,
			   .length = sizeof(message.failure)},
		.failure = {.result = news->result,
			    .lost = -1,
			    .operation = news->operation,
			    .peer = news->peer,
			    .epoch = news->epoch,
			    .expected = news->expected,
			    .seen = news->seen},
	};
	size_t done = 0;

	snprintf(message.failure.text, sizeof(message.failure.text), "%s", news->text);
	/* Not the other lock: a thread may be in an exchange that comes to no end without this. */
	pthread_mutex_lock(&client->send_lock);
	if (!client->mid_message) {
		client->mid_message =
			moeep_socket_send(client->fd, &message, sizeof(message), &done,
					  moeep_socket_deadline(TELL_MS)) != MOEEP_SOCKET_DONE;
	}
	pthread_mutex_unlock(&client->send_lock);
}

static int client_allgather(struct moeep_boot *boot, const void *send, void *recv, size_t bytes,
			    uint32_t timeout_ms)
{
	struct moeep_client *client = (struct moeep_client *)boot;
	int rc;

	pthread_mutex_lock(&client->lock);
	rc = client_exchange(client, send, recv, bytes, moeep_socket_deadline(timeout_ms));
	pthread_mutex_unlock(&client->lock);
	return rc;
}

static int client_lost(struct moeep_boot *boot)
{
	struct moeep_client *client = (struct moeep_client *)boot;

	/* If another thread is in an exchange, it is the one that reads. */
	if (atomic_load_explicit(&client->lost, memory_order_acquire) < 0 &&
	    pthread_mutex_trylock(&client->lock) == 0) {
		while (client->result == MOEEP_OK) {
			int rc = moeep_client_receive(client, 0);

			if (rc == MOEEP_SOCKET_LATE) {
				break;
			}
			if (rc) {
				moeep_client_ended(client, rc);
				break;
			}
			moeep_client_notice(client);
		}
		pthread_mutex_unlock(&client->lock);
	}
	return atomic_load_explicit(&client->lost, memory_order_acquire);
}

static bool client_heard(struct moeep_boot *boot, struct moeep_boot_news *news)
{
	struct moeep_client *client = (struct moeep_client *)boot;
	bool heard = false;

	(void)client_lost(boot); /* reads what has come */
	if (pthread_mutex_trylock(&client->lock) == 0) {
		heard = client->result != MOEEP_OK && client->news.rank >= 0;
		if (heard) {
			*news = client->news;
		}
		pthread_mutex_unlock(&client->lock);
	}
	return heard;
}

void moeep_client_free(struct moeep_client *client)
{
	if (client->fd >= 0) {
		close(client->fd);
	}
	pthread_mutex_destroy(&client->lock);
	pthread_mutex_destroy(&client->send_lock);
	free(client);
}

static void client_close(struct moeep_boot *boot)
{
	struct moeep_client *client = (struct moeep_client *)boot;
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
	moeep_client_free(client);
}

const struct moeep_boot_ops moeep_client_ops = {
	.allgather = client_allgather,
	.lost = client_lost,
	.tell = client_tell,
	.heard = client_heard,
	.close = client_close,
};
