"""Sources of rows: files, folders, hub ids and what comes with EdgeTune. First step of the data flow.

Rows are streamed; every row knows its place, so that a complaint about it can name file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, Literal

from edgetune.data import iob
from edgetune.errors import DataError

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
EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Row:
    """One row as it stands in its source. `place` is "file:line", or "file:row" where lines mean nothing."""

    values: dict[str, Any]
    place: str


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
        return tuple(split for split in ("train", "eval", "test") if any(SPLIT_NAMES.get(n) == split for n in found))
    path = find(source)
    return tuple(_folder_splits(path)) if path.is_dir() else ()


def content_files(source: str, split: Split | None) -> tuple[Path, ...]:
    """The files whose bytes make up a split, for hashing; empty for a hub id."""
    if is_hub_id(source):
        return ()
    path = find(source)
    return tuple(_folder_splits(path).get(split or "train", ())) if path.is_dir() else (path,)


def hub_fingerprint(source: str, split: Split | None) -> str:
    """What identifies the content of a hub data set's split."""
    return str(_load_hub(source, split)._fingerprint)


def is_hub_id(source: str) -> bool:
    """Whether a source names a data set on the hub: it looks like org/name and nothing of that name is on disk."""
    return bool(HUB_ID.fullmatch(source)) and not Path(source).exists()


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
    if path.is_file() and _extension(path) not in EXTENSIONS:
        raise DataError(f"{source}: unknown kind of file", cure=f"known: {', '.join(EXTENSIONS)}, also with .gz")
    return path


def _raw_rows(source: str, split: Split | None) -> Iterator[Row]:
    if is_hub_id(source):
        yield from (Row(dict(values), f"{source}:{n}") for n, values in enumerate(_load_hub(source, split), start=1))
        return
    path = find(source)
    if path.is_file():
        yield from _file_rows(path)
        return
    wanted = split or "train"
    found = _folder_splits(path)
    if wanted not in found:
        raise DataError(f"{source}: has no {wanted} split", cure=f"found: {', '.join(found)}")
    if iob.is_iob(found[wanted][0].parent):
        yield from (Row(values, place) for values, place in iob.read(found[wanted][0].parent))
        return
    for file in found[wanted]:
        yield from _file_rows(file)


def _folder_splits(folder: Path) -> dict[Split, tuple[Path, ...]]:
    """The files of a folder by split. A folder whose names say nothing of splits is all train."""
    files = sorted(item for item in folder.rglob("*") if item.is_file() and _extension(item) in EXTENSIONS)
    files = [item for item in files if not any(part.startswith(".") for part in item.relative_to(folder).parts)]
    for item in sorted(folder.iterdir()):
        if item.is_dir() and iob.is_iob(item):
            files += iob.files(item)
    if not files:
        raise DataError(f"{folder}: holds no data files", cure=f"known: {', '.join(EXTENSIONS)}")
    named: dict[Split, tuple[Path, ...]] = {}
    for file in files:
        if split := _split_of(file.relative_to(folder)):
            named[split] = (*named.get(split, ()), file)
    return {split: named[split] for split in ("train", "eval", "test") if split in named} or {"train": tuple(files)}


def _split_of(path: Path) -> Split | None:
    for part in path.parts:
        word = re.split(r"[-_.]", part)[0].lower()
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return None


def _extension(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def _file_rows(path: Path) -> Iterator[Row]:
    extension = _extension(path)
    if extension == ".parquet":
        yield from _parquet_rows(path)
        return
    read = {".jsonl": _json_lines, ".json": _json_rows, ".csv": _separated_rows, ".tsv": _separated_rows}[extension]
    try:
        with _open_text(path) as file:
            yield from read(file, path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason})", cure="save it as UTF-8") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _open_text(path: Path) -> IO[str]:
    """UTF-8 text, a byte order mark skipped, newlines as they are."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(file: IO[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield Row(_object(_parse_json(line.rstrip(), place), place), place)


def _json_rows(file: IO[str], path: Path) -> Iterator[Row]:
    """A list of objects, or an object that holds one list of objects (as {"data": [...]} does)."""
    value = _parse_json(file.read(), str(path))
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else [value]
    for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
        place = f"{path}: row {number}"
        yield Row(_object(item, place), place)


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = place if error.lineno == 1 else f"{place}:{error.lineno}"
        raise DataError(f"{where}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{place}: not valid JSON: nested too deeply") from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a row must be a JSON object, not {type(value).__name__}")
    return value


def _separated_rows(file: IO[str], path: Path) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    is_tsv = _extension(path) == ".tsv"
    reader = csv.DictReader(file, delimiter="\t" if is_tsv else ",", strict=True)
    try:
        for values in reader:
            place = f"{path}:{reader.line_num}"
            if None in values or None in values.values():
                raise DataError(
                    f"{place}: has another number of columns than the header", cure="quote texts that hold it"
                )
            yield Row(dict(values), place)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid {'TSV' if is_tsv else 'CSV'}: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with path.open("rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{path}: row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from None


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
