"""What a page of many runs weighs, and how long Chromium takes to open it.

    python -m benchmarks.page --run runs/quickstart --run runs/nano-snips

The runs are shown again and again under other names until there are as many as are asked for. Needs Chromium, which
$CHROMIUM names where it is not on the path, and `pip install -e '.[dev]'` for playwright.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import load_at_start, spread
from edgetune.files import write_json
from edgetune.provenance import provenance
from edgetune.report.write import report

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOWS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


@click.command()
@click.option("--run", "runs", type=click.Path(exists=True, path_type=Path), multiple=True, required=True)
@click.option("--count", default=20, show_default=True, help="Runs on the page.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results/page.json"))
def main(runs: tuple[Path, ...], count: int, rounds: int, out: Path) -> None:
    """Measure and write JSON."""
    load = load_at_start()
    with tempfile.TemporaryDirectory() as work:
        paths = [Path(work) / f"run-{number + 1:02}" for number in range(count)]
        for number, path in enumerate(paths):
            path.symlink_to(runs[number % len(runs)].resolve())
        written = report(paths, Path(work) / "report.html")
        opened = open_page(written.out, rounds)
    found = {
        "what": "a page of many runs: its bytes, and seconds until it is read and until its first chart is drawn",
        "runs": count,
        "models": written.models,
        "bytes": written.size_bytes,
        "opened": opened,
        "rounds": rounds,
        "load_at_start": load,
        "provenance": provenance(),
    }
    write_json(out, found)
    click.echo(f"{count} runs: {written.size_bytes / 2**20:.2f} MiB")
    for window, times in opened.items():
        click.echo(
            f"{window}: read after {times['read_s']['median']:.2f} s, drawn after {times['drawn_s']['median']:.2f} s"
        )


def open_page(file: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each window, each time in a new profile of one browser. Raises ClickException without one."""
    from playwright.sync_api import sync_playwright

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise click.ClickException("no Chromium is installed: apt-get install chromium, or name it in $CHROMIUM")
    found: dict[str, dict[str, list[float]]] = {name: {"read_s": [], "drawn_s": []} for name in WINDOWS}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for _ in range(rounds):
            for name, size in WINDOWS.items():
                context = browser.new_context(viewport=size)
                page = context.new_page()
                start_s = time.perf_counter()
                page.goto(file.as_uri(), wait_until="load")
                found[name]["read_s"].append(time.perf_counter() - start_s)
                page.locator("[data-chart]").first.scroll_into_view_if_needed()  # charts are drawn where they are seen
                page.wait_for_selector("[data-chart] svg", state="attached")
                found[name]["drawn_s"].append(time.perf_counter() - start_s)
                context.close()
        browser.close()
    return {name: {key: spread(values) for key, values in times.items()} for name, times in found.items()}


if __name__ == "__main__":
    main()
