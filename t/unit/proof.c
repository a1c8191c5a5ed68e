/* SPDX-License-Identifier: MIT */
/* What a rank and the rendezvous prove to each other, and what they do not give away by it. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bootstrap/ops.h"
#include "bootstrap/proof.h"
#include "bootstrap/socket.h"
#include "bootstrap/unique_id.h"
#include "core/error.h"
#include "t/tap.h"
#include "t/unit/group.h"

#define TIMEOUT_MS 10000

struct join_message {
	struct moeep_boot_header header;
	struct moeep_boot_join join;
};

struct hello_message {
	struct moeep_boot_header header;
	struct moeep_boot_hello hello;
};

struct welcome_message {
	struct moeep_boot_header header;
	struct moeep_boot_welcome welcome;
};

/* HMAC-SHA-256 of the same bytes by another program (Python's hmac module). */
static const char *const known[] = {
	[MOEEP_BOOT_PROVER_RANK] =
		"705728e515dce1e0a6d4ed042a2ef3a4ff56b38cfe305a5f4a91d3bed9af6fe8",
	[MOEEP_BOOT_PROVER_HUB] =
		"47968d40060b870a0a4f23bbd5e77de781c9ecca26d1a7c7095113c69ede6297",
};

/* secret: 0, 1, 2, ...; the hub's nonce: 100, 101, ...; the rank's: 200, 201, ... */
static void test_known(void)
{
	struct moeep_boot_join join = {.rank = 3, .num_ranks = 8};
	unsigned char secret[MOEEP_BOOT_SECRET_BYTES];
	unsigned char nonce[MOEEP_BOOT_NONCE_BYTES];
	unsigned char proof[MOEEP_BOOT_PROOF_BYTES];

	for (int i = 0; i < 32; i++) {
		secret[i] = (unsigned char)i;
		nonce[i] = (unsigned char)(100 + i);
		join.nonce[i] = (unsigned char)(200 + i);
	}
	for (int who = MOEEP_BOOT_PROVER_RANK; who <= MOEEP_BOOT_PROVER_HUB; who++) {
		char text[2 * sizeof(proof) + 1];

		moeep_boot_prove(secret, (enum moeep_boot_prover)who, nonce, &join, proof);
		for (size_t i = 0; i < sizeof(proof); i++) {
			snprintf(text + 2 * i, 3, "%02x", proof[i]);
		}
		is_str(text, known[who], "the proof of prover %d", who);
		ok(moeep_boot_proved(secret, (enum moeep_boot_prover)who, nonce, &join, proof),
		   "is one");
		proof[31] ^= 1;
		ok(!moeep_boot_proved(secret, (enum moeep_boot_prover)who, nonce, &join, proof),
		   "with a bit changed it is none");
	}
}

/* A connection that has been greeted. */
static int greeted(const moeep_unique_id_t *id, struct hello_message *hello)
{
	int fd = raw_connect(id);

	if (fd >= 0 && !raw_read(fd, hello, sizeof(*hello))) {
		close(fd);
		fd = -1;
	}
	return fd;
}

/* What one connection proved is worth nothing on another, nor for another rank. */
static void test_replay(void)
{
	struct join_message join = {
		.header = {MOEEP_BOOT_MAGIC, MOEEP_BOOT_VERSION, MOEEP_BOOT_JOIN,
			   sizeof(join.join)},
		.join = {.num_ranks = 2, .timeout_ms = TIMEOUT_MS, .auth = moeep_boot_auth},
	};
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = 100};
	struct welcome_message welcome;
	moeep_rendezvous_t *rendezvous = NULL;
	struct hello_message first, second;
	struct moeep_boot_id content;
	moeep_unique_id_t id;
	int fd, other;

	is_int(moeep_rendezvous_create(&config, &rendezvous, &id), MOEEP_OK, "a rendezvous");
	moeep_unique_id_read(&id, &content);
	fd = greeted(&id, &first);
	other = greeted(&id, &second);
	ok(fd >= 0 && other >= 0, "greets two");
	ok(memcmp(first.hello.nonce, second.hello.nonce, sizeof(first.hello.nonce)) != 0,
	   "with different nonces");
	moeep_boot_prove(content.secret, MOEEP_BOOT_PROVER_RANK, first.hello.nonce, &join.join,
			 join.join.proof);
	raw_write(other, &join, sizeof(join));
	ok(raw_closed(other, 5000), "a proof for the first connection is refused on the second");
	close(other);
	other = greeted(&id, &second);
	moeep_boot_prove(content.secret, MOEEP_BOOT_PROVER_RANK, second.hello.nonce, &join.join,
			 join.join.proof);
	join.join.rank = 1;
	raw_write(other, &join, sizeof(join));
	ok(raw_closed(other, 5000), "that for rank 0 from rank 1");
	close(other);
	other = greeted(&id, &second);
	memcpy(join.join.proof, content.secret, sizeof(join.join.proof));
	join.join.auth = MOEEP_BOOT_AUTH_SECRET;
	raw_write(other, &join, sizeof(join));
	ok(raw_closed(other, 5000), "and the secret itself");
	close(other);
	join.join.auth = moeep_boot_auth;
	join.join.rank = 0;
	moeep_boot_prove(content.secret, MOEEP_BOOT_PROVER_RANK, first.hello.nonce, &join.join,
			 join.join.proof);
	raw_write(fd, &join, sizeof(join));
	ok(raw_read(fd, &welcome, sizeof(welcome)) && welcome.header.type == MOEEP_BOOT_WELCOME,
	   "the first one is still welcome");
	ok(moeep_boot_proved(content.secret, MOEEP_BOOT_PROVER_HUB, first.hello.nonce, &join.join,
			     welcome.welcome.proof),
	   "by one who knows the secret");
	close(fd);
	(void)moeep_rendezvous_destroy(rendezvous);
}

