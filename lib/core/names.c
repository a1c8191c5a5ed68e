/* SPDX-License-Identifier: MIT */
/* core/names.c - texts and sizes for the enumerations of the API. */
#include "config.h"

#include <moeep/moeep.h>

/*
 * Switches without a default, so that the compiler names an enumerator that was forgotten. Values
 * from outside the enumeration leave the switch.
 */

const char *moeep_strerror(int result)
{
	switch ((moeep_result_t)result) {
	case MOEEP_OK:
		return "success";
	case MOEEP_ERR_INVALID:
		return "invalid argument";
	case MOEEP_ERR_NOMEM:
		return "out of memory";
	case MOEEP_ERR_SYSTEM:
		return "system call failed";
	case MOEEP_ERR_TIMEOUT:
		return "timed out waiting for a peer";
	case MOEEP_ERR_PEER_LOST:
		return "a peer was lost";
	case MOEEP_ERR_ABORTED:
		return "aborted by a rank of the group";
	case MOEEP_ERR_CAPACITY:
		return "rows did not fit";
	case MOEEP_ERR_MISMATCH:
		return "ranks passed arguments that do not go together";
	case MOEEP_ERR_UNSUPPORTED:
		return "not supported here";
	case MOEEP_ERR_STATE:
		return "call does not fit the object's state";
	case MOEEP_ERR_NOT_READY:
		return "not complete yet";
	case MOEEP_ERR_RENDEZVOUS:
		return "ranks could not meet";
	case MOEEP_ERR_NETWORK:
		return "the network between hosts failed";
	}
	return "unknown result";
}

size_t moeep_dtype_size(int dtype)
{
	switch ((moeep_dtype_t)dtype) {
	case MOEEP_DTYPE_DEFAULT:
		return 0;
	case MOEEP_FP8_E4M3:
	case MOEEP_FP8_E5M2:
	case MOEEP_INT8:
	case MOEEP_UE8M0:
		return 1;
	case MOEEP_BF16:
	case MOEEP_FP16:
		return 2;
	case MOEEP_FP32:
	case MOEEP_INT32:
		return 4;
	case MOEEP_INT64:
		return 8;
	}
	return 0;
}

const char *moeep_dtype_name(int dtype)
{
	switch ((moeep_dtype_t)dtype) {
	case MOEEP_DTYPE_DEFAULT:
		return "default";
	case MOEEP_BF16:
		return "bf16";
	case MOEEP_FP16:
		return "fp16";
	case MOEEP_FP32:
		return "fp32";
	case MOEEP_FP8_E4M3:
		return "fp8_e4m3";
	case MOEEP_FP8_E5M2:
		return "fp8_e5m2";
	case MOEEP_INT8:
		return "int8";
	case MOEEP_UE8M0:
		return "ue8m0";
	case MOEEP_INT32:
		return "int32";
	case MOEEP_INT64:
		return "int64";
	}
	return "unknown";
}

const char *moeep_op_name(int op)
{
	switch ((moeep_op_t)op) {
	case MOEEP_OP_NONE:
		return "none";
	case MOEEP_OP_COMM_CREATE:
		return "comm_create";
	case MOEEP_OP_BUFFER_CREATE:
		return "buffer_create";
	case MOEEP_OP_MEMORY:
		return "memory";
	case MOEEP_OP_BARRIER:
		return "barrier";
	case MOEEP_OP_DISPATCH:
		return "dispatch";
	case MOEEP_OP_COMBINE:
		return "combine";
	case MOEEP_OP_LL_DISPATCH_SEND:
		return "ll_dispatch_send";
	case MOEEP_OP_LL_DISPATCH_RECV:
		return "ll_dispatch_recv";
	case MOEEP_OP_LL_COMBINE_SEND:
		return "ll_combine_send";
	case MOEEP_OP_LL_COMBINE_RECV:
		return "ll_combine_recv";
	}
	return "unknown";
}

const char *moeep_transport_name(int transport)
{
	switch ((moeep_transport_t)transport) {
	case MOEEP_TRANSPORT_NONE:
		return "none";
	case MOEEP_TRANSPORT_SELF:
		return "self";
	case MOEEP_TRANSPORT_PROCESS:
		return "process";
	case MOEEP_TRANSPORT_SHM:
		return "shm";
	case MOEEP_TRANSPORT_CUDA:
		return "cuda";
	case MOEEP_TRANSPORT_PROXY:
		return "proxy";
	case MOEEP_TRANSPORT_IBGDA:
		return "ibgda";
	}
	return "unknown";
}
