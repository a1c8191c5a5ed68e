#!/bin/sh
# SPDX-License-Identifier: MIT
# configure --with-cuda in each of yes, no, auto and DIR, with fake compilers.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/configure/fakes.sh"
fake_default="--without-verbs"

good=$tap_dir/cuda13
fake_nvcc "$good" 13.0
fake_nvcc "$tap_dir/cuda124" 12.4
fake_nvcc "$tap_dir/cuda128" 12.8
fake_nvcc "$tap_dir/old" 11.8
fake_nvcc "$tap_dir/broken" 13.1 broken

fake_configure "auto, no nvcc"
fake_succeeds
fake_feature CUDA 0 "nvcc was not found in PATH" "CUDA kernels"
fake_feature IBGDA 0 "it needs " "IBGDA"

fake_configure "yes, no nvcc" --with-cuda
fake_fails "--with-cuda was given, but nvcc was not found"

fake_configure "no, nvcc in PATH" --without-cuda PATH="$good/bin:$fake_path"
fake_succeeds
fake_feature CUDA 0 "disabled by --without-cuda" "CUDA kernels"
tap_is "$(cat "$good/calls" 2>/dev/null)" "" "no: nvcc is not run"
tap_is "$(fake_subst NVCC)" "" "no: NVCC is empty"

fake_configure "auto, nvcc in PATH" PATH="$good/bin:$fake_path"
fake_succeeds
fake_feature CUDA 1 "nvcc 13\.0; sm_80 sm_90 sm_100 and PTX of compute_100" "CUDA kernels"
tap_is "$(fake_subst NVCC)" "$good/bin/nvcc" "auto: NVCC is the one in PATH"
gencode=$(fake_subst NVCC_GENCODE)
tap_is "$gencode" "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90\
 -gencode arch=compute_100,code=sm_100 -gencode arch=compute_100,code=compute_100" \
	"13.0: three architectures and PTX of the newest"
tap_like "$(cat "$good/calls")" "^$gencode -fatbin .*--fmad=false .*-O3 " \
	"the probe compiles with the same options"
tap_is "$(fake_subst NVCCFLAGS)" "-O3" "auto: NVCCFLAGS has a default"

fake_configure "DIR, 12.4" --with-cuda="$tap_dir/cuda124" PATH="$good/bin:$fake_path"
fake_succeeds
fake_feature CUDA 1 "nvcc 12\.4; sm_80 sm_90 and PTX of compute_90" "CUDA kernels"
tap_is "$(fake_subst NVCC)" "$tap_dir/cuda124/bin/nvcc" "DIR counts before PATH"
tap_like "$(fake_subst NVCC_GENCODE)" "sm_90 -gencode arch=compute_90,code=compute_90\$" \
	"12.4: no sm_100, PTX of sm_90"

fake_configure "default place, 12.8" moeep_cv_cuda_dirs="$tap_dir/cuda128/bin"
fake_succeeds
fake_feature CUDA 1 "nvcc 12\.8" "CUDA kernels"
tap_like "$(fake_subst NVCC_GENCODE)" "code=sm_100 " "12.8: sm_100 is there"

fake_configure "DIR without nvcc" --with-cuda="$fake_empty" PATH="$good/bin:$fake_path"
fake_fails "$fake_empty/bin/nvcc was not found"

fake_configure "NVCC and NVCC_GENCODE" NVCC="$tap_dir/cuda124/bin/nvcc --foo" \
	NVCC_GENCODE=-arch=sm_90 NVCCFLAGS=-lineinfo PATH="$good/bin:$fake_path"
fake_succeeds
fake_feature CUDA 1 "nvcc 12\.4; sm_90 and PTX of compute_90" "CUDA kernels"
tap_is "$(fake_subst NVCC_GENCODE)" "-arch=sm_90" "NVCC_GENCODE is kept"
tap_is "$(fake_subst NVCCFLAGS)" "-lineinfo" "NVCCFLAGS is kept"

fake_configure "a list of codes" PATH="$good/bin:$fake_path" \
	NVCC_GENCODE="-gencode=arch=compute_80,code=[sm_80,sm_86] -gencode arch=compute_90a,code=sm_90a"
fake_succeeds
fake_feature CUDA 1 "nvcc 13\.0; sm_80 sm_86 sm_90a" "CUDA kernels"

fake_configure "an architecture that only nvcc knows" PATH="$good/bin:$fake_path" \
	NVCC_GENCODE=-arch=native
fake_succeeds
fake_feature CUDA 1 "nvcc 13\.0; -arch=native" "CUDA kernels"

fake_configure "auto, NVCC is wrong" NVCC="$fake_empty/nvcc" PATH="$good/bin:$fake_path"
fake_succeeds
fake_feature CUDA 0 "NVCC=$fake_empty/nvcc cannot be run" "CUDA kernels"

fake_configure "auto, 11.8" PATH="$tap_dir/old/bin:$fake_path"
fake_succeeds
fake_feature CUDA 0 "nvcc 11\.8 is too old" "CUDA kernels"

fake_configure "yes, 11.8" --with-cuda PATH="$tap_dir/old/bin:$fake_path"
fake_fails "--with-cuda was given, but nvcc 11\.8 is too old, 12\.0"

fake_configure "auto, cannot compile" PATH="$tap_dir/broken/bin:$fake_path"
fake_succeeds
fake_feature CUDA 0 "nvcc 13\.1 cannot compile a kernel: .*unsupported GNU version" "CUDA kernels"

fake_configure "yes, cannot compile" --with-cuda PATH="$tap_dir/broken/bin:$fake_path"
fake_fails "nvcc 13\.1 cannot compile a kernel"

fake_configure "auto, nvcc of no release" NVCC=true
fake_succeeds
fake_feature CUDA 0 "does not tell a release" "CUDA kernels"
tap_done
