"""The C library's heap, which keeps what tensors on the CPU have freed."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

MMAP_THRESHOLD = -3
"""mallopt's M_MMAP_THRESHOLD (malloc.h of glibc)."""
LEAN_BYTES, USUAL_BYTES = 128 * 1024, 32 * 1024**2
"""From when on blocks are the system's own and go back once freed; glibc's default grows to the second."""


def give_back_freed() -> None:
    """Return freed heap to the system where the C library can (glibc); elsewhere nothing happens."""
    trim = _of_glibc("malloc_trim")  # musl has none
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def lean_heap(is_wanted: bool = True) -> Iterator[None]:
    """While the block runs, freed tensors of 128 KiB and more go back to the system at once (glibc).

    A checkpointed training makes and frees each layer's tensors again: kept in the heap, their blocks do not fit the
    next layer's, and the peak grows to about that without checkpointing. It costs the page faults of new blocks.
    """
    mallopt = _of_glibc("mallopt") if is_wanted else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, LEAN_BYTES)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, USUAL_BYTES)


def _of_glibc(name: str) -> ctypes._NamedFuncPointer | None:
    """A function of the C library, None where it has no such or the system is not Linux."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
