/* SPDX-License-Identifier: MIT */
/*
 * kernels/ptx.cuh - all that is not plain CUDA C++: instructions that have no other name, each in a
 * function, and nothing else. t/cuda/emulate has the same functions for CPUs.
 */
#ifndef MOEEP_KERNELS_PTX_CUH
#define MOEEP_KERNELS_PTX_CUH

#include <stdint.h>

/* Nothing is static: see CONTRIBUTING.md. */
#define DEV __device__ __forceinline__

/* The block's dynamic shared memory, as an array. */
#define DYNAMIC_SHARED(type, name, alignment)                                                      \
	extern __shared__ __align__(alignment)                                                     \
	type name[]

/* Are there the copy engine's bulk copies, and a conversion to E4M3? */
#define HAVE_BULK (__CUDA_ARCH__ >= 900)
#define HAVE_E4M3 (__CUDA_ARCH__ >= 890)

/* Words that ranks hand to each other. */

DEV uint64_t load_relaxed(const uint64_t *word)
{
	uint64_t value;

	asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
	return value;
}

/* Unlike a fence it does not wait for this thread's own stores. */
DEV uint64_t load_acquire(const uint64_t *word)
{
	uint64_t value;

	asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
	return value;
}

DEV uint32_t load_relaxed32(const uint32_t *word)
{
	uint32_t value;

	asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
	return value;
}

DEV void store_release(uint64_t *word, uint64_t value)
{
	asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

/* For the other blocks of this GPU. */
DEV void store_release_device(uint64_t *word, uint64_t value)
{
	asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

/* Behind a fence that covers several flags. */
DEV void store_relaxed(uint64_t *word, uint64_t value)
{
	asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

/*
 * 16 bytes that are written and seen as one. PTX has 128-bit scalars since version 8.3; of older
 * assemblers a vector becomes the same instruction.
 */
DEV uint4 load_whole16(const char *from)
{
	uint4 v;

#if __CUDACC_VER_MAJOR__ > 12 || __CUDACC_VER_MINOR__ >= 3
	uint64_t low, high;

	asm volatile("{.reg .b128 w; ld.relaxed.sys.global.b128 w, [%2]; mov.b128 {%0, %1}, w;}"
		     : "=l"(low), "=l"(high)
		     : "l"(from)
		     : "memory");
	v = {(uint32_t)low, (uint32_t)(low >> 32), (uint32_t)high, (uint32_t)(high >> 32)};
#else
	asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
		     : "l"(from)
		     : "memory");
#endif
	return v;
}

DEV void store_whole16(char *to, uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
#if __CUDACC_VER_MAJOR__ > 12 || __CUDACC_VER_MINOR__ >= 3
	asm volatile("{.reg .b128 v; .reg .b64 a, b; mov.b64 a, {%1, %2}; mov.b64 b, {%3, %4};"
		     " mov.b128 v, {a, b}; st.relaxed.sys.global.b128 [%0], v;}" ::"l"(to),
		     "r"(x), "r"(y), "r"(z), "r"(w)
		     : "memory");
#else
	asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x),
		     "r"(y), "r"(z), "r"(w)
		     : "memory");
#endif
}

/* The count before; release and acquire between the blocks of this GPU. */
DEV uint32_t add_ticket(uint32_t *ticket)
{
	uint32_t before;

	asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
		     : "=r"(before)
		     : "l"(ticket)
		     : "memory");
	return before;
}

DEV uint64_t clock_ns()
{
	uint64_t ns;

	asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
	return ns;
}

/* `threads` of the block's threads meet, whole warps; number 0 is that of __syncthreads(). */
DEV void sync_some(int number, int threads)
{
	asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/* The same; true in all of them if `value` is. */
DEV bool sync_some_and(int number, int threads, bool value)
{
	uint32_t all;

	asm volatile("{.reg .pred p, q; setp.ne.u32 p, %3, 0; bar.red.and.pred q, %1, %2, p;"
		     " selp.u32 %0, 1, 0, q;}"
		     : "=r"(all)
		     : "r"(number), "r"(threads), "r"((uint32_t)value)
		     : "memory");
	return all != 0;
}

/*
 * Programmatic dependent launch: wait until the kernel before this one in the stream has ended and its memory is
 * seen; and let the one behind begin, up to that wait of its own. Not in older code, which is not launched so.
 */
DEV void launch_wait()
{
#if HAVE_BULK
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

DEV void launch_next()
{
#if HAVE_BULK
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Elements. */

DEV float float_of_fp16(uint32_t half)
{
	float value;

	asm("{.reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(value) : "r"(half));
	return value;
}

DEV uint32_t fp16_of_float(float value)
{
	uint32_t half;

	asm("{.reg .b16 h; cvt.rn.f16.f32 h, %1; cvt.u32.u16 %0, h;}" : "=r"(half) : "f"(value));
	return half;
}

/* Two elements in a word, the first in the low half. */
DEV uint32_t bf16x2_of_floats(float low, float high)
{
	uint32_t word;

	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
	return word;
}

#if HAVE_E4M3
/* To nearest even, saturating; a NaN loses its sign. */
DEV uint32_t e4m3x2_of_floats(float low, float high)
{
	uint32_t word;

	asm("{.reg .b16 h; cvt.rn.satfinite.e4m3x2.f32 h, %2, %1; cvt.u32.u16 %0, h;}"
	    : "=r"(word)
	    : "f"(low), "f"(high));
	return word;
}
#endif

/*
 * Of a row that is read once: it need not stay in the SM's cache, which each acquire of another warp
 * empties.
 */
DEV uint4 load_once16(const char *from)
{
	uint4 v;

	asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
		     : "l"(from)
		     : "memory");
	return v;
}

#if HAVE_BULK
/* A barrier of 8 bytes in shared memory, for one thread and the engine's copies. */
DEV void barrier_init(uint32_t barrier)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier));
}

DEV void barrier_end(uint32_t barrier)
{
	asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/* Arrive, and expect so many bytes of copies. */
DEV void barrier_expect(uint32_t barrier, uint32_t bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
		     "r"(bytes)
		     : "memory");
}

/* 1 if the phase of this parity is complete; 0 after a while if it is not. */
DEV uint32_t barrier_try_wait(uint32_t barrier, uint32_t parity)
{
	uint32_t done;

	asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
		     " selp.u32 %0, 1, 0, p;}"
		     : "=r"(done)
		     : "r"(barrier), "r"(parity)
		     : "memory");
	return done;
}

/* The engine copies into shared memory, and tells the barrier. */
DEV void bulk_load(uint32_t to, const char *from, uint32_t bytes, uint32_t barrier)
{
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
		     "[%0], [%1], %2, [%3];" ::"r"(to),
		     "l"(from), "r"(bytes), "r"(barrier)
		     : "memory");
}

/* Out of shared memory, in the group that this thread's next commit ends. */
DEV void bulk_store(char *to, uint32_t from, uint32_t bytes)
{
	asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
		     "r"(from), "r"(bytes)
		     : "memory");
}

DEV void bulk_commit()
{
	asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* At most PENDING of this thread's groups still read shared memory. */
template <int PENDING> DEV void bulk_wait_read()
{
	asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

/* At most PENDING of this thread's groups are not complete. */
template <int PENDING> DEV void bulk_wait_written()
{
	asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Between the engine's accesses and this thread's: of all memory, of shared memory. */
DEV void fence_engine()
{
	asm volatile("fence.proxy.async;" ::: "memory");
}

DEV void fence_engine_shared()
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#endif

#endif
