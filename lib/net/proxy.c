/* SPDX-License-Identifier: MIT */
/* net/proxy.c - the threads that take requests from the queues and hand them to the network. */
#include "config.h"

#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/error.h"
#include "net/inside.h"

/* Turns without anything to do before a proxy sleeps. */
#define IDLE_TURNS 64
/* While requests are under way it wakes up to look whether they are complete. */
#define UNDER_WAY_NS 50000
/* Otherwise only so that it cannot sleep for ever by an error of ours. */
#define IDLE_NS 100000000

void moeep_proxy_ring(struct moeep_proxy *proxy)
{
	/* Sequentially consistent with proxy_sleep(): either it sees the bell, or we see it sleep.
	 */
	atomic_fetch_add_explicit(&proxy->bell, 1, memory_order_seq_cst);
	if (atomic_load_explicit(&proxy->sleeping, memory_order_seq_cst) != 0) {
		(void)syscall(SYS_futex, &proxy->bell, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
	}
}

/* The network failed a request: the channel is of no use any more. A peer that has left needs none.
 */
static void channel_break(struct moeep_channel *channel, int result)
{
	struct moeep_comm *comm = channel->net->comm;
	struct moeep_peer *peer = &comm->peers[channel->rank];
	struct moeep_cause cause = {.result = result, .rank = comm->rank, .peer = channel->rank};

	atomic_store_explicit(&channel->broken, true, memory_order_release);
	if (atomic_load_explicit(&peer->control->left, memory_order_acquire) != 0) {
		return;
	}
	snprintf(cause.message, sizeof(cause.message), "%s", moeep_error_detail());
	(void)moeep_comm_raise(comm, &cause);
}

/* All that is queued is given up; whoever waits for it sees the comm's failure. */
static void channel_drop(struct moeep_channel *channel)
{
	while (moeep_fifo_peek(&channel->fifo)) {
		moeep_fifo_pop(&channel->fifo);
		channel->posted++;
	}
	atomic_store_explicit(&channel->done, channel->posted, memory_order_release);
}

/* The failure of the group goes past the queue: to there it may never come. */
static void tell_cause(struct moeep_channel *channel)
{
	struct moeep_net *net = channel->net;
	struct moeep_control *control = moeep_comm_control(net->comm);
	uint64_t mirror = sizeof(*control) * (uint64_t)(1 + net->comm->gates[channel->node].mirror);
	struct moeep_request cause = {.kind = MOEEP_REQUEST_PUT,
				      .local = offsetof(struct moeep_control, cause),
				      .bytes = sizeof(control->cause)};
	struct moeep_request state = {.kind = MOEEP_REQUEST_SIGNAL,
				      .remote =
					      mirror + offsetof(struct moeep_control, abort_state),
				      .bytes = sizeof(uint64_t),
				      .value = MOEEP_ABORT_SET,
				      .delta = MOEEP_ABORT_SET};

	cause.remote = mirror + cause.local;
	if (channel->telling == MOEEP_TELL_CAUSE && net->ops->post(channel, &cause)) {
		channel->telling = MOEEP_TELL_STATE;
		channel->posted++;
	}
	if (channel->telling == MOEEP_TELL_STATE && net->ops->post(channel, &state)) {
		channel->telling = MOEEP_TOLD;
		channel->posted++;
	}
}

/* True if something was done. */
static bool channel_turn(struct moeep_channel *channel, bool tell)
{
	struct moeep_net *net = channel->net;
	const struct moeep_request *request;
	bool busy = false;
	int n;

	if (atomic_load_explicit(&channel->broken, memory_order_relaxed)) {
		channel_drop(channel);
		return false;
	}
	if (tell && channel->telling == MOEEP_TELL_NOTHING) {
		channel->telling = MOEEP_TELL_CAUSE;
	}
	tell_cause(channel);
	while ((request = moeep_fifo_peek(&channel->fifo)) && net->ops->post(channel, request)) {
		moeep_fifo_pop(&channel->fifo);
		channel->posted++;
		busy = true;
	}
	n = net->ops->poll(channel);
	if (n < 0) {
		channel_break(channel, n);
		channel_drop(channel);
		return true;
	}
	if (n > 0) {
		/* Those of tell_cause() are counted, too: nobody minds after a failure. */
		atomic_fetch_add_explicit(&channel->done, (uint64_t)n, memory_order_release);
		busy = true;
	}
	return busy;
}

static bool is_under_way(const struct moeep_channel *channel)
{
	return !atomic_load_explicit(&channel->broken, memory_order_relaxed) &&
	       atomic_load_explicit(&channel->done, memory_order_relaxed) < channel->posted;
}

/* Until the bell rings, or that long. */
static void proxy_sleep(struct moeep_proxy *proxy, uint32_t bell, long ns)
{
	const struct timespec limit = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

	atomic_store_explicit(&proxy->sleeping, 1, memory_order_seq_cst);
	(void)syscall(SYS_futex, &proxy->bell, FUTEX_WAIT_PRIVATE, bell, &limit, NULL, 0);
	atomic_store_explicit(&proxy->sleeping, 0, memory_order_relaxed);
}

static void *proxy_main(void *arg)
{
	struct moeep_proxy *proxy = arg;
	struct moeep_net *net = proxy->net;
	int idle = 0;

	for (;;) {
		uint32_t bell = atomic_load_explicit(&proxy->bell, memory_order_seq_cst);
		bool stop = atomic_load_explicit(&proxy->stop, memory_order_acquire);
		bool tell = atomic_load_explicit(&net->telling, memory_order_acquire);
		bool under_way = false;
		bool busy = false;

		for (int node = proxy->index; node < net->comm->num_nodes;
		     node += net->num_proxies) {
			struct moeep_channel *channel = &net->channels[node];

			if (channel->rank >= 0) {
				busy |= channel_turn(channel, tell);
				under_way |= is_under_way(channel);
			}
		}
		if (stop) {
			return NULL;
		}
		idle = busy ? 0 : idle + 1;
		if (idle > IDLE_TURNS) {
			proxy_sleep(proxy, bell, under_way ? UNDER_WAY_NS : IDLE_NS);
		}
	}
}

int moeep_proxies_start(struct moeep_net *net)
{
	sigset_t all, before;
	int rc = MOEEP_OK;

	/* Signals are the program's own threads' business. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (int i = 0; i < net->num_proxies && rc == MOEEP_OK; i++) {
		struct moeep_proxy *proxy = &net->proxies[i];
		int error;

		proxy->net = net;
		proxy->index = i;
		error = pthread_create(&proxy->thread, NULL, proxy_main, proxy);
		if (error) {
			rc = moeep_fail(MOEEP_ERR_SYSTEM, "starting a proxy thread: %s",
					strerror(error));
		} else {
			proxy->running = true;
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return rc;
}

void moeep_proxies_stop(struct moeep_net *net)
{
	for (int i = 0; net->proxies && i < net->num_proxies; i++) {
		struct moeep_proxy *proxy = &net->proxies[i];

		if (proxy->running) {
			atomic_store_explicit(&proxy->stop, true, memory_order_release);
			moeep_proxy_ring(proxy);
			pthread_join(proxy->thread, NULL);
			proxy->running = false;
		}
	}
}
