/* SPDX-License-Identifier: MIT */
/* Streams of the fake driver where it emulates kernels. */
#ifndef T_CUDA_EMULATE_STREAM_H
#define T_CUDA_EMULATE_STREAM_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "t/cuda/fake.h"

#define STREAM_MARK 0x5354524du

/* Something on a stream. */
struct work {
	struct work *next;
	void (*run)(const void *data);
	size_t bytes;
	_Alignas(16) char data[];
};

struct CUgraph_st {
	struct work *first, **last;
};

struct CUstream_st {
	unsigned int mark;
	bool has_thread;
	bool ends;
	pthread_t thread;
	struct work *first, **last; /* the first is being done */
	pthread_cond_t changed;
	CUgraph capture;
};

/* The stream itself, for the default ones too, which are one. */
struct CUstream_st *stream_of(CUstream stream);

CUresult enter_stream(const char *function, CUstream stream);

struct work *work_new(void (*run)(const void *data), const void *data, size_t bytes);

void graph_add(CUgraph graph, struct work *work);

#endif /* T_CUDA_EMULATE_STREAM_H */
