/* SPDX-License-Identifier: MIT */
/*
 * bootstrap/conn.c - one connection of a rendezvous: its messages on their way out, and what is
 * coming in. No connection can hold up another: every socket is non-blocking, and what it is in the
 * middle of is kept in its moeep_hub_conn.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bootstrap/hub.h"
#include "bootstrap/socket.h"

/* Most bytes read from a connection before it is another's turn. */
#define READ_TURN ((size_t)1 << 20)

void moeep_hub_blob_put(struct moeep_hub_blob *blob)
{
	if (blob && --blob->refs == 0) {
		free(blob);
	}
}

void moeep_hub_send(struct moeep_hub_conn *conn, int type, const void *body, size_t body_bytes,
		    struct moeep_hub_blob *blob)
{
	struct moeep_hub_message *message;
	struct moeep_boot_header header = {
		.magic = MOEEP_BOOT_MAGIC,
		.version = MOEEP_BOOT_VERSION,
		.type = (uint16_t)type,
		.length = body_bytes + (blob ? blob->bytes : 0),
	};

	if (conn->dead || conn->draining) {
		return;
	}
	message = malloc(sizeof(*message));
	if (!message) {
		conn->dead = true;
		return;
	}
	memcpy(message->head, &header, sizeof(header));
	memcpy(message->head + sizeof(header), body, body_bytes);
	message->head_bytes = sizeof(header) + body_bytes;
	message->done = 0;
	message->next = NULL;
	message->blob = blob;
	if (blob) {
		blob->refs++;
	}
	*conn->out_last = message;
	conn->out_last = &message->next;
}

static void message_pop(struct moeep_hub_conn *conn)
{
	struct moeep_hub_message *message = conn->out_first;

	conn->out_first = message->next;
	if (!conn->out_first) {
		conn->out_last = &conn->out_first;
	}
	moeep_hub_blob_put(message->blob);
	free(message);
}

void moeep_hub_conn_write(struct moeep_hub_conn *conn)
{
	while (conn->out_first) {
		struct moeep_hub_message *message = conn->out_first;
		size_t blob_done;
		int rc;

		if (message->done < message->head_bytes) {
			rc = moeep_socket_send(conn->fd, message->head, message->head_bytes,
					       &message->done, 0);
			if (rc) {
				goto out;
			}
		}
		if (message->blob) {
			blob_done = message->done - message->head_bytes;
			rc = moeep_socket_send(conn->fd, message->blob->data, message->blob->bytes,
					       &blob_done, 0);
			message->done = message->head_bytes + blob_done;
			if (rc) {
				goto out;
			}
		}
		message_pop(conn);
		continue;
	out:
		if (rc == MOEEP_SOCKET_ENDED) {
			conn->dead = true;
		}
		return;
	}
	if (conn->draining) {
		conn->dead = true;
	}
}

/* Bytes of the structure that follows a header, or -1 for a header that must not come now. */
static int body_bytes(const struct moeep_hub_conn *conn)
{
	const struct moeep_boot_header *header = &conn->header;

	if (header->magic != MOEEP_BOOT_MAGIC || header->version != MOEEP_BOOT_VERSION) {
		return -1;
	}
	if (conn->rank < 0) {
		if (header->type != MOEEP_BOOT_JOIN ||
		    header->length != sizeof(struct moeep_boot_join)) {
			return -1;
		}
		return sizeof(struct moeep_boot_join);
	}
	if (header->type == MOEEP_BOOT_BYE && header->length == 0) {
		return 0;
	}
	if (header->type == MOEEP_BOOT_TELL &&
	    header->length == sizeof(struct moeep_boot_failure)) {
		return sizeof(struct moeep_boot_failure);
	}
	if (header->type == MOEEP_BOOT_GATHER &&
	    header->length >= sizeof(struct moeep_boot_gather) &&
	    header->length <= sizeof(struct moeep_boot_gather) + MOEEP_BOOT_MAX_BYTES) {
		return sizeof(struct moeep_boot_gather);
	}
	return -1;
}

static void stage_begin(struct moeep_hub_conn *conn, enum moeep_hub_stage stage)
{
	conn->stage = stage;
	conn->done = 0;
}

/* The bytes of a stage are complete. */
static void stage_end(struct moeep_hub *hub, struct moeep_hub_conn *conn)
{
	switch (conn->stage) {
	case MOEEP_HUB_HEADER:
		if (body_bytes(conn) < 0) {
			conn->dead = true;
			return;
		}
		stage_begin(conn, MOEEP_HUB_BODY);
		return;
	case MOEEP_HUB_BODY:
		if (conn->header.type == MOEEP_BOOT_BYE) {
			moeep_hub_leave(hub, conn);
			conn->dead = true;
			return;
		}
		if (conn->header.type == MOEEP_BOOT_TELL) {
			stage_begin(conn, MOEEP_HUB_HEADER);
			moeep_hub_told(hub, conn);
			return;
		}
		if (conn->header.type == MOEEP_BOOT_JOIN) {
			stage_begin(conn, MOEEP_HUB_HEADER);
			moeep_hub_join(hub, conn);
			return;
		}
		if (conn->header.length - sizeof(struct moeep_boot_gather) !=
			    conn->body.gather.bytes ||
		    !moeep_hub_gather(hub, conn)) {
			conn->dead = true;
			return;
		}
		stage_begin(conn, MOEEP_HUB_BLOB);
		return;
	case MOEEP_HUB_BLOB:
		stage_begin(conn, MOEEP_HUB_HEADER);
		moeep_hub_gathered(hub, conn);
		return;
	}
}

/* Receive towards the end of the stage, at most `limit` bytes. */
static int stage_receive(struct moeep_hub_conn *conn, size_t limit, size_t *need)
{
	unsigned char scratch[16384];
	unsigned char *into = NULL;
	size_t skipped = 0;
	size_t want;
	int rc;

	switch (conn->stage) {
	case MOEEP_HUB_HEADER:
		into = (unsigned char *)&conn->header;
		*need = sizeof(conn->header);
		break;
	case MOEEP_HUB_BODY:
		into = (unsigned char *)&conn->body;
		*need = (size_t)body_bytes(conn);
		break;
	case MOEEP_HUB_BLOB:
		into = conn->blob_into;
		*need = conn->body.gather.bytes;
		break;
	}
	want = *need - conn->done;
	if (want > limit) {
		want = limit;
	}
	if (into) {
		return moeep_socket_recv(conn->fd, into, conn->done + want, &conn->done, 0);
	}
	if (want > sizeof(scratch)) {
		want = sizeof(scratch);
	}
	rc = moeep_socket_recv(conn->fd, scratch, want, &skipped, 0);
	conn->done += skipped;
	return rc;
}

void moeep_hub_conn_read(struct moeep_hub *hub, struct moeep_hub_conn *conn)
{
	size_t turn = 0;

	while (turn < READ_TURN && !conn->dead && !conn->draining) {
		size_t before = conn->done;
		size_t need;
		int rc = stage_receive(conn, READ_TURN - turn, &need);

		turn += conn->done - before;
		if (rc == MOEEP_SOCKET_ENDED) {
			conn->dead = true;
			return;
		}
		if (rc == MOEEP_SOCKET_LATE) {
			return;
		}
		if (conn->done == need) {
			stage_end(hub, conn);
		}
	}
}

void moeep_hub_conn_free(struct moeep_hub_conn *conn)
{
	while (conn->out_first) {
		message_pop(conn);
	}
	/* A process that was forked meanwhile has the socket as well; close() alone ends nothing.
	 */
	shutdown(conn->fd, SHUT_RDWR);
	close(conn->fd);
	free(conn);
}
