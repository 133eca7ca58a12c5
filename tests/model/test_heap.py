"""The C library's heap: what it gives back, and when."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

IS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")

FREE_EVERY_OTHER = """
import os
import torch
from edgetune.model.heap import lean_heap
from edgetune.process_memory import resident_bytes

MIB = 1024**2
is_lean = os.fork() == 0  # a process for each way, of one import, one after the other
if not is_lean:
    os.wait()
del [torch.ones(31 * MIB, dtype=torch.uint8)][0]  # glibc's threshold grows to it
with lean_heap(is_lean):
    blocks = [torch.ones(2 * MIB, dtype=torch.uint8) for _ in range(60)]
    before = resident_bytes()
    del blocks[::2]
    print(is_lean, round((before - resident_bytes()) / MIB), flush=True)
"""


def freed_mib() -> dict[str, int]:
    """MiB that leave a process which frees 30 of 60 blocks of 2 MiB, by whether its heap is lean."""
    done = subprocess.run([sys.executable, "-c", FREE_EVERY_OTHER], capture_output=True, text=True, check=True)
    return {is_lean: int(mib) for is_lean, mib in (line.split() for line in done.stdout.splitlines())}


@pytest.mark.skipif(not IS_GLIBC, reason="only glibc's heap is asked")
def test_freed_tensors_go_back_at_once_while_the_heap_is_lean() -> None:
    freed = freed_mib()
    assert freed["True"] >= 55
    assert freed["False"] <= 10
