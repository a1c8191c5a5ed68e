/* SPDX-License-Identifier: MIT */
/* Ids that ranks find in the environment, and the file that holds one. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <moeep/moeep.h>

#include "t/tap.h"

#define RANKS 3

static char dir[] = "/tmp/moeep-id.XXXXXX";
static char path[64];

static void sleep_ms(int ms)
{
	struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

	nanosleep(&time, NULL);
}

static moeep_rendezvous_t *rendezvous_open(moeep_unique_id_t *id)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = 1000};
	moeep_rendezvous_t *rendezvous = NULL;

	if (moeep_rendezvous_create(&config, &rendezvous, id)) {
		tap_bail("no rendezvous: %s", moeep_error_detail());
	}
	return rendezvous;
}

/* Where the text is written as it is. */
static void write_file(const char *text, mode_t mode)
{
	FILE *file;

	(void)unlink(path);
	file = fopen(path, "w");
	if (!file || fputs(text, file) < 0 || fclose(file) != 0 || chmod(path, mode)) {
		tap_bail("%s: %s", path, strerror(errno));
	}
}

static void test_save(void)
{
	char text[MOEEP_UNIQUE_ID_TEXT + 2] = "";
	char nowhere[80];
	moeep_rendezvous_t *rendezvous;
	moeep_unique_id_t id, back;
	struct stat status;
	FILE *file;

	rendezvous = rendezvous_open(&id);
	write_file("something else that is longer than an id is, to see that it is gone", 0644);
	umask(0);
	is_int(moeep_unique_id_save(&id, path), MOEEP_OK, "an id is saved");
	ok(stat(path, &status) == 0 && (status.st_mode & 07777) == 0600, "with mode 0600");
	file = fopen(path, "r");
	ok(file && fread(text, 1, sizeof(text), file) == MOEEP_UNIQUE_ID_TEXT,
	   "in place of what was there");
	if (file) {
		fclose(file);
	}
	is_int(moeep_unique_id_parse(text, &back), MOEEP_OK, "it can be read");
	ok(memcmp(&id, &back, sizeof(id)) == 0, "and is the same");
	is_int(moeep_unique_id_save(NULL, path), MOEEP_ERR_INVALID, "id is NULL");
	is_int(moeep_unique_id_save(&id, NULL), MOEEP_ERR_INVALID, "path is NULL");
	is_int(moeep_unique_id_save(&id, ""), MOEEP_ERR_INVALID, "path is empty");
	snprintf(nowhere, sizeof(nowhere), "%s/none/id", dir);
	ok(moeep_unique_id_save(&id, nowhere) < 0 && strstr(moeep_error_detail(), nowhere),
	   "a folder that is not there: %s", moeep_error_detail());
	snprintf(nowhere, sizeof(nowhere), "%s/folder", dir);
	mkdir(nowhere, 0700);
	ok(moeep_unique_id_save(&id, nowhere) < 0 && strstr(moeep_error_detail(), "rename"),
	   "a folder in its place: %s", moeep_error_detail());
	rmdir(nowhere);
	(void)moeep_rendezvous_destroy(rendezvous);
}

struct member {
	pthread_t thread;
	int rank;
	int rc;
	char secret_shown[128];
	int source;
};

static void *join(void *arg)
{
	moeep_comm_config_t config = {.size = sizeof(config), .backend = MOEEP_BACKEND_HOST};
	moeep_setting_info_t info = {.size = sizeof(info)};
	struct member *member = arg;
	moeep_comm_t *comm = NULL;

	member->rc = moeep_comm_create(member->rank, RANKS, &config, &comm);
	for (unsigned int i = 0; comm && moeep_setting_query(comm, i, &info) == MOEEP_OK; i++) {
		if (strcmp(info.name, "MOEEP_ID") == 0) {
			snprintf(member->secret_shown, sizeof(member->secret_shown), "%s",
				 info.value);
			member->source = info.source;
		}
	}
	(void)moeep_comm_destroy(comm);
	return NULL;
}

static void join_all(struct member *members)
{
	for (int rank = 0; rank < RANKS; rank++) {
		members[rank] = (struct member){.rank = rank};
		pthread_create(&members[rank].thread, NULL, join, &members[rank]);
	}
}

