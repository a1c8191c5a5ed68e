/* SPDX-License-Identifier: MIT */
/* Unique ids, joining, exchanging, and who is kept out. */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bootstrap/ops.h"
#include "bootstrap/proof.h"
#include "bootstrap/socket.h"
#include "bootstrap/unique_id.h"
#include "t/tap.h"
#include "t/unit/group.h"

#define TIMEOUT_MS 20000

static moeep_rendezvous_t *create(moeep_unique_id_t *id)
{
	moeep_rendezvous_t *rendezvous = NULL;

	if (moeep_rendezvous_create(NULL, &rendezvous, id)) {
		tap_bail("moeep_rendezvous_create: %s", moeep_error_detail());
	}
	return rendezvous;
}

static void test_id(void)
{
	moeep_rendezvous_t *rendezvous;
	char text[MOEEP_UNIQUE_ID_TEXT + 8];
	char work[MOEEP_UNIQUE_ID_TEXT + 8];
	moeep_unique_id_t other;
	moeep_unique_id_t back;
	moeep_unique_id_t id;
	int64_t start;
	int bad = 0;

	rendezvous = create(&id);
	is_int(moeep_unique_id_format(&id, text, sizeof(text)), MOEEP_OK, "format");
	is_u64(strlen(text), MOEEP_UNIQUE_ID_TEXT - 1, "length of the text");
	is_u64(strspn(text, "0123456789abcdef"), strlen(text), "digits alone");
	is_int(moeep_unique_id_parse(text, &back), MOEEP_OK, "parse");
	is_mem(&back, &id, sizeof(id), "gives the same id");
	for (char *c = work; c == work || c[-1]; c++) {
		char from = text[c - work];

		*c = from >= 'a' && from <= 'f' ? (char)(from - 'a' + 'A') : from;
	}
	is_int(moeep_unique_id_parse(work, &back), MOEEP_OK, "capitals");
	snprintf(work, sizeof(work), " %s\r\n", text);
	is_int(moeep_unique_id_parse(work, &back), MOEEP_OK, "blanks around it");

	memset(&back, 0x11, sizeof(back));
	other = back;
	is_int(moeep_unique_id_parse("", &back), MOEEP_ERR_INVALID, "empty text");
	ok(strstr(moeep_error_detail(), "0 digits"), "detail: %s", moeep_error_detail());
	is_int(moeep_unique_id_parse(text + 1, &back), MOEEP_ERR_INVALID, "a digit less");
	snprintf(work, sizeof(work), "%s0", text);
	is_int(moeep_unique_id_parse(work, &back), MOEEP_ERR_INVALID, "a digit more");
	snprintf(work, sizeof(work), "%s", text);
	work[100] = 'g';
	is_int(moeep_unique_id_parse(work, &back), MOEEP_ERR_INVALID, "not hexadecimal");
	ok(strstr(moeep_error_detail(), "position 100"), "detail: %s", moeep_error_detail());
	work[100] = ' ';
	is_int(moeep_unique_id_parse(work, &back), MOEEP_ERR_INVALID, "a blank within");
	for (size_t i = 0; i < 256; i++) {
		snprintf(work, sizeof(work), "%s", text);
		work[i] = work[i] == '7' ? '8' : '7';
		bad += moeep_unique_id_parse(work, &back) != MOEEP_ERR_INVALID;
	}
	is_int(bad, 0, "every mistyped digit is found");
	is_mem(&back, &other, sizeof(back), "nothing is set on failure");
	is_int(moeep_unique_id_parse(NULL, &back), MOEEP_ERR_INVALID, "text is NULL");
	is_int(moeep_unique_id_parse(text, NULL), MOEEP_ERR_INVALID, "id is NULL");
	is_int(moeep_unique_id_format(NULL, text, sizeof(text)), MOEEP_ERR_INVALID, "no id");
	is_int(moeep_unique_id_format(&id, NULL, 300), MOEEP_ERR_INVALID, "no text");
	is_int(moeep_unique_id_format(&id, text, 256), MOEEP_ERR_INVALID, "too little room");
	ok(strstr(moeep_error_detail(), "256"), "detail: %s", moeep_error_detail());
	is_int(moeep_unique_id_format(&back, text, sizeof(text)), MOEEP_ERR_INVALID,
	       "an id that is none");

	start = now_ms();
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy where nobody joined");
	ok(now_ms() - start < 1000, "returns at once");
	is_int(moeep_rendezvous_destroy(NULL), MOEEP_OK, "destroy NULL");
	is_int(moeep_rendezvous_create(NULL, NULL, &id), MOEEP_ERR_INVALID, "create: NULL");
	is_int(moeep_rendezvous_create(NULL, &rendezvous, NULL), MOEEP_ERR_INVALID,
	       "create: id is NULL");
}

