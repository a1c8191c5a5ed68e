/* SPDX-License-Identifier: MIT */
/* tools/info_gather.c - this machine's facts. */
#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "info_gather.h"
#include "output.h"

#define MAX_PATH 512

/* The first line of a file that begins so, without its end; false if there is none. */
static bool find_line(const char *path, const char *begin, char *line, size_t size)
{
	FILE *file = fopen(path, "re");
	bool found = false;

	/* Attributes of devices may give an error when they are read. */
	while (file && !found && fgets(line, (int)size, file)) {
		found = strncmp(line, begin, strlen(begin)) == 0;
	}
	if (file) {
		fclose(file);
	}
	if (found) {
		line[strcspn(line, "\n")] = '\0';
	}
	return found;
}

/* The first line of a file; not one that is empty. */
static void put_file(struct machine *machine, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void put_file(struct machine *machine, const char *format, ...)
{
	char path[MAX_PATH], line[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(path, sizeof(path), format, args);
	va_end(args);
	if (find_line(path, "", line, sizeof(line)) && line[0]) {
		machine_put(machine, line, "%s", path);
	}
}

static void put_files(struct machine *machine, const char *directory, const char *const *names)
{
	for (; *names; names++) {
		put_file(machine, "%s/%s", directory, *names);
	}
}

static void put_link(struct machine *machine, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void put_link(struct machine *machine, const char *format, ...)
{
	char path[MAX_PATH], target[MAX_PATH];
	va_list args;
	ssize_t size;

	va_start(args, format);
	vsnprintf(path, sizeof(path), format, args);
	va_end(args);
	size = readlink(path, target, sizeof(target) - 1);
	if (size > 0) {
		target[size] = '\0';
		machine_put(machine, target, "%s@", path);
	}
}

/* For each entry of a directory that is not hidden. */
static void each(struct machine *machine, const char *directory,
		 void (*put)(struct machine *machine, const char *path, const char *name))
{
	char path[MAX_PATH];
	DIR *dir = opendir(directory);
	struct dirent *entry;

	while (dir && (entry = readdir(dir)) != NULL) {
		if (entry->d_name[0] != '.' && strlen(entry->d_name) < MACHINE_NAME &&
		    (size_t)snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name) <
			    sizeof(path)) {
			put(machine, path, entry->d_name);
		}
	}
	if (dir) {
		closedir(dir);
	}
}

static void put_self(struct machine *machine, const char *path, const char *name)
{
	(void)name;
	put_file(machine, "%s", path);
}

static unsigned int read_class(const char *path)
{
	char file[MAX_PATH + 8], line[32];

	snprintf(file, sizeof(file), "%s/class", path);
	return find_line(file, "", line, sizeof(line)) ? (unsigned int)strtoul(line, NULL, 16) >> 16
						       : 0;
}

static void put_pci(struct machine *machine, const char *path, const char *name)
{
	static const char *const files[] = {"class",
					    "vendor",
					    "device",
					    "numa_node",
					    "current_link_speed",
					    "current_link_width",
					    "max_link_speed",
					    "max_link_width",
					    NULL};
	unsigned int class = read_class(path);

	(void)name;
	/* Networks, displays, and accelerators that drive no display. */
	if (class == 0x02 || class == 0x03 || class == 0x12) {
		put_link(machine, "%s", path);
		put_link(machine, "%s/driver", path);
		put_link(machine, "%s/iommu_group", path);
		put_files(machine, path, files);
	}
}

static void put_iommu(struct machine *machine, const char *path, const char *name)
{
	(void)name;
	put_file(machine, "%s/type", path);
}

static void put_port(struct machine *machine, const char *path, const char *name)
{
	static const char *const files[] = {"state", "phys_state", "rate", "link_layer", NULL};
	char directory[MAX_PATH + 32];

	(void)name;
	put_files(machine, path, files);
	put_file(machine, "%s/gid_attrs/ndevs/0", path);
	snprintf(directory, sizeof(directory), "%s/gids", path);
	each(machine, directory, put_self);
	snprintf(directory, sizeof(directory), "%s/gid_attrs/types", path);
	each(machine, directory, put_self);
}

static void put_rdma(struct machine *machine, const char *path, const char *name)
{
	static const char *const files[] = {"fw_ver", "board_id", "hca_type", "node_type", NULL};
	char directory[MAX_PATH + 8];

	(void)name;
	put_link(machine, "%s/device", path);
	put_files(machine, path, files);
	snprintf(directory, sizeof(directory), "%s/ports", path);
	each(machine, directory, put_port);
}

static void put_uverbs(struct machine *machine, const char *path, const char *name)
{
	char device[MACHINE_NAME + 32];

	put_file(machine, "%s/ibdev", path);
	snprintf(device, sizeof(device), "/dev/infiniband/%s", name);
	machine_put(machine, access(device, R_OK | W_OK) == 0 ? "yes" : strerror(errno), "%s",
		    device);
}

static void put_net(struct machine *machine, const char *path, const char *name)
{
	static const char *const files[] = {"mtu", "operstate", NULL};

	(void)name;
	put_files(machine, path, files);
}

static void put_node(struct machine *machine, const char *path, const char *name)
{
	if (strncmp(name, "node", 4) == 0) {
		put_file(machine, "%s/cpulist", path);
	}
}

static void put_module(struct machine *machine, const char *name)
{
	char path[MAX_PATH];

	snprintf(path, sizeof(path), "/sys/module/%s", name);
	if (access(path, F_OK) == 0) {
		machine_put(machine, "yes", "%s/loaded", path);
		put_file(machine, "%s/version", path);
	}
}

/* CAP_IPC_LOCK lifts the limit of locked memory. */
static void put_capability(struct machine *machine)
{
	static const char begin[] = "CapEff:";
	char line[256];

	if (find_line("/proc/self/status", begin, line, sizeof(line))) {
		unsigned long long set = strtoull(line + strlen(begin), NULL, 16);

		machine_put(machine, set >> 14 & 1 ? "1" : "0", "host/may_lock_memory");
	}
}

/* Of /proc/cpuinfo the line "model name"; arm64 has none. */
static void put_processor(struct machine *machine)
{
	char line[512], *value;

	if (find_line("/proc/cpuinfo", "model name", line, sizeof(line))) {
		value = strchr(line, ':');
		if (value) {
			machine_put(machine, value + strspn(value, ": "), "host/processor");
		}
	}
}

static int count_allowed(void)
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

static void put_limit(struct machine *machine, const char *name, int which)
{
	struct rlimit limit;

	if (getrlimit((__rlimit_resource_t)which, &limit)) {
		return;
	}
	if (limit.rlim_cur == RLIM_INFINITY) {
		machine_put(machine, "unlimited", "%s", name);
	} else {
		machine_put_number(machine, (int64_t)limit.rlim_cur, "%s", name);
	}
}

static void put_host(struct machine *machine)
{
	struct memory_limit memory;
	struct utsname uname_is;
	struct statvfs shm;
	int fd;

	if (uname(&uname_is) == 0) {
		machine_put(machine, uname_is.nodename, "host/name");
		machine_put(machine, uname_is.sysname, "host/system");
		machine_put(machine, uname_is.release, "host/kernel");
		machine_put(machine, uname_is.machine, "host/machine");
	}
	put_processor(machine);
	machine_put_number(machine, sysconf(_SC_NPROCESSORS_ONLN), "host/processors_online");
	machine_put_number(machine, count_allowed(), "host/processors_allowed");
	machine_put_number(machine, sysconf(_SC_PAGESIZE), "host/page_bytes");
	if (memory_limit_get(&memory) == 0) {
		machine_put_number(machine, (int64_t)memory.total, "host/memory_bytes");
		machine_put_number(machine, (int64_t)memory.available,
				   "host/memory_available_bytes");
		machine_put(machine, memory.limited_by, "host/memory_limited_by");
	}
	put_limit(machine, "host/locked_memory_bytes", RLIMIT_MEMLOCK);
	put_capability(machine);
	put_limit(machine, "host/open_files", RLIMIT_NOFILE);
	if (statvfs("/dev/shm", &shm) == 0) {
		machine_put_number(machine, (int64_t)(shm.f_blocks * shm.f_frsize),
				   "host/dev_shm_bytes");
		machine_put_number(machine, (int64_t)(shm.f_bavail * shm.f_frsize),
				   "host/dev_shm_free_bytes");
	}
	fd = memfd_create("moeep-info", MFD_CLOEXEC);
	machine_put(machine, fd < 0 ? strerror(errno) : "yes", "host/anonymous_shared_memory");
	if (fd >= 0) {
		close(fd);
	}
}

void info_gather(struct machine *machine)
{
	static const char *const files[] = {
		"/proc/sys/kernel/random/boot_id",
		"/proc/sys/kernel/numa_balancing",
		"/proc/driver/nvidia/version",
		"/sys/devices/system/node/online",
		"/sys/kernel/mm/transparent_hugepage/shmem_enabled",
	};
	static const char *const modules[] = {
		"nvidia",  "nvidia_peermem", "nvidia_uvm", "nv_peer_mem", "amdgpu",
		"ib_core", "ib_uverbs",	     "mlx5_core",  "mlx5_ib",
	};

	put_host(machine);
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		put_file(machine, "%s", files[i]);
	}
	for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++) {
		put_module(machine, modules[i]);
	}
	each(machine, "/sys/devices/system/node", put_node);
	each(machine, "/sys/bus/pci/devices", put_pci);
	each(machine, "/sys/kernel/iommu_groups", put_iommu);
	each(machine, "/sys/class/infiniband", put_rdma);
	each(machine, "/sys/class/infiniband_verbs", put_uverbs);
	each(machine, "/sys/class/net", put_net);
}
