/* SPDX-License-Identifier: MIT */
/* bootstrap/hub.c - the thread of a rendezvous: accepts, lets connections move on, closes them. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "bootstrap/hub.h"
#include "bootstrap/proof.h"
#include "bootstrap/socket.h"
#include "core/error.h"

/* A stranger is given this long to say who it is, a refused rank to read why. */
#define STRANGER_MS 10000
/* Younger ones are not closed to make room. */
#define EVICT_MS 1000
/* More than all ranks of the largest group at once. */
#define MAX_STRANGERS	6000
#define ACCEPT_TURN	256
#define ACCEPT_PAUSE_MS 100

/* Close what has ended. That may tell others, which may end them in turn. */
static void hub_reap(struct moeep_hub *hub)
{
	bool again;

	do {
		size_t kept = 0;

		again = false;
		for (size_t i = 0; i < hub->num_conns; i++) {
			struct moeep_hub_conn *conn = hub->conns[i];
			int rank = conn->rank;

			if (!conn->dead) {
				hub->conns[kept++] = conn;
				continue;
			}
			moeep_hub_conn_free(conn);
			if (rank >= 0 && hub->ranks[rank].presence == MOEEP_HUB_HERE) {
				moeep_hub_lose(hub, rank);
				again = true;
			}
		}
		hub->num_conns = kept;
	} while (again);
}

/* Close the oldest stranger, to make room. */
static bool hub_evict(struct moeep_hub *hub, int64_t now)
{
	for (size_t i = 0; i < hub->num_conns; i++) {
		struct moeep_hub_conn *conn = hub->conns[i];

		if (conn->rank < 0 && !conn->dead && now - conn->accepted >= EVICT_MS) {
			conn->dead = true;
			return true;
		}
	}
	return false;
}

static int hub_reserve(struct moeep_hub *hub)
{
	size_t room = hub->max_conns ? 2 * hub->max_conns : 64;
	struct moeep_hub_conn **conns;
	struct pollfd *polls;

	if (hub->num_conns < hub->max_conns) {
		return 0;
	}
	conns = realloc(hub->conns, room * sizeof(*conns));
	if (!conns) {
		return -1;
	}
	hub->conns = conns;
	polls = realloc(hub->polls, (room + 2) * sizeof(*polls));
	if (!polls) {
		return -1;
	}
	hub->polls = polls;
	hub->max_conns = room;
	return 0;
}

/* Takes the socket over. */
static void hub_admit(struct moeep_hub *hub, int fd, int64_t now)
{
	struct moeep_boot_hello hello = {.process = hub->process, .auth = moeep_boot_auth};
	struct moeep_hub_conn *conn = NULL;

	if (getrandom(hello.nonce, sizeof(hello.nonce), 0) != (ssize_t)sizeof(hello.nonce)) {
		goto err_close;
	}
	if (hub_reserve(hub)) {
		goto err_close;
	}
	conn = calloc(1, sizeof(*conn));
	if (!conn) {
		goto err_close;
	}
	moeep_socket_tune(fd);
	conn->fd = fd;
	conn->rank = -1;
	conn->accepted = now;
	conn->stage = MOEEP_HUB_HEADER;
	conn->out_last = &conn->out_first;
	memcpy(conn->nonce, hello.nonce, sizeof(conn->nonce));
	moeep_hub_send(conn, MOEEP_BOOT_HELLO, &hello, sizeof(hello), NULL);
	hub->conns[hub->num_conns++] = conn;
	return;

err_close:
	close(fd);
}

static void hub_accept(struct moeep_hub *hub, int64_t now)
{
	for (int i = 0; i < ACCEPT_TURN; i++) {
		int fd;

		if (hub->num_conns >= (size_t)hub->joined + MAX_STRANGERS) {
			if (!hub_evict(hub, now)) {
				hub->accept_pause = now + ACCEPT_PAUSE_MS;
			}
			return;
		}
		fd = accept4(hub->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd >= 0) {
			hub_admit(hub, fd, now);
			continue;
		}
		hub->starved |= errno == EMFILE || errno == ENFILE;
		switch (errno) {
		case EAGAIN:
			return;
		case EMFILE:
		case ENFILE:
		case ENOBUFS:
		case ENOMEM:
			/* The connection stays in the kernel's queue; without a pause poll() would
			   return at once for it. */
			if (!hub_evict(hub, now)) {
				hub->accept_pause = now + ACCEPT_PAUSE_MS;
			}
			return;
		default:
			/* That connection failed before it was accepted. */
			continue;
		}
	}
}

