# SPDX-License-Identifier: MIT
# shellcheck shell=sh disable=SC2154
# Runs the real configure against fake compilers and fake rdma-core trees, whatever the machine has.
# Sourced after tap-functions.sh.
#
# The basic results (compiler, libtool) are taken from the log of the build's own configure and
# passed as a cache, without those of the probes: a run then takes about a second.

unset CFLAGS CPPFLAGS LDFLAGS LIBS NVCC NVCC_GENCODE HIPCC CONFIG_SITE
unset PKG_CONFIG PKG_CONFIG_PATH PKG_CONFIG_LIBDIR PKG_CONFIG_SYSROOT_DIR
unset VERBS_CFLAGS VERBS_LIBS MLX5DV_CFLAGS MLX5DV_LIBS
unset LIBRARY_PATH CPATH C_INCLUDE_PATH
export LC_ALL=C
: "${CC:=cc}"

if [ -n "${MOEEP_TEST_SANITIZERS-}" ]; then
	tap_skip_all "configure is the same with sanitizers; the plain build tests it"
fi
fake_log=$abs_top_builddir/config.log
if [ ! -e "$fake_log" ] || [ ! -x "$abs_top_srcdir/configure" ]; then
	tap_skip_all "the tree is not configured: no config.log and configure to start from"
fi

fake_cache=$tap_dir/base.cache
grep -E '^(ac|am|lt|moeep)_cv_[A-Za-z0-9_]*=' "$fake_log" |
	grep -v -E '^ac_cv_(env_|have_decl_|member_|header_infiniband)' |
	grep -v -E '^moeep_cv_(ieee|cuda_dirs|rocm_dirs)=' >"$fake_cache"
grep -q '^ac_cv_c_compiler_gnu=' "$fake_cache" ||
	tap_skip_all "config.log of the build holds no results to start from"

