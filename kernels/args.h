/* SPDX-License-Identifier: MIT */
/*
 * kernels/args.h - what the host hands to kernels, and what both read and write. Included by C and
 * by CUDA C; everything has the same layout in both.
 *
 * A pointer here is an address of the device that runs the kernel. HACKING.md, "CUDA backend", has
 * the protocol.
 */
#ifndef MOEEP_KERNELS_ARGS_H
#define MOEEP_KERNELS_ARGS_H

#include <stdint.h>

#ifdef __cplusplus
#define MOEEP_ARGS_ASSERT(type, bytes) static_assert(sizeof(type) == (bytes), "kernel argument")
#else
#include <assert.h>
#define MOEEP_ARGS_ASSERT(type, bytes) static_assert(sizeof(type) == (bytes), "kernel argument")
#endif

/* Warps of a block that move rows of an HT operation. */
#define MOEEP_DEV_MOVERS 4
/* Most pieces of rows that each of them has under way. */
#define MOEEP_DEV_STAGES 8
/* Most blocks of an operation. */
#define MOEEP_DEV_BLOCKS 144
/*
 * Most channels of a rank, which movers claim one after the other: of its tokens in a dispatch, of each
 * source's rows in a combine.
 */
#define MOEEP_DEV_CHANNELS 2048
/* Threads of the blocks of each family of kernels. */
#define MOEEP_DEV_HT_THREADS	384
#define MOEEP_DEV_SUM_THREADS	512
#define MOEEP_DEV_LL_THREADS	512
/* Of an HT operation's block: what it knows of a rank, in shared memory; see ht_ends.cuh. */
#define MOEEP_DEV_END_BYTES 64
/* Shared memory for counters of experts; more experts than fit there count in device memory. */
#define MOEEP_DEV_HIST 8192

/* A word of an LL slot: three values of 32 bits and the epoch that they belong to. */
#define MOEEP_DEV_WORD	      16
#define MOEEP_DEV_WORD_VALUES 3
/* A slot's first word; the rest begins behind it. */
#define MOEEP_DEV_LL_HEADER 256
/* What a warp carries of a row at once: 128 words. */
#define MOEEP_DEV_PARCEL      1536
#define MOEEP_DEV_PARCEL_ROOM 2048
/* Its scales, one for 128 elements of a byte: 4 words. */
#define MOEEP_DEV_PARCEL_SCALES 64

/* What a wait was for, as the report's text has it. */
enum moeep_dev_what {
	MOEEP_DEV_CALL = 1,
	MOEEP_DEV_ROWS = 2,
	MOEEP_DEV_RECORDS = 3,
	MOEEP_DEV_CREDIT = 4,
	MOEEP_DEV_PARTIALS = 5,
	MOEEP_DEV_READ = 6
};

/* Of one comm, in pinned memory. The host writes abort, the device the report, once. */
struct moeep_dev_shared {
	uint32_t abort; /* a result code, negated; 0: none */
	uint32_t state; /* of the report: 1 when it is complete */
	int32_t result;
	int32_t operation;
	int32_t peer;
	int32_t what; /* enum moeep_dev_what, or with MOEEP_ERR_MISMATCH the field that differs */
	uint64_t epoch;
	uint64_t expected;
	uint64_t seen;
};
MOEEP_ARGS_ASSERT(struct moeep_dev_shared, 48);

/* The same, in device memory. */
struct moeep_dev_comm {
	uint32_t dead;	/* a result code, negated: every kernel ends */
	uint32_t claim; /* of the report */
	uint32_t reserved[2];
};
MOEEP_ARGS_ASSERT(struct moeep_dev_comm, 16);

