/* SPDX-License-Identifier: MIT */
/*
 * moeep/comm.h - a group of ranks: how they meet, what joins them, how they fail.
 *
 * A rank is a process, or a thread of a process that holds one moeep_comm_t for each rank it
 * plays. Creation and destruction, moeep_comm_barrier() and the memory calls are collective: every
 * rank of the group calls them, in the same order, from one thread at a time. moeep_comm_abort(),
 * moeep_comm_async_error() and the queries may be called by any thread at any time. Different
 * buffers of a comm may be used by different threads at once; only the order of calls on each
 * buffer has to agree between ranks.
 */
#ifndef MOEEP_COMM_H
#define MOEEP_COMM_H

#include <moeep/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moeep_comm moeep_comm_t;
typedef struct moeep_rendezvous moeep_rendezvous_t;

/* Names a rendezvous: address, port and secret. Hand it to the ranks over a private channel. */
typedef struct moeep_unique_id {
	unsigned char bytes[128];
} moeep_unique_id_t;

/* Room for moeep_unique_id_format(), its final NUL included. */
#define MOEEP_UNIQUE_ID_TEXT 257

typedef struct moeep_rendezvous_config {
	size_t size;
	const char *address; /* numeric IPv4 or IPv6 address, or interface name, to listen on;
				default MOEEP_INTERFACE, else loopback */
	uint32_t port;	     /* default: any free one */
	uint32_t
		timeout_ms; /* how long destroy waits for ranks that have not left; default 30000 */
} moeep_rendezvous_config_t;

/*
 * Open a rendezvous where ranks meet, and name it. Any process may host it, usually that of rank 0.
 * It serves one comm, from the first rank that joins until the last has left, on a thread
 * of its own, and is destroyed after the host's own comm. config may be NULL.
 */
MOEEP_API int moeep_rendezvous_create(const moeep_rendezvous_config_t *config,
				      moeep_rendezvous_t **rendezvous, moeep_unique_id_t *id);

/* Wait until every rank has left, at most the time-out, then close. NULL is a no-op. */
MOEEP_API int moeep_rendezvous_destroy(moeep_rendezvous_t *rendezvous);

/* The id as hexadecimal text, for an environment variable or a file, and back. */
MOEEP_API int moeep_unique_id_format(const moeep_unique_id_t *id, char *text, size_t text_size);
MOEEP_API int moeep_unique_id_parse(const char *text, moeep_unique_id_t *id);

/*
 * The text in a file of mode 0600, in place of what was there: for ranks that find it by
 * MOEEP_ID_FILE. It serves one comm; whoever wrote it removes it.
 */
MOEEP_API int moeep_unique_id_save(const moeep_unique_id_t *id, const char *path);

/*
 * An exchange of the caller's own (MPI, a framework's store) in place of a rendezvous.
 *
 * allgather starts to collect `bytes` bytes from every rank into recv, ordered by rank. It
 * may finish before it returns, leaving *request NULL; otherwise test is called with the request
 * until it returns 0, and then release once. test returns 0 when complete, 1 while in progress, a
 * negative value on failure. send and recv stay valid until then. The library calls them from the
 * thread that made the collective call, never two at a time for one comm. A negative result of any
 * of them fails the collective call with MOEEP_ERR_RENDEZVOUS.
 */
typedef struct moeep_bootstrap {
	size_t size;
	void *context;
	int (*allgather)(void *context, const void *send, void *recv, size_t bytes, void **request);
	int (*test)(void *context, void *request); /* may be NULL if allgather always finishes */
	void (*release)(void *context, void *request); /* may be NULL */
} moeep_bootstrap_t;

/*
 * Which rank this process is, as its launcher tells it: by MOEEP_RANK and MOEEP_NUM_RANKS, else by
 * the variables of torchrun, Open MPI, PMI (MPICH and its kin) or Slurm's srun, the first that are
 * there. MOEEP_ERR_UNSUPPORTED if none are, MOEEP_ERR_INVALID if they make no sense. It says
 * nothing about where ranks meet.
 */
typedef struct moeep_launcher_info {
	size_t size;
	const char *name; /* "moeep", "torchrun", "Open MPI", "PMI", "Slurm"; it stays */
	int32_t rank;
	int32_t num_ranks;
	int32_t local_rank;  /* among those of this host; -1: not told */
	int32_t local_ranks; /* likewise */
} moeep_launcher_info_t;

