/* SPDX-License-Identifier: MIT */
/* tools/moeep-info.c - what this build of the library contains, and what this host offers it. */
#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <moeep/moeep.h>

#include "output.h"

#define EXIT_USAGE 2

static const char help_text[] =
	"Usage: moeep-info [OPTION]...\n"
	"Say what this build of moeep contains and why it lacks the rest, and what this host "
	"offers.\n"
	"\n"
	"      --settings         the environment variables that the library reads: value in "
	"force,\n"
	"                         source, default, meaning\n"
	"      --hints[=LIST]     memory that a configuration takes on each rank; LIST of\n"
	"                         ranks=N, hidden=N, experts=N, topk=N, ht-tokens=N, ll-tokens=N,\n"
	"                         dtype=T, separated by commas\n"
	"                         [ranks=8,hidden=7168,experts=256,topk=8,ht-tokens=4096,\n"
	"                         ll-tokens=128,dtype=bf16]\n"
	"      --json             everything, as one JSON document\n"
	"  -h, --help             this text\n"
	"  -V, --version          the version\n"
	"\n"
	"Without --settings, --hints and --json: version, features, host, and both of these.\n"
	"\n"
	"Exit status: 0 done; 1 something could not be found out or written; 2 usage.\n";

/* A configuration whose memory is asked for. */
struct hints {
	int64_t ranks;
	int64_t hidden;
	int64_t experts;
	int64_t topk;
	int64_t ht_tokens;
	int64_t ll_tokens;
	int dtype;
	moeep_size_hint_t ht;
	moeep_size_hint_t ll;
	int result; /* of asking */
	char detail[256];
};

struct host {
	struct utsname uname;
	char boot_id[64];
	int cpus_online;
	int cpus_allowed;
	int numa_nodes;
	struct memory_limit memory;
	bool memory_known;
	struct rlimit memlock;
	uint64_t shm_bytes;
	uint64_t shm_free;
	bool shm_known;
	int memfd_errno; /* 0: anonymous shared memory can be had */
	char thp_shmem[32];
};

static int read_hint(struct hints *h, const char *key, const char *value)
{
	static const int dtypes[] = {MOEEP_BF16,     MOEEP_FP16,     MOEEP_FP32,
				     MOEEP_FP8_E4M3, MOEEP_FP8_E5M2, MOEEP_INT8};
	const struct {
		const char *name;
		int64_t *field;
		int64_t min, max;
	} numbers[] = {
		{"ranks", &h->ranks, 1, 4096},
		{"hidden", &h->hidden, 1, INT64_C(1) << 32},
		{"experts", &h->experts, 1, 65536},
		{"topk", &h->topk, 1, 64},
		{"ht-tokens", &h->ht_tokens, 1, (1 << 24) - 1},
		{"ll-tokens", &h->ll_tokens, 1, 65535},
	};

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (strcmp(key, numbers[i].name) != 0) {
			continue;
		}
		if (parse_int(value, numbers[i].min, numbers[i].max, numbers[i].field)) {
			fprintf(stderr,
				"moeep-info: --hints %s=\"%.40s\": it takes a whole number from "
				"%" PRId64 " to %" PRId64 "\n",
				key, value, numbers[i].min, numbers[i].max);
			return -1;
		}
		return 0;
	}
	if (!strcmp(key, "dtype")) {
		for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
			if (!strcmp(value, moeep_dtype_name(dtypes[i]))) {
				h->dtype = dtypes[i];
				return 0;
			}
		}
		fprintf(stderr,
			"moeep-info: --hints dtype=\"%.40s\": it takes bf16, fp16, fp32, fp8_e4m3, "
			"fp8_e5m2, int8\n",
			value);
		return -1;
	}
	fprintf(stderr,
		"moeep-info: --hints \"%.40s\": it knows ranks, hidden, experts, topk, "
		"ht-tokens, ll-tokens, dtype\n",
		key);
	return -1;
}

static int read_hints(struct hints *h, const char *list)
{
	char *own = strdup(list), *rest = own, *item;
	int rc = 0;

	if (!own) {
		fprintf(stderr, "moeep-info: no memory\n");
		return -1;
	}
	while (rc == 0 && (item = strsep(&rest, ","))) {
		char *value = strchr(item, '=');

		if (!value) {
			fprintf(stderr, "moeep-info: --hints \"%.40s\": NAME=VALUE is needed\n",
				item);
			rc = -1;
			break;
		}
		*value++ = '\0';
		rc = read_hint(h, item, value);
	}
	free(own);
	return rc;
}

