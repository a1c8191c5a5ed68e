/* SPDX-License-Identifier: MIT */
/* ep/buffer.c - making and ending buffers; what they tell of themselves. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "cuda/buffer.h"
#include "cuda/window.h"
#include "ep/buffer.h"
#include "net/net.h"

static void count_buffers(struct moeep_comm *comm, int by)
{
	pthread_mutex_lock(&comm->lock);
	comm->num_buffers += by;
	pthread_mutex_unlock(&comm->lock);
}

static void scratch_free(struct moeep_scratch *s)
{
	free(s->peer_rows);
	free(s->staged);
	free(s->consumed);
	free(s->woken);
	free(s->recv_cursor);
	free(s->expected);
	free(s->send_cursor);
	free(s->recv_expert);
	free(s->send_expert);
	free(s->expert_rank);
	free(s->count_rank);
	free(s->count_expert);
	free(s->one_scales);
	free(s->traffic);
	free(s->forwards);
	free(s->forward_counts);
}

static int scratch_alloc(struct moeep_buffer *buffer)
{
	struct moeep_scratch *s = &buffer->scratch;
	const struct moeep_geometry *g = &buffer->geo;
	size_t ranks = (size_t)g->num_ranks;
	size_t experts = (size_t)g->config.num_experts;
	size_t local = (size_t)g->local_experts;
	size_t mirrors = (size_t)g->span.num_mirrors;
	size_t most_local = (size_t)g->span.most_local;

	s->peer_rows = calloc(ranks, sizeof(*s->peer_rows));
	s->staged = calloc(ranks, sizeof(*s->staged));
	s->consumed = calloc(ranks, sizeof(*s->consumed));
	s->woken = calloc(ranks, sizeof(*s->woken));
	s->recv_cursor = calloc(ranks, sizeof(*s->recv_cursor));
	s->expected = calloc(ranks, sizeof(*s->expected));
	s->send_cursor = calloc(ranks, sizeof(*s->send_cursor));
	s->recv_expert = calloc(ranks * local + 1, sizeof(*s->recv_expert));
	s->send_expert = calloc(experts, sizeof(*s->send_expert));
	s->expert_rank = calloc(experts, sizeof(*s->expert_rank));
	s->count_rank = calloc(ranks, sizeof(*s->count_rank));
	s->count_expert = calloc(experts, sizeof(*s->count_expert));
	/* Records hold their scales in multiples of 16 bytes. */
	s->one_scales = calloc(1, moeep_align((uint64_t)g->config.max_scales * sizeof(float), 16));
	s->traffic = calloc(ranks, sizeof(*s->traffic));
	s->forwards = calloc(mirrors + 1, sizeof(*s->forwards));
	s->forward_counts = calloc(2 * mirrors * most_local + 1, sizeof(*s->forward_counts));
	if (!s->peer_rows || !s->staged || !s->consumed || !s->woken || !s->recv_cursor ||
	    !s->expected || !s->send_cursor || !s->recv_expert || !s->send_expert ||
	    !s->expert_rank || !s->count_rank || !s->count_expert || !s->one_scales ||
	    !s->traffic || !s->forwards || !s->forward_counts) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a buffer's bookkeeping");
	}
	for (int rank = 0, n = 0; rank < g->num_ranks; rank++) {
		const struct moeep_peer *peer = &buffer->comm->peers[rank];

		if (peer->mirror >= 0 && peer->host == g->rank) {
			s->forwards[n].source = rank;
			s->forwards[n].cursor = s->forward_counts + 2 * (size_t)n * most_local;
			s->forwards[n].used = s->forwards[n].cursor + most_local;
			n++;
		}
	}
	for (int rank = 0; rank < g->num_ranks; rank++) {
		int first = 0;
		int count = 0;

		(void)moeep_expert_range(g->config.num_experts, g->num_ranks, rank, &first, &count);
		for (int expert = first; expert < first + count; expert++) {
			s->expert_rank[expert] = rank;
		}
		s->traffic[rank].size = sizeof(s->traffic[rank]);
		s->traffic[rank].transport = buffer->comm->peers[rank].transport;
	}
	return MOEEP_OK;
}

