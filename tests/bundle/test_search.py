"""`edgetune export-best`: the front, the choice by budget, and the whole way on a tiny run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetune.bundle.candidates import Measured, Point, choose, evenly, mark_front, own_point
from edgetune.bundle.search import search
from edgetune.cli import main
from edgetune.errors import ModelError, RunError
from edgetune.model.weights import find_tensors
from edgetune.quantize.matrices import grids_of, joined_with
from edgetune.recipe import BudgetTable, DataTable, ModelTable, Recipe
from edgetune.run_dir import RunDir
from edgetune.runtime.grid import BundleGrid

GRID = BundleGrid(bits=4, block_size=32, symmetric=False, accuracy_level=4, head_bits=8)
A_POINT = Point(32, False, 8, True, (), loss=1.0, size_bytes=100)


def a_point(loss: float, size_bytes: int, **measured: object) -> Point:
    return dataclasses.replace(A_POINT, loss=loss, size_bytes=size_bytes, **measured)  # type: ignore[arg-type]


def a_recipe(**budget: object) -> Recipe:
    return Recipe(ModelTable(base="x"), DataTable(train="y"), budget=BudgetTable(**budget))  # type: ignore[arg-type]


def test_the_front_holds_what_no_other_beats() -> None:
    points = [a_point(1.0, 100), a_point(0.9, 120), a_point(0.95, 130), a_point(1.1, 90), a_point(1.1, 95)]
    assert [point.on_front for point in mark_front(points)] == [True, True, False, True, False]


def test_equal_points_are_both_on_the_front() -> None:
    points = [a_point(1.0, 100), dataclasses.replace(a_point(1.0, 100), block_size=64)]
    assert [point.on_front for point in mark_front(points)] == [True, True]


def built(loss: float, size_bytes: int, **measured: object) -> Point:
    return a_point(loss, size_bytes, **{"peak_bytes": 2**20, "device_loss": loss, **measured})


def test_of_points_that_were_built_score_and_speed_count_too() -> None:
    points = [
        built(1.0, 100, score=0.8, tokens_per_s=50.0),
        built(1.1, 110, score=0.7, tokens_per_s=90.0),  # faster
        built(1.1, 120, score=0.9, tokens_per_s=40.0),  # scores higher
        built(1.2, 130, score=0.8, tokens_per_s=50.0),
        a_point(1.1, 105),
    ]
    assert [point.on_front for point in mark_front(points)] == [True, True, True, False, False]


def test_a_classifier_s_speed_is_the_time_of_a_text() -> None:
    points = [built(1.0, 100, latency_s=0.02), built(1.1, 110, latency_s=0.01), built(1.1, 110, latency_s=0.03)]
    assert [point.on_front for point in mark_front(points)] == [True, True, False]


def test_the_recipe_s_own_settings_are_found_among_the_points() -> None:
    points = [a_point(1.0, 100), dataclasses.replace(a_point(1.0, 100), block_size=128)]
    assert own_point(points, a_recipe()) == points[1]
    forgiving = a_recipe()
    forgiving = dataclasses.replace(forgiving, export=dataclasses.replace(forgiving.export, method="hqq"))
    assert own_point(points, forgiving) is None


@pytest.mark.parametrize(
    ("other", "is_taken"),
    [
        ({"loss": 0.9, "size_bytes": 120, "score": 0.8}, True),
        ({"loss": 0.9, "size_bytes": 120, "score": 0.7}, False),  # larger, and it scores lower
        ({"loss": 0.9, "size_bytes": 80, "score": 0.7}, True),
        ({"loss": 1.0, "size_bytes": 100, "score": 0.8}, False),
        ({"loss": 1.1, "size_bytes": 80, "score": 0.9}, False),
    ],
)
def test_the_own_settings_are_left_for_what_is_no_worse(other: dict[str, float], is_taken: bool) -> None:
    own = built(1.0, 100, score=0.8)
    another = dataclasses.replace(built(**other), block_size=64)  # type: ignore[arg-type]
    assert choose([another, own], a_recipe(), own)[0] == (another if is_taken else own)


class FakeSweep:
    """Points of falling loss and rising size; the recipe's own is the third. What is made says which it is."""

    def __init__(self, count: int) -> None:
        self.all = [dataclasses.replace(a_point(2 - n / 10, 100 + n), int8_layers=(f"l{n}",)) for n in range(count)]
        self.all[2] = dataclasses.replace(self.all[2], block_size=128, int8_layers=())
        self.made: list[tuple[str, Point]] = []

    def points(self) -> list[Point]:
        return self.all

    def build(self, point: Point, folder: Path) -> None:
        self._write("built", point, folder)

    def finish(self, point: Point, folder: Path) -> bool:
        self._write("repaired", point, folder)
        return True

    def _write(self, how: str, point: Point, folder: Path) -> None:
        self.made.append((how, point))
        (folder / "which").write_text(f"{how} {point.size_bytes}")