# A PATH without the real GPU compilers. A directory that holds one (and maybe all other tools) is
# replaced by links to what else is in it.
fake_path=
fake_ifs=$IFS
IFS=:
for fake_dir in $PATH; do
	IFS=$fake_ifs
	if [ -e "$fake_dir/nvcc" ] || [ -e "$fake_dir/hipcc" ]; then
		fake_links=$tap_dir/links$(printf '%s' "$fake_dir" | tr / _)
		mkdir -p "$fake_links"
		ln -sf "$fake_dir"/* "$fake_links"
		rm -f "$fake_links/nvcc" "$fake_links/hipcc"
		fake_dir=$fake_links
	fi
	fake_path=$fake_path${fake_path:+:}$fake_dir
done
IFS=$fake_ifs
fake_empty=$tap_dir/empty
mkdir "$fake_empty"

# fake_nvcc DIR RELEASE [works|broken]: an nvcc in DIR/bin that appends its arguments to DIR/calls
fake_nvcc()
{
	mkdir -p "$1/bin"
	cat >"$1/bin/nvcc" <<END
#!/bin/sh
echo "\$*" >>"$1/calls"
case " \$* " in
*" --version "*)
	echo "nvcc: NVIDIA (R) Cuda compiler driver"
	echo "Cuda compilation tools, release $2, V$2.1"
	exit 0 ;;
esac
if [ "${3:-works}" = broken ]; then
	echo "In file included from host.h:" >&2
	echo "host.h:9: error: -- \"unsupported GNU version\"! use \\\`gcc\\\` 12" >&2
	exit 1
fi
while [ \$# -gt 1 ]; do
	if [ "\$1" = -o ]; then
		echo fatbin >"\$2"
	fi
	shift
done
END
	chmod +x "$1/bin/nvcc"
}

# fake_hipcc DIR VERSION [works|broken]
fake_hipcc()
{
	mkdir -p "$1/bin"
	cat >"$1/bin/hipcc" <<END
#!/bin/sh
echo "\$*" >>"$1/calls"
case \$1 in
--version)
	echo "HIP version: $2"
	exit 0 ;;
esac
if [ "${3:-works}" = broken ]; then
	echo "clang: error: cannot find ROCm device library" >&2
	exit 1
fi
while [ \$# -gt 1 ]; do
	if [ "\$1" = -o ]; then
		echo object >"\$2"
	fi
	shift
done
END
	chmod +x "$1/bin/hipcc"
}

# fake_rdma DIR: headers, libraries and pkg-config files as rdma-core 99 might have them
fake_rdma()
{
	mkdir -p "$1/include/infiniband" "$1/lib/pkgconfig"
	cat >"$1/include/infiniband/verbs.h" <<'END'
#ifndef FAKE_VERBS_H
#define FAKE_VERBS_H
struct ibv_device; struct ibv_context; struct ibv_pd; struct ibv_mr; struct ibv_qp;
enum ibv_wr_opcode {
	IBV_WR_RDMA_WRITE,
	IBV_WR_ATOMIC_FETCH_AND_ADD
};
enum ibv_access_flags { IBV_ACCESS_LOCAL_WRITE = 1,
	IBV_ACCESS_RELAXED_ORDERING = 2
};
struct ibv_device **ibv_get_device_list(int *num);
struct ibv_context *ibv_open_device(struct ibv_device *device);
struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, unsigned long length, int access);
struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, unsigned long offset, int fd);
struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, void *attr);
int ibv_modify_qp(struct ibv_qp *qp, void *attr, int mask);
int ibv_query_gid(struct ibv_context *context, int index);
int ibv_query_gid_ex(struct ibv_context *context, int index);
int ibv_query_gid_table(struct ibv_context *context, int index);
int ibv_post_send(struct ibv_qp *qp, void *wr, void **bad);
#endif
END
	cat >"$1/include/infiniband/mlx5dv.h" <<'END'
#include <infiniband/verbs.h>
#define MLX5DV_UAR_ALLOC_TYPE_NC 1
enum { MLX5DV_UMEM_OTHER = 0,
	MLX5DV_UMEM_MASK_DMABUF = 1
};
struct mlx5dv_qp {
	unsigned *dbrec;
	struct {
		void *buf;
	} sq;
	struct {
		void *reg;
	} bf;
};
struct mlx5dv_cq {
	void *buf;
	unsigned *dbrec;
	int cqn;
};
int mlx5dv_init_obj(void *obj, unsigned long type);
struct ibv_qp *mlx5dv_create_qp(struct ibv_context *context, void *attr, void *more);
void *mlx5dv_devx_umem_reg(struct ibv_context *context, void *addr, unsigned long size);
void *mlx5dv_devx_umem_reg_ex(struct ibv_context *context, void *in);
void *mlx5dv_devx_alloc_uar(struct ibv_context *context, unsigned type);
END
	echo 'void *ibv_get_device_list(int *n); void *ibv_get_device_list(int *n) { return n; }' \
		>"$1/fake.c"
	# CC may hold options.
	# shellcheck disable=SC2086
	$CC -shared -fPIC -o "$1/lib/libibverbs.so" "$1/fake.c" &&
		echo 'int mlx5dv_init_obj(void *o, long t); int mlx5dv_init_obj(void *o, long t)
		      { return o != 0 && t; }' >"$1/fake.c" &&
		$CC -shared -fPIC -o "$1/lib/libmlx5.so" "$1/fake.c" || exit 99
	for fake_name in ibverbs:1.99.0 mlx5:1.77.0; do
		cat >"$1/lib/pkgconfig/lib${fake_name%:*}.pc" <<END
Name: lib${fake_name%:*}
Description: fake
Version: ${fake_name#*:}
Libs: -L$1/lib -l${fake_name%:*}
Cflags: -I$1/include
END
	done
}

# fake_without DIR HEADER PATTERN: removes the lines of a header that match
fake_without()
{
	sed "/$3/d" "$1/include/infiniband/$2" >"$tap_dir/header" &&
		mv "$tap_dir/header" "$1/include/infiniband/$2"
}

# A light shell saves a fifth of configure's time.
fake_shell=$(command -v dash || command -v sh)

# fake_default: options of every run, for a test to leave out the probes that it does not look at; that of
# libnettle is left out in any case
fake_default=

# fake_configure LABEL [VARIABLE=value | --option]...
# Runs configure in a directory of its own, with nothing of the machine in reach but what the
# variables give. Sets tap_rc and tap_out and, on success, makes $fake_build/config.h.
fake_number=0
fake_configure()
{
	fake_label=$1
	shift
	fake_number=$((fake_number + 1))
	fake_build=$tap_dir/build$fake_number
	mkdir "$fake_build"
	cp "$fake_cache" "$fake_build/cache"
	fake_vars=
	for fake_arg; do
		case $fake_arg in
		PATH=*) fake_vars=yes ;;
		esac
	done
	if [ -z "$fake_vars" ]; then
		set -- "PATH=$fake_path" "$@"
	fi
	# Variables go into the environment as well, so that PATH counts.
	fake_rc=0
	(
		cd "$fake_build" || exit 99
		export CC PKG_CONFIG_LIBDIR="$fake_empty"
		export moeep_cv_cuda_dirs="$fake_empty" moeep_cv_rocm_dirs="$fake_empty"
		# Options must not be split; variables are exported one by one.
		for fake_arg; do
			shift
			case $fake_arg in
			-*) set -- "$@" "$fake_arg" ;;
			*) export "${fake_arg?}" ;;
			esac
		done
		export CONFIG_SHELL="$fake_shell"
		# Options are words.
		# shellcheck disable=SC2086
		"$fake_shell" "$abs_top_srcdir/configure" --no-create --cache-file=cache \
			--without-nettle $fake_default \
			"$@" >output 2>&1 || exit
		./config.status config.h >output.status 2>&1
	) || fake_rc=$?
	tap_out=$(cat "$fake_build/output")
	tap_rc=$fake_rc
}

# fake_succeeds: configure's status is 0
fake_succeeds()
{
	tap_is "$tap_rc" 0 "$fake_label: configure succeeds" ||
		tap_diag "$(printf '%s\n' "$tap_out" | tail -n 8)"
}

# fake_fails REGEX: configure fails, and its error says this
fake_fails()
{
	test "$tap_rc" -ne 0
	tap_ok $? "$fake_label: configure fails"
	tap_like "$tap_out" "^configure: error: .*$1" "$fake_label: the error names the cause"
}

# fake_feature NAME 0|1 REASON-REGEX LABEL: config.h and the summary agree on a feature
fake_feature()
{
	fake_h=$(grep -e "_$1 " "$fake_build/config.h" 2>/dev/null)
	tap_like "$fake_h" "^#define MOEEP_HAVE_$1 $2\$" "$fake_label: MOEEP_HAVE_$1 is $2"
	tap_like "$fake_h" "^#define MOEEP_REASON_$1 \".*$3.*\"\$" "$fake_label: its reason is right"
	fake_word=no
	if [ "$2" -eq 1 ]; then
		fake_word=yes
	fi
	tap_like "$tap_out" "^  $4  *$fake_word (.*$3" "$fake_label: so is the summary"
}

# fake_value NAME VALUE: a line of config.h
fake_value()
{
	tap_is "$(sed -n "s/^#define $1 //p" "$fake_build/config.h")" "$2" "$fake_label: $1 is $2"
}

# fake_subst NAME: prints what a substituted variable got. config.status breaks long values into
# several strings, each but the last followed by a backslash.
fake_subst()
{
	sed -n -e ':join' -e '/"\\$/{N;s/"\\\n"//;b join' -e '}' \
		-e "s/^S\\[\"$1\"\\]=\"\\(.*\\)\"\$/\\1/p" "$fake_build/config.status"
}
