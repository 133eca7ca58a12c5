"""Sources of rows: files, folders, hub ids and what comes with EdgeTune. First step of the data flow.

Rows are streamed; every row knows its place, so that a complaint about it can name file and line.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from edgetune.data import iob
from edgetune.data.files import EXTENSIONS, Row, extension, file_rows, not_utf8, with_class_names, without_filled
from edgetune.errors import DataError
from edgetune.hashes import hash_file
from edgetune.recipe import DataTable
from edgetune.run_dir import RunDir

Split = Literal["train", "eval", "test"]

HOME = "edgetune:home"
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "eval": "eval",
    "dev": "eval",
    "valid": "eval",
    "validation": "eval",
    "val": "eval",
    "test": "test",
}
SPLITS: tuple[Split, ...] = ("train", "eval", "test")
SAVED_BESIDE_ARROW = ("dataset_dict.json", "dataset_info.json", "state.json")
TEXT_FILE = ".txt"
"""One text a file, in a folder named after its label."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


def on_disk(data: DataTable) -> tuple[Path, ...]:
    """The files and folders of a recipe's rows, as far as they are there."""
    found = []
    for source in (data.train, data.eval, data.test):
        with contextlib.suppress(DataError):
            found += [find(source)] if source and not is_hub_id(source) else []
    return tuple(found)


def rows(source: str, *, split: Split | None = None, columns: Mapping[str, str] | None = None) -> Iterator[Row]:
    """The rows of one split, in order; split None: of a file all, of a folder or hub id its train split.

    `columns` maps our name of a column to the source's. Raises DataError that names file and line.
    """
    for row in _raw_rows(source, split):
        yield _rename(row, columns) if columns else row


def splits(source: str) -> tuple[Split, ...]:
    """The splits a source has under names of their own; empty for a single file. Raises DataError if there is none."""
    if is_hub_id(source):
        found = _hub_split_names(source)
        return tuple(split for split in SPLITS if any(SPLIT_NAMES.get(n) == split for n in found))
    path = find(source)
    return tuple(_folder_splits(path)) if path.is_dir() else ()


def content_hashes(source: str, split: Split | None) -> tuple[str, ...]:
    """What identifies the content of a split: SHA-256 of its files, or the hub data set's own fingerprint."""
    if is_hub_id(source):
        return (str(_load_hub(source, split)._fingerprint),)
    try:
        return tuple(hash_file(path) for path in _files(source, split))
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error}") from None


def describe(source: str, split: Split | None) -> str:
    """Where a split's rows come from, with the names of a folder's files: "gsm8k (train: train.jsonl)"."""
    wanted = split or "train"
    if is_hub_id(source):
        return f"{source} ({wanted})"
    path = find(source)
    if path.is_file():
        return source
    names = [str(item.relative_to(path)) for item in _files(source, split)]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{source} ({wanted}: {shown})"


def is_hub_id(source: str) -> bool:
    """Whether a source names a data set on the hub: it looks like org/name, not like a file, and is not on disk."""
    return bool(HUB_ID.fullmatch(source)) and extension(Path(source)) not in EXTENSIONS and not Path(source).exists()


def find(source: str) -> Path:
    """The file or folder behind a source. Raises DataError if nothing is there, or a variable in it is not set."""
    if source == HOME:
        return Path(str(resources.files("edgetune.assets.home")))
    expanded = os.path.expanduser(os.path.expandvars(source))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise DataError(f"{source}: the environment variable {unset[1]} is not set", cure=f"set {unset[1]} to a folder")
    path = Path(expanded)
    if not path.exists():
        raise DataError(f"{source}: no such file or folder", cure=f"give a data file, a folder, a hub id, or {HOME}")
    if not path.is_dir() and (not path.is_file() or extension(path) not in EXTENSIONS):
        raise DataError(f"{source}: unknown kind of file", cure=f"known: {', '.join(EXTENSIONS)}, also with .gz")
    return path


def _raw_rows(source: str, split: Split | None) -> Iterator[Row]:
    if is_hub_id(source):
        yield from _hub_rows(source, split)
        return
    files = _files(source, split)
    if files[0].name in iob.NAMES:
        for folder in dict.fromkeys(file.parent for file in files):
            yield from (Row(values, place) for values, place in iob.read(folder))
        return
    for file in files:
        yield from _whole_text(file) if extension(file) == TEXT_FILE else file_rows(file)


def _files(source: str, split: Split | None) -> tuple[Path, ...]:
    """The files that make up a split, at least one. Raises DataError."""
    path = find(source)
    if path.is_file():
        return (path,)
    wanted = split or "train"
    found = _folder_splits(path)
    if wanted not in found:
        raise DataError(f"{source}: has no {wanted} split", cure=f"found: {', '.join(found)}")
    return found[wanted]


