/* SPDX-License-Identifier: MIT */
/*
 * host/ll_dispatch.c - low-latency dispatch.
 *
 * SEND writes the rank's tokens once, cast if asked, into a slot of its own window. RECV takes from
 * every rank's slot the tokens that have a choice here, in ascending order of ranks, straight into
 * the expert-major output.
 */
#include "config.h"

#include <stddef.h>
#include <string.h>

#include "core/error.h"
#include "ep/ll_state.h"
#include "ep/publish.h"
#include "ep/refusal.h"
#include "host/ht.h"
#include "host/ht_route.h"
#include "host/ll.h"
#include "host/records.h"

static int credit(struct moeep_buffer *buffer, moeep_op_t op, uint64_t epoch, size_t offset)
{
	struct moeep_wait wait;
	struct moeep_ll_wait reached = {
		.buffer = buffer,
		.offset = offset,
		.expected = moeep_flag_word(moeep_epoch_before(epoch, MOEEP_SLOTS), 0),
		.what = "the RECV of two epochs ago",
	};

	/* A slot is free once every rank has received what it held, two epochs ago. */
	moeep_wait_begin(&wait, buffer->comm, op, epoch);
	moeep_refusal_watch(&wait, buffer);
	return moeep_wait_until(&wait, moeep_ll_reached, &reached);
}

static void write_token(const struct moeep_buffer *buffer, const struct moeep_ll_entry *entry,
			const struct moeep_ll_parts *parts, const moeep_ll_dispatch_args_t *args,
			int64_t t)
{
	uint64_t size = (uint64_t)buffer->geo.config.hidden * moeep_dtype_size(args->dtype);
	const char *row = (const char *)args->x + (uint64_t)t * size;
	char *to = parts->rows + (uint64_t)t * parts->row_bytes;

	if (entry->quant == MOEEP_QUANT_NONE) {
		memcpy(to, row, size);
	} else {
		buffer->rowmath->quantize(row, args->dtype, buffer->geo.config.hidden, entry->quant,
					  (uint8_t *)to,
					  parts->scales + (uint64_t)t * parts->scale_bytes);
	}
}

/* The slot to another node: its rows once, whatever the number of ranks there that want them. */
static void send_slot(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		      int node, const struct moeep_ll_entry *entry,
		      const struct moeep_ll_parts *parts)
{
	uint64_t choices = (uint64_t)entry->num_tokens * (uint64_t)entry->topk;
	int64_t begin = 0;

	if (buffer->comm->gates[node].rank < 0) {
		return;
	}
	moeep_send_to_node(buffer, node, entry, sizeof(*entry) + choices * sizeof(int32_t));
	if (entry->given & MOEEP_GIVEN_WEIGHTS) {
		moeep_send_to_node(buffer, node, parts->topk_weights, choices * sizeof(float));
	}
	while (begin < entry->num_tokens) {
		int64_t run = moeep_route_node_run(buffer, handle->topk_idx, entry->topk, begin,
						   entry->num_tokens, node);

		if (entry->quant != MOEEP_QUANT_NONE) {
			moeep_send_to_node(buffer, node,
					   parts->scales + (uint64_t)begin * parts->scale_bytes,
					   (uint64_t)run * parts->scale_bytes);
		}
		moeep_send_to_node(buffer, node, parts->rows + (uint64_t)begin * parts->row_bytes,
				   (uint64_t)run * parts->row_bytes);
		begin += run + 1;
	}
}

