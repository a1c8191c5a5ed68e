/* SPDX-License-Identifier: MIT */
/*
 * moeep/buffer.h - the working memory of the operations, streams, events and routing handles.
 */
#ifndef MOEEP_BUFFER_H
#define MOEEP_BUFFER_H

#include <moeep/base.h>
#include <moeep/comm.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moeep_buffer moeep_buffer_t;
typedef struct moeep_handle moeep_handle_t;
typedef struct moeep_event moeep_event_t;

/*
 * Where an operation runs.
 *
 * CUDA backend: a CUstream (cudaStream_t is the same). NULL is the legacy default stream.
 * Host backend: NULL runs the operation in the calling thread and returns when it is complete;
 *	other values but MOEEP_STREAM_BUFFER are refused.
 * MOEEP_STREAM_BUFFER, both: the buffer's own stream (host: its own thread). The call returns at
 * once; operations on it run in the order of the calls.
 *
 * With the CUDA backend every call returns at once, and operations of one buffer that are put on
 * several streams are ordered by the caller, with events: they must not run at the same time. A
 * stream may be one that is being captured; the graph is replayed like calls, on all ranks in the
 * same order. Arguments (pointers and counts such as num_tokens) are then fixed; memory is read at
 * each replay. The comm, buffer, handles, status words and arrays live as long as it is replayed,
 * its LL phases are in it both, and captured calls are given no events.
 *
 * Argument structures are copied before a call returns. The memory that they point to is read and
 * written while the operation has its turn on the stream, after wait_event: uses before that point
 * and after completion are ordered as with any other work of the stream. With the CUDA backend
 * every pointer in an *_args_t is accessed by the device, also those to single values: device,
 * managed or pinned host memory.
 * Rows (x, recv_x, out, bias) are aligned to 16 bytes, other arrays to their element.
 *
 * With the host backend's NULL stream the return value is the operation's result. Otherwise it
 * covers the check of arguments and the launch, and the result is found in launch.status, in the
 * events, and in moeep_comm_async_error() if it is sticky.
 */
typedef void *moeep_stream_t;
#define MOEEP_STREAM_BUFFER ((moeep_stream_t)(intptr_t)-1)

/* How an operation is ordered with others. A NULL launch is one of zeros. */
typedef struct moeep_launch {
	size_t size;
	moeep_stream_t stream;
	uint32_t flags;	 /* none yet */
	int32_t num_sms; /* CUDA: most SMs of this operation; default the buffer's */
	int32_t *status; /* one value: the operation's result, written at completion (CUDA: by the
			    device); NULL: none */
	moeep_event_t
		*wait_event; /* start only after it is complete; NULL: at once. If it completed
				with an error, the operation is not run and has that error. */
	moeep_event_t *done_event; /* pending from the call on, complete when the operation is; not
				      the wait_event, and not pending already (MOEEP_ERR_STATE) */
} moeep_launch_t;

/*
 * Events: a point in a stream. A new event is complete. moeep_event_reset() makes it pending until
 * moeep_event_record() with a NULL stream completes it.
 */
/* flags: none yet, 0. */
MOEEP_API int moeep_event_create(moeep_comm_t *comm, uint32_t flags, moeep_event_t **event);
/* Waits for a pending event's operation first; MOEEP_ERR_STATE if it is pending by
 * moeep_event_reset(). NULL is a no-op. */
MOEEP_API int moeep_event_destroy(moeep_event_t *event);
/* Host backend only: for events that the caller's own threads complete. */
MOEEP_API int moeep_event_reset(moeep_event_t *event);
/*
 * Complete once all that was put on the stream before is. buffer names whose stream
 * MOEEP_STREAM_BUFFER is, and may be NULL for another stream.
 */
MOEEP_API int moeep_event_record(moeep_event_t *event, moeep_buffer_t *buffer,
				 moeep_stream_t stream);
/* MOEEP_OK or the operation's error if complete, else MOEEP_ERR_NOT_READY. Never blocks. */
MOEEP_API int moeep_event_query(const moeep_event_t *event);
/*
 * Wait in the calling thread and give the operation's result; MOEEP_ERR_NOT_READY if it is not
 * complete after timeout_ms, which may be MOEEP_TIMEOUT_NONE: operations are bounded by the comm's
 * time-out.
 */
MOEEP_API int moeep_event_wait(const moeep_event_t *event, uint32_t timeout_ms);
/*
 * What is put on the stream from now on starts after the event is complete. Does not block the
 * caller, except on the host backend's NULL stream, which is the caller.
 */
MOEEP_API int moeep_stream_wait_event(moeep_buffer_t *buffer, moeep_stream_t stream,
				      moeep_event_t *event);

