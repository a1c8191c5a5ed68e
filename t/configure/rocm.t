#!/bin/sh
# SPDX-License-Identifier: MIT
# configure --with-rocm in each of yes, no, auto and DIR, and what it excludes.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/configure/fakes.sh"
fake_default="--without-verbs"

fake_hipcc "$tap_dir/rocm" 6.1.4
fake_hipcc "$tap_dir/bad" 6.2.0 broken
fake_nvcc "$tap_dir/cuda" 13.0
fake_nvcc "$tap_dir/oldcuda" 11.0
hip=$tap_dir/rocm/bin:$fake_path
hip_and_nv=$tap_dir/cuda/bin:$hip

fake_configure "auto, nothing there"
fake_succeeds
fake_feature ROCM 0 "hipcc was not found in PATH" "ROCm compiler"

fake_configure "yes, no hipcc" --with-rocm
fake_fails "--with-rocm was given, but hipcc was not found"

fake_configure "yes, hipcc and nvcc" --with-rocm PATH="$hip_and_nv"
fake_succeeds
fake_feature ROCM 1 "hipcc 6\.1\.4" "ROCm compiler"
fake_feature CUDA 0 "excluded by --with-rocm" "CUDA kernels"
fake_feature IBGDA 0 "ROCm excludes it" "IBGDA"
tap_like "$tap_out" "^configure: this is a ROCm build: CUDA and IBGDA are excluded" \
	"a notice says so"
tap_is "$(cat "$tap_dir/cuda/calls" 2>/dev/null)" "" "nvcc is not run"

fake_configure "DIR" --with-rocm="$tap_dir/rocm" --without-cuda
fake_succeeds
fake_feature ROCM 1 "hipcc 6\.1\.4" "ROCm compiler"
fake_feature CUDA 0 "disabled by --without-cuda" "CUDA kernels"

fake_configure "DIR without hipcc" --with-rocm="$fake_empty" PATH="$hip"
fake_fails "$fake_empty/bin/hipcc was not found"

fake_configure "HIPCC" --with-rocm HIPCC="$tap_dir/rocm/bin/hipcc"
fake_succeeds
fake_feature ROCM 1 "hipcc 6\.1\.4" "ROCm compiler"

fake_configure "ROCm and CUDA" --with-rocm --with-cuda PATH="$hip_and_nv"
fake_fails "--with-rocm and --with-cuda exclude each other"

fake_configure "ROCm and CUDA as directories" --with-rocm="$tap_dir/rocm" \
	--with-cuda="$tap_dir/cuda"
fake_fails "--with-rocm and --with-cuda exclude each other"

fake_configure "auto, hipcc and no nvcc" PATH="$hip"
fake_succeeds
fake_feature ROCM 1 "hipcc 6\.1\.4" "ROCm compiler"
fake_feature CUDA 0 "nvcc was not found" "CUDA kernels"
fake_feature IBGDA 0 "ROCm excludes it" "IBGDA"

fake_configure "auto, hipcc in the default place" moeep_cv_rocm_dirs="$tap_dir/rocm/bin"
fake_succeeds
fake_feature ROCM 1 "hipcc 6\.1\.4" "ROCm compiler"

fake_configure "auto, hipcc and nvcc" PATH="$hip_and_nv"
fake_succeeds
fake_feature ROCM 0 "an nvcc was found" "ROCm compiler"
fake_feature CUDA 1 "nvcc 13\.0" "CUDA kernels"

fake_configure "auto, hipcc and an nvcc too old" PATH="$tap_dir/oldcuda/bin:$hip"
fake_succeeds
fake_feature ROCM 0 "an nvcc was found" "ROCm compiler"
fake_feature CUDA 0 "too old" "CUDA kernels"

fake_configure "auto, --with-cuda" --with-cuda PATH="$hip_and_nv"
fake_succeeds
fake_feature ROCM 0 "excluded by --with-cuda" "ROCm compiler"

fake_configure "no, hipcc" --without-rocm PATH="$hip"
fake_succeeds
fake_feature ROCM 0 "disabled by --without-rocm" "ROCm compiler"

fake_configure "auto, cannot compile" PATH="$tap_dir/bad/bin:$fake_path"
fake_succeeds
fake_feature ROCM 0 "hipcc cannot compile a kernel: .*device library" "ROCm compiler"

fake_configure "yes, cannot compile" --with-rocm PATH="$tap_dir/bad/bin:$fake_path"
fake_fails "--with-rocm was given, but hipcc cannot compile a kernel"

fake_configure "yes, with IBGDA" --with-rocm --enable-ibgda PATH="$hip"
fake_fails "--enable-ibgda was given, but ROCm excludes it"
tap_done