/* Why an operation did not succeed; the texts are in lib/cuda/result.c. */
enum moeep_dev_detail {
	MOEEP_DEV_DETAIL_NONE = 0,
	MOEEP_DEV_DETAIL_CHOICE = 1,   /* a token, b choice, c value */
	MOEEP_DEV_DETAIL_ROWS = 2,     /* a rank, b needed, c capacity */
	MOEEP_DEV_DETAIL_HANDLE = 3,   /* a rank, b tokens, c handle's limit */
	MOEEP_DEV_DETAIL_EXPERT = 4,   /* a rows of an expert, b capacity */
	MOEEP_DEV_DETAIL_RECORDS = 13, /* a tokens, b the handle's limit */
	MOEEP_DEV_DETAIL_LOST = 5,     /* a rank */
	MOEEP_DEV_DETAIL_FIELD = 6,    /* a field, b rank, c its value */
	MOEEP_DEV_DETAIL_OVERFLOW = 7, /* the handle's dispatch did not fit */
	MOEEP_DEV_DETAIL_NO_ROUTE = 8, /* the handle's dispatch left no routing */
	MOEEP_DEV_DETAIL_WEIGHTS = 9,  /* the dispatch had no weights */
	MOEEP_DEV_DETAIL_X = 10,       /* b rows of local expert a do not fit x's capacity c */
	MOEEP_DEV_DETAIL_NO_X = 11,    /* a rank has b rows, but x is NULL; c local expert or -1 */
	MOEEP_DEV_DETAIL_DEAD = 12     /* the comm has failed */
};

/* The result of an operation; pinned memory, or device memory of the buffer. */
struct moeep_dev_result {
	int32_t code;
	int32_t detail;
	int64_t a;
	int64_t b;
	int64_t c;
};
MOEEP_ARGS_ASSERT(struct moeep_dev_result, 32);

/* Kernels, or parts of one, whose last block has something to do. */
enum moeep_dev_ticket {
	MOEEP_DEV_TICKET_LL,
	MOEEP_DEV_TICKET_LL_COMBINE,
	MOEEP_DEV_TICKET_ROUTE,
	MOEEP_DEV_TICKET_PLANNED,
	MOEEP_DEV_TICKET_RECORDS,
	MOEEP_DEV_TICKET_READ,
	MOEEP_DEV_TICKET_MOVED,
	MOEEP_DEV_TICKETS
};

/* Counters of a buffer, in device memory: epochs that are complete, tickets of blocks. */
struct moeep_dev_state {
	uint64_t ht_epoch;
	uint64_t planned; /* epoch of the last plan that the blocks may read */
	uint64_t ll_epoch;
	uint64_t ll_recv;
	uint64_t ll_cepoch;
	uint64_t ll_crecv;
	uint32_t ticket[MOEEP_DEV_TICKETS]; /* zero between operations */
	uint32_t claimed_channels;	    /* likewise */
	uint32_t claimed_units;		    /* of tokens that are summed, likewise */
	int32_t lost;			    /* rank + 1 that has lost rows of an LL combine, likewise */
	uint32_t bad_claim;		    /* of what follows, likewise */
	struct moeep_dev_result bad; /* what is wrong with the caller's data */
};
MOEEP_ARGS_ASSERT(struct moeep_dev_state, 128);

/* Offsets in a window, the same on all ranks. Flags are 64-bit words, an array of [R] by writer. */
struct moeep_dev_window {
	uint64_t ht_entry_flag;
	uint64_t ht_record_flag;
	uint64_t ht_read_flag;
	uint64_t ht_progress; /* [R][MOEEP_DEV_CHANNELS] of 16 bytes */
	uint64_t ht_sent;     /* [R][MOEEP_DEV_BLOCKS] */
	uint64_t ll_received;
	uint64_t ll_creceived;
	uint64_t ht_entry; /* [2][R] of entry_bytes */
	uint64_t entry_bytes;
	/* Records: dispatch by position, combine by rank x max_tokens + index. */
	uint64_t record_idx;	 /* int32 [records][K] */
	uint64_t record_weights; /* float [records][K] */
	uint64_t record_token;	 /* int32 [records] */
	uint64_t record_scales;	 /* [records][scale_room] */
	uint64_t rows;		 /* [records][row_room] */
	uint64_t scale_room;
	uint64_t row_room;
	/* LL slots hold words of MOEEP_DEV_WORD bytes, each with its epoch. */
	uint64_t ll_slot; /* [2][R] of ll_slot_bytes: header, idx, numbers, weights, counts, scales, rows */
	uint64_t ll_slot_bytes;
	uint64_t ll_slot_numbers;
	uint64_t ll_slot_weights;
	uint64_t ll_slot_counts;
	uint64_t ll_slot_scales;
	uint64_t ll_slot_rows;
	uint64_t ll_cslot; /* [2][R] of ll_cslot_bytes: header, partial rows by token */
	uint64_t ll_cslot_bytes;
};

