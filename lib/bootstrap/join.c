/* SPDX-License-Identifier: MIT */
/* bootstrap/join.c - a rank joins a rendezvous. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "bootstrap/client.h"
#include "bootstrap/proof.h"
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

/* HELLO has come: join is what this rank answers, but for the proof. */
static int make_join(const struct moeep_client *client, int64_t deadline,
		     struct moeep_boot_join *join)
{
	const struct moeep_boot_hello *hello = &client->body.hello;
	struct moeep_boot_process self;

	*join = (struct moeep_boot_join){
		.rank = client->base.rank,
		.num_ranks = client->base.num_ranks,
		.timeout_ms = moeep_socket_timeout_ms(deadline),
		.auth = moeep_boot_auth,
	};
	if (hello->auth != moeep_boot_auth) {
		return moeep_fail(MOEEP_ERR_MISMATCH,
				  "the rendezvous at %s was built %s libnettle and this rank %s: "
				  "they prove the id's secret in different ways",
				  client->address,
				  hello->auth == MOEEP_BOOT_AUTH_HMAC ? "with" : "without",
				  moeep_boot_auth == MOEEP_BOOT_AUTH_HMAC ? "with" : "without");
	}
	if (getrandom(join->nonce, sizeof(join->nonce), 0) != (ssize_t)sizeof(join->nonce)) {
		return moeep_fail_errno("getrandom");
	}
	/* Without the names of host and namespace a process id proves nothing. */
	moeep_boot_process_get(&self);
	join->hosts = self.pid_namespace != 0 && self.boot_id[0] != '\0' &&
		      memcmp(&self, &hello->process, sizeof(self)) == 0;
	return MOEEP_OK;
}

static int send_join(const struct moeep_client *client, const unsigned char *secret,
		     const unsigned char *hub_nonce, const struct moeep_boot_join *join,
		     int64_t deadline)
{
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_join join;
	} message = {
		.header = {.magic = MOEEP_BOOT_MAGIC,
			   .version = MOEEP_BOOT_VERSION,
			   .type = MOEEP_BOOT_JOIN,
			   .length = sizeof(message.join)},
		.join = *join,
	};
	size_t done = 0;
	int rc;

	moeep_boot_prove(secret, MOEEP_BOOT_PROVER_RANK, hub_nonce, join, message.join.proof);
	rc = moeep_socket_send(client->fd, &message, sizeof(message), &done, deadline);
	explicit_bzero(message.join.proof, sizeof(message.join.proof));
	return rc;
}

/* Until all ranks have joined. A socket's result, or an error of the library, which has a detail.
 */
static int await_group(struct moeep_client *client, const unsigned char *secret,
		       const unsigned char *hub_nonce, const struct moeep_boot_join *join,
		       int64_t deadline)
{
	bool welcome = false;

	for (;;) {
		int rc = moeep_client_receive(client, moeep_client_grace(deadline));

		if (rc) {
			return rc;
		}
		if (client->header.type == MOEEP_BOOT_WELCOME && !welcome) {
			welcome = moeep_boot_proved(secret, MOEEP_BOOT_PROVER_HUB, hub_nonce, join,
						    client->body.welcome.proof);
			if (!welcome) {
				return moeep_fail(MOEEP_ERR_RENDEZVOUS,
						  "what answers at %s does not know the id's "
						  "secret",
						  client->address);
			}
			continue;
		}
		if (client->header.type == MOEEP_BOOT_JOINED && !welcome) {
			errno = EPROTO;
			return MOEEP_SOCKET_ENDED;
		}
		rc = moeep_client_notice(client);
		if (rc || client->header.type == MOEEP_BOOT_JOINED) {
			return rc;
		}
	}
}

/* From the hub's first word until all ranks have joined. */
static int client_join(struct moeep_client *client, const unsigned char *secret, int64_t deadline)
{
	unsigned char hub_nonce[MOEEP_BOOT_NONCE_BYTES];
	struct moeep_boot_join join;
	int rc;

	rc = moeep_client_receive(client, deadline);
	if (rc == MOEEP_SOCKET_DONE && client->header.type != MOEEP_BOOT_HELLO) {
		errno = EPROTO;
		rc = MOEEP_SOCKET_ENDED;
	}
	if (rc == MOEEP_SOCKET_DONE) {
		memcpy(hub_nonce, client->body.hello.nonce, sizeof(hub_nonce));
		rc = make_join(client, deadline, &join);
		if (rc) {
			return rc;
		}
		rc = send_join(client, secret, hub_nonce, &join, deadline);
	}
	if (rc == MOEEP_SOCKET_DONE) {
		rc = await_group(client, secret, hub_nonce, &join, deadline);
	}
	if (rc <= 0) {
		/* Joined, or why not. */
		return rc;
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
	client->news.rank = -1;
	client->round = 1;
	atomic_init(&client->lost, -1);
	pthread_mutex_init(&client->lock, NULL);
	pthread_mutex_init(&client->send_lock, NULL);
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