@pytest.mark.parametrize(("repaired_loss", "size_bytes"), [(0.5, 111), (1.9, 102)], ids=["better", "worse"])
def test_what_is_chosen_is_held_against_the_own_settings_once_repaired(
    repaired_loss, size_bytes, tmp_path, monkeypatch
) -> None:
    sweep = FakeSweep(12)
    monkeypatch.setattr("edgetune.bundle.search.SWEEPS", {"generation": lambda *_: sweep})

    def measure(bundle: Path) -> Measured:
        how, size = (bundle / "which").read_text().split()
        loss = 2 - (int(size) - 100) / 10
        if how == "repaired":
            loss = repaired_loss if int(size) == 111 else 1.0
        return Measured(score=None, device_loss=loss, peak_bytes=1, tokens_per_s=float(size))

    found = search(a_recipe(), RunDir(tmp_path), measure)
    drawn = [point for how, point in sweep.made if how == "built"]
    assert {drawn[0].size_bytes, drawn[9].size_bytes} == {100, 111}  # both ends of the whole front
    assert len(set(drawn)) == len(drawn) in (10, 11)
    assert sweep.all[2] in [dataclasses.replace(point, on_front=False) for point in drawn]
    assert [point.size_bytes for how, point in sweep.made if how == "repaired"] == [111, 102]
    assert found.chosen.size_bytes == size_bytes
    written = json.loads((tmp_path / "results/search.json").read_text())
    assert {one["loss"] for one in written["repaired"].values()} == {repaired_loss, 1.0}
    assert written["chosen"]["size_bytes"] == size_bytes


MEASURED = [
    a_point(0.9, 300, peak_bytes=90 * 2**20, tokens_per_s=100.0),
    a_point(1.0, 200, peak_bytes=60 * 2**20, tokens_per_s=150.0),
    a_point(1.2, 100, peak_bytes=40 * 2**20, tokens_per_s=200.0),
    a_point(0.5, 400),  # not built: nothing is known of its speed
]


@pytest.mark.parametrize(
    ("budget", "loss"),
    [
        ({}, 0.9),
        ({"device_memory": "64 MiB"}, 1.0),
        ({"min_tokens_per_s": 180.0}, 1.2),
        ({"device_memory": "64 MiB", "min_tokens_per_s": 120.0}, 1.0),
    ],
)
def test_the_least_loss_within_the_budget_is_chosen(budget: dict[str, object], loss: float) -> None:
    chosen, reason = choose(MEASURED, a_recipe(**budget))
    assert chosen.loss == loss
    assert f"least loss ({loss:.4f})" in reason


def test_a_budget_that_nothing_keeps_says_what_came_nearest() -> None:
    with pytest.raises(RunError, match=r"at most 32 MiB on the device.*takes 40 MiB and writes 200 tokens/s"):
        choose(MEASURED, a_recipe(device_memory="32 MiB"))