/* The first field that differs between two configurations, or NULL. */
static const char *config_difference(const moeep_buffer_config_t *a, const moeep_buffer_config_t *b,
				     int64_t *left, int64_t *right)
{
	const struct {
		const char *name;
		int64_t a;
		int64_t b;
	} fields[] = {
		{"modes", a->modes, b->modes},
		{"num_experts", a->num_experts, b->num_experts},
		{"max_topk", a->max_topk, b->max_topk},
		{"dtype", a->dtype, b->dtype},
		{"hidden", a->hidden, b->hidden},
		{"ht_max_tokens", a->ht_max_tokens, b->ht_max_tokens},
		{"ll_max_tokens", a->ll_max_tokens, b->ll_max_tokens},
		{"ll_capacity", a->ll_capacity, b->ll_capacity},
		{"max_scales", a->max_scales, b->max_scales},
		{"partial_dtype", a->partial_dtype, b->partial_dtype},
		{"ll_combine_slots", a->ll_combine_slots, b->ll_combine_slots},
		{"num_sms", a->num_sms, b->num_sms},
		{"ht_chunk_bytes", a->ht_chunk_bytes, b->ht_chunk_bytes},
		{"ht_chunks", a->ht_chunks, b->ht_chunks},
		{"initial_epoch", (int64_t)a->initial_epoch, (int64_t)b->initial_epoch},
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		if (fields[i].a != fields[i].b) {
			*left = fields[i].a;
			*right = fields[i].b;
			return fields[i].name;
		}
	}
	return NULL;
}

static int agree_config(struct moeep_comm *comm, const moeep_buffer_config_t *config)
{
	moeep_buffer_config_t *all = calloc((size_t)comm->num_ranks, sizeof(*all));
	int rc;

	rc = moeep_comm_agree(comm, all ? MOEEP_OK : moeep_fail(MOEEP_ERR_NOMEM, "no memory"));
	if (rc == MOEEP_OK) {
		rc = moeep_comm_gather(comm, config, all, sizeof(*config));
	}
	for (int rank = 1; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		int64_t left = 0;
		int64_t right = 0;
		const char *name = config_difference(&all[0], &all[rank], &left, &right);

		if (name) {
			rc = moeep_fail(MOEEP_ERR_MISMATCH,
					"config.%s is %lld on rank 0 and %lld on rank %d", name,
					(long long)left, (long long)right, rank);
		}
	}
	free(all);
	return rc;
}

/* All flags of a window, or of a mirror in it. */
static void set_words(const struct moeep_geometry *g, char *base, uint64_t word)
{
	struct moeep_words *words = (struct moeep_words *)base;
	struct {
		uint64_t at;
		int count;
	} const arrays[] = {
		{g->ht_tail, g->num_ranks},
		{g->ht_chead, g->num_ranks},
		{g->ht_ctail, g->num_ranks},
		{g->ht_ftail, g->span.several ? g->num_ranks * g->span.most_local : 0},
	};

	atomic_init(&words->ht_entry.word, word);
	atomic_init(&words->ht_head.word, word);
	atomic_init(&words->ht_done.word, word);
	atomic_init(&words->ll_sent.word, word);
	atomic_init(&words->ll_received.word, word);
	atomic_init(&words->ll_csent.word, word);
	atomic_init(&words->ll_creceived.word, word);
	for (int i = 0; i < MOEEP_REFUSABLES; i++) {
		atomic_init(&words->refusals[i].word, word);
	}
	for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++) {
		struct moeep_flag_line *lines = (struct moeep_flag_line *)(base + arrays[i].at);

		for (int n = 0; n < arrays[i].count; n++) {
			atomic_init(&lines[n].word, word);
		}
	}
}

/* Flags start one epoch before the first operation's, and so do the counters. */
static int set_epochs(struct moeep_buffer *buffer, struct moeep_window *mine, uint64_t epoch)
{
	const struct moeep_geometry *g = &buffer->geo;
	uint64_t word = moeep_flag_word(epoch, 0);

	atomic_init(&buffer->ht_epoch, epoch);
	atomic_init(&buffer->ll_epoch, epoch);
	buffer->ll_recv_epoch = epoch;
	buffer->ll_cepoch = epoch;
	buffer->ll_crecv_epoch = epoch;
	if (buffer->comm->cuda) {
		return moeep_cuda_buffer_begin(buffer, epoch);
	}
	set_words(g, mine->base, word);
	for (int i = 0; i < g->span.num_mirrors; i++) {
		set_words(g, (char *)mine->base + g->mirrors + (uint64_t)i * g->mirror_bytes, word);
	}
	return MOEEP_OK;
}