/* Traffic with a peer since creation. */
enum moeep_dev_traffic {
	MOEEP_DEV_DISPATCH_ROWS,
	MOEEP_DEV_DISPATCH_BYTES,
	MOEEP_DEV_COMBINE_ROWS,
	MOEEP_DEV_COMBINE_BYTES,
	MOEEP_DEV_TRAFFIC
};

#define MOEEP_DEV_FIRST_WINDOWS 8

/* What every kernel gets. */
struct moeep_dev_context {
	struct moeep_dev_shared *shared;
	struct moeep_dev_comm *comm;
	struct moeep_dev_state *state;
	char *const *windows; /* [R] */
	char *first_windows[MOEEP_DEV_FIRST_WINDOWS]; /* likewise: no trip to memory for these */
	struct moeep_dev_window window;
	uint64_t timeout_ns; /* 0: none */
	int64_t hidden;
	int64_t ht_max_tokens;
	int64_t ll_max_tokens;
	int32_t rank;
	int32_t num_ranks;
	int32_t num_experts;
	int32_t first_expert;
	int32_t local_experts;
	int32_t large_ranks;   /* the first ranks, with one expert more than the others */
	int32_t large_experts; /* all that they hold */
	float per_large_rank;  /* ranks for an expert of these, and of the others */
	float per_rank;
	int32_t max_topk;
	int32_t operation;
	int32_t reserved;
	uint64_t *traffic;		      /* [R][MOEEP_DEV_TRAFFIC] */
	const struct moeep_dev_result *after; /* the wait_event's; may be NULL */
	struct moeep_dev_result *result;
	int32_t *status; /* may be NULL */
};

/* Scales of rows, as lib/host/scales.h. */
struct moeep_dev_scales {
	void *base;
	int32_t layout;
	int32_t dtype;
	int32_t count;
	int32_t reserved;
	int64_t stride;
};
MOEEP_ARGS_ASSERT(struct moeep_dev_scales, 32);

/* A place in symmetric memory; slot 0: ordinary memory. */
struct moeep_dev_place {
	uint32_t slot;
	uint32_t id;
	uint64_t offset;
};
MOEEP_ARGS_ASSERT(struct moeep_dev_place, 16);

/* Regions of a comm: [slots] of these, then [slots][R] addresses. */
struct moeep_dev_region {
	uint32_t id;
	uint32_t reserved;
};

/* Numbers of the routing that a handle keeps, in device memory, written by kernels of dispatch. */
struct moeep_dev_route_state {
	uint64_t epoch; /* of the dispatch; HT */
	uint64_t ll_epoch;
	int32_t valid;	  /* HT routing is there */
	int32_t overflow; /* HT: the last dispatch with it did not fit somewhere. LL: here */
	int32_t weighted;
	int32_t reserved;
	int64_t num_rows; /* received, padding included */
	int64_t num_records;
	int64_t ll_most; /* rows of the local expert that has most */
};

/* The routing: where all of it is. Passed by value, since a pointer in memory costs a trip there. */
struct moeep_dev_route {
	struct moeep_dev_route_state *state;
	int32_t *topk_idx;	/* [N, K] */
	float *topk_weights;	/* [N, K] */
	int32_t *position;	/* [N, R] flat row at each rank, or -1: HT */
	int32_t *send_count;	/* [R] */
	int32_t *send_base;	/* [R] */
	int32_t *recv_count;	/* [R] */
	int32_t *recv_base;	/* [R + 1] */
	int32_t *expert_offset; /* [L + 1] */
	int32_t *expert_count;	/* [L] */
	int64_t *needed;	/* [R] */
	/*
	 * [records, K] where each choice's row is, -1: not here, -2: here but lost. HT, expert-major:
	 * the row. LL, by source x M + token: local expert << 32 | row of it.
	 */
	int64_t *record_rows;
	float *record_weights; /* the same */
	int32_t *ll_tokens;	/* [R] of the LL dispatch, by source */