/* Something in the rendezvous' place, which does not know the secret. */
struct impostor {
	int fd;
	moeep_unique_id_t id;
	struct moeep_boot_id content;
	struct member member;
	int conn;
	struct join_message join;
};

static void impostor_open(struct impostor *s)
{
	unsigned char secret[MOEEP_BOOT_SECRET_BYTES];
	unsigned char loopback[16] = {127, 0, 0, 1};
	struct moeep_socket_address address;

	memset(s, 0, sizeof(*s));
	for (size_t i = 0; i < sizeof(secret); i++) {
		secret[i] = (unsigned char)(7 * i + 1);
	}
	moeep_socket_address_set(&address, MOEEP_BOOT_IPV4, loopback, 0);
	if (moeep_socket_listen(&address, &s->fd)) {
		tap_bail("listen: %s", moeep_error_detail());
	}
	moeep_unique_id_make(&address, secret, &s->id);
	moeep_unique_id_read(&s->id, &s->content);
}

/* Greets a rank that wants to join. */
static void impostor_meet(struct impostor *s, uint32_t auth)
{
	struct hello_message hello = {
		.header = {MOEEP_BOOT_MAGIC, MOEEP_BOOT_VERSION, MOEEP_BOOT_HELLO,
			   sizeof(hello.hello)},
		.hello = {.nonce = {42}, .auth = auth},
	};

	s->member = (struct member){.id = &s->id, .num_ranks = 1, .timeout_ms = TIMEOUT_MS};
	member_start(&s->member);
	for (int64_t end = now_ms() + 5000; now_ms() < end; sleep_ms(5)) {
		s->conn = accept(s->fd, NULL, NULL);
		if (s->conn >= 0) {
			break;
		}
	}
	if (s->conn < 0 || !raw_write(s->conn, &hello, sizeof(hello))) {
		tap_bail("nobody came to the impostor");
	}
}

static void impostor_say(struct impostor *s, int type, const void *body, size_t bytes)
{
	struct moeep_boot_header header = {MOEEP_BOOT_MAGIC, MOEEP_BOOT_VERSION, (uint16_t)type,
					   bytes};

	raw_write(s->conn, &header, sizeof(header));
	raw_write(s->conn, body, bytes);
}

static bool contains(const void *bytes, size_t size, const void *part, size_t part_size)
{
	for (size_t at = 0; at + part_size <= size; at++) {
		if (memcmp((const char *)bytes + at, part, part_size) == 0) {
			return true;
		}
	}
	return false;
}

static void test_impostor(void)
{
	struct moeep_boot_joined joined = {.host_rank = -1, .num_ranks = 1};
	struct moeep_boot_welcome welcome = {{1}};
	struct impostor s;

	impostor_open(&s);
	impostor_meet(&s, moeep_boot_auth);
	ok(raw_read(s.conn, &s.join, sizeof(s.join)), "a rank asks to join");
	/* Eight bytes of it would be no accident. */
	ok(!contains(&s.join, sizeof(s.join), s.content.secret, 8), "without saying the secret");
	impostor_say(&s, MOEEP_BOOT_WELCOME, &welcome, sizeof(welcome));
	member_wait(&s.member);
	close(s.conn);
	is_int(s.member.rc, MOEEP_ERR_RENDEZVOUS, "who cannot prove the secret is left");
	ok(strstr(s.member.detail, "does not know the id's secret"), "detail: %s", s.member.detail);

	impostor_meet(&s, moeep_boot_auth);
	ok(raw_read(s.conn, &s.join, sizeof(s.join)), "another one");
	moeep_boot_prove(s.content.secret, MOEEP_BOOT_PROVER_RANK, (const unsigned char[32]){42},
			 &s.join.join, welcome.proof);
	ok(memcmp(welcome.proof, s.join.join.proof, sizeof(welcome.proof)) == 0,
	   "sends its own proof");
	impostor_say(&s, MOEEP_BOOT_WELCOME, &welcome, sizeof(welcome));
	member_wait(&s.member);
	close(s.conn);
	is_int(s.member.rc, MOEEP_ERR_RENDEZVOUS, "which, sent back, proves nothing");

	impostor_meet(&s, moeep_boot_auth);
	ok(raw_read(s.conn, &s.join, sizeof(s.join)), "another one");
	impostor_say(&s, MOEEP_BOOT_JOINED, &joined, sizeof(joined));
	member_wait(&s.member);
	close(s.conn);
	is_int(s.member.rc, MOEEP_ERR_RENDEZVOUS, "nor is one in the group without a welcome");

	impostor_meet(&s, MOEEP_BOOT_AUTH_SECRET);
	member_wait(&s.member);
	is_int(s.member.rc, MOEEP_ERR_MISMATCH, "one that wants the secret itself");
	ok(strstr(s.member.detail, "built without libnettle"), "detail: %s", s.member.detail);
	ok(recv(s.conn, &s.join, sizeof(s.join), MSG_DONTWAIT) <= 0, "gets nothing");
	close(s.conn);
	close(s.fd);
}

int main(void)
{
	tap_require_all("nettle", MOEEP_HAVE_NETTLE, "%s", MOEEP_REASON_NETTLE);
	test_known();
	test_replay();
	test_impostor();
	return tap_done();
}