MOEEP_API int moeep_launcher_query(moeep_launcher_info_t *info);

typedef enum moeep_backend {
	MOEEP_BACKEND_AUTO =
		0, /* CUDA where the build, the driver and every rank have it, else host */
	MOEEP_BACKEND_HOST = 1, /* CPU memory, worked on by CPU threads */
	MOEEP_BACKEND_CUDA = 2	/* GPU memory: device, managed or pinned, for every pointer */
} moeep_backend_t;

/* A log line without its newline. level: 1 error, 2 warning, 3 info, 4 debug. Any thread may call.
 */
typedef void (*moeep_log_fn)(void *context, int level, const char *line);

/* timeout_ms: no limit */
#define MOEEP_TIMEOUT_NONE UINT32_MAX

typedef struct moeep_comm_config {
	size_t size;
	/* How ranks meet: exactly one of the two; without both by MOEEP_ID or MOEEP_ID_FILE, which
	 * num_ranks 1 does not need either. */
	const moeep_unique_id_t *id;
	const moeep_bootstrap_t *bootstrap;
	int32_t backend;	 /* moeep_backend_t; the same on all ranks */
	int32_t device_plus_one; /* CUDA: device ordinal plus 1; default the current context's, else
				    the first */
	uint32_t timeout_ms;	 /* limit of every wait for a peer; default 30000; MOEEP_TIMEOUT
				    overrides */
	uint32_t flags;		 /* none yet */
	const char *host_id;	 /* ranks with equal texts are on one host; default: found out.
				    For tests that make several hosts of one; MOEEP_HOST_ID overrides */
	moeep_log_fn log;	 /* default: standard error */
	void *log_context;
} moeep_comm_config_t;

/*
 * Join a group as `rank` of num_ranks, 1 to 4096. Collective. Returns on every rank with success
 * or, within the time-out, with an error; a failure on one rank is an error on all.
 */
MOEEP_API int moeep_comm_create(int rank, int num_ranks, const moeep_comm_config_t *config,
				moeep_comm_t **comm);

/*
 * Leave the group and free everything of it, symmetric memory included. Buffers and events must be
 * destroyed before (MOEEP_ERR_STATE if one is left). Does not wait for peers: what they still read
 * stays mapped on their side. With several hosts it waits until all ranks have called it, at most
 * the time-out, and not in a group that has failed: what others tell each other may pass through
 * this rank. NULL is a no-op.
 */
MOEEP_API int moeep_comm_destroy(moeep_comm_t *comm);

/*
 * End the waits of all ranks with MOEEP_ERR_ABORTED, now and in every later call. reason is
 * copied into the report of every rank (cut at 159 bytes); may be NULL. Async-signal-unsafe, but
 * any thread may call it.
 */
MOEEP_API int moeep_comm_abort(moeep_comm_t *comm, const char *reason);

/*
 * The first failure that struck the group, as every rank sees it. Of failures that ranks of several
 * hosts notice at the same time, each host's ranks see their own.
 */
typedef struct moeep_error_report {
	size_t size;
	int32_t result;	   /* MOEEP_OK if the comm is sound */
	int32_t operation; /* moeep_op_t in which `rank` noticed it */
	int32_t rank;	   /* who noticed it */
	int32_t peer;	   /* whom it waited for or lost; -1 if nobody in particular */
	uint64_t epoch;	   /* how many operations of its kind `rank` had begun */
	uint64_t expected; /* flag value it waited for, epoch << 24 | count */
	uint64_t seen;	   /* flag value it saw last */
	char message[160]; /* for people: what was waited for, or the reason given to abort */
} moeep_error_report_t;

/*
 * The comm's sticky error: MOEEP_OK, or the code that every later call on it returns. report may be
 * NULL. Never blocks. After an error only destroy calls are of use, and they are safe.
 */
MOEEP_API int moeep_comm_async_error(const moeep_comm_t *comm, moeep_error_report_t *report);

/* Return when every rank has called it. Does not wait for operations in flight. */
MOEEP_API int moeep_comm_barrier(moeep_comm_t *comm);

