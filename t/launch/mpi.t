#!/bin/sh
# SPDX-License-Identifier: MIT
# A program of an MPI user's under the MPIs that there are: ranks meet by moeep/mpi.h, and the launcher's
# variables say the same as MPI.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"

ranks=3
lib=$abs_top_builddir/lib/.libs
if [ ! -e "$lib/libmoeep.so" ]; then
	tap_skip_all "the build has no shared library"
fi
case ${MOEEP_TEST_SANITIZERS-} in
?*) tap_skip_all "an MPI under a sanitizer is not what is tested" ;;
esac

# Of an MPI: its word, compiler, launcher with options, and what the launcher is called by the library.
try()
{
	name=$1
	compiler=$2
	launcher=$3
	called=$4
	command -v "$compiler" >/dev/null 2>&1 && command -v "${launcher%% *}" >/dev/null 2>&1
	tap_require "$name" $? 5 "$compiler and ${launcher%% *} are not both there" || return
	# In a dialect that the headers of MPIs have no warnings in.
	tap_run "$compiler" -std=gnu11 -Wall -Wextra -Werror -I"$abs_top_srcdir/include" \
		-I"$abs_top_builddir/include" -o "$tap_dir/$name" "$abs_top_srcdir/t/launch/mpi_user.c" \
		-L"$lib" -lmoeep -Wl,-rpath,"$lib"
	tap_is "$tap_rc" 0 "$name: a program compiles with moeep/mpi.h" || tap_diag "$tap_out"
	# Options are words.
	# shellcheck disable=SC2086
	tap_run timeout 100 $launcher -n "$ranks" "$tap_dir/$name"
	tap_is "$tap_rc" 0 "$name: it runs" || tap_diag "$tap_out"
	tap_is "$(printf '%s\n' "$tap_out" | grep -c "^launcher $called: as MPI says, local too\$")" \
		"$ranks" "$name: all processes know their rank by $called's variables" || tap_diag "$tap_out"
	tap_is "$(printf '%s\n' "$tap_out" |
		grep -c "^rank [0-9]* of $ranks: $ranks rows came, 0 elements wrong\$")" "$ranks" \
		"$name: every rank gets every rank's row" || tap_diag "$tap_out"
	# How a launcher ends when its processes do so without order is its own affair: Open MPI 4.1's may crash,
	# or stay. What the ranks say before counts; a shell keeps the rest to itself.
	tap_run sh -c "timeout -k 5 20 $launcher -n $ranks $tap_dir/$name quit; :"
	tap_is "$(printf '%s\n' "$tap_out" | grep -c "^without the last rank: timed out")" \
		"$((ranks - 1))" "$name: without one of them the others are told so" || tap_diag "$tap_out"
}

openmpi="mpirun.openmpi --oversubscribe --mca mpi_yield_when_idle 1"
if [ "$(id -u)" -eq 0 ]; then
	openmpi="$openmpi --allow-run-as-root"
fi
# Without a network, as in a container, and with whatever there is.
export OMPI_MCA_btl=self,vader OMPI_MCA_pml=ob1
unset MOEEP_RANK MOEEP_NUM_RANKS
try openmpi mpicc.openmpi "$openmpi" "Open MPI"
try mpich mpicc.mpich mpirun.mpich PMI
tap_done
