/* SPDX-License-Identifier: MIT */
/* The fake CUDA driver where it emulates kernels: graphs, of one stream each, and events. */
#include "config.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "t/cuda/emulate/stream.h"

#define EVENT_MARK 0x4556454eu

struct CUevent_st {
	unsigned int mark;
	int refs; /* of the handle, and of work on streams */
	unsigned long recorded, completed;
	double ms; /* when the last record was done */
};

struct CUgraphExec_st {
	struct CUgraph_st graph;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t completed = PTHREAD_COND_INITIALIZER;

/* Graphs. */

void graph_add(CUgraph graph, struct work *work)
{
	*graph->last = work;
	graph->last = &work->next;
}

static void graph_clear(CUgraph graph)
{
	while (graph->first) {
		struct work *work = graph->first;

		graph->first = work->next;
		free(work);
	}
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status)
{
	FAKE_TRY(enter_stream("cuStreamIsCapturing", stream));
	*status = stream_of(stream)->capture ? CU_STREAM_CAPTURE_STATUS_ACTIVE
					     : CU_STREAM_CAPTURE_STATUS_NONE;
	return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode)
{
	CUgraph graph;

	FAKE_TRY(enter_stream("cuStreamBeginCapture", stream));
	if (stream_of(stream) != stream || stream->capture ||
	    mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	graph = calloc(1, sizeof(*graph));
	if (!graph) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	graph->last = &graph->first;
	stream->capture = graph;
	return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
	FAKE_TRY(enter_stream("cuStreamEndCapture", stream));
	if (!stream_of(stream)->capture) {
		return CUDA_ERROR_ILLEGAL_STATE;
	}
	*graph = stream->capture;
	stream->capture = NULL;
	fake_count(1);
	return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
	CUgraphExec own;

	FAKE_TRY(fake_enter_context("cuGraphInstantiateWithFlags", NULL));
	if (!graph || flags > 15) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	own = calloc(1, sizeof(*own));
	if (!own) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	own->graph.last = &own->graph.first;
	for (struct work *work = graph->first; work; work = work->next) {
		struct work *copy = work_new(work->run, work->data, work->bytes);

		if (!copy) {
			graph_clear(&own->graph);
			free(own);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
		graph_add(&own->graph, copy);
	}
	fake_count(1);
	*exec = own;
	return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
	FAKE_TRY(enter_stream("cuGraphLaunch", stream));
	if (!exec) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	for (struct work *work = exec->graph.first; work; work = work->next) {
		FAKE_TRY(fake_stream_run(stream, work->run, work->data, work->bytes));
	}
	return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
	FAKE_TRY(fake_enter("cuGraphExecDestroy", NULL));
	if (!exec) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	graph_clear(&exec->graph);
	free(exec);
	fake_count(-1);
	return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph)
{
	FAKE_TRY(fake_enter("cuGraphDestroy", NULL));
	if (!graph) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	graph_clear(graph);
	free(graph);
	fake_count(-1);
	return CUDA_SUCCESS;
}

/* Events. */

CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
	CUevent own;

	FAKE_TRY(fake_enter_context("cuEventCreate", NULL));
	if ((flags & CU_EVENT_INTERPROCESS) && !(flags & CU_EVENT_DISABLE_TIMING)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	own = calloc(1, sizeof(*own));
	if (!own) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	own->mark = EVENT_MARK;
	own->refs = 1;
	fake_count(1);
	*event = own;
	return CUDA_SUCCESS;
}

static CUresult enter_event(const char *function, CUevent event)
{
	FAKE_TRY(fake_enter(function, NULL));
	return event && event->mark == EVENT_MARK ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* Under the lock. */
static void event_unref(CUevent event)
{
	if (--event->refs == 0) {
		free(event);
	}
}

CUresult cuEventDestroy_v2(CUevent event)
{
	FAKE_TRY(enter_event("cuEventDestroy", event));
	pthread_mutex_lock(&lock);
	event->mark = 0;
	event_unref(event);
	pthread_mutex_unlock(&lock);
	fake_count(-1);
	return CUDA_SUCCESS;
}

struct event_work {
	CUevent event;
	unsigned long number; /* of the record; 0: one of a graph */
};

static void run_record(const void *data)
{
	const struct event_work *work = data;
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	pthread_mutex_lock(&lock);
	work->event->ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
	if (work->number > work->event->completed) {
		work->event->completed = work->number;
	}
	if (work->number > 0) {
		event_unref(work->event);
	}
	pthread_cond_broadcast(&completed);
	pthread_mutex_unlock(&lock);
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
	struct event_work work = {event, 0};

	FAKE_TRY(enter_stream("cuEventRecord", stream));
	FAKE_TRY(enter_event("cuEventRecord", event));
	if (!stream_of(stream)->capture) {
		pthread_mutex_lock(&lock);
		work.number = ++event->recorded;
		event->refs++;
		pthread_mutex_unlock(&lock);
	}
	return fake_stream_run(stream, run_record, &work, sizeof(work));
}

static void wait_record(CUevent event, unsigned long number)
{
	while (event->completed < number) {
		pthread_cond_wait(&completed, &lock);
	}
}

static void run_wait(const void *data)
{
	const struct event_work *work = data;

	pthread_mutex_lock(&lock);
	wait_record(work->event, work->number);
	event_unref(work->event);
	pthread_mutex_unlock(&lock);
}

/* For the event's last record before this call. */
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags)
{
	struct event_work work = {event, 0};

	FAKE_TRY(enter_stream("cuStreamWaitEvent", stream));
	FAKE_TRY(enter_event("cuStreamWaitEvent", event));
	if (flags > 1) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	/* To bring another stream into a capture is not emulated. */
	if (stream_of(stream)->capture) {
		return CUDA_ERROR_NOT_SUPPORTED;
	}
	pthread_mutex_lock(&lock);
	work.number = event->recorded;
	event->refs++;
	pthread_mutex_unlock(&lock);
	return fake_stream_run(stream, run_wait, &work, sizeof(work));
}

CUresult cuEventQuery(CUevent event)
{
	bool done;

	FAKE_TRY(enter_event("cuEventQuery", event));
	pthread_mutex_lock(&lock);
	done = event->completed >= event->recorded;
	pthread_mutex_unlock(&lock);
	return done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuEventSynchronize(CUevent event)
{
	FAKE_TRY(enter_event("cuEventSynchronize", event));
	pthread_mutex_lock(&lock);
	event->refs++;
	wait_record(event, event->recorded);
	event_unref(event);
	pthread_mutex_unlock(&lock);
	return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end)
{
	FAKE_TRY(cuEventQuery(start));
	FAKE_TRY(cuEventQuery(end));
	pthread_mutex_lock(&lock);
	*ms = (float)(end->ms - start->ms);
	pthread_mutex_unlock(&lock);
	return CUDA_SUCCESS;
}
