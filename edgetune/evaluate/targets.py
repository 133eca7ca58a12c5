"""What there is to evaluate: the four targets of a run folder, or the one that a path elsewhere names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgetune.errors import ModelError, RunError
from edgetune.evaluate.evaluate import Result
from edgetune.evaluate.target import Kind, Target
from edgetune.evaluate.task import TASKS, task_of
from edgetune.lora.read import is_adapter, named_base, read_adapter_config, read_record
from edgetune.model.base import resolve_base
from edgetune.model.gguf import is_gguf, require_llama_cpp
from edgetune.recipe import ModelTable, Recipe
from edgetune.report.table import TableRow
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import GENAI_CONFIG, GRAPH, MANIFEST, open_bundle


def run_targets(recipe: Recipe, run_dir: RunDir, base: Path) -> dict[str, Target]:
    """The targets of a run by name, there already or not: base, tuned, merged, bundle; the last three where it is
    training that makes what answers.
    """
    trained = dataclasses.replace(recipe.model, base=str(base), revision=None)
    plain = dataclasses.replace(trained, quantization="none", embedding_quantization="none")
    merged = dataclasses.replace(plain, base=str(run_dir.merged))
    task = recipe.model.task
    targets = {
        "base": Target("base", "base", base, plain, task),
        "tuned": Target("tuned", "tuned", run_dir.adapter, trained, task),
        "merged": Target("merged", "merged", run_dir.merged, merged, task),
        "bundle": Target("bundle", "bundle", run_dir.bundle, None, task),
    }
    if not TASKS[task].HAS_BASE:
        del targets["base"]
    return targets


def choose(targets: Mapping[str, Target], path: Path, run_dir: RunDir) -> list[Target]:
    """Those of a run's targets that a path asks for: the one lying there, or for the run folder all that are there.

    Raises RunError if there is none.
    """
    there = [target for target in targets.values() if target.path.is_dir()]
    is_run = path.resolve() == run_dir.path.resolve()
    found = there if is_run else [target for target in there if target.path.resolve() == path.resolve()]
    if not found:
        raise RunError(f"{path}: nothing to evaluate", cure="give the run folder, its adapter, merged or bundle folder")
    return found


def target_at(path: str) -> Target:
    """The target that a path outside any run names: a bundle, an adapter, a model folder, `edgetune:nano`, a hub id, a
    .gguf file.

    An adapter goes on the base it names, held as it was in training (NF4 where it does not say). Raises ModelError,
    MissingExtraError.
    """
    folder = Path(path).expanduser()
    name = folder.name.replace(":", "-") or "target"
    if is_gguf(folder):
        require_llama_cpp()
        if not folder.is_file():
            raise ModelError(f"{path}: no such file", cure="give a .gguf file")
        return Target("gguf", folder.stem, folder)
    if is_bundle(folder):
        return Target("bundle", name, folder, None, open_bundle(folder).task)
    task = task_of(folder)
    if is_adapter(folder):
        return Target("tuned", name, folder, dataclasses.replace(_trained_on(folder), task=task), task)
    base = resolve_base(path)
    kind: Kind = "base" if TASKS[task].HAS_BASE else "merged"
    return Target(kind, name, base, ModelTable(base=str(base), quantization="none", task=task), task)


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle, whole or not: no model's config, and some of what a bundle has."""
    if is_adapter(folder) or (folder / "config.json").exists():
        return False
    return any((folder / name).exists() for name in (MANIFEST, GENAI_CONFIG, GRAPH))


def ledger_names(recipe: Recipe) -> dict[str, str]:
    """Name in results/ of each stage of the ledger -> what it is, in the order of the way to the device."""
    precision = recipe.export.precision
    tuned = "4-bit base + adapter" if recipe.model.quantization == "nf4" else "base + adapter"
    return {
        "base": "base",
        "tuned": tuned,
        "merged": "merged",
        "onnx-fp32": "fp32 ONNX",
        "onnx-exact": f"{precision} ONNX, activations as they are",
        "bundle": f"{precision} bundle on the device's runtime",
    }


def table_rows(recipe: Recipe, results: Iterable[Result]) -> list[TableRow]:
    """The table's row for each result; memory is the device's where one is used."""
    names = {
        "base": "base",
        "tuned": "fine-tuned (4-bit + adapter)" if recipe.model.quantization == "nf4" else "fine-tuned (adapter)",
        "merged": "merged",
        "bundle": f"{recipe.export.precision} bundle",
    }
    return [
        TableRow(
            name=names.get(result.target.kind, result.target.name),
            score=result.score.score,
            interval=result.score.interval,
            loss=result.score.loss,
            disk_bytes=result.disk_bytes,
            peak_bytes=result.peak_bytes if result.device_peak_bytes is None else result.device_peak_bytes,
            **{"tokens_per_s": None, **(result.speed.columns if result.speed else {})},
        )
        for result in results
    ]


def _trained_on(adapter: Path) -> ModelTable:
    record, config = read_record(adapter), read_adapter_config(adapter)
    base, revision = named_base(config, record)
    if not base:
        raise ModelError(f"{adapter}: does not say which base it belongs to", cure="evaluate it in its run folder")
    return ModelTable(
        base=str(resolve_base(base, revision)),
        quantization=record.get("quantization", "nf4"),
        double_quantization=record.get("double_quantization", True),
        embedding_quantization=record.get("embedding_quantization", "none"),
        compute_dtype=record.get("compute_dtype", "auto"),
    )