/* Families of operations that a buffer serves. */
#define MOEEP_MODE_HT 1u /* high throughput: moeep_dispatch(), moeep_combine() */
#define MOEEP_MODE_LL 2u /* low latency: moeep_ll_dispatch(), moeep_ll_combine() */

/*
 * What a buffer is for. Same values on all ranks (MOEEP_ERR_MISMATCH names a field that differs).
 * row_bytes below stands for hidden x size of dtype.
 */
typedef struct moeep_buffer_config {
	size_t size;
	uint32_t modes;	     /* MOEEP_MODE_*; default both */
	int32_t num_experts; /* 1 to 65536, over all ranks */
	int32_t max_topk;    /* most choices of a token, 1 to 64; default 8 */
	int32_t dtype;	     /* widest row element of any call, moeep_dtype_t; default BF16 */
	int64_t hidden; /* elements of a row; row_bytes of every dtype used must be a multiple of 16
			 */
	int64_t ht_max_tokens; /* most tokens of a rank in an HT call, at most 2^24 - 1; default
				  4096 */
	int64_t ll_max_tokens; /* most tokens of a rank in an LL call, at most 65535; default 128 */
	int64_t ll_capacity;   /* rows of each expert in a combine slot; default num_ranks x
				  ll_max_tokens */
	int32_t max_scales;    /* most scales of a row; default hidden / 128 rounded up */
	int32_t partial_dtype; /* rows that LL and expert-major combine send back: the call's dtype
				  (default) or FP32 */
	int32_t ll_combine_slots; /* 0 to 2 slots for moeep_ll_combine_slot(); default 0 */
	int32_t num_sms;	  /* CUDA: most SMs (blocks) of an operation; default by operation
				     and device. More than can run at once beside the other
				     ranks of the device: MOEEP_ERR_UNSUPPORTED */
	int64_t ht_chunk_bytes;	  /* host: rows are handed over in chunks of about this; default by
				     measurement */
	int32_t ht_chunks; /* host: chunks of the ring between two ranks; default 8, at least 2 */
	int32_t reserved0;
	uint64_t initial_epoch; /* first epoch, 40 bits; for tests of the wrap */
} moeep_buffer_config_t;

/*
 * Experts are dealt to ranks in order: rank r holds num_experts / num_ranks of them, the first
 * num_experts % num_ranks ranks one more. L below is the number that a rank holds; local expert ids
 * count from 0 at the rank's first.
 */
MOEEP_API int moeep_expert_range(int num_experts, int num_ranks, int rank, int *first, int *count);

/*
 * Memory of a buffer on each rank, in bytes: exactly what creation will allocate. Of the device
 * with the CUDA backend, whose windows have room for num_ranks x ht_max_tokens rows if modes has
 * HT.
 */
typedef struct moeep_size_hint {
	size_t size;
	uint64_t window_bytes; /* shared memory in all: the sum of the next four */
	uint64_t control_bytes;
	uint64_t ht_bytes;
	uint64_t ll_bytes;
	uint64_t slot_bytes;	/* combine slots */
	uint64_t private_bytes; /* memory of the buffer that is not shared */
	uint64_t handle_bytes;	/* of each handle with the default limits, not shared */
} moeep_size_hint_t;

/*
 * With a comm, for its rank and transports; rank and num_ranks are then ignored. With a NULL comm,
 * for all ranks on one host and the backend that MOEEP_BACKEND names, by default the host's.
 */
MOEEP_API int moeep_buffer_size_hint(const moeep_comm_t *comm, int rank, int num_ranks,
				     const moeep_buffer_config_t *config, moeep_size_hint_t *hint);

/* Collective. All memory is allocated here and in moeep_handle_create(); operations allocate none.
 */
MOEEP_API int moeep_buffer_create(moeep_comm_t *comm, const moeep_buffer_config_t *config,
				  moeep_buffer_t **buffer);
/*
 * Waits for this rank's operations in flight (bounded), then frees. Not collective: peers that are
 * still at work keep what they have mapped. MOEEP_ERR_STATE while handles of it exist. NULL is a
 * no-op. CUDA: replays of graphs are the caller's to wait for, and where ranks are threads, no
 * other rank of the process has an operation in flight meanwhile; the same goes for
 * moeep_comm_destroy() and moeep_mem_free().
 */
MOEEP_API int moeep_buffer_destroy(moeep_buffer_t *buffer);

