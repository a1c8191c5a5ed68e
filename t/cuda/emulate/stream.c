/* SPDX-License-Identifier: MIT */
/*
 * The fake CUDA driver where it emulates kernels: streams, each with a thread that does its work in
 * order, and launches. Graphs are in graph.c.
 */
#include "config.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "t/cuda/emulate/block.h"
#include "t/cuda/emulate/stream.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUstream_st legacy = {
	.mark = STREAM_MARK,
	.last = &legacy.first,
	.changed = PTHREAD_COND_INITIALIZER,
};

/* The threads' own default streams. */
static pthread_once_t own_once = PTHREAD_ONCE_INIT;
static pthread_key_t own_key;

static struct CUstream_st *stream_new(void)
{
	struct CUstream_st *stream = calloc(1, sizeof(*stream));

	if (stream) {
		stream->mark = STREAM_MARK;
		stream->last = &stream->first;
		pthread_cond_init(&stream->changed, NULL);
	}
	return stream;
}

/* What is on it is done first, and waited for. */
static void stream_free(void *data)
{
	struct CUstream_st *stream = data;

	pthread_mutex_lock(&lock);
	stream->ends = true;
	pthread_cond_broadcast(&stream->changed);
	pthread_mutex_unlock(&lock);
	if (stream->has_thread) {
		pthread_join(stream->thread, NULL);
	}
	pthread_cond_destroy(&stream->changed);
	stream->mark = 0;
	free(stream);
}

static void make_key(void)
{
	if (pthread_key_create(&own_key, stream_free) != 0) {
		abort();
	}
}

static struct CUstream_st *stream_of_thread(void)
{
	struct CUstream_st *own;

	pthread_once(&own_once, make_key);
	own = pthread_getspecific(own_key);
	if (!own) {
		own = stream_new();
		if (!own || pthread_setspecific(own_key, own) != 0) {
			abort();
		}
	}
	return own;
}

struct CUstream_st *stream_of(CUstream stream)
{
	if (stream == CU_STREAM_PER_THREAD) {
		return stream_of_thread();
	}
	return (uintptr_t)stream > (uintptr_t)CU_STREAM_PER_THREAD ? stream : &legacy;
}

bool fake_stream_valid(CUstream stream)
{
	return stream_of(stream)->mark == STREAM_MARK;
}

