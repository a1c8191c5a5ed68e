/* SPDX-License-Identifier: MIT */
/* t/fault/whole.h - all that a program asks the library for, once; its results are looked at. */
#ifndef T_FAULT_WHOLE_H
#define T_FAULT_WHOLE_H

#include <stdint.h>

#include <moeep/moeep.h>

/* At most so many ranks. */
#define WHOLE_RANKS 2
/* A result that no call of the library has. */
#define WHOLE_WRONG 1

/*
 * A rank's part, on the host: comm, symmetric memory, buffer, handle, event, dispatch, combine on
 * the buffer's thread, and all given back. The first error, or WHOLE_WRONG.
 */
int whole_use(int rank, int num_ranks, const moeep_unique_id_t *id, uint32_t timeout_ms);

#endif
