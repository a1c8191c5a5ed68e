/* SPDX-License-Identifier: MIT */
/* cuda/launch.c - streams, events and grids of an operation's kernels. */
#include "config.h"

#include "core/error.h"
#include "cuda/event.h"
#include "cuda/launch.h"
#include "ep/event.h"

CUstream moeep_cuda_stream(const struct moeep_buffer *buffer, moeep_stream_t stream)
{
	return stream == MOEEP_STREAM_BUFFER ? buffer->cuda->stream : (CUstream)stream;
}

static int begin(struct moeep_cuda_call *call)
{
	const moeep_launch_t *launch = call->launch;
	const struct moeep_cu *cu = call->buffer->comm->cuda->cu;

	if (launch->wait_event) {
		CUresult result =
			cu->cuStreamWaitEvent(call->stream, launch->wait_event->cuda->event, 0);

		if (result != CUDA_SUCCESS) {
			return moeep_cu_fail(cu, result, "waiting for launch.wait_event");
		}
		call->context.after = launch->wait_event->cuda->result;
	}
	call->context.status = launch->status;
	if (launch->done_event) {
		CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;

		call->context.result = launch->done_event->cuda->result;
		/* While a stream is captured its events cannot be asked. */
		(void)cu->cuStreamIsCapturing(call->stream, &status);
		return status == CU_STREAM_CAPTURE_STATUS_NONE
			       ? moeep_event_begin(launch->done_event)
			       : MOEEP_OK;
	}
	call->context.result = call->buffer->cuda->result;
	return MOEEP_OK;
}

int moeep_cuda_begin(struct moeep_cuda_call *call, struct moeep_buffer *buffer,
		     struct moeep_handle *handle, const moeep_launch_t *launch, moeep_op_t op)
{
	int rc = moeep_cuda_check(buffer->comm);

	if (rc == MOEEP_OK) {
		rc = moeep_cuda_enter(buffer->comm->cuda);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	*call = (struct moeep_cuda_call){
		.buffer = buffer,
		.handle = handle,
		.launch = launch,
		.stream = moeep_cuda_stream(buffer, launch->stream),
		.context = buffer->cuda->context,
	};
	call->context.operation = op;
	rc = begin(call);
	if (rc != MOEEP_OK) {
		moeep_cuda_leave(buffer->comm->cuda);
	}
	return rc;
}

int moeep_cuda_launch(struct moeep_cuda_call *call, enum moeep_cuda_kernel_id id, int blocks,
		      size_t shared_bytes, void *params)
{
	const struct moeep_cuda *cuda = call->buffer->comm->cuda;
	void *list[] = {params};
	/*
	 * Programmatic dependent launch: blocks begin as the kernel before them in the stream ends,
	 * and wait in launch_wait() until it has.
	 */
	CUlaunchAttribute dependent = {
		.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
		.value.programmaticStreamSerializationAllowed = 1,
	};
	const CUlaunchConfig config = {
		.gridDimX = (unsigned)blocks,
		.gridDimY = 1,
		.gridDimZ = 1,
		.blockDimX = (unsigned)cuda->context->kernels[id].threads,
		.blockDimY = 1,
		.blockDimZ = 1,
		.sharedMemBytes = (unsigned)shared_bytes,
		.hStream = call->stream,
		.attrs = &dependent,
		.numAttrs = cuda->context->dependent && call->buffer->comm->settings.cuda_pdl,
	};
	CUresult result = cuda->cu->cuLaunchKernelEx(&config, cuda->context->kernels[id].function,
						     list, NULL);

	return result == CUDA_SUCCESS ? MOEEP_OK
				      : moeep_cu_fail(cuda->cu, result,
						      "launching %d blocks with %zu bytes of "
						      "shared memory",
						      blocks, shared_bytes);
}

/* Events that destroy calls wait for; a captured stream's work is the caller's to wait for. */
static CUresult note_last(const struct moeep_cuda_call *call)
{
	const struct moeep_cu *cu = call->buffer->comm->cuda->cu;
	CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
	CUresult result = cu->cuStreamIsCapturing(call->stream, &status);

	if (result != CUDA_SUCCESS || status != CU_STREAM_CAPTURE_STATUS_NONE) {
		return result;
	}
	result = cu->cuEventRecord(call->buffer->cuda->last, call->stream);
	if (result == CUDA_SUCCESS && call->handle) {
		result = cu->cuEventRecord(call->handle->cuda->last, call->stream);
	}
	return result;
}

int moeep_cuda_end(struct moeep_cuda_call *call, int rc)
{
	const struct moeep_cuda *cuda = call->buffer->comm->cuda;
	struct moeep_event *done = call->launch->done_event;
	CUresult result = CUDA_SUCCESS;

	if (rc == MOEEP_OK) {
		result = note_last(call);
		if (result == CUDA_SUCCESS && done) {
			result = cuda->cu->cuEventRecord(done->cuda->event, call->stream);
		}
		if (result != CUDA_SUCCESS) {
			rc = moeep_cu_fail(cuda->cu, result, "recording an event");
		}
	}
	moeep_cuda_leave(cuda);
	return rc;
}

int moeep_cuda_blocks(const struct moeep_cuda_call *call, enum moeep_cuda_kernel_id id,
		      size_t shared_bytes, int otherwise, int least, int *blocks)
{
	const struct moeep_cuda *cuda = call->buffer->comm->cuda;
	int asked =
		call->launch->num_sms ? call->launch->num_sms : call->buffer->geo.config.num_sms;
	int resident = moeep_cuda_resident(cuda, id, shared_bytes);
	int most = resident < MOEEP_DEV_BLOCKS ? resident : MOEEP_DEV_BLOCKS;

	if (asked < 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "launch.num_sms is %d", asked);
	}
	if (most < least || asked > most) {
		return moeep_fail(
			MOEEP_ERR_UNSUPPORTED,
			"num_sms is %d; with %d ranks on device %d (%s) at most %d blocks "
			"of this operation can be resident for each, and at least %d are "
			"needed",
			asked, cuda->ranks_here, cuda->context->device, cuda->context->name, most,
			least);
	}
	*blocks = asked ? asked : otherwise < most ? otherwise : most;
	*blocks = *blocks < least ? least : *blocks;
	return MOEEP_OK;
}
