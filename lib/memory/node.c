/* SPDX-License-Identifier: MIT */
/* memory/node.c - file descriptors between the processes of one host. */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bootstrap/boot.h"
#include "core/error.h"
#include "core/wait.h"
#include "memory/node.h"

#define NODE_MAGIC 0x6d6f6565u
/* Descriptors in one message; the kernel's limit is 253. */
#define BATCH	  64
#define NAME_SIZE 32
/* A wait looks this often whether a rank died that has not connected yet. */
#define SLICE_MS 50

struct moeep_node {
	struct moeep_boot *boot;
	int self;
	int count;
	int listener;		  /* leader */
	int *sockets;		  /* leader: [count], -1 for itself; others: [1], to the leader */
	int *ranks;		  /* [count] */
	char (*names)[NAME_SIZE]; /* [count] */
};

/* A member shows the name that it told the group over the bootstrap, and nobody else. */
struct hello {
	uint32_t magic;
	int32_t member;
	char name[NAME_SIZE];
};
static_assert(sizeof(struct hello) == 40, "exchanged between processes");

struct batch {
	uint32_t first;
	uint32_t count;
	uint8_t present[BATCH]; /* 1: the next descriptor of the message is this member's */
};
static_assert(sizeof(struct batch) == 72, "exchanged between processes");

static void node_address(const char *name, struct sockaddr_un *address, socklen_t *length)
{
	size_t n = strnlen(name, NAME_SIZE);

	memset(address, 0, sizeof(*address));
	address->sun_family = AF_UNIX;
	/* sun_path[0] = 0: the abstract name space, which vanishes with the socket. */
	memcpy(address->sun_path + 1, name, n);
	*length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + n);
}

int moeep_node_listen(const struct moeep_node_member *members, int count, int self,
		      struct moeep_boot *boot, struct moeep_node **node_out)
{
	struct moeep_node *node = calloc(1, sizeof(*node));
	int num_sockets = self == 0 ? count : 1;
	struct sockaddr_un address;
	socklen_t length;
	int rc;

	if (!node) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for the host's exchange");
	}
	node->boot = boot;
	node->self = self;
	node->count = count;
	node->listener = -1;
	node->sockets = malloc((size_t)num_sockets * sizeof(*node->sockets));
	node->ranks = calloc((size_t)count, sizeof(*node->ranks));
	node->names = calloc((size_t)count, sizeof(*node->names));
	/* Before anything that may fail: what is here is closed. */
	for (int i = 0; node->sockets && i < num_sockets; i++) {
		node->sockets[i] = -1;
	}
	if (!node->sockets || !node->ranks || !node->names) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for the host's exchange of %d ranks",
				count);
		goto close_node;
	}
	for (int i = 0; i < count; i++) {
		node->ranks[i] = members[i].rank;
		snprintf(node->names[i], NAME_SIZE, "%s", members[i].socket_name);
	}
	if (self == 0) {
		node->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		node_address(node->names[0], &address, &length);
		if (node->listener < 0 ||
		    bind(node->listener, (struct sockaddr *)&address, length) != 0 ||
		    listen(node->listener, count + 64) != 0) {
			rc = moeep_fail_errno("opening the host's Unix socket");
			goto close_node;
		}
	}
	*node_out = node;
	return MOEEP_OK;

close_node:
	if (!node->sockets) {
		node->self = -1;
	}
	moeep_node_close(node);
	return rc;
}

void moeep_node_close(struct moeep_node *node)
{
	if (!node) {
		return;
	}
	for (int i = 0; node->sockets && i < (node->self == 0 ? node->count : 1); i++) {
		if (node->sockets[i] >= 0) {
			close(node->sockets[i]);
		}
	}
	if (node->listener >= 0) {
		close(node->listener);
	}
	free(node->sockets);
	free(node->ranks);
	free(node->names);
	free(node);
}

static uint64_t deadline_of(uint32_t timeout_ms)
{
	return timeout_ms == MOEEP_TIMEOUT_NONE ? UINT64_MAX
						: moeep_now_ns() + (uint64_t)timeout_ms * 1000000u;
}

/* Wait for input or room on a socket; `rank` is whom to name. */
static int node_poll(const struct moeep_node *node, int fd, short events, uint64_t deadline,
		     int rank)
{
	for (;;) {
		struct pollfd p = {.fd = fd, .events = events};
		uint64_t now = moeep_now_ns();
		int ms = SLICE_MS;
		int lost;
		int n;

		if (deadline <= now) {
			ms = 0;
		} else if ((deadline - now) / 1000000u < SLICE_MS) {
			ms = (int)((deadline - now) / 1000000u) + 1;
		}
		n = poll(&p, 1, ms);
		if (n > 0) {
			return MOEEP_OK;
		}
		if (n < 0 && errno != EINTR) {
			return moeep_fail_errno("poll on the host's Unix socket");
		}
		lost = moeep_boot_lost(node->boot);
		if (lost >= 0) {
			return moeep_fail(MOEEP_ERR_PEER_LOST, "rank %d is lost", lost);
		}
		if (n == 0 && deadline <= now) {
			return moeep_fail(
				MOEEP_ERR_TIMEOUT,
				"rank %d did not answer on the host's Unix socket in time", rank);
		}
	}
}

