/* SPDX-License-Identifier: MIT */
/*
 * The operations as most tests want them: complete on return. The host backend does so without a
 * launch; a device runs them on the buffer's stream, and the rank waits for its event.
 */
#include "config.h"

#include "t/device.h"
#include "t/op/op.h"

/* The launch to use for the one that was given. */
static const moeep_launch_t *launch_for(const moeep_launch_t *given, moeep_launch_t *own)
{
	if (given || device_mode() == DEVICE_NONE) {
		return given;
	}
	*own = (moeep_launch_t){
		.size = sizeof(*own),
		.stream = MOEEP_STREAM_BUFFER,
		.done_event = ranks_event(),
	};
	return own;
}

/* The result of the operation, or of the call if it started none. */
static int result_of(int called, const moeep_launch_t *given, const moeep_launch_t *used)
{
	if (called != MOEEP_OK || used == given) {
		return called;
	}
	return moeep_event_wait(used->done_event, MOEEP_TIMEOUT_NONE);
}

int op_layout(moeep_buffer_t *buffer, const moeep_layout_args_t *args, const moeep_launch_t *launch)
{
	moeep_launch_t own;
	const moeep_launch_t *used = launch_for(launch, &own);

	return result_of(moeep_layout(buffer, args, used), launch, used);
}

int op_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle, const moeep_dispatch_args_t *args,
		const moeep_launch_t *launch)
{
	moeep_launch_t own;
	const moeep_launch_t *used = launch_for(launch, &own);

	return result_of(moeep_dispatch(buffer, handle, args, used), launch, used);
}

int op_combine(moeep_buffer_t *buffer, moeep_handle_t *handle, const moeep_combine_args_t *args,
	       const moeep_launch_t *launch)
{
	moeep_launch_t own;
	const moeep_launch_t *used = launch_for(launch, &own);

	return result_of(moeep_combine(buffer, handle, args, used), launch, used);
}

int op_ll_dispatch(moeep_buffer_t *buffer, moeep_handle_t *handle,
		   const moeep_ll_dispatch_args_t *args, const moeep_launch_t *launch)
{
	moeep_launch_t own;
	const moeep_launch_t *used = launch_for(launch, &own);

	return result_of(moeep_ll_dispatch(buffer, handle, args, used), launch, used);
}

int op_ll_combine(moeep_buffer_t *buffer, moeep_handle_t *handle,
		  const moeep_ll_combine_args_t *args, const moeep_launch_t *launch)
{
	moeep_launch_t own;
	const moeep_launch_t *used = launch_for(launch, &own);

	return result_of(moeep_ll_combine(buffer, handle, args, used), launch, used);
}
