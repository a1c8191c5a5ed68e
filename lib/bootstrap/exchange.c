/* SPDX-License-Identifier: MIT */
/* bootstrap/exchange.c - the rules of a rendezvous: who joins, what is gathered, who has failed. */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <moeep/moeep.h>

#include "bootstrap/hub.h"
#include "bootstrap/proof.h"
#include "bootstrap/socket.h"
#include "core/rank_list.h"

static void failure_set(struct moeep_boot_failure *failure, uint64_t round, int result, int lost,
			const char *format, va_list args) __attribute__((format(printf, 5, 0)));

static void failure_set(struct moeep_boot_failure *failure, uint64_t round, int result, int lost,
			const char *format, va_list args)
{
	memset(failure, 0, sizeof(*failure));
	failure->round = round;
	failure->result = result;
	failure->lost = lost;
	vsnprintf(failure->text, sizeof(failure->text), format, args);
}

static void send_to_all(struct moeep_hub *hub, int type, const void *body, size_t body_bytes,
			struct moeep_hub_blob *blob)
{
	for (int rank = 0; rank < hub->num_ranks; rank++) {
		if (hub->ranks[rank].presence == MOEEP_HUB_HERE) {
			moeep_hub_send(hub->ranks[rank].conn, type, body, body_bytes, blob);
		}
	}
}

static void round_close(struct moeep_hub *hub)
{
	moeep_hub_blob_put(hub->round_blob);
	hub->round_blob = NULL;
	hub->round_open = false;
	hub->round_in = 0;
	for (int rank = 0; rank < hub->num_ranks; rank++) {
		struct moeep_hub_conn *conn = hub->ranks[rank].conn;

		hub->ranks[rank].gathered = false;
		/* Bytes that are still on their way have lost their place. */
		if (conn) {
			conn->blob_into = NULL;
		}
	}
}

/* hub->failure says why. */
static void group_failed(struct moeep_hub *hub)
{
	hub->failed = true;
	round_close(hub);
	send_to_all(hub, MOEEP_BOOT_FAILURE, &hub->failure, sizeof(hub->failure), NULL);
}

