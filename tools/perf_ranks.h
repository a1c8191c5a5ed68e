/* SPDX-License-Identifier: MIT */
/*
 * tools/perf_ranks.h - the parent's part while ranks run: the rendezvous, processes or threads, the
 * progress line, and what became of ranks that were lost.
 *
 * What one rank does is perf_run.h's.
 */
#ifndef MOEEP_TOOLS_PERF_RANKS_H
#define MOEEP_TOOLS_PERF_RANKS_H

#include "perf_run.h"

/* Run all ranks to their end. 0, or -1 with a message on standard error; no rank is left behind. */
int perf_ranks_run(struct perf_run *run);

/* From now on SIGINT and SIGTERM end ranks that are processes, before this one. */
void perf_ranks_catch_signals(void);

/* The signal that came, or 0. */
int perf_ranks_signal(void);

#endif
