/* SPDX-License-Identifier: MIT */
/*
 * ep/geometry.h - a buffer's configuration with its defaults, and where everything lies in its
 * window. A pure function of configuration, rank count and rank, so that the size hint is exact.
 */
#ifndef MOEEP_EP_GEOMETRY_H
#define MOEEP_EP_GEOMETRY_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include <moeep/moeep.h>

#include "core/settings.h"
#include "kernels/args.h"
#include "memory/control.h"
#include "memory/region.h"

/* Operations have this many slots, see HACKING.md, "Credits". */
#define MOEEP_SLOTS    2
#define MOEEP_MAX_TOPK 64

/* A flag alone on its cache line: written by one rank, polled by others. */
struct moeep_flag_line {
	_Alignas(MOEEP_CACHE_LINE) _Atomic uint64_t word;
};
static_assert(sizeof(struct moeep_flag_line) == MOEEP_CACHE_LINE, "layout of shared memory");

/* Start of a window: flags of the rank that owns it. HACKING.md names readers and order. */
struct moeep_words {
	struct moeep_flag_line ht_entry;    /* (epoch, 0): the entry of this epoch is written */
	struct moeep_flag_line ht_head;	    /* (epoch, chunks) staged by this rank's dispatch */
	struct moeep_flag_line ht_done;	    /* (epoch, 0): this rank has read all that it needs */
	struct moeep_flag_line ll_sent;	    /* (epoch, 0) dispatch slot written */
	struct moeep_flag_line ll_received; /* (epoch, 0) all dispatch slots of the epoch read */
	struct moeep_flag_line ll_csent;    /* the same for combine */
	struct moeep_flag_line ll_creceived;
	struct moeep_refusal refusals[MOEEP_REFUSABLES]; /* the last of each kind */
};

/* What a rank brings to an HT operation; the counts, int32 [R] and [E], follow. */
struct moeep_ht_entry {
	uint32_t op;
	uint32_t flags;
	int32_t dtype;
	int32_t topk;
	int32_t row_layout;
	int32_t scale_count;
	int32_t scale_dtype;
	int32_t alignment;
	uint32_t given; /* MOEEP_GIVEN_* */
	uint32_t reserved;
	int64_t num_tokens;
	int64_t capacity;	  /* rows that its outputs hold */
	int64_t max_recv;	  /* tokens that its handle holds */
	uint64_t route;		  /* epoch of the dispatch whose routing is used */
	struct moeep_place place; /* dispatch: recv_x; combine: x; if in symmetric memory */
};
static_assert(sizeof(struct moeep_ht_entry) == 88, "layout of shared memory");

#define MOEEP_GIVEN_WEIGHTS 1u
#define MOEEP_GIVEN_SCALES  2u
#define MOEEP_GIVEN_X	    4u

/* Start of an LL slot: what its rows are. */
struct moeep_ll_entry {
	int32_t dtype; /* of the rows in the slot */
	int32_t quant;
	int32_t topk;
	uint32_t given;
	int64_t num_tokens;
	uint64_t route;	  /* combine: epoch of the dispatch */
	int64_t capacity; /* combine from symmetric memory: rows of an expert in x */
	uint32_t flags;
	uint32_t overflow;	  /* combine: rows were lost at this rank's dispatch */
	struct moeep_place place; /* combine: x, if in symmetric memory */
};
static_assert(sizeof(struct moeep_ll_entry) == 64, "layout of shared memory");

/* What a window's layout has to know of the nodes. Of one node: zeros, most_local apart. */
struct moeep_span {
	int num_mirrors; /* ranks of other nodes that this one's window has mirrors of */
	int most_local;	 /* ranks of the largest node */
	bool several;
};

struct moeep_geometry {
	struct moeep_span span;
	moeep_buffer_config_t config; /* every default filled in */
	int rank;
	int num_ranks;
	int first_expert;
	int local_experts;
	uint64_t row_bytes;	/* of the widest dtype */
	uint64_t partial_bytes; /* of the widest row that combine sends back */
	uint64_t ring_bytes;

	/* Offsets into the window. */
	uint64_t ht_tail;  /* flag lines [R]: dispatch chunks consumed from each source */
	uint64_t ht_chead; /* [R]: combine chunks staged for each source */
	uint64_t ht_ctail; /* [R]: combine chunks consumed from each expert rank */
	uint64_t ht_ftail; /* several nodes, [R][most_local]: combine chunks of each of this node's
			      ranks that were forwarded to a rank of another */
	uint64_t ht_entry; /* [SLOTS] entries of entry_bytes */
	uint64_t entry_bytes;
	uint64_t ht_ring;
	uint64_t ll_slot; /* [SLOTS] dispatch slots */
	uint64_t ll_slot_bytes;
	uint64_t ll_cslot; /* [SLOTS] combine slots of the protocol */
	uint64_t ll_cslot_bytes;
	uint64_t ll_cslot_mirror_bytes; /* in a mirror, where it has rows of one node only */
	uint64_t mirrors;		/* [num_mirrors] of what ranks of other nodes tell */
	uint64_t mirror_bytes;
	struct moeep_dev_window device; /* CUDA: in place of the above */
	uint64_t device_flags;		/* bytes of its flags, at the start */
	uint64_t user_slot;		/* [ll_combine_slots] of the caller */
	uint64_t user_slot_bytes;
	uint64_t window_bytes;
	moeep_size_hint_t hint;
};

/* Check a caller's configuration, fill in defaults, lay out the window. settings may change the
 * ring, and say which backend it is for. */
int moeep_geometry_make(const moeep_buffer_config_t *config, const struct moeep_settings *settings,
			int rank, int num_ranks, const struct moeep_span *span,
			struct moeep_geometry *geometry);

struct moeep_comm;

struct moeep_span moeep_span_of(const struct moeep_comm *comm);

/* Bytes of a handle's arrays. */
uint64_t moeep_geometry_handle_bytes(const struct moeep_geometry *geometry, int64_t max_tokens,
				     int64_t max_recv);

/* Bytes of a buffer's bookkeeping for operations. */
uint64_t moeep_geometry_private_bytes(const struct moeep_geometry *geometry);

static inline uint64_t moeep_align(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) / unit * unit;
}

/* The stride of scales, of which 0 asks for the default: columns begin at whole words of bytes. */
static inline int64_t moeep_scale_stride(int32_t layout, int64_t stride, int64_t rows,
					 int32_t count)
{
	if (stride != 0) {
		return stride;
	}
	return layout == MOEEP_SCALES_COLUMN_MAJOR ? (rows + 3) / 4 * 4 : count;
}

static inline int moeep_scale_groups(int64_t hidden)
{
	return (int)((hidden + 127) / 128);
}

#endif