static int all_joined(struct member *members)
{
	int count = 0;

	for (int rank = 0; rank < RANKS; rank++) {
		pthread_join(members[rank].thread, NULL);
		count += members[rank].rc == MOEEP_OK;
	}
	return count;
}

static void test_meet(void)
{
	char text[MOEEP_UNIQUE_ID_TEXT];
	struct member members[RANKS];
	moeep_rendezvous_t *rendezvous;
	moeep_unique_id_t id;

	rendezvous = rendezvous_open(&id);
	moeep_unique_id_format(&id, text, sizeof(text));
	setenv("MOEEP_ID", text, 1);
	setenv("MOEEP_ID_FILE", "/nonexistent", 1);
	join_all(members);
	is_int(all_joined(members), RANKS, "ranks meet by MOEEP_ID, which goes first");
	is_str(members[1].secret_shown, "(set)", "which is not shown");
	is_int(members[1].source, MOEEP_SOURCE_ENVIRONMENT, "but that it is there");
	unsetenv("MOEEP_ID");
	(void)moeep_rendezvous_destroy(rendezvous);

	rendezvous = rendezvous_open(&id);
	(void)unlink(path);
	setenv("MOEEP_ID_FILE", path, 1);
	join_all(members);
	sleep_ms(150);
	is_int(moeep_unique_id_save(&id, path), MOEEP_OK, "a file that comes late");
	is_int(all_joined(members), RANKS, "is waited for");
	is_str(members[1].secret_shown, "", "without MOEEP_ID there is nothing to hide");
	(void)moeep_rendezvous_destroy(rendezvous);
}

/* One rank of two, which is refused; the detail has the text. */
static void refused(int expected, const char *text, const char *what)
{
	moeep_comm_config_t config = {
		.size = sizeof(config), .backend = MOEEP_BACKEND_HOST, .timeout_ms = 200};
	moeep_comm_t *comm = NULL;

	is_int(moeep_comm_create(0, 2, &config, &comm), expected, "%s", what);
	ok(strstr(moeep_error_detail(), text), "detail: %s", moeep_error_detail());
}

static void test_refused(void)
{
	char id[MOEEP_UNIQUE_ID_TEXT];

	unsetenv("MOEEP_ID_FILE");
	refused(MOEEP_ERR_INVALID, "MOEEP_ID and MOEEP_ID_FILE are not set", "no way to meet");
	memset(id, 'a', sizeof(id) - 1);
	id[sizeof(id) - 1] = '\0';
	setenv("MOEEP_ID", id, 1);
	refused(MOEEP_ERR_INVALID, "MOEEP_ID is no id", "an id that is none");
	ok(!strstr(moeep_error_detail(), "aaaa"), "is not shown");
	unsetenv("MOEEP_ID");
	setenv("MOEEP_ID_FILE", path, 1);
	(void)unlink(path);
	refused(MOEEP_ERR_RENDEZVOUS, path, "a file that never comes");
	write_file("aaaa", 0600);
	refused(MOEEP_ERR_RENDEZVOUS, path, "one that stays a part");
	write_file(id, 0600);
	refused(MOEEP_ERR_INVALID, "is no id", "one with something else");
	ok(!strstr(moeep_error_detail(), "aaaa"), "is not shown");
	write_file(id, 0640);
	refused(MOEEP_ERR_INVALID, "0640", "one that others may read");
	write_file(id, 0602);
	refused(MOEEP_ERR_INVALID, "0602", "one that others may write");
	setenv("MOEEP_ID_FILE", dir, 1);
	refused(MOEEP_ERR_INVALID, dir, "a folder");
	if (geteuid() == 0) {
		write_file(id, 0600);
		setenv("MOEEP_ID_FILE", path, 1);
		is_int(chown(path, 1, 1), 0, "a file");
		refused(MOEEP_ERR_INVALID, "another user's", "of another user");
	} else {
		tap_skip(3, "only root can give a file away");
	}
	unsetenv("MOEEP_ID_FILE");
}

int main(void)
{
	setenv("MOEEP_LOG", "none", 1);
	if (!mkdtemp(dir)) {
		tap_bail("mkdtemp: %s", strerror(errno));
	}
	snprintf(path, sizeof(path), "%s/id", dir);
	test_save();
	test_meet();
	test_refused();
	(void)unlink(path);
	rmdir(dir);
	return tap_done();
}
