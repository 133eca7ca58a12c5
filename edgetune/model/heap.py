"""The C library's heap, which keeps what tensors on the CPU have freed."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed() -> None:
    """Return freed heap to the system where the C library can (glibc); elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