def test_int8_layers_take_what_the_graph_joins_with_them(tiny_base: Path) -> None:
    grids = grids_of(find_tensors(tiny_base), GRID, ["model.layers.0.self_attn.k_proj", "down_proj"])
    wide = {name for name, own in grids.items() if own.bits == 8 and name.startswith("model.layers.")}
    attention = {f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"}
    assert wide == attention | {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}
    assert joined_with("model.layers.0.mlp.gate_proj.weight", grids) == [
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    ]


def test_a_name_that_no_matrix_has_is_refused(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="no matrix is called 'up_project'"):
        grids_of(find_tensors(tiny_base), GRID, ["up_project"])


def test_a_run_is_swept_and_its_best_bundle_exported(tiny_recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgetune.bundle.candidates.BLOCK_SIZES", (32, 64))
    monkeypatch.setattr("edgetune.bundle.search.MOST_BUILT", 2)
    recipe = tiny_recipe(
        data={"eval_fraction": 0.2},
        train={"max_steps": 6},
        export={"calibration_rows": 32, "block_size": 64, "repair_steps": 2, "min_gain_kept": 0},
        evaluate={"metric": "loss"},
    )
    Path("tiny.toml").write_text(recipe, encoding="utf-8")
    for arguments in (["train", "tiny.toml"], ["merge", "runs/tiny"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.stderr
    done = CliRunner().invoke(main, ["export-best", "runs/tiny", "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(Path("runs/tiny/results/search.json").read_text())
    assert len(found["points"]) == 2 * 2 * 2 * 2 + 6  # blocks, symmetry, method, head; then int8 layers of two grids
    mixed = [point for point in found["points"] if point["int8_layers"]]
    assert [point["symmetric"] for point in mixed] == [True] * 3 + [False] * 3
    (own,) = [
        point
        for point in found["points"]
        if (point["block_size"], point["symmetric"], point["head_bits"], point["calibrated"], point["int8_layers"])
        == (64, False, 8, True, [])
    ]
    assert own["device_loss"] == pytest.approx(own["loss"], rel=0.05)
    chosen = found["chosen"]
    assert chosen["device_loss"] <= own["device_loss"] or found["repaired"]
    assert chosen["tokens_per_s"] is None or chosen["tokens_per_s"] > 0
    grid = json.loads(Path("runs/tiny/bundle/edgetune.json").read_text())["grid"]
    assert {name: grid[name] for name in ("block_size", "symmetric", "head_bits")} == {
        name: chosen[name] for name in ("block_size", "symmetric", "head_bits")
    }
    assert Path("runs/tiny/results/search.png").stat().st_size > 1000


LABELLED = """
[model]
base = "{base}"
task = "classification"
[data]
train = "{rows}"
eval_fraction = 0.2
[lora]
r = 4
[train]
epochs = 2
batch_size = 8
[export]
calibration_rows = 32
min_gain_kept = 0
"""


@pytest.mark.slow
def test_a_classifier_is_swept_too(tiny_encoder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgetune.bundle.candidates.BLOCK_SIZES", (32, 64))
    monkeypatch.setattr("edgetune.bundle.search.MOST_BUILT", 2)
    rows = [{"text": f"turn {name} lamp {n}", "label": name} for n in range(40) for name in ("on", "off")]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("tiny.toml").write_text(LABELLED.format(base=tiny_encoder, rows=tmp_path / "rows.jsonl"), encoding="utf-8")
    for arguments in (["train", "tiny.toml"], ["merge", "runs/tiny"], ["export-best", "runs/tiny"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.stderr
    found = json.loads(Path("runs/tiny/results/search.json").read_text())
    assert len(found["points"]) == 2 * 2 * 2  # blocks, symmetry, method
    measured = [point for point in found["points"] if point["latency_s"]]
    settings = [(point["block_size"], point["symmetric"], point["calibrated"]) for point in measured]
    assert (32, False, True) in settings  # the recipe's own, beside those of the front
    assert len(measured) <= 3
    for point in measured:
        assert point["device_loss"] > 0
        assert point["score"] > 0.4
    sizes = {point["size_bytes"] for point in found["points"]}
    shipped = Path("runs/tiny/bundle/model.onnx").stat().st_size
    data = Path("runs/tiny/bundle/model.onnx.data")
    shipped += data.stat().st_size if data.exists() else 0
    assert shipped > 0.95 * found["chosen"]["size_bytes"]
    assert len(sizes) == 4
    grid = json.loads(Path("runs/tiny/bundle/edgetune.json").read_text())["grid"]
    assert (grid["block_size"], grid["symmetric"]) == (found["chosen"]["block_size"], found["chosen"]["symmetric"])


@pytest.mark.parametrize(("count", "kept"), [(3, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (9, [0, 2, 4, 6, 8])])
def test_of_a_long_front_both_ends_are_measured(count: int, kept: list[int]) -> None:
    front = [a_point(1.0, size) for size in range(count)]
    assert [point.size_bytes for point in evenly(front, 5)] == kept


def test_what_would_stop_the_export_stops_the_search_first(tiny_base, tiny_recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgetune.search_run.search", lambda *_, **__: pytest.fail("swept all the same"))
    run = Path("runs/tiny")
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(tiny_recipe(), encoding="utf-8")
    done = CliRunner().invoke(main, ["export-best", str(run)])
    assert (done.exit_code, "no merged model; make it first: edgetune merge runs/tiny" in done.stderr) == (2, True)
    (run / "merged").symlink_to(tiny_base, target_is_directory=True)
    (run / "bundle").mkdir()
    done = CliRunner().invoke(main, ["export-best", str(run)])
    assert (done.exit_code, "there is something already; replace it with --force" in done.stderr) == (2, True)


def test_a_folder_without_a_recipe_cannot_be_searched(tiny_base) -> None:
    done = CliRunner().invoke(main, ["export-best", str(tiny_base)])
    assert done.exit_code == 2
    assert "is no run folder" in done.stderr
