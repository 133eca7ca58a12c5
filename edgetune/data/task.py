"""What data does for each model.task: how rows are read, and how they become token ids. One module a task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from edgetune.data import classification, generation
from edgetune.data.encode import Encoded
from edgetune.data.files import Row
from edgetune.data.formats import Example
from edgetune.data.report import Report
from edgetune.data.splits import Part, Read, Source
from edgetune.errors import DataError
from edgetune.recipe import Recipe


class Encoder(Protocol):
    """Makes token ids of a recipe's examples, and says what became of them."""

    cache_name: ClassVar[str]
    """What the folders of its arrays are called."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """What decides the arrays beside source, tokenizer and the common keys of [data]."""

    def kept(self, part: Part, counts: Counter[str], /) -> Iterator[tuple[Example, Encoded]]:
        """The rows that are trained or evaluated on; all others are counted. Raises DataError."""

    def write(self, rows: Iterable[tuple[Example, Encoded]], path: Path, /) -> int:
        """Rows as files that begin with `path`; how many rows they are."""

    def open(self, path: Path, key: str, /) -> Any:
        """The rows that `write` wrote, with len(), lengths and fingerprint; `key`: what they were made from."""

    def nothing_left(self, part: Part, counts: Mapping[str, int], /) -> DataError:
        """Why no row of a part can be used."""

    def report(self, counts: Mapping[Part, Mapping[str, int]], folder: Path, /) -> Report:
        """What became of the rows that `kept` counted, "rows" of them kept, their arrays being in `folder`."""

    def read_report(self, values: Mapping[str, Any], /) -> Report:
        """The report whose values are read from a file."""


class Task(Protocol):
    """One kind of rows."""

    def reader(self, recipe: Recipe, source: Source, /) -> Callable[[Row], Example]:
        """How rows of a source become examples. Raises DataError."""

    def as_row(self, example: Example, recipe: Recipe, /) -> dict[str, Any]:
        """An example as a row that reads back as it is, whatever the columns of its own file are called."""

    def check_labels(self, recipe: Recipe, read: Read, /) -> tuple[str, ...]:
        """The labels of the training rows, once the rows of all splits can be used; () where there are none.

        Raises DataError.
        """

    def refuse_other_labels(self, rows: Iterable[Example], labels: Sequence[str], recipe: Recipe, /) -> None:
        """Raises DataError for a row that a model with these labels cannot learn."""

    def longest_row(self, recipe: Recipe, base: Path, tokenizer: Any, /) -> int:
        """Tokens of a row of the base's, at most."""

    def encoder(self, recipe: Recipe, tokenizer: Any, read: Read, labels: Sequence[str], max_length: int, /) -> Encoder:
        """What makes token ids of the recipe's examples, at most `max_length` a row. Raises DataError."""


TASKS: Mapping[str, Task] = {"generation": generation, "classification": classification}
