"""`edgetune report`: any number of runs and measurements as one page. The work is in report/write.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option


@click.command("report", epilog="Example: edgetune report runs/first runs/second --out report.html")
@click.argument("paths", metavar="RUN_OR_JSON...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write.  [default: report.<format>]")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["html", "md", "json", "csv", "png"]),
    help="What to write.  [default: as --out ends, else html]",
)
@click.option("--title", help="Heading of the report.  [default: the run's name]")
@force_option
@json_option
def command(
    paths: tuple[Path, ...], out: Path | None, format_: Any, title: str | None, force: bool, as_json: bool
) -> None:
    """One page of runs, results of `edgetune evaluate` and reports of `edgetune bench`.

    The page is one file that needs no network: accuracy against memory, losses and cost of training, memory planned and
    measured, the ledger, confusion, searches, sample answers, provenance. What is missing or broken is named and left
    out.
    """
    from edgetune.report.write import report

    written = report(paths, out or Path(f"report.{format_ or 'html'}"), format=format_, title=title, force=force)
    for line in written.problems:
        console.note(f"left out: {line}")
    if as_json:
        values = {"report": str(written.out), "size_bytes": written.size_bytes, "models": written.models}
        console.say_json({**values, "left_out": list(written.problems)})
    else:
        console.say(str(written.out))
