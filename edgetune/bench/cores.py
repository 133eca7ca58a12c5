"""Threads and where they run: the same cores for every process that is measured."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from edgetune.errors import HardwareError
from edgetune.runtime.session import siblings, usable_cores

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What the libraries under torch and numpy read when they load."""


def default_threads() -> int:
    """One for each physical core this process may use."""
    return usable_cores() or os.cpu_count() or 1


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int] | None]:
    """Inside the block this thread, and the processes it starts, run on `threads` cores with as many threads.

    Gives the cores, None where the system pins nothing (macOS, Windows): the number of threads holds there too. Raises
    HardwareError if this process may not use so many.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is not None and threads > len(allowed):
        raise HardwareError(
            f"{threads} threads are asked for, this process may use {len(allowed)} cores", cure="lower --threads"
        )
    chosen = choose_cores(allowed, threads) if allowed is not None else None
    try:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
        if chosen is not None:
            os.sched_setaffinity(0, chosen)
        yield chosen
    finally:
        if allowed is not None:
            os.sched_setaffinity(0, allowed)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def choose_cores(allowed: set[int], threads: int) -> list[int]:
    """`threads` of the allowed processors: one of each physical core first, then their hyper-threads; the last ones,
    as systems serve interrupts on the first.
    """
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for cpu in sorted(allowed, reverse=True):
        core = siblings(cpu)
        (second if core in seen else first).append(cpu)
        seen.add(core)
    return sorted([*first, *second][:threads])