static int send_phase(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_dispatch_args_t *args)
{
	uint64_t epoch = (atomic_load_explicit(&buffer->ll_epoch, memory_order_relaxed) + 1) &
			 MOEEP_EPOCH_MASK;
	int self = buffer->geo.rank;
	size_t choices = (size_t)args->num_tokens * (size_t)args->topk;
	struct moeep_ll_entry *entry;
	struct moeep_ll_parts parts;
	int rc;

	handle->kind = MOEEP_ROUTE_NONE;
	rc = moeep_route_read(buffer, args->topk_idx, args->topk_dtype, args->num_tokens,
			      args->topk, handle->topk_idx, buffer->scratch.count_rank,
			      buffer->scratch.count_expert);
	if (rc == MOEEP_OK) {
		rc = credit(buffer, MOEEP_OP_LL_DISPATCH_SEND, epoch,
			    offsetof(struct moeep_words, ll_received));
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	moeep_ll_note_dispatch_send(buffer, handle, args);
	for (int rank = 0; rank < buffer->geo.num_ranks; rank++) {
		handle->send_per_rank[rank] = buffer->scratch.count_rank[rank];
	}
	if (handle->weighted) {
		memcpy(handle->topk_weights, args->topk_weights, choices * sizeof(float));
	}

	entry = moeep_ll_slot(buffer, self, epoch);
	*entry = (struct moeep_ll_entry){
		.dtype = moeep_ll_wire_dtype(args->dtype, args->quant),
		.quant = args->quant,
		.topk = args->topk,
		.given = handle->weighted ? MOEEP_GIVEN_WEIGHTS : 0,
		.num_tokens = args->num_tokens,
	};
	moeep_ll_open_slot(buffer, entry, &parts);
	memcpy(parts.topk_idx, handle->topk_idx, choices * sizeof(int32_t));
	if (handle->weighted) {
		memcpy(parts.topk_weights, args->topk_weights, choices * sizeof(float));
	}
	for (int64_t t = 0; t < args->num_tokens; t++) {
		write_token(buffer, entry, &parts, args, t);
	}
	moeep_rowmath_fence();
	for (int node = 0; node < buffer->comm->num_nodes; node++) {
		send_slot(buffer, handle, node, entry, &parts);
	}
	moeep_ll_publish(buffer, &moeep_buffer_words(buffer, self)->ll_sent.word, epoch);
	return MOEEP_OK;
}

/* Ranks must agree on what rows are. A difference is found by whoever sees it, and ends the group.
 */
static int check_entry(const struct moeep_buffer *buffer, const struct moeep_handle *handle,
		       int from, const struct moeep_ll_entry *entry)
{
	const struct moeep_ll_entry *own = moeep_ll_slot(buffer, buffer->geo.rank, handle->route);

	/* A rank without tokens cannot have weights to give. */
	if (entry->dtype != own->dtype || entry->quant != own->quant || entry->topk != own->topk ||
	    (entry->given != own->given && entry->num_tokens > 0 && own->num_tokens > 0)) {
		return moeep_fail(MOEEP_ERR_MISMATCH,
				  "LL dispatch of rank %d has %s rows, quant %d, topk %d, weights "
				  "%u; rank %d "
				  "has %s, %d, %d, %u",
				  from, moeep_dtype_name(entry->dtype), entry->quant, entry->topk,
				  entry->given, buffer->geo.rank, moeep_dtype_name(own->dtype),
				  own->quant, own->topk, own->given);
	}
	return MOEEP_OK;
}

static void take_slot(struct moeep_sink *sink, const struct moeep_buffer *buffer,
		      struct moeep_handle *handle, int from, struct moeep_ll_entry *entry)
{
	struct moeep_ll_parts parts;
	int64_t taken = sink->flat_cursor[from];

	moeep_ll_open_slot(buffer, entry, &parts);
	for (int64_t t = 0; t < entry->num_tokens; t++) {
		struct moeep_record record = {
			.topk_idx = &parts.topk_idx[t * entry->topk],
			.topk_weights = entry->given & MOEEP_GIVEN_WEIGHTS
						? &parts.topk_weights[t * entry->topk]
						: NULL,
			.scales = entry->quant != MOEEP_QUANT_NONE
					  ? parts.scales + (uint64_t)t * parts.scale_bytes
					  : NULL,
			.row = parts.rows + (uint64_t)t * parts.row_bytes,
			.src_rank = from,
			.src_token = t,
		};

		if (moeep_record_is_local(sink, record.topk_idx)) {
			moeep_record_place(sink, &record);
		}
	}
	handle->recv_per_rank[from] = sink->flat_cursor[from] - taken;
}

/* Rows of a source start where those of the source before end. */
static void begin_source(struct moeep_handle *handle, const struct moeep_sink *sink, int from,
			 const moeep_ll_dispatch_args_t *args)
{
	int local = sink->local_experts;

	for (int e = 0; e < local; e++) {
		int64_t at = from == 0 ? e * args->capacity
				       : sink->expert_cursor[(int64_t)(from - 1) * local + e];

		handle->recv_expert[(int64_t)from * local + e] = at;
		sink->expert_cursor[(int64_t)from * local + e] = at;
	}
	handle->recv_base[from] = from == 0 ? 0 : sink->flat_cursor[from - 1];
	sink->flat_cursor[from] = handle->recv_base[from];
}

static int64_t finish_counts(struct moeep_handle *handle, const struct moeep_sink *sink, int ranks,
			     const moeep_ll_dispatch_args_t *args)
{
	int local = sink->local_experts;
	int64_t most = 0;

	handle->recv_base[ranks] = sink->flat_cursor[ranks - 1];
	handle->num_rows = 0;
	for (int e = 0; e < local; e++) {
		int64_t count =
			sink->expert_cursor[(int64_t)(ranks - 1) * local + e] - e * args->capacity;

		handle->recv_per_expert[e] = count;
		handle->expert_offsets[e] = e * args->capacity;
		handle->num_rows += count;
		most = count > most ? count : most;
		if (args->recv_count) {
			args->recv_count[e] = (int32_t)count;
		}
		for (int rank = 0; args->recv_range && rank < ranks; rank++) {
			int64_t first = handle->recv_expert[(int64_t)rank * local + e];
			int64_t end = sink->expert_cursor[(int64_t)rank * local + e];

			args->recv_range[(int64_t)e * ranks + rank] =
				(first - e * args->capacity) << 32 | (end - first);
		}
	}
	handle->expert_offsets[local] = local * args->capacity;
	return most;
}

static void open_sink(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_dispatch_args_t *args, struct moeep_sink *sink)
{
	const struct moeep_geometry *g = &buffer->geo;
	int32_t dtype = moeep_ll_wire_dtype(handle->ll_dtype, handle->ll_quant);

	*sink = (struct moeep_sink){
		.handle = handle,
		.rowmath = buffer->rowmath,
		.first_expert = g->first_expert,
		.local_experts = g->local_experts,
		.topk = handle->topk,
		.expert_major = true,
		.capacity = args->capacity,
		.per_expert_capacity = true,
		.row_bytes = (uint64_t)g->config.hidden * moeep_dtype_size(dtype),
		.recv_x = args->recv_x,
		.recv_src_token = args->recv_src_token,
		.flat_cursor = buffer->scratch.recv_cursor,
		.expert_cursor = buffer->scratch.recv_expert,
	};
	/* A guess: as many rows come as this rank sends. */
	sink->stream = moeep_ll_streams(buffer, handle, sink->row_bytes);
	if (handle->ll_quant != MOEEP_QUANT_NONE && args->recv_scales) {
		int32_t scale = moeep_ll_scale_dtype(handle->ll_quant);

		sink->scales = (struct moeep_scales){.base = args->recv_scales,
						     .layout = args->recv_scale_layout,
						     .dtype = scale,
						     .count = moeep_scale_groups(g->config.hidden),
						     .stride = args->recv_scale_stride};
		moeep_scales_resolve(&sink->scales, args->capacity);
		sink->expert_scales_bytes =
			moeep_scales_bytes(scale, args->recv_scale_layout, args->capacity,
					   sink->scales.count, sink->scales.stride);
	}
}

static int recv_phase(struct moeep_buffer *buffer, struct moeep_handle *handle,
		      const moeep_ll_dispatch_args_t *args)
{
	uint64_t epoch = handle->route;
	int ranks = buffer->geo.num_ranks;
	struct moeep_ll_wait reached = {.buffer = buffer,
					.offset = offsetof(struct moeep_words, ll_sent),
					.expected = moeep_flag_word(epoch, 0),
					.what = "the rows"};
	struct moeep_ht_op op = {.buffer = buffer, .handle = handle, .epoch = epoch};
	struct moeep_sink sink;
	int64_t most;
	int rc = MOEEP_OK;

	open_sink(buffer, handle, args, &sink);
	moeep_wait_begin(&op.wait, buffer->comm, MOEEP_OP_LL_DISPATCH_RECV, epoch);
	moeep_refusal_watch(&op.wait, buffer);
	for (int from = 0; from < ranks && rc == MOEEP_OK; from++) {
		struct moeep_ll_wait one = reached;

		one.next = from;
		rc = moeep_wait_until(&op.wait, moeep_ll_reached_one, &one);
		if (rc == MOEEP_OK) {
			struct moeep_ll_entry *entry = moeep_ll_slot(buffer, from, epoch);

			rc = check_entry(buffer, handle, from, entry);
			if (rc != MOEEP_OK) {
				return moeep_host_raise(&op, MOEEP_OP_LL_DISPATCH_RECV, rc);
			}
			begin_source(handle, &sink, from, args);
			handle->weighted |= (entry->given & MOEEP_GIVEN_WEIGHTS) != 0;
			take_slot(&sink, buffer, handle, from, entry);
		}
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	most = finish_counts(handle, &sink, ranks, args);
	handle->overflow = most > args->capacity || sink.lost;
	for (int rank = 0; rank < ranks; rank++) {
		buffer->scratch.traffic[rank].dispatch_rows +=
			(uint64_t)handle->recv_per_rank[rank];
		buffer->scratch.traffic[rank].dispatch_bytes +=
			(uint64_t)handle->recv_per_rank[rank] * sink.row_bytes;
	}
	moeep_ll_note_dispatch_recv(buffer, handle, args);
	moeep_ll_publish(buffer, &moeep_buffer_words(buffer, buffer->geo.rank)->ll_received.word,
			 epoch);
	if (handle->overflow) {
		return moeep_fail(MOEEP_ERR_CAPACITY,
				  "an expert of rank %d receives %lld rows; capacity is %lld",
				  buffer->geo.rank, (long long)most, (long long)args->capacity);
	}
	return MOEEP_OK;
}

int moeep_host_ll_dispatch(struct moeep_buffer *buffer, struct moeep_handle *handle,
			   const void *args_void)
{
	const moeep_ll_dispatch_args_t *args = args_void;
	int phases = moeep_ll_phases(args->phase);
	int rc = moeep_comm_check(buffer->comm);

	if (rc == MOEEP_OK) {
		rc = moeep_ll_check_dispatch(buffer, handle, phases);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_SEND)) {
		rc = send_phase(buffer, handle, args);
	}
	if (rc == MOEEP_OK && (phases & MOEEP_LL_RECV)) {
		rc = recv_phase(buffer, handle, args);
	}
	return rc;
}
