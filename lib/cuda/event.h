/* SPDX-License-Identifier: MIT */
/* cuda/event.h - events of the CUDA backend: a driver event, and the result of what it follows. */
#ifndef MOEEP_CUDA_EVENT_H
#define MOEEP_CUDA_EVENT_H

#include "cuda/device.h"
#include "ep/stream.h"

struct moeep_buffer;

struct moeep_cuda_event {
	CUevent event;
	struct moeep_dev_result *result; /* pinned */
};

int moeep_cuda_event_create(struct moeep_event *event);
void moeep_cuda_event_destroy(struct moeep_event *event);

bool moeep_cuda_event_is_pending(const struct moeep_event *event);

/* MOEEP_ERR_NOT_READY after timeout_ms, else the operation's result. */
int moeep_cuda_event_wait(struct moeep_event *event, uint32_t timeout_ms);
int moeep_cuda_event_record(struct moeep_event *event, struct moeep_buffer *buffer,
			    moeep_stream_t stream);
int moeep_cuda_stream_wait(struct moeep_event *event, struct moeep_buffer *buffer,
			   moeep_stream_t stream);

/* The driver's stream that a caller names. */
CUstream moeep_cuda_stream(const struct moeep_buffer *buffer, moeep_stream_t stream);

#endif