def _folder_splits(folder: Path) -> dict[Split, tuple[Path, ...]]:
    """The files of a folder by split. A folder whose names say nothing of splits is all train.

    Where files are named exactly like a split (train.jsonl, test-00000-of-00002.parquet, train/x.csv) only those count,
    else a word of the name decides (gsm8k_train.jsonl): so test_socratic.jsonl beside test.jsonl is left alone.
    """
    if iob.is_iob(folder):
        return {"train": iob.files(folder)}
    named = {item.name: iob.files(item) for item in sorted(folder.iterdir()) if item.is_dir() and iob.is_iob(item)}
    if named:
        return _by_split({name: files for name, files in named.items() if name in SPLIT_NAMES}) or {
            "train": tuple(file for files in named.values() for file in files)
        }
    names = [name for name in _names(folder) if extension(name) in EXTENSIONS]
    if not names:
        return _label_folders(folder)
    exact = [(_exact_split(name), folder / name) for name in names]
    loose = [(_split_in_words(name), folder / name) for name in names]
    return _grouped(exact) or _grouped(loose) or {"train": tuple(folder / name for name in names)}


def _label_folders(folder: Path) -> dict[Split, tuple[Path, ...]]:
    """The .txt files of one folder a label, perhaps inside train/ and test/. Raises DataError if there are none."""
    names = [name for name in _names(folder) if extension(name) == TEXT_FILE and len(name.parts) > 1]
    if not names:
        known = ", ".join(EXTENSIONS)
        raise DataError(f"{folder}: holds no data files", cure=f"known: {known}; or folders of .txt files, one a label")
    return _grouped([(_exact_split(name.parent), folder / name) for name in names if len(name.parts) > 2]) or {
        "train": tuple(folder / name for name in names)
    }


def _whole_text(file: Path) -> Iterator[Row]:
    """A file as one row, labelled by its folder's name. Raises DataError."""
    try:
        yield Row({"text": file.read_text(encoding="utf-8"), "label": file.parent.name}, str(file))
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from None


def _by_split(named: Mapping[str, tuple[Path, ...]]) -> dict[Split, tuple[Path, ...]]:
    return _grouped([(SPLIT_NAMES[name], file) for name, files in named.items() for file in files])


def _grouped(files: Iterable[tuple[Split | None, Path]]) -> dict[Split, tuple[Path, ...]]:
    """Files by split, splits in their order; files of none are left out."""
    files = list(files)
    groups = {split: tuple(path for of, path in files if of == split) for split in SPLITS}
    return {split: group for split, group in groups.items() if group}


def _names(folder: Path) -> list[Path]:
    """The files under a folder, relative to it, in order; hidden ones and those of runs of EdgeTune are none.

    Nor are those that describe the Arrow files of `datasets.Dataset.save_to_disk`.
    """
    found: list[Path] = []
    for path, folders, files in os.walk(folder):
        kept = [name for name in folders if not RunDir(Path(path, name)).is_run and not name.startswith(".")]
        folders[:] = kept
        found += [Path(path, name).relative_to(folder) for name in files if not name.startswith(".")]
    if any(extension(name) == ".arrow" for name in found):
        found = [name for name in found if name.name not in SAVED_BESIDE_ARROW]
    return sorted(found)


def _exact_split(name: Path) -> Split | None:
    """The split that a folder in the path is called, or that the file is called, a shard number aside."""
    stem = re.sub(r"([-_.]\d+)?([-_]of[-_]\d+)?$", "", name.name.split(".")[0])
    found = [SPLIT_NAMES[word.lower()] for word in (*name.parts[:-1], stem) if word.lower() in SPLIT_NAMES]
    return found[0] if found else None


def _split_in_words(name: Path) -> Split | None:
    """The only split among the words of a path; None if there is none or more than one."""
    words = re.split(r"[-_./\\ ]", str(name).lower())
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    missing = [name for name in columns.values() if name not in row.values]
    if missing:
        raise DataError(f"{row.place}: no column '{missing[0]}'", cure=f"columns found: {', '.join(row.values)}")
    taken = set(columns.values())
    kept = {name: value for name, value in row.values.items() if name not in taken}
    return Row(kept | {ours: row.values[theirs] for ours, theirs in columns.items()}, row.place)


def _hub_split_names(source: str) -> Iterable[str]:
    import datasets

    name, _, config = source.partition(":")
    return _from_hub(source, lambda: datasets.get_dataset_split_names(name, config or None))


def _load_hub(source: str, split: Split | None) -> Any:
    """A split of a hub data set, memory-mapped from the hub's own cache."""
    import datasets

    name, _, config = source.partition(":")
    known = list(_hub_split_names(source))
    wanted = split or "train"
    found = [item for item in known if SPLIT_NAMES.get(item) == wanted]
    if not found:
        raise DataError(f"{source}: has no {wanted} split", cure=f"found: {', '.join(known)}")
    return _from_hub(source, lambda: datasets.load_dataset(name, config or None, split=found[0]))


def _hub_rows(source: str, split: Split | None) -> Iterator[Row]:
    """The rows of a hub data set, numbered classes as their names."""
    import datasets

    table = _load_hub(source, split)
    features = getattr(table, "features", None) or {}
    kinds = {column: getattr(kind, "feature", kind) for column, kind in features.items()}
    classes = {column: kind.names for column, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
    for number, values in enumerate(table, start=1):
        yield Row(without_filled(with_class_names(values, classes)), f"{source}:{number}")


def _from_hub(source: str, load: Any) -> Any:
    """Call the datasets library; whatever it raises becomes one line."""
    try:
        return load()
    except Exception as error:  # a library with a hundred error types; all mean that the data cannot be had
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{source}: no such file or folder, and not to be had from the hub: {first}",
            cure="check the name and the network, set HF_TOKEN for private data, or give a file",
        ) from None
