/* SPDX-License-Identifier: MIT */
/*
 * A driver is opened once in a process, so each case of a test runs in a child of its own, and the
 * fake driver does there what the case asks for.
 */
#ifndef T_CUDA_CHILD_H
#define T_CUDA_CHILD_H

#include <stdbool.h>

#define FAKE_DRIVER	"t/cuda/.libs/fake_driver.so"
#define FAKE_INCOMPLETE "t/cuda/.libs/fake_incomplete.so"

#define CHILD_DETAIL_BYTES 600

struct child {
	int rc;
	char detail[CHILD_DETAIL_BYTES]; /* moeep_error_detail() */
	int live;			 /* what the fake has left; -1: it was not opened */
	int values[8];			 /* whatever else the case tells */
	bool ended;			 /* by itself, and in time */
};

typedef void (*child_fn)(struct child *child);

/* Whether the fake driver was built; a build without shared objects has none. */
bool child_have_fake(void);

/*
 * Run fn in a child process with these "NAME=value" in its environment, the list ended by NULL.
 * fn sets rc; detail and live are filled in behind it. The answer is valid until the next call.
 */
const struct child *child_run(child_fn fn, const char *const *environment);

/* In a child, or in a process that opened the fake: what is alive in it. */
int child_live(void);

#endif /* T_CUDA_CHILD_H */