/* The two families apart, as buffers of their own. */
static void ask_hints(struct hints *h)
{
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.num_experts = (int32_t)h->experts,
		.max_topk = (int32_t)h->topk,
		.dtype = h->dtype,
		.hidden = h->hidden,
		.ht_max_tokens = h->ht_tokens,
		.ll_max_tokens = h->ll_tokens,
	};

	h->ht.size = sizeof(h->ht);
	h->ll.size = sizeof(h->ll);
	config.modes = MOEEP_MODE_HT;
	h->result = moeep_buffer_size_hint(NULL, 0, (int)h->ranks, &config, &h->ht);
	if (h->result == 0) {
		config.modes = MOEEP_MODE_LL;
		h->result = moeep_buffer_size_hint(NULL, 0, (int)h->ranks, &config, &h->ll);
	}
	if (h->result) {
		const char *detail = moeep_error_detail();

		snprintf(h->detail, sizeof(h->detail), "%s",
			 detail[0] ? detail : moeep_strerror(h->result));
	}
}

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

static int look_at_host(struct host *host)
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

static void text_features(void)
{
	moeep_feature_info_t info = {.size = sizeof(info)};

	printf("\nFeatures of this build\n");
	for (unsigned i = 0; moeep_feature_query(i, &info) == 0; i++) {
		printf("  %-16s%-4s %s\n", info.name, info.enabled ? "yes" : "no", info.reason);
	}
}

static void text_host(const struct host *host)
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

static const char *source_name(int source)
{
	return source == MOEEP_SOURCE_ENVIRONMENT ? "environment"
	       : source == MOEEP_SOURCE_CONFIG	  ? "config"
						  : "default";
}

static void text_settings(void)
{
	moeep_setting_info_t info = {.size = sizeof(info)};

	printf("\nSettings (environment variables)\n");
	for (unsigned i = 0; moeep_setting_query(NULL, i, &info) == 0; i++) {
		printf("  %-22s", info.name);
		print_text(stdout, info.value[0] ? info.value : "(empty)");
		printf("%s%s, from the %s (default %s)\n", info.unit[0] ? " " : "", info.unit,
		       source_name(info.source),
		       info.default_value[0] ? info.default_value : "empty");
		printf("  %-22s%s\n", "", info.description);
	}
}

static void text_hint(const char *name, const moeep_size_hint_t *hint)
{
	char a[HUMAN_TEXT], b[HUMAN_TEXT], c[HUMAN_TEXT];

	printf("  %-16sshared %s, private %s, each handle %s\n", name,
	       human_bytes(hint->window_bytes, a), human_bytes(hint->private_bytes, b),
	       human_bytes(hint->handle_bytes, c));
}

static void text_hints(const struct hints *h)
{
	printf("\nMemory of a buffer on each rank: %" PRId64 " ranks on one host, hidden %" PRId64
	       ", top-%" PRId64 " of %" PRId64 ", %s\n",
	       h->ranks, h->hidden, h->topk, h->experts, moeep_dtype_name(h->dtype));
	if (h->result) {
		printf("  not possible: %s\n", h->detail);
		return;
	}
	printf("  HT, up to %" PRId64 " tokens a rank; LL, up to %" PRId64 "\n", h->ht_tokens,
	       h->ll_tokens);
	text_hint("HT", &h->ht);
	text_hint("LL", &h->ll);
}

static void json_features(struct json *json)
{
	moeep_feature_info_t info = {.size = sizeof(info)};

	json_array(json, "features");
	for (unsigned i = 0; moeep_feature_query(i, &info) == 0; i++) {
		json_object(json, NULL);
		json_string(json, "name", info.name);
		json_bool(json, "enabled", info.enabled != 0);
		json_string(json, "reason", info.reason);
		json_close(json);
	}
	json_close(json);
}

static void json_host(struct json *json, const struct host *host)
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

static void json_settings(struct json *json)
{
	moeep_setting_info_t info = {.size = sizeof(info)};

	json_array(json, "settings");
	for (unsigned i = 0; moeep_setting_query(NULL, i, &info) == 0; i++) {
		json_object(json, NULL);
		json_string(json, "name", info.name);
		json_string(json, "value", info.value);
		json_string(json, "unit", info.unit);
		json_string(json, "source", source_name(info.source));
		json_string(json, "default", info.default_value);
		json_string(json, "description", info.description);
		json_close(json);
	}
	json_close(json);
}

