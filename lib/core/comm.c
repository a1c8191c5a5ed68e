/* SPDX-License-Identifier: MIT */
/* core/comm.c - joining and leaving a group of ranks. */
#include "config.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bootstrap/boot.h"
#include "bootstrap/unique_id.h"
#include "core/comm.h"
#include "core/error.h"
#include "cuda/device.h"
#include "memory/node.h"
#include "memory/region.h"

#define MAX_RANKS 4096
/* A few times what a futex needs to put a thread to sleep and wake it. */
#define SPIN_US 50

static void assign_nodes(struct moeep_comm *comm)
{
	comm->num_nodes = 0;
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		struct moeep_peer *peer = &comm->peers[rank];

		peer->node = comm->num_nodes;
		peer->local_rank = 0;
		for (int before = 0; before < rank; before++) {
			if (strcmp(peer->id.host_id, comm->peers[before].id.host_id) == 0) {
				peer->node = comm->peers[before].node;
				peer->local_rank++;
			}
		}
		comm->num_nodes += peer->node == comm->num_nodes;
	}
	comm->local_ranks = 0;
	for (int rank = 0; rank < comm->num_ranks; rank++) {
		comm->local_ranks += comm->peers[rank].node == comm->peers[comm->rank].node;
	}
}

/* Learn who everybody is. All ranks compute the same from the same data. */
static int exchange_identities(struct moeep_comm *comm, int result)
{
	struct moeep_identity *all = calloc((size_t)comm->num_ranks, sizeof(*all));
	struct moeep_identity mine = {0};
	int rc = result;

	if (rc == MOEEP_OK && !all) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d ranks", comm->num_ranks);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_identity_get(&comm->settings, &mine);
	}
	rc = moeep_comm_agree(comm, rc);
	if (rc == MOEEP_OK) {
		mine.backend = comm->settings.backend;
		mine.has_cuda = comm->cuda != NULL;
		rc = moeep_comm_gather(comm, &mine, all, sizeof(mine));
	}
	for (int rank = 0; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		if (all[rank].wire_version != MOEEP_WIRE_VERSION) {
			rc = moeep_fail(
				MOEEP_ERR_MISMATCH,
				"rank %d speaks version %u of the protocol, rank %d version %u: "
				"they run different releases of the library",
				rank, all[rank].wire_version, comm->rank, MOEEP_WIRE_VERSION);
		} else if (all[rank].backend != all[0].backend) {
			rc = moeep_fail(MOEEP_ERR_MISMATCH,
					"backend is %d on rank %d and %d on rank 0",
					all[rank].backend, rank, all[0].backend);
		}
		comm->peers[rank].id = all[rank];
	}
	free(all);
	return rc;
}

/* Connect the processes of this host, unless all its ranks are threads of one. */
static int open_local(struct moeep_comm *comm)
{
	struct moeep_node_member *members;
	bool several = false;
	int self = 0;
	int rc = MOEEP_OK;

	for (int rank = 0; rank < comm->num_ranks; rank++) {
		several |= !moeep_identity_same_process(&comm->peers[0].id, &comm->peers[rank].id);
	}
	if (!several) {
		return MOEEP_OK;
	}
	members = calloc((size_t)comm->local_ranks, sizeof(*members));
	if (!members) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d ranks", comm->local_ranks);
	} else {
		for (int rank = 0; rank < comm->num_ranks; rank++) {
			struct moeep_peer *peer = &comm->peers[rank];

			members[peer->local_rank].rank = rank;
			members[peer->local_rank].socket_name = peer->id.socket_name;
		}
		self = comm->peers[comm->rank].local_rank;
		rc = moeep_node_listen(members, comm->local_ranks, self, comm->boot, &comm->local);
	}
	free(members);
	/* Agreement stands between the leader's socket and its peers' connecting. */
	rc = moeep_comm_agree(comm, rc);
	if (rc == MOEEP_OK) {
		rc = moeep_comm_agree(comm,
				      moeep_node_join(comm->local, moeep_comm_fds_timeout(comm)));
	}
	return rc;
}

static int share_control(struct moeep_comm *comm)
{
	struct moeep_window **windows = calloc((size_t)comm->num_ranks, sizeof(*windows));
	struct moeep_window *mine = NULL;
	int rc;

	rc = windows ? moeep_window_create("moeep-control", sizeof(struct moeep_control), &mine)
		     : moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d windows", comm->num_ranks);
	if (windows) {
		rc = moeep_comm_share(comm, rc, mine, windows);
	} else {
		rc = moeep_comm_agree(comm, rc);
	}
	for (int rank = 0; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		comm->peers[rank].control_window = windows[rank];
		comm->peers[rank].control = windows[rank]->base;
	}
	moeep_window_unref(mine);
	free(windows);
	return rc;
}

