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
#include "net/net.h"

#define MAX_RANKS 4096
/* A few times what a futex needs to put a thread to sleep and wake it. */
#define SPIN_US 50

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

/* Who passes descriptors to whom: the ranks of a node, or all if the network is emulated. */
static bool number_exchange(struct moeep_comm *comm)
{
	const struct moeep_identity *self = &comm->peers[comm->rank].id;
	bool several = false;

	for (int rank = 0; rank < comm->num_ranks; rank++) {
		struct moeep_peer *peer = &comm->peers[rank];

		peer->exchange = -1;
		if (moeep_comm_is_local(comm, rank) || comm->emulated) {
			peer->exchange = comm->exchanging++;
			several |= !moeep_identity_same_process(self, &peer->id);
		}
	}
	return several;
}

/* Connect the processes of this host; threads of one process need no exchange among themselves. */
static int open_local(struct moeep_comm *comm)
{
	struct moeep_node_member *members = NULL;
	bool several = number_exchange(comm);
	int rc = MOEEP_OK;

	if (!several && comm->num_nodes == 1) {
		return MOEEP_OK;
	}
	if (several) {
		members = calloc((size_t)comm->exchanging, sizeof(*members));
		rc = members ? MOEEP_OK
			     : moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d ranks",
					  comm->exchanging);
	}
	for (int rank = 0; members && rank < comm->num_ranks; rank++) {
		struct moeep_peer *peer = &comm->peers[rank];

		if (peer->exchange >= 0) {
			members[peer->exchange].rank = rank;
			members[peer->exchange].socket_name = peer->id.socket_name;
		}
	}
	if (members) {
		rc = moeep_node_listen(members, comm->exchanging, comm->peers[comm->rank].exchange,
				       comm->boot, &comm->local);
	}
	free(members);
	/* Agreement stands between the leader's socket and its peers' connecting. */
	rc = moeep_comm_agree(comm, rc);
	if (rc == MOEEP_OK) {
		if (comm->local) {
			rc = moeep_node_join(comm->local, moeep_comm_fds_timeout(comm));
		}
		rc = moeep_comm_agree(comm, rc);
	}
	return rc;
}

static int open_net(struct moeep_comm *comm, struct moeep_window **controls)
{
	uint32_t number = 0;
	int rc = moeep_net_open(comm);

	if (rc == MOEEP_OK) {
		/* The first one: it gets number 0. */
		rc = moeep_net_add_window(comm, controls, &number);
	}
	return rc == MOEEP_OK ? moeep_comm_agree(comm, moeep_net_start(comm->net)) : rc;
}

static int share_control(struct moeep_comm *comm)
{
	struct moeep_window **windows = calloc((size_t)comm->num_ranks, sizeof(*windows));
	struct moeep_window *mine = NULL;
	int rc;

	/* This rank's own, and mirrors of those of other nodes that it hears. */
	rc = windows ? moeep_window_create("moeep-control",
					   sizeof(struct moeep_control) *
						   (size_t)(1 + comm->num_mirrors),
					   &mine)
		     : moeep_fail(MOEEP_ERR_NOMEM, "no memory for %d windows", comm->num_ranks);
	if (windows) {
		rc = moeep_comm_share(comm, rc, mine, windows);
	} else {
		rc = moeep_comm_agree(comm, rc);
	}
	for (int rank = 0; rank < comm->num_ranks && rc == MOEEP_OK; rank++) {
		struct moeep_peer *peer = &comm->peers[rank];
		struct moeep_control *controls = windows[peer->host]->base;

		peer->control_window = windows[rank];
		peer->control = &controls[1 + peer->mirror];
	}
	if (rc == MOEEP_OK && comm->num_nodes > 1) {
		rc = open_net(comm, windows);
	}
	moeep_window_unref(mine);
	free(windows);
	return rc;
}

static void comm_free(struct moeep_comm *comm)
{
	/* Its watcher looks at the peers. */
	moeep_cuda_close(comm);
	/* And so do the proxies. */
	moeep_net_close(comm->net);
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
	moeep_comm_free_nodes(comm);
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
	rc = moeep_comm_agree(comm, moeep_comm_assign_nodes(comm));
	if (rc == MOEEP_OK) {
		/* From the same data on all ranks, so all of them fail here or none. */
		rc = moeep_comm_choose_transports(comm);
	}
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
	if (comm->net) {
		moeep_comm_part(comm);
	} else {
		moeep_comm_publish(comm, &moeep_comm_control(comm)->left, 1);
	}
	moeep_region_free_all(comm);
	comm_free(comm);
	return MOEEP_OK;
}
