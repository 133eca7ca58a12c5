"""A run for benchmarks.survival: babyllama-105 (published weights, TinyStories) tuned to another text, Grimm's tales.

    EDGETUNE_DATA=... python -m benchmarks.babyllama TEXT --out runs/babyllama

TEXT is a plain text file; its paragraphs become rows, every tenth of them the test rows. The score is the loss alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from benchmarks.measure import data_folder
from edgetune.pipeline import run
from edgetune.recipe import parse_recipe
from edgetune.run_dir import RunDir

ROW_CHARACTERS = 180
LONGEST = 250
"""Characters of a row: the model knows 256 positions."""
MOST_ROWS = 1500
RECIPE = """
[model]
base = {base}
[data]
train = {rows}
max_seq_len = 256
too_long = "truncate"
[lora]
r = 16
[train]
epochs = 3
batch_size = 8
gradient_accumulation_steps = 1
learning_rate = 1e-3
[evaluate]
metric = "loss"
"""


@click.command()
@click.argument("text", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/babyllama"), show_default=True)
def main(text: Path, out: Path) -> None:
    """Write base and rows beside the run folder, and run."""
    from tests import llama2c

    work = out.with_name(f"{out.name}-input")
    work.mkdir(parents=True, exist_ok=True)
    source = data_folder() / "babyllama-105"
    base = llama2c.write_folder(source / "model5000.bin", source / "tok105.model", work / "base")
    rows = _rows(text.read_text(encoding="utf-8"))
    for part, chosen in (("test", rows[::10]), ("train", [row for place, row in enumerate(rows) if place % 10])):
        lines = "".join(json.dumps({"text": row}) + "\n" for row in chosen)
        (work / "rows").mkdir(exist_ok=True)
        (work / "rows" / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    filled = RECIPE.format(base=json.dumps(str(base)), rows=json.dumps(str(work / "rows")))
    recipe = parse_recipe(filled, source="babyllama", name="babyllama-105")
    done = run(recipe, RunDir(out), progress=lambda event: click.echo(event.get("message") or "", nl=False, err=True))
    click.echo(done.table)
    click.echo(done.summary["survival"]["verdict"])


def _rows(text: str) -> list[str]:
    """Paragraphs of the text, joined to about ROW_CHARACTERS."""
    rows, current = [], ""
    for paragraph in text.split("\n\n"):
        current = f"{current} {' '.join(paragraph.split())}".strip()
        if len(current) >= ROW_CHARACTERS:
            rows.append(current[:LONGEST])
            current = ""
    return rows[:MOST_ROWS]


if __name__ == "__main__":
    main()
