/* SPDX-License-Identifier: MIT */
/* Fuzz target: what something in the place of a rendezvous says to a rank that has joined. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bootstrap/client.h"
#include "t/fuzz/fuzz.h"

#define RANKS 3
#define BYTES 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct moeep_client *client = calloc(1, sizeof(*client));
	unsigned char send[BYTES] = {0};
	unsigned char recv[RANKS * BYTES];
	int fds[2];
	int lost;

	if (!client || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds)) {
		abort();
	}
	client->base.ops = &moeep_client_ops;
	client->base.num_ranks = RANKS;
	client->fd = fds[0];
	client->host_rank = -1;
	client->round = 1;
	atomic_init(&client->lost, -1);
	pthread_mutex_init(&client->lock, NULL);
	/* More than a socket takes at once is cut. */
	if (write(fds[1], data, size) < 0) {
		size = 0;
	}
	(void)shutdown(fds[1], SHUT_WR);
	for (int round = 0; round < 3; round++) {
		(void)client->base.ops->allgather(&client->base, send, recv, BYTES, 1000);
	}
	lost = client->base.ops->lost(&client->base);
	if (lost < -1 || lost >= RANKS) {
		abort();
	}
	client->base.ops->close(&client->base);
	close(fds[1]);
	return 0;
}
