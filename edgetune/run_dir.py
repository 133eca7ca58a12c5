"""The run folder, the only hand-off between stages: its files' names, what is up to date, whose run it is."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import RunError
from edgetune.files import open_for_user, read_json, write_error, write_json, write_text
from edgetune.provenance import provenance
from edgetune.recipe import TABLES
from edgetune.recipe.removed import removed_keys

DISTRIBUTIONS = "distributions.npy"
"""In results/: what the fine-tune finds likely; other targets are compared with it."""
CLAIMED_TABLES = ("model", "data", "lora", "train")
"""What makes a run folder another run; [export] and [evaluate] may change over the same adapter."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Making the object touches no disk; `create` does."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe, TOML."""
        return self.path / "recipe.toml"

    @property
    def run_json(self) -> Path:
        """Versions, hardware, seed and the input hash of every finished stage."""
        return self.path / "run.json"

    @property
    def is_run(self) -> bool:
        """Whether the folder is a run's."""
        return self.recipe.is_file() and self.run_json.is_file()

    @property
    def events(self) -> Path:
        """Every metric, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def cache(self) -> Path:
        """Tokenised data by content hash; may be deleted."""
        return self.path / "cache"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The adapter in PEFT's own format."""
        return self.path / "adapter"

    @property
    def merged(self) -> Path:
        """The merged model, a Hugging Face folder."""
        return self.path / "merged"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def adapter_bundle(self) -> Path:
        """A bundle of the base with the adapter beside it."""
        return self.path / "adapter-bundle"

    @property
    def mixture(self) -> Path:
        """The rows of an adaptation: new ones with a share of the old ones."""
        return self.path / "mixture"

    @property
    def folds(self) -> Path:
        """Cross-validation while it is under way."""
        return self.path / "folds"

    @property
    def results(self) -> Path:
        """One JSON file for each measurement, answers beside it."""
        return self.path / "results"

    @property
    def loss_curve(self) -> Path:
        return self.path / "loss.png"

    @property
    def report(self) -> Path:
        """The run as a page."""
        return self.path / "report.html"

    def create(self) -> RunDir:
        """Make the folder. Raises RunError if that cannot be done."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be made: {error.strerror}", cure="choose another folder with --out"
            ) from None
        return self

    def read(self) -> dict[str, Any]:
        """run.json, or {} where there is none. Raises RunError if it is damaged."""
        if not self.run_json.exists():
            return {}
        cure = "begin the run anew: edgetune run RECIPE --force"
        record = read_json(self.run_json, cure=cure)
        for key in ("asked", "stages"):
            value = record.get(key, {})
            if not (isinstance(value, dict) and all(isinstance(item, dict) for item in value.values())):
                raise RunError(f"{self.run_json}: {key} is no table of tables", cure=cure)
        return record

    def update(self, values: Mapping[str, Any]) -> None:
        """Merge top-level values into run.json, atomically."""
        write_json(self.run_json, {**self.read(), **values})

    def is_current(self, stage: str, inputs: str) -> bool:
        """Whether `stage` finished with exactly these inputs (a hash)."""
        return self.read().get("stages", {}).get(stage, {}).get("inputs") == inputs

    def finish(self, stage: str, inputs: str, **facts: Any) -> None:
        """Record that `stage` finished with these inputs."""
        stages = dict(self.read().get("stages", {}))
        stages[stage] = {"inputs": inputs, "finished_unix": round(time.time(), 3), **facts}
        self.update({"stages": stages})

    def forget(self, stage: str) -> None:
        """Drop the record of a stage, before it is run again."""
        stages = {name: value for name, value in self.read().get("stages", {}).items() if name != stage}
        self.update({"stages": stages})

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to events.jsonl."""
        with open_for_user(self.events, "a") as file:
            file.write(json.dumps(event) + "\n")


def find_run(path: Path) -> RunDir | None:
    """The run folder that a path is, or in which it lies; None elsewhere."""
    for folder in (path, path.resolve().parent):
        run_dir = RunDir(folder)
        if run_dir.is_run:
            return run_dir
    return None