static int exchange_sizes(struct member *member, struct moeep_boot *boot)
{
	static const size_t fixed[] = {0, 1, 7, 4096, 0, 1 << 20, 65537, 3};
	unsigned seed = 12345;
	unsigned round = 0;
	int rc;

	for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++, round++) {
		rc = exchange_check(boot, member->rank, member->num_ranks, fixed[i], round,
				    TIMEOUT_MS);
		if (rc) {
			return rc;
		}
	}
	for (int i = 0; i < 30; i++, round++) {
		seed = seed * 1103515245u + 12345u;
		rc = exchange_check(boot, member->rank, member->num_ranks, (seed >> 8) % 20000,
				    round, TIMEOUT_MS);
		if (rc) {
			return rc;
		}
	}
	return moeep_boot_lost(boot) == -1 ? 0 : 2;
}

static void test_allgather(void)
{
	static const int counts[] = {1, 2, 3, 8};
	moeep_rendezvous_t *rendezvous;
	struct member members[8];
	moeep_unique_id_t id;
	int64_t start;

	for (int i = 0; i < 4; i++) {
		rendezvous = create(&id);
		group_run(members, &id, counts[i], TIMEOUT_MS, exchange_sizes, NULL);
		is_int(group_count(members, counts[i], MOEEP_OK), counts[i],
		       "%d ranks exchange 0 bytes to 1 MiB", counts[i]);
		start = now_ms();
		is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "all have left");
		ok(now_ms() - start < 500 * slowness(), "which is known at once");
	}
}

static int exchange_once(struct member *member, struct moeep_boot *boot)
{
	return exchange_check(boot, member->rank, member->num_ranks, 200, 1, TIMEOUT_MS);
}