/* Where each rank is read here. */
static void set_bases(struct moeep_buffer *buffer)
{
	const struct moeep_geometry *g = &buffer->geo;

	for (int rank = 0; rank < g->num_ranks; rank++) {
		const struct moeep_peer *peer = &buffer->comm->peers[rank];

		buffer->bases[rank] = buffer->windows[peer->host]->base;
		if (peer->mirror >= 0) {
			buffer->bases[rank] +=
				g->mirrors + (uint64_t)peer->mirror * g->mirror_bytes;
		}
	}
}

static void buffer_free(struct moeep_buffer *buffer)
{
	moeep_cuda_buffer_destroy(buffer);
	for (int rank = 0; buffer->windows && rank < buffer->comm->num_ranks; rank++) {
		moeep_window_unref(buffer->windows[rank]);
	}
	free(buffer->windows);
	free(buffer->bases);
	scratch_free(&buffer->scratch);
	free(buffer);
}

int moeep_buffer_create(moeep_comm_t *comm, const moeep_buffer_config_t *config,
			moeep_buffer_t **buffer_out)
{
	struct moeep_window *mine = NULL;
	struct moeep_buffer *buffer;
	struct moeep_span span;
	int calls;
	int rc;

	if (!comm || !buffer_out) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is %p, buffer is %p", (void *)comm,
				  (void *)buffer_out);
	}
	rc = moeep_comm_check(comm);
	if (rc == MOEEP_OK) {
		rc = moeep_comm_enter(comm, MOEEP_OP_BUFFER_CREATE);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	/* On all ranks, whatever becomes of it. */
	calls = (int)(comm->buffers_begun++ % MOEEP_CALL_BUFFERS);
	buffer = calloc(1, sizeof(*buffer));
	if (!buffer) {
		return moeep_comm_agree(comm,
					moeep_fail(MOEEP_ERR_NOMEM, "no memory for a buffer"));
	}
	buffer->comm = comm;
	buffer->calls = calls;
	buffer->rowmath = moeep_rowmath_get();
	span = moeep_span_of(comm);
	rc = moeep_geometry_make(config, &comm->settings, comm->rank, comm->num_ranks, &span,
				 &buffer->geo);
	if (rc == MOEEP_OK) {
		rc = scratch_alloc(buffer);
	}
	if (rc == MOEEP_OK) {
		buffer->windows = calloc((size_t)comm->num_ranks, sizeof(*buffer->windows));
		buffer->bases = calloc((size_t)comm->num_ranks, sizeof(*buffer->bases));
		if (!buffer->windows || !buffer->bases) {
			rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d windows",
					comm->num_ranks);
		}
	}
	rc = moeep_comm_agree(comm, rc);
	if (rc == MOEEP_OK) {
		rc = agree_config(comm, &buffer->geo.config);
	}
	if (rc != MOEEP_OK) {
		goto free_buffer;
	}
	rc = comm->cuda ? moeep_cuda_window_create(comm->cuda, buffer->geo.window_bytes, &mine)
			: moeep_window_create("moeep-buffer", buffer->geo.window_bytes, &mine);
	if (rc == MOEEP_OK) {
		buffer->windows[comm->rank] = mine;
		buffer->bases[comm->rank] = mine->base;
		/* Before any peer can look. */
		rc = set_epochs(buffer, mine, buffer->geo.config.initial_epoch);
		buffer->windows[comm->rank] = NULL;
	}
	rc = moeep_comm_share(comm, rc, mine, buffer->windows);
	moeep_window_unref(mine);
	if (rc == MOEEP_OK) {
		set_bases(buffer);
	}
	if (rc == MOEEP_OK && comm->net) {
		rc = moeep_net_add_window(comm, buffer->windows, &buffer->net_window);
	}
	if (rc == MOEEP_OK && comm->cuda) {
		rc = moeep_comm_agree(comm, moeep_cuda_buffer_create(buffer));
	}
	if (rc != MOEEP_OK) {
		goto free_buffer;
	}
	moeep_stream_init(&buffer->stream);
	count_buffers(comm, 1);
	*buffer_out = buffer;
	return MOEEP_OK;

free_buffer:
	buffer_free(buffer);
	return rc;
}

int moeep_buffer_destroy(moeep_buffer_t *buffer)
{
	int handles;

	if (!buffer) {
		return MOEEP_OK;
	}
	moeep_stream_drain(&buffer->stream);
	handles = atomic_load(&buffer->num_handles);
	if (handles != 0) {
		return moeep_fail(MOEEP_ERR_STATE,
				  "buffer still has %d handles; destroy them first", handles);
	}
	moeep_stream_fini(&buffer->stream);
	if (buffer->comm->net) {
		moeep_net_end_window(buffer->comm->net, buffer->net_window);
	}
	count_buffers(buffer->comm, -1);
	buffer_free(buffer);
	return MOEEP_OK;
}

