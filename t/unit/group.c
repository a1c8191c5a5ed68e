/* SPDX-License-Identifier: MIT */
#include "config.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "bootstrap/proof.h"
#include "bootstrap/socket.h"
#include "bootstrap/unique_id.h"
#include "bootstrap/wire.h"
#include "t/tap.h"
#include "t/unit/group.h"

int64_t now_ms(void)
{
	return moeep_socket_now();
}

void sleep_ms(int ms)
{
	struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

	nanosleep(&time, NULL);
}

int slowness(void)
{
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
	return 10;
#else
	const char *sanitizers = getenv("MOEEP_TEST_SANITIZERS");

	/* A variable set by valgrind's wrapper, or the like, may ask for patience as well. */
	return sanitizers && sanitizers[0] ? 10 : 1;
#endif
}

void member_run(struct member *member)
{
	moeep_comm_config_t config = {
		.size = sizeof(config), .id = member->id, .bootstrap = member->bootstrap};
	int64_t start = now_ms();
	struct moeep_boot *boot = NULL;

	member->open_rc = moeep_boot_open(&config, member->rank, member->num_ranks,
					  member->timeout_ms, &boot);
	member->open_ms = now_ms() - start;
	member->rc = member->open_rc;
	if (member->rc == MOEEP_OK && member->fn) {
		member->rc = member->fn(member, boot);
	}
	snprintf(member->detail, sizeof(member->detail), "%s",
		 member->rc ? moeep_error_detail() : "");
	moeep_boot_close(boot);
	member->ms = now_ms() - start;
}

static void *member_thread(void *arg)
{
	member_run(arg);
	return NULL;
}

void member_start(struct member *member)
{
	if (pthread_create(&member->thread, NULL, member_thread, member) != 0) {
		tap_bail("pthread_create failed");
	}
}

void member_wait(struct member *member)
{
	pthread_join(member->thread, NULL);
}

void group_run(struct member *members, const moeep_unique_id_t *id, int num_ranks,
	       uint32_t timeout_ms, member_fn fn, void *arg)
{
	for (int rank = 0; rank < num_ranks; rank++) {
		members[rank] = (struct member){.id = id,
						.rank = rank,
						.num_ranks = num_ranks,
						.timeout_ms = timeout_ms,
						.fn = fn,
						.arg = arg};
		member_start(&members[rank]);
	}
	for (int rank = 0; rank < num_ranks; rank++) {
		member_wait(&members[rank]);
	}
}

int group_count(const struct member *members, int num_ranks, int rc)
{
	int count = 0;

	for (int rank = 0; rank < num_ranks; rank++) {
		count += members[rank].rc == rc;
		if (members[rank].rc != rc) {
			tap_diag("rank %d: %d, %s", rank, members[rank].rc, members[rank].detail);
		}
	}
	return count;
}

static unsigned char pattern(int rank, unsigned round, size_t i)
{
	uint64_t x = (uint64_t)i * 2654435761u + (uint64_t)rank * 40503u + round * 97u;

	return (unsigned char)(x >> 7);
}

int exchange_check(struct moeep_boot *boot, int rank, int num_ranks, size_t bytes, unsigned round,
		   uint32_t timeout_ms)
{
	unsigned char *send = malloc(bytes + 1);
	unsigned char *recv = malloc(bytes * (size_t)num_ranks + 1);
	int rc = MOEEP_ERR_NOMEM;

	if (!send || !recv) {
		goto out_free;
	}
	for (size_t i = 0; i < bytes; i++) {
		send[i] = pattern(rank, round, i);
	}
	recv[bytes * (size_t)num_ranks] = 0x5a;
	rc = moeep_boot_allgather(boot, send, recv, bytes, timeout_ms);
	if (rc) {
		goto out_free;
	}
	for (int from = 0; from < num_ranks; from++) {
		for (size_t i = 0; i < bytes; i++) {
			if (recv[(size_t)from * bytes + i] != pattern(from, round, i)) {
				rc = 1;
				goto out_free;
			}
		}
	}
	if (recv[bytes * (size_t)num_ranks] != 0x5a) {
		rc = 1;
	}

out_free:
	free(send);
	free(recv);
	return rc;
}

int raw_connect(const moeep_unique_id_t *id)
{
	struct moeep_socket_address address;
	struct moeep_boot_id content;
	int fd = -1;

	if (moeep_unique_id_read(id, &content) ||
	    moeep_socket_address_set(&address, content.family, content.address, content.port)) {
		return -1;
	}
	return moeep_socket_connect(&address, now_ms() + 10000, &fd) ? -1 : fd;
}

int raw_join(const moeep_unique_id_t *id, int rank, int num_ranks)
{
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_hello hello;
	} hello;
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_welcome welcome;
	} welcome;
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_join join;
	} join = {.header = {MOEEP_BOOT_MAGIC, MOEEP_BOOT_VERSION, MOEEP_BOOT_JOIN,
			     sizeof(join.join)},
		  .join = {.rank = rank,
			   .num_ranks = num_ranks,
			   .timeout_ms = MOEEP_TIMEOUT_NONE,
			   .auth = moeep_boot_auth}};
	struct moeep_boot_id content;
	int fd;

	if (moeep_unique_id_read(id, &content)) {
		return -1;
	}
	fd = raw_connect(id);
	if (fd < 0) {
		return -1;
	}
	if (!raw_read(fd, &hello, sizeof(hello))) {
		goto err_close;
	}
	moeep_boot_prove(content.secret, MOEEP_BOOT_PROVER_RANK, hello.hello.nonce, &join.join,
			 join.join.proof);
	if (!raw_write(fd, &join, sizeof(join)) || !raw_read(fd, &welcome, sizeof(welcome))) {
		goto err_close;
	}
	return fd;

err_close:
	close(fd);
	return -1;
}

bool raw_read(int fd, void *data, size_t bytes)
{
	size_t done = 0;

	return moeep_socket_recv(fd, data, bytes, &done, now_ms() + 10000) == MOEEP_SOCKET_DONE;
}

bool raw_write(int fd, const void *data, size_t bytes)
{
	size_t done = 0;

	return moeep_socket_send(fd, data, bytes, &done, now_ms() + 10000) == MOEEP_SOCKET_DONE;
}

bool raw_closed(int fd, int timeout_ms)
{
	int64_t deadline = now_ms() + timeout_ms;
	char scratch[256];
	int rc;

	do {
		size_t done = 0;

		rc = moeep_socket_recv(fd, scratch, sizeof(scratch), &done, deadline);
	} while (rc == MOEEP_SOCKET_DONE);
	return rc == MOEEP_SOCKET_ENDED;
}