static void test_many(void)
{
	static struct member members[256];
	moeep_rendezvous_t *rendezvous;
	moeep_unique_id_t id;
	int64_t start = now_ms();
	int64_t longest = 0;

	rendezvous = create(&id);
	group_run(members, &id, 256, TIMEOUT_MS * slowness(), exchange_once, NULL);
	is_int(group_count(members, 256, MOEEP_OK), 256, "256 ranks");
	for (int i = 0; i < 256; i++) {
		longest = members[i].open_ms > longest ? members[i].open_ms : longest;
	}
	tap_diag("256 ranks joined in %d ms, all over after %d ms", (int)longest,
		 (int)(now_ms() - start));
	ok(now_ms() - start < 2000 * slowness(), "meet, exchange and leave in under 2 s");
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

/* A rank that sends its part of every exchange, but reads none of the answers until the end. */
static void test_slow_receiver(void)
{
	enum { BYTES = 1 << 20, ROUNDS = 8 };
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_gather gather;
	} head = {.header = {MOEEP_BOOT_MAGIC, MOEEP_BOOT_VERSION, MOEEP_BOOT_GATHER,
			     sizeof(head.gather) + BYTES},
		  .gather = {.bytes = BYTES, .timeout_ms = MOEEP_TIMEOUT_NONE}};
	moeep_comm_config_t config = {.size = sizeof(config)};
	unsigned char *blob = calloc(1, BYTES);
	unsigned char *recv = malloc(2 * BYTES);
	moeep_rendezvous_t *rendezvous;
	struct moeep_boot *boot = NULL;
	moeep_unique_id_t id;
	size_t left = sizeof(struct moeep_boot_header) + sizeof(struct moeep_boot_joined) +
		      ROUNDS * (sizeof(struct moeep_boot_header) +
				sizeof(struct moeep_boot_gathered) + 2 * (size_t)BYTES);
	int failed = 0;
	int fd;

	rendezvous = create(&id);
	fd = raw_join(&id, 1, 2);
	ok(fd >= 0 && blob && recv, "a rank that will not read");
	config.id = &id;
	is_int(moeep_boot_open(&config, 0, 2, TIMEOUT_MS, &boot), MOEEP_OK, "and one that does");
	for (int round = 1; round <= ROUNDS && boot; round++) {
		head.gather.round = (uint64_t)round;
		failed += !raw_write(fd, &head, sizeof(head)) || !raw_write(fd, blob, BYTES);
		failed += moeep_boot_allgather(boot, blob, recv, BYTES, TIMEOUT_MS) != MOEEP_OK;
	}
	is_int(failed, 0, "exchanges go on without waiting for it");
	while (left > 0 && raw_read(fd, blob, left < BYTES ? left : BYTES)) {
		left -= left < BYTES ? left : BYTES;
	}
	is_u64(left, 0, "it can still read all the answers");
	close(fd);
	moeep_boot_close(boot);
	free(blob);
	free(recv);
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

static void test_strangers(void)
{
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_join join;
	} join = {.header = {MOEEP_BOOT_MAGIC, MOEEP_BOOT_VERSION, MOEEP_BOOT_JOIN,
			     sizeof(join.join)},
		  .join = {.num_ranks = 2, .auth = moeep_boot_auth}};
	struct moeep_boot_header hello;
	moeep_rendezvous_t *rendezvous;
	struct member members[2];
	unsigned char noise[4096];
	moeep_unique_id_t id;
	int64_t start;
	int idle[20];
	int fd;

	rendezvous = create(&id);
	memset(noise, 'G', sizeof(noise));
	for (int i = 0; i < 20; i++) {
		idle[i] = raw_connect(&id);
	}
	ok(raw_read(idle[0], &hello, sizeof(hello)) && hello.type == MOEEP_BOOT_HELLO,
	   "a stranger is greeted");
	raw_write(idle[1], &join, 5);
	raw_write(idle[2], &join, sizeof(join) - 1);
	fd = raw_connect(&id);
	raw_write(fd, noise, sizeof(noise));
	ok(raw_closed(fd, 5000), "garbage ends a connection");
	close(fd);
	fd = raw_connect(&id);
	raw_write(fd, &join, sizeof(join));
	ok(raw_closed(fd, 5000), "so does a wrong secret");
	close(fd);
	fd = raw_connect(&id);
	join.header.length = UINT64_MAX;
	raw_write(fd, &join.header, sizeof(join.header));
	ok(raw_closed(fd, 5000), "and a message that is too long");
	close(fd);
	fd = raw_connect(&id);
	join.header.length = sizeof(join.join);
	join.header.version = 99;
	raw_write(fd, &join.header, sizeof(join.header));
	ok(raw_closed(fd, 5000), "and another version");
	close(fd);
	fd = raw_connect(&id);
	join.header.version = MOEEP_BOOT_VERSION;
	join.header.type = MOEEP_BOOT_GATHER;
	raw_write(fd, &join.header, sizeof(join.header));
	ok(raw_closed(fd, 5000), "and an exchange of one that has not joined");
	close(fd);

	start = now_ms();
	group_run(members, &id, 2, TIMEOUT_MS, exchange_sizes, NULL);
	is_int(group_count(members, 2, MOEEP_OK), 2, "the group does not notice");
	ok(now_ms() - start < 3000 * slowness(), "nor wait for those that are silent");
	start = now_ms();
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
	ok(now_ms() - start < 1000, "does not wait for them either");
	for (int i = 0; i < 20; i++) {
		close(idle[i]);
	}
}

