/* SPDX-License-Identifier: MIT */
/*
 * cuda/driver_calls.h - the functions of the CUDA driver that the library calls, one a line:
 *
 *	CALL(name, symbol, (parameters))
 *
 * name is what CUDA's header calls it, and the member of struct moeep_cu. symbol is what the
 * driver exports; a changed function gets a new symbol there, and the old one stays. Each symbol
 * here is one that driver 12.0 has. The list is also read beside CUDA's own header by t/cuda/abi,
 * so it uses CUDA's types and nothing else.
 */

/* clang-format off */
#define MOEEP_CU_CALLS(CALL) \
	/* The driver and its devices. */ \
	CALL(cuInit, cuInit, (unsigned int flags)) \
	CALL(cuDriverGetVersion, cuDriverGetVersion, (int *version)) \
	CALL(cuGetErrorName, cuGetErrorName, (CUresult error, const char **text)) \
	CALL(cuGetErrorString, cuGetErrorString, (CUresult error, const char **text)) \
	CALL(cuDeviceGetCount, cuDeviceGetCount, (int *count)) \
	CALL(cuDeviceGet, cuDeviceGet, (CUdevice *device, int ordinal)) \
	CALL(cuDeviceGetName, cuDeviceGetName, (char *name, int size, CUdevice device)) \
	CALL(cuDeviceGetUuid, cuDeviceGetUuid_v2, (CUuuid *uuid, CUdevice device)) \
	CALL(cuDeviceGetPCIBusId, cuDeviceGetPCIBusId, (char *id, int size, CUdevice device)) \
	CALL(cuDeviceGetAttribute, cuDeviceGetAttribute, \
	     (int *value, CUdevice_attribute attribute, CUdevice device)) \
	CALL(cuDeviceTotalMem, cuDeviceTotalMem_v2, (size_t *bytes, CUdevice device)) \
	CALL(cuDeviceCanAccessPeer, cuDeviceCanAccessPeer, \
	     (int *can, CUdevice device, CUdevice peer)) \
	CALL(cuDeviceGetP2PAttribute, cuDeviceGetP2PAttribute, \
	     (int *value, CUdevice_P2PAttribute attribute, CUdevice device, CUdevice peer)) \
	/* Contexts. */ \
	CALL(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, \
	     (CUcontext *context, CUdevice device)) \
	CALL(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease_v2, (CUdevice device)) \
	CALL(cuCtxGetCurrent, cuCtxGetCurrent, (CUcontext *context)) \
	CALL(cuCtxSetCurrent, cuCtxSetCurrent, (CUcontext context)) \
	CALL(cuCtxPushCurrent, cuCtxPushCurrent_v2, (CUcontext context)) \
	CALL(cuCtxPopCurrent, cuCtxPopCurrent_v2, (CUcontext *context)) \
	CALL(cuCtxGetDevice, cuCtxGetDevice, (CUdevice *device)) \
	CALL(cuCtxGetStreamPriorityRange, cuCtxGetStreamPriorityRange, \
	     (int *least, int *greatest)) \
	CALL(cuCtxSynchronize, cuCtxSynchronize, (void)) \
	CALL(cuCtxEnablePeerAccess, cuCtxEnablePeerAccess, \
	     (CUcontext peer, unsigned int flags)) \
	/* Kernels. */ \
	CALL(cuModuleLoadData, cuModuleLoadData, (CUmodule *module, const void *image)) \
	CALL(cuModuleLoadDataEx, cuModuleLoadDataEx, \
	     (CUmodule *module, const void *image, unsigned int num_options, \
	      CUjit_option *options, void **values)) \
	CALL(cuModuleUnload, cuModuleUnload, (CUmodule module)) \
	CALL(cuModuleGetFunction, cuModuleGetFunction, \
	     (CUfunction *function, CUmodule module, const char *name)) \
	CALL(cuFuncGetAttribute, cuFuncGetAttribute, \
	     (int *value, CUfunction_attribute attribute, CUfunction function)) \
	CALL(cuFuncSetAttribute, cuFuncSetAttribute, \
	     (CUfunction function, CUfunction_attribute attribute, int value)) \
	CALL(cuOccupancyMaxActiveBlocksPerMultiprocessor, \
	     cuOccupancyMaxActiveBlocksPerMultiprocessor, \
	     (int *num_blocks, CUfunction function, int block_size, size_t shared_bytes)) \
	CALL(cuLaunchKernel, cuLaunchKernel, \
	     (CUfunction function, unsigned int grid_x, unsigned int grid_y, \
	      unsigned int grid_z, unsigned int block_x, unsigned int block_y, \
	      unsigned int block_z, unsigned int shared_bytes, CUstream stream, \
	      void **params, void **extra)) \
	CALL(cuLaunchKernelEx, cuLaunchKernelEx, \
	     (const CUlaunchConfig *config, CUfunction function, void **params, void **extra)) \
	CALL(cuLaunchHostFunc, cuLaunchHostFunc, (CUstream stream, CUhostFn fn, void *data)) \
	/* Streams, graphs and events. */ \
	CALL(cuStreamCreate, cuStreamCreate, (CUstream *stream, unsigned int flags)) \
	CALL(cuStreamCreateWithPriority, cuStreamCreateWithPriority, \
	     (CUstream *stream, unsigned int flags, int priority)) \
	CALL(cuStreamDestroy, cuStreamDestroy_v2, (CUstream stream)) \
	CALL(cuStreamSynchronize, cuStreamSynchronize, (CUstream stream)) \
	CALL(cuStreamQuery, cuStreamQuery, (CUstream stream)) \
	CALL(cuStreamWaitEvent, cuStreamWaitEvent, \
	     (CUstream stream, CUevent event, unsigned int flags)) \
	CALL(cuStreamIsCapturing, cuStreamIsCapturing, \
	     (CUstream stream, CUstreamCaptureStatus *status)) \
	CALL(cuStreamBeginCapture, cuStreamBeginCapture_v2, \
	     (CUstream stream, CUstreamCaptureMode mode)) \
	CALL(cuStreamEndCapture, cuStreamEndCapture, (CUstream stream, CUgraph *graph)) \
	CALL(cuThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode, \
	     (CUstreamCaptureMode *mode)) \
	CALL(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags, \
	     (CUgraphExec *exec, CUgraph graph, unsigned long long flags)) \
	CALL(cuGraphLaunch, cuGraphLaunch, (CUgraphExec exec, CUstream stream)) \
	CALL(cuGraphExecDestroy, cuGraphExecDestroy, (CUgraphExec exec)) \
	CALL(cuGraphDestroy, cuGraphDestroy, (CUgraph graph)) \
	CALL(cuEventCreate, cuEventCreate, (CUevent *event, unsigned int flags)) \
	CALL(cuEventDestroy, cuEventDestroy_v2, (CUevent event)) \
	CALL(cuEventRecord, cuEventRecord, (CUevent event, CUstream stream)) \
	CALL(cuEventQuery, cuEventQuery, (CUevent event)) \
	CALL(cuEventSynchronize, cuEventSynchronize, (CUevent event)) \
	CALL(cuEventElapsedTime, cuEventElapsedTime, (float *ms, CUevent start, CUevent end)) \
	/* Memory: allocation, copies, and what a pointer is. */ \
	CALL(cuMemAlloc, cuMemAlloc_v2, (CUdeviceptr *ptr, size_t bytes)) \
	CALL(cuMemFree, cuMemFree_v2, (CUdeviceptr ptr)) \
	CALL(cuMemAllocAsync, cuMemAllocAsync, \
	     (CUdeviceptr *ptr, size_t bytes, CUstream stream)) \
	CALL(cuMemFreeAsync, cuMemFreeAsync, (CUdeviceptr ptr, CUstream stream)) \
	CALL(cuMemGetInfo, cuMemGetInfo_v2, (size_t *free_bytes, size_t *total_bytes)) \
	CALL(cuMemGetAddressRange, cuMemGetAddressRange_v2, \
	     (CUdeviceptr *base, size_t *bytes, CUdeviceptr ptr)) \
	CALL(cuMemHostAlloc, cuMemHostAlloc, (void **ptr, size_t bytes, unsigned int flags)) \
	CALL(cuMemFreeHost, cuMemFreeHost, (void *ptr)) \
	CALL(cuMemHostRegister, cuMemHostRegister_v2, \
	     (void *ptr, size_t bytes, unsigned int flags)) \
	CALL(cuMemHostUnregister, cuMemHostUnregister, (void *ptr)) \
	CALL(cuMemHostGetDevicePointer, cuMemHostGetDevicePointer_v2, \
	     (CUdeviceptr *device_ptr, void *ptr, unsigned int flags)) \
	CALL(cuMemcpy, cuMemcpy, (CUdeviceptr dst, CUdeviceptr src, size_t bytes)) \
	CALL(cuMemcpyAsync, cuMemcpyAsync, \
	     (CUdeviceptr dst, CUdeviceptr src, size_t bytes, CUstream stream)) \
	CALL(cuMemcpyHtoD, cuMemcpyHtoD_v2, (CUdeviceptr dst, const void *src, size_t bytes)) \
	CALL(cuMemcpyDtoH, cuMemcpyDtoH_v2, (void *dst, CUdeviceptr src, size_t bytes)) \
	CALL(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2, \
	     (CUdeviceptr dst, const void *src, size_t bytes, CUstream stream)) \
	CALL(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2, \
	     (void *dst, CUdeviceptr src, size_t bytes, CUstream stream)) \
	CALL(cuMemsetD8, cuMemsetD8_v2, (CUdeviceptr dst, unsigned char value, size_t count)) \
	CALL(cuMemsetD8Async, cuMemsetD8Async, \
	     (CUdeviceptr dst, unsigned char value, size_t count, CUstream stream)) \
	CALL(cuMemsetD32Async, cuMemsetD32Async, \
	     (CUdeviceptr dst, unsigned int value, size_t count, CUstream stream)) \
	CALL(cuPointerGetAttribute, cuPointerGetAttribute, \
	     (void *value, CUpointer_attribute attribute, CUdeviceptr ptr)) \
	CALL(cuPointerGetAttributes, cuPointerGetAttributes, \
	     (unsigned int count, CUpointer_attribute *attributes, void **values, \
	      CUdeviceptr ptr)) \
	/* Memory that processes share: by mapping of handles, and the older way. */ \
	CALL(cuMemCreate, cuMemCreate, \
	     (CUmemGenericAllocationHandle *handle, size_t bytes, \
	      const CUmemAllocationProp *prop, unsigned long long flags)) \
	CALL(cuMemRelease, cuMemRelease, (CUmemGenericAllocationHandle handle)) \
	CALL(cuMemRetainAllocationHandle, cuMemRetainAllocationHandle, \
	     (CUmemGenericAllocationHandle *handle, void *ptr)) \
	CALL(cuMemGetAllocationGranularity, cuMemGetAllocationGranularity, \
	     (size_t *bytes, const CUmemAllocationProp *prop, \
	      CUmemAllocationGranularity_flags option)) \
	CALL(cuMemAddressReserve, cuMemAddressReserve, \
	     (CUdeviceptr *ptr, size_t bytes, size_t alignment, CUdeviceptr wanted, \
	      unsigned long long flags)) \
	CALL(cuMemAddressFree, cuMemAddressFree, (CUdeviceptr ptr, size_t bytes)) \
	CALL(cuMemMap, cuMemMap, \
	     (CUdeviceptr ptr, size_t bytes, size_t offset, \
	      CUmemGenericAllocationHandle handle, unsigned long long flags)) \
	CALL(cuMemUnmap, cuMemUnmap, (CUdeviceptr ptr, size_t bytes)) \
	CALL(cuMemSetAccess, cuMemSetAccess, \
	     (CUdeviceptr ptr, size_t bytes, const CUmemAccessDesc *desc, size_t count)) \
	CALL(cuMemExportToShareableHandle, cuMemExportToShareableHandle, \
	     (void *shareable, CUmemGenericAllocationHandle handle, \
	      CUmemAllocationHandleType type, unsigned long long flags)) \
	CALL(cuMemImportFromShareableHandle, cuMemImportFromShareableHandle, \
	     (CUmemGenericAllocationHandle *handle, void *shareable, \
	      CUmemAllocationHandleType type)) \
	CALL(cuIpcGetMemHandle, cuIpcGetMemHandle, (CUipcMemHandle *handle, CUdeviceptr ptr)) \
	CALL(cuIpcOpenMemHandle, cuIpcOpenMemHandle_v2, \
	     (CUdeviceptr *ptr, CUipcMemHandle handle, unsigned int flags)) \
	CALL(cuIpcCloseMemHandle, cuIpcCloseMemHandle, (CUdeviceptr ptr))
/* clang-format on */
