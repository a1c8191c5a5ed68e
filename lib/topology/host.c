/* SPDX-License-Identifier: MIT */
/* topology/host.c - which host and process a rank is. */
#include "config.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/settings.h"
#include "topology/host.h"

/* The kernel draws it at boot: equal for all containers of a machine, different for all machines.
 */
static int read_boot_id(char *text, size_t size)
{
	FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
	int rc = MOEEP_OK;

	if (!file) {
		return moeep_fail_errno(
			"reading /proc/sys/kernel/random/boot_id (set MOEEP_HOST_ID "
			"to do without)");
	}
	if (!fgets(text, (int)size, file)) {
		rc = moeep_fail(MOEEP_ERR_SYSTEM, "/proc/sys/kernel/random/boot_id is empty");
	}
	fclose(file);
	text[strcspn(text, "\n")] = '\0';
	return rc;
}

int moeep_identity_get(const struct moeep_settings *settings, struct moeep_identity *identity)
{
	struct moeep_identity id = {.wire_version = MOEEP_WIRE_VERSION, .pid = getpid()};
	struct stat status;
	uint64_t random[2];
	int rc = read_boot_id(id.machine, sizeof(id.machine));

	if (settings->host_id[0] != '\0') {
		snprintf(id.host_id, sizeof(id.host_id), "%s", settings->host_id);
	} else if (rc != MOEEP_OK) {
		return rc;
	} else {
		snprintf(id.host_id, sizeof(id.host_id), "%s", id.machine);
	}
	id.hybrid_off = settings->hybrid == MOEEP_HYBRID_OFF;
	id.transport = settings->transport;
	if (gethostname(id.host_name, sizeof(id.host_name) - 1) != 0) {
		snprintf(id.host_name, sizeof(id.host_name), "unknown");
	}
	if (stat("/proc/self/ns/pid", &status) == 0) {
		id.pid_namespace = (uint64_t)status.st_ino;
	}
	if (stat("/proc/self/ns/net", &status) == 0) {
		id.net_namespace = (uint64_t)status.st_ino;
	}
	if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
		return moeep_fail_errno("getrandom");
	}
	snprintf(id.socket_name, sizeof(id.socket_name), "moeep-%08x%016llx", (unsigned)random[0],
		 (unsigned long long)random[1]);
	*identity = id;
	return MOEEP_OK;
}

bool moeep_identity_same_machine(const struct moeep_identity *a, const struct moeep_identity *b)
{
	return a->machine[0] != '\0' && b->machine[0] != '\0' ? strcmp(a->machine, b->machine) == 0
							      : strcmp(a->host_id, b->host_id) == 0;
}

bool moeep_identity_same_process(const struct moeep_identity *a, const struct moeep_identity *b)
{
	/* Without a namespace id equal pids prove nothing. */
	return a->pid == b->pid && a->pid_namespace != 0 && a->pid_namespace == b->pid_namespace &&
	       moeep_identity_same_machine(a, b);
}

uint64_t moeep_host_cache_bytes(void)
{
	/* By sysfs and not by sysconf(), which in a virtual machine may tell of the whole host. */
	for (int level = 3; level >= 2; level--) {
		unsigned long size = 0;
		char path[80];
		char unit = 0;
		FILE *file;

		snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/size",
			 level);
		file = fopen(path, "re");
		if (!file) {
			continue;
		}
		if (fscanf(file, "%lu%c", &size, &unit) < 1) {
			size = 0;
		}
		fclose(file);
		if (size > 0) {
			return (uint64_t)size * (unit == 'K' ? 1024 : unit == 'M' ? 1048576 : 1);
		}
	}
	return 16 * 1048576;
}
