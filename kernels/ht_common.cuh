/* SPDX-License-Identifier: MIT */
/* kernels/ht_common.cuh - what the kernels of high throughput share. */
#ifndef MOEEP_KERNELS_HT_COMMON_CUH
#define MOEEP_KERNELS_HT_COMMON_CUH

#include "ht_ends.cuh"

#define MOVERS	       MOEEP_DEV_MOVERS
/* Behind a block's movers the warp that reports how far they have come, then those of the records. */
#define REPORTER       MOVERS
#define FIRST_RECORDER (MOVERS + 1)

/* The entry that `source` brought to `owner`. */
DEV char *entry_at(const struct moeep_dev_context &c, int owner, uint64_t epoch, int source)
{
	return near_window_at(c, owner, c.window.ht_entry) +
	       ((epoch & 1) * (uint64_t)c.num_ranks + (uint64_t)source) * c.window.entry_bytes;
}

DEV const struct moeep_dev_entry *entry_of(const struct moeep_dev_context &c, uint64_t epoch,
					   int source)
{
	return (const struct moeep_dev_entry *)entry_at(c, c.rank, epoch, source);
}

DEV int32_t *entry_counts(char *entry)
{
	return (int32_t *)(entry + MOEEP_DEV_ENTRY_COUNTS);
}

DEV const int32_t *counts_of(const struct moeep_dev_context &c, uint64_t epoch, int source)
{
	return entry_counts(entry_at(c, c.rank, epoch, source));
}

/*
 * How far `writer` has come in a channel, in `owner`'s window: its epoch and rows that are there, and in a
 * dispatch, in the other 8 bytes, the first of them.
 */
DEV uint64_t *progress_at(const struct moeep_dev_context &c, int owner, int writer, int channel)
{
	return (uint64_t *)near_window_at(c, owner, c.window.ht_progress) +
	       2 * ((int64_t)writer * MOEEP_DEV_CHANNELS + channel);
}

/* Whether a block of `writer` has sent all its rows to `owner`, there. */
DEV uint64_t *sent_at(const struct moeep_dev_context &c, int owner, int writer, int part)
{
	return (uint64_t *)near_window_at(c, owner, c.window.ht_sent) +
	       (int64_t)writer * MOEEP_DEV_BLOCKS + part;
}

/*
 * What a block does when some of them send and the others sum or copy. Spread over the grid: the device
 * puts the first blocks on neighbouring SMs, which share a way to memory and to the links.
 */
struct part {
	bool sends;
	int index; /* among those that do the same */
};

DEV struct part part_of(int senders)
{
	int before = (int)(blockIdx.x * (unsigned)senders / gridDim.x);
	int through = (int)((blockIdx.x + 1) * (unsigned)senders / gridDim.x);

	return part{through > before, through > before ? before : (int)blockIdx.x - before};
}

/*
 * By one thread, when all records, or values of choices, are sent. Pairs with the wait for records of
 * each rank.
 */
DEV void publish_records(const struct moeep_dev_context &c, uint64_t epoch)
{
	for (int rank = 0; rank < c.num_ranks; rank++) {
		store_release(flag_at(c, rank, c.window.ht_record_flag, c.rank), flag_word(epoch, 0));
	}
}

/*
 * By all blocks of a kernel that moves rows, when they are done. True in all threads of the last one; not if
 * the comm has failed, which is the result then.
 */
DEV bool end_blocks(const struct moeep_dev_context &c, bool ok, bool next)
{
	if (!__syncthreads_and(ok)) {
		if (threadIdx.x == 0) {
			put_dead(c);
		}
		return false;
	}
	return last_block(&c.state->ticket[MOEEP_DEV_TICKET_MOVED], gridDim.x, next);
}

/* By one thread of the last block: as the next operation finds it. */
DEV void end_operation(const struct moeep_dev_context &c, const struct moeep_dev_plan &plan)
{
	c.state->claimed_channels = 0;
	c.state->claimed_units = 0;
	c.state->ht_epoch = plan.epoch;
}

DEV void finish_plan_result(const struct moeep_dev_context &c, const struct moeep_dev_plan &plan)
{
	finish_result(c, plan.result.code, plan.result.detail, plan.result.a, plan.result.b,
		      plan.result.c);
}

/* Choices of a token's or record's list that this rank reads as they stand there. */
DEV int32_t *record_idx(const struct moeep_dev_context &c, int owner, int64_t record, int topk)
{
	return (int32_t *)window_at(c, owner, c.window.record_idx) + record * topk;
}

DEV float *record_weights(const struct moeep_dev_context &c, int owner, int64_t record, int topk)
{
	return (float *)window_at(c, owner, c.window.record_weights) + record * topk;
}

DEV int32_t *record_token(const struct moeep_dev_context &c, int owner, int64_t record)
{
	return (int32_t *)window_at(c, owner, c.window.record_token) + record;
}

DEV char *record_scales(const struct moeep_dev_context &c, int owner, int64_t record)
{
	return window_at(c, owner, c.window.record_scales) +
	       (uint64_t)record * c.window.scale_room;
}