static int node_send(const struct moeep_node *node, int fd, const void *data, size_t bytes,
		     const int *fds, int num_fds, uint64_t deadline, int rank)
{
	union {
		char space[CMSG_SPACE(BATCH * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = {.iov_base = (void *)data, .iov_len = bytes};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t n;

	if (num_fds > 0) {
		struct cmsghdr *header;

		memset(&control, 0, sizeof(control));
		message.msg_control = control.space;
		message.msg_controllen = CMSG_SPACE((size_t)num_fds * sizeof(int));
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN((size_t)num_fds * sizeof(int));
		memcpy(CMSG_DATA(header), fds, (size_t)num_fds * sizeof(int));
	}
	do {
		int rc = node_poll(node, fd, POLLOUT, deadline, rank);

		if (rc != MOEEP_OK) {
			return rc;
		}
		n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	if (n != (ssize_t)bytes) {
		return errno == EPIPE || errno == ECONNRESET
			       ? moeep_fail(MOEEP_ERR_PEER_LOST,
					    "rank %d closed the host's Unix socket", rank)
			       : moeep_fail_errno("sending to rank %d on the host's Unix socket",
						  rank);
	}
	return MOEEP_OK;
}

static int node_recv(const struct moeep_node *node, int fd, void *data, size_t bytes, int *fds,
		     int *num_fds, uint64_t deadline, int rank)
{
	union {
		char space[CMSG_SPACE(BATCH * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = {.iov_base = data, .iov_len = bytes};
	struct msghdr message = {.msg_iov = &part,
				 .msg_iovlen = 1,
				 .msg_control = control.space,
				 .msg_controllen = sizeof(control.space)};
	struct cmsghdr *header;
	ssize_t n;

	*num_fds = 0;
	do {
		int rc = node_poll(node, fd, POLLIN, deadline, rank);

		if (rc != MOEEP_OK) {
			return rc;
		}
		n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && (errno == EINTR || errno == EAGAIN));
	if (n < 0 && errno == ECONNRESET) {
		return moeep_fail(MOEEP_ERR_PEER_LOST, "rank %d closed the host's Unix socket",
				  rank);
	}
	if (n < 0) {
		return moeep_fail_errno("receiving from rank %d on the host's Unix socket", rank);
	}
	header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
		*num_fds = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(header), (size_t)*num_fds * sizeof(int));
	}
	if (n == 0) {
		return moeep_fail(MOEEP_ERR_PEER_LOST, "rank %d closed the host's Unix socket",
				  rank);
	}
	if (n != (ssize_t)bytes || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		for (int i = 0; i < *num_fds; i++) {
			close(fds[i]);
		}
		*num_fds = 0;
		return moeep_fail(
			MOEEP_ERR_SYSTEM,
			"message of rank %d is %zd bytes instead of %zu, or its descriptors do "
			"not fit the limit of open files (RLIMIT_NOFILE)",
			rank, n, bytes);
	}
	return MOEEP_OK;
}

/* A connection of a stranger is dropped, so that it cannot end the group. */
static int node_accept(struct moeep_node *node, uint64_t deadline)
{
	int joined = 1;

	while (joined < node->count) {
		struct hello hello = {0};
		int ignored[BATCH];
		int num_ignored = 0;
		int fd;
		int missing = 1;
		int rc;

		while (missing < node->count && node->sockets[missing] >= 0) {
			missing++;
		}
		rc = node_poll(node, node->listener, POLLIN, deadline, node->ranks[missing]);
		if (rc != MOEEP_OK) {
			return rc;
		}
		fd = accept4(node->listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED) {
				continue;
			}
			return moeep_fail_errno("accept on the host's Unix socket");
		}
		if (node_recv(node, fd, &hello, sizeof(hello), ignored, &num_ignored, deadline,
			      -1) == MOEEP_OK &&
		    hello.magic == NODE_MAGIC && hello.member > 0 && hello.member < node->count &&
		    node->sockets[hello.member] < 0 &&
		    memcmp(hello.name, node->names[hello.member], NAME_SIZE) == 0) {
			node->sockets[hello.member] = fd;
			joined++;
		} else {
			close(fd);
		}
		for (int i = 0; i < num_ignored; i++) {
			close(ignored[i]);
		}
	}
	return MOEEP_OK;
}

int moeep_node_join(struct moeep_node *node, uint32_t timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);
	struct hello hello = {.magic = NODE_MAGIC, .member = node->self};
	struct sockaddr_un address;
	socklen_t length;
	int rc;

	if (node->self == 0) {
		return node_accept(node, deadline);
	}
	memcpy(hello.name, node->names[node->self], NAME_SIZE);
	node->sockets[0] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (node->sockets[0] < 0) {
		return moeep_fail_errno("socket");
	}
	node_address(node->names[0], &address, &length);
	do {
		rc = connect(node->sockets[0], (struct sockaddr *)&address, length);
	} while (rc != 0 && (errno == EINTR || errno == EAGAIN) && moeep_now_ns() < deadline);
	if (rc != 0) {
		return errno == ECONNREFUSED
			       ? moeep_fail(MOEEP_ERR_UNSUPPORTED,
					    "ranks %d and %d run on one machine but not in one "
					    "network "
					    "namespace, so they cannot pass memory to each other",
					    node->ranks[0], node->ranks[node->self])
			       : moeep_fail_errno("connecting to rank %d on the host's Unix socket",
						  node->ranks[0]);
	}
	return node_send(node, node->sockets[0], &hello, sizeof(hello), NULL, 0, deadline,
			 node->ranks[0]);
}

static void close_all(int *fds, int count)
{
	for (int i = 0; i < count; i++) {
		if (fds[i] >= 0) {
			close(fds[i]);
			fds[i] = -1;
		}
	}
}

static void batch_fill(struct batch *batch, const int *fds, int first, int count, int *present_fds,
		       int *num_present)
{
	memset(batch, 0, sizeof(*batch));
	batch->first = (uint32_t)first;
	batch->count = (uint32_t)(count - first < BATCH ? count - first : BATCH);
	*num_present = 0;
	for (uint32_t i = 0; i < batch->count; i++) {
		if (fds[first + (int)i] >= 0) {
			batch->present[i] = 1;
			present_fds[(*num_present)++] = fds[first + (int)i];
		}
	}
}

static int batch_take(const struct batch *batch, int first, int count, const int *present_fds,
		      int num_present, int *fds)
{
	int taken = 0;

	if (batch->first != (uint32_t)first || batch->count > BATCH ||
	    first + (int)batch->count > count) {
		return moeep_fail(MOEEP_ERR_SYSTEM,
				  "descriptors out of order on the host's Unix socket");
	}
	for (uint32_t i = 0; i < batch->count; i++) {
		if (batch->present[i] && taken < num_present) {
			fds[first + (int)i] = present_fds[taken++];
		}
	}
	return MOEEP_OK;
}

/* Leader: one descriptor of each, then all to each. */
static int leader_exchange(struct moeep_node *node, int fd, int *fds, uint64_t deadline)
{
	struct batch batch;
	int present[BATCH];
	int num;
	int rc = MOEEP_OK;

	fds[0] = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
	for (int i = 1; i < node->count && rc == MOEEP_OK; i++) {
		rc = node_recv(node, node->sockets[i], &batch, sizeof(batch), present, &num,
			       deadline, node->ranks[i]);
		if (rc == MOEEP_OK) {
			fds[i] = num > 0 ? present[0] : -1;
		}
	}
	for (int i = 1; i < node->count && rc == MOEEP_OK; i++) {
		for (int first = 0; first < node->count && rc == MOEEP_OK; first += BATCH) {
			batch_fill(&batch, fds, first, node->count, present, &num);
			rc = node_send(node, node->sockets[i], &batch, sizeof(batch), present, num,
				       deadline, node->ranks[i]);
		}
	}
	return rc;
}

static int member_exchange(struct moeep_node *node, int fd, int *fds, uint64_t deadline)
{
	struct batch batch;
	int present[BATCH];
	int num;
	int rc;

	batch_fill(&batch, &fd, 0, 1, present, &num);
	rc = node_send(node, node->sockets[0], &batch, sizeof(batch), present, num, deadline,
		       node->ranks[0]);
	for (int first = 0; first < node->count && rc == MOEEP_OK; first += BATCH) {
		rc = node_recv(node, node->sockets[0], &batch, sizeof(batch), present, &num,
			       deadline, node->ranks[0]);
		if (rc == MOEEP_OK) {
			rc = batch_take(&batch, first, node->count, present, num, fds);
		}
	}
	return rc;
}

int moeep_node_exchange(struct moeep_node *node, int fd, int *fds, uint32_t timeout_ms)
{
	uint64_t deadline = deadline_of(timeout_ms);
	int rc;

	for (int i = 0; i < node->count; i++) {
		fds[i] = -1;
	}
	rc = node->self == 0 ? leader_exchange(node, fd, fds, deadline)
			     : member_exchange(node, fd, fds, deadline);
	if (rc != MOEEP_OK) {
		close_all(fds, node->count);
	}
	return rc;
}
