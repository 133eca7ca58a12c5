"""Where a result comes from: versions, commit, machine, seed and command. In run.json, bundles and every result."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune import __version__

RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "onnx",
    "onnxruntime",
    "onnxruntime-genai",
    "tokenizers",
    "llama-cpp-python",
    "rouge-score",
    "sacrebleu",
    "lm-eval",
)


def provenance(seed: int | None = None) -> dict[str, Any]:
    """What a result must carry to be repeated: versions, commit, platform, machine, seed, command.

    Of absolute paths in the command only the names: bundles go to others, whom somebody's home folder tells nothing.

    `cores` are those that this process may use, `memory_bytes` is the machine's, `gpus` are NVIDIA's, none where there
    are none.
    """
    return {
        "edgetune": __version__,
        "commit": _commit(Path(__file__).parent.parent),
        "python": platform.python_version(),
        "packages": dict(_versions()),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": [dict(gpu) for gpu in _gpus()],
        "seed": seed,
        "command": [Path(sys.argv[0]).name, *map(_without_folders, sys.argv[1:])],
        "started_unix": round(time.time(), 3),
    }


def _without_folders(argument: str) -> str:
    """The argument, or option=value, with an absolute path cut to its name."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if os.path.isabs(value) else argument


@functools.cache
def _versions() -> dict[str, str]:
    """Of those of RECORDED_PACKAGES that are installed."""
    found = {}
    for name in RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def _commit(clone: Path) -> str | None:
    """The commit of a clone, "+" after it if files differ; None where there is none, as for an installed package.

    Asked once: what a process has loaded stays what it was.
    """
    if not (clone / ".git").exists():
        return None
    git = ["git", "-C", str(clone)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False, timeout=10)
        return found.stdout.strip() + ("+" if changed.returncode else "")
    return None


@functools.cache
def _processor() -> str:
    """The processor's name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    """Physical memory of this machine; None where the system does not tell."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


@functools.cache
def _gpus() -> tuple[Mapping[str, Any], ...]:
    """{"name", "memory_bytes", "driver"} of each GPU that nvidia-smi, which comes with the driver, knows of.

    Asked once: what a machine has stays.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        rows = [[part.strip() for part in line.rsplit(",", 2)] for line in told.splitlines() if line.strip()]
        return tuple(
            {"name": name, "memory_bytes": int(mib) * 1024**2 if mib.isdecimal() else None, "driver": driver}
            for name, mib, driver in rows
        )
    return ()