/* The rank that a record came from. */
DEV int record_source(const struct moeep_dev_route &route, int64_t record, int num_ranks)
{
	int low = 0;
	int high = num_ranks - 1;

	while (low < high) {
		int middle = (low + high + 1) / 2;

		if (route.recv_base[middle] <= record) {
			low = middle;
		} else {
			high = middle - 1;
		}
	}
	return low;
}

/* A piece of a row in turn: pieces of a row, rows of a list. */
struct piece {
	int64_t row;
	uint64_t at; /* bytes into the row */
};

DEV void next_piece(struct piece *p, uint64_t row_bytes, uint64_t bytes)
{
	p->at += bytes;
	if (p->at >= row_bytes) {
		p->at = 0;
		p->row++;
	}
}

DEV uint32_t piece_bytes(const struct piece &p, uint64_t row_bytes, uint64_t bytes)
{
	return (uint32_t)(row_bytes - p.at < bytes ? row_bytes - p.at : bytes);
}

/* Copies by the engine: a warp's ring of stages in shared memory, each with its barrier. */
struct ring {
	uint32_t stage;	  /* shared-memory address of the first */
	uint32_t barrier; /* of the first, 8 bytes each */
	uint32_t bytes;	  /* of a stage */
	int stages;
};

/* A piece's place in the ring: counted along, since to divide by the number of stages is slow. */
struct place {
	uint32_t stage;
	uint32_t phase;
};

#if HAVE_BULK
DEV void ring_init(const struct ring &r)
{
	if (LANE == 0) {
#pragma unroll 1
		for (int i = 0; i < r.stages; i++) {
			barrier_init(r.barrier + 8 * i);
		}
		/* The engine must find them initialised. */
		fence_engine_shared();
	}
	__syncwarp();
}

DEV void ring_next(const struct ring &r, struct place *at)
{
	if (++at->stage == (uint32_t)r.stages) {
		at->stage = 0;
		at->phase ^= 1u;
	}
}

/* A warp's ring: `warps` of them share the block's memory, stages first, then the barriers. */
DEV struct ring ring_of(char *memory, int warps, uint32_t bytes, int stages)
{
	uint32_t shared = (uint32_t)__cvta_generic_to_shared(memory);
	struct ring r = {0, 0, bytes, stages};

	r.stage = shared + (uint32_t)(WARP * stages) * bytes;
	r.barrier = shared + (uint32_t)(warps * stages) * bytes + 8u * (uint32_t)(WARP * stages);
	ring_init(r);
	return r;
}

DEV void ring_load(const struct ring &r, const struct place &at, const char *from, uint32_t bytes)
{
	barrier_expect(r.barrier + 8 * at.stage, bytes);
	bulk_load(r.stage + at.stage * r.bytes, from, bytes, r.barrier + 8 * at.stage);
}

DEV void ring_wait(const struct ring &r, const struct place &at)
{
	uint32_t done = 0;

	while (done == 0) {
		done = barrier_try_wait(r.barrier + 8 * at.stage, at.phase);
	}
}

DEV void ring_store(const struct ring &r, const struct place &at, char *to, uint32_t bytes)
{
	bulk_store(to, r.stage + at.stage * r.bytes, bytes);
}

DEV void ring_commit()
{
	bulk_commit();
}

/* At most PENDING of this thread's groups still read shared memory. */
template <int PENDING> DEV void ring_wait_read()
{
	bulk_wait_read<PENDING>();
}

/*
 * At most PENDING of this thread's groups are not complete; the others can be published. That they are
 * complete includes the fence between the engine's accesses and this thread's.
 */
template <int PENDING> DEV void ring_wait_written()
{
	bulk_wait_written<PENDING>();
}

/* Pieces that are loaded are not stored: shared memory is another's when this block has ended. */
DEV void drop_rows(const struct ring &r, struct place *storing, int ahead)
{
	for (; ahead > 0; ahead--) {
		ring_wait(r, *storing);
		ring_next(r, storing);
	}
}

/* After a wait for rows: the engine's loads see them, too. */
DEV void ring_acquire()
{
	fence_engine();
}
#endif

/* A warp copies a row, or a piece of one, by loads and stores. */
DEV void warp_copy(char *to, const char *from, int64_t bytes)
{
	for (int64_t base = LANE * 16; base < bytes; base += 32 * 16 * 4) {
		uint4 v[4];

#pragma unroll
		for (int u = 0; u < 4; u++) {
			if (base + u * 512 < bytes) {
				v[u] = *(const uint4 *)(from + base + u * 512);
			}
		}
#pragma unroll
		for (int u = 0; u < 4; u++) {
			if (base + u * 512 < bytes) {
				*(uint4 *)(to + base + u * 512) = v[u];
			}
		}
	}
}

/* The warps of a block that do not move rows meet, while routers may still be at theirs. */
DEV void records_sync(int threads)
{
	sync_some(2, threads);
}

#endif
