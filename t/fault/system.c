/* SPDX-License-Identifier: MIT */
/* What the fault tests use of the system: time, traps, and what a process leaves behind. */
#include "config.h"

#include "t/fault/fault.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "t/tap.h"

#define NAMES_MAX 4096

uint64_t fault_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void fault_sleep_ms(int ms)
{
	struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

	nanosleep(&time, NULL);
}

int fault_slowness(void)
{
	const char *sanitizers = getenv("MOEEP_TEST_SANITIZERS");

	return sanitizers && sanitizers[0] && strcmp(sanitizers, "no") != 0 ? 3 : 1;
}

/* One trap a process. */
static struct fault_rank *trap_rank;
static unsigned char *trap_page;
static size_t trap_bytes;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	unsigned char *at = info->si_addr;

	(void)context;
	if (!trap_page || at < trap_page || at >= trap_page + trap_bytes) {
		/* An error of its own: the access is repeated and ends the process. */
		signal(sig, SIG_DFL);
		return;
	}
	mprotect(trap_page, trap_bytes, PROT_READ | PROT_WRITE);
	trap_page = NULL;
	(void)fault_strike(trap_rank);
}

void fault_trap(struct fault_rank *r, unsigned char *memory, size_t offset)
{
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};

	trap_rank = r;
	trap_page = memory + offset;
	trap_bytes = (size_t)sysconf(_SC_PAGESIZE);
	sigaction(SIGSEGV, &action, NULL);
	if (mprotect(trap_page, trap_bytes, PROT_NONE) != 0) {
		fault_fail(r, "mprotect failed");
	}
}

int fault_count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	while (dir && readdir(dir)) {
		count++;
	}
	if (dir) {
		closedir(dir);
	}
	return count;
}

int fault_count_maps(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[4600];
	int count = 0;

	while (maps && fgets(line, sizeof(line), maps)) {
		count += strstr(line, "moeep") != NULL;
	}
	if (maps) {
		fclose(maps);
	}
	return count;
}

static const char *const places[] = {"/dev/shm", "/tmp", "/var/tmp"};
static char *names[NAMES_MAX];
static int num_names;

/*
 * Others use these directories, too. Ours would be files of this user that have our name; the
 * directories of shell tests that run meanwhile do not count.
 */
static bool could_be_ours(const char *path, const char *name)
{
	struct stat info;

	return strstr(name, "moeep") && lstat(path, &info) == 0 && !S_ISDIR(info.st_mode) &&
	       info.st_uid == geteuid();
}

static bool known(const char *path)
{
	for (int i = 0; i < num_names; i++) {
		if (!strcmp(names[i], path)) {
			return true;
		}
	}
	return false;
}

/* Calls `each` with what could be ours. */
static void list(void (*each)(const char *path))
{
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		DIR *dir = opendir(places[i]);
		struct dirent *entry;

		while (dir && (entry = readdir(dir))) {
			char path[512];

			snprintf(path, sizeof(path), "%s/%s", places[i], entry->d_name);
			if (could_be_ours(path, entry->d_name)) {
				each(path);
			}
		}
		if (dir) {
			closedir(dir);
		}
	}
}

static void remember(const char *path)
{
	if (num_names < NAMES_MAX) {
		names[num_names++] = strdup(path);
	}
}

static int num_new;

static void compare(const char *path)
{
	if (!known(path)) {
		tap_diag("left behind: %s", path);
		num_new++;
	}
}

static uint64_t begun_ns;
static int begun_fds;

void fault_begin(void)
{
	/* What fails here is meant to: its log lines would look like trouble. */
	setenv("MOEEP_LOG", "none", 0);
	unsetenv("MOEEP_TIMEOUT");
	unsetenv("MOEEP_INTERFACE");
	unsetenv("MOEEP_HT_CHUNK_BYTES");
	unsetenv("MOEEP_HT_CHUNKS");
	signal(SIGPIPE, SIG_IGN);
	list(remember);
	begun_fds = fault_count_fds();
	begun_ns = fault_now_ns();
}

int fault_end(void)
{
	list(compare);
	ok(num_new == 0, "nothing is left in /dev/shm or /tmp");
	is_int(fault_count_fds(), begun_fds, "no descriptor is left in the harness");
	tap_diag("%d ms in all", (int)((fault_now_ns() - begun_ns) / 1000000u));
	while (num_names > 0) {
		free(names[--num_names]);
	}
	return tap_done();
}