typedef struct moeep_comm_info {
	size_t size;
	int32_t rank;
	int32_t num_ranks;
	int32_t node; /* nodes are numbered by their lowest rank */
	int32_t num_nodes;
	int32_t local_rank;  /* among the ranks of this node, ascending by rank */
	int32_t local_ranks; /* ranks on this node */
	int32_t root_rank;   /* lowest rank that has this local_rank on any node */
	int32_t backend;     /* moeep_backend_t in use */
	int32_t device;	     /* CUDA device ordinal, -1 for the host backend */
	int32_t num_buffers; /* alive */
	uint32_t timeout_ms;
	uint32_t reserved0;
	uint64_t control_bytes;	  /* shared memory of the comm itself, this rank */
	uint64_t symmetric_bytes; /* shared memory by moeep_mem_alloc(), this rank */
} moeep_comm_info_t;

MOEEP_API int moeep_comm_query(const moeep_comm_t *comm, moeep_comm_info_t *info);

/* How a peer is reached. */
typedef enum moeep_transport {
	MOEEP_TRANSPORT_NONE = 0,
	MOEEP_TRANSPORT_SELF = 1,
	MOEEP_TRANSPORT_PROCESS = 2, /* a thread of this process: plain pointers */
	MOEEP_TRANSPORT_SHM = 3,     /* another process of this host: shared memory */
	MOEEP_TRANSPORT_CUDA = 4,    /* device memory mapped over NVLink or PCIe */
	MOEEP_TRANSPORT_PROXY = 5,   /* RDMA posted by a host thread */
	MOEEP_TRANSPORT_IBGDA = 6    /* RDMA posted by the GPU */
} moeep_transport_t;

/* "self", "process", "shm", ...; "unknown" for other values. */
MOEEP_API const char *moeep_transport_name(int transport);

typedef struct moeep_peer_info {
	size_t size;
	int32_t rank;
	int32_t node;
	int32_t local_rank;
	int32_t transport; /* moeep_transport_t */
	int64_t pid;	   /* in the peer's own namespace */
	char host[64];	   /* host name, for people */
	char reason[160];  /* why this transport and none that is faster */
	/* Another host's: what this rank has handed to the network for it. A rank writes to one
	 * rank of each other host, whose memory the others of that host read; those have 0. */
	uint64_t network_requests;
	uint64_t network_bytes;
} moeep_peer_info_t;

MOEEP_API int moeep_comm_query_peer(const moeep_comm_t *comm, int peer, moeep_peer_info_t *info);

/*
 * Symmetric memory: rows there are written and read by peers in place, without a copy through
 * the buffer's window.
 *
 * moeep_mem_alloc() is collective; every rank asks for its own size and gets memory of the comm's
 * backend (CUDA: device memory), zeroed, aligned to 4096 bytes, or NULL for 0 bytes.
 * moeep_mem_free() takes the rank's own pointer, once no operation of any rank uses it; it is
 * local, in any order, and NULL is a no-op.
 *
 * moeep_mem_register() makes the caller's memory symmetric as well, where that can be done: between
 * ranks that are threads of one process any memory (CUDA: any that CUDA knows); with the CUDA
 * backend between processes memory of cudaMalloc() or cuMemAlloc(), not host memory, nor that of
 * pools, cuMemCreate() or managed. Else MOEEP_ERR_UNSUPPORTED on all ranks, with the rank and the
 * cause. Collective. moeep_mem_deregister() is local like moeep_mem_free() and comes before freeing
 * the memory, on all ranks if it is shared between processes.
 *
 * flags: none yet, 0.
 */
MOEEP_API int moeep_mem_alloc(moeep_comm_t *comm, size_t bytes, uint32_t flags, void **ptr);
MOEEP_API int moeep_mem_free(moeep_comm_t *comm, void *ptr);
MOEEP_API int moeep_mem_register(moeep_comm_t *comm, void *ptr, size_t bytes, uint32_t flags);
MOEEP_API int moeep_mem_deregister(moeep_comm_t *comm, void *ptr);

/* 1 if all of [ptr, ptr + bytes) is symmetric memory of this comm, 0 if not, or an error. */
MOEEP_API int moeep_mem_is_symmetric(const moeep_comm_t *comm, const void *ptr, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
