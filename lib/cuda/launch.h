/* SPDX-License-Identifier: MIT */
/* cuda/launch.h - one call of an operation on a GPU: where it runs, its kernels, its result. */
#ifndef MOEEP_CUDA_LAUNCH_H
#define MOEEP_CUDA_LAUNCH_H

#include "cuda/buffer.h"

struct moeep_cuda_call {
	struct moeep_buffer *buffer;
	struct moeep_handle *handle; /* may be NULL */
	const moeep_launch_t *launch;
	CUstream stream;
	struct moeep_dev_context context;
};

/*
 * Begin a call: the comm is sound, the stream waits for what it has to, the done event is pending.
 * Then the kernels, then moeep_cuda_end() with the result so far, which it returns.
 */
int moeep_cuda_begin(struct moeep_cuda_call *call, struct moeep_buffer *buffer,
		     struct moeep_handle *handle, const moeep_launch_t *launch, moeep_op_t op);
int moeep_cuda_launch(struct moeep_cuda_call *call, enum moeep_cuda_kernel_id id, int blocks,
		      size_t shared_bytes, void *params);
int moeep_cuda_end(struct moeep_cuda_call *call, int result);

/*
 * Blocks for a call whose kernel is `id`, with that much shared memory each: what the launch or the
 * buffer asks for, else `otherwise`, as far as they can all be resident. At least `least`.
 */
int moeep_cuda_blocks(const struct moeep_cuda_call *call, enum moeep_cuda_kernel_id id,
		      size_t shared_bytes, int otherwise, int least, int *blocks);

/* The result of an operation that has completed, its detail set. */
int moeep_cuda_result(struct moeep_comm *comm, const struct moeep_dev_result *result);

/* Public calls with checked arguments. */
int moeep_cuda_layout(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args,
		      const moeep_launch_t *launch);
int moeep_cuda_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args,
			const moeep_launch_t *launch);
int moeep_cuda_combine(struct moeep_buffer *buffer, struct moeep_handle *handle, const void *args,
		       const moeep_launch_t *launch);
int moeep_cuda_ll_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle,
			   const void *args, const moeep_launch_t *launch);
int moeep_cuda_ll_combine(struct moeep_buffer *buffer, struct moeep_handle *handle,
			  const void *args, const moeep_launch_t *launch);

#endif