	/* Pinned copies for moeep_handle_query(). */
	int64_t *host_send;    /* [R] */
	int64_t *host_recv;    /* [R] */
	int64_t *host_experts; /* [L] */
	int64_t *host_offsets; /* [L + 1] */
	int64_t *host_rows;    /* rows, epoch */
};

/* As MOEEP_GIVEN_* of lib/ep/geometry.h. */
#define MOEEP_DEV_GIVEN_WEIGHTS 1u
#define MOEEP_DEV_GIVEN_SCALES	2u
#define MOEEP_DEV_GIVEN_X	4u

/*
 * What a rank brings to an HT operation. Behind it, int32: tokens for each rank [R]; choices of each expert
 * [E].
 */
struct moeep_dev_entry {
	uint32_t op;
	uint32_t flags;
	int32_t dtype;
	int32_t topk;
	int32_t row_layout;
	int32_t scale_count;
	int32_t scale_dtype;
	int32_t alignment;
	uint32_t given;
	int32_t channels;
	uint32_t wants_rows; /* recv_x, or out of combine, is given */
	int32_t senders; /* dispatch: blocks that send */
	int64_t num_tokens; /* of those that are given: dispatch N, combine rows */
	int64_t capacity; /* rows that fit at recv_x; combine: between place and its region's end */
	int64_t max_recv;
	uint64_t route;
	struct moeep_dev_place place; /* of recv_x, or of x */
	uint64_t reserved2[2];
};
MOEEP_ARGS_ASSERT(struct moeep_dev_entry, 112);
#define MOEEP_DEV_ENTRY_COUNTS 128

/*
 * The plan of the HT operation that is under way. Every block has it in shared memory, the kernel after
 * it in device memory of the buffer.
 */
struct moeep_dev_plan {
	uint64_t epoch;
	int32_t code; /* not MOEEP_OK or MOEEP_ERR_CAPACITY: nothing is moved */
	int32_t move; /* rows are moved */
	uint32_t given;
	int32_t scale_count;
	int32_t scale_dtype;
	int32_t topk;
	struct moeep_dev_result result;
};
MOEEP_ARGS_ASSERT(struct moeep_dev_plan, 64);

/* Words that blocks hand to each other when an HT operation begins. */
struct moeep_dev_scratch {
	int32_t *block_total;	 /* [blocks][R] */
	int32_t *expert_count;	 /* [E], zero between operations */
	int32_t *hist;		 /* [blocks][L] if L > MOEEP_DEV_HIST, else NULL */
	int32_t *ll_hist;	 /* [E] if a block's shared memory has no room for all experts, else NULL */
};

/* How an HT operation begins, the part of its parameters. */
struct moeep_ht_route_args {
	struct moeep_dev_scratch scratch;
	const struct moeep_dev_region *regions;
	char *const *region_base; /* [slots][R] */
	struct moeep_dev_entry entry;
	uint32_t region_slots;
	int32_t topk_dtype;
	const void *topk_idx;
	const float *topk_weights;
	char *own; /* flat: where this rank's own rows go, or in a combine are */
	uint64_t row_bytes; /* of rows that travel */
	int64_t *num_recv;
	int32_t *recv_per_expert;
	int32_t *recv_per_expert_padded;
	int32_t *recv_expert_offsets;
	int32_t weighted; /* combine: the dispatch must have had weights */
	int32_t shared; /* bytes of a block's shared memory; what the rows need lies behind them */
};

struct moeep_ht_dispatch_params {
	struct moeep_dev_context c;
	struct moeep_dev_route route;
	struct moeep_dev_plan *plan;
	struct moeep_ht_route_args begin;
	const char *x;
	uint64_t row_bytes;
	uint64_t piece; /* bytes of a row that are moved at once */
	int64_t num_tokens;
	int32_t senders;  /* blocks that send rows; the others do the rest */
	int32_t channels; /* of the tokens */
	int32_t each;	  /* tokens of a channel */
	int32_t stages;	  /* pieces in flight of a warp */
	int32_t bulk;	 /* by the copy engine */
	int32_t expert_major;
	int32_t last; /* the operation has no further kernel */
	int32_t copies; /* rows come through the window, from which blocks copy them */
	uint32_t call_flags; /* of the call, also those that ranks need not agree on */
	int64_t capacity;
	char *recv_x;
	struct moeep_dev_scales scales;
	struct moeep_dev_scales recv_scales;
	void *recv_topk_idx;
	float *recv_topk_weights;
	int32_t *recv_src_token;
	int32_t *recv_src_rank;
};

