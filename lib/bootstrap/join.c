/* SPDX-License-Identifier: MIT */
/* bootstrap/join.c - a rank joins a rendezvous. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bootstrap/client.h"
#include "bootstrap/unique_id.h"
#include "core/error.h"

/* An id is made after its port was opened, so nobody there means that the rendezvous has gone. */
#define REFUSED_MS   2000
#define RETRY_MIN_MS 10
#define RETRY_MAX_MS 200

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

static int client_connect(struct moeep_client *client, const struct moeep_socket_address *address,
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

static int send_join(struct moeep_client *client, const unsigned char *secret, int64_t deadline)
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
static int client_join(struct moeep_client *client, const unsigned char *secret, int64_t deadline)
{
	int rc;

	rc = moeep_client_receive(client, deadline);
	if (rc == MOEEP_SOCKET_DONE && client->header.type != MOEEP_BOOT_HELLO) {
		errno = EPROTO;
		rc = MOEEP_SOCKET_ENDED;
	}
	if (rc == MOEEP_SOCKET_DONE) {
		rc = send_join(client, secret, deadline);
	}
	while (rc == MOEEP_SOCKET_DONE) {
		rc = moeep_client_receive(client, moeep_client_grace(deadline));
		if (rc) {
			break;
		}
		rc = moeep_client_notice(client);
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
	moeep_client_ended(client, rc);
	return moeep_client_fail(client);
}

int moeep_boot_open_client(const moeep_unique_id_t *id, int rank, int num_ranks,
			   uint32_t timeout_ms, struct moeep_boot **boot)
{
	int64_t deadline = moeep_socket_deadline(timeout_ms);
	struct moeep_socket_address address;
	struct moeep_boot_id content;
	struct moeep_client *client;
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
	client->base.ops = &moeep_client_ops;
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
	moeep_client_free(client);
out_wipe:
	explicit_bzero(&content, sizeof(content));
	return rc;
}
