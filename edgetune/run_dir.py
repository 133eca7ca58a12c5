"""The run folder, the only hand-off between stages: its files' names, atomic writes, hashes, what is up to date."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune import __version__
from edgetune.errors import EdgeTuneError, RunError

CLAIMED_TABLES = ("model", "data", "lora", "train")
"""What makes a run folder another run; [export] and [evaluate] may change over the same adapter."""

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
)


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
    def results(self) -> Path:
        """One JSON file for each measurement, answers beside it."""
        return self.path / "results"

    @property
    def loss_curve(self) -> Path:
        return self.path / "loss.png"

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
        return read_json(self.run_json)

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


def claim(run_dir: RunDir, recipe_toml: str, *, force: bool = False) -> None:
    """Make the run folder this recipe's: new, or one that the same recipe began; `force` first empties it of a run.

    `recipe_toml` is Recipe.to_toml() as the user asked, "auto" included; run.json keeps it under "asked". The resolved
    recipe in the folder counts as the same. Raises RunError that names the keys if the folder is another recipe's from
    which something was made, or the names if it is no run's but has what a run would replace.
    """
    asked = _claimed_tables(tomllib.loads(recipe_toml))
    run_dir.create()
    if not run_dir.run_json.exists():
        _refuse_strangers(run_dir)
    if force:
        _empty(run_dir)
    record = run_dir.read()
    if "asked" in record:
        differences = _differences(record["asked"], asked)
        is_same = not differences or (run_dir.recipe.exists() and asked == _claimed_tables(_read_toml(run_dir.recipe)))
        if not is_same and not record.get("stages") and not any(path.exists() for path in _folders(run_dir)):
            run_dir.recipe.unlink(missing_ok=True)  # the recipe failed before anything was made: it may be mended
            run_dir.update({"asked": asked, "provenance": provenance(asked["train"].get("seed"))})
        elif not is_same:
            raise RunError(
                f"{run_dir.path}: holds another run: {'; '.join(differences[:4])}",
                cure="choose another folder with --out, or replace the run with --force",
            )
    else:  # run.json first: a recipe.toml without it is the user's own
        run_dir.update({"asked": asked, "provenance": provenance(asked["train"].get("seed"))})
    if not run_dir.recipe.exists():
        write_text(run_dir.recipe, recipe_toml)


@contextlib.contextmanager
def only_process(run_dir: RunDir) -> Iterator[None]:
    """Inside the block no other process works in the run folder. Raises RunError if one does already.

    The lock is on the folder itself and goes with its process, however that ends. Where the system or the file system
    has no such lock (Windows, some network disks) nothing is checked.
    """
    run_dir.create()
    folder = None
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder = os.open(run_dir.path, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{run_dir.path}: another process is at work in it",
                    cure="wait for it or stop it, or choose another folder with --out",
                ) from None
        yield
    finally:
        if folder is not None:
            os.close(folder)


def refuse_to_replace(out: Path, *sources: Path) -> None:
    """Raise RunError if replacing the folder `out` would remove one of the sources it is made from."""
    for source in sources:
        places = (source.resolve(), source.parent.resolve() / source.name)  # the second where the source is a link
        if any(out.resolve() in (place, *place.parents) for place in places):
            raise RunError(f"{out}: holds {source}, which is read", cure="choose another folder with --out")


def _claimed_tables(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {name: dict(tables.get(name, {})) for name in CLAIMED_TABLES}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Each key that differs, as "table.key is X there, Y here"."""
    found = []
    for table in CLAIMED_TABLES:
        before, now = old.get(table, {}), new[table]
        for key in dict.fromkeys([*before, *now]):
            if before.get(key) != now.get(key):
                found.append(f"{table}.{key} is {_shown(before.get(key))} there, {_shown(now.get(key))} here")
    return found


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
    return (run_dir.checkpoints, run_dir.adapter, run_dir.merged, run_dir.bundle, run_dir.results)


def _empty(run_dir: RunDir) -> None:
    """Remove what a run leaves, but for the cache."""
    files = (run_dir.run_json, run_dir.recipe, run_dir.events, run_dir.loss_curve, run_dir.path / "report.html")
    try:
        for file in files:
            file.unlink(missing_ok=True)
        for folder in _folders(run_dir):
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise _write_error(run_dir.path, error) from None


def provenance(seed: int | None = None) -> dict[str, Any]:
    """What a result must carry to be repeated: versions, commit, platform, processor, cores, seed, command."""
    versions = {}
    for name in RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "edgetune": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "seed": seed,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started_unix": round(time.time(), 3),
    }


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(folder: Path) -> str:
    """SHA-256 over the relative names and bytes of all files under a folder, hex."""
    digest = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + hash_file(path).encode() + b"\0")
    return digest.hexdigest()


def hash_values(*values: Any) -> str:
    """SHA-256 of JSON-able values (dataclasses, paths and tuples included), hex; equal values give equal hashes."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises RunError if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds no JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file so that it is either the old one or the new one, whole. Raises RunError."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise _write_error(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise _write_error(path, error) from None
    try:
        temporary.chmod(0o755)
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_file():
                _sync(item)
        _replace_folder(temporary, path)
    except OSError as error:
        raise _write_error(path, error) from None
    except Exception as error:
        if full := _full_disk(error):  # libraries that write have errors of their own
            raise _write_error(path, full) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def open_for_user(path: Path, mode: str) -> Iterator[Any]:
    """Open a text file of the run; an OSError while writing becomes a RunError."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise _write_error(path, error) from None


def _replace_folder(new: Path, old: Path) -> None:
    """Put `new` where `old` is. A rename cannot replace a full folder, so the old one steps aside first."""
    aside = old.with_name(f".{old.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        if aside.exists():
            aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _full_disk(error: Exception) -> OSError | None:
    """The OSError that a library's own error tells of, if it is that the disk is full."""
    codes = () if isinstance(error, EdgeTuneError) else (errno.ENOSPC, errno.EDQUOT)
    return next((OSError(code, os.strerror(code)) for code in codes if os.strerror(code) in str(error)), None)


def _write_error(path: Path, error: OSError) -> RunError:
    reason = error.strerror or str(error)
    return RunError(f"{path}: cannot be written: {reason}", cure="free some space or choose another folder with --out")


def _commit() -> str | None:
    """The commit of the clone that this package runs from, "+" after it if files differ; None for an installed one."""
    clone = Path(__file__).parent.parent
    if not (clone / ".git").exists():
        return None
    git = ["git", "-C", str(clone)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False, timeout=10)
        return found.stdout.strip() + ("+" if changed.returncode else "")
    return None


def _processor() -> str:
    """The processor's name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