def claim(run_dir: RunDir, recipe_toml: str, *, force: bool = False) -> None:
    """Make the run folder this recipe's: new, or one that the same recipe began; `force` first empties it of a run.

    `recipe_toml` is Recipe.to_toml() as the user asked, "auto" included; run.json keeps it under "asked". The resolved
    recipe in the folder counts as the same. Raises RunError that names the keys if the folder is another recipe's from
    which something was made, or the names if it is no run's but has what a run would replace.
    """
    asked = _claimed_tables(tomllib.loads(recipe_toml))
    run_dir.create()
    if force:
        if not run_dir.run_json.exists():
            _refuse_strangers(run_dir)
        _empty(run_dir)
    differences = refuse_other_run(run_dir, recipe_toml)
    if differences:
        run_dir.recipe.unlink(missing_ok=True)  # the recipe failed before anything was made: it may be mended
        run_dir.update({"asked": asked, "provenance": provenance(asked["train"].get("seed"))})
    elif "asked" not in run_dir.read():  # run.json first: a recipe.toml without it is the user's own
        run_dir.update({"asked": asked, "provenance": provenance(asked["train"].get("seed"))})
    if not run_dir.recipe.exists():
        write_text(run_dir.recipe, recipe_toml)


def refuse_other_run(run_dir: RunDir, recipe_toml: str) -> list[str]:
    """What differs from the recipe that the folder was claimed for, where nothing was made from that: it may be mended.

    Writes nothing. Raises RunError where `claim` would refuse.
    """
    if not run_dir.run_json.exists():
        _refuse_strangers(run_dir)
    asked, record = _claimed_tables(tomllib.loads(recipe_toml)), run_dir.read()
    differences = _differences(record.get("asked", asked), asked)
    if not differences or (run_dir.recipe.exists() and asked == _claimed_tables(_read_toml(run_dir.recipe))):
        return []
    if record.get("stages") or any(path.exists() for path in _folders(run_dir)):
        raise RunError(
            f"{run_dir.path}: holds another run: {'; '.join(differences[:4])}",
            cure="choose another folder with --out, or replace the run with --force",
        )
    return differences


def _claimed_tables(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(tables.get(name, {})) for name in CLAIMED_TABLES}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Each key that differs, as "table.key is X there, Y here"; one that `old` is older than had its default there."""
    found = []
    for table in CLAIMED_TABLES:
        before, now = ({**_defaults(table), **tables.get(table, {})} for tables in (old, new))
        for key in dict.fromkeys([*before, *now]):
            if before.get(key) != now.get(key):
                found.append(f"{table}.{key} is {_shown(before.get(key))} there, {_shown(now.get(key))} here")
    return found


def _defaults(table: str) -> dict[str, Any]:
    """Keys of a table with their defaults, those without a value left out; of keys that are gone what now holds."""
    values = {item.name: item.default for item in dataclasses.fields(TABLES[table])}
    values |= {key: removed.now for key, removed in removed_keys(table).items()}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value not in (None, dataclasses.MISSING)
    }


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)


def _refuse_strangers(run_dir: RunDir) -> None:
    """Raise RunError if the folder, which is no run's, has files or folders that a run would replace."""
    names = (*_folders(run_dir), run_dir.recipe, run_dir.events)
    taken = [path.name for path in names if path.exists()]
    if taken and not run_dir.run_json.exists():  # once more: another process of this run may have made it by now
        raise RunError(
            f"{run_dir.path}: is no run folder (no run.json) but has {', '.join(taken)}, which a run would replace",
            cure="choose another folder with --out",
        )


def _folders(run_dir: RunDir) -> tuple[Path, ...]:
    """What a run leaves, but for the cache (by content hash, so never wrong)."""
    return (
        run_dir.checkpoints,
        run_dir.adapter,
        run_dir.merged,
        run_dir.bundle,
        run_dir.adapter_bundle,
        run_dir.mixture,
        run_dir.folds,
        run_dir.results,
    )


def _empty(run_dir: RunDir) -> None:
    """Remove what a run leaves, but for the cache."""
    files = (run_dir.run_json, run_dir.recipe, run_dir.events, run_dir.loss_curve, run_dir.report)
    try:
        for file in files:
            file.unlink(missing_ok=True)
        for folder in _folders(run_dir):
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise write_error(run_dir.path, error) from None