typedef struct moeep_buffer_info {
	size_t size;
	int32_t num_experts;
	int32_t max_topk;
	int32_t first_expert;  /* of this rank */
	int32_t local_experts; /* L */
	int64_t hidden;
	int64_t ht_max_tokens;
	int64_t ll_max_tokens;
	uint32_t modes;
	int32_t num_handles; /* alive */
	uint64_t ht_epoch;   /* HT operations begun */
	uint64_t ll_epoch;   /* LL dispatches begun */
	uint64_t window_bytes;
} moeep_buffer_info_t;

MOEEP_API int moeep_buffer_query(const moeep_buffer_t *buffer, moeep_buffer_info_t *info);

/* Traffic with one peer since creation, by this rank's operations. */
typedef struct moeep_traffic {
	size_t size;
	int32_t transport; /* moeep_transport_t that carried it */
	int32_t reserved0;
	uint64_t dispatch_rows; /* rows received from the peer */
	uint64_t dispatch_bytes;
	uint64_t combine_rows; /* rows, or partial rows, received from the peer */
	uint64_t combine_bytes;
} moeep_traffic_t;

MOEEP_API int moeep_buffer_traffic(const moeep_buffer_t *buffer, int peer,
				   moeep_traffic_t *traffic);

/*
 * This rank's window, for inspection: [offset, offset + bytes) of it. Its contents belong to the
 * library, the combine slots excepted.
 */
MOEEP_API int moeep_buffer_window(moeep_buffer_t *buffer, uint64_t offset, uint64_t bytes,
				  void **ptr);

/*
 * For callers written after interfaces whose flags must be cleared before a change of
 * use. Flags carry epochs here, so there is nothing to clear: checks the buffer and the comm's
 * state only.
 */
MOEEP_API int moeep_buffer_clean(moeep_buffer_t *buffer);

/*
 * A handle holds the routing of one dispatch: who sent what to whom, in what order, and the
 * weights. Any number of combines and cached dispatches, and so the backward pass, read it. A new
 * dispatch on it forgets the old one. It belongs to the buffer and is used by the thread that uses
 * the buffer. Creation is local and allocates for the limits given; destruction waits for this
 * rank's operations in flight, of which a replay of a CUDA graph is none.
 */
typedef struct moeep_handle_config {
	size_t size;
	uint32_t modes;	    /* MOEEP_MODE_*; default the buffer's */
	uint32_t flags;	    /* none yet */
	int64_t max_tokens; /* of this rank; default the larger of the buffer's limits for these
			       modes */
	int64_t max_recv;   /* tokens received from all ranks; default num_ranks x max_tokens. A
			       dispatch that   receives more gives MOEEP_ERR_CAPACITY */
} moeep_handle_config_t;

/* config may be NULL. */
MOEEP_API int moeep_handle_create(moeep_buffer_t *buffer, const moeep_handle_config_t *config,
				  moeep_handle_t **handle);
MOEEP_API int moeep_handle_destroy(moeep_handle_t *handle);

/* Row order of what a dispatch receives. */
typedef enum moeep_row_layout {
	MOEEP_ROWS_DEFAULT = 0, /* HT: flat; LL: expert-major */
	/* One row per token that has a choice on this rank, by (source rank, token). */
	MOEEP_ROWS_FLAT = 1,
	/*
	 * One row per choice on this rank, grouped by local expert, in it by (source rank, token,
	 * position in the top-k). Groups start at multiples of expert_alignment (HT), or at expert
	 * x capacity (LL).
	 */
	MOEEP_ROWS_EXPERT_MAJOR = 2
} moeep_row_layout_t;

/*
 * The arrays are host memory of the handle, valid until its next dispatch, or replay of one, or its
 * end; they are NULL, and num_recv is -1, while not known: after the SEND phase of LL.
 * MOEEP_ERR_NOT_READY while the dispatch is in flight. Never blocks.
 */
typedef struct moeep_handle_info {
	size_t size;
	int32_t operation; /* MOEEP_OP_DISPATCH, MOEEP_OP_LL_DISPATCH_SEND or _RECV; MOEEP_OP_NONE
			      if unused */
	int32_t row_layout;
	uint64_t epoch;			/* of the dispatch that made the routing */
	int64_t num_tokens;		/* of this rank */
	int64_t num_recv;		/* rows received, padding included if expert-major */
	const int64_t *recv_per_rank;	/* [R] tokens received from each rank */
	const int64_t *send_per_rank;	/* [R] tokens sent to each rank */
	const int64_t *recv_per_expert; /* [L] choices, exact */
	const int64_t *
		expert_offsets; /* [L + 1] first row of each expert, expert-major only, else NULL */
} moeep_handle_info_t;

MOEEP_API int moeep_handle_query(const moeep_handle_t *handle, moeep_handle_info_t *info);

#ifdef __cplusplus
}
#endif

#endif
