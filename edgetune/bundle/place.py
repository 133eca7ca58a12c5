"""How a bundle takes its place: made in a folder beside it, put there if its verification holds, else left aside."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune.errors import CheckError, RunError
from edgetune.files import atomic_folder, read_json, refuse_to_replace
from edgetune.model.memory import peak_memory_bytes, reset_peak
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import MANIFEST, Bundle, write_manifest
from edgetune.verify.checks import Verification


@dataclass(frozen=True)
class ExportResult:
    """A bundle and the proof of it."""

    bundle: Bundle
    verification: Verification
    size_bytes: int
    peak_bytes: int
    """Highest resident memory of the process while exporting and verifying."""
    wall_s: float


def put_in_place(
    out: Path, sources: Sequence[Path], make: Callable[[Path], tuple[Bundle, Verification]]
) -> ExportResult:
    """Make a bundle in a folder beside `out`, and let it be `out` if its verification holds, else out.failed.

    Raises RunError if either would take the place of a source, of the current folder, or of something else than a
    bundle, and for out.failed than one which failed.
    """
    start_s = time.perf_counter()
    reset_peak()
    refuse_to_replace(out, *sources, what="bundle", is_one=_is_bundle)
    failed = out.with_name(f"{out.name}.failed")
    refuse_to_replace(failed, *sources, what="bundle that failed", is_one=_is_failed_bundle)
    with atomic_folder(out) as folder:
        bundle, verification = make(folder)
        verified = {**verification.to_json(), "gain_kept": None}  # `run` and `verify` measure it
        bundle = write_manifest(dataclasses.replace(bundle, verified=verified))
        if not verification.passed:
            shutil.rmtree(failed, ignore_errors=True)
            shutil.copytree(folder, failed)
            raise refused(verification, f"the bundle failed its verification and was left aside in {failed}")
    shutil.rmtree(failed, ignore_errors=True)
    bundle = dataclasses.replace(bundle, path=out)
    return ExportResult(
        bundle=bundle,
        verification=verification,
        size_bytes=bundle.size_bytes,
        peak_bytes=peak_memory_bytes(),
        wall_s=time.perf_counter() - start_s,
    )


def _is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle, by its manifest or, if that is damaged, by its place in a run."""
    if RunDir(path.parent).is_run and path.name == "bundle":
        return True
    try:
        return "format" in read_json(path / MANIFEST)
    except RunError:
        return False


def _is_failed_bundle(path: Path) -> bool:
    """Whether a folder is what an earlier export left aside."""
    try:
        return read_json(path / MANIFEST)["verified"]["passed"] is False
    except (RunError, KeyError, TypeError):
        return False


def refused(verification: Verification, what: str) -> CheckError:
    """The error for what failed its verification, the checks that failed in it."""
    lines = [
        f"{check.name}: {check.value:.4g}, limit {check.limit:.4g} ({check.detail})" for check in verification.failures
    ]
    return CheckError(
        f"{what}: {'; '.join(lines)}",
        cure="export again; if it fails again, report it with what is there",
    )
