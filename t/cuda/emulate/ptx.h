/* SPDX-License-Identifier: MIT */
/*
 * The kernels' language for a C++ compiler: what nvcc knows by itself, and the functions of
 * kernels/ptx.cuh, in whose place this header is.
 */
#ifndef T_CUDA_EMULATE_PTX_H
#define T_CUDA_EMULATE_PTX_H
#define MOEEP_KERNELS_PTX_CUH

#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "t/cuda/emulate/machine.h"

#define __device__ static
#define __global__
#define __forceinline__ inline
#define __noinline__	__attribute__((noinline))
#define __grid_constant__
#define __launch_bounds__(threads, blocks)
#define __align__(bytes) __attribute__((aligned(bytes)))
/* A block has a thread of the process. */
#define __shared__ static __thread

#define DEV				      __device__ __forceinline__
#define DYNAMIC_SHARED(type, name, alignment) type *name = (type *)emulated_self->shared

/* The plain ways are there as well; a device's capability decides, by a kernel's arguments. */
#define HAVE_BULK 1
#define HAVE_E4M3 0

#define threadIdx (emulated_self->thread)
#define blockIdx  (emulated_self->block)
#define blockDim  (emulated_self->block_dim)
#define gridDim	  (emulated_self->grid_dim)

/* Kernels of a stream run one behind the other. */
DEV void launch_wait()
{
}

DEV void launch_next()
{
}

/* Vectors, aligned as a GPU wants them. */

struct alignas(8) uint2 {
	uint32_t x, y;
};

struct alignas(16) uint4 {
	uint32_t x, y, z, w;
};

struct alignas(16) float4 {
	float x, y, z, w;
};

DEV uint2 make_uint2(uint32_t x, uint32_t y)
{
	return uint2{x, y};
}

DEV uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
	return uint4{x, y, z, w};
}

DEV float4 make_float4(float x, float y, float z, float w)
{
	return float4{x, y, z, w};
}

/* Bits and arithmetic; built without contraction, so each operation is rounded. */

