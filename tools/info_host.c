/* SPDX-License-Identifier: MIT */
/* tools/info_host.c - what this host offers: found out, and written as text and as JSON. */
#include <config.h>

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "info_host.h"

/* The first line of a file, without its newline; "" if there is none. */
static void read_line(const char *path, char *text, size_t size)
{
	FILE *file = fopen(path, "re");

	text[0] = '\0';
	if (!file) {
		return;
	}
	if (!fgets(text, (int)size, file)) {
		text[0] = '\0';
	}
	text[strcspn(text, "\n")] = '\0';
	fclose(file);
}

/* Of "always within_size [never]" the word in brackets. */
static void take_bracketed(char *text)
{
	char *start = strchr(text, '['), *end = start ? strchr(start, ']') : NULL;

	if (end) {
		*end = '\0';
		memmove(text, start + 1, strlen(start + 1) + 1);
	}
}

/* Numbers in a list such as "0-1,4"; 1 if there is none: every machine has a node. */
static int count_list(const char *text)
{
	int count = 0;

	while (*text >= '0' && *text <= '9') {
		char *end;
		long first = strtol(text, &end, 10), last = first;

		if (*end == '-') {
			last = strtol(end + 1, &end, 10);
		}
		if (last >= first && last - first < 65536) {
			count += (int)(last - first + 1);
		}
		text = *end == ',' ? end + 1 : end;
	}
	return count > 0 ? count : 1;
}

static int count_cpus(void)
{
	/* More than the fixed set has, on the machines that need it. */
	for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) {
		cpu_set_t *set = CPU_ALLOC(cpus);
		size_t size = CPU_ALLOC_SIZE(cpus);
		int count;

		if (!set) {
			break;
		}
		if (sched_getaffinity(0, size, set) == 0) {
			count = CPU_COUNT_S(size, set);
			CPU_FREE(set);
			return count;
		}
		CPU_FREE(set);
		if (errno != EINVAL) {
			break;
		}
	}
	return (int)sysconf(_SC_NPROCESSORS_ONLN);
}

int info_host_look(struct info_host *host)
{
	struct statvfs shm;
	char nodes[256];
	int fd;

	memset(host, 0, sizeof(*host));
	if (uname(&host->uname)) {
		fprintf(stderr, "moeep-info: uname: %s\n", strerror(errno));
		return -1;
	}
	read_line("/proc/sys/kernel/random/boot_id", host->boot_id, sizeof(host->boot_id));
	host->cpus_online = (int)sysconf(_SC_NPROCESSORS_ONLN);
	host->cpus_allowed = count_cpus();
	read_line("/sys/devices/system/node/online", nodes, sizeof(nodes));
	host->numa_nodes = count_list(nodes);
	host->memory_known = memory_limit_get(&host->memory) == 0;
	if (getrlimit(RLIMIT_MEMLOCK, &host->memlock)) {
		host->memlock.rlim_cur = 0;
	}
	if (statvfs("/dev/shm", &shm) == 0) {
		host->shm_known = true;
		host->shm_bytes = (uint64_t)shm.f_blocks * shm.f_frsize;
		host->shm_free = (uint64_t)shm.f_bavail * shm.f_frsize;
	}
	fd = memfd_create("moeep-info", MFD_CLOEXEC);
	if (fd < 0) {
		host->memfd_errno = errno;
	} else {
		close(fd);
	}
	read_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled", nodes, sizeof(nodes));
	take_bracketed(nodes);
	snprintf(host->thp_shmem, sizeof(host->thp_shmem), "%.31s", nodes);
	return 0;
}

static void text_field(const char *name, const char *value)
{
	printf("  %-16s", name);
	print_text(stdout, value);
	putchar('\n');
}

void info_host_text(const struct info_host *host)
{
	char line[256], a[HUMAN_TEXT], b[HUMAN_TEXT];

	printf("\nHost\n");
	text_field("name", host->uname.nodename);
	snprintf(line, sizeof(line), "%.64s %.100s %.60s", host->uname.sysname, host->uname.release,
		 host->uname.machine);
	text_field("kernel", line);
	text_field("boot id", host->boot_id[0] ? host->boot_id : "unknown");
	snprintf(line, sizeof(line), "%d of %d for this process", host->cpus_allowed,
		 host->cpus_online);
	text_field("processors", line);
	snprintf(line, sizeof(line), "%d", host->numa_nodes);
	text_field("NUMA nodes", line);
	if (host->memory_known) {
		snprintf(line, sizeof(line), "%s, of which %s left by %s",
			 human_bytes(host->memory.total, a), human_bytes(host->memory.available, b),
			 host->memory.limited_by);
	} else {
		snprintf(line, sizeof(line), "unknown");
	}
	text_field("memory", line);
	text_field("locked memory", host->memlock.rlim_cur == RLIM_INFINITY
					    ? "no limit"
					    : human_bytes(host->memlock.rlim_cur, a));
	if (host->memfd_errno) {
		snprintf(line, sizeof(line), "memfd_create: %s", strerror(host->memfd_errno));
	} else {
		snprintf(line, sizeof(line), "yes, anonymous (memfd)");
	}
	text_field("shared memory", line);
	if (host->shm_known) {
		snprintf(line, sizeof(line), "%s, %s free; not needed by moeep",
			 human_bytes(host->shm_bytes, a), human_bytes(host->shm_free, b));
		text_field("/dev/shm", line);
	}
	snprintf(line, sizeof(line), "%s, in shared memory",
		 host->thp_shmem[0] ? host->thp_shmem : "unknown");
	text_field("huge pages", line);
}

void info_host_json(struct json *json, const struct info_host *host)
{
	json_object(json, "host");
	json_string(json, "name", host->uname.nodename);
	json_string(json, "system", host->uname.sysname);
	json_string(json, "kernel", host->uname.release);
	json_string(json, "machine", host->uname.machine);
	json_string(json, "boot_id", host->boot_id[0] ? host->boot_id : NULL);
	json_int(json, "processors_online", host->cpus_online);
	json_int(json, "processors_allowed", host->cpus_allowed);
	json_int(json, "numa_nodes", host->numa_nodes);
	if (host->memory_known) {
		json_uint(json, "memory_bytes", host->memory.total);
		json_uint(json, "memory_available_bytes", host->memory.available);
		json_string(json, "memory_limited_by", host->memory.limited_by);
	}
	if (host->memlock.rlim_cur == RLIM_INFINITY) {
		json_string(json, "locked_memory_bytes", NULL);
	} else {
		json_uint(json, "locked_memory_bytes", host->memlock.rlim_cur);
	}
	json_bool(json, "anonymous_shared_memory", host->memfd_errno == 0);
	if (host->shm_known) {
		json_uint(json, "dev_shm_bytes", host->shm_bytes);
		json_uint(json, "dev_shm_free_bytes", host->shm_free);
	}
	json_string(json, "transparent_huge_pages_shmem",
		    host->thp_shmem[0] ? host->thp_shmem : NULL);
	json_close(json);
}
