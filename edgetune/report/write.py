"""The report stage: run folders and measurements -> one file that can be shown, mailed, or read by a program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edgetune.errors import RunError
from edgetune.files import write_text
from edgetune.report.facts import Report
from edgetune.report.formats import as_csv, as_json, as_markdown
from edgetune.report.page import render
from edgetune.report.picture import draw
from edgetune.report.read import read_report

Format = Literal["html", "md", "json", "csv", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
TEXTS: dict[Format, Callable[[Report], str]] = {"html": render, "md": as_markdown, "json": as_json, "csv": as_csv}


@dataclass(frozen=True)
class Written:
    """A report that was written."""

    out: Path
    size_bytes: int
    models: int
    problems: tuple[str, ...]
    """What of the input was left out."""


def report(
    paths: Sequence[Path], out: Path, *, format: Format | None = None, title: str | None = None, force: bool = False
) -> Written:
    """Write the report of some paths, see read.read_report; the format is that of the file's name unless given.

    Raises RunError: nothing to report, a file that is there already without `force`, a place that cannot be written.
    """
    chosen = format or format_of(out)
    if out.exists() and not force:
        raise RunError(f"{out}: there is something already", cure="replace it with --force, or choose another --out")
    if out.is_dir():
        raise RunError(f"{out}: is a folder", cure="give a file with --out")
    if any(out.resolve() == path.resolve() for path in paths):
        raise RunError(f"{out}: is read, and the report would take its place", cure="choose another --out")
    found = read_report(paths, title=title)
    if chosen == "png":
        draw(found, out)
    else:
        write_text(out, TEXTS[chosen](found))
    return Written(out, out.stat().st_size, len(found.models), found.problems)


def format_of(out: Path) -> Format:
    """The format that a file's name asks for. Raises RunError for another ending."""
    ending = {"htm": "html", "markdown": "md"}.get(out.suffix[1:].lower(), out.suffix[1:].lower())
    for name in FORMATS:
        if name == ending:
            return name
    raise RunError(f"{out}: no format ends so", cure=f"give --format, or a name that ends in {', '.join(FORMATS)}")
