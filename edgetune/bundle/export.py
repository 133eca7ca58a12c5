"""The export stage: merged model in the run folder -> verified bundle in the run folder."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from edgetune.bundle.classification import build_classifier_bundle, calibrated, draw_texts
from edgetune.bundle.generation import build_bundle, prompts_of
from edgetune.data.prepare import examples, prepare
from edgetune.data.read import on_disk
from edgetune.errors import CheckError, RunError
from edgetune.export.architecture import check_architecture
from edgetune.files import atomic_folder, read_json, refuse_to_replace
from edgetune.model.base import load_tokenizer, padding_id
from edgetune.model.classifier import SPEC
from edgetune.model.memory import peak_memory_bytes, reset_peak
from edgetune.quantize.decoder import quantize_decoder
from edgetune.quantize.moments import Rows
from edgetune.quantize.precisions import grid_of
from edgetune.recipe import CALIBRATED, Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import MANIFEST, Bundle, write_manifest
from edgetune.verify.checks import Verification
from edgetune.verify.classification import verify_encoder
from edgetune.verify.generation import MOST_PROMPTS, Prompt, verify

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class ExportResult:
    """A bundle and the proof of it."""

    bundle: Bundle
    verification: Verification
    size_bytes: int
    peak_bytes: int
    """Highest resident memory of the process while exporting and verifying."""
    wall_s: float


def export(
    recipe: Recipe,
    run_dir: RunDir,
    *,
    out: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Build runs/x/bundle (or `out`) from runs/x/merged, verify it on the recipe's rows, put it in place if it holds.

    A bundle that fails is left as runs/x/bundle.failed, marked as not verified, and an older bundle stays as it is.
    Raises CheckError, which names the checks that failed; ModelError for an architecture that cannot be exported,
    before any work; RunError without a merged model, or with a bundle in place and no `force`.
    """
    out = refuse_early(run_dir, out, force=force)
    if out == run_dir.bundle and run_dir.run_json.exists():
        run_dir.forget("export")  # what the pipeline knows of the bundle ends here
    if (run_dir.merged / SPEC).is_file():
        return export_classifier(run_dir.merged, out, recipe, progress=progress)
    prompts = prompts_of(islice(chain(examples(recipe, "eval"), examples(recipe, "train")), MOST_PROMPTS))
    rows = training_rows(run_dir.merged, recipe, run_dir.cache) if recipe.export.needs_rows else None
    return export_folder(run_dir.merged, out, recipe, prompts=prompts, rows=rows, progress=progress)


def refuse_early(run_dir: RunDir, out: Path | None, *, force: bool) -> Path:
    """Where the run's bundle is to be. Raises, before any work, what `export` says of model, architecture and place."""
    if not (run_dir.merged / "config.json").is_file():
        raise RunError(f"{run_dir.merged}: no merged model", cure=f"make it first: edgetune merge {run_dir.path}")
    if not (run_dir.merged / SPEC).is_file():
        check_architecture(run_dir.merged)
    out = out or run_dir.bundle
    if out.exists() and not force:
        raise RunError(f"{out}: there is something already", cure="replace it with --force")
    return out


def training_rows(merged: Path, recipe: Recipe, cache: Path) -> Rows:
    """The recipe's rows in the tokens of the merged folder's tokenizer. Raises DataError."""
    tokenizer = load_tokenizer(merged)
    return Rows(prepare(recipe, tokenizer, cache=cache), padding_id(tokenizer))


def export_folder(
    merged: Path,
    out: Path,
    recipe: Recipe,
    *,
    prompts: Sequence[Prompt],
    rows: Rows | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """The bundle `out` of any Hugging Face folder, verified on `prompts`; with `rows`, repaired on them.

    Raises as `export` does.
    """
    tell = progress or (lambda _: None)
    is_chat = not any(isinstance(prompt, str) for prompt in prompts)

    def make(folder: Path) -> tuple[Bundle, Verification]:
        grid, quantized = grid_of(recipe.export), None
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".grid", dir=out.parent) as kept:
            if grid is not None:
                tell({"stage": "export", "message": f"putting the weights on the {recipe.export.precision} grid"})
                quantized = quantize_decoder(merged, Path(kept) / "grid", recipe, grid, rows=rows, progress=progress)
            tell({"stage": "export", "message": f"building {recipe.export.precision}"})
            bundle, tokenizer = build_bundle(merged, folder, recipe, is_chat=is_chat, quantized=quantized)
            tell({"stage": "export", "message": f"verifying on {len(prompts)} prompts"})
            return bundle, verify(bundle, merged, prompts, tokenizer=tokenizer, quantized=quantized)

    return put_in_place(out, (merged, *on_disk(recipe.data)), make)


def export_classifier(merged: Path, out: Path, recipe: Recipe, *, progress: Progress | None = None) -> ExportResult:
    """The bundle `out` of a merged classifier.

    Its weights are rounded as [export] method says, "gptq" for the recipe's train rows, its probabilities are
    calibrated on the eval rows. Then it is verified, with the threshold that may make answers "unknown", on texts drawn
    from the eval rows, and from the train rows where those are few.

    Raises as `export` does.
    """
    tell = progress or (lambda _: None)

    def make(folder: Path) -> tuple[Bundle, Verification]:
        tell({"stage": "export", "message": f"building {recipe.export.precision}"})
        seed, count = recipe.train.seed, recipe.export.calibration_rows
        texts = draw_texts(examples(recipe, "eval"), MOST_PROMPTS, seed=seed)
        texts += draw_texts(examples(recipe, "train"), MOST_PROMPTS - len(texts), seed=seed)
        is_drawn = recipe.export.rounding in CALIBRATED
        drawn = draw_texts(examples(recipe, "train"), count, seed=seed) if is_drawn else []
        built = build_classifier_bundle(merged, folder, recipe, drawn)
        tell({"stage": "export", "message": "calibrating on the eval rows"})
        built = dataclasses.replace(built, bundle=calibrated(built.bundle, recipe))
        tell({"stage": "export", "message": f"verifying on {len(texts)} texts"})
        return built.bundle, verify_encoder(built, texts)

    return put_in_place(out, (merged, *on_disk(recipe.data)), make)


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


def build_any(merged: Path, folder: Path, recipe: Recipe, *, is_chat: bool) -> Bundle:
    """A decoder's or a classifier's bundle, weights rounded to the nearest, calibrated but not verified."""
    if (merged / SPEC).is_file():
        built = build_classifier_bundle(merged, folder, recipe).bundle
        return write_manifest(calibrated(built, recipe))
    return build_bundle(merged, folder, recipe, is_chat=is_chat)[0]


def refused(verification: Verification, what: str) -> CheckError:
    """The error for what failed its verification, the checks that failed in it."""
    lines = [
        f"{check.name}: {check.value:.4g}, limit {check.limit:.4g} ({check.detail})" for check in verification.failures
    ]
    return CheckError(
        f"{what}: {'; '.join(lines)}",
        cure="export again; if it fails again, report it with what is there",
    )
