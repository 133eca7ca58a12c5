"""What became of a recipe's rows on their way to token ids: counts, and the lines that a user is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class Report(Protocol):
    """What became of the rows: a dataclass of counts."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def summary(self) -> str:
        """The data in one line."""

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each thing that a user may not expect."""

    @property
    def tokens(self) -> int:
        """Of the train rows."""

    @property
    def trained_tokens(self) -> int:
        """Those of them that the loss counts; 0 where it counts no tokens."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row read."""

    @property
    def labels(self) -> int:
        """Labels that are told apart; 0 where none are."""


@dataclass(frozen=True)
class DataReport:
    """What became of the rows: counts, and nothing left unsaid."""

    format: str
    format_reason: str
    train_rows: int
    eval_rows: int
    train_source: str
    eval_source: str
    """Where the rows come from, with the names of a folder's files."""
    dropped_too_long: int
    """Of the train rows, as the next two."""
    truncated: int
    dropped_untrainable: int
    """Rows whose answers are all empty, or in which no token counts in the loss."""
    eval_dropped: int
    """Eval rows left out for either reason."""
    tokens: int
    """Of the train rows."""
    trained_tokens: int
    longest: int
    """Tokens of the longest row read, also of one that was dropped."""
    unanswered: int
    """Rows, of both splits, whose last turns were left out because no answer follows them."""
    has_default_template: bool
    """The tokenizer has no chat template; EdgeTune's default is used."""
    chat_notes: tuple[str, ...]
    """What the chat template does with the rows that a user may not expect."""
    columns_left_out: tuple[str, ...]
    """Of the first train row, those that nothing is read from."""

    @property
    def labels(self) -> int:
        """Labels that are told apart: none."""
        return 0

    @property
    def summary(self) -> str:
        """The data in one line."""
        return (
            f"{self.train_rows:,} rows ({self.format}: {self.format_reason}), {self.tokens:,} tokens, "
            f"{self.trained_tokens:,} of them trained; {self.eval_rows:,} eval rows: {self.eval_source}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each thing that a user may not expect: rows left out or cut, a foreign template."""
        longest = f"the longest has {self.longest:,}"
        lines = (
            (
                self.dropped_too_long,
                f"{self.dropped_too_long:,} rows longer than max_seq_len left out; {longest} tokens",
            ),
            (self.truncated, f"{self.truncated:,} rows cut to max_seq_len; {longest} tokens"),
            (self.dropped_untrainable, f"{self.dropped_untrainable:,} rows with nothing to learn left out"),
            (self.eval_dropped, f"{self.eval_dropped:,} eval rows left out, too long or with nothing to learn"),
            (self.unanswered, f"of {self.unanswered:,} rows the turns after the last answer left out"),
            (self.columns_left_out, f"columns left out: {', '.join(self.columns_left_out)}"),
            (self.has_default_template, "the tokenizer has no chat template; EdgeTune's default is used"),
        )
        return (*(line for applies, line in lines if applies), *self.chat_notes)


@dataclass(frozen=True)
class LabelReport:
    """What became of texts with labels."""

    columns: str
    """Which columns were read, and why."""
    train_rows: int
    eval_rows: int
    labels: int
    fewest: tuple[str, int]
    """The label with the fewest training rows, and how many."""
    most: tuple[str, int]
    train_source: str
    eval_source: str
    truncated: int
    """Of the training and eval rows."""
    dropped_too_long: int
    """Of the training rows, as the next."""
    dropped_empty: int
    eval_dropped: int
    eval_outside: int
    """Eval rows out of scope for which the head has no label."""
    tokens: int
    longest: int
    """Tokens of the longest text read, training or eval, before it was cut."""

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss counts: none, it counts texts."""
        return 0

    @property
    def summary(self) -> str:
        """The data in one line."""
        return (
            f"{self.train_rows:,} texts ({self.columns}), {self.labels:,} labels with {self.fewest[1]:,} to "
            f"{self.most[1]:,} rows; {self.eval_rows:,} eval rows: {self.eval_source}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for each thing that a user may not expect."""
        lines = (
            (self.truncated, f"{self.truncated:,} texts cut to the longest allowed; the longest has {self.longest:,}"),
            (
                self.dropped_too_long,
                f"{self.dropped_too_long:,} texts too long left out; the longest has {self.longest:,}",
            ),
            (self.dropped_empty, f"{self.dropped_empty:,} rows without text left out"),
            (self.eval_dropped, f"{self.eval_dropped:,} eval rows without text, or too long, left out"),
            (self.eval_outside, f"{self.eval_outside:,} eval rows out of scope: no part of the loss"),
            (self.fewest[1] < 5, f"label {self.fewest[0]!r} has only {self.fewest[1]} training rows"),
        )
        return tuple(line for applies, line in lines if applies)
