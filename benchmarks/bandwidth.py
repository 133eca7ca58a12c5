"""How fast this machine reads memory: the yardstick that decode speeds are compared with."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np


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
