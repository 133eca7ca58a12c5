"""A study's folder -> its facts and pictures, as `edgetune tune` left them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.files import read_json
from edgetune.report.facts import Picture, Study

STUDY = "tune.json"
PICTURES = {
    "history": ("History", "The score of every trial over the tokens spent, and the best so far."),
    "front": ("Pareto front", "Every trial by its first two objectives, and those that none is better than in both."),
    "parallel": ("Parallel coordinates", "Every measured trial as a line through its values; the best in orange."),
    "slices": ("Slices", "The score over the values of each key; later trials darker, the best as a star."),
    "importances": ("What mattered", "Share of the scores' variance that each key explains alone (fANOVA)."),
    "interactions": ("Two keys together", "The score that is expected over two keys; measured trials as dots."),
}
"""File name -> title, and what it shows."""


def read_study(folder: Path, name: str) -> Study:
    """The study in a folder. Raises RunError where tune.json is damaged, KeyError where it lacks something."""
    found = read_json(folder / STUDY)
    states = [trial["state"] for trial in found["trials"]]
    names = tuple(found["objectives"])
    pictures = [
        Picture(title, said, _embedded(folder / f"{picture}.png"))
        for picture, (title, said) in PICTURES.items()
        if (folder / f"{picture}.png").exists()
    ]
    return Study(
        name=name,
        path=str(folder),
        objectives=names,
        trials=states.count("complete") + states.count("pruned"),
        given_up=states.count("pruned"),
        best=_row(found["best"], names),
        front=tuple(_row(trial, names) for trial in found["front"] or ()),
        pictures=tuple(pictures),
        provenance=found.get("provenance", {}),
        what_mattered=found.get("importances_told", ""),
    )


def _row(trial: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    objectives = dict(zip(names, trial["objectives"], strict=True))
    return {name: _shown(value) for name, value in {"trial": trial["number"], **objectives, **trial["values"]}.items()}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _embedded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
