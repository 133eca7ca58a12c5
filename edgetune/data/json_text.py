"""A JSON text read piece by piece, so that memory does not grow with a file that is one long list."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO, Any

from edgetune.errors import DataError

CHUNK_CHARACTERS = 1 << 20


class JsonText:
    """A JSON text read piece by piece: no more of it is in memory than a value and the piece it ends in."""

    _SPACE = re.compile(r"[ \t\r\n]*")
    _SLACK = 16
    """Longest word a piece can end in the middle of: a literal, a number's sign, an escape."""

    def __init__(self, file: IO[str], path: Path) -> None:
        """The text of an open file; `path` is its name in what is said of it."""
        self._file, self._path = file, path
        self._text, self._position, self._line = "", 0, 1
        self._decode = json.JSONDecoder().raw_decode

    @property
    def place(self) -> str:
        """File and line of what comes next."""
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
                raise not_json(self.place, error) from None
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


def not_json(place: str, error: Exception) -> DataError:
    """The error for a text at a place that is no JSON, or none that can be read."""
    if isinstance(error, json.JSONDecodeError):
        return DataError(f"{place}: not valid JSON: {error.msg} (column {error.colno})")
    reason = "nested too deeply" if isinstance(error, RecursionError) else "a number of thousands of digits"
    return DataError(f"{place}: not valid JSON: {reason}")
