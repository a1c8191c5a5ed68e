/* SPDX-License-Identifier: MIT */
/* net/net.c - opening and closing a net, its windows, and what callers queue. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/error.h"
#include "net/inside.h"

/* Windows that exist at once; numbers of ended ones are used again. */
#define MAX_WINDOWS 256
/* A thread that finds a queue full, or waits for its end, looks again after that. */
#define PAUSE_NS 20000

static void pause_ns(long ns)
{
	const struct timespec time = {.tv_nsec = ns};

	nanosleep(&time, NULL);
}

/* Each proxy has work for its own processor at most, and each channel one proxy. */
static int count_proxies(const struct moeep_comm *comm)
{
	int wanted = comm->settings.num_proxies ? comm->settings.num_proxies : 1;
	int channels = comm->num_nodes - 1;

	return wanted < channels ? wanted : channels;
}

static int net_alloc(struct moeep_net *net)
{
	struct moeep_comm *comm = net->comm;
	int rc = MOEEP_OK;

	net->num_proxies = count_proxies(comm);
	net->channels = calloc((size_t)comm->num_nodes, sizeof(*net->channels));
	net->proxies = calloc((size_t)net->num_proxies, sizeof(*net->proxies));
	net->windows = calloc(MAX_WINDOWS, sizeof(*net->windows));
	if (!net->channels || !net->proxies || !net->windows) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for ways to %d nodes",
				  comm->num_nodes);
	}
	net->num_windows = MAX_WINDOWS;
	for (int node = 0; node < comm->num_nodes && rc == MOEEP_OK; node++) {
		struct moeep_channel *channel = &net->channels[node];

		channel->net = net;
		channel->node = node;
		channel->rank = comm->gates[node].rank;
		if (channel->rank >= 0) {
			rc = moeep_fifo_init(&channel->fifo, MOEEP_NET_QUEUE);
		}
	}
	return rc;
}

int moeep_net_open(struct moeep_comm *comm)
{
	struct moeep_net *net = calloc(1, sizeof(*net));
	int rc;

	if (!net) {
		return moeep_comm_agree(comm, moeep_fail(MOEEP_ERR_NOMEM, "no memory for a net"));
	}
	comm->net = net;
	net->comm = comm;
	net->ops = &moeep_emulated_ops;
	snprintf(net->name, sizeof(net->name), "%s", net->ops->name);
	rc = net_alloc(net);
	rc = moeep_comm_agree(comm, rc);
	if (rc == MOEEP_OK) {
		rc = net->ops->open(net);
	}
	return rc;
}

int moeep_net_start(struct moeep_net *net)
{
	return moeep_proxies_start(net);
}

static void window_free(struct moeep_net *net, uint32_t number)
{
	struct moeep_net_window *window = net->windows[number];

	if (!window) {
		return;
	}
	net->ops->remove_window(net, window);
	for (int rank = 0; window->windows && rank < net->comm->num_ranks; rank++) {
		moeep_window_unref(window->windows[rank]);
	}
	free(window->windows);
	free(window);
	net->windows[number] = NULL;
}

void moeep_net_close(struct moeep_net *net)
{
	if (!net) {
		return;
	}
	moeep_proxies_stop(net);
	net->ops->close(net);
	for (uint32_t i = 0; i < net->num_windows; i++) {
		window_free(net, i);
	}
	for (int node = 0; net->channels && node < net->comm->num_nodes; node++) {
		moeep_fifo_fini(&net->channels[node].fifo);
	}
	free(net->channels);
	free(net->proxies);
	free(net->windows);
	free(net);
}

/* A bit for each window that a rank has ended. */
struct ended {
	uint64_t bits[MAX_WINDOWS / 64];
};

/* Windows that no rank uses any more, and to which nobody has anything left to write. */
static int reap_windows(struct moeep_net *net)
{
	struct moeep_comm *comm = net->comm;
	struct ended *all = calloc((size_t)comm->num_ranks, sizeof(*all));
	struct ended mine = {{0}};
	int rc = all ? MOEEP_OK
		     : moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d ranks", comm->num_ranks);

	pthread_mutex_lock(&comm->lock);
	for (uint32_t i = 0; i < net->num_windows; i++) {
		if (net->windows[i] && net->windows[i]->ended) {
			mine.bits[i / 64] |= UINT64_C(1) << i % 64;
		}
	}
	pthread_mutex_unlock(&comm->lock);
	if (rc == MOEEP_OK && !moeep_net_flush(net, comm->settings.timeout_ms)) {
		rc = moeep_fail(MOEEP_ERR_TIMEOUT, "the network does not take what is queued");
	}
	rc = moeep_comm_agree(comm, rc);
	if (rc == MOEEP_OK) {
		rc = moeep_comm_gather(comm, &mine, all, sizeof(mine));
	}
	for (uint32_t i = 0; i < net->num_windows && rc == MOEEP_OK; i++) {
		bool everywhere = true;

		for (int rank = 0; rank < comm->num_ranks && everywhere; rank++) {
			everywhere = all[rank].bits[i / 64] >> i % 64 & 1;
		}
		if (everywhere) {
			window_free(net, i);
		}
	}
	free(all);
	return rc;
}

static int window_new(struct moeep_net *net, struct moeep_window **windows,
		      struct moeep_net_window **window_out)
{
	struct moeep_net_window *window = calloc(1, sizeof(*window));
	size_t ranks = (size_t)net->comm->num_ranks;

