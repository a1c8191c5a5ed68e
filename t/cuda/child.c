/* SPDX-License-Identifier: MIT */
/* Cases that each have a process of their own. */
#include "config.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <moeep/moeep.h>

#include "t/cuda/child.h"
#include "t/tap.h"

/* Sanitizers make everything slow; nothing here should take a tenth of it. */
#define LIMIT_S 60

bool child_have_fake(void)
{
	return access(FAKE_DRIVER, R_OK) == 0 && access(FAKE_INCOMPLETE, R_OK) == 0;
}

int child_live(void)
{
	void *library = dlopen(FAKE_DRIVER, RTLD_NOW | RTLD_NOLOAD);
	int (*live)(void);
	void *address;

	if (!library) {
		return -1;
	}
	address = dlsym(library, "fake_cuda_live");
	memcpy(&live, &address, sizeof(live));
	dlclose(library);
	return live ? live() : -1;
}

/* "NAME=value" */
static void set_variable(const char *text)
{
	const char *value = strchr(text, '=') + 1;
	char name[64];

	snprintf(name, sizeof(name), "%.*s", (int)(value - text - 1), text);
	setenv(name, value, 1);
}

const struct child *child_run(child_fn fn, const char *const *environment)
{
	static struct child answer;
	struct child *shared;
	int status = 0;
	pid_t pid;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED) {
		tap_bail("no memory for a child's answer");
	}
	pid = fork();
	if (pid == 0) {
		alarm(LIMIT_S);
		for (; *environment; environment++) {
			set_variable(*environment);
		}
		fn(shared);
		snprintf(shared->detail, sizeof(shared->detail), "%s", moeep_error_detail());
		shared->live = child_live();
		shared->ended = true;
		_exit(0);
	}
	if (pid < 0) {
		tap_bail("fork failed");
	}
	waitpid(pid, &status, 0);
	if (status != 0) {
		shared->ended = false;
		tap_diag("the child ended with status 0x%x", (unsigned)status);
	}
	answer = *shared;
	munmap(shared, sizeof(*shared));
	return &answer;
}
