/* SPDX-License-Identifier: MIT */
/*
 * Fuzz target: what ranks and strangers say to a rendezvous. The first byte is how many ranks have
 * joined; then come chunks: who, a stranger past the last rank, and how many bytes, and these.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bootstrap/hub.h"
#include "bootstrap/proof.h"
#include "bootstrap/socket.h"
#include "t/fuzz/fuzz.h"

#define MOST_RANKS 3

struct side {
	struct moeep_hub_conn *conn;
	int fd; /* of whoever speaks */
};

static struct side connect_side(struct moeep_hub *hub)
{
	struct side side = {calloc(1, sizeof(*side.conn)), -1};
	int fds[2];

	if (!side.conn || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds)) {
		abort();
	}
	side.fd = fds[1];
	side.conn->fd = fds[0];
	side.conn->rank = -1;
	side.conn->accepted = moeep_socket_now();
	side.conn->out_last = &side.conn->out_first;
	hub->conns[hub->num_conns++] = side.conn;
	return side;
}

/* As a rank that knows the secret. */
static void join(struct moeep_hub *hub, struct moeep_hub_conn *conn, int rank, int num_ranks)
{
	struct moeep_boot_join *join = &conn->body.join;

	*join = (struct moeep_boot_join){
		.rank = rank, .num_ranks = num_ranks, .timeout_ms = 1000, .auth = moeep_boot_auth};
	moeep_boot_prove(hub->secret, MOEEP_BOOT_PROVER_RANK, conn->nonce, join, join->proof);
	moeep_hub_join(hub, conn);
	if (conn->rank != rank) {
		abort();
	}
}

/* What a rank has been told is read, or the hub could not go on. */
static void drain(const struct side *side)
{
	char bytes[4096];

	while (read(side->fd, bytes, sizeof(bytes)) > 0) {
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct side sides[MOST_RANKS + 1];
	struct moeep_hub hub = {.listen_fd = -1};
	int num_ranks;
	size_t at = 1;

	if (size < 1) {
		return 0;
	}
	num_ranks = 1 + data[0] % MOST_RANKS;
	hub.event_fd = eventfd(0, EFD_NONBLOCK);
	if (hub.event_fd < 0 || moeep_hub_prepare(&hub)) {
		abort();
	}
	for (int i = 0; i <= num_ranks; i++) {
		sides[i] = connect_side(&hub);
		if (i < num_ranks) {
			join(&hub, sides[i].conn, i, num_ranks);
		}
	}
	while (at + 2 <= size) {
		const struct side *side = &sides[data[at] % (num_ranks + 1)];
		size_t bytes = data[at + 1];

		at += 2;
		bytes = bytes < size - at ? bytes : size - at;
		if (write(side->fd, data + at, bytes) == (ssize_t)bytes && !side->conn->dead) {
			moeep_hub_conn_read(&hub, side->conn);
			moeep_hub_conn_write(side->conn);
			drain(side);
		}
		at += bytes;
	}
	/* All leave; the hub ends when it has seen that. */
	for (int i = 0; i <= num_ranks; i++) {
		close(sides[i].fd);
	}
	moeep_hub_close(&hub, moeep_socket_deadline(2000));
	moeep_hub_run(&hub);
	if (hub.here != 0) {
		abort();
	}
	moeep_hub_release(&hub);
	close(hub.event_fd);
	return 0;
}