/* Strangers that have had their time; returns when the next one will have. */
static int64_t hub_expire_strangers(struct moeep_hub *hub, int64_t now)
{
	int64_t next = MOEEP_SOCKET_NO_DEADLINE;

	for (size_t i = 0; i < hub->num_conns; i++) {
		struct moeep_hub_conn *conn = hub->conns[i];
		int64_t end = conn->accepted + STRANGER_MS;

		if (conn->rank >= 0) {
			continue;
		}
		if (now >= end) {
			conn->dead = true;
		} else if (end < next) {
			next = end;
		}
	}
	return next;
}

/* Sleep until a socket is ready or the time has come. */
static void hub_poll(struct moeep_hub *hub, int64_t now, int64_t deadline)
{
	bool paused = now < hub->accept_pause;

	if (paused) {
		deadline = moeep_socket_earlier(deadline, hub->accept_pause);
	}
	hub->polls[0] = (struct pollfd){.fd = hub->event_fd, .events = POLLIN};
	hub->polls[1] = (struct pollfd){.fd = paused ? -1 : hub->listen_fd, .events = POLLIN};
	for (size_t i = 0; i < hub->num_conns; i++) {
		const struct moeep_hub_conn *conn = hub->conns[i];
		short events = conn->draining ? 0 : POLLIN;

		if (conn->out_first) {
			events |= POLLOUT;
		}
		hub->polls[i + 2] = (struct pollfd){.fd = conn->fd, .events = events};
	}
	/* If it is interrupted, nothing is marked as ready. */
	poll(hub->polls, hub->num_conns + 2, moeep_socket_poll_ms(deadline));
}

static void hub_write_all(struct moeep_hub *hub)
{
	for (size_t i = 0; i < hub->num_conns; i++) {
		if (hub->conns[i]->out_first || hub->conns[i]->draining) {
			moeep_hub_conn_write(hub->conns[i]);
		}
	}
	hub_reap(hub);
}

void moeep_hub_run(struct moeep_hub *hub)
{
	int64_t now = moeep_socket_now();

	for (;;) {
		int64_t deadline;

		deadline = moeep_socket_earlier(moeep_hub_expire(hub, now),
						hub_expire_strangers(hub, now));
		hub_write_all(hub);
		/* Pairs with the release in moeep_hub_close(): closing_deadline is set. */
		if (atomic_load_explicit(&hub->closing, memory_order_acquire)) {
			if (hub->here == 0 || now >= hub->closing_deadline) {
				break;
			}
			deadline = moeep_socket_earlier(deadline, hub->closing_deadline);
		}
		hub_poll(hub, now, deadline);
		now = moeep_socket_now();
		if (hub->polls[0].revents) {
			uint64_t wakeups;

			/* Non-blocking; the number does not matter. */
			if (read(hub->event_fd, &wakeups, sizeof(wakeups)) < 0) {
				wakeups = 0;
			}
		}
		for (size_t i = 0; i < hub->num_conns; i++) {
			if (hub->polls[i + 2].revents) {
				moeep_hub_conn_read(hub, hub->conns[i]);
			}
		}
		hub_reap(hub);
		if (hub->polls[1].revents) {
			hub_accept(hub, now);
		}
	}
	moeep_hub_dismiss(hub);
	hub_write_all(hub);
}

int moeep_hub_prepare(struct moeep_hub *hub)
{
	if (hub_reserve(hub)) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a rendezvous");
	}
	return MOEEP_OK;
}

void moeep_hub_close(struct moeep_hub *hub, int64_t deadline)
{
	uint64_t one = 1;

	hub->closing_deadline = deadline;
	/* Pairs with the acquire in moeep_hub_run(). */
	atomic_store_explicit(&hub->closing, true, memory_order_release);
	while (write(hub->event_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
		/* Again: the hub may be asleep without a limit. */
	}
}

void moeep_hub_release(struct moeep_hub *hub)
{
	for (size_t i = 0; i < hub->num_conns; i++) {
		moeep_hub_conn_free(hub->conns[i]);
	}
	free(hub->conns);
	free(hub->polls);
	moeep_hub_blob_put(hub->round_blob);
	free(hub->ranks);
}
