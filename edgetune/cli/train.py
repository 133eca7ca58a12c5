"""`edgetune train`: the adapter of a recipe. The work is in train/loop.py."""

from __future__ import annotations

from pathlib import Path

import click

from edgetune.cli import console
from edgetune.cli.options import force_option, json_option, out_option, recipe_argument, set_option


@click.command("train", epilog="Example: edgetune train recipes/quickstart.toml --set train.epochs=1")
@recipe_argument
@set_option
@out_option
@force_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], out: Path | None, force: bool, as_json: bool) -> None:
    """Train the recipe's adapter into RUN/adapter.

    A run that was stopped or killed goes on where it was when the same command is given again. --force starts anew.
    """
    import contextlib
    import dataclasses
    import os

    from edgetune.lock import only_process
    from edgetune.recipe import load_recipe
    from edgetune.run_dir import RunDir, claim

    loaded = load_recipe(recipe, overrides)
    run_dir = RunDir(out or Path("runs") / loaded.name)
    console.work_in(run_dir.path)
    is_first = os.environ.get("RANK", "0") == "0"  # under torchrun or accelerate launch it speaks for all
    progress = console.ProgressLine()
    try:
        with only_process(run_dir) if is_first else contextlib.nullcontext():
            claim(run_dir, loaded.to_toml(), force=force)

            from edgetune.train.loop import train

            result = train(loaded, run_dir, progress=progress)
    finally:
        progress.close()
    if not is_first:
        return
    if as_json:
        console.say_json({"run": str(run_dir.path), "adapter": str(run_dir.adapter), **dataclasses.asdict(result)})
        return
    loss = "not measured" if result.eval_loss is None else f"{result.eval_loss:.4f} (step {result.best_step})"
    console.say(f"adapter     {run_dir.adapter}")
    console.say(f"eval loss   {loss}")
    console.say(f"train loss  {result.train_loss:.4f}")
    stopped = " (stopped early)" if result.stopped_early else ""
    console.say(f"steps       {result.steps}{stopped}, {result.trained_tokens:,} trained tokens")
    console.say(f"speed       {result.tokens_per_s:,.0f} tokens/s")
    console.say(f"memory      {result.peak_bytes / 1024**2:,.0f} MiB at the peak")
    console.say(f"curve       {run_dir.loss_curve}")