static void test_refused(void)
{
	struct member members[3];
	struct moeep_boot *boot = NULL;
	moeep_rendezvous_t *rendezvous;
	moeep_unique_id_t id;

	rendezvous = create(&id);
	for (int i = 0; i < 3; i++) {
		members[i] = (struct member){.id = &id,
					     .rank = i,
					     .num_ranks = 3,
					     .timeout_ms = TIMEOUT_MS,
					     .fn = exchange_once};
	}
	member_start(&members[0]);
	member_start(&members[1]);
	sleep_ms(100);
	{
		struct member again = {
			.id = &id, .rank = 1, .num_ranks = 3, .timeout_ms = TIMEOUT_MS};
		struct member other = {
			.id = &id, .rank = 2, .num_ranks = 4, .timeout_ms = TIMEOUT_MS};

		member_run(&again);
		is_int(again.rc, MOEEP_ERR_RENDEZVOUS, "a rank that is there already");
		ok(strstr(again.detail, "rank 1 has joined"), "detail: %s", again.detail);
		member_run(&other);
		is_int(other.rc, MOEEP_ERR_MISMATCH, "another number of ranks");
		ok(strstr(other.detail, "num_ranks is 4") && strstr(other.detail, "is 3"),
		   "detail: %s", other.detail);
		is_int(moeep_boot_open_client(&id, 3, 3, TIMEOUT_MS, &boot), MOEEP_ERR_RENDEZVOUS,
		       "a rank out of range");
		ok(strstr(moeep_error_detail(), "rank is 3"), "detail: %s", moeep_error_detail());
		is_int(moeep_boot_open_client(&id, -1, 3, TIMEOUT_MS, &boot), MOEEP_ERR_RENDEZVOUS,
		       "a negative one");
		ok(!boot, "nothing is set");
	}
	member_start(&members[2]);
	for (int i = 0; i < 3; i++) {
		member_wait(&members[i]);
	}
	is_int(group_count(members, 3, MOEEP_OK), 3, "the group meets all the same");
	{
		struct member late = {
			.id = &id, .rank = 2, .num_ranks = 3, .timeout_ms = TIMEOUT_MS};

		member_run(&late);
		is_int(late.rc, MOEEP_ERR_RENDEZVOUS, "a rendezvous serves one group");
	}
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

static void test_wrong_place(void)
{
	unsigned char secret[MOEEP_BOOT_SECRET_BYTES] = {1, 2, 3};
	struct member member = {.num_ranks = 1, .timeout_ms = TIMEOUT_MS};
	struct moeep_socket_address address;
	moeep_rendezvous_t *rendezvous;
	struct moeep_boot_id content;
	moeep_unique_id_t wrong;
	moeep_unique_id_t id;
	int peers[2];
	int fd = -1;

	rendezvous = create(&id);
	moeep_unique_id_read(&id, &content);
	moeep_socket_address_set(&address, content.family, content.address, content.port);
	moeep_unique_id_make(&address, secret, &wrong);
	member.id = &wrong;
	member_run(&member);
	is_int(member.rc, MOEEP_ERR_RENDEZVOUS, "the id of another rendezvous");
	ok(strstr(member.detail, "127.0.0.1:"), "detail: %s", member.detail);
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");

	member.id = &id;
	member_run(&member);
	is_int(member.rc, MOEEP_ERR_RENDEZVOUS, "the id of one that is gone");
	ok(member.ms < 6000, "is given up before the time-out: %d ms", (int)member.ms);
	ok(strstr(member.detail, strerror(ECONNREFUSED)), "detail: %s", member.detail);
	member.timeout_ms = 200;
	member_run(&member);
	is_int(member.rc, MOEEP_ERR_RENDEZVOUS, "or with a shorter one");
	ok(member.ms < 1500, "then: %d ms", (int)member.ms);

	/* Something else that listens there. */
	is_int(moeep_socket_listen(&address, &fd), MOEEP_OK, "another server");
	member.timeout_ms = 300;
	member_run(&member);
	is_int(member.rc, MOEEP_ERR_TIMEOUT, "that says nothing");
	ok(strstr(member.detail, "does not answer"), "detail: %s", member.detail);
	member.timeout_ms = TIMEOUT_MS;
	member_start(&member);
	sleep_ms(100);
	/* The first connection is that of the rank that gave up. */
	for (int i = 0; i < 2; i++) {
		static const char noise[] =
			"220 mail.example.org is ready for what you have to say";

		peers[i] = accept(fd, NULL, NULL);
		if (peers[i] >= 0) {
			send(peers[i], noise, sizeof(noise), MSG_NOSIGNAL);
		}
	}
	member_wait(&member);
	close(peers[0]);
	close(peers[1]);
	is_int(member.rc, MOEEP_ERR_RENDEZVOUS, "that says something else");
	ok(strstr(member.detail, "not a rendezvous"), "detail: %s", member.detail);
	close(fd);

	memset(&wrong, 7, sizeof(wrong));
	member.id = &wrong;
	member_run(&member);
	is_int(member.rc, MOEEP_ERR_INVALID, "an id that is none");
}

static void test_address(const char *address, const char *shown)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .address = address};
	moeep_rendezvous_t *rendezvous;
	struct moeep_socket_address where;
	struct moeep_boot_id content;
	struct member members[2];
	char text[MOEEP_SOCKET_TEXT];
	moeep_unique_id_t id;

	if (!ok(moeep_rendezvous_create(&config, &rendezvous, &id) == MOEEP_OK, "listen on %s",
		address)) {
		tap_diag("%s", moeep_error_detail());
		return;
	}
	moeep_unique_id_read(&id, &content);
	moeep_socket_address_set(&where, content.family, content.address, content.port);
	moeep_socket_address_text(&where, text);
	ok(strncmp(text, shown, strlen(shown)) == 0, "it is %s", text);
	group_run(members, &id, 2, TIMEOUT_MS, exchange_once, NULL);
	is_int(group_count(members, 2, MOEEP_OK), 2, "ranks meet there");
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

