/* SPDX-License-Identifier: MIT */
/* cuda/buffer.h - what buffers and handles have on a GPU. */
#ifndef MOEEP_CUDA_BUFFER_H
#define MOEEP_CUDA_BUFFER_H

#include "cuda/device.h"
#include "ep/buffer.h"

struct moeep_cuda_buffer {
	CUstream stream; /* MOEEP_STREAM_BUFFER */
	CUevent last;	 /* behind the operations that were not captured */
	CUdeviceptr memory;
	struct moeep_dev_context context; /* all but what a call has of its own */
	struct moeep_dev_plan *plan;	  /* device */
	struct moeep_dev_scratch scratch; /* pointers to device memory */
	const int32_t *nodes;		  /* device, [R] */
	struct moeep_dev_result *result;  /* pinned: of calls without an event */
};

struct moeep_cuda_handle {
	CUevent last;
	CUdeviceptr memory;
	void *pinned;
	struct moeep_dev_route route; /* pointers to device and pinned memory */
};

/* Offsets of a window of device memory, and the hint. */
void moeep_cuda_lay_out(struct moeep_geometry *geometry);

/* Counters of experts that a block of an LL dispatch has in shared memory: [R][L]. 0: too many to
 * fit. */
size_t moeep_cuda_ll_counters(const struct moeep_geometry *g);

/* Once the windows are shared. */
int moeep_cuda_buffer_create(struct moeep_buffer *buffer);
/* Flags of this rank's window, before any peer can look. */
int moeep_cuda_buffer_begin(struct moeep_buffer *buffer, uint64_t epoch);
/* Copy the counters of traffic with a peer. */
int moeep_cuda_buffer_traffic(const struct moeep_buffer *buffer, int peer,
			      uint64_t counters[MOEEP_DEV_TRAFFIC]);
/* Waits for this rank's operations; NULL members are no-ops. */
void moeep_cuda_buffer_destroy(struct moeep_buffer *buffer);

int moeep_cuda_handle_create(struct moeep_handle *handle);
void moeep_cuda_handle_destroy(struct moeep_handle *handle);
/* MOEEP_ERR_NOT_READY while an operation with it is in flight. */
int moeep_cuda_handle_ready(const struct moeep_handle *handle);

/* Put the handle's pinned arrays in place of those that the host backend has. */
void moeep_cuda_handle_info(const struct moeep_handle *handle, moeep_handle_info_t *info);

/* Bytes on the device, of a buffer beside its window, and of a handle. */
uint64_t moeep_cuda_private_bytes(const struct moeep_geometry *geometry);
uint64_t moeep_cuda_handle_bytes(const struct moeep_geometry *geometry, uint32_t modes,
				 int64_t max_tokens, int64_t max_recv);

#endif
