/* SPDX-License-Identifier: MIT */
/*
 *	mpi_user [quit]
 *
 * A program of an MPI user's: ranks meet by moeep/mpi.h, and each sends every rank a token. Prints
 *a line for each rank. quit: the last rank leaves before the others ask to meet.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <moeep/moeep.h>
#include <moeep/mpi.h>

#define HIDDEN	  16
#define MAX_RANKS 16

static int fail(const char *what, int rc)
{
	fprintf(stderr, "%s: %s: %s\n", what, moeep_strerror(rc), moeep_error_detail());
	return 1;
}

/* One token to all ranks, an expert each; every element of what comes tells who sent it. */
static int exchange(moeep_comm_t *comm, int rank, int num_ranks)
{
	moeep_buffer_config_t config = {
		.size = sizeof(config),
		.modes = MOEEP_MODE_HT,
		.num_experts = num_ranks,
		.max_topk = num_ranks,
		.hidden = HIDDEN,
		.ht_max_tokens = 1,
	};
	uint16_t x[HIDDEN], recv[MAX_RANKS][HIDDEN];
	int64_t experts[MAX_RANKS], num_recv = -1;
	moeep_dispatch_args_t args = {
		.size = sizeof(args),
		.num_tokens = 1,
		.x = x,
		.topk = num_ranks,
		.topk_idx = experts,
		.capacity = MAX_RANKS,
		.recv_x = recv,
		.num_recv = &num_recv,
	};
	moeep_buffer_t *buffer = NULL;
	moeep_handle_t *handle = NULL;
	int rc, wrong = 0;

	for (int i = 0; i < HIDDEN; i++) {
		x[i] = (uint16_t)(100 * rank + i);
	}
	for (int i = 0; i < num_ranks; i++) {
		experts[i] = i;
	}
	rc = moeep_buffer_create(comm, &config, &buffer);
	if (rc == MOEEP_OK) {
		rc = moeep_handle_create(buffer, NULL, &handle);
	}
	if (rc == MOEEP_OK) {
		rc = moeep_dispatch(buffer, handle, &args, NULL);
	}
	for (int source = 0; rc == MOEEP_OK && source < num_recv; source++) {
		for (int i = 0; i < HIDDEN; i++) {
			wrong += recv[source][i] != 100 * source + i;
		}
	}
	printf("rank %d of %d: %d rows came, %d elements wrong\n", rank, num_ranks, (int)num_recv,
	       wrong);
	(void)moeep_handle_destroy(handle);
	(void)moeep_buffer_destroy(buffer);
	return rc == MOEEP_OK ? wrong != 0 : fail("dispatch", rc);
}

int main(int argc, char **argv)
{
	moeep_comm_config_t config = {.size = sizeof(config), .backend = MOEEP_BACKEND_HOST};
	moeep_launcher_info_t launcher = {.size = sizeof(launcher)};
	moeep_comm_t *comm = NULL;
	moeep_mpi_t meet;
	int rank, size, rc;

	MPI_Init(&argc, &argv);
	/* Whatever a launcher does with it, it does not stay. */
	(void)alarm(60);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	rc = moeep_launcher_query(&launcher);
	if (rc != MOEEP_OK) {
		return fail("moeep_launcher_query", rc);
	}
	printf("launcher %s: %s, local %s\n", launcher.name,
	       launcher.rank == rank && launcher.num_ranks == size ? "as MPI says" : "WRONG",
	       launcher.local_rank == rank && launcher.local_ranks == size ? "too" : "WRONG");
	rc = moeep_mpi_open(MPI_COMM_WORLD, &meet);
	if (rc != MOEEP_OK || meet.rank != rank || meet.num_ranks != size) {
		return fail("moeep_mpi_open", rc);
	}
	if (argc > 1 && strcmp(argv[1], "quit") == 0 && rank == size - 1) {
		MPI_Barrier(MPI_COMM_WORLD);
		_exit(0);
	}
	config.bootstrap = &meet.bootstrap;
	config.timeout_ms = argc > 1 ? 500 : 30000;
	rc = moeep_comm_create(rank, size, &config, &comm);
	if (argc > 1) {
		printf("without the last rank: %s\n", moeep_strerror(rc));
		fflush(stdout);
		MPI_Barrier(MPI_COMM_WORLD);
		/* What the last rank never answered cannot be ended in MPI, so there is no end in
		 * order. */
		_exit(0);
	}
	rc = rc == MOEEP_OK ? exchange(comm, rank, size) : fail("moeep_comm_create", rc);
	(void)moeep_comm_destroy(comm);
	moeep_mpi_close(&meet);
	MPI_Finalize();
	return rc;
}
