/* SPDX-License-Identifier: MIT */
/* bootstrap/socket.c - TCP with deadlines. */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bootstrap/socket.h"
#include "bootstrap/wire.h"
#include "core/error.h"

/* Thousands of ranks may connect in the same moment; the kernel cuts this to its own limit. */
#define BACKLOG 4096

/* A host that stops without a word is noticed in 10 + 4 * 5 s. */
#define KEEPALIVE_IDLE_S     10
#define KEEPALIVE_INTERVAL_S 5
#define KEEPALIVE_PROBES     4

int64_t moeep_socket_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t moeep_socket_deadline(uint32_t timeout_ms)
{
	if (timeout_ms == MOEEP_TIMEOUT_NONE) {
		return MOEEP_SOCKET_NO_DEADLINE;
	}
	return moeep_socket_now() + timeout_ms;
}

int moeep_socket_poll_ms(int64_t deadline)
{
	int64_t left;

	if (deadline == MOEEP_SOCKET_NO_DEADLINE) {
		return -1;
	}
	left = deadline - moeep_socket_now();
	if (left <= 0) {
		return 0;
	}
	/* The clock is cut to whole milliseconds: one more, or the last one would be spun away. */
	return left >= INT32_MAX ? INT32_MAX : (int)left + 1;
}

uint32_t moeep_socket_timeout_ms(int64_t deadline)
{
	int64_t left;

	if (deadline == MOEEP_SOCKET_NO_DEADLINE) {
		return MOEEP_TIMEOUT_NONE;
	}
	left = deadline - moeep_socket_now();
	if (left < 0) {
		left = 0;
	}
	return left >= MOEEP_TIMEOUT_NONE ? MOEEP_TIMEOUT_NONE - 1 : (uint32_t)left;
}

int moeep_socket_address_set(struct moeep_socket_address *address, int family,
			     const unsigned char bytes[16], uint16_t port)
{
	memset(address, 0, sizeof(*address));
	if (family == MOEEP_BOOT_IPV4) {
		address->v4.sin_family = AF_INET;
		address->v4.sin_port = htons(port);
		memcpy(&address->v4.sin_addr, bytes, 4);
		address->length = sizeof(address->v4);
		return MOEEP_OK;
	}
	if (family == MOEEP_BOOT_IPV6) {
		address->v6.sin6_family = AF_INET6;
		address->v6.sin6_port = htons(port);
		memcpy(&address->v6.sin6_addr, bytes, 16);
		address->length = sizeof(address->v6);
		return MOEEP_OK;
	}
	return moeep_fail(MOEEP_ERR_INVALID, "address family %d", family);
}

void moeep_socket_address_get(const struct moeep_socket_address *address, int *family,
			      unsigned char bytes[16], uint16_t *port)
{
	memset(bytes, 0, 16);
	if (address->any.sa_family == AF_INET) {
		*family = MOEEP_BOOT_IPV4;
		*port = ntohs(address->v4.sin_port);
		memcpy(bytes, &address->v4.sin_addr, 4);
	} else {
		*family = MOEEP_BOOT_IPV6;
		*port = ntohs(address->v6.sin6_port);
		memcpy(bytes, &address->v6.sin6_addr, 16);
	}
}

static bool is_unspecified(int family, const unsigned char bytes[16])
{
	for (int i = 0; i < (family == MOEEP_BOOT_IPV4 ? 4 : 16); i++) {
		if (bytes[i] != 0) {
			return false;
		}
	}
	return true;
}

static bool is_link_local(const unsigned char bytes[16])
{
	return bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
}

/* An address of the interface that is good on other hosts as well; IPv4 first. */
static int interface_address(const char *name, const char *text, int *family,
			     unsigned char bytes[16])
{
	struct ifaddrs *list;
	bool exists = false;
	int found = 0;

	if (getifaddrs(&list) != 0) {
		return moeep_fail_errno("getifaddrs");
	}
	for (const struct ifaddrs *entry = list; entry; entry = entry->ifa_next) {
		unsigned char v6[16];

		if (strcmp(entry->ifa_name, text) != 0) {
			continue;
		}
		exists = true;
		if (!entry->ifa_addr) {
			continue;
		}
		if (entry->ifa_addr->sa_family == AF_INET && found != MOEEP_BOOT_IPV4) {
			struct sockaddr_in v4;

			memcpy(&v4, entry->ifa_addr, sizeof(v4));
			memcpy(bytes, &v4.sin_addr, 4);
			found = MOEEP_BOOT_IPV4;
		} else if (entry->ifa_addr->sa_family == AF_INET6 && !found) {
			memcpy(v6,
			       (const char *)entry->ifa_addr +
				       offsetof(struct sockaddr_in6, sin6_addr),
			       sizeof(v6));
			if (!is_link_local(v6)) {
				memcpy(bytes, v6, sizeof(v6));
				found = MOEEP_BOOT_IPV6;
			}
		}
	}
	freeifaddrs(list);
	if (!found) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  exists ? "%s: network interface \"%s\" has no address that other "
					   "hosts can use"
					 : "%s: \"%s\" is neither a numeric address nor a network "
					   "interface of this host",
				  name, text);
	}
	*family = found;
	return MOEEP_OK;
}

int moeep_socket_address_find(const char *name, const char *text, uint16_t port,
			      struct moeep_socket_address *address)
{
	unsigned char bytes[16] = {0};
	int family = 0;
	int rc;

