#!/bin/sh
# SPDX-License-Identifier: MIT
# configure --with-verbs and --with-mlx5dv in each of yes, no, auto and DIR, with headers that lack
# one thing at a time.
. "${abs_top_srcdir:=$(cd "$(dirname "$0")/../.." && pwd)}/t/tap-functions.sh"
. "$abs_top_srcdir/t/configure/fakes.sh"
fake_default="--without-cuda --without-rocm"

good=$tap_dir/rdma
fake_rdma "$good"
pc=PKG_CONFIG_LIBDIR=$good/lib/pkgconfig

# Headers that hide the machine's own, which the compiler would find by itself.
nothing=$tap_dir/nothing
mkdir -p "$nothing/infiniband"
for header in verbs mlx5dv; do
	echo '#error "not here"' >"$nothing/infiniband/$header.h"
done

# variant NAME HEADER PATTERN: a copy of the good tree without the lines that match
variant()
{
	cp -R "$good" "$tap_dir/$1"
	fake_without "$tap_dir/$1" "$2" "$3"
}

fake_configure "auto, nothing there" CPPFLAGS="-I$nothing"
fake_succeeds
fake_feature VERBS 0 "infiniband/verbs\.h was not found" "libibverbs"
fake_feature MLX5DV 0 "it needs libibverbs: infiniband/verbs\.h" "mlx5dv"

fake_configure "verbs yes, nothing there" --with-verbs CPPFLAGS="-I$nothing"
fake_fails "--with-verbs was given, but infiniband/verbs\.h was not found"

fake_configure "mlx5dv yes, no verbs" --with-mlx5dv CPPFLAGS="-I$nothing"
fake_fails "--with-mlx5dv was given, but it needs libibverbs"

fake_configure "auto, pkg-config" "$pc"
fake_succeeds
fake_feature VERBS 1 "libibverbs 1\.99\.0" "libibverbs"
fake_feature MLX5DV 1 "libmlx5 1\.77\.0" "mlx5dv"
fake_value HAVE_DECL_IBV_REG_DMABUF_MR 1
fake_value HAVE_DECL_IBV_REG_MR_EX 0
fake_value HAVE_DECL_MLX5DV_UMEM_MASK_DMABUF 1
fake_value HAVE_DECL_MLX5DV_REG_DMABUF_MR 0
tap_is "$(fake_subst LIBS)$(fake_subst CPPFLAGS)" "" "the probes' flags do not stay behind"
tap_unlike "$(fake_subst MOEEP_LIBS)" ibverbs "the library is not linked with libibverbs"
tap_like "$tap_out" "^  libibverbs .*no RDMA transport yet" \
	"the summary does not promise transports"

fake_configure "auto, no pkg-config" PKG_CONFIG="$fake_empty/pkg-config" \
	CPPFLAGS="-I$good/include" LDFLAGS="-L$good/lib"
fake_succeeds
fake_feature VERBS 1 "libibverbs without pkg-config" "libibverbs"
fake_feature MLX5DV 1 "libmlx5 without pkg-config" "mlx5dv"

fake_configure "no" --without-verbs "$pc"
fake_succeeds
fake_feature VERBS 0 "disabled by --without-verbs" "libibverbs"
fake_feature MLX5DV 0 "it needs libibverbs: disabled" "mlx5dv"

fake_configure "mlx5dv no" --without-mlx5dv "$pc"
fake_succeeds
fake_feature VERBS 1 "libibverbs 1\.99\.0" "libibverbs"
fake_feature MLX5DV 0 "disabled by --without-mlx5dv" "mlx5dv"

fake_configure "DIR" --with-verbs="$good" --with-mlx5dv="$good" CPPFLAGS="-I$nothing"
fake_succeeds
fake_feature VERBS 1 "libibverbs from $good" "libibverbs"
fake_feature MLX5DV 1 "libmlx5 from $good" "mlx5dv"
tap_is "$(fake_subst VERBS_CFLAGS)" "-I$good/include" "DIR is where the headers come from"

fake_configure "DIR is empty" --with-verbs="$fake_empty" "$pc"
fake_fails "$fake_empty/include/infiniband/verbs\.h was not found"

fake_configure "mlx5dv DIR is empty" --with-mlx5dv="$fake_empty" "$pc"
fake_fails "$fake_empty/include/infiniband/mlx5dv\.h was not found"

variant noqp verbs.h ibv_modify_qp
fake_configure "auto, a function is missing" PKG_CONFIG_LIBDIR="$fake_empty" \
	CPPFLAGS="-I$tap_dir/noqp/include"
fake_succeeds
fake_feature VERBS 0 "ibv_modify_qp is not declared" "libibverbs"

fake_configure "yes, a function is missing" --with-verbs="$tap_dir/noqp"
fake_fails "--with-verbs was given, but ibv_modify_qp is not declared"

variant nodmabuf verbs.h 'ibv_reg_dmabuf_mr\|RELAXED'
fake_configure "optional declarations are missing" --with-verbs="$tap_dir/nodmabuf"
fake_succeeds
fake_value MOEEP_HAVE_VERBS 1
fake_value HAVE_DECL_IBV_REG_DMABUF_MR 0
fake_value HAVE_DECL_IBV_ACCESS_RELAXED_ORDERING 0
fake_value HAVE_DECL_IBV_QUERY_GID_EX 1

variant nolink verbs.h '^$'
echo 'not a library' >"$tap_dir/nolink/lib/libibverbs.so"
fake_configure "auto, does not link" \
	VERBS_CFLAGS="-I$good/include" VERBS_LIBS="-L$tap_dir/nolink/lib -libverbs"
fake_succeeds
fake_feature VERBS 0 "does not link with -L$tap_dir/nolink/lib -libverbs" "libibverbs"
fake_configure "yes, does not link" --with-verbs="$tap_dir/nolink"
fake_fails "a program does not link with"

# mlx5dv: one declaration, one member of each structure, one nested member.
for lack in 'mlx5dv_devx_alloc_uar:mlx5dv_devx_alloc_uar is not declared' \
	'MLX5DV_UAR_ALLOC_TYPE_NC:MLX5DV_UAR_ALLOC_TYPE_NC is not declared' \
	'void \*reg:struct mlx5dv_qp has no member bf\.reg' \
	'^	void \*buf;$:struct mlx5dv_cq has no member buf'; do
	rm -rf "$tap_dir/lack"
	variant lack mlx5dv.h "${lack%%:*}"
	fake_configure "auto, ${lack#*:}" PKG_CONFIG_LIBDIR="$tap_dir/lack/lib/pkgconfig" \
		VERBS_CFLAGS="-I$good/include" VERBS_LIBS="-L$good/lib -libverbs" \
		MLX5DV_CFLAGS="-I$tap_dir/lack/include" MLX5DV_LIBS="-L$good/lib -lmlx5"
	fake_succeeds
	fake_feature MLX5DV 0 "${lack#*:}" "mlx5dv"
done
fake_configure "mlx5dv yes, a member is missing" --with-verbs="$good" --with-mlx5dv="$tap_dir/lack"
fake_fails "--with-mlx5dv was given, but struct mlx5dv_cq has no member buf"

variant nomask mlx5dv.h MASK_DMABUF
fake_configure "mlx5dv without the dma-buf mask" --with-verbs="$good" \
	--with-mlx5dv="$tap_dir/nomask"
fake_succeeds
fake_value MOEEP_HAVE_MLX5DV 1
fake_value HAVE_DECL_MLX5DV_UMEM_MASK_DMABUF 0
tap_done
