/* SPDX-License-Identifier: MIT */
/* host/ht_enter.c - the exchange at the start of every HT operation. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "ep/publish.h"
#include "ep/refusal.h"
#include "host/ht.h"

static void *entry_at(const struct moeep_ht_op *op, int rank)
{
	const struct moeep_geometry *g = &op->buffer->geo;

	return moeep_buffer_at(op->buffer, rank,
			       g->ht_entry + moeep_slot_of(op->epoch) * g->entry_bytes);
}

const struct moeep_ht_entry *moeep_ht_entry_of(const struct moeep_ht_op *op, int rank)
{
	return entry_at(op, rank);
}

const int32_t *moeep_ht_tokens_per_rank(const struct moeep_ht_op *op, int rank)
{
	return (const int32_t *)((struct moeep_ht_entry *)entry_at(op, rank) + 1);
}

const int32_t *moeep_ht_tokens_per_expert(const struct moeep_ht_op *op, int rank)
{
	return moeep_ht_tokens_per_rank(op, rank) + op->buffer->geo.num_ranks;
}

int moeep_host_raise(const struct moeep_ht_op *op, moeep_op_t name, int result)
{
	struct moeep_cause cause = {.result = result,
				    .operation = name,
				    .rank = op->buffer->geo.rank,
				    .peer = -1,
				    .epoch = op->epoch};

	snprintf(cause.message, sizeof(cause.message), "%s", moeep_error_detail());
	return moeep_comm_raise(op->buffer->comm, &cause);
}

struct enter_wait {
	const struct moeep_ht_op *op;
	uint64_t expected;
	int next;
};

static bool enter_ready(void *arg, struct moeep_pending *pending)
{
	struct enter_wait *w = arg;

	for (; w->next < w->op->buffer->geo.num_ranks; w->next++) {
		uint64_t seen =
			moeep_flag_get(&moeep_buffer_words(w->op->buffer, w->next)->ht_entry.word);

		if (!moeep_flag_reached(seen, w->expected)) {
			pending->peer = w->next;
			pending->expected = w->expected;
			pending->seen = seen;
			pending->what = "the call";
			return false;
		}
	}
	return true;
}

/* A rank without tokens has nothing to give, so one that has some speaks for what is given. */
static const struct moeep_ht_entry *find_giver(const struct moeep_ht_op *op)
{
	for (int rank = 0; rank < op->buffer->geo.num_ranks; rank++) {
		if (moeep_ht_entry_of(op, rank)->num_tokens > 0) {
			return moeep_ht_entry_of(op, rank);
		}
	}
	return moeep_ht_entry_of(op, 0);
}

/* The first thing in which a rank's call differs from another's, where it may not. */
static int check_agreement(struct moeep_ht_op *op)
{
	const struct moeep_ht_entry *a = moeep_ht_entry_of(op, 0);
	const struct moeep_ht_entry *giver = find_giver(op);

	for (int rank = 0; rank < op->buffer->geo.num_ranks; rank++) {
		const struct moeep_ht_entry *b = moeep_ht_entry_of(op, rank);
		const struct moeep_ht_entry *g = b->num_tokens > 0 ? b : giver;
		const struct {
			const char *name;
			uint64_t a;
			uint64_t b;
		} fields[] = {
			{"the operation", a->op, b->op},
			{"flags", a->flags, b->flags},
			{"the handle's dispatch (its epoch)", a->route, b->route},
			{"dtype", (uint64_t)a->dtype, (uint64_t)b->dtype},
			{"topk", (uint64_t)a->topk, (uint64_t)b->topk},
			{"row_layout", (uint64_t)a->row_layout, (uint64_t)b->row_layout},
			{"scale_count", (uint64_t)giver->scale_count, (uint64_t)g->scale_count},
			{"scale_dtype", (uint64_t)giver->scale_dtype, (uint64_t)g->scale_dtype},
			{"what is given (1 weights, 2 scales, 4 x)", giver->given, g->given},
		};

		for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
			if (fields[i].a != fields[i].b) {
				return moeep_fail(MOEEP_ERR_MISMATCH,
						  "%s: %llu on rank %d, %llu elsewhere",
						  fields[i].name, (unsigned long long)fields[i].b,
						  rank, (unsigned long long)fields[i].a);
			}
		}
	}
	op->given = giver->given;
	op->scale_count = giver->scale_count;
	op->scale_dtype = giver->scale_dtype;
	return MOEEP_OK;
}

int moeep_ht_enter(struct moeep_ht_op *op, const struct moeep_ht_entry *mine,
		   const int32_t *per_rank, const int32_t *per_expert)
{
	struct moeep_buffer *buffer = op->buffer;
	const struct moeep_geometry *g = &buffer->geo;
	int self = g->rank;
	struct enter_wait wait = {.op = op};
	int rc;

	op->epoch = (atomic_load_explicit(&buffer->ht_epoch, memory_order_relaxed) + 1) &
		    MOEEP_EPOCH_MASK;
	atomic_store_explicit(&buffer->ht_epoch, op->epoch, memory_order_relaxed);
	moeep_wait_begin(&op->wait, buffer->comm, (moeep_op_t)mine->op, op->epoch);
	moeep_refusal_watch(&op->wait, buffer);
	/*
	 * The slot's last content is of two epochs ago. Its readers have begun the epoch after it,
	 * or this rank could not have ended that one; so they have done with it.
	 */
	memcpy(entry_at(op, self), mine, sizeof(*mine));
	if (mine->route == 0 && mine->op == MOEEP_OP_DISPATCH) {
		((struct moeep_ht_entry *)entry_at(op, self))->route = op->epoch;
	}
	if (per_rank) {
		int32_t *counts = (int32_t *)((struct moeep_ht_entry *)entry_at(op, self) + 1);

		memcpy(counts, per_rank, sizeof(*counts) * (size_t)g->num_ranks);
		if (per_expert) {
			memcpy(counts + g->num_ranks, per_expert,
			       sizeof(*counts) * (size_t)g->config.num_experts);
		}
	}
	wait.expected = moeep_flag_word(op->epoch, 0);
	/* Pairs with enter_ready() of every peer. */
	moeep_send_to_nodes(buffer, entry_at(op, self), g->entry_bytes);
	moeep_publish(buffer, &moeep_buffer_words(buffer, self)->ht_entry.word, wait.expected,
		      MOEEP_TO_ALL);
	moeep_wait_wake_all(buffer->comm);
	rc = moeep_wait_until(&op->wait, enter_ready, &wait);
	return rc == MOEEP_OK ? check_agreement(op) : rc;
}
