/* SPDX-License-Identifier: MIT */
/*
 * ep/stream.h - where operations run: in the calling thread, or in order on the buffer's own.
 */
#ifndef MOEEP_EP_STREAM_H
#define MOEEP_EP_STREAM_H

#include <pthread.h>
#include <stdbool.h>

#include <moeep/moeep.h>

#include "ep/geometry.h"

struct moeep_comm;
struct moeep_cuda_event;
struct moeep_handle;

struct moeep_event {
	struct moeep_comm *comm;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool pending;
	bool by_caller; /* pending by moeep_event_reset(): nobody but the caller ends it */
	int result;
	char detail[256];
	struct moeep_cuda_event *cuda; /* what is pending on a GPU is not pending here */
};

/* Room for the largest argument structure of an operation. */
#define MOEEP_TASK_ARGS 256

struct moeep_task {
	int (*run)(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args);
	struct moeep_buffer *buffer;
	struct moeep_handle *handle; /* may be NULL */
	struct moeep_event *wait_event;
	struct moeep_event *done_event;
	int32_t *status;
	enum moeep_refusable kind; /* that peers wait for; MOEEP_REFUSABLES: none */
	_Alignas(16) unsigned char args[MOEEP_TASK_ARGS];
};

#define MOEEP_QUEUE 64

struct moeep_stream {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t thread;
	bool started; /* the thread is made by the first operation on it */
	bool stop;
	bool busy; /* a task runs, on the thread or in a caller */
	unsigned head;
	unsigned tail;
	struct moeep_task tasks[MOEEP_QUEUE];
};

int moeep_stream_init(struct moeep_stream *stream);
/* Finishes what is queued. */
void moeep_stream_fini(struct moeep_stream *stream);

/* Copy and check a caller's launch; NULL is one of zeros. */
int moeep_launch_check(const struct moeep_comm *comm, const moeep_launch_t *user,
		       moeep_launch_t *launch);

/*
 * Run an operation where `launch` says; args are copied. Returns its result if it ran here, else
 * that of queueing it. If it fails before its call has an epoch, peers learn that it was refused.
 */
int moeep_stream_submit(struct moeep_buffer *buffer, struct moeep_handle *handle,
			const moeep_launch_t *launch, enum moeep_refusable kind,
			int (*run)(struct moeep_buffer *, struct moeep_handle *, const void *),
			const void *args, size_t args_size);

/* Wait until nothing is queued and nothing runs. */
void moeep_stream_drain(struct moeep_stream *stream);

#endif