CUresult enter_stream(const char *function, CUstream stream)
{
	FAKE_TRY(fake_enter_context(function, NULL));
	return fake_stream_valid(stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

static void *run(void *data)
{
	struct CUstream_st *stream = data;

	pthread_mutex_lock(&lock);
	for (;;) {
		struct work *work = stream->first;

		if (work) {
			pthread_mutex_unlock(&lock);
			work->run(work->data);
			pthread_mutex_lock(&lock);
			stream->first = work->next;
			if (!stream->first) {
				stream->last = &stream->first;
			}
			free(work);
			pthread_cond_broadcast(&stream->changed);
		} else if (stream->ends) {
			break;
		} else {
			pthread_cond_wait(&stream->changed, &lock);
		}
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

struct work *work_new(void (*run_work)(const void *data), const void *data, size_t bytes)
{
	struct work *work = malloc(sizeof(*work) + bytes);

	if (work) {
		work->next = NULL;
		work->run = run_work;
		work->bytes = bytes;
		if (bytes > 0) {
			memcpy(work->data, data, bytes);
		}
	}
	return work;
}

CUresult fake_stream_run(CUstream handle, void (*run_work)(const void *data), const void *data,
			 size_t bytes)
{
	struct CUstream_st *stream = stream_of(handle);
	struct work *work = work_new(run_work, data, bytes);
	CUresult result = CUDA_SUCCESS;

	if (!work) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (stream->capture) {
		graph_add(stream->capture, work);
		return CUDA_SUCCESS;
	}
	pthread_mutex_lock(&lock);
	if (!stream->has_thread) {
		if (pthread_create(&stream->thread, NULL, run, stream) == 0) {
			stream->has_thread = true;
		} else {
			result = CUDA_ERROR_OUT_OF_MEMORY;
		}
	}
	if (result == CUDA_SUCCESS) {
		*stream->last = work;
		stream->last = &work->next;
		pthread_cond_broadcast(&stream->changed);
	}
	pthread_mutex_unlock(&lock);
	if (result != CUDA_SUCCESS) {
		free(work);
	}
	return result;
}

void fake_stream_drain(CUstream handle)
{
	struct CUstream_st *stream = stream_of(handle);

	pthread_mutex_lock(&lock);
	while (stream->first) {
		pthread_cond_wait(&stream->changed, &lock);
	}
	pthread_mutex_unlock(&lock);
}

CUresult cuStreamCreateWithPriority(CUstream *stream, unsigned int flags, int priority)
{
	struct CUstream_st *own;

	(void)priority;
	FAKE_TRY(fake_enter_context("cuStreamCreateWithPriority", NULL));
	/* Streams that wait for the default one, and it for them, are not emulated. */
	if (flags != CU_STREAM_NON_BLOCKING) {
		return CUDA_ERROR_NOT_SUPPORTED;
	}
	own = stream_new();
	if (!own) {
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	fake_count(1);
	*stream = own;
	return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags)
{
	return cuStreamCreateWithPriority(stream, flags, 0);
}

CUresult cuStreamDestroy_v2(CUstream stream)
{
	FAKE_TRY(enter_stream("cuStreamDestroy", stream));
	if (stream_of(stream) != stream) {
		return CUDA_ERROR_INVALID_HANDLE;
	}
	stream_free(stream);
	fake_count(-1);
	return CUDA_SUCCESS;
}

/* What would wait is an error in a capture. */
static CUresult enter_wait(const char *function, CUstream stream)
{
	FAKE_TRY(enter_stream(function, stream));
	return stream_of(stream)->capture ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream)
{
	FAKE_TRY(enter_wait("cuStreamSynchronize", stream));
	fake_stream_drain(stream);
	return CUDA_SUCCESS;
}

CUresult cuStreamQuery(CUstream stream)
{
	bool busy;

	FAKE_TRY(enter_wait("cuStreamQuery", stream));
	pthread_mutex_lock(&lock);
	busy = stream_of(stream)->first != NULL;
	pthread_mutex_unlock(&lock);
	return busy ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

/* Kernels. */

struct launch {
	const struct emulated_kernel *kernel;
	unsigned int blocks;
	unsigned int threads;
	size_t shared_bytes;
	char params[4096];
};

static void run_launch(const void *data)
{
	const struct launch *launch = data;

	emulate_grid(launch->kernel, launch->params, launch->blocks, launch->threads,
		     launch->shared_bytes);
}

CUresult fake_launch(const char *name, const unsigned int grid[3], const unsigned int block[3],
		     size_t shared_bytes, CUstream stream, void **params)
{
	struct launch launch = {
		.kernel = emulated_kernels,
		.blocks = grid[0],
		.threads = block[0],
		.shared_bytes = shared_bytes,
	};

	while (launch.kernel->name && strcmp(launch.kernel->name, name) != 0) {
		launch.kernel++;
	}
	if (!launch.kernel->name) {
		return CUDA_ERROR_NOT_FOUND;
	}
	/* One dimension, whole warps, no more than the launch bounds; as all kernels here are. */
	if (grid[1] * grid[2] * block[1] * block[2] != 1 || block[0] % 32 != 0 ||
	    block[0] > (unsigned int)launch.kernel->threads || shared_bytes > EMULATED_SHARED ||
	    !params || launch.kernel->params_bytes > sizeof(launch.params)) {
		return CUDA_ERROR_INVALID_VALUE;
	}
	memcpy(launch.params, params[0], launch.kernel->params_bytes);
	return fake_stream_run(stream, run_launch, &launch, sizeof(launch));
}

struct host_call {
	CUhostFn fn;
	void *data;
};

static void run_host_call(const void *data)
{
	const struct host_call *call = data;

	call->fn(call->data);
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn fn, void *data)
{
	struct host_call call = {fn, data};

	FAKE_TRY(enter_stream("cuLaunchHostFunc", stream));
	return fake_stream_run(stream, run_host_call, &call, sizeof(call));
}
