/* SPDX-License-Identifier: MIT */
/*
 * core/launcher.c - rank and number of ranks, as launchers tell the processes that they start.
 *
 * Their variables are theirs, not settings of this library, and are read when somebody asks.
 */
#include "config.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include <moeep/moeep.h>

#include "core/error.h"

struct launcher {
	const char *name;
	const char *rank;
	const char *num_ranks;
	const char *local_rank;	 /* may be NULL, as may the value be missing */
	const char *local_ranks; /* likewise */
	const char *needs; /* set as well, or the others are not meant for this process; or NULL */
};

/*
 * What was started last goes first: torchrun and mpirun run inside of allocations of Slurm. In a
 * batch script without srun Slurm sets SLURM_PROCID and SLURM_NTASKS too, though the script is no
 * task: only a step has SLURM_STEP_NUM_TASKS.
 */
static const struct launcher launchers[] = {
	{"moeep", "MOEEP_RANK", "MOEEP_NUM_RANKS", NULL, NULL, NULL},
	{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"},
	{"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
	 "OMPI_COMM_WORLD_LOCAL_SIZE", NULL},
	{"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", NULL},
	{"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL, "SLURM_STEP_ID"},
};

#define NUM_LAUNCHERS (sizeof(launchers) / sizeof(launchers[0]))

static bool is_set(const char *variable)
{
	const char *text = variable ? getenv(variable) : NULL;

	return text && text[0];
}

/* A number that is at least `least`. */
static int read_number(const char *variable, long least, int32_t *value)
{
	const char *text = getenv(variable);
	char *end;
	long number;

	errno = 0;
	number = strtol(text, &end, 10);
	if (errno || *end || text[0] < '0' || text[0] > '9' || number < least ||
	    number > INT32_MAX) {
		return moeep_fail(MOEEP_ERR_INVALID,
				  "%s is \"%.40s\"; a whole number from %ld on was expected",
				  variable, text, least);
	}
	*value = (int32_t)number;
	return MOEEP_OK;
}

/* A rank among so many, if it is told. */
static int read_pair(const char *rank_variable, const char *count_variable, int32_t *rank,
		     int32_t *count)
{
	int rc = MOEEP_OK;

	if (is_set(rank_variable)) {
		rc = read_number(rank_variable, 0, rank);
	}
	if (rc == MOEEP_OK && is_set(count_variable)) {
		rc = read_number(count_variable, 1, count);
	}
	if (rc == MOEEP_OK && *rank >= 0 && *count >= 0 && *rank >= *count) {
		rc = moeep_fail(MOEEP_ERR_INVALID, "%s is %d, but %s is %d", rank_variable, *rank,
				count_variable, *count);
	}
	return rc;
}

int moeep_launcher_query(moeep_launcher_info_t *info)
{
	moeep_launcher_info_t own = {
		.size = sizeof(own),
		.rank = -1,
		.num_ranks = -1,
		.local_rank = -1,
		.local_ranks = -1,
	};
	const struct launcher *launcher = NULL;
	int rc;

	for (size_t i = 0; i < NUM_LAUNCHERS && !launcher; i++) {
		const struct launcher *l = &launchers[i];

		if (is_set(l->rank) && is_set(l->num_ranks) && (!l->needs || is_set(l->needs))) {
			launcher = l;
		}
	}
	if (!launcher && (is_set("MOEEP_RANK") || is_set("MOEEP_NUM_RANKS"))) {
		return moeep_fail(MOEEP_ERR_INVALID, "%s is set, but %s is not",
				  is_set("MOEEP_RANK") ? "MOEEP_RANK" : "MOEEP_NUM_RANKS",
				  is_set("MOEEP_RANK") ? "MOEEP_NUM_RANKS" : "MOEEP_RANK");
	}
	if (!launcher) {
		return moeep_fail(MOEEP_ERR_UNSUPPORTED,
				  "this process has no variables of a launcher: MOEEP_RANK, or "
				  "those of torchrun, Open MPI, PMI (MPICH) or Slurm's srun");
	}
	own.name = launcher->name;
	rc = read_pair(launcher->rank, launcher->num_ranks, &own.rank, &own.num_ranks);
	if (rc == MOEEP_OK) {
		rc = read_pair(launcher->local_rank, launcher->local_ranks, &own.local_rank,
			       &own.local_ranks);
	}
	return rc ? rc : moeep_struct_out("info", info, &own, sizeof(own));
}
