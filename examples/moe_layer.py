#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The forward pass of a Mixture-of-Experts layer through ctypes.

The library is plain C, so that a program in Python needs no extension module, and the standard
library is enough. Two ranks run as threads: ctypes lets other threads run during a call. A real
program would pass the addresses of its tensors (tensor.data_ptr()) where this one passes arrays.

The library is libmoeep.so.0, or what LIBMOEEP says.
"""

import array
import ctypes
import math
import os
import random
import sys
import threading
from ctypes import c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p

RANKS, EXPERTS, TOPK, HIDDEN, MAX_TOKENS = 2, 5, 2, 16, 12
CAPACITY = RANKS * MAX_TOKENS * TOPK

# From the headers.
MOEEP_BACKEND_HOST = 1
MOEEP_MODE_HT = 1
MOEEP_FP32 = 3
MOEEP_ROWS_EXPERT_MAJOR = 2
MOEEP_COMBINE_WEIGHTED = 1


class Sized(ctypes.Structure):
    """A structure whose first field is its size; what is not given is zero, its default.

    The fields may end early: the library gives defaults to those that a caller does not know.
    """

    def __init__(self, **fields):
        super().__init__(size=ctypes.sizeof(type(self)), **fields)


class UniqueId(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 128)]


class CommConfig(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("id", ctypes.POINTER(UniqueId)),
        ("bootstrap", c_void_p),
        ("backend", c_int32),
        ("device_plus_one", c_int32),
        ("timeout_ms", c_uint32),
        ("flags", c_uint32),
        ("host_id", c_char_p),
    ]


class BufferConfig(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("modes", c_uint32),
        ("num_experts", c_int32),
        ("max_topk", c_int32),
        ("dtype", c_int32),
        ("hidden", c_int64),
        ("ht_max_tokens", c_int64),
    ]


class DispatchArgs(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("flags", c_uint32),
        ("dtype", c_int32),
        ("num_tokens", c_int64),
        ("x", c_void_p),
        ("scales", c_void_p),
        ("scale_count", c_int32),
        ("scale_dtype", c_int32),
        ("scale_layout", c_int32),
        ("topk", c_int32),
        ("scale_stride", c_int64),
        ("topk_idx", c_void_p),
        ("topk_weights", c_void_p),
        ("topk_dtype", c_int32),
        ("row_layout", c_int32),
        ("expert_alignment", c_int32),
        ("recv_scale_layout", c_int32),
        ("recv_scale_stride", c_int64),
        ("capacity", c_int64),
        ("recv_x", c_void_p),
        ("recv_scales", c_void_p),
        ("recv_topk_idx", c_void_p),
        ("recv_topk_weights", c_void_p),
        ("recv_src_token", c_void_p),
        ("recv_src_rank", c_void_p),
        ("recv_expert", c_void_p),
        ("num_recv", c_void_p),
        ("recv_per_expert", c_void_p),
        ("recv_per_expert_padded", c_void_p),
        ("recv_expert_offsets", c_void_p),
    ]


class CombineArgs(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("flags", c_uint32),
        ("dtype", c_int32),
        ("x", c_void_p),
        ("topk_weights", c_void_p),
        ("out", c_void_p),
    ]


moeep = ctypes.CDLL(os.environ.get("LIBMOEEP", "libmoeep.so.0"))
moeep.moeep_strerror.restype = c_char_p
moeep.moeep_error_detail.restype = c_char_p


def call(function, *args):
    """Call a function of the library; a result other than MOEEP_OK becomes an exception."""
    result = getattr(moeep, function)(*args)
    if result != 0:
        text = moeep.moeep_strerror(result).decode()
        raise RuntimeError(f"{function}: {text}: {moeep.moeep_error_detail().decode()}")


def aligned(count):
    """Room for `count` floats that starts at a multiple of 16 bytes, as rows must."""
    raw = (c_float * (count + 4))()
    start = -ctypes.addressof(raw) % 16
    return (c_float * count).from_buffer(raw, start)


def gate(x, matrix):
    """The TOPK experts with the highest scores, and the scores as their weights."""
    scores = [math.exp(sum(a * b for a, b in zip(x, column))) for column in matrix]
    total = sum(scores)
    best = sorted(range(EXPERTS), key=lambda e: -scores[e])[:TOPK]
    return best, [scores[e] / total for e in best]


def expert(x, matrix):
    return [math.tanh(sum(a * b for a, b in zip(x, column))) for column in matrix]


def run_rank(rank, unique_id, tokens, gate_matrix, expert_matrices, results):
    comm, buffer, handle = c_void_p(), c_void_p(), c_void_p()
    first, local = ctypes.c_int(), ctypes.c_int()
    # Left open, the backend would be a GPU where there is one; these arrays are the host's.
    comm_config = CommConfig(id=ctypes.pointer(unique_id), backend=MOEEP_BACKEND_HOST)
    call("moeep_comm_create", rank, RANKS, ctypes.byref(comm_config), ctypes.byref(comm))
    config = BufferConfig(modes=MOEEP_MODE_HT, num_experts=EXPERTS, max_topk=TOPK,
                          dtype=MOEEP_FP32, hidden=HIDDEN, ht_max_tokens=MAX_TOKENS)
    call("moeep_buffer_create", comm, ctypes.byref(config), ctypes.byref(buffer))
    call("moeep_handle_create", buffer, None, ctypes.byref(handle))
    call("moeep_expert_range", EXPERTS, RANKS, rank, ctypes.byref(first), ctypes.byref(local))

    count = len(tokens)
    x = aligned(count * HIDDEN)
    topk_idx, topk_weights = array.array("q"), array.array("f")
    for t, token in enumerate(tokens):
        x[t * HIDDEN:(t + 1) * HIDDEN] = token
        choices, weights = gate(token, gate_matrix)
        topk_idx.extend(choices)
        topk_weights.extend(weights)

    rows = aligned(CAPACITY * HIDDEN)
    offsets = array.array("i", [0] * (local.value + 1))
    call("moeep_dispatch", buffer, handle, ctypes.byref(DispatchArgs(
        dtype=MOEEP_FP32,
        num_tokens=count,
        x=ctypes.addressof(x),
        topk_idx=topk_idx.buffer_info()[0],
        topk_weights=topk_weights.buffer_info()[0],
        row_layout=MOEEP_ROWS_EXPERT_MAJOR,
        capacity=CAPACITY,
        recv_x=ctypes.addressof(rows),
        recv_expert_offsets=offsets.buffer_info()[0])), None)

    for e in range(local.value):
        for i in range(offsets[e], offsets[e + 1]):
            row = slice(i * HIDDEN, (i + 1) * HIDDEN)
            rows[row] = expert(rows[row], expert_matrices[first.value + e])

    out = aligned(count * HIDDEN)
    call("moeep_combine", buffer, handle, ctypes.byref(CombineArgs(
        flags=MOEEP_COMBINE_WEIGHTED,
        dtype=MOEEP_FP32,
        x=ctypes.addressof(rows),
        out=ctypes.addressof(out))), None)
    results[rank] = (list(out), offsets[local.value])

    call("moeep_handle_destroy", handle)
    call("moeep_buffer_destroy", buffer)
    call("moeep_comm_destroy", comm)


def main():
    random.seed(1)
    # A rank that fails ends the program; the other one would wait for it until the time-out.
    threading.excepthook = lambda args: (sys.__excepthook__(*args[:3]), os._exit(1))

    def vector(scale=1.0):
        return [random.uniform(-scale, scale) for _ in range(HIDDEN)]

    gate_matrix = [vector(0.5) for _ in range(EXPERTS)]
    expert_matrices = [[vector(0.25) for _ in range(HIDDEN)] for _ in range(EXPERTS)]
    tokens = [[vector() for _ in range(MAX_TOKENS - 5 * rank)] for rank in range(RANKS)]

    unique_id, rendezvous = UniqueId(), c_void_p()
    call("moeep_rendezvous_create", None, ctypes.byref(rendezvous), ctypes.byref(unique_id))
    results = [None] * RANKS
    threads = [threading.Thread(target=run_rank, args=(rank, unique_id, tokens[rank], gate_matrix,
                                                       expert_matrices, results))
               for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    call("moeep_rendezvous_destroy", rendezvous)
    if None in results:
        return 1

    # The same layer without the library.
    worst = 0.0
    for rank in range(RANKS):
        for t, token in enumerate(tokens[rank]):
            out = [0.0] * HIDDEN
            for choice, weight in zip(*gate(token, gate_matrix)):
                for h, y in enumerate(expert(token, expert_matrices[choice])):
                    out[h] += weight * y
            got = results[rank][0][t * HIDDEN:(t + 1) * HIDDEN]
            worst = max([worst] + [abs(a - b) if a == a else math.inf for a, b in zip(got, out)])
    good = worst < 1e-5
    print(f"{RANKS} ranks, {EXPERTS} experts, {sum(map(len, tokens))} tokens, "
          f"{sum(result[1] for result in results)} rows")
    print(f"largest difference from the dense layer: {worst:.1e}: {'good' if good else 'WRONG'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
