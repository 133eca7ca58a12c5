"""What this machine has and how fast it is: memory, reading it, multiplying matrices."""

from __future__ import annotations

import contextlib
import statistics
import time
import typing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

if typing.TYPE_CHECKING:
    import torch

MULTIPLIED = 1024
"""Rows and columns of the matrices that are multiplied to measure a rate."""


def machine_bytes() -> int:
    """Memory of this machine, or of the container it is, whichever is less."""
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int(file.read_text(encoding="ascii")))
    return min(limits)


def multiply_flops_per_s(dtype: torch.dtype, on: torch.device, *, seconds: float = 0.3) -> float:
    """Floating-point operations a second, 2 n^3 of a product of n x n matrices in `dtype`: the median of several."""
    import torch  # here, because what is measured of a bundle is measured without it

    left, right = (torch.ones(MULTIPLIED, MULTIPLIED, dtype=dtype, device=on) for _ in range(2))
    rates: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        left @ right
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        rates.append(2 * MULTIPLIED**3 / (time.perf_counter() - start_s))
    return statistics.median(rates)


def read_bandwidth_bytes_per_s(threads: int, *, mib_per_thread: int = 256, rounds: int = 7) -> dict[str, float]:
    """Bytes a second that `threads` threads read together: the sum of a float32 array far larger than the caches.

    Decoding reads every weight once a token and writes next to nothing, so a read-only probe is the fair bound
    (STREAM's kernels also write). Returns median and best of the rounds.
    """
    arrays = [np.ones(mib_per_thread * 2**18, dtype=np.float32) for _ in range(threads)]
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_read, arrays))
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(_read, arrays))
            rates.append(sum(array.nbytes for array in arrays) / (time.perf_counter() - start))
    return {"median": statistics.median(rates), "best": max(rates)}


def _read(array: np.ndarray) -> float:
    """Touch every byte with little arithmetic; numpy releases the lock and max() runs vectorised."""
    return float(array.max())
