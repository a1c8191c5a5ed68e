/* SPDX-License-Identifier: MIT */
/* tools/info_pass.c - device memory from one process to another, as the library passes it. */
#include <config.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "info_pass.h"

#define PATTERN 0x5a

static void note(const struct info_pass *pass, const char *who, const char *what)
{
	snprintf(pass->why, pass->why_size, "the process that %s it: %.200s", who, what);
}

/* False, with the cause noted, if a call of the driver failed. */
static bool worked(const struct info_pass *pass, const struct moeep_cu *cu, CUresult result,
		   const char *who, const char *what)
{
	if (result == CUDA_SUCCESS) {
		return true;
	}
	(void)moeep_cu_fail(cu, result, "%s", what);
	note(pass, who, tool_cu_detail());
	return false;
}

static bool send_descriptor(int socket, int fd, uint64_t bytes)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec data = {&bytes, sizeof(bytes)};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;

	memset(&control, 0, sizeof(control));
	header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	return sendmsg(socket, &message, MSG_NOSIGNAL) == (ssize_t)sizeof(bytes);
}

/* -1 if none came: the giver has said why, or has ended. */
static int receive_descriptor(int socket, uint64_t *bytes)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec data = {bytes, sizeof(*bytes)};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;
	int fd = -1;

	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*bytes)) {
		return -1;
	}
	header = CMSG_FIRSTHDR(&message);
	if (header && header->cmsg_type == SCM_RIGHTS) {
		memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	}
	return fd;
}

/* An address for the memory. It is given back when the process ends, and so is all the rest. */
static bool map(const struct info_pass *pass, const struct moeep_cu *cu, const char *who,
		CUmemGenericAllocationHandle handle, size_t bytes, CUdevice device,
		CUdeviceptr *ptr)
{
	CUmemAccessDesc access = {
		.location = {CU_MEM_LOCATION_TYPE_DEVICE, device},
		.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
	};

	return worked(pass, cu, cu->cuMemAddressReserve(ptr, bytes, 0, 0, 0), who,
		      "cuMemAddressReserve") &&
	       worked(pass, cu, cu->cuMemMap(*ptr, bytes, 0, handle, 0), who, "cuMemMap") &&
	       worked(pass, cu, cu->cuMemSetAccess(*ptr, bytes, &access, 1), who, "cuMemSetAccess");
}

void info_pass_give(const struct info_pass *pass, const struct moeep_cu *cu, CUdevice device)
{
	CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {CU_MEM_LOCATION_TYPE_DEVICE, device},
	};
	static const char who[] = "gives";
	CUmemGenericAllocationHandle handle;
	CUdeviceptr ptr;
	size_t bytes;
	int fd = -1;
	char done;

	if (!worked(pass, cu,
		    cu->cuMemGetAllocationGranularity(&bytes, &prop,
						      CU_MEM_ALLOC_GRANULARITY_MINIMUM),
		    who, "cuMemGetAllocationGranularity") ||
	    !worked(pass, cu, cu->cuMemCreate(&handle, bytes, &prop, 0), who, "cuMemCreate") ||
	    !worked(pass, cu,
		    cu->cuMemExportToShareableHandle(&fd, handle,
						     CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
		    who, "cuMemExportToShareableHandle") ||
	    !map(pass, cu, who, handle, bytes, device, &ptr) ||
	    !worked(pass, cu, cu->cuMemsetD8(ptr, PATTERN, bytes), who, "cuMemsetD8") ||
	    !worked(pass, cu, cu->cuCtxSynchronize(), who, "cuCtxSynchronize")) {
		return;
	}
	if (!send_descriptor(pass->socket, fd, bytes)) {
		note(pass, who, strerror(errno));
		return;
	}
	/* Until the taker has looked. */
	(void)!read(pass->socket, &done, 1);
}

void info_pass_take(const struct info_pass *pass)
{
	static const char who[] = "takes";
	CUmemGenericAllocationHandle handle;
	const struct moeep_cu *cu;
	unsigned char seen = 0;
	CUcontext context;
	CUdevice device;
	CUdeviceptr ptr;
	uint64_t bytes = 0;
	int fd = receive_descriptor(pass->socket, &bytes);

	if (fd < 0) {
		return;
	}
	if (moeep_cu_load(&cu)) {
		note(pass, who, tool_cu_detail());
		return;
	}
	if (!worked(pass, cu, cu->cuDeviceGet(&device, 0), who, "cuDeviceGet") ||
	    !worked(pass, cu, cu->cuDevicePrimaryCtxRetain(&context, device), who,
		    "cuDevicePrimaryCtxRetain") ||
	    !worked(pass, cu, cu->cuCtxSetCurrent(context), who, "cuCtxSetCurrent") ||
	    !worked(pass, cu,
		    cu->cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd,
						       CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
		    who, "cuMemImportFromShareableHandle") ||
	    !map(pass, cu, who, handle, (size_t)bytes, device, &ptr) ||
	    !worked(pass, cu, cu->cuMemcpyDtoH(&seen, ptr + bytes - 1, 1), who, "cuMemcpyDtoH")) {
		return;
	}
	if (seen != PATTERN) {
		note(pass, who, "it does not hold what was written there");
		return;
	}
	pass->why[0] = '\0';
}