/* The group cannot go on. Only the first cause is kept: what follows is usually its consequence. */
static void group_fail(struct moeep_hub *hub, int result, int lost, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static void group_fail(struct moeep_hub *hub, int result, int lost, const char *format, ...)
{
	va_list args;

	if (hub->failed) {
		return;
	}
	va_start(args, format);
	failure_set(&hub->failure, 0, result, lost, format, args);
	va_end(args);
	group_failed(hub);
}

/* One that wants to join is told why not. */
static void join_refuse(struct moeep_hub_conn *conn, int result, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void join_refuse(struct moeep_hub_conn *conn, int result, const char *format, ...)
{
	struct moeep_boot_failure failure;
	va_list args;

	va_start(args, format);
	failure_set(&failure, 0, result, -1, format, args);
	va_end(args);
	moeep_hub_send(conn, MOEEP_BOOT_FAILURE, &failure, sizeof(failure), NULL);
	conn->draining = true;
}

/* Of the hub that is the context. */
static bool is_absent(const void *hub, int rank)
{
	return ((const struct moeep_hub *)hub)->ranks[rank].presence == MOEEP_HUB_ABSENT;
}

static bool is_here(const void *hub, int rank)
{
	return ((const struct moeep_hub *)hub)->ranks[rank].presence == MOEEP_HUB_HERE;
}

static bool is_gone(const void *hub, int rank)
{
	return ((const struct moeep_hub *)hub)->ranks[rank].presence == MOEEP_HUB_GONE;
}

static bool is_not_gathered(const void *hub, int rank)
{
	return !((const struct moeep_hub *)hub)->ranks[rank].gathered;
}

/* The lowest rank in the hub's process: if the hub's connections end without a word, it is lost. */
static void host_update(struct moeep_hub *hub, bool announce)
{
	struct moeep_boot_joined joined = {.host_rank = -1, .num_ranks = hub->num_ranks};

	for (int rank = hub->num_ranks - 1; rank >= 0; rank--) {
		if (hub->ranks[rank].presence == MOEEP_HUB_HERE && hub->ranks[rank].hosts) {
			joined.host_rank = rank;
		}
	}
	if (joined.host_rank == hub->host_rank && !announce) {
		return;
	}
	hub->host_rank = joined.host_rank;
	send_to_all(hub, MOEEP_BOOT_JOINED, &joined, sizeof(joined), NULL);
}

/* The first one to come decides how many there are. */
static bool group_begin(struct moeep_hub *hub, int num_ranks)
{
	hub->ranks = calloc((size_t)num_ranks, sizeof(*hub->ranks));
	if (!hub->ranks) {
		return false;
	}
	hub->num_ranks = num_ranks;
	hub->host_rank = -1;
	hub->join_deadline = MOEEP_SOCKET_NO_DEADLINE;
	hub->round = 1;
	return true;
}

void moeep_hub_join(struct moeep_hub *hub, struct moeep_hub_conn *conn)
{
	const struct moeep_boot_join *join = &conn->body.join;
	struct moeep_boot_welcome welcome;
	struct moeep_hub_rank *rank;

	if (join->auth != moeep_boot_auth || !moeep_boot_proved(hub->secret, MOEEP_BOOT_PROVER_RANK,
								conn->nonce, join, join->proof)) {
		/* It gets no answer to learn from. */
		conn->dead = true;
		return;
	}
	if (join->num_ranks < 1 || join->num_ranks > MOEEP_BOOT_MAX_RANKS) {
		join_refuse(conn, MOEEP_ERR_RENDEZVOUS, "num_ranks is %d; 1 to %d can meet",
			    join->num_ranks, MOEEP_BOOT_MAX_RANKS);
		return;
	}
	if (hub->ranks && join->num_ranks != hub->num_ranks) {
		join_refuse(conn, MOEEP_ERR_MISMATCH,
			    "num_ranks is %d, but that of the ranks that joined before is %d",
			    join->num_ranks, hub->num_ranks);
		return;
	}
	if (join->rank < 0 || join->rank >= join->num_ranks) {
		join_refuse(conn, MOEEP_ERR_RENDEZVOUS, "rank is %d, but num_ranks is %d",
			    join->rank, join->num_ranks);
		return;
	}
	if (hub->failed) {
		moeep_hub_send(conn, MOEEP_BOOT_FAILURE, &hub->failure, sizeof(hub->failure), NULL);
		conn->draining = true;
		return;
	}
	if (hub->ranks && hub->ranks[join->rank].presence != MOEEP_HUB_ABSENT) {
		join_refuse(conn, MOEEP_ERR_RENDEZVOUS, "rank %d has joined already", join->rank);
		return;
	}
	if (!hub->ranks && !group_begin(hub, join->num_ranks)) {
		join_refuse(conn, MOEEP_ERR_NOMEM, "the rendezvous has no memory for %d ranks",
			    join->num_ranks);
		return;
	}
	rank = &hub->ranks[join->rank];
	rank->presence = MOEEP_HUB_HERE;
	rank->hosts = join->hosts == 1;
	rank->conn = conn;
	conn->rank = join->rank;
	moeep_boot_prove(hub->secret, MOEEP_BOOT_PROVER_HUB, conn->nonce, join, welcome.proof);
	moeep_hub_send(conn, MOEEP_BOOT_WELCOME, &welcome, sizeof(welcome), NULL);
	hub->joined++;
	hub->here++;
	hub->join_deadline =
		moeep_socket_earlier(hub->join_deadline, moeep_socket_deadline(join->timeout_ms));
	if (hub->joined == hub->num_ranks) {
		host_update(hub, true);
	}
}

static void round_begin(struct moeep_hub *hub, const struct moeep_boot_gather *gather, int rank)
{
	size_t bytes = gather->bytes * (size_t)hub->num_ranks;

	/* Reserved, not touched: the system gives memory as the bytes come in. */
	hub->round_blob = malloc(sizeof(*hub->round_blob) + bytes);
	if (!hub->round_blob) {
		group_fail(hub, MOEEP_ERR_NOMEM, -1,
			   "the rendezvous has no memory to gather %zu bytes", bytes);
		return;
	}
	hub->round_blob->refs = 1;
	hub->round_blob->bytes = bytes;
	hub->round_open = true;
	hub->round_first = rank;
	hub->round_bytes = gather->bytes;
	hub->round_other = -1;
	hub->round_in = 0;
	hub->round_deadline = MOEEP_SOCKET_NO_DEADLINE;
}

bool moeep_hub_gather(struct moeep_hub *hub, struct moeep_hub_conn *conn)
{
	const struct moeep_boot_gather *gather = &conn->body.gather;
	char text[160];

	conn->blob_into = NULL;
	if (hub->failed) {
		/* The rank was told already. */
		return true;
	}
	if (hub->joined < hub->num_ranks || hub->ranks[conn->rank].gathered) {
		return false;
	}
	if (gather->round != hub->round) {
		group_fail(hub, MOEEP_ERR_MISMATCH, -1,
			   "rank %d is in its exchange %llu, the others are in %llu", conn->rank,
			   (unsigned long long)gather->round, (unsigned long long)hub->round);
		return true;
	}
	if (hub->departed) {
		(void)moeep_list_ranks(hub->num_ranks, is_gone, hub, text, sizeof(text));
		group_fail(hub, MOEEP_ERR_PEER_LOST, -1,
			   "rank %d began exchange %llu, but %s had left", conn->rank,
			   (unsigned long long)hub->round, text);
		return true;
	}
	if (!hub->round_open) {
		round_begin(hub, gather, conn->rank);
		if (hub->failed) {
			return true;
		}
	}
	hub->round_deadline = moeep_socket_earlier(hub->round_deadline,
						   moeep_socket_deadline(gather->timeout_ms));
	if (gather->bytes == hub->round_bytes) {
		conn->blob_into =
			hub->round_blob->data + (size_t)conn->rank * (size_t)gather->bytes;
	} else if (hub->round_other < 0) {
		hub->round_other = conn->rank;
		hub->round_other_bytes = gather->bytes;
	}
	return true;
}

static void round_mismatch(struct moeep_hub *hub)
{
	struct moeep_boot_failure failure = {
		.round = hub->round,
		.result = MOEEP_ERR_MISMATCH,
		.lost = -1,
	};

	snprintf(failure.text, sizeof(failure.text),
		 "rank %d gives %llu bytes to exchange %llu, rank %d %llu", hub->round_first,
		 (unsigned long long)hub->round_bytes, (unsigned long long)hub->round,
		 hub->round_other, (unsigned long long)hub->round_other_bytes);
	send_to_all(hub, MOEEP_BOOT_FAILURE, &failure, sizeof(failure), NULL);
}

void moeep_hub_gathered(struct moeep_hub *hub, struct moeep_hub_conn *conn)
{
	struct moeep_boot_gathered gathered = {.round = hub->round, .bytes = hub->round_bytes};

	if (hub->failed) {
		return;
	}
	conn->blob_into = NULL;
	hub->ranks[conn->rank].gathered = true;
	hub->round_in++;
	if (hub->round_in < hub->num_ranks) {
		return;
	}
	if (hub->round_other >= 0) {
		round_mismatch(hub);
	} else {
		send_to_all(hub, MOEEP_BOOT_GATHERED, &gathered, sizeof(gathered), hub->round_blob);
	}
	round_close(hub);
	hub->round++;
}

static void rank_gone(struct moeep_hub *hub, int rank)
{
	hub->ranks[rank].presence = MOEEP_HUB_GONE;
	hub->ranks[rank].conn = NULL;
	hub->here--;
}

void moeep_hub_leave(struct moeep_hub *hub, struct moeep_hub_conn *conn)
{
	int rank = conn->rank;

	rank_gone(hub, rank);
	hub->departed = true;
	if (hub->joined < hub->num_ranks) {
		group_fail(hub, MOEEP_ERR_PEER_LOST, -1, "rank %d left before all ranks had joined",
			   rank);
	} else if (hub->round_open) {
		group_fail(hub, MOEEP_ERR_PEER_LOST, -1, "rank %d left during exchange %llu", rank,
			   (unsigned long long)hub->round);
	}
	if (rank == hub->host_rank) {
		host_update(hub, false);
	}
}

void moeep_hub_told(struct moeep_hub *hub, const struct moeep_hub_conn *conn)
{
	if (hub->failed) {
		return;
	}
	hub->failure = conn->body.told;
	hub->failure.round = 0;
	hub->failure.lost = -2 - conn->rank;
	hub->failure.text[sizeof(hub->failure.text) - 1] = '\0';
	if (hub->failure.result >= 0) {
		hub->failure.result = MOEEP_ERR_ABORTED;
	}
	group_failed(hub);
}

void moeep_hub_lose(struct moeep_hub *hub, int rank)
{
	rank_gone(hub, rank);
	group_fail(hub, MOEEP_ERR_PEER_LOST, rank,
		   "rank %d is lost: its connection ended without a good-bye", rank);
}

static int first_not_gathered(const struct moeep_hub *hub)
{
	int rank = 0;

	while (rank < hub->num_ranks - 1 && hub->ranks[rank].gathered) {
		rank++;
	}
	return rank;
}

int64_t moeep_hub_expire(struct moeep_hub *hub, int64_t now)
{
	char text[160];

	if (hub->failed || !hub->ranks) {
		return MOEEP_SOCKET_NO_DEADLINE;
	}
	if (hub->joined < hub->num_ranks) {
		if (now < hub->join_deadline) {
			return hub->join_deadline;
		}
		(void)moeep_list_ranks(hub->num_ranks, is_absent, hub, text, sizeof(text));
		group_fail(hub, MOEEP_ERR_TIMEOUT, -1, "joining: waiting for %s of %d%s", text,
			   hub->num_ranks,
			   hub->starved
				   ? " (the host of the rendezvous ran out of file descriptors)"
				   : "");
	} else if (hub->round_open) {
		if (now < hub->round_deadline) {
			return hub->round_deadline;
		}
		(void)moeep_list_ranks(hub->num_ranks, is_not_gathered, hub, text, sizeof(text));
		group_fail(hub, MOEEP_ERR_TIMEOUT, first_not_gathered(hub),
			   "exchange %llu: waiting for %s of %d", (unsigned long long)hub->round,
			   text, hub->num_ranks);
	}
	return MOEEP_SOCKET_NO_DEADLINE;
}

void moeep_hub_dismiss(struct moeep_hub *hub)
{
	if (hub->here > 0) {
		(void)moeep_list_ranks(hub->num_ranks, is_here, hub, hub->remaining,
				       sizeof(hub->remaining));
	}
	group_fail(hub, MOEEP_ERR_PEER_LOST, -1, "the rendezvous was destroyed");
}