static void comm_free(struct moeep_comm *comm)
{
	/* Its watcher looks at the peers. */
	moeep_cuda_close(comm);
	for (int rank = 0; comm->peers && rank < comm->num_ranks; rank++) {
		if (comm->peers[rank].lifeline >= 0) {
			close(comm->peers[rank].lifeline);
		}
		if (comm->peers[rank].process >= 0) {
			close(comm->peers[rank].process);
		}
		moeep_window_unref(comm->peers[rank].control_window);
	}
	moeep_node_close(comm->local);
	moeep_boot_close(comm->boot);
	if (comm->lifeline >= 0) {
		close(comm->lifeline);
	}
	pthread_mutex_destroy(&comm->lock);
	moeep_log_close(&comm->log);
	free(comm->peers);
	free(comm);
}

static int check_config(int rank, int num_ranks, const moeep_comm_config_t *config)
{
	if (num_ranks < 1 || num_ranks > MAX_RANKS) {
		return moeep_fail(MOEEP_ERR_INVALID, "num_ranks is %d, not 1 to %d", num_ranks,
				  MAX_RANKS);
	}
	if (rank < 0 || rank >= num_ranks) {
		return moeep_fail(MOEEP_ERR_INVALID, "rank is %d, not 0 to %d", rank,
				  num_ranks - 1);
	}
	if (config->flags != 0) {
		return moeep_fail(MOEEP_ERR_INVALID, "config.flags is 0x%x; none are known",
				  config->flags);
	}
	if (config->id && config->bootstrap) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "config.id and config.bootstrap are both given");
	}
	return MOEEP_OK;
}

/* Open the GPU if the setting asks for it, or leaves it open and one is there. */
static int open_backend(struct moeep_comm *comm, int device_plus_one)
{
	int rc;

	if (comm->settings.backend == MOEEP_BACKEND_HOST) {
		return MOEEP_OK;
	}
	rc = moeep_cuda_open(comm, device_plus_one);
	if (rc != MOEEP_OK && comm->settings.backend == MOEEP_BACKEND_AUTO) {
		moeep_log(&comm->log, MOEEP_LOG_INFO, "host backend: %s", moeep_error_detail());
		rc = MOEEP_OK;
	}
	return rc;
}

/* Left open, it is CUDA where every rank can: all ranks find the same. */
static void choose_backend(struct moeep_comm *comm)
{
	int without = -1;

	for (int rank = 0; rank < comm->num_ranks && without < 0; rank++) {
		without = comm->peers[rank].id.has_cuda ? -1 : rank;
	}
	if (comm->settings.backend == MOEEP_BACKEND_AUTO && without >= 0 && comm->cuda) {
		moeep_log(&comm->log, MOEEP_LOG_INFO, "host backend: rank %d cannot use a GPU",
			  without);
		moeep_cuda_close(comm);
	}
	comm->settings.backend = comm->cuda ? MOEEP_BACKEND_CUDA : MOEEP_BACKEND_HOST;
}

static int comm_connect(struct moeep_comm *comm, int device_plus_one)
{
	int rc = open_backend(comm, device_plus_one);

	rc = exchange_identities(comm, rc);
	if (rc != MOEEP_OK) {
		return rc;
	}
	choose_backend(comm);
	assign_nodes(comm);
	/* From the same data on all ranks, so all of them fail here or none. */
	rc = moeep_comm_choose_transports(comm);
	if (rc != MOEEP_OK) {
		return rc;
	}
	rc = open_local(comm);
	if (rc == MOEEP_OK) {
		rc = share_control(comm);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_comm_share_lifelines(comm);
		rc = moeep_comm_agree(comm, rc);
	}
	if (rc == MOEEP_OK && comm->cuda) {
		rc = moeep_cuda_join(comm);
	}
	return rc;
}

/* Spinning pays only while whoever is waited for has a processor of its own. */
static uint32_t default_spin_us(int ranks)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	if (sched_getaffinity(0, sizeof(set), &set) != 0) {
		return 0;
	}
	return CPU_COUNT(&set) >= ranks ? SPIN_US : 0;
}

