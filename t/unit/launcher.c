/* SPDX-License-Identifier: MIT */
/* Ranks as launchers tell them: their variables, simulated. t/launch/mpi.t has launchers
 * themselves. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include <moeep/moeep.h>

#include "t/tap.h"

struct launch {
	const char *what;
	const char *environment[8];
	int result;
	const char *name; /* or a part of the detail */
	int rank;
	int num_ranks;
	int local_rank;
	int local_ranks;
};

static const struct launch launches[] = {
	{"nothing", {NULL}, MOEEP_ERR_UNSUPPORTED, "no variables of a launcher", 0, 0, 0, 0},
	{"by hand", {"MOEEP_RANK=2", "MOEEP_NUM_RANKS=3"}, MOEEP_OK, "moeep", 2, 3, -1, -1},
	{"torchrun",
	 {"RANK=5", "WORLD_SIZE=16", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=4",
	  "TORCHELASTIC_RUN_ID=none"},
	 MOEEP_OK,
	 "torchrun",
	 5,
	 16,
	 1,
	 4},
	{"RANK of something else",
	 {"RANK=5", "WORLD_SIZE=16"},
	 MOEEP_ERR_UNSUPPORTED,
	 "no variables",
	 0,
	 0,
	 0,
	 0},
	{"Open MPI",
	 {"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=1", "OMPI_COMM_WORLD_LOCAL_RANK=0",
	  "OMPI_COMM_WORLD_LOCAL_SIZE=1"},
	 MOEEP_OK,
	 "Open MPI",
	 0,
	 1,
	 0,
	 1},
	{"MPICH",
	 {"PMI_RANK=7", "PMI_SIZE=8", "MPI_LOCALRANKID=3", "MPI_LOCALNRANKS=4"},
	 MOEEP_OK,
	 "PMI",
	 7,
	 8,
	 3,
	 4},
	{"another PMI", {"PMI_RANK=7", "PMI_SIZE=8"}, MOEEP_OK, "PMI", 7, 8, -1, -1},
	{"srun",
	 {"SLURM_PROCID=3", "SLURM_STEP_NUM_TASKS=4", "SLURM_LOCALID=1", "SLURM_STEP_ID=0",
	  "SLURM_NTASKS=9"},
	 MOEEP_OK,
	 "Slurm",
	 3,
	 4,
	 1,
	 -1},
	{"a batch script of Slurm",
	 {"SLURM_PROCID=0", "SLURM_NTASKS=4"},
	 MOEEP_ERR_UNSUPPORTED,
	 "no variables",
	 0,
	 0,
	 0,
	 0},
	{"torchrun under srun",
	 {"RANK=1", "WORLD_SIZE=2", "TORCHELASTIC_RUN_ID=1", "SLURM_PROCID=0",
	  "SLURM_STEP_NUM_TASKS=1", "SLURM_STEP_ID=0"},
	 MOEEP_OK,
	 "torchrun",
	 1,
	 2,
	 -1,
	 -1},
	{"mpirun, overruled",
	 {"MOEEP_RANK=0", "MOEEP_NUM_RANKS=1", "PMI_RANK=1", "PMI_SIZE=2"},
	 MOEEP_OK,
	 "moeep",
	 0,
	 1,
	 -1,
	 -1},
	{"half", {"MOEEP_RANK=0"}, MOEEP_ERR_INVALID, "MOEEP_NUM_RANKS is not", 0, 0, 0, 0},
	{"the other half",
	 {"MOEEP_NUM_RANKS=4"},
	 MOEEP_ERR_INVALID,
	 "MOEEP_RANK is not",
	 0,
	 0,
	 0,
	 0},
	{"a word",
	 {"PMI_RANK=one", "PMI_SIZE=2"},
	 MOEEP_ERR_INVALID,
	 "PMI_RANK is \"one\"",
	 0,
	 0,
	 0,
	 0},
	{"a sign",
	 {"PMI_RANK=-1", "PMI_SIZE=2"},
	 MOEEP_ERR_INVALID,
	 "PMI_RANK is \"-1\"",
	 0,
	 0,
	 0,
	 0},
	{"too large",
	 {"PMI_RANK=0", "PMI_SIZE=4294967297"},
	 MOEEP_ERR_INVALID,
	 "PMI_SIZE is",
	 0,
	 0,
	 0,
	 0},
	{"no ranks",
	 {"PMI_RANK=0", "PMI_SIZE=0"},
	 MOEEP_ERR_INVALID,
	 "PMI_SIZE is \"0\"",
	 0,
	 0,
	 0,
	 0},
	{"a rank past the last",
	 {"PMI_RANK=2", "PMI_SIZE=2"},
	 MOEEP_ERR_INVALID,
	 "PMI_RANK is 2, but PMI_SIZE is 2",
	 0,
	 0,
	 0,
	 0},
	{"a local rank past the last",
	 {"PMI_RANK=1", "PMI_SIZE=2", "MPI_LOCALRANKID=4", "MPI_LOCALNRANKS=1"},
	 MOEEP_ERR_INVALID,
	 "MPI_LOCALRANKID is 4",
	 0,
	 0,
	 0,
	 0},
};

#define NUM_LAUNCHES (sizeof(launches) / sizeof(launches[0]))

int main(void)
{
	moeep_launcher_info_t info = {.size = 4};

	for (size_t i = 0; i < NUM_LAUNCHES; i++) {
		const struct launch *l = &launches[i];

		clearenv();
		for (int v = 0; v < 8 && l->environment[v]; v++) {
			putenv((char *)(uintptr_t)l->environment[v]);
		}
		memset(&info, 0x55, sizeof(info));
		info.size = sizeof(info);
		is_int(moeep_launcher_query(&info), l->result, "%s", l->what);
		if (l->result != MOEEP_OK) {
			ok(strstr(moeep_error_detail(), l->name), "detail: %s",
			   moeep_error_detail());
			continue;
		}
		is_str(info.name, l->name, "is %s", l->name);
		ok(info.rank == l->rank && info.num_ranks == l->num_ranks, "rank %d of %d",
		   info.rank, info.num_ranks);
		ok(info.local_rank == l->local_rank && info.local_ranks == l->local_ranks,
		   "local rank %d of %d", info.local_rank, info.local_ranks);
	}
	clearenv();
	putenv((char *)(uintptr_t) "PMI_RANK=0");
	putenv((char *)(uintptr_t) "PMI_SIZE=1");
	is_int(moeep_launcher_query(NULL), MOEEP_ERR_INVALID, "info is NULL");
	info.size = 4;
	is_int(moeep_launcher_query(&info), MOEEP_ERR_INVALID, "or too small");
	return tap_done();
}
