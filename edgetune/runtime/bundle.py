"""The bundle: the folder that goes to the device, and edgetune.json in it, which says what the folder is and holds.

Export writes it (`write_manifest`), everything that runs a bundle opens it (`open_bundle`). A decoder bundle is at the
same time a folder that plain onnxruntime-genai opens: model.onnx (+ .data), genai_config.json, tokenizer.json. A
classification bundle is one that plain onnxruntime opens: model.onnx (+ .data), tokenizer.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgetune.errors import BundleError, shown
from edgetune.files import read_json, write_json
from edgetune.hashes import CARD, hash_file
from edgetune.runtime.classification import ClassifierFormat as ClassifierFormat
from edgetune.runtime.generation import ChatFormat as ChatFormat
from edgetune.runtime.grid import BundleGrid
from edgetune.runtime.manifest import GENAI_CONFIG as GENAI_CONFIG
from edgetune.runtime.manifest import GRAPH as GRAPH
from edgetune.runtime.manifest import MANIFEST as MANIFEST
from edgetune.runtime.manifest import TOKENIZER as TOKENIZER
from edgetune.runtime.manifest import facts, is_count, table
from edgetune.runtime.manifest import is_text as is_text
from edgetune.runtime.task import OLD_NAMES, TASKS
from edgetune.task_names import TaskName

FORMAT_VERSION = 1
AGAIN = "copy or export it again"
"""What to do about a bundle that is damaged."""
NO_ADAPTER = "none"
"""What stands for the base where the name of an adapter is asked for."""


@dataclass(frozen=True)
class FileRecord:
    """What a file of the bundle must be."""

    size_bytes: int = field(metadata={"least": 0, "most": 2**63 - 1})
    sha256: str


@dataclass(frozen=True)
class AdapterRecord:
    """Where an adapter that lies beside the graph comes from, and the outcome of its verification."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    verified: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle and what edgetune.json says about it."""

    path: Path
    name: str
    precision: str
    """int2, int4, int8, fp16 or fp32."""
    grid: BundleGrid | None
    """None for fp16 and fp32."""
    chat: ChatFormat | None
    """Of a decoder; None for a classifier. Who needs one asks for `chat_format`."""
    context_length: int
    """Longest text, prompt and answer together, in tokens."""
    task: TaskName = "generation"
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """Relative name, with /, -> record; every file but edgetune.json and the card."""
    adapters: Mapping[str, AdapterRecord] = field(default_factory=dict)
    """Of a decoder whose graph is the base, with inputs for an adapter: name -> record. Files: `adapter_file`."""
    adapter: str | None = None
    """Which of `adapters` answers; None: the base, or a bundle that has none."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: base, adapter, recipe hash, versions."""
    verified: Mapping[str, Any] = field(default_factory=dict)
    """Outcome of the verification: {"passed": bool, "checks": [...], "scores": {...}}; empty when there was none."""
    classifier: ClassifierFormat | None = None
    """Of a classifier; None for a decoder. Who needs one asks for `classifier_format`."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, edgetune.json aside."""
        return sum(record.size_bytes for record in self.files.values())

    @property
    def chat_format(self) -> ChatFormat:
        """A decoder's `chat`. Raises BundleError for a classifier."""
        if self.chat is None:
            raise BundleError(f"{self.path}: is a classifier, it writes no text", cure="use `edgetune classify`")
        return self.chat

    @property
    def classifier_format(self) -> ClassifierFormat:
        """A classifier's `classifier`. Raises BundleError for a decoder."""
        if self.classifier is None:
            raise BundleError(f"{self.path}: writes text, it has no labels", cure="use `edgetune generate`")
        return self.classifier


def open_bundle(path: Path | str) -> Bundle:
    """The bundle in a folder, after checking its version and that each file is there with its size.

    Reads edgetune.json only, so it is cheap; `check_hashes` reads every byte. Raises BundleError.
    """
    path = Path(path)
    if not (path / MANIFEST).exists():
        raise _not_a_bundle(path)
    bundle = _parse(path, read_json(path / MANIFEST, BundleError, cure=AGAIN))
    _check_files(bundle)
    return bundle


def check_hashes(bundle: Bundle) -> None:
    """Read every file and compare its SHA-256. Raises BundleError that names the files that differ."""
    differing = [name for name, record in bundle.files.items() if hash_file(bundle.path / name) != record.sha256]
    if differing:
        raise BundleError(f"{bundle.path}: {', '.join(differing)}: not the bytes that were exported", cure=AGAIN)


def adapter_file(name: str) -> str:
    """The file of an adapter, in onnxruntime's own format."""
    return f"{name}.onnx_adapter"


def choose_adapter(bundle: Bundle, name: str) -> Bundle:
    """The bundle with another of its adapters active; NO_ADAPTER is the base alone. Raises BundleError."""
    if name == NO_ADAPTER and bundle.adapters:
        return dataclasses.replace(bundle, adapter=None)
    if name not in bundle.adapters:
        known = ", ".join([*bundle.adapters, NO_ADAPTER])
        cure = f"it has {known}" if bundle.adapters else "`edgetune export-adapter RUN` makes one that has some"
        raise BundleError(f"{bundle.path}: has no adapter {name!r}", cure=cure)
    return dataclasses.replace(bundle, adapter=name)


def write_manifest(bundle: Bundle) -> Bundle:
    """Write edgetune.json into `bundle.path`, atomically; the bundle with its file records.

    Without `files` every file in the folder is measured and hashed; with `files` they stand as they are, which is how a
    verification is added to a bundle without reading it again. Raises RunError when the disk says no.
    """
    if not bundle.files:
        bundle = dataclasses.replace(bundle, files=_measure(bundle.path))
    values = {"format": FORMAT_VERSION, **dataclasses.asdict(bundle)}
    del values["path"]
    write_json(bundle.path / MANIFEST, values)
    return bundle


