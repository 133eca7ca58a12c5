"""The only place that prints. Results go to stdout, all else to stderr; errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import click

from edgetune.errors import EdgeTuneError
from edgetune.launch import launched

RUN = "run"
"""Key of click's context object under which a verb's run folder stands."""


def say(text: str) -> None:
    """A line of result on stdout."""
    click.echo(text)


def say_json(value: Mapping[str, Any]) -> None:
    """Exactly one JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def stream(text: str) -> None:
    """A piece of result on stdout, shown at once, without a line end."""
    click.echo(text, nl=False)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line about the work on stderr."""
    click.echo(text, err=True)


class ProgressLine:
    """Shows events on stderr: on a terminal one line that rewrites itself, else a line at most every ten seconds.

    An event with "message" is always shown on a line of its own. As a context manager it closes itself at the end.
    """

    QUIET_S = 10.0

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._last_s = float("-inf")
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if "message" in event:
            self.close()
            note(f"{event['stage']}: {event['message']}")
            return
        now = time.monotonic()
        text = _event_line(event)
        if self._is_terminal:
            if now - self._last_s > 0.1 or event.get("is_last"):
                click.echo("\r\x1b[2K" + text[: _terminal_width() - 1], nl=False, err=True)
                self._open = True
                self._last_s = now
        elif now - self._last_s > self.QUIET_S:
            note(text)
            self._last_s = now

    def close(self) -> None:
        """End the rewriting line, if one is open."""
        if self._open:
            click.echo("", err=True)
            self._open = False


def _event_line(event: Mapping[str, Any]) -> str:
    parts = [f"{event.get('stage', '')}:"]
    if "step" in event:
        total = f"/{event['steps']}" if "steps" in event else ""
        parts.append(f"step {event['step']}{total}")
    for key, label, form in (
        ("loss", "loss", "{:.4f}"),
        ("eval_loss", "eval loss", "{:.4f}"),
        ("learning_rate", "lr", "{:.2e}"),
        ("tokens_per_s", "tokens/s", "{:,.0f}"),
    ):
        if event.get(key) is not None:
            parts.append(f"{label} {form.format(event[key])}")
    if event.get("memory_bytes") is not None:
        parts.append(f"{event['memory_bytes'] / 1024**2:,.0f} MiB")
    if event.get("left_s") is not None:
        minutes, seconds = divmod(int(event["left_s"]), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return "  ".join(parts)


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 80


def report_error(error: EdgeTuneError) -> int:
    """Show an error the user can act on, of several processes' one; its exit code."""
    if launched().is_main or not error.is_told:
        note(f"edgetune: {error}")
    return error.exit_code


def work_in(run: Path) -> None:
    """Say which run folder the verb works in: that is where the details of a bug are saved."""
    click.get_current_context().ensure_object(dict)[RUN] = run


def report_bug(error: BaseException, run: Path) -> int:
    """Say that it is a bug; save the traceback in the run folder, else in the current one; show none. Exit code 1."""
    place = _save_traceback(error, (run, Path()))
    saved = f"; the details are in {place}" if place else ""
    first_line = (str(error).splitlines() or [""])[0]
    note(f"edgetune: this is a bug in EdgeTune: {type(error).__name__}: {first_line}{saved}")
    return 1


def _save_traceback(error: BaseException, folders: Sequence[Path]) -> Path | None:
    """The file that holds it and where it happened: versions, platform, command. It lies in the first folder that is
    there and takes it; None if none does."""
    from edgetune.provenance import provenance

    where = json.dumps(provenance(), indent=2, ensure_ascii=False)
    text = f"{where}\n\n{''.join(traceback.format_exception(error))}"
    for folder in folders:
        with contextlib.suppress(OSError):
            place = folder.absolute() / f"edgetune-bug-{time.strftime('%Y%m%d-%H%M%S')}.txt"
            place.write_text(text, encoding="utf-8")
            return place
    return None
