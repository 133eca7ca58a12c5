"""A small bench of tiny real objects."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgetune.bench.bench import bench
from edgetune.bench.settings import Settings
from edgetune.evaluate.evaluate import Target
from edgetune.evaluate.targets import target_at

SETTINGS = Settings(
    threads=1, repeats=2, passes=2, prompts=(8, 512), decode_prompt=8, decode_new=5, contexts=(64, 2048)
)


@pytest.fixture(scope="session")
def report(tiny_base: Path, tiny_bundle: Path, tiny_rows: Path) -> dict[str, Any]:
    """tiny_base, in float32 on every processor, and the fp32 bundle made of it, on eight rows."""

    def in_float32(path: str) -> Target:
        target = target_at(path)
        model = target.model and dataclasses.replace(target.model, compute_dtype="float32")
        return dataclasses.replace(target, model=model)

    overrides = [f'data.test="{tiny_rows}"', "evaluate.max_rows=8", "evaluate.max_new_tokens=8"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgetune.evaluate.by_path.target_at", in_float32)
        return bench([str(tiny_bundle), str(tiny_base)], SETTINGS, overrides=overrides, progress=lambda _: None)