DEV float __uint_as_float(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

DEV uint32_t __float_as_uint(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

DEV float __fmul_rn(float a, float b)
{
	return a * b;
}

DEV float __fadd_rn(float a, float b)
{
	return a + b;
}

DEV float __fdiv_rn(float a, float b)
{
	return a / b;
}

DEV int __popc(unsigned int value)
{
	return __builtin_popcount(value);
}

DEV int __ffsll(long long value)
{
	return __builtin_ffsll(value);
}

DEV int __ffs(int value)
{
	return __builtin_ffs(value);
}

/* Threads that meet. */

DEV void __syncthreads()
{
	emulated_sync(0, "__syncthreads", (int)blockDim.x, true);
}

DEV int __syncthreads_and(int value)
{
	return emulated_sync(0, "__syncthreads_and", (int)blockDim.x, value != 0);
}

DEV void sync_some(int number, int threads)
{
	emulated_sync(number, "bar.sync", threads, true);
}

DEV bool sync_some_and(int number, int threads, bool value)
{
	return emulated_sync(number, "bar.red.and", threads, value);
}

DEV void __syncwarp(uint32_t mask = 0xffffffffu)
{
	emulated_meet("__syncwarp", mask, 0);
}

template <typename T> DEV uint64_t lane_value(T value)
{
	uint64_t word = 0;

	static_assert(sizeof(T) <= sizeof(word), "a lane's value");
	memcpy(&word, &value, sizeof(value));
	return word;
}

template <typename T> DEV T value_of_lane(const uint64_t *words, unsigned int lane)
{
	T value;

	memcpy(&value, &words[lane & 31u], sizeof(value));
	return value;
}

template <typename T> DEV T __shfl_sync(uint32_t mask, T value, int lane)
{
	return value_of_lane<T>(emulated_meet("__shfl_sync", mask, lane_value(value)),
				(unsigned int)lane);
}

template <typename T> DEV T __shfl_xor_sync(uint32_t mask, T value, int lanes)
{
	return value_of_lane<T>(emulated_meet("__shfl_xor_sync", mask, lane_value(value)),
				threadIdx.x ^ (unsigned int)lanes);
}

template <typename T> DEV T __shfl_up_sync(uint32_t mask, T value, unsigned int by)
{
	unsigned int lane = threadIdx.x & 31u;

	return value_of_lane<T>(emulated_meet("__shfl_up_sync", mask, lane_value(value)),
				lane >= by ? lane - by : lane);
}

DEV uint32_t lanes_of(const uint64_t *words, uint64_t value)
{
	uint32_t lanes = 0;

	for (int i = 0; i < 32; i++) {
		lanes |= (uint32_t)(words[i] == value) << i;
	}
	return lanes;
}

DEV uint32_t __ballot_sync(uint32_t mask, int value)
{
	return lanes_of(emulated_meet("__ballot_sync", mask, value != 0), 1);
}

DEV int __any_sync(uint32_t mask, int value)
{
	return lanes_of(emulated_meet("__any_sync", mask, value != 0), 1) != 0;
}

DEV int __all_sync(uint32_t mask, int value)
{
	return lanes_of(emulated_meet("__all_sync", mask, value != 0), 1) == mask;
}

template <typename T> DEV uint32_t __match_any_sync(uint32_t mask, T value)
{
	return lanes_of(emulated_meet("__match_any_sync", mask, lane_value(value)),
			lane_value(value));
}

DEV uint32_t __reduce_max_sync(uint32_t mask, uint32_t value)
{
	const uint64_t *words = emulated_meet("__reduce_max_sync", mask, value);
	uint64_t most = words[0];

	for (int i = 1; i < 32; i++) {
		most = words[i] > most ? words[i] : most;
	}
	return (uint32_t)most;
}

DEV uint32_t __reduce_min_sync(uint32_t mask, uint32_t value)
{
	const uint64_t *words = emulated_meet("__reduce_min_sync", mask, value);
	uint64_t least = words[0];

	for (int i = 1; i < 32; i++) {
		least = words[i] < least ? words[i] : least;
	}
	return (uint32_t)least;
}

DEV void __nanosleep(unsigned int)
{
	emulated_yield();
}

/* Memory. The host's processors order more than a GPU: fences are not what is tested. */

DEV void __threadfence()
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

DEV void __threadfence_block()
{
	__atomic_thread_fence(__ATOMIC_ACQ_REL);
}

DEV void __threadfence_system()
{
	__atomic_thread_fence(__ATOMIC_ACQ_REL);
}

template <typename T> DEV T atomicAdd(T *at, T value)
{
	return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

DEV int atomicMax(int *at, int value)
{
	int before = __atomic_load_n(at, __ATOMIC_RELAXED);

	while (before < value && !__atomic_compare_exchange_n(at, &before, value, false,
							      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
	}
	return before;
}

DEV int atomicMin(int *at, int value)
{
	int before = __atomic_load_n(at, __ATOMIC_RELAXED);

	while (before > value && !__atomic_compare_exchange_n(at, &before, value, false,
							      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
	}
	return before;
}

DEV uint32_t atomicExch(uint32_t *at, uint32_t value)
{
	return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}

DEV int atomicExch(int *at, int value)
{
	return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}

DEV uint32_t atomicCAS(uint32_t *at, uint32_t expected, uint32_t value)
{
	__atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED,
				    __ATOMIC_RELAXED);
	return expected;
}

/* Who polls a word lets others go on. */
DEV uint64_t load_relaxed(const uint64_t *word)
{
	emulated_yield();
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

DEV uint64_t load_acquire(const uint64_t *word)
{
	emulated_yield();
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* The last part is the epoch, which is there last: kernels never overwrite a word before it was read. */
/* Nobody sees a part of 16 bytes, wherever in them the epoch is that says whether they have come. */
static int whole_taken;

DEV void whole_take()
{
	while (__atomic_exchange_n(&whole_taken, 1, __ATOMIC_ACQUIRE)) {
		sched_yield();
	}
}

DEV void whole_leave()
{
	__atomic_store_n(&whole_taken, 0, __ATOMIC_RELEASE);
}

DEV uint4 load_whole16(const char *from)
{
	const uint32_t *part = (const uint32_t *)from;
	uint4 v;

	emulated_yield();
	whole_take();
	v.w = __atomic_load_n(&part[3], __ATOMIC_ACQUIRE);
	v.x = __atomic_load_n(&part[0], __ATOMIC_RELAXED);
	v.y = __atomic_load_n(&part[1], __ATOMIC_RELAXED);
	v.z = __atomic_load_n(&part[2], __ATOMIC_RELAXED);
	whole_leave();
	return v;
}

DEV void store_whole16(char *to, uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
	uint32_t *part = (uint32_t *)to;

	whole_take();
	__atomic_store_n(&part[0], x, __ATOMIC_RELAXED);
	__atomic_store_n(&part[1], y, __ATOMIC_RELAXED);
	__atomic_store_n(&part[2], z, __ATOMIC_RELAXED);
	__atomic_store_n(&part[3], w, __ATOMIC_RELEASE);
	whole_leave();
}

DEV uint32_t load_relaxed32(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

DEV void store_release(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

DEV void store_release_device(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

DEV void store_relaxed(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

DEV uint32_t add_ticket(uint32_t *ticket)
{
	return __atomic_fetch_add(ticket, 1u, __ATOMIC_ACQ_REL);
}

DEV uint64_t clock_ns()
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Elements. */

DEV float float_of_fp16(uint32_t half)
{
	uint32_t sign = (half & 0x8000u) << 16;
	uint32_t exponent = half >> 10 & 31u;
	uint32_t fraction = half & 0x3ffu;

	if (exponent == 31) {
		/* A NaN becomes a quiet one. */
		return __uint_as_float(sign | 0x7f800000u | fraction << 13 |
				       (fraction ? 0x400000u : 0u));
	}
	if (exponent == 0) {
		float value = (float)fraction * 0x1p-24f;

		return sign ? -value : value;
	}
	return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

/* Round away the low `bits` bits, to nearest, ties to even. */
DEV uint32_t round_bits(uint32_t value, unsigned int bits)
{
	return (value + (1u << (bits - 1)) - 1 + (value >> bits & 1u)) >> bits;
}

DEV uint32_t fp16_of_float(float value)
{
	uint32_t bits = __float_as_uint(value);
	uint32_t sign = bits >> 16 & 0x8000u;
	uint32_t magnitude = bits & 0x7fffffffu;

	if (magnitude > 0x7f800000u) {
		return 0x7fffu;
	}
	if (magnitude >= 0x47800000u) { /* 2^16 */
		return sign | 0x7c00u;
	}
	if (magnitude < 0x38800000u) { /* 2^-14: what is left is in units of 2^-24 */
		return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
	}
	return sign | (round_bits(magnitude, 13) - (112u << 10));
}

DEV uint32_t bf16_of_float(float value)
{
	uint32_t bits = __float_as_uint(value);

	return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : round_bits(bits, 16);
}

DEV uint32_t bf16x2_of_floats(float low, float high)
{
	return bf16_of_float(low) | bf16_of_float(high) << 16;
}

DEV uint4 load_once16(const char *from)
{
	return *(const uint4 *)from;
}

/* Shared memory by its own addresses, and the copy engine. */

DEV uint64_t __cvta_generic_to_shared(const void *at)
{
	return emulated_shared_address(at);
}

DEV void barrier_init(uint32_t barrier)
{
	emulated_barrier_init(barrier);
}

DEV void barrier_end(uint32_t barrier)
{
	emulated_barrier_end(barrier);
}

DEV void barrier_expect(uint32_t barrier, uint32_t bytes)
{
	emulated_barrier_expect(barrier, bytes);
}

DEV uint32_t barrier_try_wait(uint32_t barrier, uint32_t parity)
{
	return emulated_barrier_try_wait(barrier, parity);
}

DEV void bulk_load(uint32_t to, const char *from, uint32_t bytes, uint32_t barrier)
{
	emulated_bulk_load(to, from, bytes, barrier);
}

DEV void bulk_store(char *to, uint32_t from, uint32_t bytes)
{
	emulated_bulk_store(to, from, bytes);
}

DEV void bulk_commit()
{
	emulated_bulk_commit();
}

template <int PENDING> DEV void bulk_wait_read()
{
	emulated_bulk_wait(PENDING, false);
}

template <int PENDING> DEV void bulk_wait_written()
{
	emulated_bulk_wait(PENDING, true);
}

DEV void fence_engine()
{
}

DEV void fence_engine_shared()
{
}

#endif /* T_CUDA_EMULATE_PTX_H */
