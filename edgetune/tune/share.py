"""What a member of a population takes of the machines it may train on; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

MOST_CORES = 1.0
"""That a member on a GPU asks for, unless it is to keep others away."""


def member_share(machines: Sequence[Mapping[str, float]], workers: int | None) -> dict[str, float]:
    """{"CPU": ..., "GPU": ...} for each member, so that `workers` of them train at the same time.

    `machines` say how many "CPU" and "GPU" each has. Where there are GPUs each member takes one, or an even part of
    one where there are fewer than workers; else its part of the cores. Without workers: as many as there are GPUs, or
    machines. A member keeps to one machine and takes whole cores if more than one, so that there may be room for some
    more than asked.
    """
    gpus = [machine.get("GPU", 0.0) for machine in machines]
    gpu = 1.0 if not workers or workers <= sum(gpus) or not any(gpus) else 1 / math.ceil(workers / sum(gpus))
    places = [int(count / gpu + 1e-9) if any(gpus) else None for count in gpus]
    wanted = workers or sum(place or 0 for place in places) or len(machines)
    cores = [machine.get("CPU", 1.0) for machine in machines]

    def members(cpu: float) -> int:
        rooms = [int(count / cpu + 1e-9) for count in cores]
        return sum(room if place is None else min(room, place) for room, place in zip(rooms, places, strict=True))

    shares = sorted({_whole(count / part) for count in cores for part in range(1, wanted + 1)}, reverse=True)
    cpu = next((share for share in shares if members(share) >= wanted), shares[-1])
    if not any(gpus):
        return {"CPU": cpu}
    modest = min(cpu, MOST_CORES)
    return {"CPU": modest if members(modest) <= wanted else cpu, "GPU": gpu}


def _whole(cores: float) -> float:
    return float(math.floor(cores)) if cores > 1 else cores