static void test_addresses(void)
{
	static const char *const bad[] = {"0.0.0.0", "::", "nonsense", "fe80::1", "300.1.1.1", ""};
	unsigned char loopback6[16] = {[15] = 1};
	moeep_rendezvous_config_t config = {.size = sizeof(config)};
	struct moeep_socket_address v6;
	moeep_rendezvous_t *rendezvous = NULL;
	moeep_rendezvous_t *second = NULL;
	struct moeep_boot_id content;
	moeep_unique_id_t id;
	moeep_unique_id_t other;
	int fd;

	test_address("127.0.0.1", "127.0.0.1:");
	test_address("lo", "127.0.0.1:");
	moeep_socket_address_set(&v6, MOEEP_BOOT_IPV6, loopback6, 0);
	if (moeep_socket_listen(&v6, &fd) == MOEEP_OK) {
		close(fd);
		test_address("::1", "[::1]:");
	} else {
		tap_skip(4, "no IPv6 here");
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		config.address = bad[i];
		is_int(moeep_rendezvous_create(&config, &rendezvous, &id), MOEEP_ERR_INVALID,
		       "address \"%s\"", bad[i]);
		ok(strstr(moeep_error_detail(), "config->address"), "detail: %s",
		   moeep_error_detail());
	}
	ok(!rendezvous, "nothing is set");
	setenv("MOEEP_INTERFACE", "nonsense", 1);
	is_int(moeep_rendezvous_create(NULL, &rendezvous, &id), MOEEP_ERR_INVALID,
	       "an interface that is not there");
	ok(strstr(moeep_error_detail(), "MOEEP_INTERFACE"), "detail: %s", moeep_error_detail());
	config.address = "127.0.0.1";
	is_int(moeep_rendezvous_create(&config, &rendezvous, &id), MOEEP_OK,
	       "does not matter if there is an address");
	unsetenv("MOEEP_INTERFACE");
	moeep_unique_id_read(&id, &content);
	config.port = content.port;
	is_int(moeep_rendezvous_create(&config, &second, &other), MOEEP_ERR_SYSTEM,
	       "a port in use");
	ok(strstr(moeep_error_detail(), "bind to 127.0.0.1"), "detail: %s", moeep_error_detail());
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
	is_int(moeep_rendezvous_create(&config, &rendezvous, &id), MOEEP_OK, "then it is free");
	moeep_unique_id_read(&id, &content);
	is_int(content.port, (int)config.port, "and is what was asked for");
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
	config.port = 65536;
	is_int(moeep_rendezvous_create(&config, &rendezvous, &id), MOEEP_ERR_INVALID, "port 65536");
	config.size = 1;
	is_int(moeep_rendezvous_create(&config, &rendezvous, &id), MOEEP_ERR_INVALID, "size 1");
}

/* The launcher's way: a parent that is no rank opens the rendezvous and forks the ranks. */
static void test_forked(void)
{
	enum { RANKS = 6 };
	moeep_rendezvous_t *rendezvous;
	pid_t children[RANKS];
	moeep_unique_id_t id;
	int64_t start = now_ms();
	int good = 0;
	int status;

	rendezvous = create(&id);
	for (int rank = 0; rank < RANKS; rank++) {
		children[rank] = fork();
		if (children[rank] == 0) {
			struct member member = {.id = &id,
						.rank = rank,
						.num_ranks = RANKS,
						.timeout_ms = TIMEOUT_MS,
						.fn = exchange_sizes};

			member_run(&member);
			_exit(member.rc == MOEEP_OK ? 0 : 1);
		}
		/* So that a rank is connected before the next one inherits the hub's sockets. */
		sleep_ms(20);
	}
	for (int rank = 0; rank < RANKS; rank++) {
		good += waitpid(children[rank], &status, 0) == children[rank] && status == 0;
	}
	is_int(good, RANKS, "ranks forked from the host");
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "all have left");
	ok(now_ms() - start < 4000 * slowness(), "and nobody waited: %d ms",
	   (int)(now_ms() - start));
}

int main(void)
{
	unsetenv("MOEEP_INTERFACE");
	test_id();
	test_allgather();
	test_many();
	test_slow_receiver();
	test_strangers();
	test_refused();
	test_wrong_place();
	test_addresses();
	test_forked();
	return tap_done();
}
