/* SPDX-License-Identifier: MIT */
/*
 * net/emulated.c - a network between ranks of one machine that count as several hosts.
 *
 * It does what a NIC does, by memory that it maps: puts are copied, signals are stored behind them,
 * in order on each channel and in no order between channels. MOEEP_EMULATED_NIC gives it a NIC's
 * properties:
 *
 *	latency=US	a request takes effect that much after it was handed over
 *	jitter=US	and up to that much more, at random, anew for each request
 *	bandwidth=MB/s	of each channel
 *	fail=N		a rank's N-th request fails, and its channel with it
 *	rank=R		but only rank R's; else that of every rank
 *	seed=N		of the random numbers
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "net/inside.h"

/* Requests under way on a channel. */
#define DEPTH 256

struct emulated {
	uint64_t latency_ns;
	uint64_t jitter_ns;
	uint64_t bandwidth; /* bytes per us; 0: any */
	uint64_t fail;	    /* 0: none */
	uint64_t rank;	    /* whose; UINT64_MAX: everybody's */
	uint64_t seed;
	_Atomic uint64_t count; /* requests of all channels */
};

struct under_way {
	struct moeep_request request;
	uint64_t due_ns;
};

struct way {
	struct under_way queue[DEPTH];
	uint64_t first;
	uint64_t end;
	uint64_t free_ns; /* when the wire has sent what came before */
	uint64_t random;
	bool failed;
};

static uint64_t draw(struct way *way)
{
	/* xorshift64* */
	way->random ^= way->random >> 12;
	way->random ^= way->random << 25;
	way->random ^= way->random >> 27;
	return way->random * UINT64_C(2685821657736338717);
}

/* One NAME=NUMBER; text is moved behind it. */
static int parse_property(struct emulated *e, const char **text)
{
	struct {
		const char *name;
		uint64_t *value;
		uint64_t unit;
	} const properties[] = {
		{"latency=", &e->latency_ns, 1000},
		{"jitter=", &e->jitter_ns, 1000},
		{"bandwidth=", &e->bandwidth, 1},
		{"fail=", &e->fail, 1},
		{"rank=", &e->rank, 1},
		{"seed=", &e->seed, 1},
	};

	for (size_t i = 0; i < sizeof(properties) / sizeof(properties[0]); i++) {
		size_t length = strlen(properties[i].name);
		const char *number = *text + length;
		char *end;

		if (strncmp(*text, properties[i].name, length) != 0 || number[0] < '0' ||
		    number[0] > '9') {
			continue;
		}
		errno = 0;
		*properties[i].value = strtoull(number, &end, 10);
		if (errno != 0 || *properties[i].value > UINT32_MAX ||
		    (*end != '\0' && *end != ',')) {
			break;
		}
		*properties[i].value *= properties[i].unit;
		*text = *end == ',' ? end + 1 : end;
		return MOEEP_OK;
	}
	return moeep_fail(MOEEP_ERR_INVALID,
			  "MOEEP_EMULATED_NIC: \"%.60s\" is none of latency=US, jitter=US, "
			  "bandwidth=MB/s, fail=N, rank=R, seed=N",
			  *text);
}

static int emulated_open(struct moeep_net *net)
{
	struct emulated *e = calloc(1, sizeof(*e));
	const char *text = net->comm->settings.emulated_nic;
	int rc = e ? MOEEP_OK : moeep_fail(MOEEP_ERR_NOMEM, "no memory for an emulated NIC");

	net->state = e;
	if (e) {
		e->rank = UINT64_MAX;
	}
	while (rc == MOEEP_OK && *text) {
		rc = parse_property(e, &text);
	}
	if (rc == MOEEP_OK && e->rank != UINT64_MAX && e->rank != (uint64_t)net->comm->rank) {
		e->fail = 0;
	}
	for (int node = 0; node < net->comm->num_nodes && rc == MOEEP_OK; node++) {
		struct moeep_channel *channel = &net->channels[node];
		struct way *way;

		if (channel->rank < 0) {
			continue;
		}
		way = channel->way = calloc(1, sizeof(*way));
		if (!way) {
			rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for an emulated NIC");
		} else {
			way->random = e->seed * 4096 + (uint64_t)net->comm->rank * 64 +
				      (uint64_t)node + UINT64_C(88172645463325252);
		}
	}
	return moeep_comm_agree(net->comm, rc);
}

static void emulated_close(struct moeep_net *net)
{
	for (int node = 0; net->channels && node < net->comm->num_nodes; node++) {
		free(net->channels[node].way);
	}
	free(net->state);
}

