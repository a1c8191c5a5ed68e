/* SPDX-License-Identifier: MIT */
/*
 * The tests of operations on CUDA devices. With MOEEP_TEST_CUDA in the environment the same
 * programs use the CUDA backend, rank r on device r modulo their number:
 *
 *	threads		all ranks are threads of the test's process
 *	processes	all ranks are processes, forked by a parent that keeps off CUDA
 *
 * Operations then read and write memory of util_alloc(), which comes from one region of
 * MOEEP_TEST_ARENA MiB, pinned once a process: while ranks are at work nothing may allocate by the
 * driver, which can wait for the kernels of all of them.
 */
#ifndef T_DEVICE_H
#define T_DEVICE_H

#include <moeep/moeep.h>
#include <stdbool.h>
#include <stddef.h>

#include "cuda/driver.h"
#include "t/arena.h"

enum device_mode { DEVICE_NONE, DEVICE_THREADS, DEVICE_PROCESSES };

/* MOEEP_TEST_CUDA; a value that is neither ends the program. */
enum device_mode device_mode(void);

/*
 * How many devices this build can use, by asking in a process of its own: the caller may fork
 * after it. If 0, reason, which may be NULL, is why: a text that stays.
 */
int device_count(const char **reason);

/* The region of the mode's memory, made by the first call, which has to precede forks. */
struct arena *device_arena(void);

/*
 * Before a rank does anything with CUDA, in its thread: makes the context of its device current and
 * the arena known to the driver. MOEEP_OK, or an error with a detail.
 */
int device_begin(int rank);

/* Sets the backend that is tested, and the rank's device. Host mode: the host backend. */
void device_config(int rank, moeep_comm_config_t *config);

/*
 * A stream of a comm's device that has run a kernel, see cuda/context.h. Devices only. MOEEP_OK, or an error
 * with a detail.
 */
int device_stream(const moeep_comm_t *comm, CUstream *stream);

/*
 * Copies between memory of any kind, complete on return. It waits for no operation. Host mode:
 * memcpy().
 */
int device_copy(void *to, const void *from, size_t bytes);

#endif /* T_DEVICE_H */
