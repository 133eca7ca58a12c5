"""One data file -> rows, streamed: JSON lines, JSON, CSV, TSV, parquet and Arrow, each also with .gz.

Every row knows its place, so that a complaint about it can name file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgetune.data.json_text import JsonText, not_json
from edgetune.errors import DataError

EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")

TOOL_KEYS = ("tools", "functions", "tool_calls", "function_call")
"""Where the schemas of tools and calls of them stand, in a row or a message."""


@dataclass(frozen=True)
class Row:
    """One row as it stands in its source. `place` is "file:line", or "file: row n" where lines mean nothing."""

    values: dict[str, Any]
    place: str


def extension(path: Path) -> str:
    """What kind of file it is, .gz aside."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a file in order; memory does not grow with them. Raises DataError."""
    kind = extension(path)
    if kind in (".parquet", ".arrow"):
        yield from _table_rows(path, kind)
        return
    read = {".jsonl": _json_lines, ".json": _json_rows, ".csv": _csv_rows, ".tsv": _tsv_rows}[kind]
    try:
        with open_text(path) as file:
            yield from read(file, path)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}", cure="copy or make it again") from None


def open_text(path: Path) -> IO[str]:
    """UTF-8 text, a byte order mark skipped, newlines as they are."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """The error for a text file in another encoding, with the first line that is not UTF-8."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            number = next((n for n, line in enumerate(file, start=1) if not _is_utf8(line)), 1)
    except (OSError, EOFError, zlib.error) as damage:  # of a compressed file, found only now
        return DataError(f"{path}: cannot be read: {damage}", cure="copy or make it again")
    return DataError(f"{path}:{number}: is not UTF-8 ({error.reason})", cure="save the file as UTF-8")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_lines(file: IO[str], path: Path) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise not_json(place, error) from None
            yield Row(_object(value, place), place)


def _json_rows(file: IO[str], path: Path) -> Iterator[Row]:
    """A list of objects; objects one after another; or an object around one list of objects, as {"data": [...]}."""
    text = JsonText(file, path)
    if text.peek() == "[":
        yield from _list_rows(text)
        return
    while text.peek():
        place = text.place
        value = _object(text.value(), place)
        lists = [item for name, item in value.items() if isinstance(item, list) and name not in _ROW_LISTS]
        if len(lists) == 1 and not text.peek() and not any(name in value for name in _ROW_LISTS):
            for number, item in enumerate(lists[0], start=1):
                yield Row(_object(item, f"{path}: row {number}"), f"{path}: row {number}")
        else:
            yield Row(value, place)


_ROW_LISTS = ("messages", "conversations", "conversation", "prompt", "completion")
"""Columns of a row that may be lists themselves: an object with one of them is a row, not a wrapper."""


def _list_rows(text: JsonText) -> Iterator[Row]:
    text.skip()
    is_first = True
    while text.peek() != "]":
        if not is_first:
            text.expect(",")
            text.peek()
        is_first = False
        place = text.place
        yield Row(_object(text.value(), place), place)
    text.skip()
    if text.peek():
        raise DataError(f"{text.place}: not valid JSON: more text after the list")


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a row must be a JSON object, not {type(value).__name__}")
    return value


def _csv_rows(file: IO[str], path: Path) -> Iterator[Row]:
    """CSV with a header; a text with commas, quotes or line breaks stands in quotes, its own doubled."""
    csv.field_size_limit(sys.maxsize)
    yield from _separated_rows(csv.reader(file, strict=True), path, "CSV", cure=_QUOTE)


