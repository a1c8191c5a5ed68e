/* SPDX-License-Identifier: MIT */
/* bootstrap/socket.h - TCP with deadlines. All sockets are non-blocking and close on exec. */
#ifndef MOEEP_BOOTSTRAP_SOCKET_H
#define MOEEP_BOOTSTRAP_SOCKET_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

/* Room for "[address]:port". */
#define MOEEP_SOCKET_TEXT 64

struct moeep_socket_address {
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	};
	socklen_t length;
};

/* Deadlines are milliseconds of the monotonic clock. */
#define MOEEP_SOCKET_NO_DEADLINE INT64_MAX

int64_t moeep_socket_now(void);
/* The time in timeout_ms from now; MOEEP_TIMEOUT_NONE gives MOEEP_SOCKET_NO_DEADLINE. */
int64_t moeep_socket_deadline(uint32_t timeout_ms);
/* The one of two deadlines that comes first. */
static inline int64_t moeep_socket_earlier(int64_t a, int64_t b)
{
	return a < b ? a : b;
}
/* What is left until then: for poll(), and as a time-out of the API. */
int moeep_socket_poll_ms(int64_t deadline);
uint32_t moeep_socket_timeout_ms(int64_t deadline);

/* family: MOEEP_BOOT_IPV4 or MOEEP_BOOT_IPV6; bytes in network order. */
int moeep_socket_address_set(struct moeep_socket_address *address, int family,
			     const unsigned char bytes[16], uint16_t port);
void moeep_socket_address_get(const struct moeep_socket_address *address, int *family,
			      unsigned char bytes[16], uint16_t *port);
/*
 * From a numeric address or the name of a network interface. name is what the text is called in
 * the detail.
 */
int moeep_socket_address_find(const char *name, const char *text, uint16_t port,
			      struct moeep_socket_address *address);
void moeep_socket_address_text(const struct moeep_socket_address *address,
			       char text[MOEEP_SOCKET_TEXT]);

/* Listen there; address then has the port in use. */
int moeep_socket_listen(struct moeep_socket_address *address, int *fd);

/*
 * The result of the calls below: MOEEP_SOCKET_DONE, MOEEP_SOCKET_LATE if the deadline passed (a
 * deadline of 0 does not wait), MOEEP_SOCKET_ENDED with errno, which is 0 if the other side closed
 * the connection.
 */
enum { MOEEP_SOCKET_DONE = 0, MOEEP_SOCKET_LATE = 1, MOEEP_SOCKET_ENDED = 2 };

/* One attempt. */
int moeep_socket_connect(const struct moeep_socket_address *address, int64_t deadline, int *fd);
/* Send small messages at once, and notice peers whose host has gone. */
void moeep_socket_tune(int fd);
/* All of `bytes`. *done counts what went through and is where a later call goes on. */
int moeep_socket_send(int fd, const void *data, size_t bytes, size_t *done, int64_t deadline);
int moeep_socket_recv(int fd, void *data, size_t bytes, size_t *done, int64_t deadline);

#endif