int moeep_buffer_query(const moeep_buffer_t *buffer, moeep_buffer_info_t *info)
{
	moeep_buffer_info_t own = {.size = sizeof(own)};
	const moeep_buffer_config_t *c;

	if (!buffer) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is NULL");
	}
	c = &buffer->geo.config;
	own.num_experts = c->num_experts;
	own.max_topk = c->max_topk;
	own.first_expert = buffer->geo.first_expert;
	own.local_experts = buffer->geo.local_experts;
	own.hidden = c->hidden;
	own.ht_max_tokens = c->ht_max_tokens;
	own.ll_max_tokens = c->ll_max_tokens;
	own.modes = c->modes;
	own.num_handles = atomic_load(&buffer->num_handles);
	own.ht_epoch = (atomic_load(&buffer->ht_epoch) - c->initial_epoch) & MOEEP_EPOCH_MASK;
	own.ll_epoch = (atomic_load(&buffer->ll_epoch) - c->initial_epoch) & MOEEP_EPOCH_MASK;
	own.window_bytes = buffer->geo.window_bytes;
	return moeep_struct_out("info", info, &own, sizeof(own));
}

int moeep_buffer_traffic(const moeep_buffer_t *buffer, int peer, moeep_traffic_t *traffic)
{
	moeep_traffic_t own;

	if (!buffer) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is NULL");
	}
	if (peer < 0 || peer >= buffer->geo.num_ranks) {
		return moeep_fail(MOEEP_ERR_INVALID, "peer is %d, not 0 to %d", peer,
				  buffer->geo.num_ranks - 1);
	}
	own = buffer->scratch.traffic[peer];
	if (buffer->cuda) {
		uint64_t counters[MOEEP_DEV_TRAFFIC];
		int rc = moeep_cuda_buffer_traffic(buffer, peer, counters);

		if (rc != MOEEP_OK) {
			return rc;
		}
		own.dispatch_rows = counters[MOEEP_DEV_DISPATCH_ROWS];
		own.dispatch_bytes = counters[MOEEP_DEV_DISPATCH_BYTES];
		own.combine_rows = counters[MOEEP_DEV_COMBINE_ROWS];
		own.combine_bytes = counters[MOEEP_DEV_COMBINE_BYTES];
	}
	return moeep_struct_out("traffic", traffic, &own, sizeof(own));
}

int moeep_buffer_window(moeep_buffer_t *buffer, uint64_t offset, uint64_t bytes, void **ptr)
{
	if (!buffer || !ptr) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is %p, ptr is %p", (void *)buffer,
				  (void *)ptr);
	}
	if (offset > buffer->geo.window_bytes || bytes > buffer->geo.window_bytes - offset) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "offset %llu and bytes %llu reach past the window of %llu bytes",
				  (unsigned long long)offset, (unsigned long long)bytes,
				  (unsigned long long)buffer->geo.window_bytes);
	}
	*ptr = moeep_buffer_at(buffer, buffer->comm->rank, offset);
	return MOEEP_OK;
}

int moeep_buffer_clean(moeep_buffer_t *buffer)
{
	if (!buffer) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is NULL");
	}
	return moeep_comm_check(buffer->comm);
}

int moeep_ll_combine_slot(moeep_buffer_t *buffer, int index, void **slot, size_t *bytes)
{
	if (!buffer || !slot) {
		return moeep_fail(MOEEP_ERR_INVALID, "buffer is %p, slot is %p", (void *)buffer,
				  (void *)slot);
	}
	if (!(buffer->geo.config.modes & MOEEP_MODE_LL) || index < 0 ||
	    index >= buffer->geo.config.ll_combine_slots) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "index is %d; config.ll_combine_slots gave this buffer %d slots",
				  index, buffer->geo.config.ll_combine_slots);
	}
	*slot = moeep_buffer_at(buffer, buffer->comm->rank,
				buffer->geo.user_slot +
					(uint64_t)index * buffer->geo.user_slot_bytes);
	if (bytes) {
		*bytes = (size_t)buffer->geo.local_experts *
			 (size_t)buffer->geo.config.ll_capacity * buffer->geo.row_bytes;
	}
	return MOEEP_OK;
}