def _tsv_rows(file: IO[str], path: Path) -> Iterator[Row]:
    """TSV with a header: a line is a row and a quotation mark an ordinary character (IANA, tab-separated-values).

    Spreadsheets and pandas write TSV as CSV with tabs. A file is read so where its lines cannot be rows, or where each
    name in its header is in quotes; a cell, where it is in quotes and has doubled ones inside, and no others.
    """
    csv.field_size_limit(sys.maxsize)
    header = next(file, "").rstrip("\r\n")
    is_quoted = all(len(name) > 1 and name[0] == name[-1] == '"' for name in header.split("\t"))
    are_rows = all(line.count("\t") == header.count("\t") for line in file if line.strip("\r\n"))
    file.seek(0)
    if is_quoted or not are_rows:
        yield from _separated_rows(csv.reader(file, delimiter="\t", strict=True), path, "TSV", cure=_QUOTE)
        return
    for row in _separated_rows(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), path, "TSV", cure=_QUOTE):
        yield Row({name: _unquoted(text) for name, text in row.values.items()}, row.place)


def _unquoted(text: str) -> str:
    """A cell as it was before a writer of CSV quoted it; any other text as it is."""
    inner = text[1:-1].replace('""', "")
    is_quoted = len(text) > 3 and text[0] == text[-1] == '"' and '"' not in inner and inner != text[1:-1]
    return text[1:-1].replace('""', '"') if is_quoted else text


def _separated_rows(reader: Any, path: Path, kind: str, *, cure: str) -> Iterator[Row]:
    """The rows of a csv.reader whose first one names the columns; blank lines are none."""
    try:
        names: list[str] = next(reader, [])
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{path}:1: column '{twice[0]}' occurs twice in the header")
        for cells in reader:
            if not cells:
                continue
            place = f"{path}:{reader.line_num}"
            if len(cells) != len(names):
                raise DataError(f"{place}: has another number of columns than the header", cure=cure)
            yield Row(dict(zip(names, cells, strict=True)), place)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid {kind}: {error}", cure=cure) from None


_QUOTE = "put texts that hold separators or quotes into quotes, and double the quotes inside"


def _table_rows(path: Path, kind: str) -> Iterator[Row]:
    """The rows of a parquet or Arrow file, numbered classes as the names that datasets keeps in its metadata."""
    import pyarrow

    number, classes = 0, None
    try:
        with path.open("rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            for batch in _batches(file, kind):
                classes = class_names(batch.schema.metadata) if classes is None else classes
                for values in batch.to_pylist():
                    number += 1
                    yield Row(without_filled(with_class_names(values, classes)), f"{path}: row {number}")
    except (pyarrow.ArrowException, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        what = "parquet" if kind == ".parquet" else "Arrow"
        raise DataError(f"{path}: cannot be read as {what}: {str(error).splitlines()[0]}") from None


def _batches(file: Any, kind: str) -> Iterator[Any]:
    """Record batches of a parquet file, or of an Arrow file in either of its forms, a stream or with a footer."""
    import pyarrow
    import pyarrow.parquet

    if kind == ".parquet":
        yield from pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024)
        return
    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        opened = pyarrow.ipc.open_file(file)
        yield from (opened.get_batch(index) for index in range(opened.num_record_batches))
    else:
        yield from pyarrow.ipc.open_stream(file)


def class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of each column of numbered classes, from what datasets writes into a schema's metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {column: kind.get("feature") or kind for column, kind in features.items() if isinstance(kind, dict)}
        return {column: kind["names"] for column, kind in kinds.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def with_class_names(values: dict[str, Any], classes: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A row with its numbered classes as names, in lists too; -1, which stands for no class, as None."""
    return values | {column: _class_name(values.get(column), names) for column, names in classes.items()}


def without_filled(value: Any, *, is_schema: bool = False) -> Any:
    """Columns of an Arrow table without the nulls in tools and calls of them.

    Arrow gives each of them the keys of all others, which would be learned as arguments that are null.
    """
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not (is_schema and item is None)}
        return {key: without_filled(item, is_schema=is_schema or key in TOOL_KEYS) for key, item in kept.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [without_filled(item, is_schema=is_schema) for item in value]
    return value


def _class_name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None
