/* SPDX-License-Identifier: MIT */
/* The fake CUDA driver: streams that run at once, events, and graphs that hold nothing. */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "t/cuda/fake.h"

#define STREAM_MARK 0x5354524du
#define EVENT_MARK  0x4556454eu

struct CUstream_st {
	unsigned int mark; /* 0 once destroyed, if the memory is still as it was */
	bool capturing;
};

struct CUevent_st {
	unsigned int mark;
	double ms; /* when it was recorded; 0: never */
};

struct CUgraph_st {
	int unused;
};

struct CUgraphExec_st {
	int unused;
};

static bool is_handle(CUstream stream)
{
	return (uintptr_t)stream > (uintptr_t)CU_STREAM_PER_THREAD;
}

bool fake_stream_valid(CUstream stream)
{
	return !is_handle(stream) || stream->mark == STREAM_MARK;
}

CUresult fake_stream_run(CUstream stream, void (*run)(const void *data), const void *data,
			 size_t bytes)
{
	(void)bytes;
	if (!is_handle(stream) || !stream->capturing) {
		run(data);
	}
	return CUDA_SUCCESS;
}

void fake_stream_drain(CUstream stream)
{
	(void)stream;
}

CUresult fake_launch(const char *name, const unsigned int grid[3], const unsigned int block[3],
		     size_t shared_bytes, CUstream stream, void **params)
{
	(void)name;
	(void)grid;
	(void)block;
	(void)shared_bytes;
	(void)stream;
	(void)params;
	return fake_env("FAKE_CUDA_LAUNCH", 0) ? CUDA_SUCCESS : CUDA_ERROR_NOT_SUPPORTED;
}

static CUresult enter_stream(const char *function, CUstream stream)
{
	FAKE_TRY(fake_enter_context(function, NULL));
	return fake_stream_valid(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static CUresult stream_create(CUstream *stream, unsigned int flags)
{
	struct CUstream_st *own;

	if ((flags & ~(unsigned int)CU_STREAM_NON_BLOCKING) != 0) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	own = calloc(1, sizeof(*own));
	if (!own) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	own->mark = STREAM_MARK;
	fake_count(1);
	*stream = own;
	return CUDA_SUCCESS;
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
	(void)priority;
	FAKE_TRY(fake_enter_context("cuStreamCreateWithPriority", NULL));
	return stream_create(stream, flags);
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
	FAKE_TRY(fake_enter_context("cuStreamCreate", NULL));
	return stream_create(stream, flags);
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
	FAKE_TRY(enter_stream("cuStreamDestroy", stream));
	if (!is_handle(stream)) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	stream->mark = 0;
	free(stream);
	fake_count(-1);
	return CUDA_SUCCESS;
}

/* What would wait is an error in a capture. */
static CUresult enter_wait(const char *function, CUstream stream)
{
	FAKE_TRY(enter_stream(function, stream));
	return is_handle(stream) && stream->capturing ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
						      : CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream)
{
	return enter_wait("cuStreamSynchronize", stream);
}

CUresult cuStreamQuery(CUstream stream)
{
	return enter_wait("cuStreamQuery", stream);
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags)
{
	FAKE_TRY(enter_stream("cuStreamWaitEvent", stream));
	if (!event || event->mark != EVENT_MARK) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	return flags <= 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *data)
{
	FAKE_TRY(enter_stream("cuLaunchHostFunc", stream));
	if (!is_handle(stream) || !stream->capturing) {
		fn(data);
	}
	return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status)
{
	FAKE_TRY(enter_stream("cuStreamIsCapturing", stream));
	*status = is_handle(stream) && stream->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE
							 : CU_STREAM_CAPTURE_STATUS_NONE;
	return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode)
{
	FAKE_TRY(enter_stream("cuStreamBeginCapture", stream));
	if (!is_handle(stream) || stream->capturing || mode > CU_STREAM_CAPTURE_MODE_RELAXED) {
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	stream->capturing = true;
	return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph)
{
	FAKE_TRY(enter_stream("cuStreamEndCapture", stream));
	if (!is_handle(stream) || !stream->capturing) {
		return CUDA_ERROR_ILLEGAL_STATE;
	}
	stream->capturing = false;
	*graph = calloc(1, sizeof(**graph));
	if (!*graph) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	fake_count(1);
	return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
	FAKE_TRY(fake_enter_context("cuGraphInstantiateWithFlags", NULL));
	if (!graph || flags > 15) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	*exec = calloc(1, sizeof(**exec));
	if (!*exec) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	fake_count(1);
	return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream)
{
	FAKE_TRY(enter_stream("cuGraphLaunch", stream));
	return exec ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
	FAKE_TRY(fake_enter("cuGraphExecDestroy", NULL));
	if (!exec) {
		return CUDA_ERROR_INVALID_VALUE;
	}
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
	free(graph);
	fake_count(-1);
	return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags)
{
	struct CUevent_st *own;

	FAKE_TRY(fake_enter_context("cuEventCreate", NULL));
	if ((flags & CU_EVENT_INTERPROCESS) && !(flags & CU_EVENT_DISABLE_TIMING)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	own = calloc(1, sizeof(*own));
	if (!own) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	own->mark = EVENT_MARK;
	fake_count(1);
	*event = own;
	return CUDA_SUCCESS;
}

static CUresult enter_event(const char *function, CUevent event)
{
	FAKE_TRY(fake_enter(function, NULL));
	return event && event->mark == EVENT_MARK ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuEventDestroy_v2(CUevent event)
{
	FAKE_TRY(enter_event("cuEventDestroy", event));
	event->mark = 0;
	free(event);
	fake_count(-1);
	return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream stream)
{
	struct timespec now;

	FAKE_TRY(enter_stream("cuEventRecord", stream));
	FAKE_TRY(enter_event("cuEventRecord", event));
	clock_gettime(CLOCK_MONOTONIC, &now);
	event->ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
	return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent event)
{
	return enter_event("cuEventQuery", event);
}

CUresult cuEventSynchronize(CUevent event)
{
	return enter_event("cuEventSynchronize", event);
}

CUresult cuEventElapsedTime(float *ms, CUevent start, CUevent end)
{
	FAKE_TRY(enter_event("cuEventElapsedTime", start));
	FAKE_TRY(enter_event("cuEventElapsedTime", end));
	if (start->ms <= 0 || end->ms <= 0) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	*ms = (float)(end->ms - start->ms);
	return CUDA_SUCCESS;
}
