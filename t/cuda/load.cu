/* SPDX-License-Identifier: MIT */
/* t/cuda/load.cu - keeps its SMs busy for so many nanoseconds; see stress_load.c. */

extern "C" __global__ void __launch_bounds__(1024, 1) stress_load_kernel(unsigned long long ns)
{
	extern __shared__ float words[];
	unsigned long long start, now;
	float value = (float)threadIdx.x;

	asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
	do {
		for (int i = 0; i < 64; i++) {
			value = value * 1.0001f + 1.0f;
		}
		words[threadIdx.x] = value;
		asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
	} while (now - start < ns);
}
