/* SPDX-License-Identifier: MIT */
/* Ranks that do not come, differ, leave or die: all others get an error that says so. */
#include "config.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bootstrap/unique_id.h"
#include "bootstrap/wire.h"
#include "t/tap.h"
#include "t/unit/group.h"

#define TIMEOUT_MS 20000

static moeep_rendezvous_t *create(moeep_unique_id_t *id, uint32_t timeout_ms)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = timeout_ms};
	moeep_rendezvous_t *rendezvous = NULL;

	if (moeep_rendezvous_create(&config, &rendezvous, id)) {
		tap_bail("moeep_rendezvous_create: %s", moeep_error_detail());
	}
	return rendezvous;
}

static void test_missing_joiner(void)
{
	moeep_rendezvous_t *rendezvous;
	struct member members[8];
	struct member late;
	moeep_unique_id_t id;

	rendezvous = create(&id, 0);
	for (int i = 0; i < 8; i++) {
		members[i] = (struct member){
			.id = &id, .rank = i, .num_ranks = 8, .timeout_ms = TIMEOUT_MS};
	}
	members[6].timeout_ms = 400;
	for (int i = 0; i < 8; i++) {
		if (i != 3 && i != 5) {
			member_start(&members[i]);
		}
	}
	for (int i = 0; i < 8; i++) {
		if (i != 3 && i != 5) {
			member_wait(&members[i]);
			is_int(members[i].rc, MOEEP_ERR_TIMEOUT, "rank %d waits in vain", i);
			ok(strstr(members[i].detail, "waiting for ranks 3, 5 of 8"), "detail: %s",
			   members[i].detail);
		}
	}
	ok(members[6].ms >= 350 && members[6].ms < 3000, "the shortest time-out counts: %d ms",
	   (int)members[6].ms);
	late = members[3];
	member_run(&late);
	is_int(late.rc, MOEEP_ERR_TIMEOUT, "one that comes too late");
	ok(late.ms < 3000, "is told at once");
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

static int exchange_twice(struct member *member, struct moeep_boot *boot)
{
	int skipper = *(const int *)member->arg;
	int rc = exchange_check(boot, member->rank, member->num_ranks, 100, 1, TIMEOUT_MS);

	if (rc) {
		return rc;
	}
	if (member->rank == skipper) {
		/* Here, but not taking part until the others have given up. */
		sleep_ms(1200);
		return exchange_check(boot, member->rank, member->num_ranks, 100, 2, TIMEOUT_MS);
	}
	rc = exchange_check(boot, member->rank, member->num_ranks, 100, 2, 400);
	if (rc != MOEEP_ERR_TIMEOUT) {
		return rc ? rc : 3;
	}
	/* It stays that way. */
	return exchange_check(boot, member->rank, member->num_ranks, 100, 3, 400);
}

static void test_missing_in_exchange(void)
{
	moeep_rendezvous_t *rendezvous;
	struct member members[3];
	moeep_unique_id_t id;
	int skipper = 1;

	rendezvous = create(&id, 0);
	group_run(members, &id, 3, TIMEOUT_MS, exchange_twice, &skipper);
	is_int(group_count(members, 3, MOEEP_ERR_TIMEOUT), 3, "an exchange without rank 1");
	for (int i = 0; i < 3; i++) {
		ok(strstr(members[i].detail, "waiting for rank 1 of 3"), "detail: %s",
		   members[i].detail);
	}
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

static int exchange_mismatch(struct member *member, struct moeep_boot *boot)
{
	int rc;

	rc = exchange_check(boot, member->rank, member->num_ranks, 100, 1, TIMEOUT_MS);
	if (rc) {
		return rc;
	}
	rc = exchange_check(boot, member->rank, member->num_ranks, member->rank == 2 ? 24 : 16, 2,
			    TIMEOUT_MS);
	if (rc != MOEEP_ERR_MISMATCH || !strstr(moeep_error_detail(), "rank 2") ||
	    !strstr(moeep_error_detail(), "24") || !strstr(moeep_error_detail(), "16")) {
		return rc ? rc : 3;
	}
	return exchange_check(boot, member->rank, member->num_ranks, 100, 3, TIMEOUT_MS);
}

static int exchange_too_much(struct member *member, struct moeep_boot *boot)
{
	(void)member;
	return moeep_boot_allgather(boot, NULL, NULL, ((size_t)64 << 20) + 1, TIMEOUT_MS);
}

static void test_mismatch(void)
{
	moeep_rendezvous_t *rendezvous;
	struct member members[3];
	moeep_unique_id_t id;

	rendezvous = create(&id, 0);
	group_run(members, &id, 3, TIMEOUT_MS, exchange_mismatch, NULL);
	is_int(group_count(members, 3, MOEEP_OK), 3,
	       "sizes that differ are an error everywhere; the next exchange is not affected");
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");

	rendezvous = create(&id, 0);
	group_run(members, &id, 1, TIMEOUT_MS, exchange_too_much, NULL);
	is_int(members[0].rc, MOEEP_ERR_INVALID, "more than 64 MiB");
	ok(strstr(members[0].detail, "67108865"), "detail: %s", members[0].detail);
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

/* Exchanges until something fails; 4 if it does not name `arg` as lost. */
static int exchange_until_lost(struct member *member, struct moeep_boot *boot)
{
	int victim = *(const int *)member->arg;
	unsigned round = 1;
	int rc;

	do {
		rc = exchange_check(boot, member->rank, member->num_ranks, 1000, round++,
				    TIMEOUT_MS);
	} while (rc == MOEEP_OK);
	if (moeep_boot_lost(boot) != victim) {
		return 4;
	}
	/* And again. */
	return exchange_check(boot, member->rank, member->num_ranks, 1000, round, TIMEOUT_MS);
}

/* Does nothing but look. */
static int watch(struct member *member, struct moeep_boot *boot)
{
	int victim = *(const int *)member->arg;
	int64_t deadline = now_ms() + TIMEOUT_MS;

	while (moeep_boot_lost(boot) < 0) {
		if (now_ms() >= deadline) {
			return 5;
		}
		sleep_ms(1);
	}
	return moeep_boot_lost(boot) == victim ? MOEEP_OK : 4;
}

static int exchange_some(struct member *member, struct moeep_boot *boot)
{
	int rc = MOEEP_OK;

	for (unsigned round = 1; round <= 5 && rc == MOEEP_OK; round++) {
		rc = exchange_check(boot, member->rank, member->num_ranks, 1000, round, TIMEOUT_MS);
	}
	if (rc == MOEEP_OK) {
		/* No good-bye. */
		raise(SIGKILL);
	}
	return rc;
}

static pid_t fork_member(const moeep_unique_id_t *id, int rank, int num_ranks, member_fn fn)
{
	pid_t child = fork();

	if (child == 0) {
		struct member member = {.id = id,
					.rank = rank,
					.num_ranks = num_ranks,
					.timeout_ms = TIMEOUT_MS,
					.fn = fn};

		member_run(&member);
		_exit(member.rc == MOEEP_OK ? 0 : 1);
	}
	return child;
}

static void test_death(void)
{
	moeep_rendezvous_t *rendezvous;
	struct member members[3];
	moeep_unique_id_t id;
	int victim = 2;
	pid_t child;

	rendezvous = create(&id, 0);
	child = fork_member(&id, 2, 3, exchange_some);
	for (int i = 0; i < 2; i++) {
		members[i] = (struct member){.id = &id,
					     .rank = i,
					     .num_ranks = 3,
					     .timeout_ms = TIMEOUT_MS,
					     .fn = exchange_until_lost,
					     .arg = &victim};
		member_start(&members[i]);
	}
	for (int i = 0; i < 2; i++) {
		member_wait(&members[i]);
		is_int(members[i].rc, MOEEP_ERR_PEER_LOST, "rank %d sees it", i);
		ok(strstr(members[i].detail, "rank 2 is lost"), "detail: %s", members[i].detail);
		ok(members[i].ms < 5000 * slowness(), "long before the time-out");
	}
	waitpid(child, NULL, 0);
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

static int exit_at_once(struct member *member, struct moeep_boot *boot)
{
	(void)member;
	(void)boot;
	_exit(0);
}

static void test_death_seen_without_exchange(void)
{
	moeep_rendezvous_t *rendezvous;
	struct member members[2];
	moeep_unique_id_t id;
	int victim = 0;
	pid_t child;

	rendezvous = create(&id, 0);
	child = fork_member(&id, 0, 3, exit_at_once);
	for (int i = 0; i < 2; i++) {
		members[i] = (struct member){.id = &id,
					     .rank = i + 1,
					     .num_ranks = 3,
					     .timeout_ms = TIMEOUT_MS,
					     .fn = watch,
					     .arg = &victim};
		member_start(&members[i]);
	}
	for (int i = 0; i < 2; i++) {
		member_wait(&members[i]);
		is_int(members[i].rc, MOEEP_OK, "a rank that only looks learns who is lost");
	}
	waitpid(child, NULL, 0);
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

/* The connection ends within a message whose bytes go straight to their place. */
static void test_death_in_message(void)
{
	struct {
		struct moeep_boot_header header;
		struct moeep_boot_gather gather;
		unsigned char part[500];
	} message = {.header = {MOEEP_BOOT_MAGIC, MOEEP_BOOT_VERSION, MOEEP_BOOT_GATHER,
				sizeof(message.gather) + 1000},
		     .gather = {.round = 1, .bytes = 1000, .timeout_ms = MOEEP_TIMEOUT_NONE}};
	struct member members[3];
	moeep_rendezvous_t *rendezvous;
	moeep_unique_id_t id;
	int victim = 1;
	int half;
	int fd;

	rendezvous = create(&id, 0);
	fd = raw_join(&id, 1, 4);
	half = raw_join(&id, 3, 4);
	for (int i = 0; i < 3; i += 2) {
		members[i] = (struct member){.id = &id,
					     .rank = i,
					     .num_ranks = 4,
					     .timeout_ms = TIMEOUT_MS,
					     .fn = exchange_until_lost,
					     .arg = &victim};
		member_start(&members[i]);
	}
	sleep_ms(100);
	ok(raw_write(half, &message, sizeof(message)), "half of a rank's bytes");
	ok(raw_write(fd, &message, sizeof(message)), "and of another's");
	sleep_ms(100);
	close(fd);
	for (int i = 0; i < 3; i += 2) {
		member_wait(&members[i]);
		is_int(members[i].rc, MOEEP_ERR_PEER_LOST, "rank %d sees the first one's end", i);
	}
	/* The other half belongs to an exchange that is no more. */
	ok(raw_write(half, message.part, sizeof(message.part)), "the other half arrives");
	sleep_ms(100);
	close(half);
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

static atomic_int left;

static int leave_early(struct member *member, struct moeep_boot *boot)
{
	int rc = exchange_check(boot, member->rank, member->num_ranks, 10, 1, TIMEOUT_MS);
	int64_t start;

	if (rc || member->rank == 1) {
		return rc;
	}
	while (!atomic_load(&left)) {
		sleep_ms(1);
	}
	if (moeep_boot_lost(boot) != -1) {
		return 4;
	}
	start = now_ms();
	rc = exchange_check(boot, member->rank, member->num_ranks, 10, 2, TIMEOUT_MS);
	if (now_ms() - start > 5000 || moeep_boot_lost(boot) != -1) {
		return 5;
	}
	return rc;
}

static void test_good_bye(void)
{
	moeep_rendezvous_t *rendezvous;
	struct member members[2];
	moeep_unique_id_t id;

	rendezvous = create(&id, 0);
	for (int i = 0; i < 2; i++) {
		members[i] = (struct member){.id = &id,
					     .rank = i,
					     .num_ranks = 2,
					     .timeout_ms = TIMEOUT_MS,
					     .fn = leave_early};
		member_start(&members[i]);
	}
	member_wait(&members[1]);
	is_int(members[1].rc, MOEEP_OK, "a rank leaves");
	atomic_store(&left, 1);
	member_wait(&members[0]);
	is_int(members[0].rc, MOEEP_ERR_PEER_LOST, "an exchange without it fails at once");
	ok(strstr(members[0].detail, "rank 1 had left"), "detail: %s", members[0].detail);
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_OK, "destroy");
}

static int wait_for_word(struct member *member, struct moeep_boot *boot)
{
	char word;

	(void)boot;
	return read(*(const int *)member->arg, &word, 1) == 1 ? MOEEP_OK : 3;
}

static int host_dies(struct member *member, struct moeep_boot *boot)
{
	int rc = exchange_check(boot, member->rank, member->num_ranks, 10, 1, TIMEOUT_MS);

	if (rc == MOEEP_OK) {
		/* The hub in this process has yet to answer the other rank. */
		sleep_ms(200);
		raise(SIGKILL);
	}
	return rc;
}

static int host_leaves(struct member *member, struct moeep_boot *boot)
{
	return exchange_check(boot, member->rank, member->num_ranks, 10, 1, TIMEOUT_MS);
}

/* A child hosts the rendezvous and is rank 0; returns once the id is there. */
static pid_t fork_host(member_fn fn, moeep_unique_id_t *id)
{
	moeep_rendezvous_t *rendezvous;
	int ends[2];
	pid_t child;

	if (pipe(ends) != 0) {
		tap_bail("pipe failed");
	}
	child = fork();
	if (child == 0) {
		struct member member = {
			.id = id, .rank = 0, .num_ranks = 2, .timeout_ms = TIMEOUT_MS, .fn = fn};

		if (moeep_rendezvous_create(NULL, &rendezvous, id) ||
		    write(ends[1], id, sizeof(*id)) != (ssize_t)sizeof(*id)) {
			_exit(1);
		}
		member_run(&member);
		/* Gone without a word of the rendezvous, after the good-bye of its rank. */
		sleep_ms(300);
		_exit(0);
	}
	close(ends[1]);
	if (read(ends[0], id, sizeof(*id)) != (ssize_t)sizeof(*id)) {
		tap_bail("the host did not start");
	}
	close(ends[0]);
	return child;
}

struct host {
	pid_t child;
	int lost; /* what moeep_boot_lost() says after its end */
};

static int exchange_until_failure(struct member *member, struct moeep_boot *boot)
{
	struct host *host = member->arg;
	siginfo_t info;
	int rc = exchange_check(boot, member->rank, member->num_ranks, 10, 1, TIMEOUT_MS);

	if (rc == MOEEP_OK) {
		/* A process that can be waited for has closed its sockets. */
		waitid(P_PID, (id_t)host->child, &info, WEXITED | WNOWAIT);
		host->lost = moeep_boot_lost(boot);
		rc = exchange_check(boot, member->rank, member->num_ranks, 10, 2, TIMEOUT_MS);
	}
	return rc;
}

static void test_host_death(void)
{
	struct member member = {
		.rank = 1, .num_ranks = 2, .timeout_ms = TIMEOUT_MS, .fn = exchange_until_failure};
	struct host host = {.lost = -2};
	moeep_unique_id_t id;

	member.id = &id;
	member.arg = &host;
	host.child = fork_host(host_dies, &id);
	member_run(&member);
	waitpid(host.child, NULL, 0);
	is_int(member.rc, MOEEP_ERR_PEER_LOST, "the host of the rendezvous dies");
	is_int(host.lost, 0, "its rank is the one that is lost");
	ok(strstr(member.detail, "rank 0 is lost"), "detail: %s", member.detail);

	host.lost = -2;
	host.child = fork_host(host_leaves, &id);
	member_run(&member);
	waitpid(host.child, NULL, 0);
	is_int(member.rc, MOEEP_ERR_PEER_LOST, "the host ends after its rank has left");
	is_int(host.lost, -1, "its rank is not lost");
	ok(strstr(member.detail, "ended"), "detail: %s", member.detail);
}

static void test_impatient_host(void)
{
	moeep_rendezvous_t *rendezvous;
	struct member members[2];
	moeep_unique_id_t id;
	int64_t start;
	int ends[2];

	if (pipe(ends) != 0) {
		tap_bail("pipe failed");
	}
	rendezvous = create(&id, 300);
	for (int i = 0; i < 2; i++) {
		members[i] = (struct member){.id = &id,
					     .rank = i,
					     .num_ranks = 2,
					     .timeout_ms = TIMEOUT_MS,
					     .fn = wait_for_word,
					     .arg = &ends[0]};
		member_start(&members[i]);
	}
	sleep_ms(300 * slowness());
	start = now_ms();
	is_int(moeep_rendezvous_destroy(rendezvous), MOEEP_ERR_TIMEOUT,
	       "the rendezvous does not wait for ever");
	ok(now_ms() - start >= 250 && now_ms() - start < 3000, "but its time");
	ok(strstr(moeep_error_detail(), "ranks 0-1"), "detail: %s", moeep_error_detail());
	ok(write(ends[1], "go", 2) == 2, "the ranks go on");
	for (int i = 0; i < 2; i++) {
		member_wait(&members[i]);
		is_int(members[i].rc, MOEEP_OK, "rank %d leaves", i);
		ok(members[i].ms < TIMEOUT_MS, "without waiting");
	}
	close(ends[0]);
	close(ends[1]);
}

int main(void)
{
	unsetenv("MOEEP_INTERFACE");
	test_missing_joiner();
	test_missing_in_exchange();
	test_mismatch();
	test_death();
	test_death_seen_without_exchange();
	test_death_in_message();
	test_good_bye();
	test_host_death();
	test_impatient_host();
	return tap_done();
}