def _measure(folder: Path) -> dict[str, FileRecord]:
    files = {}
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in (MANIFEST, CARD):
            files[name] = FileRecord(path.stat().st_size, hash_file(path))
    return files


def _parse(path: Path, values: Mapping[str, Any]) -> Bundle:
    where = path / MANIFEST
    version = values.get("format")
    if version is None and not (path / GENAI_CONFIG).is_file():
        raise _not_a_bundle(path)  # adapters and merged models have an edgetune.json of their own
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{where}: format version {shown(version)}, this EdgeTune reads version {FORMAT_VERSION}",
            cure="export the bundle again, or use the EdgeTune that wrote it",
        )
    task = values.get("task", "generation")
    if task not in [*TASKS, *OLD_NAMES]:  # which may be no text at all
        raise BundleError(f"{where}: unknown task {shown(task)}", cure=f"this EdgeTune runs {', '.join(TASKS)}")
    try:
        return _build(path, values)
    except KeyError as error:
        raise BundleError(f"{where}: damaged: has no {error}", cure=AGAIN) from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = error if type(error) is ValueError else repr(error)
        raise BundleError(f"{where}: damaged: {reason}", cure=AGAIN) from None


def _build(path: Path, values: Mapping[str, Any]) -> Bundle:
    """A bundle from parsed JSON; whatever is missing or of another shape raises an ordinary exception."""
    files = {name: facts(FileRecord, f"files.{name}", table(values["files"], name)) for name in table(values, "files")}
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(f"file name {name!r} leaves the folder")
    name = OLD_NAMES.get(values["task"], values["task"])
    task, others = TASKS[name], [other for key, other in TASKS.items() if key != name]
    if foreign := next((other.KEY for other in others if values.get(other.KEY) is not None), None):
        raise ValueError(f"a {name} bundle with a {foreign} format")
    formats: dict[str, Any] = {task.KEY: task.read(table(values, task.KEY)), **{other.KEY: None for other in others}}
    adapters = _adapters(values, files)
    for key in ("name", "precision"):
        if not is_text(values[key]):
            raise ValueError(f"{key} is {shown(values[key])}")
    if not is_count(values["context_length"], least=1):
        raise ValueError(f"context_length is {shown(values['context_length'])}")
    return Bundle(
        path=path,
        name=values["name"],
        precision=values["precision"],
        grid=None if values["grid"] is None else facts(BundleGrid, "grid", table(values, "grid")),
        context_length=values["context_length"],
        task=name,
        files=files,
        adapters=adapters,
        adapter=values.get("adapter"),
        provenance=table({"provenance": {}, **values}, "provenance"),
        verified=table({"verified": {}, **values}, "verified"),
        **formats,
    )


def _adapters(values: Mapping[str, Any], files: Mapping[str, FileRecord]) -> Mapping[str, AdapterRecord]:
    """The records of the adapters. Raises ValueError for one without a file, and for a default that is none of them."""
    records = table({"adapters": {}, **values}, "adapters")
    if missing := next((name for name in records if adapter_file(name) not in files), None):
        raise ValueError(f"adapters: {adapter_file(missing)} is not listed")
    if (default := values.get("adapter")) is not None and default not in list(records):
        raise ValueError(f"adapter is {shown(default)}")
    return {
        name: AdapterRecord(**{part: table(table(records, name), part) for part in ("provenance", "verified")})
        for name in records
    }


def _check_files(bundle: Bundle) -> None:
    problems = []
    for name, record in bundle.files.items():
        path = bundle.path / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size_bytes := path.stat().st_size) != record.size_bytes:
            problems.append(f"{name} has {size_bytes} bytes instead of {record.size_bytes}")
    problems += [f"{name} is not listed" for name in TASKS[bundle.task].NEEDED if name not in bundle.files]
    if problems:
        raise BundleError(f"{bundle.path}: incomplete bundle: {', '.join(problems)}", cure=AGAIN)


def _not_a_bundle(path: Path) -> BundleError:
    """The error for a path without edgetune.json: says what is there instead and which verb makes a bundle of it."""
    if not path.exists():
        return BundleError(f"{path}: no such bundle", cure="`edgetune export RUN` writes one into RUN/bundle")
    if not path.is_dir():
        return BundleError(f"{path}: is a file, not a bundle", cure="give the folder that holds edgetune.json")
    if (path / "bundle" / MANIFEST).is_file():
        return BundleError(f"{path}: is a run folder", cure=f"its bundle is {path / 'bundle'}")
    for name, kind in _OTHER_FOLDERS.items():
        if (path / name).is_file():
            first = "`edgetune merge`, then " if name == "adapter_config.json" else ""
            return BundleError(
                f"{path}: is {kind}, not a bundle", cure=f"{first}`edgetune export` makes a bundle of it"
            )
    if (path / MANIFEST).is_file():
        return BundleError(f"{path / MANIFEST}: damaged: has no format version", cure=AGAIN)
    return BundleError(f"{path}: holds no {MANIFEST}, so it is no bundle", cure="`edgetune export` makes one")


_OTHER_FOLDERS = {
    "adapter_config.json": "an adapter",
    GENAI_CONFIG: "an onnxruntime-genai folder without edgetune.json",
    "config.json": "a Hugging Face model folder",
    "recipe.toml": "a run folder without a bundle",
}
