"""What the stages of a run are planned to take, from config.json alone: which there are, and what moves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.errors import OutOfMemoryError
from edgetune.plan import Plan, duration, fitted, plan, refuse_over_budget, stage_seconds
from edgetune.recipe import load_recipe

MIB = 1024**2
HALF_BILLION = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
}


@pytest.fixture
def planned(tiny_base: Path, tiny_rows: Path, tmp_path: Path) -> Callable[..., Plan]:
    """The plan of a small recipe with other values."""
    path = tmp_path / "small.toml"
    path.write_text(f'[model]\nbase = "{tiny_base}"\n[data]\ntrain = "{tiny_rows}"\nmax_seq_len = 128\n')
    return lambda *settings: plan(load_recipe(path, settings), scored_rows=8)


def peaks(found: Plan) -> dict[str, int]:
    return {stage.name: stage.peak_bytes for stage in found.stages}


def test_every_stage_of_a_run_has_its_parts_and_the_largest_is_the_run_s_peak(planned: Callable[..., Plan]) -> None:
    found = planned()
    names = ["train", "evaluations", "merge", "calibration", "repair", "graph", "verification"]
    assert [stage.name for stage in found.stages] == names
    assert all(stage.peak_bytes == sum(stage.parts.values()) > 500 * MIB for stage in found.stages)
    assert peaks(found)["train"] == found.estimate.peak_bytes
    assert found.largest.peak_bytes == max(peaks(found).values())


@pytest.mark.parametrize(
    ("setting", "gone"),
    [
        ("export.repair_steps=0", {"repair"}),
        ("export.precision=int8", {"repair"}),
        ("export.precision=fp16", {"repair", "calibration"}),
    ],
)
def test_a_stage_that_a_recipe_has_not_is_not_planned(
    planned: Callable[..., Plan], setting: str, gone: set[str]
) -> None:
    assert set(peaks(planned())) - set(peaks(planned(setting))) == gone


def test_what_a_setting_moves(planned: Callable[..., Plan]) -> None:
    """Each of them the stages named and no other."""
    plain = peaks(planned("train.batch_size=32"))
    for setting, stages in (
        ("train.gradient_checkpointing=true", {"train", "repair"}),
        ("export.repair_on=teacher", {"repair"}),
        ("export.merge_base=auto", {"merge"}),
        ("export.block_size=16", {"calibration", "repair", "verification"}),
    ):
        found = peaks(planned("train.batch_size=32", setting))
        assert {name for name, size in found.items() if size != plain[name]} == stages, setting
        assert (found["repair"] < plain["repair"]) == ("checkpointing" in setting)


def test_on_a_gpu_stages_that_compute_on_the_host_take_nothing_of_it(planned: Callable[..., Plan]) -> None:
    found = planned("budget.gpu_memory=8GiB")
    of_gpu = {stage.name for stage in found.stages if stage.parts}
    assert of_gpu == {"train", "evaluations", "merge", "repair"}
    assert all("CUDA context" in stage.parts for stage in found.stages if stage.parts)
    assert stage_seconds(found, duration(found)) == {}


def test_repair_on_a_gpu_takes_smaller_micro_batches_where_there_is_no_room(planned: Callable[..., Plan]) -> None:
    wide = "train.batch_size=64"
    roomy, tight = planned(wide, "budget.gpu_memory=8GiB"), planned(wide, "budget.gpu_memory=620MiB")
    assert peaks(roomy)["repair"] > tight.facts.room_bytes > peaks(tight)["repair"]


def test_rows_are_scored_as_many_at_once_as_the_budget_has_room_for(planned: Callable[..., Plan]) -> None:
    """Logits come on top: they are of one chunk, however many rows there are."""
    long = "evaluate.max_new_tokens=400"
    free, bound = (planned(long, f"budget.memory={size}").stages[1] for size in ("64GiB", "950MiB"))
    assert free.name == "evaluations"
    assert bound.peak_bytes - bound.parts["logits"] <= 950 * MIB < free.peak_bytes


def test_a_stage_over_the_budget_is_named_though_training_fits(planned: Callable[..., Plan]) -> None:
    found = planned()
    assert found.largest.name != "train"
    between = (found.estimate.peak_bytes + found.largest.peak_bytes) // 2
    tight = planned(f"budget.memory={between // 1024}KiB")
    assert not tight.fits
    with pytest.raises(OutOfMemoryError, match=f"small: {tight.largest.name} needs about .* budget.memory is"):
        refuse_over_budget(tight.recipe, tight)


def test_fit_changes_what_the_largest_stage_needs(
    a_decoder: Callable[..., Path], tiny_rows: Path, tmp_path: Path
) -> None:
    """Repair in float32 needs more than the training; its micro-batch is smaller then, with as many rows a step."""
    path = tmp_path / "wide.toml"
    base = a_decoder(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8)
    settings = ["train.batch_size=32", "budget.memory=2GiB", "model.compute_dtype=bfloat16", "data.max_seq_len=256"]
    path.write_text(f'[model]\nbase = "{base}"\n[data]\ntrain = "{tiny_rows}"\n')
    found = plan(load_recipe(path, settings), scored_rows=8)
    assert found.largest.name == "repair"
    budget = (found.largest.peak_bytes - 1) // 1024
    tight = plan(load_recipe(path, [*settings[:1], f"budget.memory={budget}KiB", *settings[2:]]), scored_rows=8)
    assert tight.estimate.peak_bytes < (tight.allowed_bytes or 0)
    fitting, changes = fitted(tight.recipe, tight)
    assert [change.values for change in changes] == [{"train.batch_size": 16, "train.gradient_accumulation_steps": 8}]
    assert plan(fitting, scored_rows=8).fits


def test_each_stage_has_a_time_on_this_machine_that_grows_with_its_work(planned: Callable[..., Plan]) -> None:
    found = planned("export.repair_steps=10", "evaluate.max_new_tokens=8")
    more = planned("export.repair_steps=100", "evaluate.max_new_tokens=400")
    lasts = duration(found)
    assert lasts is not None
    short, long = (stage_seconds(each, lasts) for each in (found, more))
    assert list(short) == [stage.name for stage in found.stages]
    assert all(seconds > 0 for seconds in short.values())
    assert long["repair"] > 2 * short["repair"]
    assert long["evaluations"] > short["evaluations"]
    assert short["train"] == lasts.seconds


def test_a_classifier_s_stages_are_planned(tiny_encoder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"turn on lamp {n},{'ab'[n % 2]}\n" for n in range(20)))
    path = tmp_path / "labels.toml"
    path.write_text(
        f'[model]\nbase = {json.dumps(str(tiny_encoder))}\ntask = "classification"\n'
        f"[data]\ntrain = {json.dumps(str(rows))}\neval = {json.dumps(str(rows))}\n"
    )
    found = plan(load_recipe(path, []))
    assert list(peaks(found)) == ["train", "evaluations", "merge", "graph", "verification"]
    seconds = stage_seconds(found, duration(found))
    assert list(seconds) == list(peaks(found))
    assert min(seconds.values()) > 0


def test_a_large_vocabulary_is_seen_in_the_stages_that_hold_it(tmp_path: Path, tiny_base: Path) -> None:
    """The shape of Qwen2.5-0.5B, from its config alone: its embedding in float32 outweighs the 4-bit layers."""
    from edgetune.model.memory import estimate
    from edgetune.model.on_device import expect_on_device
    from edgetune.planning.facts import find_facts
    from edgetune.planning.stages import plan_stages
    from edgetune.recipe import DataTable, ModelTable, Recipe

    config: dict[str, Any] = json.loads((tiny_base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | HALF_BILLION))
    recipe = Recipe(ModelTable(base=str(tmp_path)), DataTable(train="rows.jsonl", max_seq_len=256))
    counts = {"train": {"rows": 200, "tokens": 20_000, "trained_tokens": 4_000, "longest": 200}}
    training = estimate(recipe, on="cpu", trained_share=0.2, sample_tokens=200)
    facts = find_facts(recipe, training, counts, kind="cpu", bundle=expect_on_device(recipe))
    found = {stage.name: stage for stage in plan_stages(facts)}
    assert facts.parameters == pytest.approx(494e6, rel=0.01)
    assert found["repair"].parts["embedding"] == 4 * 151936 * 896
    assert found["calibration"].parts["Hessians"] == 512 * MIB
    assert found["repair"].peak_bytes > 2048 * MIB
