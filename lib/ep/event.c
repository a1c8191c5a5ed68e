/* SPDX-License-Identifier: MIT */
/* ep/event.c - points in a stream that others can wait for. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/event.h"
#include "ep/buffer.h"
#include "ep/event.h"

/* How often a wait for another's event looks whether the group has failed. */
#define AWAIT_SLICE_MS 50

static void count_object(struct moeep_comm *comm, int by)
{
	pthread_mutex_lock(&comm->lock);
	comm->num_events += by;
	pthread_mutex_unlock(&comm->lock);
}

static void event_free(struct moeep_event *event)
{
	pthread_cond_destroy(&event->changed);
	pthread_mutex_destroy(&event->lock);
	free(event);
}

int moeep_event_create(moeep_comm_t *comm, uint32_t flags, moeep_event_t **event_out)
{
	struct moeep_event *event;
	pthread_condattr_t attributes;

	if (!comm || !event_out) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is %p, event is %p", (void *)comm,
				  (void *)event_out);
	}
	if (flags != 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "flags is 0x%x; none are known", flags);
	}
	event = calloc(1, sizeof(*event));
	if (!event) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for an event");
	}
	event->comm = comm;
	pthread_mutex_init(&event->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&event->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	if (comm->cuda) {
		int rc = moeep_cuda_event_create(event);

		if (rc != MOEEP_OK) {
			event_free(event);
			return rc;
		}
	}
	count_object(comm, 1);
	*event_out = event;
	return MOEEP_OK;
}

static struct timespec after_ms(uint32_t ms)
{
	uint64_t at = moeep_now_ns() + (uint64_t)ms * 1000000u;

	return (struct timespec){.tv_sec = (time_t)(at / 1000000000u),
				 .tv_nsec = (long)(at % 1000000000u)};
}

/* With the lock held: false if the time ran out first. */
static bool wait_locked(struct moeep_event *event, uint32_t timeout_ms)
{
	struct timespec limit = after_ms(timeout_ms);
	int rc = 0;

	while (event->pending && rc != ETIMEDOUT) {
		if (timeout_ms == MOEEP_TIMEOUT_NONE) {
			pthread_cond_wait(&event->changed, &event->lock);
		} else {
			rc = pthread_cond_timedwait(&event->changed, &event->lock, &limit);
		}
	}
	return !event->pending;
}

static int result_locked(struct moeep_event *event)
{
	return event->result == MOEEP_OK ? MOEEP_OK
					 : moeep_fail(event->result, "%s", event->detail);
}

int moeep_event_destroy(moeep_event_t *event)
{
	bool by_caller;

	if (!event) {
		return MOEEP_OK;
	}
	pthread_mutex_lock(&event->lock);
	by_caller = event->pending && event->by_caller;
	if (!by_caller) {
		(void)wait_locked(event, MOEEP_TIMEOUT_NONE);
	}
	pthread_mutex_unlock(&event->lock);
	if (by_caller) {
		/* To wait would be for ever, and an operation may be waiting for it. */
		return moeep_fail(MOEEP_ERR_STATE,
				  "the event was reset and not recorded since; record it first");
	}
	if (event->cuda) {
		(void)moeep_cuda_event_wait(event, MOEEP_TIMEOUT_NONE);
		moeep_cuda_event_destroy(event);
	}
	count_object(event->comm, -1);
	event_free(event);
	return MOEEP_OK;
}

int moeep_event_begin(struct moeep_event *event)
{
	int rc = MOEEP_OK;

	if (event->cuda) {
		/* A captured event cannot be asked, and may be given again. */
		return moeep_cuda_event_is_pending(event)
			       ? moeep_fail(MOEEP_ERR_STATE, "the event is pending already")
			       : MOEEP_OK;
	}
	pthread_mutex_lock(&event->lock);
	if (event->pending) {
		rc = moeep_fail(MOEEP_ERR_STATE, "the event is pending already");
	} else {
		event->pending = true;
		event->result = MOEEP_OK;
	}
	pthread_mutex_unlock(&event->lock);
	return rc;
}

