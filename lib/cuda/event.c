/* SPDX-License-Identifier: MIT */
/* cuda/event.c - events on GPU streams. */
#include "config.h"

#include <stdlib.h>
#include <time.h>

#include "core/comm.h"
#include "core/error.h"
#include "cuda/event.h"
#include "cuda/launch.h"

/* A wait looks at the event without pause for so long, then with pauses. */
#define EAGER_NS 200000u
#define PAUSE_NS 50000

int moeep_cuda_event_create(struct moeep_event *event)
{
	struct moeep_cuda *cuda = event->comm->cuda;
	void *memory = NULL;
	int rc = moeep_cuda_enter(cuda);

	if (rc != MOEEP_OK) {
		return rc;
	}
	event->cuda = calloc(1, sizeof(*event->cuda));
	rc = event->cuda ? moeep_pinned_alloc(&cuda->context->pinned, cuda->cu,
					      sizeof(*event->cuda->result), &memory)
			 : moeep_fail(MOEEP_ERR_NOMEM, "no memory for an event");
	if (rc == MOEEP_OK) {
		CUresult result =
			cuda->cu->cuEventCreate(&event->cuda->event, CU_EVENT_DISABLE_TIMING);

		event->cuda->result = memory;
		if (result != CUDA_SUCCESS) {
			rc = moeep_cu_fail(cuda->cu, result, "cuEventCreate");
		}
	}
	moeep_cuda_leave(cuda);
	if (rc != MOEEP_OK) {
		moeep_cuda_event_destroy(event);
	}
	return rc;
}

void moeep_cuda_event_destroy(struct moeep_event *event)
{
	struct moeep_cuda *cuda = event->comm->cuda;

	if (!event->cuda) {
		return;
	}
	if (event->cuda->event && moeep_cuda_enter(cuda) == MOEEP_OK) {
		(void)cuda->cu->cuEventDestroy(event->cuda->event);
		moeep_cuda_leave(cuda);
	}
	moeep_pinned_free(&cuda->context->pinned, event->cuda->result);
	free(event->cuda);
	event->cuda = NULL;
}

bool moeep_cuda_event_is_pending(const struct moeep_event *event)
{
	const struct moeep_cuda *cuda = event->comm->cuda;
	bool pending = false;

	if (moeep_cuda_enter(cuda) == MOEEP_OK) {
		pending = cuda->cu->cuEventQuery(event->cuda->event) == CUDA_ERROR_NOT_READY;
		moeep_cuda_leave(cuda);
	}
	return pending;
}

/* MOEEP_ERR_NOT_READY, or what there is to say now that it is complete. */
static int query(struct moeep_event *event)
{
	struct moeep_cuda *cuda = event->comm->cuda;
	CUresult result = cuda->cu->cuEventQuery(event->cuda->event);

	if (result == CUDA_ERROR_NOT_READY) {
		return MOEEP_ERR_NOT_READY;
	}
	if (result != CUDA_SUCCESS) {
		return moeep_cu_fail(cuda->cu, result, "cuEventQuery");
	}
	return moeep_cuda_result(event->comm, event->cuda->result);
}

int moeep_cuda_event_wait(struct moeep_event *event, uint32_t timeout_ms)
{
	const struct moeep_cuda *cuda = event->comm->cuda;
	uint64_t start = moeep_now_ns();
	int rc = moeep_cuda_enter(cuda);

	if (rc != MOEEP_OK) {
		return rc;
	}
	for (;;) {
		uint64_t waited;

		rc = query(event);
		waited = moeep_now_ns() - start;
		if (rc != MOEEP_ERR_NOT_READY || (timeout_ms != MOEEP_TIMEOUT_NONE &&
						  waited >= (uint64_t)timeout_ms * 1000000u)) {
			break;
		}
		if (waited > EAGER_NS) {
			nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
		}
	}
	moeep_cuda_leave(cuda);
	return rc == MOEEP_ERR_NOT_READY ? moeep_fail(rc, "the event is pending") : rc;
}

int moeep_cuda_event_record(struct moeep_event *event, struct moeep_buffer *buffer,
			    moeep_stream_t stream)
{
	const struct moeep_cuda *cuda = event->comm->cuda;
	CUresult result;
	int rc = moeep_cuda_enter(cuda);

	if (rc != MOEEP_OK) {
		return rc;
	}
	*event->cuda->result = (struct moeep_dev_result){.code = MOEEP_OK};
	result = cuda->cu->cuEventRecord(event->cuda->event, moeep_cuda_stream(buffer, stream));
	moeep_cuda_leave(cuda);
	return result == CUDA_SUCCESS ? MOEEP_OK : moeep_cu_fail(cuda->cu, result, "cuEventRecord");
}

int moeep_cuda_stream_wait(struct moeep_event *event, struct moeep_buffer *buffer,
			   moeep_stream_t stream)
{
	const struct moeep_cuda *cuda = event->comm->cuda;
	CUresult result;
	int rc = moeep_cuda_enter(cuda);

	if (rc != MOEEP_OK) {
		return rc;
	}
	result = cuda->cu->cuStreamWaitEvent(moeep_cuda_stream(buffer, stream), event->cuda->event,
					     0);
	moeep_cuda_leave(cuda);
	return result == CUDA_SUCCESS ? MOEEP_OK
				      : moeep_cu_fail(cuda->cu, result, "cuStreamWaitEvent");
}
