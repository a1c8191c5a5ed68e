/* SPDX-License-Identifier: MIT */
/* ep/stream.c - the buffer's own thread, and the order between it and its callers. */
#include "config.h"

#include <string.h>

#include "core/error.h"
#include "ep/buffer.h"
#include "ep/event.h"
#include "ep/refusal.h"
#include "ep/stream.h"

int moeep_stream_init(struct moeep_stream *stream)
{
	memset(stream, 0, sizeof(*stream));
	pthread_mutex_init(&stream->lock, NULL);
	pthread_cond_init(&stream->changed, NULL);
	return MOEEP_OK;
}

/* A call that failed before it had its epoch was not made, and peers may wait for it. */
static void tell_refused(const struct moeep_task *task, uint64_t epoch, int result)
{
	if (moeep_refusal_epoch(task->buffer, task->kind) == epoch &&
	    atomic_load_explicit(&moeep_comm_control(task->buffer->comm)->abort_state,
				 memory_order_acquire) == MOEEP_ABORT_NONE) {
		moeep_refusal_post(task->buffer, task->kind, result);
	}
}

static int task_run(const struct moeep_task *task)
{
	bool refusable = task->kind != MOEEP_REFUSABLES;
	uint64_t epoch = refusable ? moeep_refusal_epoch(task->buffer, task->kind) : 0;
	int rc = MOEEP_OK;

	if (task->wait_event) {
		rc = moeep_event_await(task->wait_event, task->buffer->comm);
	}
	if (rc == MOEEP_OK && task->run) {
		rc = task->run(task->buffer, task->handle, task->args);
		/* Outputs may be in streaming stores; whoever learns of the end sees them. */
		moeep_rowmath_fence();
		if (rc == MOEEP_OK) {
			/*
			 * A rank that was stopped may find all it needs after the others have given
			 * up, and have reused what it read in place: that is not a result.
			 */
			rc = moeep_comm_check(task->buffer->comm);
		}
	}
	if (rc != MOEEP_OK && refusable) {
		tell_refused(task, epoch, rc);
	}
	return rc;
}

/* Tell everybody who waits for the task; afterwards its handle may be destroyed. */
static void task_finish(const struct moeep_task *task, int result)
{
	if (task->handle) {
		atomic_fetch_sub_explicit(&task->handle->in_flight, 1, memory_order_release);
	}
	if (task->status) {
		*task->status = result;
	}
	if (task->done_event) {
		moeep_event_complete(task->done_event, result);
	}
}

static void *stream_main(void *arg)
{
	struct moeep_stream *stream = arg;

	pthread_mutex_lock(&stream->lock);
	for (;;) {
		struct moeep_task *task;
		int rc;

		while (!stream->stop && (stream->head == stream->tail || stream->busy)) {
			pthread_cond_wait(&stream->changed, &stream->lock);
		}
		if (stream->head == stream->tail) {
			break;
		}
		task = &stream->tasks[stream->head % MOEEP_QUEUE];
		stream->busy = true;
		pthread_mutex_unlock(&stream->lock);

		rc = task_run(task);
		task_finish(task, rc);

		pthread_mutex_lock(&stream->lock);
		stream->head++;
		stream->busy = false;
		pthread_cond_broadcast(&stream->changed);
	}
	pthread_mutex_unlock(&stream->lock);
	return NULL;
}

void moeep_stream_drain(struct moeep_stream *stream)
{
	pthread_mutex_lock(&stream->lock);
	while (stream->head != stream->tail || stream->busy) {
		pthread_cond_wait(&stream->changed, &stream->lock);
	}
	pthread_mutex_unlock(&stream->lock);
}

void moeep_stream_fini(struct moeep_stream *stream)
{
	moeep_stream_drain(stream);
	if (stream->started) {
		pthread_mutex_lock(&stream->lock);
		stream->stop = true;
		pthread_cond_broadcast(&stream->changed);
		pthread_mutex_unlock(&stream->lock);
		pthread_join(stream->thread, NULL);
	}
	pthread_cond_destroy(&stream->changed);
	pthread_mutex_destroy(&stream->lock);
}

int moeep_launch_check(const struct moeep_comm *comm, const moeep_launch_t *user,
		       moeep_launch_t *launch)
{
	int rc;

	memset(launch, 0, sizeof(*launch));
	launch->size = sizeof(*launch);
	if (!user) {
		return MOEEP_OK;
	}
	rc = moeep_struct_in("launch", user, launch, sizeof(*launch));
	if (rc != MOEEP_OK) {
		return rc;
	}
	if (!comm->cuda && launch->stream && launch->stream != MOEEP_STREAM_BUFFER) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "launch.stream is %p; the host backend has NULL and "
				  "MOEEP_STREAM_BUFFER only",
				  launch->stream);
	}
	if (launch->flags != 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "launch.flags is 0x%x; none are known",
				  launch->flags);
	}
	if (launch->done_event && launch->done_event == launch->wait_event) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "launch.done_event and launch.wait_event are the same event");
	}
	return MOEEP_OK;
}

/* In the calling thread, in turn with what was queued before. */
static int run_here(struct moeep_stream *stream, struct moeep_task *task)
{
	int rc;

	pthread_mutex_lock(&stream->lock);
	while (stream->head != stream->tail || stream->busy) {
		pthread_cond_wait(&stream->changed, &stream->lock);
	}
	stream->busy = true;
	pthread_mutex_unlock(&stream->lock);

	rc = task_run(task);
	task_finish(task, rc);

	pthread_mutex_lock(&stream->lock);
	stream->busy = false;
	pthread_cond_broadcast(&stream->changed);
	pthread_mutex_unlock(&stream->lock);
	return rc;
}

static int enqueue(struct moeep_stream *stream, const struct moeep_task *task)
{
	int rc = MOEEP_OK;

	pthread_mutex_lock(&stream->lock);
	if (!stream->started) {
		int error = pthread_create(&stream->thread, NULL, stream_main, stream);

		if (error != 0) {
			rc = moeep_fail(MOEEP_ERR_SYSTEM, "pthread_create: %s", strerror(error));
		} else {
			stream->started = true;
		}
	}
	if (rc == MOEEP_OK) {
		while (stream->tail - stream->head == MOEEP_QUEUE) {
			pthread_cond_wait(&stream->changed, &stream->lock);
		}
		stream->tasks[stream->tail % MOEEP_QUEUE] = *task;
		stream->tail++;
		pthread_cond_broadcast(&stream->changed);
	}
	pthread_mutex_unlock(&stream->lock);
	return rc;
}

int moeep_stream_submit(struct moeep_buffer *buffer, struct moeep_handle *handle,
			const moeep_launch_t *launch, enum moeep_refusable kind,
			int (*run)(struct moeep_buffer *, struct moeep_handle *, const void *),
			const void *args, size_t args_size)
{
	struct moeep_task task = {
		.run = run,
		.buffer = buffer,
		.handle = handle,
		.wait_event = launch->wait_event,
		.done_event = launch->done_event,
		.status = launch->status,
		.kind = kind,
	};
	int rc;

	if (args_size > 0) {
		memcpy(task.args, args, args_size);
	}
	if (task.done_event) {
		rc = moeep_event_begin(task.done_event);
		if (rc != MOEEP_OK) {
			return rc;
		}
	}
	if (handle) {
		atomic_fetch_add_explicit(&handle->in_flight, 1, memory_order_relaxed);
	}
	if (!launch->stream) {
		return run_here(&buffer->stream, &task);
	}
	rc = enqueue(&buffer->stream, &task);
	if (rc != MOEEP_OK) {
		task_finish(&task, rc);
	}
	return rc;
}
