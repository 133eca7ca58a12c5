"""`edgetune tune` as a user meets it."""

from __future__ import annotations

import json
import os
import signal

import pytest
from click.testing import CliRunner
from tune_bench import PaperBench

from edgetune.cli import main
from edgetune.cli.tune import command
from edgetune.recipe import load_recipe

RECIPE = """
[model]
base = "{base}"
compute_dtype = "float32"
[data]
train = "{rows}"
eval_fraction = 0.2
max_seq_len = 128
[lora]
r = 4
[train]
batch_size = 2
gradient_accumulation_steps = 1
max_steps = 1
[evaluate]
metric = "loss"
[tune.space]
"train.learning_rate" = {{ low = 1e-4, high = 1e-2, log = true }}
"""


@pytest.fixture
def recipe(tiny_base, tiny_rows, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(base=tiny_base, rows=tiny_rows))
    return path


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_json_is_one_document_and_the_trials_are_told_on_stderr(recipe, tmp_path):
    result = run(recipe, "-o", tmp_path / "s", "--trials", "2", "--sampler", "random", "--json")
    document = json.loads(result.stdout)
    assert [trial["number"] for trial in document["trials"]] == [0, 1]
    assert "tune: trial 1: score" in result.stderr
    assert (
        load_recipe(tmp_path / "s" / "best.toml").train.learning_rate
        == document["best"]["values"]["train.learning_rate"]
    )
    again = run(recipe, "-o", tmp_path / "s", "--trials", "2", "--sampler", "random", "--set", "tune.seeds=4")
    assert "learning_rate" in again.stdout
    assert "--apply tells" in again.stdout
    assert "with 4 other seeds" in again.stdout
    assert "trial 1: score" not in again.stderr


@pytest.mark.slow
def test_apply_writes_the_best_values_into_the_recipe_where_other_seeds_agree(recipe, tmp_path):
    recipe.write_text(recipe.read_text().replace("max_steps = 1", "max_steps = 2  # few\nlearning_rate = 1e-4"))
    before = recipe.read_text()
    options = ("-o", tmp_path / "s", "--trials", "3", "--pruner", "none", "--set", "tune.seeds=2")
    document = json.loads(run(recipe, *options, "--json").stdout)
    assert (document["is_applied"], recipe.read_text()) == (False, before)
    applied = run(recipe, *options, "--apply")
    assert f"{recipe}: has the best values now" in applied.stdout
    assert "with seeds 1, 2" in applied.stdout
    assert "--apply tells" not in applied.stdout
    assert load_recipe(recipe).train.learning_rate == document["best"]["values"]["train.learning_rate"]
    assert "max_steps = 2  # few" in recipe.read_text()
    again = run(recipe, *options, "--json")
    assert json.loads(again.stdout)["best"]["number"] == document["best"]["number"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["--trials", "0"],
        ["--sampler", "bayes"],
        ["--storage", "no url"],
        ["--set", 'tune.space={ "train.epoch" = [1, 2] }'],
        ["--set", 'tune.space={ "train.epochs" = [] }'],
        ["--set", 'tune.space={ "export.repair_steps" = [0, 9] }'],
        ["--set", 'tune.objectives=["bundle_bytes"]'],
    ],
)
def test_what_cannot_stand_ends_with_2_before_anything_is_made(recipe, tmp_path, overrides):
    result = CliRunner().invoke(main, ["tune", str(recipe), "-o", str(tmp_path / "s"), *overrides])
    assert result.exit_code == 2
    assert result.stderr.startswith("edgetune: ")
    assert not list((tmp_path / "s").glob("*"))


