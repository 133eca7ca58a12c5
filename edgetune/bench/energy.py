"""Energy that the machine itself counts: RAPL of Intel and AMD processors under Linux, NVML of NVIDIA's GPUs.

The counters are the whole package's, so other work on the machine counts too. Most virtual machines and users without
rights have none; then there is no number.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
NO_COUNTER = "no energy counter can be read here (RAPL under /sys/class/powercap, or NVML of a GPU)"


@dataclass(frozen=True)
class Counter:
    """A counter of joules, of one or several parts of the machine."""

    source: str
    """rapl or nvml."""
    read: Callable[[], tuple[float, ...]]
    """Joules of each part since some moment."""
    wraps_at: tuple[float, ...] = ()
    """Joules at which each begins anew; () where none does."""

    def since(self, start: tuple[float, ...]) -> float:
        """Joules of all parts since `read` gave `start`; each may have begun anew once."""
        spent = [now - before for now, before in zip(self.read(), start, strict=True)]
        wraps = self.wraps_at or (0.0,) * len(spent)
        return sum(part + wrap if part < 0 else part for part, wrap in zip(spent, wraps, strict=True))


def find_counter(device: str, *, powercap: Path = POWERCAP) -> Counter | None:
    """The counter of a device ("cpu" or "cuda"); None where the machine has none that can be read."""
    return _nvml() if device == "cuda" else _rapl(powercap)


def _rapl(powercap: Path) -> Counter | None:
    """All processor packages together: the zones intel-rapl:N, which AMD's driver calls so too.

    Source: Documentation/power/powercap/powercap.rst of the Linux kernel. energy_uj is micro-joules.
    """
    zones = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]

    def joules(name: str) -> tuple[float, ...]:
        return tuple(int((zone / name).read_text(encoding="ascii")) / 1e6 for zone in zones)

    with contextlib.suppress(OSError, ValueError):
        if joules("energy_uj"):
            return Counter("rapl", lambda: joules("energy_uj"), joules("max_energy_range_uj"))
    return None


def _nvml() -> Counter | None:
    """The GPU that torch uses first, by the library that comes with its driver; the package nvidia-ml-py binds it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip() or "0"
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        is_number = visible.isdecimal()
        handle = nvml.nvmlDeviceGetHandleByIndex(int(visible)) if is_number else nvml.nvmlDeviceGetHandleByUUID(visible)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except ModuleNotFoundError:
        return None
    except Exception:  # the binding raises kinds of its own for every lack: no driver, no GPU, too old a GPU
        return None
    return Counter("nvml", lambda: (nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,))
