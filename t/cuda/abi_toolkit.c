/* SPDX-License-Identifier: MIT */
/* The numbers and functions of the CUDA driver as a toolkit's own header declares them. */
#include "config.h"

#include "cuda/driver_calls.h"
#include "t/cuda/abi.h"

#ifdef __has_include
#if __has_include(<cuda.h>)
#include <cuda.h>
#endif
#endif

#ifdef CUDA_VERSION

const int abi_toolkit_version = CUDA_VERSION;

const struct abi_number abi_toolkit[] = {ABI_NUMBERS(ABI_SIZE, ABI_FIELD, ABI_VALUE){NULL, 0}};

/* Parameters are the header's, or this does not compile. */
#define SAME_TYPE(name, symbol, parameters)                                                        \
	_Static_assert(_Generic(&(name), CUresult(CUDAAPI *) parameters : 1, default : 0),         \
		       "the parameters of " #name);
MOEEP_CU_CALLS(SAME_TYPE)

#define TEXT(expanded)			     #expanded
#define SYMBOL_ROW(name, symbol, parameters) {#name, TEXT(name), #symbol},
const struct abi_symbol abi_symbols[] = {MOEEP_CU_CALLS(SYMBOL_ROW){NULL, NULL, NULL}};

#else

const int abi_toolkit_version = 0;
const struct abi_number abi_toolkit[] = {{NULL, 0}};
const struct abi_symbol abi_symbols[] = {{NULL, NULL, NULL}};

#endif
