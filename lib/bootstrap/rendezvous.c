/* SPDX-License-Identifier: MIT */
/* bootstrap/rendezvous.c - opens a rendezvous and runs its hub on a thread. */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "bootstrap/hub.h"
#include "bootstrap/ops.h"
#include "bootstrap/socket.h"
#include "bootstrap/unique_id.h"
#include "core/error.h"
#include "core/settings.h"

#define DEFAULT_TIMEOUT_MS 30000
#define DEFAULT_ADDRESS	   "127.0.0.1"

struct moeep_rendezvous {
	struct moeep_hub hub;
	uint32_t timeout_ms;
	pthread_t thread;
	pid_t pid; /* who created it: only there is the thread */
};

static void *hub_thread(void *arg)
{
	struct moeep_hub *hub = arg;

	moeep_hub_run(hub);
	return NULL;
}

/* The application's signals are for its own threads. */
static int thread_start(struct moeep_rendezvous *own)
{
	sigset_t all;
	sigset_t before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&own->thread, NULL, hub_thread, &own->hub);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		errno = error;
		return moeep_fail_errno("pthread_create");
	}
	return MOEEP_OK;
}

static int config_read(const moeep_rendezvous_config_t *config, uint32_t *timeout_ms,
		       struct moeep_socket_address *address)
{
	moeep_rendezvous_config_t own = {.size = sizeof(own)};
	struct moeep_settings settings;
	const char *name = "config->address";
	const char *text;
	int rc;

	if (config) {
		rc = moeep_struct_in("config", config, &own, sizeof(own));
		if (rc) {
			return rc;
		}
	}
	if (own.port > UINT16_MAX) {
		return moeep_fail(MOEEP_ERR_INVALID, "config->port is %u", own.port);
	}
	text = own.address;
	if (!text) {
		rc = moeep_settings_load(NULL, &settings);
		if (rc) {
			return rc;
		}
		name = "MOEEP_INTERFACE";
		text = settings.interface[0] ? settings.interface : DEFAULT_ADDRESS;
	}
	*timeout_ms = own.timeout_ms ? own.timeout_ms : DEFAULT_TIMEOUT_MS;
	return moeep_socket_address_find(name, text, (uint16_t)own.port, address);
}

int moeep_rendezvous_create(const moeep_rendezvous_config_t *config,
			    moeep_rendezvous_t **rendezvous, moeep_unique_id_t *id)
{
	struct moeep_socket_address address;
	struct moeep_rendezvous *own;
	uint32_t timeout_ms = 0;
	int rc;

	if (!rendezvous || !id) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is NULL",
				  rendezvous ? "id" : "rendezvous");
	}
	rc = config_read(config, &timeout_ms, &address);
	if (rc) {
		return rc;
	}
	own = calloc(1, sizeof(*own));
	if (!own) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a rendezvous");
	}
	own->timeout_ms = timeout_ms;
	own->pid = getpid();
	moeep_boot_process_get(&own->hub.process);
	if (getrandom(own->hub.secret, sizeof(own->hub.secret), 0) !=
	    (ssize_t)sizeof(own->hub.secret)) {
		rc = moeep_fail_errno("getrandom");
		goto err_free;
	}
	rc = moeep_hub_prepare(&own->hub);
	if (rc) {
		goto err_release;
	}
	rc = moeep_socket_listen(&address, &own->hub.listen_fd);
	if (rc) {
		goto err_release;
	}
	own->hub.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (own->hub.event_fd < 0) {
		rc = moeep_fail_errno("eventfd");
		goto err_close_listen;
	}
	rc = thread_start(own);
	if (rc) {
		goto err_close_event;
	}
	moeep_unique_id_make(&address, own->hub.secret, id);
	*rendezvous = own;
	return MOEEP_OK;

err_close_event:
	close(own->hub.event_fd);
err_close_listen:
	close(own->hub.listen_fd);
err_release:
	moeep_hub_release(&own->hub);
err_free:
	explicit_bzero(own->hub.secret, sizeof(own->hub.secret));
	free(own);
	return rc;
}

int moeep_rendezvous_destroy(moeep_rendezvous_t *rendezvous)
{
	int rc = MOEEP_OK;

	if (!rendezvous) {
		return MOEEP_OK;
	}
	/*
	 * In a forked child there is no thread, the connections are the parent's, and their records
	 * are as the thread left them in the middle of something: they are not touched.
	 */
	if (rendezvous->pid == getpid()) {
		moeep_hub_close(&rendezvous->hub, moeep_socket_deadline(rendezvous->timeout_ms));
		pthread_join(rendezvous->thread, NULL);
		if (rendezvous->hub.remaining[0]) {
			rc = moeep_fail(MOEEP_ERR_TIMEOUT, "after %u ms %s had not left",
					rendezvous->timeout_ms, rendezvous->hub.remaining);
		}
		moeep_hub_release(&rendezvous->hub);
	}
	close(rendezvous->hub.event_fd);
	close(rendezvous->hub.listen_fd);
	explicit_bzero(rendezvous->hub.secret, sizeof(rendezvous->hub.secret));
	free(rendezvous);
	return rc;
}