void moeep_event_complete(struct moeep_event *event, int result)
{
	pthread_mutex_lock(&event->lock);
	event->pending = false;
	event->by_caller = false;
	event->result = result;
	if (result != MOEEP_OK) {
		snprintf(event->detail, sizeof(event->detail), "%s", moeep_error_detail());
	}
	pthread_cond_broadcast(&event->changed);
	pthread_mutex_unlock(&event->lock);
}

int moeep_event_await(struct moeep_event *event, const struct moeep_comm *comm)
{
	int rc = MOEEP_OK;
	bool done = false;

	pthread_mutex_lock(&event->lock);
	while (!done && rc == MOEEP_OK) {
		done = wait_locked(event, AWAIT_SLICE_MS);
		if (!done) {
			rc = moeep_comm_check(comm);
		}
	}
	if (done) {
		rc = result_locked(event);
	}
	pthread_mutex_unlock(&event->lock);
	return rc;
}

int moeep_event_reset(moeep_event_t *event)
{
	int rc;

	if (!event) {
		return moeep_fail(MOEEP_ERR_INVALID, "event is NULL");
	}
	if (event->cuda) {
		return moeep_fail(
			MOEEP_ERR_UNSUPPORTED,
			"moeep_event_reset() is for the host backend; record the event on "
			"a stream");
	}
	rc = moeep_event_begin(event);
	if (rc == MOEEP_OK) {
		pthread_mutex_lock(&event->lock);
		event->by_caller = event->pending;
		pthread_mutex_unlock(&event->lock);
	}
	return rc;
}

int moeep_event_record(moeep_event_t *event, moeep_buffer_t *buffer, moeep_stream_t stream)
{
	moeep_launch_t asked = {.size = sizeof(asked), .stream = stream, .done_event = event};
	moeep_launch_t launch;
	int rc;

	if (!event) {
		return moeep_fail(MOEEP_ERR_INVALID, "event is NULL");
	}
	rc = moeep_launch_check(event->comm, &asked, &launch);
	if (rc != MOEEP_OK) {
		return rc;
	}
	if (stream == MOEEP_STREAM_BUFFER && !buffer) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is NULL with MOEEP_STREAM_BUFFER");
	}
	if (event->cuda) {
		return moeep_cuda_event_record(event, buffer, stream);
	}
	if (!stream) {
		/* The calling thread has done all that it put on its stream. */
		moeep_event_complete(event, MOEEP_OK);
		return MOEEP_OK;
	}
	return moeep_stream_submit(buffer, NULL, &launch, MOEEP_REFUSABLES, NULL, NULL, 0);
}

int moeep_event_query(const moeep_event_t *event)
{
	return moeep_event_wait(event, 0);
}

int moeep_event_wait(const moeep_event_t *event_const, uint32_t timeout_ms)
{
	struct moeep_event *event = (struct moeep_event *)event_const;
	int rc;

	if (!event) {
		return moeep_fail(MOEEP_ERR_INVALID, "event is NULL");
	}
	if (event->cuda) {
		return moeep_cuda_event_wait(event, timeout_ms);
	}
	pthread_mutex_lock(&event->lock);
	if (wait_locked(event, timeout_ms)) {
		rc = result_locked(event);
	} else {
		rc = moeep_fail(MOEEP_ERR_NOT_READY, "the event is pending");
	}
	pthread_mutex_unlock(&event->lock);
	return rc;
}

int moeep_stream_wait_event(moeep_buffer_t *buffer, moeep_stream_t stream, moeep_event_t *event)
{
	moeep_launch_t asked = {.size = sizeof(asked), .stream = stream, .wait_event = event};
	moeep_launch_t launch;
	int rc;

	if (!event) {
		return moeep_fail(MOEEP_ERR_INVALID, "event is NULL");
	}
	rc = moeep_launch_check(event->comm, &asked, &launch);
	if (rc != MOEEP_OK) {
		return rc;
	}
	if (stream == MOEEP_STREAM_BUFFER && !buffer) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is NULL with MOEEP_STREAM_BUFFER");
	}
	if (event->cuda) {
		return moeep_cuda_stream_wait(event, buffer, stream);
	}
	if (!stream) {
		return moeep_event_await(event, event->comm);
	}
	return moeep_stream_submit(buffer, NULL, &launch, MOEEP_REFUSABLES, NULL, NULL, 0);
}
