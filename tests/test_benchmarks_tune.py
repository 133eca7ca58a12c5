"""The table that stands for trainings in the comparison of searches, and what is read off its searches."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import tune_results
from benchmarks.tune import seconds_left, work_through
from benchmarks.tune_parts import Part
from benchmarks.tune_results import Place, Results, commits, oldest
from benchmarks.tune_table import MARKS, Axis, TableBench, grid
from benchmarks.tuned import draw, found_at, ranks, tokens_until, tune_table
from edgetune.files import read_json
from edgetune.recipe import parse_recipe

AXES = (Axis("train.learning_rate", (1e-3, 1e-2, 1e-1)), Axis("lora.r", (4, 16)))


def entry(values: dict[str, float]) -> dict[str, object]:
    """A training whose loss falls to its decade of learning rate plus its rank / 100."""
    loss = -math.log10(values["train.learning_rate"]) + values["lora.r"] / 100
    losses = [loss + 1 - mark / MARKS for mark in range(1, MARKS + 1)]
    return {"values": values, "eval_losses": losses, "loss": loss, "score": loss, "tokens": 1000}


@pytest.fixture
def table() -> TableBench:
    """Of six trainings, the fastest of which diverged at rank 16."""
    entries = [entry(values) for values in grid(AXES)]
    entries[-1] = {"values": entries[-1]["values"], "diverged": True, "tokens": 300}
    return TableBench(AXES, entries, worst_score=20.0, learning_rate=1e-2)


def measured(table: TableBench, rate: float, r: int, folder):
    text = '[model]\nbase = "x"\n[data]\ntrain = "x"\n[evaluate]\nmetric = "loss"\n'
    overrides = [f"lora.r={r}", f"train.learning_rate={rate}"]
    events = []
    recipe = parse_recipe(text, source="x", name="x", overrides=overrides)
    found = table.measure(recipe, folder, progress=events.append)
    return found, events


def test_a_training_of_the_table_is_told_as_it_was(table, tmp_path):
    found, events = measured(table, 1e-2, 4, tmp_path)
    assert (found.loss, found.tokens) == (pytest.approx(2.04), 1000)
    assert [event["eval_loss"] for event in events] == [pytest.approx(3.04 - mark / MARKS) for mark in range(1, 11)]
    assert [event["tokens"] for event in events] == list(range(100, 1001, 100))


def test_between_trainings_values_lie_evenly_by_their_logarithms(table, tmp_path):
    found, _ = measured(table, math.sqrt(1e-3 * 1e-2), 8, tmp_path)
    assert found.loss == pytest.approx(2.5 + (0.04 + 0.16) / 2)


def test_beyond_the_table_its_edge_counts_and_a_diverged_training_is_the_worst(table, tmp_path):
    assert measured(table, 1e-5, 4, tmp_path)[0].loss == pytest.approx(3.04)
    found, events = measured(table, 0.5, 16, tmp_path)
    assert (found.loss, found.tokens, events[0]["eval_loss"]) == (20.0, 300, 20.0)


@pytest.fixture
def task():
    """Two searches by one method."""
    runs = [
        {"course": [(10, 3.0, {"lora.r": 4}), (40, 1.0, {"lora.r": 8})]},
        {"course": [(10, 3.0, {}), (20, 1.0, {})]},
    ]
    facts = {"budgets": [4, 10], "training_tokens": 10, "table": [{}] * 6, "default": 3.0, "extremes": [0.5, 9.0]}
    return {**facts, "is_loss": True, "score_of": "exported", "searches": {"random": runs, "TPE": runs}}


def test_tokens_are_counted_until_the_median_of_the_seeds_is_there(task):
    course = task["searches"]["TPE"][0]["course"]
    assert [found_at(course, tokens)[1] for tokens in (5, 10, 39, 40, 99)] == [3.0, 3.0, 3.0, 1.0, 1.0]
    assert found_at(course, 99)[2] == {"lora.r": 8}
    assert tokens_until(task, "TPE", 2.0, 10) == pytest.approx(2.0, abs=0.1)
    assert tokens_until(task, "TPE", 1.0, 10) == pytest.approx(4.0, abs=0.1)
    assert tokens_until(task, "TPE", 0.5, 10) is None


def test_searches_are_shown_by_budget_as_a_table_and_a_picture(task, tmp_path):
    report = {"tasks": {"nano-snips": task}, "threads": 1, "provenance": {"processor": "X"}}
    lines = tune_table(report).splitlines()
    assert lines[0].count("trainings' tokens") == 2
    assert "| TPE | 1.0000 (1.0000 to 1.0000) | 4.0 | 1.0000 (1.0000 to 1.0000) | 4.0 |" in lines
    assert (
        "2 seeds each; a whole training has 10 tokens; the best of the 6 trainings in the table has 0.5000."
        in lines[-3]
    )
    assert lines[-3].endswith("calibrated and repaired as export does.")
    draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_is_of_exported_models_where_all_its_trainings_are(table):
    entries = [entry(values) | {"exported": {"loss": 0.5, "score": 0.25}} for values in grid(AXES)]
    exported = TableBench(AXES, entries, worst_score=20.0, learning_rate=1e-2)
    assert (table.is_exported, exported.is_exported) == (False, True)
    assert exported.extremes == (0.25, 0.25)


@pytest.mark.parametrize(("score", "told"), [(0.9, "12.0"), (1.1, "-")])
def test_a_population_stands_beside_the_searches_with_all_its_tokens(score, told):
    runs = [{"course": [(10, 3.0), (40, 1.0)]}]
    task = {"is_loss": True, "training_tokens": 10, "budgets": [12, 24], "searches": {"random": runs}, "table": [1]}
    population = [{"score": score, "members": 12, "tokens": 120}] * 2
    facts = {"default": 2.0, "extremes": [0.5, 3.0], "score_of": "deployed", "populations": population}
    report = {"tasks": {"nano-snips": {**task, **facts}}, "threads": 1, "provenance": {"processor": "X"}}
    row = next(line for line in tune_table(report).splitlines() if "population" in line)
    name = "population-based training, 12 members, 2 seeds"
    assert row == f"| {name} | {score:.4f} ({score:.4f} to {score:.4f}) | {told} | | |"


def test_the_table_of_searches_shows_no_part_that_was_not_measured():
    report = {"tasks": {"nano-snips": {"table": []}}, "threads": 1, "provenance": {"processor": "X"}}
    assert tune_table(report) == "Trained in 1 thread of X."


@pytest.fixture
def steps(tmp_path: Path) -> list[tuple[Place, str]]:
    """Two tasks with two parts each."""
    places = [Place(task, tmp_path, Results(tmp_path / "tune.json")) for task in ("nano-snips", "minilm-banking77")]
    return [(place, name) for place in places for name in ("table", "tests")]


def parts(wanted: dict[str, int], seconds: float = 60.0) -> tuple[dict[str, Part], list[float]]:
    """Parts of so many pieces, and the times at which they were made, by a clock of their own."""
    clock = [0.0]

    def part(name: str, cost: float) -> Part:
        def make(place: Place, number: int) -> str:
            clock.append(clock[-1] + seconds * cost)
            place.results.add(place.task, name, {"number": number})
            return f"made {number}"

        def missing(place: Place) -> list[int]:
            done = [one["number"] for one in place.found.get(name, [])]
            return [number for number in range(wanted[name]) if number not in done]

        return Part(missing, make, cost, lambda place: name == "table" or not made["table"].missing(place))

    made = {"table": part("table", 1.0), "tests": part("tests", 2.0)}
    return made, clock


def test_what_is_missing_is_made_in_order_with_the_time_left_and_never_twice(steps, capsys):
    made, clock = parts({"table": 2, "tests": 1})
    assert work_through(steps, parts=made, clock=lambda: clock[-1])
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in told] == [
        "nano-snips table 1 of 2",
        "nano-snips table 2 of 2",
        "nano-snips tests 1 of 1",
        "minilm-banking77 table 1 of 2",
        "minilm-banking77 table 2 of 2",
        "minilm-banking77 tests 1 of 1",
    ]
    assert told[0] == "nano-snips table 1 of 2, 1 min, 7 min left: made 0"
    assert told[-1].endswith("2 min, 0 s left: made 0")
    assert work_through(steps, parts=made, clock=lambda: clock[-1])
    assert capsys.readouterr().err == ""


def test_after_its_minutes_nothing_more_begins_and_the_next_call_goes_on(steps, capsys):
    made, clock = parts({"table": 2, "tests": 1})
    assert not work_through(steps, minutes=2.5, parts=made, clock=lambda: clock[-1])
    assert clock[-1] == 240  # two trainings, and a test begun before the time was over
    assert capsys.readouterr().err.splitlines()[-1] == "2.5 minutes are over"
    assert work_through(steps, parts=made, clock=lambda: clock[-1])
    assert clock[-1] == 480


def test_a_part_whose_trainings_are_not_there_is_left_out(steps, capsys):
    made, clock = parts({"table": 2, "tests": 1})
    assert not work_through(steps[1:2], parts=made, clock=lambda: clock[-1])
    assert capsys.readouterr().err == "nano-snips tests: not ready; what comes before it is not done\n"


def test_the_time_left_goes_by_the_pace_of_each_task():
    paces = {"a": (100.0, 2.0), "b": (10.0, 2.0)}
    assert seconds_left([("a", 3.0), ("b", 3.0), ("c", 4.0)], paces) == pytest.approx(150 + 15 + 4 * 27.5)


def test_results_name_the_oldest_commit_of_their_pieces_and_no_folder_of_the_machine(tmp_path, monkeypatch):
    ages = {"old": "7", "new": "2"}
    monkeypatch.setattr(tune_results, "_git", lambda *words: ages.get(words[-1].partition("..")[0], ""))
    monkeypatch.setattr(tune_results, "this_commit", lambda: "new")
    monkeypatch.setattr("sys.argv", ["/x/tune.py", "tests", "--work", "/tmp/a", "--minutes", "3", "--out=/tmp/b"])
    results = Results(tmp_path / "deep" / "tune.json")
    results.keep("nano-snips", lambda found: {**found, "searches": {"GP": [{"seed": 0, "commit": "old"}]}})
    results.add("nano-snips", "tests", {"seed": 101})
    assert results.of("nano-snips")["tests"] == [{"seed": 101, "commit": "new"}]
    provenance = read_json(results.path)["provenance"]
    assert provenance["commit"] == "old"
    assert provenance["command"] == ["tune.py", "tests", "--minutes", "3"]
    results.keep("minilm-banking77", lambda _: {"table": [{"values": {}}]})
    assert read_json(results.path)["provenance"]["commit"] is None  # of one piece it is not known


def test_of_pieces_without_a_commit_of_this_history_none_is_named(monkeypatch):
    assert commits({"a": {"table": [{"commit": "x"}, {}], "default": 1.0}}) == {"x", None}
    monkeypatch.setattr(tune_results, "_git", lambda *_: None)
    assert oldest(["x"]) is None
    assert oldest([]) is None


def trial(trained: float, deployed: float, exported: float) -> dict[str, object]:
    scored = {"trained": trained, "deployed": deployed, "exported": exported}
    return {"values": {}, **{name: {"score": score, "wall_s": 1.0} for name, score in scored.items()}}


def test_objectives_are_compared_by_how_they_rank_trials_and_what_they_would_choose():
    exported = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    trials = [trial(-score, score + (number == 0), score) for number, score in enumerate(exported)]
    found = ranks([*trials, {"values": {}, "diverged": True}], is_loss=True)
    assert (found["trials"], found["diverged"]) == (8, 1)
    assert found["all"]["trained and exported"] == {"spearman": -1.0, "kendall": -1.0}
    # The best one is the worst by "deployed": 7 of 28 pairs are turned round.
    assert found["all"]["deployed and exported"] == {"spearman": 0.3333, "kendall": 0.5}
    assert found["better_half"]["deployed and exported"]["kendall"] == 0.0
    assert found["chosen"] == {"trained": 0.8, "deployed": 0.2, "exported": 0.1}
    assert ranks(trials[:6], is_loss=True) == {}
    report = {"tasks": {"nano-snips": {"objectives": trials, "ranks": found}}, "threads": 1}
    lines = tune_table({**report, "provenance": {"processor": "X"}}).splitlines()
    assert lines[0].startswith("| nano-snips: 8 trials, ranked by | Spearman | Kendall |")
    assert "| trained and exported | -1.00 | -1.00 | -1.00 | -1.00 |" in lines


def test_more_is_better_where_it_is_no_loss():
    trials = [trial(score, score, score) for score in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)]
    found = ranks(trials, is_loss=False)
    assert found["chosen"]["exported"] == 0.8
    assert found["better_half"]["deployed and exported"]["spearman"] == 1.0


def test_tests_are_told_as_the_mean_of_each_recipe():
    rows = [
        {"recipe": name, "seed": seed, "score": score}
        for name, seed, score in [
            ("default", 101, 2.0),
            ("default", 102, 3.0),
            ("tuned", 101, 1.0),
            ("tuned", 102, 1.0),
        ]
    ]
    effect = {"mean": 1.5, "low": 1.0, "high": 2.0, "seeds": 2, "deviation": 0.1}
    report = {"tasks": {"nano-snips": {"tests": rows, "test_effect": effect}}, "threads": 1}
    table = tune_table({**report, "provenance": {"processor": "X"}})
    assert "| nano-snips, loss of the int4 model | 2.5000 | 1.0000 | +1.5000 (+1.0000 to +2.0000) | 2 |" in table