static int emulated_add_window(struct moeep_net *net, struct moeep_net_window *window, int result)
{
	(void)window; /* they are mapped already */
	return moeep_comm_agree(net->comm, result);
}

static void emulated_remove_window(struct moeep_net *net, struct moeep_net_window *window)
{
	(void)net;
	(void)window;
}

/* When a request of so many bytes will have taken effect, if it is handed over now. */
static uint64_t due_at(const struct emulated *e, struct way *way, uint64_t bytes)
{
	uint64_t now;
	uint64_t start;
	uint64_t due;

	if (e->latency_ns == 0 && e->jitter_ns == 0 && e->bandwidth == 0) {
		return 0;
	}
	now = moeep_now_ns();
	start = way->free_ns > now ? way->free_ns : now;
	way->free_ns = start + (e->bandwidth ? bytes * 1000 / e->bandwidth : 0);
	due = way->free_ns + e->latency_ns + (e->jitter_ns ? draw(way) % e->jitter_ns : 0);
	/* A channel keeps its order. */
	if (way->end > way->first && way->queue[(way->end - 1) % DEPTH].due_ns > due) {
		due = way->queue[(way->end - 1) % DEPTH].due_ns;
	}
	return due;
}

static bool emulated_post(struct moeep_channel *channel, const struct moeep_request *request)
{
	struct emulated *e = channel->net->state;
	struct way *way = channel->way;
	struct under_way *next = &way->queue[way->end % DEPTH];

	if (way->end - way->first == DEPTH) {
		return false;
	}
	next->request.kind = request->kind;
	next->request.window = request->window;
	next->request.local = request->local;
	next->request.remote = request->remote;
	next->request.bytes = request->bytes;
	next->request.value = request->value;
	next->due_ns = due_at(e, way, request->bytes);
	way->end++;
	way->failed |= e->fail != 0 &&
		       atomic_fetch_add_explicit(&e->count, 1, memory_order_relaxed) + 1 == e->fail;
	return true;
}

/* As a NIC does by its keys. */
static bool is_within(const struct moeep_window *window, uint64_t offset, uint64_t bytes)
{
	return offset <= window->bytes && bytes <= window->bytes - offset;
}

static int execute(struct moeep_channel *channel, const struct moeep_request *request)
{
	struct moeep_net *net = channel->net;
	const struct moeep_net_window *window = net->windows[request->window];
	const struct moeep_window *theirs = window->windows[channel->rank];
	char *remote = (char *)theirs->base + request->remote;

	if (!is_within(theirs, request->remote, request->bytes) ||
	    (request->kind == MOEEP_REQUEST_PUT &&
	     !is_within(window->mine, request->local, request->bytes))) {
		return moeep_fail(MOEEP_ERR_NETWORK,
				  "rank %d: %llu bytes from %llu to %llu of rank %d are outside of "
				  "window %u",
				  net->comm->rank, (unsigned long long)request->bytes,
				  (unsigned long long)request->local,
				  (unsigned long long)request->remote, channel->rank,
				  request->window);
	}

	if (request->kind == MOEEP_REQUEST_PUT) {
		memcpy(remote, moeep_net_local(net, request->window, request->local),
		       request->bytes);
		return MOEEP_OK;
	}
	/* Pairs with moeep_flag_get() of whoever reads the mirror. */
	atomic_store_explicit((_Atomic uint64_t *)remote, request->value, memory_order_release);
	for (int i = 0; i < moeep_comm_members(net->comm, channel->node); i++) {
		int rank = moeep_comm_member(net->comm, channel->node, i);

		moeep_wait_ring(net->comm->peers[rank].control_window->base);
	}
	return MOEEP_OK;
}

static int emulated_poll(struct moeep_channel *channel)
{
	struct way *way = channel->way;
	int count = 0;
	int rc;

	if (way->failed) {
		return moeep_fail(MOEEP_ERR_NETWORK,
				  "rank %d cannot reach rank %d: the emulated NIC was told to fail",
				  channel->net->comm->rank, channel->rank);
	}
	while (way->first < way->end) {
		const struct under_way *next = &way->queue[way->first % DEPTH];

		if (next->due_ns != 0 && moeep_now_ns() < next->due_ns) {
			break;
		}
		rc = execute(channel, &next->request);
		if (rc != MOEEP_OK) {
			return rc;
		}
		way->first++;
		count++;
	}
	return count;
}

const struct moeep_network_ops moeep_emulated_ops = {
	.name = "emulated",
	.poll_ns = 0,
	.open = emulated_open,
	.close = emulated_close,
	.add_window = emulated_add_window,
	.remove_window = emulated_remove_window,
	.post = emulated_post,
	.poll = emulated_poll,
};