	if (!window || !(window->windows = calloc(ranks, sizeof(*window->windows)))) {
		free(window);
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for %zu windows", ranks);
	}
	for (size_t rank = 0; rank < ranks; rank++) {
		window->windows[rank] = moeep_window_ref(windows[rank]);
	}
	window->mine = windows[net->comm->rank];
	*window_out = window;
	return MOEEP_OK;
}

int moeep_net_add_window(struct moeep_comm *comm, struct moeep_window **windows, uint32_t *number)
{
	struct moeep_net *net = comm->net;
	struct moeep_net_window *window = NULL;
	uint32_t free_number = 0;
	int rc = reap_windows(net);

	if (rc != MOEEP_OK) {
		return rc;
	}
	/* The same on all ranks, as windows come and go on all at once. */
	while (free_number < net->num_windows && net->windows[free_number]) {
		free_number++;
	}
	if (free_number == net->num_windows) {
		return moeep_fail(MOEEP_ERR_STATE,
				  "a comm with several nodes has at most %d buffers at once",
				  MAX_WINDOWS - 1);
	}
	rc = window_new(net, windows, &window);
	rc = net->ops->add_window(net, window, rc);
	if (window) {
		net->windows[free_number] = window;
	}
	if (rc != MOEEP_OK) {
		window_free(net, free_number);
		return rc;
	}
	*number = free_number;
	return MOEEP_OK;
}

void moeep_net_end_window(struct moeep_net *net, uint32_t number)
{
	pthread_mutex_lock(&net->comm->lock);
	net->windows[number]->ended = true;
	pthread_mutex_unlock(&net->comm->lock);
}

static bool is_aborted(const struct moeep_comm *comm)
{
	return atomic_load_explicit(&moeep_comm_control(comm)->abort_state, memory_order_acquire) !=
	       MOEEP_ABORT_NONE;
}

static void queue(struct moeep_net *net, int node, const struct moeep_request *request)
{
	struct moeep_channel *channel = &net->channels[node];

	while (!moeep_fifo_push(&channel->fifo, request)) {
		if (is_aborted(net->comm)) {
			return;
		}
		pause_ns(PAUSE_NS);
	}
	atomic_fetch_add_explicit(&channel->requests, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&channel->bytes, request->bytes, memory_order_relaxed);
	moeep_proxy_ring(moeep_channel_proxy(net, node));
}

void moeep_net_put(struct moeep_net *net, int node, uint32_t window, uint64_t local,
		   uint64_t remote, uint64_t bytes)
{
	const struct moeep_request request = {.kind = MOEEP_REQUEST_PUT,
					      .window = window,
					      .local = local,
					      .remote = remote,
					      .bytes = bytes};

	if (bytes > 0) {
		queue(net, node, &request);
	}
}

void moeep_net_signal(struct moeep_net *net, int node, uint32_t window, uint64_t remote,
		      uint64_t value, uint64_t delta)
{
	const struct moeep_request request = {.kind = MOEEP_REQUEST_SIGNAL,
					      .window = window,
					      .remote = remote,
					      .bytes = sizeof(value),
					      .value = value,
					      .delta = delta};

	queue(net, node, &request);
}

void moeep_net_tell_cause(struct moeep_net *net)
{
	atomic_store_explicit(&net->telling, true, memory_order_release);
	for (int i = 0; i < net->num_proxies; i++) {
		moeep_proxy_ring(&net->proxies[i]);
	}
}

/* Is something left to do that was queued when `queued` was the queue's end? */
static bool is_busy(const struct moeep_net *net, const struct moeep_channel *channel,
		    uint64_t queued)
{
	uint64_t done = atomic_load_explicit(&channel->done, memory_order_acquire);

	if (atomic_load_explicit(&channel->broken, memory_order_acquire)) {
		return false;
	}
	if (done < queued) {
		return true;
	}
	/* A failure is told past the queue. */
	return atomic_load_explicit(&net->telling, memory_order_acquire) &&
	       (atomic_load_explicit(&channel->telling, memory_order_acquire) != MOEEP_TOLD ||
		done < atomic_load_explicit(&channel->posted, memory_order_acquire));
}

bool moeep_net_flush(struct moeep_net *net, uint32_t timeout_ms)
{
	uint64_t end = timeout_ms == MOEEP_TIMEOUT_NONE
			       ? UINT64_MAX
			       : moeep_now_ns() + (uint64_t)timeout_ms * 1000000u;

	for (int node = 0; node < net->comm->num_nodes; node++) {
		struct moeep_channel *channel = &net->channels[node];
		uint64_t queued;

		if (channel->rank < 0) {
			continue;
		}
		queued = atomic_load_explicit(&channel->fifo.head, memory_order_acquire);
		while (is_busy(net, channel, queued)) {
			if (moeep_now_ns() >= end) {
				return false;
			}
			pause_ns(PAUSE_NS);
		}
	}
	return true;
}

uint64_t moeep_net_poll_ns(const struct moeep_net *net)
{
	return net->ops->poll_ns;
}

struct moeep_net_count moeep_net_counted(const struct moeep_net *net, int node)
{
	const struct moeep_channel *channel = &net->channels[node];

	return (struct moeep_net_count){
		.requests = atomic_load_explicit(&channel->requests, memory_order_relaxed),
		.bytes = atomic_load_explicit(&channel->bytes, memory_order_relaxed),
	};
}

const char *moeep_net_name(const struct moeep_net *net)
{
	return net->name;
}
