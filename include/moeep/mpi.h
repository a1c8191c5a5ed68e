/* SPDX-License-Identifier: MIT */
/*
 * moeep/mpi.h - how ranks of an MPI program meet. All of it is inline: the library is not linked
 * with MPI, and works with any.
 *
 *	moeep_mpi_t meet;
 *	moeep_comm_config_t config = {.size = sizeof(config)};
 *
 *	moeep_mpi_open(MPI_COMM_WORLD, &meet);
 *	config.bootstrap = &meet.bootstrap;
 *	moeep_comm_create(meet.rank, meet.num_ranks, &config, &comm);
 *	...
 *	moeep_comm_destroy(comm);
 *	moeep_mpi_close(&meet);
 *
 * MPI is called by the thread that makes collective calls of the comm, and by no other.
 */
#ifndef MOEEP_MPI_H
#define MOEEP_MPI_H

#include <limits.h>
#include <stdlib.h>

#include <mpi.h>

#include <moeep/comm.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moeep_mpi {
	MPI_Comm comm; /* of its own */
	int rank;
	int num_ranks;
	/* For moeep_comm_config_t; stays where it is while the comm lives. */
	moeep_bootstrap_t bootstrap;
} moeep_mpi_t;

static inline int moeep_mpi_allgather(void *context, const void *send, void *recv, size_t bytes,
				      void **request)
{
	MPI_Comm *comm = (MPI_Comm *)context;
	MPI_Request *own;

	if (bytes > INT_MAX) {
		return -1;
	}
	own = (MPI_Request *)malloc(sizeof(*own));
	if (!own) {
		return -1;
	}
	if (MPI_Iallgather(send, (int)bytes, MPI_BYTE, recv, (int)bytes, MPI_BYTE, *comm, own) !=
	    MPI_SUCCESS) {
		free(own);
		return -1;
	}
	*request = own;
	return 0;
}

static inline int moeep_mpi_test(void *context, void *request)
{
	int done = 0;

	(void)context;
	if (MPI_Test((MPI_Request *)request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
		return -1;
	}
	return done ? 0 : 1;
}

static inline void moeep_mpi_release(void *context, void *request)
{
	(void)context;
	free(request);
}

/*
 * Collective over `comm`, of which mpi gets a copy that returns errors. MOEEP_OK, or
 * MOEEP_ERR_RENDEZVOUS if MPI fails.
 */
static inline int moeep_mpi_open(MPI_Comm comm, moeep_mpi_t *mpi)
{
	if (MPI_Comm_dup(comm, &mpi->comm) != MPI_SUCCESS) {
		return MOEEP_ERR_RENDEZVOUS;
	}
	if (MPI_Comm_set_errhandler(mpi->comm, MPI_ERRORS_RETURN) != MPI_SUCCESS ||
	    MPI_Comm_rank(mpi->comm, &mpi->rank) != MPI_SUCCESS ||
	    MPI_Comm_size(mpi->comm, &mpi->num_ranks) != MPI_SUCCESS) {
		MPI_Comm_free(&mpi->comm);
		return MOEEP_ERR_RENDEZVOUS;
	}
	mpi->bootstrap.size = sizeof(mpi->bootstrap);
	mpi->bootstrap.context = &mpi->comm;
	mpi->bootstrap.allgather = moeep_mpi_allgather;
	mpi->bootstrap.test = moeep_mpi_test;
	mpi->bootstrap.release = moeep_mpi_release;
	return MOEEP_OK;
}

/* Collective, after the comms that met by it are destroyed and before MPI_Finalize(). */
static inline void moeep_mpi_close(moeep_mpi_t *mpi)
{
	MPI_Comm_free(&mpi->comm);
}

#ifdef __cplusplus
}
#endif

#endif
