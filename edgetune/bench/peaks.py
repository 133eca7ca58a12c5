"""What a machine can do at best: the bounds that a measured speed is held against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edgetune.model.machine import read_bandwidth_bytes_per_s

SIZE = 1024
"""Rows and columns of the matrices that are multiplied on a processor."""
CUDA_SIZE = 8192
CUDA_BYTES = 1 << 30


def cpu_peaks(threads: int, *, mib_per_thread: int = 256, rounds: int = 7) -> dict[str, Any]:
    """Bytes that `threads` threads read a second from memory, as STREAM does without writing, and float32 operations a
    second in numpy's matrix product.

    Decoding reads every weight once a token; a prefill multiplies. The best of several rounds is the bound, the median
    says how noisy the machine is. Bundles multiply in int8, which some processors do faster than float32: their share
    of this peak may exceed 1.
    """
    bandwidth = read_bandwidth_bytes_per_s(threads, mib_per_thread=mib_per_thread, rounds=rounds)
    left, right = (np.ones((SIZE, SIZE), np.float32) for _ in range(2))
    return {
        "device": "cpu",
        "bytes_per_s": bandwidth,
        "flops_per_s": _rates(lambda: left @ right, 2.0 * SIZE**3, rounds),
        "flops_dtype": "float32",
    }


def cuda_peaks(*, rounds: int = 7) -> dict[str, Any]:
    """Bytes a second that a GPU copies, read and written together, and bfloat16 operations a second."""
    import torch

    left, right = (torch.ones(CUDA_SIZE, CUDA_SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    source, goal = (torch.ones(CUDA_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))

    def finished(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: (call(), torch.cuda.synchronize())

    return {
        "device": "cuda",
        "bytes_per_s": _rates(finished(lambda: goal.copy_(source)), 2.0 * CUDA_BYTES, rounds),
        "flops_per_s": _rates(finished(lambda: left @ right), 2.0 * CUDA_SIZE**3, rounds),
        "flops_dtype": "bfloat16",
    }


def _rates(call: Callable[[], Any], amount: float, rounds: int) -> dict[str, float]:
    """Median and best of `amount` a second, after a warm-up."""
    call()
    rates = []
    for _ in range(rounds):
        start_s = time.perf_counter()
        call()
        rates.append(amount / (time.perf_counter() - start_s))
    return {"median": statistics.median(rates), "best": max(rates)}
