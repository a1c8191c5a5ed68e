/* SPDX-License-Identifier: MIT */
/* tools/info_host.c - what a host offers, as text and as JSON. */
#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "info_host.h"

#define THP "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* Of "always within_size [never]" the word in brackets. */
static void take_bracketed(char *text, size_t size, const char *list)
{
	const char *start = list ? strchr(list, '[') : NULL;
	const char *end = start ? strchr(start, ']') : NULL;

	text[0] = '\0';
	if (end) {
		snprintf(text, size, "%.*s", (int)(end - start - 1), start + 1);
	}
}

/* Numbers in a list such as "0-1,4". */
static int count_list(const char *text)
{
	int count = 0;

	while (*text >= '0' && *text <= '9') {
		char *end;
		long first = strtol(text, &end, 10), last = first;

		if (*end == '-') {
			last = strtol(end + 1, &end, 10);
		}
		if (first >= 0 && last >= first && last < 65536) {
			count += (int)(last - first + 1);
		}
		text = *end == ',' ? end + 1 : end;
	}
	return count < 65536 ? count : 65536;
}

int info_host_numa_nodes(const struct machine *machine)
{
	const char *online = machine_get(machine, "/sys/devices/system/node/online");
	int count = online ? count_list(online) : 0;

	return count > 0 ? count : 1;
}

static const char *known(const char *value)
{
	return value ? value : "unknown";
}

static void text_nodes(const struct machine *machine)
{
	int count = info_host_numa_nodes(machine);

	printf("  %-16s%d", "NUMA nodes", count);
	for (int i = 0; count > 1 && i < count; i++) {
		const char *cpus =
			machine_get(machine, "/sys/devices/system/node/node%d/cpulist", i);

		if (cpus) {
			printf("%s node %d: processors %s", i ? ";" : ",", i, cpus);
		}
	}
	putchar('\n');
}

static void text_memory(const struct machine *machine)
{
	int64_t total = machine_number(machine, -1, "host/memory_bytes");
	int64_t left = machine_number(machine, 0, "host/memory_available_bytes");
	const char *limit = machine_get(machine, "host/locked_memory_bytes");
	char line[256], a[HUMAN_TEXT], b[HUMAN_TEXT];

	snprintf(line, sizeof(line), "unknown");
	if (total >= 0) {
		snprintf(line, sizeof(line), "%s, of which %s left by %.60s",
			 human_bytes((uint64_t)total, a), human_bytes((uint64_t)left, b),
			 known(machine_get(machine, "host/memory_limited_by")));
	}
	print_field("memory", line);
	print_field("locked memory", !limit ? "unknown"
				     : machine_is(limit, "unlimited")
					     ? "no limit"
					     : human_bytes(strtoull(limit, NULL, 10), a));
}

static void text_shared(const struct machine *machine)
{
	const char *memfd = machine_get(machine, "host/anonymous_shared_memory");
	int64_t shm = machine_number(machine, -1, "host/dev_shm_bytes");
	int64_t left = machine_number(machine, 0, "host/dev_shm_free_bytes");
	char line[256], thp[32], a[HUMAN_TEXT], b[HUMAN_TEXT];

	if (machine_is(memfd, "yes")) {
		snprintf(line, sizeof(line), "yes, anonymous (memfd)");
	} else {
		snprintf(line, sizeof(line), "memfd_create: %.200s", known(memfd));
	}
	print_field("shared memory", line);
	if (shm >= 0) {
		snprintf(line, sizeof(line), "%s, %s free; not needed by moeep",
			 human_bytes((uint64_t)shm, a), human_bytes((uint64_t)left, b));
		print_field("/dev/shm", line);
	}
	take_bracketed(thp, sizeof(thp), machine_get(machine, THP));
	snprintf(line, sizeof(line), "%s, in shared memory", thp[0] ? thp : "unknown");
	print_field("huge pages", line);
}

void info_host_text(const struct machine *machine)
{
	const char *processor = machine_get(machine, "host/processor");
	char line[512], bytes[HUMAN_TEXT];

	printf("\nHost\n");
	print_field("name", known(machine_get(machine, "host/name")));
	snprintf(line, sizeof(line), "%.64s %.100s %.60s",
		 known(machine_get(machine, "host/system")),
		 known(machine_get(machine, "host/kernel")),
		 known(machine_get(machine, "host/machine")));
	print_field("kernel", line);
	snprintf(line, sizeof(line), "%s",
		 human_bytes((uint64_t)machine_number(machine, 0, "host/page_bytes"), bytes));
	print_field("page", line);
	print_field("boot id", known(machine_get(machine, "/proc/sys/kernel/random/boot_id")));
	snprintf(line, sizeof(line), "%d of %d for this process%s%.100s",
		 (int)machine_number(machine, 0, "host/processors_allowed"),
		 (int)machine_number(machine, 0, "host/processors_online"), processor ? "; " : "",
		 processor ? processor : "");
	print_field("processors", line);
	text_nodes(machine);
	text_memory(machine);
	print_field("open files", known(machine_get(machine, "host/open_files")));
	text_shared(machine);
}

/* As a number; null if it is none. */
static void json_fact(struct json *json, const char *key, const struct machine *machine,
		      const char *name)
{
	int64_t number = machine_number(machine, -1, "%s", name);

	if (number < 0) {
		json_string(json, key, NULL);
	} else {
		json_int(json, key, number);
	}
}

void info_host_json(struct json *json, const struct machine *machine)
{
	static const struct {
		const char *key, *name;
	} texts[] =
		{
			{"name", "host/name"},
			{"system", "host/system"},
			{"kernel", "host/kernel"},
			{"machine", "host/machine"},
			{"processor", "host/processor"},
			{"boot_id", "/proc/sys/kernel/random/boot_id"},
			{"memory_limited_by", "host/memory_limited_by"},
		},
	  numbers[] = {
		  {"processors_online", "host/processors_online"},
		  {"processors_allowed", "host/processors_allowed"},
		  {"page_bytes", "host/page_bytes"},
		  {"memory_bytes", "host/memory_bytes"},
		  {"memory_available_bytes", "host/memory_available_bytes"},
		  /* null: no limit */
		  {"locked_memory_bytes", "host/locked_memory_bytes"},
		  {"open_files", "host/open_files"},
		  {"dev_shm_bytes", "host/dev_shm_bytes"},
		  {"dev_shm_free_bytes", "host/dev_shm_free_bytes"},
	  };
	const char *memfd = machine_get(machine, "host/anonymous_shared_memory");
	char thp[32];

	json_object(json, "host");
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		json_string(json, texts[i].key, machine_get(machine, "%s", texts[i].name));
	}
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		json_fact(json, numbers[i].key, machine, numbers[i].name);
	}
	json_int(json, "numa_nodes", info_host_numa_nodes(machine));
	json_bool(json, "anonymous_shared_memory", machine_is(memfd, "yes"));
	take_bracketed(thp, sizeof(thp), machine_get(machine, THP));
	json_string(json, "transparent_huge_pages_shmem", thp[0] ? thp : NULL);
	json_close(json);
}
