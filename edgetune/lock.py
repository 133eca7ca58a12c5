"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from edgetune.errors import RunError
from edgetune.run_dir import RunDir


@contextlib.contextmanager
def only_process(run_dir: RunDir) -> Iterator[None]:
    """Inside the block no other process works in the run folder. Raises RunError if one does already.

    The lock is on the folder itself and goes with its process, however that ends. Where the system or the file system
    has no such lock (Windows, some network disks) nothing is checked.
    """
    run_dir.create()
    folder = None
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder = os.open(run_dir.path, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{run_dir.path}: another process is at work in it",
                    cure="wait for it or stop it, or choose another folder with --out",
                ) from None
        yield
    finally:
        if folder is not None:
            os.close(folder)