def test_one_at_a_time_ranks_the_keys_and_finds_no_best_recipe(recipe, tmp_path):
    space = '[tune.space]\n"train.learning_rate" = [1e-4, 1e-2]\n'
    recipe.write_text(recipe.read_text().partition("[tune.space]")[0] + '[tune]\nsampler = "random"\n' + space)
    options = ("-o", tmp_path / "s", "--one-at-a-time", "--set", "tune.seeds=2")
    document = json.loads(run(recipe, *options, "--json").stdout)
    assert [item["key"] for item in document["keys"]] == ["train.learning_rate"]
    assert document["seeds"] == [0, 1]
    shown = run(recipe, *options).stdout
    assert shown.splitlines()[0].split()[:2] == ["key", "now"]
    assert shown.splitlines()[1].startswith("train.learning_rate")
    assert str(tmp_path / "s" / "sensitivity.png") in shown
    assert "partial" not in shown


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--one-at-a-time", "--population", "4"], "leave one of the two out"),
        (["--one-at-a-time", "--apply"], "finds no best recipe; leave --apply out"),
        (
            ["--one-at-a-time", "--trials", "9"],
            "tune.trials: --one-at-a-time tries each value once a seed; leave it out",
        ),
        (["--one-at-a-time", "--sampler", "gp"], "tune.sampler: --one-at-a-time tries the ends of each range"),
        (["--one-at-a-time", "--set", "tune.pruner=none"], "tune.pruner: --one-at-a-time gives nothing up"),
        (["--one-at-a-time", "--set", "tune.seed = 3"], "tune.seed: --one-at-a-time draws nothing"),
        (["--one-at-a-time", "--workers", "2"], "tune.workers: is of population-based training"),
        (["--population", "4", "--apply"], "leave --apply out, and take its best.toml"),
        (["--population", "4", "--trials", "9"], "tune.trials: a population trains each member once; leave it out"),
        (["--population", "4", "--sampler", "tpe"], "tune.sampler: a population spreads its members' values"),
        (["--population", "4", "--set", "tune.seeds=2"], "tune.seeds: a population is not trained again"),
        (["--population", "4", "--workers", "5"], "tune.workers: 5 for a population of 4; at most one for each member"),
        (["--population", "4", "--storage", "sqlite://"], "tune.storage: a population is kept in its folder"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_in_one_line(recipe, tmp_path, options, told):
    refused = CliRunner().invoke(main, ["tune", str(recipe), "-o", str(tmp_path / "s"), *options])
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("edgetune: ")
    assert told in line
    assert not (tmp_path / "s").exists()


STOPS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "term")]


@pytest.mark.parametrize(("number", "code", "told"), STOPS)
def test_a_signal_ends_one_at_a_time_with_what_is_known_and_the_same_command_goes_on(
    recipe, tmp_path, monkeypatch, number, code, told
):
    bench = PaperBench(before=lambda _: len(bench.seen) == 4 and os.kill(os.getpid(), number))
    monkeypatch.setattr("edgetune.tune.study.Workbench", lambda *_: bench)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    command = ["tune", str(recipe), "-o", str(tmp_path / "s"), "--one-at-a-time"]
    command += ["--set", "tune.seeds=2", "--set", "train.learning_rate=1e-2"]
    stopped = CliRunner().invoke(main, command)
    signal.signal(signal.SIGINT, before)
    assert (stopped.exit_code, told in stopped.stderr) == (code, True)
    assert stopped.stdout.splitlines()[0] == "partial: 3 of 8 trainings"
    assert stopped.stdout.splitlines()[2].startswith("train.learning_rate ")
    assert f"what it found so far is in {tmp_path / 's'}, and it goes on later" in stopped.stderr
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["trainings"] == {"planned": 8, "finished": 8}
    assert len(bench.seen) == 8 + 1


@pytest.mark.parametrize(("number", "code", "told"), STOPS)
def test_a_signal_ends_a_study_with_its_best_recipe_and_page_and_the_same_command_goes_on(
    recipe, tmp_path, monkeypatch, number, code, told
):
    bench = PaperBench(before=lambda _: len(bench.seen) == 3 and os.kill(os.getpid(), number))
    monkeypatch.setattr("edgetune.tune.study.Workbench", lambda *_: bench)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    command = ["tune", str(recipe), "-o", str(tmp_path / "s"), "--trials", "4", "--sampler", "random"]
    stopped = CliRunner().invoke(main, command)
    signal.signal(signal.SIGINT, before)
    assert stopped.exit_code == code
    assert told in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert load_recipe(tmp_path / "s" / "best.toml")
    for name in ("report.html", "history.png", "slices.png", "parallel.png"):
        assert (tmp_path / "s" / name).stat().st_size > 1000
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.stderr
    assert [trial["state"] for trial in json.loads(done.stdout)["trials"]].count("complete") == 4
