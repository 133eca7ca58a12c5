"""What `edgetune tune --one-at-a-time` shows. The work is in tune/sensitivity.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgetune.cli import console

if TYPE_CHECKING:
    from edgetune.recipe import Recipe
    from edgetune.tune.sensitivity import Sensitivity, SensitivityResult
    from edgetune.tune.study import StudyDir


def vary_and_show(recipe: Recipe, folder: StudyDir, *, force: bool, as_json: bool) -> None:
    """The recipe's sensitivity to each key; after a signal, which goes on, what the finished trainings say."""
    from edgetune.tune.sensitivity import one_at_a_time

    def show_partial(result: SensitivityResult) -> None:
        progress.close()
        if not as_json:
            console.say(_table(result))

    progress = console.ProgressLine()
    try:
        result = one_at_a_time(recipe, folder, force=force, on_stop=show_partial, progress=progress)
    finally:
        progress.close()
    if as_json:
        console.say_json({"study": str(folder.path), **result.document})
    else:
        console.say(_table(result))


def _table(result: SensitivityResult) -> str:
    found = result.document
    trainings, level = found["trainings"], found["noise"]
    lines = [f"partial: {trainings['finished']} of {trainings['planned']} trainings"] if found["is_partial"] else []
    lines.append(f"{'key':<26} {'now':>12} {'worst to best':>14} {'error':>9}  best value")
    lines += [_row(item) for item in result.keys]
    if level is not None:
        lines.append(f"another seed alone changes {level:.3g} (standard deviation)")
    lines.append(f"picture: {result.folder.path / 'sensitivity.png'}")
    return "\n".join(lines)


def _row(item: Sensitivity) -> str:
    """A key: what its values change, and the best of them."""
    made = [(step.effect.mean, step.value) for step in item.steps if step.effect is not None]
    if not made:
        return f"{item.key:<26} {shown(item.own):>12} {'-':>14} {'-':>9}  not measured"
    best, value = max(made, key=lambda one: one[0])
    error = "-" if item.error is None else f"{item.error:.3g}"
    told = shown(value) if best > 0 else "as it is"
    return f"{item.key:<26} {shown(item.own):>12} {item.spread:>14.4g} {error:>9}  {told}"


def shown(value: object) -> str:
    """A value of a recipe as tables show it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