/* By what the program gives, else by an id of the environment. */
static int open_boot(struct moeep_comm *comm, const moeep_comm_config_t *given)
{
	struct moeep_settings *settings = &comm->settings;
	moeep_comm_config_t config = *given;
	moeep_unique_id_t id;
	int rc = MOEEP_OK;

	if (!config.id && !config.bootstrap && comm->num_ranks > 1) {
		rc = moeep_unique_id_find(settings, settings->timeout_ms, &id);
		if (rc == MOEEP_ERR_NOT_READY) {
			return moeep_fail(
				MOEEP_ERR_INVALID,
				"config.id and config.bootstrap are both NULL with "
				"num_ranks %d, and MOEEP_ID and MOEEP_ID_FILE are not set",
				comm->num_ranks);
		}
		config.id = &id;
	}
	if (rc == MOEEP_OK) {
		rc = moeep_boot_open(&config, comm->rank, comm->num_ranks, settings->timeout_ms,
				     &comm->boot);
	}
	explicit_bzero(&id, sizeof(id));
	if (settings->id[0]) {
		/* That there was one is all that is still asked for. */
		explicit_bzero(settings->id, sizeof(settings->id));
		settings->id[0] = '*';
	}
	return rc;
}

int moeep_comm_create(int rank, int num_ranks, const moeep_comm_config_t *user_config,
		      moeep_comm_t **comm_out)
{
	moeep_comm_config_t config = {.size = sizeof(config)};
	struct moeep_comm *comm;
	int rc = MOEEP_OK;

	if (!comm_out) {
		return moeep_fail(MOEEP_ERR_INVALID, "comm is NULL");
	}
	if (user_config) {
		rc = moeep_struct_in("config", user_config, &config, sizeof(config));
	}
	if (rc == MOEEP_OK) {
		rc = check_config(rank, num_ranks, &config);
	}
	if (rc != MOEEP_OK) {
		return rc;
	}
	comm = calloc(1, sizeof(*comm));
	if (!comm) {
		return moeep_fail(MOEEP_ERR_NOMEM, "no memory for a comm");
	}
	comm->rank = rank;
	comm->num_ranks = num_ranks;
	comm->lifeline = -1;
	comm->log.fd = -1;
	comm->collective = MOEEP_OP_COMM_CREATE;
	pthread_mutex_init(&comm->lock, NULL);
	comm->peers = calloc((size_t)num_ranks, sizeof(*comm->peers));
	if (!comm->peers) {
		rc = moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d peers", num_ranks);
		goto free_comm;
	}
	for (int i = 0; i < num_ranks; i++) {
		comm->peers[i].lifeline = -1;
		comm->peers[i].process = -1;
	}
	rc = moeep_settings_load(&config, &comm->settings);
	if (rc != MOEEP_OK) {
		goto free_comm;
	}
	comm->log.fn = config.log;
	comm->log.context = config.log_context;
	comm->log.level = comm->settings.log_level;
	comm->log.rank = rank;
	rc = moeep_log_open(&comm->log, comm->settings.log_file);
	if (rc == MOEEP_OK) {
		rc = open_boot(comm, &config);
	}
	if (rc == MOEEP_OK) {
		rc = comm_connect(comm, config.device_plus_one);
	}
	if (rc != MOEEP_OK) {
		goto free_comm;
	}
	comm->cache_share = moeep_host_cache_bytes() / (uint64_t)comm->local_ranks;
	if (comm->settings.spin_us == MOEEP_SPIN_AUTO) {
		comm->settings.spin_us = default_spin_us(comm->local_ranks);
	}
	if (comm->cuda) {
		/* The last thing that can fail; peers need not know: they find this rank gone. */
		rc = moeep_cuda_watch(comm);
		if (rc != MOEEP_OK) {
			goto free_comm;
		}
	}
	moeep_comm_log_transports(comm);
	*comm_out = comm;
	return MOEEP_OK;

free_comm:
	comm_free(comm);
	return rc;
}

int moeep_comm_destroy(moeep_comm_t *comm)
{
	int num_buffers;
	int num_events;

	if (!comm) {
		return MOEEP_OK;
	}
	pthread_mutex_lock(&comm->lock);
	num_buffers = comm->num_buffers;
	num_events = comm->num_events;
	pthread_mutex_unlock(&comm->lock);
	if (num_buffers != 0 || num_events != 0) {
		return moeep_fail(MOEEP_ERR_STATE,
				  "comm still has %d buffers and %d events; destroy them first",
				  num_buffers, num_events);
	}
	if (comm->cuda) {
		moeep_cuda_unwatch(comm);
	}
	/* Says that the end of file to come is no accident; pairs with moeep_comm_find_lost(). */
	atomic_store_explicit(&moeep_comm_control(comm)->left, 1, memory_order_release);
	moeep_wait_wake_all(comm);
	moeep_region_free_all(comm);
	comm_free(comm);
	return MOEEP_OK;
}