	if (inet_pton(AF_INET, text, bytes) == 1) {
		family = MOEEP_BOOT_IPV4;
	} else if (inet_pton(AF_INET6, text, bytes) == 1) {
		family = MOEEP_BOOT_IPV6;
	} else {
		rc = interface_address(name, text, &family, bytes);
		if (rc) {
			return rc;
		}
	}
	/* The address goes into the unique id, so it must mean the same to everybody. */
	if (is_unspecified(family, bytes)) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "%s: \"%s\" is no address that a rank could connect to", name,
				  text);
	}
	if (family == MOEEP_BOOT_IPV6 && is_link_local(bytes)) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "%s: \"%s\" is link-local; another host would need a different "
				  "scope for it",
				  name, text);
	}
	return moeep_socket_address_set(address, family, bytes, port);
}

void moeep_socket_address_text(const struct moeep_socket_address *address,
			       char text[MOEEP_SOCKET_TEXT])
{
	char host[INET6_ADDRSTRLEN] = "?";

	if (address->any.sa_family == AF_INET) {
		inet_ntop(AF_INET, &address->v4.sin_addr, host, sizeof(host));
		snprintf(text, MOEEP_SOCKET_TEXT, "%s:%u", host,
			 (unsigned)ntohs(address->v4.sin_port));
	} else {
		inet_ntop(AF_INET6, &address->v6.sin6_addr, host, sizeof(host));
		snprintf(text, MOEEP_SOCKET_TEXT, "[%s]:%u", host,
			 (unsigned)ntohs(address->v6.sin6_port));
	}
}

int moeep_socket_listen(struct moeep_socket_address *address, int *fd)
{
	char text[MOEEP_SOCKET_TEXT];
	const char *step;
	int one = 1;
	int sock;
	int rc;

	moeep_socket_address_text(address, text);
	sock = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0) {
		return moeep_fail_errno("socket for %s", text);
	}
	/* A fixed port is to be free again at once for the next run. */
	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	step = "bind to";
	if (bind(sock, &address->any, address->length) != 0) {
		goto err_close;
	}
	step = "listen on";
	if (listen(sock, BACKLOG) != 0) {
		goto err_close;
	}
	step = "getsockname of";
	if (getsockname(sock, &address->any, &address->length) != 0) {
		goto err_close;
	}
	*fd = sock;
	return MOEEP_OK;

err_close:
	rc = moeep_fail_errno("%s %s", step, text);
	close(sock);
	return rc;
}

/* Wait until the socket can go on. */
static int wait_for(int fd, short events, int64_t deadline)
{
	struct pollfd item = {.fd = fd, .events = events};

	for (;;) {
		int n = poll(&item, 1, moeep_socket_poll_ms(deadline));

		if (n > 0) {
			return MOEEP_SOCKET_DONE;
		}
		if (n < 0 && errno != EINTR) {
			return MOEEP_SOCKET_ENDED;
		}
		if (deadline != MOEEP_SOCKET_NO_DEADLINE && moeep_socket_now() >= deadline) {
			return MOEEP_SOCKET_LATE;
		}
	}
}

int moeep_socket_connect(const struct moeep_socket_address *address, int64_t deadline, int *fd)
{
	socklen_t length;
	int error;
	int sock;
	int rc;

	sock = socket(address->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0) {
		return MOEEP_SOCKET_ENDED;
	}
	if (connect(sock, &address->any, address->length) != 0) {
		rc = MOEEP_SOCKET_ENDED;
		/* An interrupted connect goes on by itself, like one in progress. */
		if (errno != EINPROGRESS && errno != EINTR) {
			goto err_close;
		}
		rc = wait_for(sock, POLLOUT, deadline);
		if (rc) {
			goto err_close;
		}
		length = sizeof(error);
		rc = MOEEP_SOCKET_ENDED;
		if (getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &length) != 0) {
			goto err_close;
		}
		if (error != 0) {
			errno = error;
			goto err_close;
		}
	}
	moeep_socket_tune(sock);
	*fd = sock;
	return MOEEP_SOCKET_DONE;

err_close:
	error = errno;
	close(sock);
	errno = error;
	return rc;
}

void moeep_socket_tune(int fd)
{
	int one = 1;
	int idle = KEEPALIVE_IDLE_S;
	int interval = KEEPALIVE_INTERVAL_S;
	int probes = KEEPALIVE_PROBES;

	/* Without any of these the exchange is slower or blinder, but still right. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

int moeep_socket_send(int fd, const void *data, size_t bytes, size_t *done, int64_t deadline)
{
	const unsigned char *from = data;

	while (*done < bytes) {
		ssize_t n = send(fd, from + *done, bytes - *done, MSG_NOSIGNAL);
		int rc;

		if (n >= 0) {
			*done += (size_t)n;
			continue;
		}
		if (errno == EINTR) {
			continue;
		}
		if (errno != EAGAIN && errno != EWOULDBLOCK) {
			return MOEEP_SOCKET_ENDED;
		}
		if (deadline == 0) {
			return MOEEP_SOCKET_LATE;
		}
		rc = wait_for(fd, POLLOUT, deadline);
		if (rc) {
			return rc;
		}
	}
	return MOEEP_SOCKET_DONE;
}

int moeep_socket_recv(int fd, void *data, size_t bytes, size_t *done, int64_t deadline)
{
	unsigned char *into = data;

	while (*done < bytes) {
		ssize_t n = recv(fd, into + *done, bytes - *done, 0);
		int rc;

		if (n > 0) {
			*done += (size_t)n;
			continue;
		}
		if (n == 0) {
			errno = 0;
			return MOEEP_SOCKET_ENDED;
		}
		if (errno == EINTR) {
			continue;
		}
		if (errno != EAGAIN && errno != EWOULDBLOCK) {
			return MOEEP_SOCKET_ENDED;
		}
		if (deadline == 0) {
			return MOEEP_SOCKET_LATE;
		}
		rc = wait_for(fd, POLLIN, deadline);
		if (rc) {
			return rc;
		}
	}
	return MOEEP_SOCKET_DONE;
}