/* Expert-major: from the window's records and rows to the outputs. */
struct moeep_ht_expand_params {
	struct moeep_dev_context c;
	struct moeep_dev_route route;
	struct moeep_dev_plan *plan;
	struct moeep_dev_scratch scratch;
	uint64_t row_bytes;
	uint32_t call_flags;
	int32_t reserved;
	int64_t capacity;
	char *recv_x;
	struct moeep_dev_scales recv_scales;
	float *recv_topk_weights;
	int32_t *recv_src_token;
	int32_t *recv_src_rank;
	int32_t *recv_expert;
};

struct moeep_ht_combine_params {
	struct moeep_dev_context c;
	struct moeep_dev_route route;
	struct moeep_dev_plan *plan;
	struct moeep_ht_route_args begin;
	const char *x;
	const float *topk_weights;
	char *out;
	float *out_topk_weights;
	const char *bias;
	uint64_t row_bytes;    /* of x and out */
	uint64_t staged_bytes; /* of rows that travel */
	uint64_t piece;	       /* bytes of a row that are sent at once */
	int64_t num_tokens;
	int32_t dtype;
	int32_t staged_dtype;
	int32_t senders;
	int32_t channels; /* of each source's rows */
	int32_t parts;	/* of a token's row, that are summed apart, of part elements, if as many */
	int32_t part;
	int32_t stages;
	int32_t bulk;
	int32_t expert_major;
	int32_t weighted;
	int32_t topk;
	int32_t in_place; /* the others read x where it is: nothing ends before they have */
	int32_t alone;	  /* no other rank of the comm is on this device */
};

struct moeep_ll_dispatch_params {
	struct moeep_dev_context c;
	struct moeep_dev_route route;
	const char *x;
	const void *topk_idx;
	const float *topk_weights;
	int64_t num_tokens;
	int32_t phases; /* 1 SEND, 2 RECV */
	int32_t dtype;
	int32_t quant;
	int32_t topk;
	int32_t topk_dtype;
	int32_t given;
	uint64_t row_bytes; /* without its words' epochs */
	/* RECV */
	int64_t capacity;
	int64_t max_recv;
	char *recv_x;
	struct moeep_dev_scales recv_scales;
	uint64_t expert_scales_bytes;
	int32_t *recv_count;
	int32_t *recv_src_token;
	int64_t *recv_range;
	int32_t *hist; /* [E] counters, if shared memory has none */
	int32_t senders; /* of both phases: blocks that send rows, the others receive; 0: all do both */
	int32_t reserved;
};

struct moeep_ll_combine_params {
	struct moeep_dev_context c;
	struct moeep_dev_route route;
	const char *x;
	char *out;
	const char *bias;
	int64_t num_tokens;
	int64_t capacity; /* of x */
	uint64_t row_bytes;
	uint64_t partial_bytes;
	int32_t phases;
	int32_t dtype;
	int32_t partial_dtype;
	int32_t unweighted; /* MOEEP_LL_COMBINE_UNWEIGHTED was asked for */
	int32_t topk;
	int32_t senders; /* as in a dispatch */
};

/* Where this rank's tokens would go; no peer is asked. */
struct moeep_layout_params {
	struct moeep_dev_context c;
	const void *topk_idx;
	int32_t topk_dtype;
	int32_t topk;
	int64_t num_tokens;
	const int32_t *node; /* [R] */
	int32_t num_nodes;
	int32_t reserved;
	int32_t *tokens_per_rank;
	int32_t *tokens_per_node;
	int32_t *tokens_per_expert;
	uint8_t *token_in_rank;
};

#endif
