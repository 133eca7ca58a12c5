"""What the verbs that several processes run together do around their work; the others are the main process's alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgetune.launch import COUNT, LOCAL_COUNT, LOCAL_RANK, RANK, launched

if TYPE_CHECKING:
    from edgetune.run_dir import RunDir

VERBS = ("run", "train")
"""In which the processes of a launcher all take part."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes of the launcher, if one started this process: see train/processes.py."""
    if launched().count == 1:  # without torch, which the verb may find missing later, and say so
        yield
        return
    from edgetune.train.processes import together as joined

    with joined():
        yield


@contextlib.contextmanager
def only_main(run_dir: RunDir) -> Iterator[None]:
    """The run folder's lock, taken by the main process for all."""
    from edgetune.lock import only_process

    with only_process(run_dir) if launched().is_main else contextlib.nullcontext():
        yield


def is_left_to_main(verb: str) -> bool:
    """Whether this process has nothing to do in a verb. The main one is alone in it, and forgets the others."""
    if verb in VERBS or launched().count == 1:
        return False
    is_main = launched().is_main
    for name in (*RANK, *COUNT, *LOCAL_RANK, *LOCAL_COUNT):
        os.environ.pop(name, None)
    return not is_main
