"""Every exception a user can meet. Each knows its exit code; the message says where and what, the cure what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_SHOWN = 60


class EdgeTuneError(Exception):
    """Base of all errors shown to users as one line: `edgetune: <message>; <cure>`."""

    exit_code = 1
    is_told = False
    """Of several processes: the main one has it too, or an error that tells of it, and shows that for all."""

    def __init__(self, message: str, *, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.message}; {self.cure}" if self.cure else self.message


class RecipeError(EdgeTuneError):
    """A recipe that cannot be read or that says something impossible. `problems` holds one line for each."""

    exit_code = 2

    def __init__(self, message: str, *, cure: str = "", problems: Sequence[str] = ()) -> None:
        super().__init__(message, cure=cure)
        self.problems = tuple(problems) or (str(self),)


class DataError(EdgeTuneError):
    """Data that cannot be read or holds nothing to learn from; the message starts with file:line where there is one."""

    exit_code = 2


class ModelError(EdgeTuneError):
    """A base, adapter or checkpoint that is missing, broken, unsafe or of a kind EdgeTune does not handle."""

    exit_code = 2


class RunError(EdgeTuneError):
    """A run folder that belongs to another recipe, lacks what a stage needs, or cannot be written."""

    exit_code = 2


class DivergedError(RunError):
    """A training whose loss is no number any more, or stays far above its best."""


class BundleError(EdgeTuneError):
    """A bundle that is incomplete, damaged or of another version."""

    exit_code = 2


class HubError(EdgeTuneError):
    """The Hugging Face Hub was not reached, or does not take what it was given."""

    exit_code = 2


class PromptError(EdgeTuneError):
    """A prompt or a generation setting that a bundle cannot answer: empty, too long, out of range."""

    exit_code = 2


class MissingExtraError(EdgeTuneError):
    """A part of EdgeTune that needs an extra which is not installed."""

    exit_code = 3


class HardwareError(EdgeTuneError):
    """Hardware or a runtime library that cannot do what the recipe asks."""

    exit_code = 3


class OutOfMemoryError(EdgeTuneError):
    """The run does not fit the memory it was given."""

    exit_code = 4


class CheckError(EdgeTuneError):
    """A verification that failed: what was made is not what was measured."""

    exit_code = 5


class Stopped(EdgeTuneError):
    """SIGINT or SIGTERM; everything needed to go on was saved. `signal_number` gives exit code 130 or 143."""

    def __init__(self, message: str, *, signal_number: int, cure: str = "") -> None:
        super().__init__(message, cure=cure)
        self.exit_code = 128 + signal_number


class OtherProcessError(EdgeTuneError):
    """Another process of the same run has failed; message, cure and exit code are those of its error."""

    is_told = True

    def __init__(self, message: str, *, exit_code: int, cure: str = "") -> None:
        super().__init__(message, cure=cure)
        self.exit_code = exit_code


def is_stop(error: BaseException) -> bool:
    """Whether an exception says that the user, or the system, wants the process to end; none says that work failed."""
    return isinstance(error, Stopped) or not isinstance(error, Exception)


def shown(value: Any) -> str:
    """A value of the user's as a message shows it: Python's notation, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # of a number with thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, with the next one where it ends in a colon; or its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])
