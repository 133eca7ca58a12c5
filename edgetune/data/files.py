"""One data file -> rows, streamed: JSON lines, JSON, CSV, TSV and parquet, each also with .gz.

Every row knows its place, so that a complaint about it can name file and line.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgetune.errors import DataError

EXTENSIONS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
CHUNK_CHARACTERS = 1 << 20


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
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    read = {".jsonl": _json_lines, ".json": _json_rows, ".csv": _separated_rows, ".tsv": _separated_rows}[kind]
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
                raise _not_json(place, error) from None
            yield Row(_object(value, place), place)


def _json_rows(file: IO[str], path: Path) -> Iterator[Row]:
    """A list of objects; objects one after another; or an object around one list of objects, as {"data": [...]}."""
    text = _JsonText(file, path)
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


_ROW_LISTS = ("messages", "conversations", "prompt", "completion")
"""Columns of a row that may be lists themselves: an object with one of them is a row, not a wrapper."""


def _list_rows(text: _JsonText) -> Iterator[Row]:
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


class _JsonText:
    """A JSON text read piece by piece: no more of it is in memory than a value and the piece it ends in."""

    _SPACE = re.compile(r"[ \t\r\n]*")
    _SLACK = 16
    """Longest word a piece can end in the middle of: a literal, a number's sign, an escape."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._position, self._line = "", 0, 1
        self._decode = json.JSONDecoder().raw_decode

    @property
    def place(self) -> str:
        return f"{self._path}:{self._line}"

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            match = self._SPACE.match(self._text, self._position)
            self._forward(match.end() if match else self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._more(CHUNK_CHARACTERS):
                return ""

    def skip(self) -> None:
        """Step over the character that `peek` saw."""
        self._forward(self._position + 1)

    def expect(self, character: str) -> None:
        """Step over a character that must come next."""
        if self.peek() != character:
            raise DataError(f"{self.place}: not valid JSON: expecting {character!r}")
        self.skip()

    def value(self) -> Any:
        """The value that starts here. Raises DataError with its line."""
        size = CHUNK_CHARACTERS
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - self._SLACK
                if may_go_on and self._more(size):
                    size *= 2
                    continue
                line = self._line + self._text.count("\n", self._position, error.pos)
                raise DataError(f"{self._path}:{line}: not valid JSON: {error.msg} (column {error.colno})") from None
            except (ValueError, RecursionError) as error:
                raise _not_json(self.place, error) from None
            self._forward(end)
            return value

    def _forward(self, position: int) -> None:
        self._line += self._text.count("\n", self._position, position)
        self._position = position

    def _more(self, size: int) -> bool:
        piece = self._file.read(size)
        self._text = self._text[self._position :] + piece
        self._position = 0
        return bool(piece)


def _not_json(place: str, error: Exception) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{place}: not valid JSON: {error.msg} (column {error.colno})")
    reason = "nested too deeply" if isinstance(error, RecursionError) else "a number of thousands of digits"
    return DataError(f"{place}: not valid JSON: {reason}")


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a row must be a JSON object, not {type(value).__name__}")
    return value


def _separated_rows(file: IO[str], path: Path) -> Iterator[Row]:
    """CSV or TSV with a header; a text with separators, quotes or line breaks stands in quotes, its own doubled."""
    csv.field_size_limit(sys.maxsize)
    is_tsv = extension(path) == ".tsv"
    reader = csv.DictReader(file, delimiter="\t" if is_tsv else ",", strict=True)
    try:
        names = reader.fieldnames or []
        if twice := [name for name in names if list(names).count(name) > 1]:
            raise DataError(f"{path}:1: column '{twice[0]}' occurs twice in the header")
        for values in reader:
            place = f"{path}:{reader.line_num}"
            if None in values or None in values.values():
                raise DataError(f"{place}: has another number of columns than the header", cure=_QUOTE)
            yield Row(dict(values), place)
    except csv.Error as error:
        kind = "TSV" if is_tsv else "CSV"
        raise DataError(f"{path}:{reader.line_num}: not valid {kind}: {error}", cure=_QUOTE) from None


_QUOTE = "put texts that hold separators or quotes into quotes, and double the quotes inside"


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
    except (pyarrow.ArrowException, OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0]}") from None
