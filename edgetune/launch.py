"""Which of a run's processes this one is, as torchrun, `accelerate launch` and MPI tell it in the environment.

Standard library only: the command line asks before torch is loaded. How processes talk is in train/processes.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
LOCAL_COUNT = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
"""Names of variables, of which the first that is set counts: torch's, Intel's or MPICH's, Open MPI's, MVAPICH's."""


@dataclass(frozen=True)
class Launch:
    """The place of a process among those that were started together; alone where no launcher started it."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Among those on this machine."""
    local_count: int = 1
    """How many share this machine's memory."""

    @property
    def is_main(self) -> bool:
        """Whether this one writes the run folder and speaks for all."""
        return self.rank == 0


def launched(environment: Mapping[str, str] = os.environ) -> Launch:
    """How this process was launched. Numbers that make no sense, as of a stale variable, count as none."""
    count = _number(environment, COUNT, 1)
    rank = _number(environment, RANK, 0)
    if count < 2 or rank >= count:
        return Launch()
    local_rank = _number(environment, LOCAL_RANK, 0)
    return Launch(rank, count, local_rank, max(1, _number(environment, LOCAL_COUNT, local_rank + 1)))


def _number(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    value = next((environment[name] for name in names if name in environment), "")
    return int(value) if value.isdecimal() else default
