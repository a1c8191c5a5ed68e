#!/bin/sh
# SPDX-License-Identifier: MIT
# configure --enable-ibgda: on only with libibverbs, mlx5dv and CUDA; the reason names the first
# that is missing.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/configure/fakes.sh"

fake_rdma "$tap_dir/rdma"
fake_nvcc "$tap_dir/cuda" 13.0
pc=PKG_CONFIG_LIBDIR=$tap_dir/rdma/lib/pkgconfig
path=PATH=$tap_dir/cuda/bin:$fake_path

fake_configure "auto, everything" "$pc" "$path"
fake_succeeds
fake_feature IBGDA 1 "libibverbs, mlx5dv and CUDA were found" "IBGDA"

fake_configure "yes, everything" --enable-ibgda "$pc" "$path"
fake_succeeds
fake_feature IBGDA 1 "were found" "IBGDA"

fake_configure "no, everything" --disable-ibgda "$pc" "$path"
fake_succeeds
fake_feature IBGDA 0 "disabled by --disable-ibgda" "IBGDA"
fake_feature CUDA 1 "nvcc 13" "CUDA kernels"

fake_configure "auto, no CUDA" "$pc"
fake_succeeds
fake_feature IBGDA 0 "it needs CUDA: nvcc was not found" "IBGDA"

fake_configure "yes, no CUDA" --enable-ibgda --without-cuda "$pc"
fake_fails "--enable-ibgda was given, but it needs CUDA: disabled by --without-cuda"

fake_configure "auto, no mlx5dv and no CUDA" --without-mlx5dv "$pc"
fake_succeeds
fake_feature IBGDA 0 "it needs mlx5dv: disabled by --without-mlx5dv" "IBGDA"

fake_configure "yes, no mlx5dv" --enable-ibgda --without-mlx5dv "$pc" "$path"
fake_fails "--enable-ibgda was given, but it needs mlx5dv"

fake_configure "yes, no verbs" --enable-ibgda --without-verbs "$path"
fake_fails "--enable-ibgda was given, but it needs libibverbs"

fake_configure "neither yes nor no" --enable-ibgda=perhaps
fake_fails "takes yes, no or auto, not \"perhaps\""
tap_done
