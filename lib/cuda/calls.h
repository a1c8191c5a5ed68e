/* SPDX-License-Identifier: MIT */
/*
 * cuda/calls.h - calls of GPU ranks, counted on the host, so that peers learn of refused ones.
 *
 * Epochs are counted on the device, where a refused call is not known. Ranks make the same calls of
 * a buffer in the same order, so its number on the host names a call as well; replays of graphs
 * count on no rank.
 */
#ifndef MOEEP_CUDA_CALLS_H
#define MOEEP_CUDA_CALLS_H

#include <stdbool.h>
#include <stdint.h>

#include "memory/control.h"

struct moeep_buffer;
struct moeep_comm;

/* kinds: bits of enum moeep_refusable. */
void moeep_cuda_call_made(const struct moeep_buffer *buffer, uint32_t kinds);
void moeep_cuda_call_refused(const struct moeep_buffer *buffer, enum moeep_refusable kind,
			     int result);

/* Is a peer refused a call that this rank has made? */
bool moeep_cuda_call_find(const struct moeep_comm *comm, struct moeep_cause *cause);

#endif
