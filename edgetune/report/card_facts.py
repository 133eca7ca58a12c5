"""What a model card tells of an adapter or a bundle, read from its folder and the run it lies in."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgetune.errors import BundleError, RunError
from edgetune.files import read_json
from edgetune.hashes import CARD
from edgetune.report.facts import Model, Problems
from edgetune.report.run_folder import read_models
from edgetune.report.task import Task, task_named
from edgetune.run_dir import RunDir
from edgetune.runtime.bundle import Bundle, open_bundle

EMBEDDED = "edgetune:"
"""Begins the names of what comes with EdgeTune."""
EMBEDDED_LICENCE = "apache-2.0"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
PATH_VALUE = re.compile(r'"((?:/|~|\$|\.\.?/|[A-Za-z]:[\\/])[^"\n]*)"')
"""A path in a recipe: of the machine it ran on, and of nobody else's concern."""


@dataclass(frozen=True)
class Subject:
    """What a card is of."""

    kind: Literal["adapter", "bundle"]
    folder: Path
    name: str
    base: str
    """Hub id, embedded name, or the last part of a path."""
    base_is_on_hub: bool
    base_licence: str | None
    task: str
    """As a recipe names it."""
    metric: str | None
    data: Mapping[str, str]
    """train, eval and test: hub ids, embedded names, last parts of paths."""
    counts: Mapping[str, Any]
    """Of the training data, as train.json has them; {} where that is not known."""
    models: tuple[Model, ...]
    """What was measured of the very model that the card is of, and of what it came from."""
    scored_on: str | None
    """Where the scored rows come from."""
    bundle: Bundle | None
    record: Mapping[str, Any]
    """adapter_config.json and edgetune.json of an adapter."""
    recipe: str | None
    """TOML, without the paths of the machine."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> Task:
        """What is said of models of its task."""
        return task_named(self.task)


def adapter_subject(run_dir: RunDir) -> Subject:
    """Of a run's adapter. Raises RunError, ModelError where it is damaged."""
    record = {**read_json(run_dir.adapter / "adapter_config.json"), **read_json(run_dir.adapter / "edgetune.json")}
    models = _models(run_dir, run_dir.results) if "evaluate-tuned" in _stages(run_dir) else ()
    kept = tuple(model for model in models if model.stage in ("base", "tuned"))
    return _subject("adapter", run_dir.adapter, run_dir, record=record, models=kept, results=run_dir.results)


def bundle_subject(folder: Path, run_dir: RunDir | None) -> Subject:
    """Of a bundle, which may lie in no run. Raises BundleError, RunError where it is damaged."""
    bundle = open_bundle(folder)
    results = _results_of(bundle, run_dir)
    models = _models(run_dir, results) if run_dir and results else ()
    kept = tuple(model for model in models if not model.stage.startswith("onnx"))
    return _subject("bundle", folder, run_dir, bundle=bundle, models=kept, results=results)


def public(text: str) -> str:
    """A name as others may read it: a path becomes its last part."""
    is_name = text.startswith(EMBEDDED) or (HUB_ID.fullmatch(text) and not Path(text).exists())
    return text if is_name else text.replace("\\", "/").rstrip("/").rpartition("/")[2]


def is_on_hub(text: str) -> bool:
    """Whether a name is a hub id, and no folder here."""
    return bool(HUB_ID.fullmatch(text)) and not Path(text).exists()


def _subject(
    kind: Literal["adapter", "bundle"],
    folder: Path,
    run_dir: RunDir | None,
    *,
    bundle: Bundle | None = None,
    record: Mapping[str, Any] | None = None,
    models: tuple[Model, ...] = (),
    results: Path | None = None,
) -> Subject:
    text = run_dir.recipe.read_text(encoding="utf-8") if run_dir else None
    recipe = tomllib.loads(text) if text else {}
    model, data = (recipe.get(name, {}) for name in ("model", "data"))
    own = bundle.provenance if bundle else (record or {})
    base = str(model.get("base") or own.get("base") or "")
    train = _json(run_dir.results / "train.json") if run_dir else {}
    rows = _json(results / "rows.json") if results else {}
    source = rows.get("source")
    task = bundle.task if bundle else str(model.get("task", ""))
    return Subject(
        kind=kind,
        folder=folder,
        name=bundle.name if bundle else (run_dir.path.resolve().name if run_dir else folder.name),
        base=public(base),
        base_is_on_hub=is_on_hub(base),
        base_licence=_licence(base),
        task=task,
        metric=recipe.get("evaluate", {}).get("metric"),
        data={name: public(str(data[name])) for name in ("train", "eval", "test") if data.get(name)},
        counts=train.get("data") or {},
        models=models,
        scored_on=public(source) if isinstance(source, str) else None,
        bundle=bundle,
        record=record or {},
        recipe=PATH_VALUE.sub(lambda found: f'"{public(found[1])}"', text) if text else None,
        provenance=bundle.provenance if bundle else (run_dir.read().get("provenance") or {} if run_dir else {}),
    )


def _stages(run_dir: RunDir) -> Mapping[str, Any]:
    stages: Mapping[str, Any] = run_dir.read().get("stages", {})
    return stages


def _results_of(bundle: Bundle, run_dir: RunDir | None) -> Path | None:
    """The results that are of this very bundle: an export forgets those of the run, `edgetune verify` makes others."""
    if run_dir is None or bundle.path.resolve() != run_dir.bundle.resolve():
        return None
    if {"export", "evaluate-bundle"} <= set(_stages(run_dir)):
        return run_dir.results
    return run_dir.results / "verify" if bundle.verified.get("gain_kept") else None


def _models(run_dir: RunDir, results: Path) -> tuple[Model, ...]:
    try:
        precision = open_bundle(run_dir.bundle).precision
    except BundleError:
        precision = ""  # not exported yet: then there is no bundle to name
    return tuple(read_models(results, run_dir.path.resolve().name, precision, Problems()))


def _json(path: Path) -> Mapping[str, Any]:
    """A JSON object, {} where there is none: the card leaves out what it would say."""
    try:
        return read_json(path)
    except RunError:
        return {}


def _licence(base: str) -> str | None:
    """What the base's own card says, where that lies here; nothing is fetched."""
    if base.startswith(EMBEDDED):
        return EMBEDDED_LICENCE
    path: Any = Path(base).expanduser() / CARD
    if not path.is_file() and HUB_ID.fullmatch(base):
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(base, CARD)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return None
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*[\"']?([\w.+-]+)", head[1], re.MULTILINE) if head else None
    return found[1] if found else None
