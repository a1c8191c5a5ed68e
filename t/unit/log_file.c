/* SPDX-License-Identifier: MIT */
/* MOEEP_LOG_FILE: where lines go, and what they say of the ways between ranks. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <moeep/moeep.h>

#include "t/tap.h"

#define RANKS 3

static char dir[] = "/tmp/moeep-log.XXXXXX";
static moeep_unique_id_t id;
static int lines_of_function;

static void log_line(void *context, int level, const char *line)
{
	(void)context;
	(void)level;
	(void)line;
	lines_of_function++;
}

/* What is in the file of a rank. */
static const char *content(const char *name)
{
	static char text[8192];
	char path[128];
	FILE *file;
	size_t n;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "r");
	n = file ? fread(text, 1, sizeof(text) - 1, file) : 0;
	text[n] = '\0';
	if (file) {
		fclose(file);
	}
	return text;
}

static int lines(const char *text)
{
	int count = 0;

	for (; *text; text++) {
		count += *text == '\n';
	}
	return count;
}

static void name_file(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	setenv("MOEEP_LOG_FILE", path, 1);
}

static int join(int rank, int num_ranks)
{
	moeep_comm_config_t config = {.size = sizeof(config),
				      .backend = MOEEP_BACKEND_HOST,
				      .id = num_ranks > 1 ? &id : NULL,
				      .log = log_line};
	moeep_comm_t *comm = NULL;
	int rc = moeep_comm_create(rank, num_ranks, &config, &comm);

	if (rc == MOEEP_OK) {
		rc = moeep_comm_barrier(comm);
	}
	(void)moeep_comm_destroy(comm);
	return rc;
}

static void *run_thread(void *arg)
{
	return (void *)(intptr_t)join((int)(intptr_t)arg, RANKS);
}

/* Ranks 0 and 1 in this process, 2 in another one. */
static int run_ranks(void)
{
	moeep_rendezvous_config_t config = {.size = sizeof(config), .timeout_ms = 1000};
	moeep_rendezvous_t *rendezvous = NULL;
	pthread_t threads[RANKS - 1];
	int failed = 0;
	int status = 0;
	pid_t child;

	if (moeep_rendezvous_create(&config, &rendezvous, &id)) {
		tap_bail("no rendezvous: %s", moeep_error_detail());
	}
	child = fork();
	if (child == 0) {
		_exit(join(RANKS - 1, RANKS) != MOEEP_OK);
	}
	for (int rank = 0; rank < RANKS - 1; rank++) {
		pthread_create(&threads[rank], NULL, run_thread, (void *)(intptr_t)rank);
	}
	for (int rank = 0; rank < RANKS - 1; rank++) {
		void *rc;

		pthread_join(threads[rank], &rc);
		failed += rc != NULL;
	}
	(void)waitpid(child, &status, 0);
	(void)moeep_rendezvous_destroy(rendezvous);
	return failed + (status != 0);
}

static void test_ranks(void)
{
	name_file("rank-%r.log");
	is_int(run_ranks(), 0, "a group with a file for each rank");
	is_int(lines_of_function, 0, "the caller's function gets nothing");
	is_str(content("rank-0.log"),
	       "moeep[0]: rank 0 of 3, 3 on this host, host backend\n"
	       "moeep[0]: rank 1: by plain pointers: threads of this process\n"
	       "moeep[0]: rank 2: by shared memory: other processes of this host, and not by a "
	       "GPU, as this is the host backend\n",
	       "a rank with both kinds of peers");
	is_str(content("rank-2.log"),
	       "moeep[2]: rank 2 of 3, 3 on this host, host backend\n"
	       "moeep[2]: ranks 0-1: by shared memory: other processes of this host, and not by a "
	       "GPU, as this is the host backend\n",
	       "and one whose peers are in another process");
	is_int(run_ranks(), 0, "once more");
	is_int(lines(content("rank-2.log")), 4, "lines go behind what is there");
	name_file("all.log");
	is_int(run_ranks(), 0, "a group with one file");
	is_int(lines(content("all.log")), 8, "which has the lines of all");
}

static void test_bad(void)
{
	char text[300];

	name_file("none/file.log");
	is_int(join(0, 1), MOEEP_ERR_INVALID, "a folder that is not there");
	ok(strstr(moeep_error_detail(), "MOEEP_LOG_FILE is") &&
		   strstr(moeep_error_detail(), strerror(ENOENT)),
	   "detail: %s", moeep_error_detail());
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	setenv("MOEEP_LOG_FILE", text, 1);
	is_int(join(0, 1), MOEEP_ERR_INVALID, "a long name");
	ok(strstr(moeep_error_detail(), "at most 127 bytes"), "detail: %s", moeep_error_detail());
	unsetenv("MOEEP_LOG_FILE");
	is_int(join(0, 1), MOEEP_OK, "without the variable");
	ok(lines_of_function > 0, "the caller's function gets lines");
}

int main(void)
{
	char command[128];

	if (!mkdtemp(dir)) {
		tap_bail("mkdtemp: %s", strerror(errno));
	}
	setenv("MOEEP_LOG", "info", 1);
	setenv("MOEEP_SITE_FILE", "none", 1);
	test_ranks();
	test_bad();
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	is_int(system(command), 0, "all is removed");
	return tap_done();
}
