/* SPDX-License-Identifier: MIT */
/* What the mutations in mutants.list are made of; included before a mutated source. */
#include "config.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include "core/comm.h"
#include "core/wait.h"
#include "ep/buffer.h"

/*
 * Widens the window between a flag that came too early and what it stands for. A pause is always
 * allowed: mutations that are a pause and nothing else prove it.
 */
#define MUTANT_PAUSE() usleep(1000)
/* On some ranks only, where ranks that all pause would keep step. */
#define MUTANT_PAUSE_ODD(rank) ((rank) % 2 ? usleep(2000) : 0)

/* Some microseconds in which this thread does nothing that other threads can see. */
#define MUTANT_LOOP()                                                                              \
	do {                                                                                       \
		for (volatile int i_ = 0; i_ < 10000; i_++) {                                      \
		}                                                                                  \
	} while (0)

/* As moeep_flag_publish() and moeep_flag_get(), without the order that they give. */
static inline void mutant_publish(moeep_flag_t *flag, uint64_t word)
{
	atomic_store_explicit(flag, word, memory_order_relaxed);
}

/* As moeep_publish() on one node. */
static inline void mutant_send(const struct moeep_buffer *buffer, moeep_flag_t *flag, uint64_t word,
			       int reader)
{
	(void)buffer;
	(void)reader;
	mutant_publish(flag, word);
}

/* As moeep_comm_publish() on one node: without order, or without waking anybody. */
static inline void mutant_comm_publish(struct moeep_comm *comm, moeep_flag_t *flag, uint64_t word)
{
	mutant_publish(flag, word);
	moeep_wait_wake_all(comm);
}

static inline void mutant_comm_silent(struct moeep_comm *comm, moeep_flag_t *flag, uint64_t word)
{
	(void)comm;
	moeep_flag_publish(flag, word);
}

static inline uint64_t mutant_get(const moeep_flag_t *flag)
{
	return atomic_load_explicit((moeep_flag_t *)flag, memory_order_relaxed);
}

static inline void mutant_ll_publish(struct moeep_buffer *buffer, moeep_flag_t *flag,
				     uint64_t epoch)
{
	mutant_publish(flag, moeep_flag_word(epoch, 0));
	moeep_wait_wake_all(buffer->comm);
}