static void json_hint(struct json *json, const char *name, const moeep_size_hint_t *hint)
{
	json_object(json, name);
	json_uint(json, "window_bytes", hint->window_bytes);
	json_uint(json, "control_bytes", hint->control_bytes);
	json_uint(json, "operation_bytes", hint->ht_bytes + hint->ll_bytes);
	json_uint(json, "slot_bytes", hint->slot_bytes);
	json_uint(json, "private_bytes", hint->private_bytes);
	json_uint(json, "handle_bytes", hint->handle_bytes);
	json_close(json);
}

static void json_hints(struct json *json, const struct hints *h)
{
	json_object(json, "hints");
	json_int(json, "ranks", h->ranks);
	json_int(json, "hidden", h->hidden);
	json_int(json, "experts", h->experts);
	json_int(json, "topk", h->topk);
	json_int(json, "ht_tokens", h->ht_tokens);
	json_int(json, "ll_tokens", h->ll_tokens);
	json_string(json, "dtype", moeep_dtype_name(h->dtype));
	if (h->result) {
		json_string(json, "error", h->detail);
	} else {
		json_hint(json, "ht", &h->ht);
		json_hint(json, "ll", &h->ll);
	}
	json_close(json);
}

static void print_json(const struct host *host, const struct hints *hints)
{
	struct json json;

	json_start(&json, stdout);
	json_object(&json, NULL);
	json_string(&json, "program", "moeep-info");
	json_string(&json, "version", MOEEP_VERSION_STRING);
	json_string(&json, "library_version", moeep_version_string());
	json_features(&json);
	json_host(&json, host);
	json_settings(&json);
	json_hints(&json, hints);
	json_close(&json);
}

static void print_report(const struct host *host, const struct hints *hints, bool settings,
			 bool hint_table)
{
	bool all = !settings && !hint_table;

	printf("moeep-info %s, library %s\n", MOEEP_VERSION_STRING, moeep_version_string());
	if (all) {
		text_features();
		text_host(host);
	}
	if (all || settings) {
		text_settings();
	}
	if (all || hint_table) {
		text_hints(hints);
	}
}

int main(int argc, char **argv)
{
	enum { OPT_SETTINGS = 256, OPT_HINTS, OPT_JSON };
	static const struct option options[] = {
		{"settings", no_argument, NULL, OPT_SETTINGS},
		{"hints", optional_argument, NULL, OPT_HINTS},
		{"json", no_argument, NULL, OPT_JSON},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{NULL, 0, NULL, 0},
	};
	static char program[] = "moeep-info";
	struct hints hints = {.ranks = 8,
			      .hidden = 7168,
			      .experts = 256,
			      .topk = 8,
			      .ht_tokens = 4096,
			      .ll_tokens = 128,
			      .dtype = MOEEP_BF16};
	bool settings = false, hint_table = false, json = false;
	struct host host;
	int id;

	/* getopt_long() puts it before its messages. */
	argv[0] = program;
	while ((id = getopt_long(argc, argv, "hV", options, NULL)) != -1) {
		switch (id) {
		case OPT_SETTINGS:
			settings = true;
			break;
		case OPT_HINTS:
			hint_table = true;
			/* Also "--hints LIST", as an argument of its own. */
			if (!optarg && optind < argc && strchr(argv[optind], '=')) {
				optarg = argv[optind++];
			}
			if (optarg && read_hints(&hints, optarg)) {
				goto err_usage;
			}
			break;
		case OPT_JSON:
			json = true;
			break;
		case 'h':
			fputs(help_text, stdout);
			return output_finish(stdout, "moeep-info") ? EXIT_FAILURE : EXIT_SUCCESS;
		case 'V':
			printf("moeep-info %s\n", moeep_version_string());
			return output_finish(stdout, "moeep-info") ? EXIT_FAILURE : EXIT_SUCCESS;
		default:
			goto err_usage;
		}
	}
	if (optind < argc) {
		fputs("moeep-info: unexpected argument \"", stderr);
		print_text(stderr, argv[optind]);
		fputs("\"\n", stderr);
		goto err_usage;
	}
	if (look_at_host(&host)) {
		return EXIT_FAILURE;
	}
	if (json || hint_table || !settings) {
		ask_hints(&hints);
	}
	if (json) {
		print_json(&host, &hints);
	} else {
		print_report(&host, &hints, settings, hint_table);
	}
	if (output_finish(stdout, "moeep-info")) {
		return EXIT_FAILURE;
	}
	return hints.result ? EXIT_FAILURE : EXIT_SUCCESS;

err_usage:
	fputs("Try \"moeep-info --help\".\n", stderr);
	return EXIT_USAGE;
}
